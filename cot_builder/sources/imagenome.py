"""Chest ImaGenome: regions of frontal MIMIC-CXR images, found by machine, and their sentences.

The release document: Wu et al., https://physionet.org/content/chest-imagenome/1.0.0/. A scene graph
has up to 29 boxes of an image (xyxy; `original_*` in its own pixels), and the report's sentences by
region. The 29 regions become the 12 by regions.toml; a box is a prior, not a reader's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.boxes import Box
from cot_builder.errors import UserError
from cot_builder.paths import opened
from cot_builder.records import Rejected
from cot_builder.sources import mimic
from cot_builder.sources.boxed import (
    SECTION,
    XYXY,
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
from cot_builder.sources.reading import Rejects, UnusableError, folders_below, need_root
from cot_builder.sources.table import read_rows
from cot_builder.vocabulary import REGIONS

NAME: Final = "imagenome"
HOLDS: Final = (
    "Chest ImaGenome (silver_dataset/scene_graph and silver_dataset/splits), or a folder with it"
)
_ABOVE: Final = ("", "chest-imagenome*/", "chest-imagenome*/*/", "physionet.org/files/chest-im*/*/")
_GRAPHS: Final = ("scene_graph", "scene_graph/scene_graph")
_SUFFIX: Final = "_SceneGraph.json"
_IDS: Final = ("dicom_id", "subject_id", "study_id")
_CORNERS: Final = ("original_x1", "original_y1", "original_x2", "original_y2")
_SIZE: Final = ("original_width", "original_height")


class _Graph(NamedTuple):
    """A scene graph: image size, boxes of the 12 regions by name, sentences with their region."""

    size: tuple[int, int]
    boxes: dict[str, tuple[XYXY, ...]]
    sentences: list[tuple[str, str]]


def plan(options: SourceOptions) -> Plan:
    """List the scene graphs, one task a study of MIMIC-CXR; `load` reads them.

    Subject and study of an image, and its split, are in `silver_dataset/splits`. Raises UserError
    where these or the scene graphs are missing.
    """
    root = need_root(options, source=NAME, holds=HOLDS, on_mimic=True)
    silver = _silver(root)
    tables = sorted(silver.glob("splits/*.csv"))
    tables = [table for table in tables if table.stem in ("train", "valid", "test")]
    graphs = {
        path.name.removesuffix(_SUFFIX): path.relative_to(root).as_posix()
        for folder in _GRAPHS
        for path in sorted((silver / folder).glob(f"*{_SUFFIX}"))
    }
    if not tables or not graphs:
        missing = "splits/train.csv" if not tables else f"scene_graph/*{_SUFFIX}"
        raise UserError(f"--root {root}: found no {missing} in {silver}; expected {HOLDS}")
    rejects = Rejects(NAME)
    jpg = mimic.official(mimic.image_root(options), rejects)
    marked = _marked(tables, graphs, jpg, rejects)
    tasks, notes = tasks_by_study(marked, rejects, options, root=jpg.root, official=jpg.splits)
    for file in graphs.values():
        rejects.add(file, "file_not_in_list", "no table of splits names the image")
    return Plan(tasks, rejects.records, "Chest ImaGenome, silver", notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Read a study's scene graphs, and make the report of their regions and sentences."""
    root = need_root(options, source=NAME, holds=HOLDS, on_mimic=True)
    regions = options.banks.regions["imagenome"]
    rejects: list[Rejected] = []
    images = {image.image_id: image for image in task.images}
    marks: list[Mark] = []
    for place, image_id in ((mark.place, mark.image_id) for mark in task.marks):
        own = Rejects(NAME)
        try:
            graph = _read_graph(root / place, image_id, regions, own)
        except UnusableError as error:
            own.add(place, error.reason, error.detail)
            del images[image_id]
        else:
            width, height = graph.size
            images[image_id] = images[image_id]._replace(width=width, height=height)
            marks += _marks(place, image_id, graph, own)
        rejects += (record._replace(study_id=task.study_id) for record in own.records)
    task = task._replace(images=tuple(images.values()), marks=tuple(marks))
    report, others = load_marks(NAME, task, options, root=mimic.image_root(options))
    if report is None and not rejects and not others:
        rejects.append(Rejected(NAME, task.file, "no_boxes", "no region has a box", task.study_id))
    return Loaded(report, (*rejects, *others))


def _silver(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"--root {root} is a file; expected {HOLDS}")
    for folder in folders_below(root, [f"{above}silver_dataset" for above in _ABOVE]):
        if (folder / _GRAPHS[0]).is_dir():
            return folder
    raise UserError(f"--root {root}: found no silver_dataset/scene_graph; expected {HOLDS}")


def _marked(
    tables: list[Path], graphs: dict[str, str], jpg: mimic.Official, rejects: Rejects
) -> Iterator[Marked]:
    """Yield a mark without words for each scene graph, and take it from `graphs`."""
    for table in tables:
        for line, row in read_rows(table, _IDS, rejects):
            place = f"{table.name}:{line}"
            dicom_id, subject_id, study_id = (str(row[column]) for column in _IDS)
            path = f"files/p{subject_id[:2]}/p{subject_id}/s{study_id}/{dicom_id}.jpg"
            try:
                image = jpg.image(path)[-1]
            except UnusableError as error:
                rejects.add(place, error.reason, error.detail)
                continue
            file = graphs.pop(dicom_id, None)
            if file is None:
                detail = f"no scene graph of image {dicom_id}, or a row above has it"
                rejects.add(place, "report_missing", detail, study_id)
                continue
            yield Marked(study_id, subject_id, table.stem, image, Mark(file, dicom_id, "", None))


def _read_graph(path: Path, image_id: str, regions: Mapping[str, str], rejects: Rejects) -> _Graph:
    """Read a scene graph; a box that cannot be used is a reject, and the others are used."""
    try:
        with opened(path) as file:
            graph = json.loads(file.read())
        objects = {str(entry["bbox_name"]): dict(entry) for entry in graph["objects"]}
        sentences = {
            (str(phrase), regions.get(str(entry["bbox_name"]), "")): None
            for entry in graph.get("attributes", ())
            for phrase in entry.get("phrases", ())
        }
    except OSError as error:
        raise UnusableError("unreadable", error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        detail = f"expected a scene graph, got {type(error).__name__}: {error}"
        raise UnusableError("malformed_file", detail) from None
    sizes = {tuple(pixels(entry.get(key), key) for key in _SIZE) for entry in objects.values()}
    width, height = sizes.pop() if len(sizes) == 1 else (None, None)
    if not (width and height):
        raise UnusableError("malformed_file", "expected objects with one original size")
    boxes = {}
    for name, entry in objects.items():
        if regions.get(name):
            place = f"{path.name}:{name}"
            if box := _box(entry, width, height, image_id, rejects, place):
                boxes[name] = box
    return _Graph((width, height), _by_region(boxes, regions), list(sentences))


def _box(
    entry: Mapping[str, Any], width: int, height: int, image_id: str, rejects: Rejects, place: str
) -> XYXY | None:
    try:
        corners = [number(entry.get(key), key) for key in _CORNERS]
    except UnusableError as error:
        rejects.add(place, error.reason, error.detail)
        return None
    box, reason = Box.clipped(
        *corners, width=width, height=height, image_id=image_id, source=NAME, kind="prior"
    )
    if reason:
        rejects.add(place, reason, f"{tuple(corners)} in {width} x {height} pixels")
    return box.xyxy if box else None


def _by_region(
    boxes: Mapping[str, XYXY], regions: Mapping[str, str]
) -> dict[str, tuple[XYXY, ...]]:
    """Return the boxes of the 12 regions: a region's own, otherwise one around its parts.

    The whole lung is both lungs, as two boxes.
    """
    found: dict[str, tuple[XYXY, ...]] = {}
    for region in REGIONS:
        parts = [box for name, box in boxes.items() if regions[name] == region]
        if region in boxes:
            found[region] = (boxes[region],)
        elif parts:
            x1, y1, x2, y2 = zip(*parts, strict=True)
            found[region] = ((min(x1), min(y1), max(x2), max(y2)),)
    if "left lung" in found and "right lung" in found:
        found["whole lung"] = found["right lung"] + found["left lung"]
    return found


def _marks(place: str, image_id: str, graph: _Graph, rejects: Rejects) -> Iterator[Mark]:
    """Yield the regions by their names, then the sentences with their regions' boxes."""
    for phrase, region in [*((region, region) for region in graph.boxes), *graph.sentences]:
        boxes = graph.boxes.get(region, ())
        if not boxes:
            detail = f"{phrase!r:.80}: no box of {region or 'one of the 12 regions'}"
            rejects.add(place, "no_region_box", detail)
        for box in boxes:
            yield Mark(place, image_id, phrase, box, kind="prior")


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=True,
    redistribution=CREDENTIALED,
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Wu et al., Chest ImaGenome, PhysioNet 1.0.0, 2021",
    sections=(SECTION,),
)
