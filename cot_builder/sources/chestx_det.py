"""ChestX-Det: thirteen classes with xyxy boxes in NIH images of 1024 x 1024 pixels.

The release: Lian et al., https://github.com/Deepwise-AILab/ChestX-Det-Dataset: a JSON list of
objects with `file_name`, `syms` and `boxes`. A phrase is the name of a class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.records import Image
from cot_builder.sources.boxed import (
    SECTION,
    Marked,
    find_image,
    load_marks,
    number,
    tasks_by_study,
)
from cot_builder.sources.coco import read_json
from cot_builder.sources.contract import OPEN, Loaded, Mark, Plan, Source, SourceOptions, Task
from cot_builder.sources.reading import Rejects, UnusableError, need_root, stays_inside

NAME: Final = "chestx_det"
HOLDS: Final = "ChestX_Det_train.json or ChestX_Det_test.json, with its images beside it"
_PIXELS: Final = 1024


def plan(options: SourceOptions) -> Plan:
    """Read the file, one task an image; the split is the one in the file's name.

    Images are looked for beside the file, then in the folder of the split there. An image of no
    class is a reject. Raises UserError when the file is no such list.
    """
    path = need_root(options, source=NAME, holds=HOLDS)
    rejects = Rejects(NAME)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of objects; --root names {HOLDS}")
    split = next((name for name in ("train", "test") if name in path.stem.lower()), "")
    marked = _marked(entries, path, split, rejects)
    tasks, notes = tasks_by_study(marked, rejects, options, root=path.parent)
    return Plan(tasks, rejects.records, path.name, notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one image's classes, and look at the image."""
    return load_marks(NAME, task, options, root=need_root(options, source=NAME, holds=HOLDS).parent)


def _marked(entries: list[Any], path: Path, split: str, rejects: Rejects) -> Iterator[Marked]:
    seen: set[str] = set()
    for number_, entry in enumerate(entries):
        place = f"{path.name}:[{number_}]"
        try:
            name, boxes = _read_entry(entry)
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        image_id = Path(name).stem
        if name in seen:
            rejects.add(place, "duplicate_id", f"{name} stands above", image_id)
            continue
        if not boxes:
            rejects.add(place, "no_boxes", f"{name} is of no class", image_id)
        seen.add(name)
        file = find_image(path.parent, name, split)
        image = Image(file, image_id, None, _PIXELS, _PIXELS)
        for category, box in boxes:
            mark = Mark(place, image_id, category, box, (category,))
            yield Marked(image_id, None, split, image, mark)


def _read_entry(entry: Any) -> tuple[str, list[tuple[str, tuple[float, float, float, float]]]]:
    """Return an object's image and its pairs of class and box."""
    try:
        name, classes, boxes = entry["file_name"], entry["syms"], entry["boxes"]
        pairs = []
        for category, box in zip(classes, boxes, strict=True):
            x1, y1, x2, y2 = (number(value, "boxes") for value in box)
            pairs.append((str(category), (x1, y1, x2, y2)))
    except (KeyError, TypeError, ValueError) as error:
        detail = f"expected file_name, syms and as many boxes, got {type(error).__name__}: {error}"
        raise UnusableError("malformed_row", detail) from None
    if not (isinstance(name, str) and stays_inside(name)):
        raise UnusableError("malformed_row", f"file_name: expected a path, got {name!r:.60}")
    return name, pairs


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=OPEN,
    licence="Apache-2.0",
    citation="Lian et al., ChestX-Det, arXiv:2104.10326, 2021",
    sections=(SECTION,),
)
