"""Boxes in COCO's JSON layout: images, annotations with an xywh `bbox`, categories.

https://cocodataset.org/#format-data. A phrase is the annotation's own text (`label_text`, `phrase`,
`caption` or `text`), otherwise the name of its category.
"""

from __future__ import annotations

import json
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
    pixels,
    tasks_by_study,
    xywh_to_xyxy,
)
from cot_builder.sources.contract import UNKNOWN, Loaded, Mark, Plan, Source, SourceOptions, Task
from cot_builder.sources.reading import Rejects, UnusableError, need_root, stays_inside

NAME: Final = "coco"
HOLDS: Final = "a JSON file with images, annotations and categories"
_PHRASES: Final = ("label_text", "phrase", "caption", "text")

Entry = dict[str, Any]


def plan(options: SourceOptions) -> Plan:
    """Read the file, one task an image, or a study where images name one (`study_id`).

    An image's file is looked for beside the JSON file, then in the folder `images` there. Keys
    `study_id`, `subject_id` (or `patient_id`) and `split` of an image are used where they are.
    """
    path = need_root(options, source=NAME, holds=HOLDS)
    rejects = Rejects(NAME)
    marked = _marked(path, rejects)
    tasks, notes = tasks_by_study(marked, rejects, options, root=path.parent)
    return Plan(tasks, rejects.records, path.name, notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one study's phrases, and look at its images."""
    assert options.root
    return load_marks(NAME, task, options, root=options.root.parent)


def read_coco(path: Path, rejects: Rejects) -> Iterator[tuple[str, Entry, Entry, str]]:
    """Yield place, image, annotation and category of each annotation that has all of them.

    Its `bbox` is a list of four. Images without an annotation are rejects.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UserError(f"{path}: expected {HOLDS}")
    images = _by_id(content, "images", path, rejects)
    categories = _by_id(content, "categories", path, rejects)
    seen = set()
    for number_, annotation in enumerate(content["annotations"]):
        place = f"{path.name}:annotations[{number_}]"
        if not isinstance(annotation, dict):
            rejects.add(place, "malformed_row", f"expected an object, got {annotation!r:.60}")
            continue
        image = images.get(str(annotation.get("image_id")))
        category = categories.get(str(annotation.get("category_id")))
        box = annotation.get("bbox")
        if image is None:
            detail = f"image_id {annotation.get('image_id')!r} is none of the file's images"
            rejects.add(place, "malformed_row", detail)
            continue
        seen.add(str(annotation["image_id"]))
        if not (isinstance(box, list) and len(box) == len("xywh")):
            rejects.add(place, "malformed_row", f"bbox: expected [x, y, w, h], got {box!r:.60}")
        elif category is None:
            detail = f"category_id {annotation.get('category_id')!r} is none of the categories"
            rejects.add(place, "malformed_row", detail)
        else:
            yield place, image, annotation, str(category.get("name", ""))
    for key, image in images.items():
        if key not in seen:
            name = str(image.get("file_name", key))
            rejects.add(f"{path.name}:{name}", "no_boxes", "no annotation is of this image")


def read_json(path: Path) -> Any:
    """Parse a JSON file of a release; UserError when it cannot be."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _by_id(content: Entry, name: str, path: Path, rejects: Rejects) -> dict[str, Entry]:
    entries = content.get(name)
    if not isinstance(entries, list):
        raise UserError(f"{path} has no list {name!r}; expected {HOLDS}")
    found: dict[str, Entry] = {}
    for place, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("id") is not None:
            found[str(entry["id"])] = entry
        else:
            detail = f"expected an object with an id, got {entry!r:.60}"
            rejects.add(f"{path.name}:{name}[{place}]", "malformed_row", detail)
    return found


def _marked(path: Path, rejects: Rejects) -> Iterator[Marked]:
    for place, image, annotation, category in read_coco(path, rejects):
        file = str(image.get("file_name") or "")
        try:
            if not (file and stays_inside(file)):
                raise UnusableError("malformed_row", f"file_name: expected a path, got {file!r}")
            file = find_image(path.parent, file)
            x, y, w, h = (number(value, "bbox") for value in annotation["bbox"])
            size = pixels(image.get("width"), "width"), pixels(image.get("height"), "height")
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        image_id = Path(file).stem
        phrase = next((annotation[key] for key in _PHRASES if annotation.get(key)), category)
        subject = image.get("subject_id") or image.get("patient_id")
        yield Marked(
            study_id=str(image.get("study_id") or image_id),
            subject_id=str(subject) if subject else None,
            split=str(annotation.get("split") or image.get("split") or ""),
            image=Image(file, image_id, None, *size),
            mark=Mark(place, image_id, str(phrase), xywh_to_xyxy(x, y, w, h), (category,)),
        )


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=UNKNOWN,
    licence="the file's own",
    citation="",
    sections=(SECTION,),
)
