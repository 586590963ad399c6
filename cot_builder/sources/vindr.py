"""VinDr-CXR: boxes of several radiologists an image, in PhysioNet's layout or Kaggle's.

The release documents: Nguyen et al., https://physionet.org/content/vindr-cxr/, and the VinBigData
challenge on Kaggle. Boxes are xyxy in the original image's pixels; a row "No finding" has none.
A phrase is the name of a class; each reader's boxes stay apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.records import Image
from cot_builder.sources.boxed import (
    SECTION,
    Marked,
    load_marks,
    number,
    pixels,
    tasks_by_study,
)
from cot_builder.sources.contract import (
    CREDENTIALED,
    Loaded,
    Mark,
    Plan,
    Source,
    SourceOptions,
    Task,
)
from cot_builder.sources.reading import Rejects, UnusableError, find_file, need_root
from cot_builder.sources.table import read_rows

NAME: Final = "vindr"
HOLDS: Final = "the folder with train.csv, or annotations/annotations_train.csv, and train/<image>"
# Table and split; what stands first is taken.
_TABLES: Final = {
    "train": ("annotations_train.csv", "train.csv"),
    "test": ("annotations_test.csv", "test.csv"),
}
_CORNERS: Final = ("x_min", "y_min", "x_max", "y_max")
_SUFFIXES: Final = (".png", ".jpg", ".dicom", ".dcm")
_NO_FINDING: Final = "No finding"


def plan(options: SourceOptions) -> Plan:
    """Read the tables of both splits, one task an image.

    Sizes are those of the image files, otherwise of `train_meta.csv` (`dim0` rows, `dim1` columns),
    as Kaggle's users share it. Raises UserError where there is no table, or it lacks a column.
    """
    root = need_root(options, source=NAME, holds=HOLDS)
    folders = [root, root / "annotations"]
    tables = {
        split: table
        for split, names in _TABLES.items()
        if (table := next(filter(None, (find_file(folders, name) for name in names)), None))
    }
    if not tables:
        raise UserError(f"--root {root}: found no {_TABLES['train'][0]}; expected {HOLDS}")
    rejects = Rejects(NAME)
    marked = (
        row
        for split, table in tables.items()
        for row in _marked(table, split, root, _sizes(folders, split, rejects), rejects)
    )
    tasks, notes = tasks_by_study(marked, rejects, options, root=root)
    release = ", ".join(table.name for table in tables.values())
    return Plan(tasks, rejects.records, f"VinDr-CXR, {release}", notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one image's classes, and look at the image."""
    return load_marks(NAME, task, options, root=need_root(options, source=NAME, holds=HOLDS))


def _marked(
    table: Path,
    split: str,
    root: Path,
    sizes: Mapping[str, tuple[int, int]],
    rejects: Rejects,
) -> Iterator[Marked]:
    images: dict[str, Image] = {}
    for line, row in read_rows(
        table, ("image_id", "class_name", *_CORNERS), rejects, optional=["rad_id"]
    ):
        place = f"{table.name}:{line}"
        image_id, category = str(row["image_id"] or ""), str(row["class_name"] or "")
        try:
            if not image_id.isalnum():
                raise UnusableError("malformed_row", f"image_id: got {image_id!r:.60}")
            box = _box(row) if category != _NO_FINDING else None
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        if image_id not in images:
            size = sizes.get(image_id, (None, None))
            images[image_id] = Image(_file(root, split, image_id), image_id, None, *size)
        reader = str(row.get("rad_id") or "")
        # One line is enough for what all readers say of the whole image.
        reader = reader if box else ""
        mark = Mark(place, image_id, category, box, (category,), reader=reader)
        yield Marked(image_id, None, split, images[image_id], mark)


def _box(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (number(row[column], column) for column in _CORNERS)
    return x1, y1, x2, y2


def _file(root: Path, split: str, image_id: str) -> str:
    names = [f"{split}/{image_id}{suffix}" for suffix in _SUFFIXES]
    return next((name for name in names if (root / name).exists()), names[-2])


def _sizes(folders: list[Path], split: str, rejects: Rejects) -> dict[str, tuple[int, int]]:
    path = find_file(folders, f"{split}_meta.csv")
    sizes: dict[str, tuple[int, int]] = {}
    if path is None:
        return sizes
    for line, row in read_rows(path, ("image_id", "dim0", "dim1"), rejects):
        try:
            height, width = (pixels(row[column], column) for column in ("dim0", "dim1"))
        except UnusableError as error:
            rejects.add(f"{path.name}:{line}", error.reason, error.detail)
            continue
        if width and height:
            sizes[str(row["image_id"])] = (width, height)
    return sizes


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=True,
    redistribution=CREDENTIALED,
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Nguyen et al., VinDr-CXR, Scientific Data 9:429, 2022",
    sections=(SECTION,),
)
