"""Small changes of the code ("mutants") that its tests notice, by module.

    make mutants                                  # all; goes on where it was stopped
    make mutants MUTANTS="cot_builder/boxes.py"   # of these files
    make mutants MUTANTS="cot_builder/decompose/*.py --sample 600"

Each mutant is one operator, number, word or argument changed, as mutmut writes it; which files and
tests take part stands in pyproject.toml (`tool.mutmut`). A sample is drawn with a fixed seed.

mutmut's own run starts pytest for every mutant, and tries only the tests that were seen to call the
function, which leaves out all that is called while a module's banks are compiled. So here pytest
collects once, and each mutant is tried in a fork of it: the function gets the mutant's code, and
the tests run until one fails, first the one that failed last. The limit of a try is in CPU seconds,
so that a busy machine makes no mutant fail. What was tried is kept in mutants/tried.json, by the
text of the mutant and, where it survived, of the tests; Ctrl-C counts what was tried till then.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import random
import resource
import sys
import time
import tomllib
from collections import Counter
from functools import reduce
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import pytest
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
TRIED = ROOT / "mutants" / "tried.json"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
SEED = 20261124
LIMIT = 5  # times the CPU seconds of the tests on the code as it is
MEMORY = 6 << 30
STATUS = {0: "survived", 1: "killed", 2: "untried"}  # the last: the code cannot be put in place


class Mutant(NamedTuple):
    """A function with one change: `name` as mutmut has it, `code` the whole function."""

    file: str
    name: str
    code: str


def main() -> None:
    options, more = _options()
    every = {file: _mutants(file) for file in _files(options.files)}
    drawn = sorted(mutant for some in every.values() for mutant in some)
    random.Random(SEED).shuffle(drawn)
    tries = Tries(drawn[: options.sample])
    arguments = [*SETTINGS["pytest_add_cli_args"], *more]
    tests = SETTINGS["pytest_add_cli_args_test_selection"]
    pytest.main(["-p", "no:terminal", *arguments, *tests], plugins=[tries])
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result |= {"mutmut": version("mutmut"), "python": platform.python_version(), "seed": SEED}
    for file, some in every.items():
        found = {m.name: tries.status[m.name] for m in some if m.name in tries.status}
        row = {"made": len(some), "tried": len(found), **Counter(found.values())}
        print(f"{file}: {', '.join(f'{count} {what}' for what, count in row.items())}")
        survivors = [name for name, status in found.items() if status == "survived"]
        result.setdefault(options.label, {})[file] = row | {"survivors": survivors}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


class Tries:
    """A plugin of pytest that runs the collected tests on each mutant, and keeps what came."""

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants = mutants
        self.status: dict[str, str] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try them all, instead of running the tests once."""
        files = sorted({item.path for item in session.items})
        tests = _digest("".join(path.read_text() for path in files))
        before = json.loads(TRIED.read_text()) if TRIED.exists() else {}
        status, took = _tried(session, session.items, None)
        if session.testsfailed or status != "survived":
            sys.exit("the tests have to pass on the code as it is")
        order = sorted(session.items, key=dict(zip(session.items, took, strict=True)).__getitem__)
        print(f"{len(self.mutants)} mutants, {len(order)} tests of {sum(took):.1f} CPU seconds")
        for mutant in self.mutants:
            key = _digest(mutant.name + mutant.code)
            status, by = before.get(key, ("", ""))
            if not status or (status == "survived" and by != tests):
                status, spent = _tried(session, order, mutant, int(LIMIT * sum(took)))
                if status == "killed":
                    order.insert(0, order.pop(len(spent) - 1))
                before[key] = (status, tests)
                TRIED.parent.mkdir(exist_ok=True)
                TRIED.write_text(json.dumps(before))
                print(f"{mutant.name}: {status} in {sum(spent):.1f} CPU seconds", flush=True)
            self.status[mutant.name] = status
        return True


def _tried(
    session: pytest.Session,
    order: list[pytest.Item],
    mutant: Mutant | None,
    limit: int = resource.RLIM_INFINITY,
) -> tuple[str, list[float]]:
    """Return what came of a mutant, and the CPU seconds of each test until one failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        took: list[float] = []
        code = 2
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            if mutant:
                _put(mutant)
            code = 1
            for item, following in pairwise([*order, None]):
                began = time.process_time()
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                took.append(round(time.process_time() - began, 3))
                if session.testsfailed:
                    break
            else:
                code = 0
        finally:  # what even pytest does not catch kills too
            os.write(writer, json.dumps(took).encode())
            os._exit(code)
    _, ended = os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        took = json.loads(stream.read() or "[]")
    return STATUS.get(os.waitstatus_to_exitcode(ended), "timeout"), took


def _put(mutant: Mutant) -> None:
    """Give a function its mutant's code, wherever it was imported to."""
    name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(name)
    made: dict[str, Any] = {}
    exec(compile(mutant.code, mutant.file, "exec"), module.__dict__, made)
    mutated = _function(*made.values())
    mangled = mutated.__name__.rpartition("__mutmut_")[0]
    *path, name = mangled.removeprefix("x_").removeprefix("xǁ").split("ǁ")
    found = _function(vars(reduce(getattr, path, module))[name])
    for part in ("__code__", "__defaults__", "__kwdefaults__"):
        setattr(found, part, getattr(mutated, part))


def _function(found: Any) -> FunctionType:
    """Return the function itself, of a class method or a cached one too."""
    return found if isinstance(found, FunctionType) else _function(found.__wrapped__)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="all of tool.mutmut when none is named")
    parser.add_argument("--sample", type=int, help="so many mutants of all these files")
    parser.add_argument("--label", default="after", help="the entry of results/mutants.json")
    return parser.parse_known_args()  # the others are pytest's


def _files(named: list[Path]) -> list[str]:
    found = (path for pattern in SETTINGS["only_mutate"] for path in ROOT.glob(pattern))
    wanted = {path.resolve() for path in named}
    return sorted(
        str(path.relative_to(ROOT)) for path in found if not wanted or path.resolve() in wanted
    )


def _mutants(file: str) -> list[Mutant]:
    mutated = mutate_file_contents(file, (ROOT / file).read_text())
    lines = mutated.code.splitlines()
    found = []
    for name in mutated.mutant_names:
        span = mutated.line_span_by_function_name[name]
        code = "if True:\n " + "\n ".join(lines[span.start - 1 : span.end])
        found.append(Mutant(file, get_mutant_name(Path(file), name), code))
    return found


if __name__ == "__main__":
    main()
