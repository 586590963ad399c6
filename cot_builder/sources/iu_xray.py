"""Indiana University's chest X-rays: Open-i's XML files, or the tables that Kaggle has of them.

Both name a study CXR<N>, and have one report a patient. The release: Demner-Fushman et al., 2016,
https://openi.nlm.nih.gov/faq.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.records import Image, Section
from cot_builder.sources.contract import (
    SPLITS,
    Loaded,
    Plan,
    Redistribution,
    Source,
    SourceOptions,
    Task,
    in_order,
)
from cot_builder.sources.reading import (
    Rejects,
    UnusableError,
    decode,
    loaded,
    need_root,
    not_loaded,
    read_bytes,
    read_table,
)

NAME: Final = "iu_xray"
HOLDS: Final = (
    "Open-i's files (ecgen-radiology/1.xml) or Kaggle's indiana_reports.csv, and images beside them"
)
_XML_FOLDERS: Final = ("ecgen-radiology", ".", "NLMCXR_reports/ecgen-radiology")
_IMAGE_FOLDERS: Final = ("images", "NLMCXR_png", "images/images_normalized", ".")
_REPORTS: Final = "indiana_reports.csv"
_PROJECTIONS: Final = "indiana_projections.csv"
_TEXT_COLUMNS: Final = ("indication", "comparison", "findings", "impression")

_XML_NAME: Final = re.compile(r"(?:CXR)?(\d+)\.xml")
# CXR7_IM-2263-1001.png, CXR1_1_IM-0001-3001.png and Kaggle's 7_IM-2263-1001.dcm.png
_IMAGE_NAME: Final = re.compile(r"(?:CXR)?(\d+)_(?:\d+_)?(IM-[\d-]+)(?:\.dcm)?\.(?:png|jpe?g)")
_PARENT_IMAGE: Final = re.compile(rb'<parentImage\s+id="(?:CXR)?(\d+)_(?:\d+_)?(IM-[\d-]+)"')
_LISTED_ID: Final = re.compile(r"(?:CXR)?(\d+)(?:_.*)?")

ImageKey = tuple[str, str]  # study number, rest of the image's name


def plan(options: SourceOptions) -> Plan:
    """List the studies of the XML files; without them, or on demand, those of Kaggle's tables.

    Images are those on the disk. With `splits`, a study that the list does not name, and a listed
    one that is not there, is a reject. Raises UserError where the root holds neither form.
    """
    root = need_root(options, source=NAME, holds=HOLDS)
    rejects = Rejects(NAME)
    views = dict(_views(root, rejects))
    images = dict(_images_on_disk(root, views))
    xml_folder = _xml_folder(root)
    table = root / _REPORTS
    kaggle = options.iu_format == "kaggle" or (options.iu_format == "auto" and not xml_folder)
    if kaggle and table.is_file():
        tasks, referenced = _kaggle_tasks(table, images, views, rejects)
    elif xml_folder and not kaggle:
        tasks, referenced = _openi_tasks(root, xml_folder, images, rejects)
    else:
        raise UserError(
            f"--root {root}: found "
            + (
                f"no {_REPORTS}"
                if options.iu_format == "kaggle"
                else f"neither N.xml nor {_REPORTS}"
            )
            + f"; looked for N.xml in {', '.join(_XML_FOLDERS)}; expected {HOLDS}"
        )
    if options.splits:
        tasks = _with_splits(tasks, options.splits, rejects)
    there = sum(len(task.images) for task in tasks)
    notes = (
        "one report a patient: subject_id is the study_id",
        f"{there:,} of {referenced:,} images that the release names are on the disk",
    )
    release = "Kaggle tables" if kaggle else "Open-i XML"
    return Plan(
        in_order(tasks, options.limit), rejects.records, f"Indiana University, {release}", notes
    )


def load(task: Task, options: SourceOptions) -> Loaded:
    """Read one XML file (for Kaggle, the row that the plan read), and look at its images."""
    root = need_root(options, source=NAME, holds=HOLDS)
    try:
        texts = task.texts or _read_xml(root / task.file, task.study_id)
        return loaded(NAME, task, texts, options, root=root)
    except UnusableError as error:
        return not_loaded(NAME, task, error)


# -- Open-i


def _xml_folder(root: Path) -> Path | None:
    return next((root / name for name in _XML_FOLDERS if any((root / name).glob("*.xml"))), None)


def _openi_tasks(
    root: Path, folder: Path, images: Mapping[ImageKey, Image], rejects: Rejects
) -> tuple[list[Task], int]:
    tasks: dict[str, Task] = {}
    referenced = 0
    for path in sorted(folder.glob("*.xml")):
        file = path.relative_to(root).as_posix()
        match = _XML_NAME.fullmatch(path.name)
        if not match:
            rejects.add(file, "file_not_in_list", "not the name of a report; expected N.xml")
            continue
        study_id = f"CXR{int(match[1])}"
        keys = _parent_images(path)
        referenced += len(keys)
        own = tuple(images[key] for key in keys if key in images)
        task = Task(study_id, study_id, None, file, own)
        if tasks.setdefault(study_id, task) is not task:
            rejects.add(file, "duplicate_id", f"{tasks[study_id].file} has it already", study_id)
    return list(tasks.values()), referenced


def _parent_images(path: Path) -> list[ImageKey]:
    """Find the images that an XML file names, unparsed: `load` says what is wrong with it."""
    try:
        raw = read_bytes(path)
    except UnusableError:
        return []
    return list(
        dict.fromkeys((n.decode(), rest.decode()) for n, rest in _PARENT_IMAGE.findall(raw))
    )


def _read_xml(path: Path, study_id: str) -> Iterator[Section]:
    text = decode(read_bytes(path))
    if not text.strip():
        raise UnusableError("empty_report", "the file is empty")
    # The release has no document types; an entity could unfold without end, or name another file.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnusableError(
            "malformed_xml", "it declares a document type; Open-i's files have none"
        )
    try:
        tree = ET.fromstring(text)
    except ET.ParseError as error:
        raise UnusableError("malformed_xml", str(error)) from None
    unique = tree.find("uId")
    if unique is not None and unique.get("id", study_id) != study_id:
        raise UnusableError(
            "id_mismatch", f"its uId is {unique.get('id')!r}; its name says {study_id!r}"
        )
    return (
        Section(part.get("Label", "").strip().lower() or "findings", "".join(part.itertext()))
        for part in tree.iter("AbstractText")
    )


# -- Kaggle


def _kaggle_tasks(
    table: Path,
    images: Mapping[ImageKey, Image],
    views: Mapping[ImageKey, str],
    rejects: Rejects,
) -> tuple[list[Task], int]:
    by_study: dict[str, list[Image]] = {}
    for number, rest in [*views, *(key for key in images if key not in views)]:
        if image := images.get((number, rest)):
            by_study.setdefault(number, []).append(image)
    tasks: dict[str, Task] = {}
    for line, (number, *texts) in read_table(
        table, ("uid", *_TEXT_COLUMNS), rejects, name=table.name
    ):
        file = f"{table.name}:{line}"
        if not (number.isascii() and number.isdigit()):
            rejects.add(file, "malformed_row", f"expected a uid of digits, got {number!r}")
            continue
        study_id = f"CXR{int(number)}"
        sections = tuple(map(Section, _TEXT_COLUMNS, texts))
        own = tuple(by_study.get(str(int(number)), ()))
        task = Task(study_id, study_id, None, file, own, sections)
        if tasks.setdefault(study_id, task) is not task:
            rejects.add(file, "duplicate_id", f"{tasks[study_id].file} has it already", study_id)
    return list(tasks.values()), len(views)


# -- images


def _views(root: Path, rejects: Rejects) -> Iterator[tuple[ImageKey, str]]:
    path = root / _PROJECTIONS
    if not path.is_file():
        return
    for line, (name, view) in read_table(path, ("filename", "projection"), rejects, name=path.name):
        if match := _IMAGE_NAME.fullmatch(name):
            yield (str(int(match[1])), match[2]), view
        else:
            detail = f"expected N_IM-NNNN-NNNN.dcm.png, got {name!r}"
            rejects.add(f"{path.name}:{line}", "malformed_row", detail)


def _images_on_disk(root: Path, views: Mapping[ImageKey, str]) -> Iterator[tuple[ImageKey, Image]]:
    for folder in _IMAGE_FOLDERS:
        if not (root / folder).is_dir():
            continue
        found = False
        for name in sorted(entry.name for entry in (root / folder).iterdir()):
            if match := _IMAGE_NAME.fullmatch(name):
                found = True
                key = (str(int(match[1])), match[2])
                file = (Path(folder) / name).as_posix()
                yield key, Image(file, name.partition(".")[0], views.get(key))
        if found:
            return


# -- splits


def _with_splits(tasks: Iterable[Task], path: Path, rejects: Rejects) -> list[Task]:
    """Keep the studies that a list of ids by split names, and say which ones those are not."""
    splits = dict(_read_splits(path, rejects))
    kept = []
    for task in tasks:
        if task.study_id not in splits:
            rejects.add(task.file, "no_split", f"{path.name} does not name it", task.study_id)
        elif split := splits.pop(task.study_id):
            kept.append(task._replace(split=split))
    for study_id in sorted(splits, key=lambda study_id: (len(study_id), study_id)):
        if splits[study_id]:
            rejects.add(path.name, "report_missing", f"{path.name} names it", study_id)
    for task in kept:
        splits.pop(task.study_id, None)
    return kept


def _read_splits(path: Path, rejects: Rejects) -> dict[str, str]:
    """Read R2Gen's annotation.json, or plain ids by split; "" marks a study that was rejected."""
    expected = f'{path}: expected {{"train": [ids], ...}} or R2Gen\'s annotation.json'
    try:
        table: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{expected}; {error}") from None
    if not (isinstance(table, dict) and table and all(isinstance(v, list) for v in table.values())):
        raise UserError(expected)
    splits: dict[str, str] = {}
    for key, entries in table.items():
        for entry in entries:
            named = entry if isinstance(entry, dict) else {"id": entry}
            match = _LISTED_ID.fullmatch(str(named.get("id")))
            if not match:
                rejects.add(
                    path.name, "malformed_row", f"expected an id such as CXR7, got {entry!r:.80}"
                )
                continue
            study_id = f"CXR{int(match[1])}"
            value = str(named.get("split") or "").strip() or key.strip() or _left_out(table)
            split = SPLITS.get(value.lower(), "")
            first = splits.setdefault(study_id, split)
            if not split:
                detail = f"{value!r}; expected one of {', '.join(SPLITS)}"
                rejects.add(path.name, "unknown_split", detail, study_id)
            elif first != split:
                detail = f"in {first or 'an unknown split'!r} and in {split!r}"
                rejects.add(path.name, "split_conflict", detail, study_id)
            if first != split:
                splits[study_id] = ""
    return splits


def _left_out(table: Mapping[str, Any]) -> str:
    """Name the split of a blank key, as a copy of R2Gen's file has one: what no other key names."""
    named = {SPLITS.get(key.strip().lower()) for key in table}
    left = sorted(set(SPLITS.values()) - named)
    return left[0] if len(left) == 1 else ""


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=Redistribution(
        True,
        True,
        "no derivatives: reports and images go out unaltered (white space and size aside), the "
        "chains beside them",
    ),
    licence="CC BY-NC-ND 4.0",
    citation="Demner-Fushman et al., Preparing a collection of radiology examinations for "
    "distribution and retrieval, JAMIA 23(2):304-310, 2016",
)
