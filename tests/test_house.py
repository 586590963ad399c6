"""ARCHITECTURE.md held against the code (floors, rooms), and the pages against the commands."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from cot_builder import __version__
from cot_builder.cli import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("annotation", "cot_builder", "eval", "knowledge_banks", "training")
PAGES = tuple(
    path
    for pattern in ("*.md", "docs/*.md", "[a-z]*/**/README.md")
    for path in sorted(ROOT.glob(pattern))
    # What `make mutants`, the tutorial and `make docs` leave.
    if path.relative_to(ROOT).parts[0] not in ("mutants", "out", "dist")
)
FORBIDDEN_NAMES = {"data", "evaluation", "scripts", "resources", "datasets", "utils", "helpers"}


class Import(NamedTuple):
    where: str
    line: int
    target: str


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


def imports() -> Iterator[Import]:
    """Every import of the five packages, those inside functions too."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(name, node.lineno, alias.name)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno}: relative import"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield Import(name, node.lineno, inner if inner in MODULES else str(node.module))


def table(heading: str) -> dict[str, list[str]]:
    """The first table below a heading of ARCHITECTURE.md: first cell to the names in the second."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `?([\w.]+)`? \| (`.+) \|$", section, flags=re.MULTILINE)
    return {first: re.findall(r"`([\w.*]+)`", second) for first, second in rows}


def stands_for(pattern: str, module: str) -> bool:
    stem = pattern.removesuffix(".*")
    return module == stem or (pattern.endswith(".*") and module.startswith(f"{stem}."))


def floor_of(module: str) -> int | None:
    floors = [
        int(floor)
        for floor, patterns in table("Floors").items()
        if any(stands_for(pattern, module) for pattern in patterns)
    ]
    assert len(floors) <= 1, f"{module} stands on floors {floors}"
    return floors[0] if floors else None


def test_every_module_has_a_floor_and_every_name_of_the_table_exists() -> None:
    assert [name for name in MODULES if floor_of(name) is None] == []
    patterns = [pattern for names in table("Floors").values() for pattern in names]
    gone = [p for p in patterns if not any(stands_for(p, module) for module in MODULES)]
    assert gone == [], "ARCHITECTURE.md names modules that do not exist"


def test_imports_go_down() -> None:
    floors = {name: floor_of(name) or 0 for name in MODULES}
    ups = [
        f"{found.where}:{found.line} (floor {floors[found.where]}) imports "
        f"{found.target} (floor {floors[found.target]})"
        for found in imports()
        if found.target in floors
        and floors[found.target] >= floors[found.where]
        and not (
            floors[found.target] == floors[found.where]
            and found.target.partition(".")[0] == found.where.partition(".")[0]
        )
    ]
    assert ups == []


def test_libraries_stay_in_their_rooms() -> None:
    rooms = table("Rooms")
    strays = [
        f"{found.where}:{found.line} imports {library}"
        for found in imports()
        if (library := found.target.partition(".")[0]) not in {*sys.stdlib_module_names, *PACKAGES}
        and not any(stands_for(room, found.where) for room in rooms.get(library, ()))
    ]
    assert strays == []


def test_nobody_imports_eval_over_the_builtin() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                hiding = [a for a in node.names if a.name.split(".")[0] == "eval" and not a.asname]
                assert not hiding, f"{name}:{node.lineno}: say `from eval import ...`"


def test_names_that_other_wheels_install_or_that_say_nothing_are_not_used() -> None:
    used = {part for name in MODULES for part in name.split(".")}
    assert used & {*FORBIDDEN_NAMES, "common"} == set()


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert newest
    assert {project["version"], __version__, newest[1]} == {__version__}


def test_the_wheel_ships_the_five_packages_with_their_words_and_images(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    told = {str(path.relative_to(ROOT)) for path in MODULES.values()}
    for pattern in ("*/py.typed", "knowledge_banks/*.toml", "knowledge_banks/card/*",
                    "cot_builder/sources/demo_corpus/**/*", "annotation/*.*",
                    "eval/workbench/static/*", "eval/workbench/templates/*"):  # fmt: skip
        found = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if path.is_file()}
        assert found, pattern
        told |= found
    assert told - shipped == set()
    assert {name.split("/")[0] for name in shipped if ".dist-info" not in name} == set(PACKAGES)


def known_commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from known_commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


COMMANDS = dict(known_commands(typer.main.get_command(app)))


def told_commands(page: Path) -> Iterator[str]:
    """Every `cot-builder ...` of a page's code blocks, a whole command each, as it is typed."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for block in re.findall(r"```(?:bash|console)\n(.+?)```", text, flags=re.DOTALL):
        yield from re.findall(
            r"(?:^|(?<=no.python ))cot-builder [^|\n]+", block, flags=re.MULTILINE
        )


def named(line: str) -> tuple[str, Any]:
    """The command that a line begins with: its name of one word or two, and itself."""
    return next(((n, COMMANDS[n]) for n in COMMANDS if f"{line} ".startswith(f"{n} ")), ("", None))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_command_line_takes_what_the_pages_tell(page: Path) -> None:
    for line in told_commands(page):
        words = shlex.split(line, comments=True)[1:]
        name, command = named(" ".join(words))
        assert command, f"{page.name} tells of `{line}`, which is no command"
        command.make_context(name, words[len(name.split()) :])  # a usage error says what is wrong
    for line in re.findall(r"`cot-builder ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
        name, command = named(line)
        assert command, f"{page.name} tells of `cot-builder {line}`, which is no command"
        options = {"--help", *(option for p in command.params for option in p.opts)}
        assert {*re.findall(r"(?<=\s)--[a-z-]+", line)} <= options, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_has_the_targets_that_the_pages_tell(page: Path) -> None:
    code = "\n".join(
        re.findall(r"```(?:bash|console)\n.+?```|`[^`\n]+`", page.read_text(), re.DOTALL)
    )
    told = {*re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", code, re.MULTILINE)}
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert told <= {*targets}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_that_the_pages_tell_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), f"{page.name} leads to {link}"
    folders = "|".join((*PACKAGES, "benchmarks", "docs", "plans", "tests"))
    for name in re.findall(rf"`((?:{folders})[./][\w./]+)`", text):
        assert (ROOT / name).exists() or defined(name.replace("/", ".")), f"{page.name}: {name}"


def defined(name: str) -> bool:
    """Whether a dotted name is a module, or what a module defines at its top."""
    module, _, last = name.rpartition(".")
    source = MODULES[module].read_text(encoding="utf-8") if module in MODULES else ""
    return name in MODULES or bool(re.search(rf"^((def|class) )?{last}\b", source, re.MULTILINE))


def test_the_readme_tells_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"cot-builder {name}" not in readme] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)#:]+)", readme)}
    own = {ROOT / "README.md", ROOT / "tests/gold/README.md"}
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in linked | own] == []
