"""MS-CXR: phrases of MIMIC-CXR reports with radiologists' boxes, from its CSV or its COCO JSON.

The release document: Boecking et al., https://physionet.org/content/ms-cxr/1.1.0/. Boxes are xywh
in the pixels of MIMIC-CXR-JPG's images; a phrase with several boxes has several rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.sources import mimic
from cot_builder.sources.boxed import (
    SECTION,
    Marked,
    column_names,
    load_marks,
    number,
    pixels,
    tasks_by_study,
    xywh_to_xyxy,
)
from cot_builder.sources.coco import read_coco
from cot_builder.sources.contract import (
    CREDENTIALED,
    Loaded,
    Mark,
    Plan,
    Source,
    SourceOptions,
    Task,
)
from cot_builder.sources.reading import (
    Rejects,
    UnusableError,
    find_file,
    folders_below,
    need_root,
)
from cot_builder.sources.table import read_rows

NAME: Final = "ms_cxr"
HOLDS: Final = (
    "MS_CXR_Local_Alignment_v1.1.0.csv or .json, or a folder with ms-cxr (and mimic-cxr-jpg) in it"
)
_FOLDERS: Final = ("ms-cxr*", "ms-cxr*/*", "files/ms-cxr*/*", "physionet.org/files/ms-cxr*/*")
_TABLE: Final = "MS_CXR_Local_Alignment_v*"
_BOX: Final = ("x", "y", "w", "h")
_COLUMNS: Final = (
    "dicom_id", "category_name", "label_text", "path", *_BOX, "image_width", "image_height",
    "split",
)  # fmt: skip


def plan(options: SourceOptions) -> Plan:
    """Read the table, one task a study of MIMIC-CXR.

    With MIMIC-CXR-JPG's split table (below `--mimic-root` or the root), a row of another split
    becomes a reject. Raises UserError where the table is missing or lacks a column.
    """
    root = need_root(options, source=NAME, holds=HOLDS, on_mimic=True)
    path = _find(root)
    rejects = Rejects(NAME)
    jpg = mimic.official(mimic.image_root(options), rejects)
    marked = _marked(_rows(path, options, rejects), jpg, rejects)
    tasks, notes = tasks_by_study(marked, rejects, options, root=jpg.root, official=jpg.splits)
    return Plan(tasks, rejects.records, path.name, notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one study's phrases, and look at its images."""
    return load_marks(NAME, task, options, root=mimic.image_root(options))


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    folders = folders_below(root, _FOLDERS)
    path = find_file(folders, f"{_TABLE}.csv") or find_file(folders, f"{_TABLE}.json")
    if path is None:
        raise UserError(f"--root {root}: found no {_TABLE}.csv or .json; expected {HOLDS}")
    return path


def _rows(
    path: Path, options: SourceOptions, rejects: Rejects
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with its place, by the columns of the CSV."""
    names = column_names(options, source=NAME, ours=_COLUMNS)
    if path.suffix != ".json":
        for line, row in read_rows(path, list(names.values()), rejects):
            yield f"{path.name}:{line}", {ours: row[theirs] for ours, theirs in names.items()}
        return
    for place, image, annotation, category in read_coco(path, rejects):
        yield (
            place,
            {
                "dicom_id": Path(str(image.get("file_name"))).stem,
                "category_name": category,
                "label_text": annotation.get("label_text"),
                "path": image.get("path"),
                **dict(zip(_BOX, annotation["bbox"], strict=True)),
                "image_width": image.get("width"),
                "image_height": image.get("height"),
                "split": annotation.get("split"),
            },
        )


def _marked(
    rows: Iterator[tuple[str, dict[str, Any]]], jpg: mimic.Official, rejects: Rejects
) -> Iterator[Marked]:
    for place, row in rows:
        try:
            subject_id, study_id, image = jpg.image(str(row["path"]))
            if image.image_id != row["dicom_id"]:
                detail = f"dicom_id {row['dicom_id']!r}, and path {row['path']!r}"
                raise UnusableError("malformed_row", detail)
            image = image._replace(
                width=pixels(row["image_width"], "image_width"),
                height=pixels(row["image_height"], "image_height"),
            )
            x, y, w, h = (number(row[column], column) for column in _BOX)
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        mark = Mark(
            place, image.image_id, str(row["label_text"] or ""), xywh_to_xyxy(x, y, w, h),
            (str(row["category_name"]),) if row["category_name"] else (),
        )  # fmt: skip
        yield Marked(study_id, subject_id, str(row["split"] or ""), image, mark)


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=True,
    redistribution=CREDENTIALED,
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Boecking et al., MS-CXR, PhysioNet 1.1.0, 2024; Boecking et al., ECCV 2022",
    sections=(SECTION,),
)
