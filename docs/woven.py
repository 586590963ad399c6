"""Run a page's commands in order, and weave what they print and draw into the page.

    python docs/woven.py docs/tutorial.md            # or: make tutorial

`bash` blocks run in one empty folder. The `text` block below `<!-- printed -->` gets what its block
printed, a picture below `<!-- drawn: FILE -->` the file that a block drew, and one below
`<!-- browsed: FOLDER PATH -->` a page of `cot-builder browse FOLDER`. `tests/test_docs.py` runs all
of this again, and holds the page to it, except for blocks that are `<!-- printed, once -->`: what
these print differs from run to run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
MOST_BYTES: Final = 150_000  # of a picture
_BLOCK: Final = re.compile(
    r"```bash\n(?P<commands>.+?)```\n"
    r"(?:(?P<head>\n<!-- printed(?P<once>, once)? -->\n```text\n)(?P<printed>.*?)```\n)?",
    re.DOTALL,
)
# Seconds, hashes and sizes: they differ from machine to machine.
_DIFFERS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b[\d.]+(?= s\b)", r"(?<=\()\d+(?= studies/s)", r"\b[\d,]+(?= bytes)",
        r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b",
    )
)  # fmt: skip
PICTURE: Final = re.compile(
    r"<!-- (?P<kind>drawn|browsed): (?P<source>.+?) -->\n!\[[^]]+\]\((?P<path>pictures/[^)]+)\)"
)


def woven(page: str, folder: Path, *, again: bool = True) -> str:
    """Run a page's blocks in a folder and return the page with what they print.

    Without `again`, what is printed once stays as it is.
    """
    prepare(folder)

    def block(found: re.Match[str]) -> str:
        printed = run(found["commands"], folder)
        if found["head"] is None or (found["once"] and not again):
            return found[0]
        return f"```bash\n{found['commands']}```\n{found['head']}{printed}```\n"

    return _BLOCK.sub(block, page)


def prepare(folder: Path) -> None:
    """Put into an empty folder what commands stand on: this checkout's `cot-builder`, the plans."""
    command = folder / "bin/cot-builder"
    command.parent.mkdir()
    command.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from cot_builder.cli import main; main()' \"$@\"\n"
    )
    command.chmod(0o755)
    (folder / "plans").symlink_to(ROOT / "plans")


def run(commands: str, folder: Path, **settings: str) -> str:
    """Run commands as a person in a terminal of 100 columns would; return what they print.

    Where the folder lies is taken out, and what differs from machine to machine.
    """
    usual = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "COLUMNS": "100", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    ran = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=folder, env={**os.environ, **usual, **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{commands}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
    lines = (line.rstrip() for line in ran.stdout.replace(f"{folder}/", "").splitlines())
    printed = "\n".join(lines).strip("\n")
    for differs in _DIFFERS:
        printed = differs.sub("…", printed)
    return f"{printed}\n"


def draw(page: str, folder: Path, beside: Path) -> None:
    """Put the pictures that a page shows beside it, as its blocks drew them in a folder."""
    for found in PICTURE.finditer(page):
        if found["kind"] == "drawn":
            content = drawn(folder, found["source"]).read_bytes()
        else:
            content = browsed(folder, *found["source"].split())
        small(content, beside / found["path"])


def drawn(folder: Path, pattern: str) -> Path:
    """Return the picture of a name, which may have a `*`: the last one then."""
    return sorted(folder.glob(pattern))[-1]


def small(content: bytes, path: Path) -> None:
    """Write a picture as a PNG of 256 colours, narrower until it has at most 150 KB."""
    from PIL import Image

    with Image.open(BytesIO(content)) as read:
        picture = read.convert("RGB")
    path.parent.mkdir(exist_ok=True)
    width = min(picture.width, 1100)
    while True:
        size = (width, round(picture.height * width / picture.width))
        picture.resize(size, Image.Resampling.LANCZOS).quantize(256).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return
        width = width * 9 // 10


def browsed(folder: Path, dataset: str, path: str) -> bytes:
    """Return a page of `cot-builder browse` as Chromium shows it, as PNG."""
    from tests.browser import chromium, go, started

    with started(folder / dataset) as address, chromium(address) as browser:
        browser.set_window_size(1280, 1000)
        go(browser, path)
        return browser.get_screenshot_as_png()


def main() -> None:
    """Weave the pages that are named on the command line."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        with TemporaryDirectory() as scratch:
            page = woven(path.read_text(encoding="utf-8"), Path(scratch))
            draw(page, Path(scratch), path.parent)
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
