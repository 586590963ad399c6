"""What the page of a run shows: a folder of `train` or of `reproduce`, read anew for each page.

A run may still be going on: what is not there yet is left out, and a line half written is skipped.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.dataset import MANIFEST
from cot_builder.errors import UserError
from cot_builder.records import Row
from cot_builder.sources.reading import stays_inside

TRAINED: Final = "run.json"
METRICS: Final = "metrics.jsonl"
CURVES: Final = "curves.png"
ANSWERS: Final = 20  # of one step, at most
ROWS: Final = 500  # of a table, at most
_STEPS: Final = "steps"
_NONE: Final = "—"
_SAMPLES: Final = re.compile(r"(.+)-(\d+)")
_LONG: Final = re.compile(r"-?\d+\.\d{5,}(?:e[-+]?\d+)?")  # more digits than a table needs
_FIGURE: Final = re.compile(r"^fig(\d+)_")


class Grid(NamedTuple):
    """A table of words; the first cell of a row names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Link(NamedTuple):
    """A file or a run below the folder, and what it is called."""

    title: str
    path: str


class Samples(NamedTuple):
    """What a stage answered last, the picture of it, and the pictures of before."""

    title: str
    picture: Link | None
    answers: Sequence[Row]
    earlier: Sequence[Link]


class Run(NamedTuple):
    """All that a page tells of one run; paths start at the run's folder.

    `grids` stand before the pictures, `more` after them.
    """

    name: str
    kind: str
    facts: Sequence[tuple[str, str]]
    grids: Sequence[Grid]
    more: Sequence[Grid]
    curves: bool = False
    pictures: Sequence[Link] = ()
    samples: Sequence[Samples] = ()
    runs: Sequence[Link] = ()
    sheets: Sequence[Link] = ()


def is_run(folder: Path) -> bool:
    """Tell a run from a dataset; UserError where a folder is neither."""
    manifest = _table(folder, MANIFEST)
    if (folder / TRAINED).is_file() or _is_reproduction(folder, manifest):
        return True
    if "shards" in manifest:
        return False
    there = "holds none of these" if folder.is_dir() else "is no folder"
    raise UserError(
        f"{folder} {there}: a dataset ({MANIFEST} with shards; --resume finishes a build that was "
        f"cut off), a run of `train` ({TRAINED}), a run of `reproduce` ({MANIFEST} with a plan, or "
        f"{_STEPS}/*.json while it goes on)"
    )


def inside(folder: Path, below: str) -> Path:
    """Return a path below a folder; KeyError for one that leaves it, by a link too."""
    path = Path(os.path.realpath(folder / below)) if stays_inside(below) else None
    if path is None or not path.is_relative_to(os.path.realpath(folder)):
        raise KeyError(below)
    return path


def read_run(folder: Path) -> Run:
    """Read what there is of a run; UserError where the folder is none."""
    if not is_run(folder):
        raise UserError(f"{folder} is a dataset, not a run; `cot-builder browse {folder}` shows it")
    return _training(folder) if (folder / TRAINED).is_file() else _reproduction(folder)


def read_metrics(folder: Path) -> list[Row]:
    """Return the lines of a training run's metrics that can be read."""
    return [
        row
        for row in _lines(folder, METRICS)
        if isinstance(row.get("stage"), str) and isinstance(row.get("step"), int)
    ]


def curves_of(folder: Path) -> bytes:
    """Return the curves of a training run as PNG: its own, or drawn where it has none so new.

    KeyError where there is nothing to draw.
    """
    own, metrics = inside(folder, CURVES), inside(folder, METRICS)
    # A run draws when a stage ends: the stage that goes on has logged since.
    if own.is_file() and not (_draws() and _newer(metrics, own)):
        return own.read_bytes()
    if not _draws() or not (rows := read_metrics(folder)):
        raise KeyError(CURVES)
    from eval.plots import metrics_png

    return metrics_png(rows)


def _draws() -> bool:
    return bool(find_spec("matplotlib"))  # of the eval extra, which a page can do without


def _newer(path: Path, other: Path) -> bool:
    """Tell whether a file was written after another."""
    return path.is_file() and path.stat().st_mtime > other.stat().st_mtime


# -- a run of `train`


def _training(folder: Path) -> Run:
    told, logged = _table(folder, TRAINED), read_metrics(folder)
    recipe, datasets = _row(told.get("recipe")), _row(told.get("datasets"))
    stages = list(dict.fromkeys([*datasets, *(row["stage"] for row in logged)]))
    last: dict[str, Row] = {stage: {} for stage in stages}
    for row in logged:
        last[row["stage"]].update({key: n for key, n in row.items() if n is not None})
    ended = {stage: _table(folder, f"{stage}/{MANIFEST}") for stage in stages}
    state = [
        (
            stage,
            "ended" if ended[stage] else "going on, or cut off" if last[stage] else "not begun",
            _steps(last[stage]),
            _cell(ended[stage].get("examples")),
            _cell(ended[stage].get("base")),
            _cell(datasets.get(stage)),
        )
        for stage in stages
    ]
    shared = [
        (f"{part}.{key}", _cell(value))
        for part in ("model", "run")
        for key, value in _row(recipe.get(part)).items()
    ]
    head = ("Stage", "State", "Steps", "Examples", "Starts from", "Datasets")
    return Run(
        name=folder.name,
        kind="A run of train",
        facts=[("Command", _cell(told.get("command"))), ("Versions", _pairs(told.get("versions")))],
        grids=[Grid("Stages", head, state)],
        more=[
            _by_stage("Last metrics", last, without=("stage", "step", "steps")),
            _by_stage("Settings", {stage: _row(recipe.get(stage)) for stage in stages}),
            Grid("Settings of all stages", ("Name", "Value"), shared),
        ],
        curves=(folder / CURVES).is_file() or bool(logged and _draws()),
        samples=[found for stage in stages if (found := _samples(folder, stage))],
    )


def _steps(last: Row) -> str:
    return f"{_cell(last.get('step'))} of {_cell(last.get('steps'))}" if last else _NONE


def _by_stage(title: str, told: Mapping[str, Row], without: Sequence[str] = ()) -> Grid:
    names = dict.fromkeys(name for row in told.values() for name in row if name not in without)
    rows = [(name, *(_cell(row.get(name)) for row in told.values())) for name in names]
    return Grid(title, ("Name", *told), rows)


def _samples(folder: Path, stage: str) -> Samples | None:
    found: dict[int, str] = {}
    for path in (folder / "samples").glob("*.*"):
        match = _SAMPLES.fullmatch(path.stem)
        if match and match[1] == stage and path.suffix in (".png", ".jsonl"):
            found[int(match[2])] = path.stem
    if not found:
        return None
    pictures = {
        step: Link(f"step {step}", f"samples/{name}.png")
        for step, name in sorted(found.items())
        if (folder / "samples" / f"{name}.png").is_file()
    }
    step = max(found)
    answers = islice(_lines(folder, f"samples/{found[step]}.jsonl"), ANSWERS)
    title, picture = f"{stage}, step {step}", pictures.pop(step, None)
    return Samples(title, picture, [*answers], [*pictures.values()])


# -- a run of `reproduce`


def _is_reproduction(folder: Path, manifest: Row) -> bool:
    if manifest:
        return "plan" in manifest and isinstance(manifest.get("steps"), dict)
    return any((folder / _STEPS).glob("*.json"))


def _reproduction(folder: Path) -> Run:
    manifest = _table(folder, MANIFEST)
    # The manifest is written last; one of before stays there while steps are run again.
    ended = bool(manifest) and not any(
        _newer(log, folder / MANIFEST) for log in folder.glob("logs/*.log")
    )
    steps = [*(_ended_steps(manifest) if ended else _steps_so_far(folder))]
    seconds = sum(taken for _, taken, _ in steps if isinstance(taken, int | float))
    rows = [(name, _cell(taken), _cell(command)) for name, taken, command in steps]
    return Run(
        name=folder.name,
        kind="A run of reproduce",
        facts=[
            ("Plan", _cell(manifest.get("plan"))),
            ("State", "ended" if ended else "going on, or cut off"),
            ("Time", f"{seconds:,.1f} seconds in {len(rows)} steps"),
            ("Version", _cell(_row(manifest.get("tool")).get("version"))),
        ],
        grids=[_csv(folder / link.path) for link in _files(folder, "tables", ".csv")],
        pictures=_files(folder, "tables", ".png"),
        more=[Grid("Steps", ("Step", "Seconds", "Command"), rows)],
        runs=[
            Link(path.parent.name, f"train/{path.parent.name}")
            for path in sorted(folder.glob(f"train/*/{TRAINED}"))
        ],
        sheets=_files(folder, "cases", ".html"),
    )


def _ended_steps(manifest: Row) -> Iterator[tuple[str, Any, Any]]:
    """Yield each step's name, seconds and command."""
    for name, row in _row(manifest.get(_STEPS)).items():
        yield name, _row(row).get("seconds"), _row(row).get("command")


def _steps_so_far(folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """Yield the steps that have a record, as they ended, and those that only have a log."""
    records = sorted((folder / _STEPS).glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in records:
        row = _table(folder, f"{_STEPS}/{path.name}")
        words = row.get("command")
        command = ["cot-builder", *map(str, words)] if isinstance(words, list) else []
        yield path.stem, row.get("seconds"), shlex.join(command)
    ended = {path.stem for path in records}
    for path in sorted(folder.glob("logs/*.log")):
        if path.stem not in ended:
            yield path.stem, None, f"has not ended; {path.relative_to(folder)} tells more"


def _files(folder: Path, below: str, suffix: str) -> tuple[Link, ...]:
    """Return the files of a kind, without links that lead out; the paper's tables first."""
    root = folder.resolve()
    names = (path.name for path in (folder / below).glob(f"*{suffix}"))
    return tuple(
        Link(_FIGURE.sub(r"Fig. \1: ", name.removesuffix(suffix)), f"{below}/{name}")
        for name in sorted(names, key=lambda name: (not name.startswith("table"), name))
        if (root / below / name).resolve().is_relative_to(root)
    )


def _csv(path: Path) -> Grid:
    """Read a table, with the title that its Markdown twin has."""
    twin = path.with_suffix(".md")
    first = (
        twin.read_text(encoding="utf-8", errors="replace")[:200]
        if twin.is_file() and not twin.is_symlink()
        else ""
    )
    title = first.partition("\n")[0].lstrip("# ") or path.stem
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as lines:
            head, *rows = islice(csv.reader(lines), ROWS + 1)
    except (ValueError, csv.Error):
        return Grid(f"{title} (cannot be read)", (), ())
    return Grid(title, head, [[*map(_rounded, row)] for row in rows])


def _rounded(text: str) -> str:
    return _cell(float(text)) if _LONG.fullmatch(text) else text


# -- reading what others wrote


def _own(folder: Path, below: str) -> Path:
    try:
        return inside(folder, below)
    except KeyError:
        raise UserError(
            f"{folder / below} leads out of the run's folder, and is not read; copy the file there"
        ) from None


def _table(folder: Path, below: str) -> Row:
    """Return a JSON object of a file; empty where there is none, UserError where it is broken."""
    path = _own(folder, below)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(row).__name__}")
    return row


def _lines(folder: Path, below: str) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file, without lines that are none."""
    path = _own(folder, below)
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _row(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _pairs(value: Any) -> str:
    return ", ".join(f"{key} {said}" for key, said in _row(value).items()) or _NONE


def _cell(value: Any) -> str:
    """Return a value as a cell shows it.

    >>> _cell(None), _cell(0.000050), _cell(23244.0), _cell(["a", "b"]), _cell(False)
    ('—', '5e-05', '23,244', 'a, b', 'False')
    """
    if value is None or value == "":
        return _NONE
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return ", ".join(map(_cell, value)) or _NONE
    return str(value)
