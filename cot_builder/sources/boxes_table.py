"""Boxes of one's own, in any table: CSV, TSV, JSON lines (plain or .gz) or Parquet.

Each row is a phrase on an image with a box. Rows of one image (or of one `study_id`) are one study.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.records import Image
from cot_builder.sources.boxed import (
    SECTION,
    XYXY,
    Marked,
    column_names,
    find_image,
    load_marks,
    number,
    pixels,
    tasks_by_study,
    xywh_to_xyxy,
)
from cot_builder.sources.contract import UNKNOWN, Loaded, Mark, Plan, Source, SourceOptions, Task
from cot_builder.sources.reading import Rejects, UnusableError, need_root, stays_inside
from cot_builder.sources.table import read_rows

NAME: Final = "boxes"
HOLDS: Final = "a table of boxes (.csv, .tsv, .jsonl, these with .gz, or .parquet)"
_NEEDED: Final = ("image", "phrase")
_OPTIONAL: Final = (
    "label", "width", "height", "view", "study_id", "subject_id", "split", "certainty", "reader",
)  # fmt: skip

Row = dict[str, Any]


def plan(options: SourceOptions) -> Plan:
    """Read the table; `--columns ours=theirs` names the columns, `--box-columns` the box.

    An image path starts at the table's folder, or at `images` in it. A row without a `study_id` is
    of a study named as its image; one without `width` and `height` has the size of the image's
    file. Raises UserError for a missing column, naming those there are.
    """
    path = need_root(options, source=NAME, holds=HOLDS)
    if not path.is_file():
        raise UserError(f"--root {path} is a folder; for --source {NAME} it names {HOLDS}")
    if len(options.box_columns) not in (1, 4) or options.box_format is None:
        raise UserError(
            f"--source {NAME} needs --box-columns (four, or one that holds a list of four) and "
            "--box-format xyxy or xywh"
        )
    names = column_names(options, source=NAME, ours=(*_NEEDED, *_OPTIONAL))
    chosen = dict(options.columns)
    needed = [names[ours] for ours in (*_NEEDED, *(c for c in _OPTIONAL if c in chosen))]
    needed = list(dict.fromkeys([*needed, *options.box_columns]))
    optional = [names[ours] for ours in _OPTIONAL if ours not in chosen]
    rejects = Rejects(NAME)
    rows = read_rows(path, needed, rejects, optional=optional)
    marked = _marked(rows, path, names, options, rejects)
    tasks, notes = tasks_by_study(marked, rejects, options, root=path.parent)
    return Plan(tasks, rejects.records, path.name, notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one study's phrases, and look at its images."""
    return load_marks(NAME, task, options, root=need_root(options, source=NAME, holds=HOLDS).parent)


def _marked(
    rows: Iterator[tuple[int, Row]],
    path: Path,
    names: Mapping[str, str],
    options: SourceOptions,
    rejects: Rejects,
) -> Iterator[Marked]:
    for line, row in rows:
        place = f"{path.name}:{line}"
        said = {ours: row.get(theirs) for ours, theirs in names.items()}
        try:
            box = _read_box([row.get(column) for column in options.box_columns], options)
            marked = _read_row(said, box, path.parent, place)
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        yield marked


def _read_row(row: Row, box: XYXY, folder: Path, place: str) -> Marked:
    said = {name: _text(value) for name, value in row.items()}
    if not (said["image"] and stays_inside(said["image"])):
        detail = f"image: expected a path in the table's folder, got {row['image']!r:.80}"
        raise UnusableError("path_outside_root" if said["image"] else "malformed_row", detail)
    image_id = Path(said["image"]).stem
    file = find_image(folder, said["image"])
    size = pixels(row["width"], "width"), pixels(row["height"], "height")
    certainty = number(row["certainty"], "certainty") if said["certainty"] else None
    classes = (said["label"],) if said["label"] else ()
    return Marked(
        study_id=said["study_id"] or image_id,
        subject_id=said["subject_id"] or None,
        split=said["split"],
        image=Image(file, image_id, said["view"] or None, *size),
        mark=Mark(place, image_id, said["phrase"], box, classes, "manual", certainty,
                  said["reader"]),
    )  # fmt: skip


def _read_box(values: list[Any], options: SourceOptions) -> XYXY:
    """Read a box from the values of four columns, or of one that holds a list."""
    named = ", ".join(options.box_columns)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if len(values) != len("xyxy"):
        detail = f"column {named!r}: expected a list of four, got {values!r:.60}"
        raise UnusableError("malformed_row", detail)
    a, b, c, d = (number(value, named) for value in values)
    return (a, b, c, d) if options.box_format == "xyxy" else xywh_to_xyxy(a, b, c, d)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # an id column with a gap is read as floats
        value = int(value)
    return "" if value is None else str(value).strip()


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=UNKNOWN,
    licence="the table's own",
    citation="",
    sections=(SECTION,),
)
