"""The shipped corpus: reduced images of NIH ChestX-ray14 and its boxes, with invented reports."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cot_builder.boxes import XYXY, Box
from cot_builder.errors import UserError
from cot_builder.records import Grounded, Image, Rejected, Report, Section
from cot_builder.sources.contract import (
    OPEN,
    SPLITS,
    Loaded,
    Mark,
    Plan,
    Source,
    SourceOptions,
    Task,
    in_order,
)
from cot_builder.sources.reading import (
    Rejects,
    UnusableError,
    loaded,
    not_loaded,
    open_lines,
    stays_inside,
)

NAME: Final = "demo"
CORPUS: Final = Path(__file__).with_name("demo_corpus")
_STUDIES: Final = "studies.jsonl"


def plan(options: SourceOptions) -> Plan:
    """List the studies of the corpus; `root` may name another one of the same form."""
    folder = options.root or CORPUS
    path = folder / _STUDIES
    if not path.is_file():
        raise UserError(f"no {_STUDIES} in {folder}; expected the demo corpus")
    rejects = Rejects(NAME)
    tasks: dict[str, Task] = {}
    for line, text in open_lines(path, rejects, name=_STUDIES):
        place = f"{_STUDIES}:{line}"
        if not (text and text.strip()):
            continue
        try:
            task = _task(json.loads(text), place)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"expected a study, got {type(error).__name__}: {error}"
            rejects.add(place, "malformed_row", detail)
            continue
        if any(not stays_inside(image.path) for image in task.images):
            rejects.add(place, "path_outside_root", "an image leaves the corpus", task.study_id)
        elif tasks.setdefault(task.study_id, task) is not task:
            detail = f"{tasks[task.study_id].file} has it already"
            rejects.add(place, "duplicate_id", detail, task.study_id)
    return Plan(in_order(tasks.values(), options.limit), rejects.records, "demo corpus")


def load(task: Task, options: SourceOptions) -> Loaded:
    """Split one report of the corpus, look at its images, and tie their boxes to its words."""
    try:
        found = loaded(NAME, task, task.texts, options, root=options.root or CORPUS)
    except UnusableError as error:
        return not_loaded(NAME, task, error)
    if not (found.report and task.marks):
        return found
    grounded: list[Grounded] = []
    rejects = list(found.rejects)
    for mark in task.marks:
        try:
            grounded.append(_grounded(mark, found.report))
        except UnusableError as error:
            rejects.append(Rejected(NAME, mark.place, error.reason, error.detail, task.study_id))
    return Loaded(replace(found.report, grounded=tuple(grounded)), tuple(rejects))


def _grounded(mark: Mark, report: Report) -> Grounded:
    """Find a mark's phrase in a report, over any white space, and box it."""
    words = re.compile(r"\s+".join(map(re.escape, mark.phrase.split())))
    spans = ((s.name, found.span()) for s in report.sections if (found := words.search(s.text)))
    section, (start, end) = next(spans, ("", (0, 0)))
    image = next((image for image in report.images if image.image_id == mark.image_id), None)
    if not end:
        raise UnusableError("phrase_not_in_report", f"{mark.phrase!r:.80}")
    if not (image and image.width and image.height and mark.box):
        raise UnusableError("box_without_image", f"image {mark.image_id} cannot be used")
    box, reason = Box.clipped(
        *mark.box, width=image.width, height=image.height, image_id=image.image_id,
        source=NAME, kind=mark.kind,
    )  # fmt: skip
    if box is None or reason:
        raise UnusableError(reason or "box_outside", f"{mark.box}")
    return Grounded(section, start, end, mark.classes[0] if mark.classes else None, (box,))


def _task(study: dict[str, Any], place: str) -> Task:
    images = tuple(
        Image(image["path"], Path(image["path"]).stem, image.get("view"))
        for image in study.get("images", ())
    )
    if not isinstance(study["report"], str):
        raise TypeError(f"the report is {study['report']!r:.60}")
    split = SPLITS[study["split"]] if study.get("split") else None
    marks = tuple(
        Mark(place, Path(image["path"]).stem, box["phrase"], _corners(box["xyxy"]), (box["label"],))
        for image in study.get("images", ())
        for box in image.get("boxes", ())
    )
    texts = (Section("", study["report"]),)
    return Task(
        study["study_id"], study.get("subject_id"), split, place, images, texts, marks=marks
    )


def _corners(numbers: Any) -> XYXY:
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=OPEN,
    licence="reports: Apache-2.0; images: NIH Clinical Center, unrestricted use with citation",
    citation="Images: Wang et al., ChestX-ray8, CVPR 2017, "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC",
)
