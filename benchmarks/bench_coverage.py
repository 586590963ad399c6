"""Lines of the five packages that the tests run, by package and module.

    make coverage                  # the quick tests
    make coverage TESTS="slow or not slow"    # all of them

Reads what `coverage combine` left. A process that a test kills counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    options = _options()
    lines = _lines()
    packages: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for module, (count, missing) in lines.items():
        packages[module.partition("/")[0]] += count
        missed[module.partition("/")[0]] += len(missing)
    print("| package | lines | run |\n| --- | ---: | ---: |")
    for package, count in packages.items():
        print(f"| `{package}` | {count:,} | {1 - missed[package] / count:.1%} |")
    print(f"| all | {packages.total():,} | {1 - missed.total() / packages.total():.1%} |")
    result = {
        "tests": options.tests,
        "coverage": version("coverage"),
        "python": platform.python_version(),
        "packages": {
            package: {"lines": count, "missed": missed[package]}
            for package, count in packages.items()
        },
        "modules": {
            module: {"lines": count, "missed": missing}
            for module, (count, missing) in lines.items()
        },
    }
    (RESULTS / "coverage.json").write_text(json.dumps(result) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tests", help="pytest's -m of the run, for the record")
    return parser.parse_args()


def _lines() -> dict[str, tuple[int, list[int]]]:
    """Return the number of lines of each module, and which of them no test runs."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "coverage", "json", "--quiet", "-o", report.name]
        subprocess.run(command, check=True)
        files = json.loads(Path(report.name).read_text())["files"]
    return {
        name: (found["summary"]["num_statements"], found["missing_lines"])
        for name, found in sorted(files.items())
        if found["summary"]["num_statements"]
    }


if __name__ == "__main__":
    main()
