"""REFLACX: radiologists' ellipses on images of MIMIC-CXR, with their certainty.

The release document: Bigolin Lanfredi et al., https://physionet.org/content/reflacx-xray-localization/.
`main_data/metadata_phase_N.csv` lists the readings, `main_data/<reading>/` has an ellipse's box a
row (xyxy, pixels of the whole image) and a column for each class of it. A phrase is a class's name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.errors import UserError
from cot_builder.records import Image
from cot_builder.sources import mimic
from cot_builder.sources.boxed import (
    SECTION,
    Marked,
    column_names,
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
from cot_builder.sources.reading import (
    Rejects,
    UnusableError,
    folders_below,
    need_root,
)
from cot_builder.sources.table import read_rows

NAME: Final = "reflacx"
HOLDS: Final = "REFLACX (main_data/metadata_phase_3.csv), or a folder with it (and mimic-cxr-jpg)"
_FOLDERS: Final = (
    "main_data",
    "reflacx*",
    "reflacx*/main_data",
    "reflacx*/*/main_data",
    "files/reflacx*/*/main_data",
    "physionet.org/files/reflacx*/*/main_data",
)
_ELLIPSES: Final = "anomaly_location_ellipses.csv"
_READING: Final = (
    "id", "image", "dicom_id", "subject_id", "image_size_x", "image_size_y", "split",
)  # fmt: skip
CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")


class Reading(NamedTuple):
    """One reading of an image by one radiologist."""

    reading_id: str
    place: str
    study_id: str
    subject_id: str
    split: str
    image: Image

    def marked(self, mark: Mark) -> Marked:
        """Return a mark of this reading with its study, image and split."""
        return Marked(self.study_id, self.subject_id, self.split, self.image, mark)


def plan(options: SourceOptions) -> Plan:
    """Read every reading and its ellipses, one task a study of MIMIC-CXR.

    With MIMIC-CXR-JPG's split table (below `--mimic-root` or the root), a row of another split
    becomes a reject. Raises UserError where there are no readings, or a table lacks a column.
    """
    root = need_root(options, source=NAME, holds=HOLDS, on_mimic=True)
    folders = folders_below(root, _FOLDERS) if root.is_dir() else []
    tables = next((t for t in (sorted(f.glob("metadata_phase_*.csv")) for f in folders) if t), [])
    if not tables:
        raise UserError(f"--root {root}: found no metadata_phase_*.csv; expected {HOLDS}")
    names = column_names(options, source=NAME, ours=(*_READING, *CORNERS, "certainty"))
    rejects = Rejects(NAME)
    jpg = mimic.official(mimic.image_root(options), rejects)
    readings = {
        reading.reading_id: reading
        for table in tables
        for reading in read_readings(table, {c: names[c] for c in _READING}, jpg, rejects)
    }
    marked = (
        reading.marked(mark)
        for reading in readings.values()
        for mark in _ellipses(tables[0].parent, reading, names, rejects)
    )
    tasks, notes = tasks_by_study(marked, rejects, options, root=jpg.root, official=jpg.splits)
    release = ", ".join(table.name for table in tables)
    return Plan(tasks, rejects.records, release, notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one study's ellipses, and look at its images."""
    return load_marks(NAME, task, options, root=mimic.image_root(options))


def read_readings(
    table: Path, names: Mapping[str, str], jpg: mimic.Official, rejects: Rejects
) -> Iterator[Reading]:
    """Yield the readings of a table with the columns `names`, by our names of them."""
    seen: set[str] = set()
    for line, values in read_rows(table, list(names.values()), rejects):
        place = f"{table.name}:{line}"
        row = {ours: str(values[theirs] or "") for ours, theirs in names.items()}
        try:
            subject_id, study_id, image = jpg.image(row["image"])
            if (subject_id, image.image_id) != (row["subject_id"], row["dicom_id"]):
                detail = (
                    f"subject {row['subject_id']!r}, dicom_id {row['dicom_id']!r}, "
                    f"and path {row['image']!r}"
                )
                raise UnusableError("malformed_row", detail)
            width, height = (pixels(row[c], c) for c in ("image_size_x", "image_size_y"))
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        if row["id"] in seen:
            rejects.add(place, "duplicate_id", f"reading {row['id']!r} stands above", study_id)
            continue
        seen.add(row["id"])
        image = image._replace(width=width, height=height)
        yield Reading(row["id"], place, study_id, subject_id, row["split"], image)


def _ellipses(
    folder: Path, reading: Reading, names: Mapping[str, str], rejects: Rejects
) -> Iterator[Mark]:
    """Yield the ellipses of a reading, once for each of their classes."""
    path = folder / reading.reading_id / _ELLIPSES
    name = f"{reading.reading_id}/{_ELLIPSES}"
    if not path.is_file():
        rejects.add(name, "report_missing", "there is no such file", reading.study_id)
        return
    corners = [names[corner] for corner in CORNERS]
    needed = [*corners, names["certainty"]]
    classes = [column for column in header_of(path) if column not in needed]
    found = False
    for line, row in read_rows(path, [*needed, *classes], rejects):
        found, place = True, f"{name}:{line}"
        try:
            x1, y1, x2, y2 = (number(row[column], column) for column in corners)
            certainty = number(row[names["certainty"]], names["certainty"])
            own = true_columns(row, classes)
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail, reading.study_id)
            continue
        if not own:
            rejects.add(place, "empty_phrase", "the ellipse is of no class", reading.study_id)
        for one in own:
            yield Mark(
                place, reading.image.image_id, one, (x1, y1, x2, y2), (one,), "ellipse", certainty,
                reading.reading_id,
            )  # fmt: skip
    if not found:
        rejects.add(name, "no_boxes", "the reader drew no ellipse", reading.study_id)


def true_columns(row: Mapping[str, Any], columns: list[str]) -> list[str]:
    """Return the columns of a row that say True."""
    return [column for column in columns if str(row.get(column)).strip().lower() in ("true", "1")]


def header_of(path: Path) -> list[str]:
    """Return the names of a CSV file's columns; trouble with it is for its reader to tell."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [column.strip() for column in next(csv.reader(file), [])]


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=True,
    redistribution=CREDENTIALED,
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Bigolin Lanfredi et al., REFLACX, Scientific Data 9:350, 2022",
    sections=(SECTION,),
)
