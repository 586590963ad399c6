"""LATTE-CXR: sentences of dictated reports, with the readers' ellipses or boxes from their gaze.

The release document: Ghelichkhan and Tasdizen, https://physionet.org/content/latte-cxr/1.0.0/. A
table of readings names the images; `bbox_statement.csv` pairs statements with the boxes of
REFLACX's ellipses, `etbox_sentence.csv` sentences with boxes made from eye tracking. Both are xyxy
in the pixels of the whole image. The documents do not name all columns: `--columns` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cot_builder.errors import UserError
from cot_builder.sources import mimic
from cot_builder.sources.boxed import (
    SECTION,
    Marked,
    column_names,
    label_of,
    load_marks,
    number,
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
    find_file,
    folders_below,
    need_root,
)
from cot_builder.sources.reflacx import (
    CORNERS,
    Reading,
    header_of,
    read_readings,
    true_columns,
)
from cot_builder.sources.table import read_rows
from knowledge_banks import Banks

NAME: Final = "latte_cxr"
HOLDS: Final = "LATTE-CXR (bbox_statement.csv), or a folder with it (and mimic-cxr-jpg)"
_FOLDERS: Final = (
    "latte-cxr*",
    "latte-cxr*/*",
    "files/latte-cxr*/*",
    "physionet.org/files/latte*/*",
)
_STATEMENTS: Final = "bbox_statement*.csv"
_SENTENCES: Final = "etbox_sentence*.csv"
_READINGS: Final = "LATTE_*.csv"
# Our names of the columns, and the release's where it has another.
_READING: Final = {
    "id": "reading_id", "image": "image_path", "dicom_id": "dicom_id", "subject_id": "subject_id",
    "image_size_x": "image_size_x", "image_size_y": "image_size_y", "split": "split",
}  # fmt: skip
_BOX: Final = (*CORNERS, "reading_id", "certainty")


def plan(options: SourceOptions) -> Plan:
    """Read the tables, one task a study of MIMIC-CXR.

    `--columns split=REFLACX_split` takes the other of the two splits of the readings. With
    MIMIC-CXR-JPG's split table (below `--mimic-root` or the root), a row of another split becomes a
    reject. Raises UserError where a table is missing or lacks a column.
    """
    root = need_root(options, source=NAME, holds=HOLDS, on_mimic=True)
    folders = folders_below(root, _FOLDERS) if root.is_dir() else []
    tables = next((t for t in (sorted(f.glob(_READINGS)) for f in folders) if t), [])
    statements, sentences = find_file(folders, _STATEMENTS), find_file(folders, _SENTENCES)
    if not tables or not (statements or sentences):
        missing = _READINGS if not tables else f"{_STATEMENTS} or {_SENTENCES}"
        raise UserError(f"--root {root}: found no {missing}; expected {HOLDS}")
    names = column_names(
        options, source=NAME, ours=(*_READING, *_BOX, "statement", "sentence"), theirs=_READING
    )
    rejects = Rejects(NAME)
    jpg = mimic.official(mimic.image_root(options), rejects)
    readings = {
        reading.reading_id: reading
        for table in tables
        for reading in read_readings(table, {c: names[c] for c in _READING}, jpg, rejects)
    }
    marked = _marked(
        ((statements, "statement", "ellipse"), (sentences, "sentence", "gaze")),
        readings, names, options.banks, rejects,
    )  # fmt: skip
    tasks, notes = tasks_by_study(marked, rejects, options, root=jpg.root, official=jpg.splits)
    release = ", ".join(path.name for path in (*tables, statements, sentences) if path)
    return Plan(tasks, rejects.records, release, notes)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of one study's statements, and look at its images."""
    return load_marks(NAME, task, options, root=mimic.image_root(options))


def _marked(
    tables: tuple[tuple[Path | None, str, str], ...],
    readings: Mapping[str, Reading],
    names: Mapping[str, str],
    banks: Banks,
    rejects: Rejects,
) -> Iterator[Marked]:
    used: set[str] = set()
    for path, text, kind in tables:
        for place, reading_id, mark in _marks(path, text, kind, names, banks, rejects):
            reading = readings.get(reading_id)
            if reading is None:
                detail = f"no table of readings has {reading_id!r}, or not as it should be"
                rejects.add(place, "no_reading", detail)
                continue
            used.add(reading_id)
            yield reading.marked(mark._replace(image_id=reading.image.image_id))
    for reading_id, reading in readings.items():
        if reading_id not in used:
            detail = f"reading {reading_id} has no box with a statement"
            rejects.add(reading.place, "no_boxes", detail, reading.study_id)


def _marks(
    path: Path | None,
    text: str,
    kind: str,
    names: Mapping[str, str],
    banks: Banks,
    rejects: Rejects,
) -> Iterator[tuple[str, str, Mark]]:
    """Yield place, reading and mark of each row."""
    if path is None:
        return
    corners = [names[corner] for corner in CORNERS]
    needed = [names["reading_id"], names[text], *corners]
    classes = [name for name in header_of(path) if label_of(name, banks)]
    for line, row in read_rows(path, needed, rejects, optional=[names["certainty"], *classes]):
        place = f"{path.name}:{line}"
        try:
            x1, y1, x2, y2 = (number(row[corner], corner) for corner in corners)
            said = row.get(names["certainty"])
            certainty = None if said in (None, "") else number(said, names["certainty"])
        except UnusableError as error:
            rejects.add(place, error.reason, error.detail)
            continue
        reading_id = str(row[names["reading_id"]])
        mark = Mark(
            place, "", str(row[names[text]] or ""), (x1, y1, x2, y2),
            tuple(true_columns(row, classes)), kind, certainty, reading_id,
        )  # fmt: skip
        yield place, reading_id, mark


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=True,
    redistribution=CREDENTIALED,
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Ghelichkhan and Tasdizen, LATTE-CXR, PhysioNet 1.0.0, 2025; "
    "Bigolin Lanfredi et al., REFLACX, Scientific Data 9:350, 2022",
    sections=(SECTION,),
)
