"""The tutorial does what it says: every `bash` block of the page runs, in the page's order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs/tutorial.md"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    (tmp_path / "plans").symlink_to(ROOT / "plans")
    tools = tmp_path / "bin"
    tools.mkdir()
    command = tools / "cot-builder"
    command.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from cot_builder.cli import main; main()' \"$@\"\n"
    )
    command.chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}", "COLUMNS": "100"}
    blocks = re.findall(r"```bash\n(.+?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        ran = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, env={**os.environ, **path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{block}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
