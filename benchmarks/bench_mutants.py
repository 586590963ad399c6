"""Small changes of the code ("mutants") that its tests notice, by module.

    make mutants                                  # all; goes on where it was stopped
    make mutants MUTANTS="cot_builder/boxes.py"   # of these files
    make mutants MUTANTS="cot_builder/decompose/*.py --sample 600"

Each mutant is one operator, number, word or argument changed; which files and tests take part
stands in pyproject.toml (`tool.mutmut`). A sample is drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
SEED = 20261124


def main() -> None:
    options = _options()
    drawn = {file: _names(ROOT / file) for file in _files(options.files)}
    made = {file: len(names) for file, names in drawn.items()}
    if options.sample:
        every = sorted(name for names in drawn.values() for name in names)
        kept = set(random.Random(SEED).sample(every, min(options.sample, len(every))))
        drawn = {file: [n for n in names if n in kept] for file, names in drawn.items()}
    if not options.no_run:
        names = [name for some in drawn.values() for name in some]
        command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", "1", *names]
        subprocess.run(command, check=True, cwd=ROOT)
    modules = {}
    survivors = []
    for file, names in drawn.items():
        codes = json.loads((ROOT / "mutants" / f"{file}.meta").read_text())["exit_code_by_key"]
        counts = Counter(status_by_exit_code[codes[name]] for name in names)
        survivors += [name for name in names if status_by_exit_code[codes[name]] == "survived"]
        modules[file] = {"made": made[file], "tried": len(names), **counts}
        told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        print(f"{file}: {made[file]} mutants, {len(names)} tried: {told}")
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result |= {"mutmut": version("mutmut"), "python": platform.python_version(), "seed": SEED}
    result.setdefault(options.label, {}).update(modules)
    result.setdefault("survivors", {})[options.label] = survivors
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="all of tool.mutmut when none is named")
    parser.add_argument("--sample", type=int, help="so many mutants of all these files")
    parser.add_argument("--label", default="after", help="the entry of results/mutants.json")
    parser.add_argument("--no-run", action="store_true", help="count what was run before")
    return parser.parse_args()


def _files(named: list[Path]) -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    found = (path for pattern in settings["only_mutate"] for path in ROOT.glob(pattern))
    wanted = {path.resolve() for path in named}
    return sorted(
        str(path.relative_to(ROOT)) for path in found if not wanted or path.resolve() in wanted
    )


def _names(path: Path) -> list[str]:
    file = path.relative_to(ROOT)
    mutated = mutate_file_contents(str(file), path.read_text())
    return [get_mutant_name(file, name) for name in mutated.mutant_names]


if __name__ == "__main__":
    main()
