"""NIH ChestX-ray14: the 984 boxes of its box list, with views from its image list.

The release: Wang et al., https://nihcc.app.box.com/v/ChestXray-NIHCC. Boxes are xywh in images of
1024 x 1024 pixels; the header of the box list has commas inside a name, and its rows may end in
more of them. A phrase is the name of a class.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cot_builder.errors import UserError
from cot_builder.records import Image
from cot_builder.sources.boxed import (
    SECTION,
    Marked,
    load_marks,
    number,
    tasks_by_study,
    xywh_to_xyxy,
)
from cot_builder.sources.contract import OPEN, Loaded, Mark, Plan, Source, SourceOptions, Task
from cot_builder.sources.reading import (
    Rejects,
    UnusableError,
    find_file,
    need_root,
    open_lines,
    read_table,
)

NAME: Final = "nih"
HOLDS: Final = "the folder with BBox_List_2017.csv, and images or images_001 to images_012"
_HEADER: Final = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
_IMAGE: Final = re.compile(r"(\d{8})_\d{3}\.png", re.ASCII)
_PIXELS: Final = 1024
_SPLITS: Final = {"train_val_list.txt": "train", "test_list.txt": "test"}


def plan(options: SourceOptions) -> Plan:
    """Read the box list, one task an image.

    Splits are those of `train_val_list.txt` and `test_list.txt`, where these are there. Raises
    UserError where there is no box list, or its header is another's.
    """
    root = need_root(options, source=NAME, holds=HOLDS)
    path = find_file([root], "BBox_List_2017*.csv")
    if path is None:
        raise UserError(f"--root {root}: found no BBox_List_2017.csv; expected {HOLDS}")
    rejects = Rejects(NAME)
    marked = _marked(path, _views(root, rejects), _splits(root, rejects), _files(root), rejects)
    tasks, notes = tasks_by_study(marked, rejects, options, root=root)
    return Plan(tasks, rejects.records, f"NIH ChestX-ray14, {path.name}", notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one image's classes, and look at the image."""
    return load_marks(NAME, task, options, root=need_root(options, source=NAME, holds=HOLDS))


def _marked(
    path: Path,
    views: Mapping[str, str],
    splits: Mapping[str, str],
    files: Mapping[str, str],
    rejects: Rejects,
) -> Iterator[Marked]:
    for place, row in _rows(path, rejects):
        name, category, *corners = row
        try:
            match = _IMAGE.fullmatch(name)
            if match is None:
                detail = f"expected an image such as 00000732_005.png, got {name!r:.60}"
                raise UnusableError("malformed_row", detail)
            x, y, w, h = (
                number(value, column) for value, column in zip(corners, "xywh", strict=True)
            )
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        stem = name.removesuffix(".png")
        file = files.get(name, f"images/{name}")
        image = Image(file, stem, views.get(name) or None, _PIXELS, _PIXELS)
        mark = Mark(place, stem, category, xywh_to_xyxy(x, y, w, h), (category,))
        yield Marked(stem, str(int(match[1])), splits.get(name, ""), image, mark)


def _rows(path: Path, rejects: Rejects) -> Iterator[tuple[str, list[str]]]:
    """Yield the six fields of each row with its place."""
    header: list[str] | None = None
    for line, text in open_lines(path, rejects, name=path.name):
        row = [field.strip() for field in next(csv.reader([text or ""]), [])]
        while row and not row[-1]:
            row.pop()
        if header is None:
            header = row
            if header != _HEADER:
                raise UserError(f"{path}: expected the header {','.join(_HEADER)}, got {text!r}")
        elif len(row) == len(_HEADER):
            yield f"{path.name}:{line}", row
        elif row:
            detail = f"{len(row)} fields; expected {len(_HEADER)}"
            rejects.add(f"{path.name}:{line}", "malformed_row", detail)


def _views(root: Path, rejects: Rejects) -> dict[str, str]:
    path = find_file([root], "Data_Entry_2017*.csv")
    if path is None:
        return {}
    rows = read_table(path, ("Image Index", "View Position"), rejects, name=path.name)
    return {name: view for _, (name, view) in rows}


def _splits(root: Path, rejects: Rejects) -> dict[str, str]:
    return {
        (text or "").strip(): split
        for name, split in _SPLITS.items()
        if (root / name).is_file()
        for _, text in open_lines(root / name, rejects, name=name)
    }


def _files(root: Path) -> dict[str, str]:
    """Return where each image lies: the release is unpacked into one folder or into twelve."""
    return {
        path.name: path.relative_to(root).as_posix()
        for folder in ("images", "images_*/images", "images_*")
        for path in sorted(root.glob(f"{folder}/*.png"))
    }


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=OPEN,
    licence="NIH Clinical Center: unrestricted use with citation",
    citation="Wang et al., ChestX-ray8, CVPR 2017, https://nihcc.app.box.com/v/ChestXray-NIHCC",
    sections=(SECTION,),
)
