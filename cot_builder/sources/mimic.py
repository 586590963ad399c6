"""MIMIC-CXR's report files, with MIMIC-CXR-JPG's tables, splits and images where they are there.

The release documents: Johnson et al., https://physionet.org/content/mimic-cxr/ and
https://physionet.org/content/mimic-cxr-jpg/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from cot_builder.errors import UserError
from cot_builder.paths import files_below, is_remote
from cot_builder.records import Image, Section
from cot_builder.sources.contract import (
    CREDENTIALED,
    SPLITS,
    Loaded,
    Plan,
    Source,
    SourceOptions,
    Task,
)
from cot_builder.sources.reading import (
    Rejects,
    UnusableError,
    decode,
    find_file,
    folders_below,
    loaded,
    need_root,
    not_loaded,
    open_lines,
    read_bytes,
    read_table,
    stays_inside,
)

NAME: Final = "mimic"
HOLDS: Final = (
    "the folder that holds mimic-cxr (files/p10/p10000032/s50414267.txt) and, for splits and "
    "images, mimic-cxr-jpg"
)
_RELEASE_SPLITS: Final = ("train", "validate", "test")

# Where the two releases lie below the root: side by side, by version, or as wget leaves them.
_FOLDERS: Final = (
    "[0-9]*.[0-9]*",
    "mimic-cxr*",
    "mimic-cxr*/*",
    "files/mimic-cxr*/*",
    "physionet.org/files/mimic-cxr*/*",
)
_STUDY_LIST: Final = "cxr-study-list.csv"
_RECORD_LIST: Final = "cxr-record-list.csv"
_METADATA: Final = "mimic-cxr-2.*-metadata.csv"
_SPLIT: Final = "mimic-cxr-2.*-split.csv"
_IMAGE_NAMES: Final = "IMAGE_FILENAMES"

_REPORT_FILE: Final = re.compile(r"files/p\d\d/p(\d+)/s(\d+)\.txt")
_TEXT_FILE: Final = re.compile(r"files/(?:p[^/]*/){0,2}[^/]*\.txt")
_IMAGE_FILE: Final = re.compile(r".*/s(\d+)/([\w.-]+)\.(?:jpe?g|png|dcm)", re.IGNORECASE)
# As releases on MIMIC-CXR write it, with or without what stands before `files`.
_RELEASE_PATH: Final = re.compile(
    r"(?:.*/)?(files/p\d\d/p(\d+)/s(\d+)/([\w-]+))\.(?:jpg|dcm)", re.ASCII
)
_DICOM_ID: Final = re.compile(r"[\w-]+")
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+")

Images = dict[str, list[Image]]


class _Layout(NamedTuple):
    """Which folder holds what; `reports` and `images` hold a folder `files`."""

    root: Path
    reports: Path
    below: str  # the reports' folder as seen from the root: "mimic-cxr/"
    images: Path | None
    study_list: Path | None
    record_list: Path | None
    metadata: Path | None
    split: Path | None
    image_names: Path | None
    listed: Callable[[Path], list[str]]  # the files below a folder of a store, asked once

    def named(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _below(root: Path, folder: Path) -> str:
    named = folder.relative_to(root).as_posix()
    return "" if named == "." else f"{named}/"


class _Study(NamedTuple):
    subject_id: str
    study_id: str
    path: str  # from the reports' folder


def plan(options: SourceOptions) -> Plan:
    """List the studies of a tree by its study list or, without one, by its folders.

    Tasks are in the order of the files: by patient, then by study. Raises UserError where the root
    holds no reports, or a table lacks a column.
    """
    root = need_root(options, source=NAME, holds=HOLDS)
    layout = _find_layout(root)
    rejects = Rejects(NAME)
    studies = _studies(layout, rejects)
    images = _images(layout, studies, rejects)
    splits = _splits(layout, rejects)
    have_images = _have_images(layout, images)
    tasks = []
    for study in studies.values():
        split = None
        if splits is not None:
            split = splits.get(study.study_id)
            if not split:
                if split is None:
                    detail = (
                        f"{layout.split and layout.named(layout.split)} does not name the study"
                    )
                    rejects.add(_file(layout, study), "no_split", detail, study.study_id)
                continue
        own = tuple(images.pop(study.study_id, ()))
        file = _file(layout, study)
        tasks.append(Task(study.study_id, study.subject_id, split, file, own, (), have_images))
    tasks.sort(key=lambda task: task.file)
    return Plan(
        tasks[: options.limit],
        rejects.records,
        _release(layout),
        tuple(_notes(layout, images, have_images)),
    )


def load(task: Task, options: SourceOptions) -> Loaded:
    """Read one report file, and look at its images."""
    root = need_root(options, source=NAME, holds=HOLDS)
    try:
        texts = [Section("", decode(read_bytes(root / task.file)))]
        return loaded(NAME, task, texts, options, root=root)
    except UnusableError as error:
        return not_loaded(NAME, task, error)


class Official(NamedTuple):
    """What MIMIC-CXR-JPG has for a release that annotates it.

    `root` is the folder that image paths start from and `below` the way from it to `files`;
    `splits` is the split of each study ("" where it is unclear), None without a split table.
    """

    root: Path
    below: str
    splits: dict[str, str] | None

    def image(self, path: str) -> tuple[str, str, Image]:
        """Return subject, study and image of a path of MIMIC-CXR (`files/p10/.../<dicom_id>.dcm`).

        Raises UnusableError for any other path.
        """
        match = _RELEASE_PATH.fullmatch(path)
        if match is None:
            detail = f"expected files/pNN/pNNNNNNNN/sNNNNNNNN/<dicom_id>.jpg, got {path!r:.200}"
            raise UnusableError("malformed_row", detail)
        stem, subject_id, study_id, dicom_id = match.groups()
        return subject_id, study_id, Image(f"{self.below}{stem}.jpg", dicom_id)


def image_root(options: SourceOptions) -> Path:
    """Return the folder that image paths of a release on MIMIC-CXR start from.

    It is `--mimic-root`, otherwise the root (or the folder of the root's file).
    """
    assert options.root
    return options.mimic_root or (options.root if options.root.is_dir() else options.root.parent)


def official(root: Path, rejects: Rejects) -> Official:
    """Read the official split from MIMIC-CXR-JPG's table, in or below a folder."""
    if not root.is_dir():
        raise UserError(
            f"--mimic-root {root}: no such folder; expected MIMIC-CXR-JPG in or below it"
        )
    folders = _folders(root)
    table = find_file(folders, _SPLIT)
    images = table.parent if table else next((f for f in folders if "jpg" in f.name), root)
    splits = None
    if table:
        splits = _read_splits(table, rejects, table=table.relative_to(root).as_posix())
    return Official(root, _below(root, images), splits)


# -- the layout


def _find_layout(root: Path) -> _Layout:
    if not root.is_dir():
        raise UserError(f"--root {root} is a file; expected {HOLDS}")
    folders, listed = _folders(root), cache(files_below)

    def find(pattern: str) -> Path | None:
        return find_file(folders, pattern)

    study_list = find(_STUDY_LIST)
    first = [study_list.parent] if study_list else []
    reports = next((f for f in [*first, *folders] if _holds_reports(f, listed)), None)
    if reports is None:
        raise UserError(
            f"--root {root}: found no files/pNN/pNNNNNNNN/sNNNNNNNN.txt in it, nor below "
            f"{', '.join(_FOLDERS)}; expected {HOLDS}"
        )
    metadata, split, names = find(_METADATA), find(_SPLIT), find(_IMAGE_NAMES)
    images = next((path.parent for path in (metadata, names, split) if path), None)
    if images is None:
        named = (f for f in folders if "jpg" in "".join(f.parts[-2:]) and (f / "files").is_dir())
        images = next(named, None)
    return _Layout(
        root=root,
        reports=reports,
        below=_below(root, reports),
        images=images,
        study_list=study_list,
        record_list=find(_RECORD_LIST),
        metadata=metadata,
        split=split,
        image_names=names,
        listed=listed,
    )


def _folders(root: Path) -> list[Path]:
    """Return the root and the folders below it that may be MIMIC's, in a fixed order."""
    return folders_below(root, _FOLDERS)


def _holds_reports(folder: Path, listed: Callable[[Path], list[str]]) -> bool:
    # The JPG tree has no text files, and to learn that takes a walk through all of it.
    if "mimic-cxr-jpg" in folder.parts[-2:]:
        return False
    if is_remote(folder):  # a glob of it lists folder after folder
        return any(map(_REPORT_FILE.fullmatch, _walk(folder, listed)))
    return next(folder.glob("files/p[0-9]*/p[0-9]*/s*.txt"), None) is not None


def _file(layout: _Layout, study: _Study) -> str:
    return layout.below + study.path


def _release(layout: _Layout) -> str:
    parts = []
    if layout.study_list and (version := _VERSION.search(layout.named(layout.study_list))):
        parts.append(f"MIMIC-CXR {version[0]}")
    else:
        parts.append("MIMIC-CXR")
    table = layout.metadata or layout.split
    if table and (version := _VERSION.search(table.name)):
        parts.append(f"MIMIC-CXR-JPG tables {version[0]}")
    return ", ".join(parts)


def _have_images(layout: _Layout, images: Images) -> bool:
    folder = layout.images or layout.reports
    named = (images_of_study[0].path for images_of_study in images.values())
    if is_remote(folder):
        if any((layout.root / path).exists() for path in islice(named, 2)):
            return True  # as mostly, without a listing of them all
        start = f"{_below(layout.root, folder)}files/"
        there = {start + name for name in layout.listed(folder / "files")}
        return not there.isdisjoint(named)
    return (folder / "files").is_dir() and any((layout.root / path).exists() for path in named)


def _notes(layout: _Layout, left: Images, have_images: bool) -> Iterator[str]:
    if layout.split:
        yield "the release's split `validate` is called `validation`"
    else:
        yield "no split table was found: no study has a split"
    if not layout.study_list:
        yield "no study list was found: the studies are the report files on the disk"
    if not have_images:
        yield "no image files were found: images are as the release's tables name them"
    if left:
        count = sum(map(len, left.values()))
        yield f"{count:,} images belong to {len(left):,} studies that are not planned"


# -- reports


def _studies(layout: _Layout, rejects: Rejects) -> dict[str, _Study]:
    on_disk = sorted(_walk(layout.reports, layout.listed))
    if layout.study_list:
        return _listed_studies(layout, set(on_disk), rejects)
    studies: dict[str, _Study] = {}
    for path in on_disk:
        if match := _REPORT_FILE.fullmatch(path):
            _keep(studies, _Study(match[1], match[2], path), layout, rejects)
        else:
            detail = "not the name of a report; expected files/pNN/pNNNNNNNN/sNNNNNNNN.txt"
            rejects.add(layout.below + path, "file_not_in_list", detail)
    return studies


def _listed_studies(layout: _Layout, on_disk: set[str], rejects: Rejects) -> dict[str, _Study]:
    assert layout.study_list
    studies: dict[str, _Study] = {}
    table = layout.named(layout.study_list)
    named: set[str] = set()
    columns = ("subject_id", "study_id", "path")
    for line, row in read_table(layout.study_list, columns, rejects, name=table):
        study = _Study(*row)
        place = f"{table}:{line}"
        if not (_is_id(study.subject_id) and _is_id(study.study_id) and study.path):
            detail = f"expected two ids of digits and a path, got {', '.join(map(repr, row))}"
            rejects.add(place, "malformed_row", detail)
        elif not stays_inside(study.path):
            detail = f"{study.path!r} leaves {layout.reports.name}"
            rejects.add(place, "path_outside_root", detail, study.study_id)
        else:
            named.add(study.path)
            walked = _TEXT_FILE.fullmatch(study.path)  # then the walk has found it, or nobody will
            if study.path in on_disk or (not walked and (layout.reports / study.path).is_file()):
                _keep(studies, study, layout, rejects)
            else:
                detail = f"{place} names the report, and there is no such file"
                rejects.add(_file(layout, study), "report_missing", detail, study.study_id)
    for path in sorted(on_disk - named):
        detail = f"{table} does not name the file"
        rejects.add(layout.below + path, "file_not_in_list", detail)
    return studies


def _keep(studies: dict[str, _Study], study: _Study, layout: _Layout, rejects: Rejects) -> None:
    first = studies.setdefault(study.study_id, study)
    if first is not study:
        detail = f"the study is {_file(layout, first)} already"
        rejects.add(_file(layout, study), "duplicate_id", detail, study.study_id)


def _walk(folder: Path, listed: Callable[[Path], list[str]]) -> Iterator[str]:
    """Yield the text files of `files` and two levels of folders in it, as paths from the folder."""
    if is_remote(folder):
        found = (f"files/{name}" for name in listed(folder / "files"))
        return (path for path in found if _TEXT_FILE.fullmatch(path))

    def inside(path: str, below: str, levels: int) -> Iterator[str]:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.endswith(".txt"):
                    yield f"{below}/{entry.name}"
                elif levels and entry.name[:1] == "p" and entry.is_dir():
                    yield from inside(entry.path, f"{below}/{entry.name}", levels - 1)

    return inside(str(folder / "files"), "files", 2)


def _is_id(text: str) -> bool:
    return text.isdecimal() and text.isascii()


# -- splits and images


def _splits(layout: _Layout, rejects: Rejects) -> dict[str, str] | None:
    """Return the split of each study, "" where it was rejected; None without a split table."""
    if not layout.split:
        return None
    return _read_splits(layout.split, rejects, table=layout.named(layout.split))


def _read_splits(path: Path, rejects: Rejects, *, table: str) -> dict[str, str]:
    splits: dict[str, str] = {}
    unknown: set[str] = set()
    for line, (study_id, value) in read_table(path, ("study_id", "split"), rejects, name=table):
        place = f"{table}:{line}"
        if not _is_id(study_id):
            rejects.add(place, "malformed_row", f"expected an id of digits, got {study_id!r}")
            continue
        split = SPLITS[value] if value in _RELEASE_SPLITS else ""
        first = splits.setdefault(study_id, split)
        if not split and study_id not in unknown:
            unknown.add(study_id)
            detail = f"{value!r}; the release's splits are {', '.join(_RELEASE_SPLITS)}"
            rejects.add(place, "unknown_split", detail, study_id)
        elif first and split and first != split:
            detail = f"{value!r}, and {first!r} on another row"
            rejects.add(place, "split_conflict", detail, study_id)
        if split != first:
            splits[study_id] = ""
    return splits


def _images(layout: _Layout, studies: dict[str, _Study], rejects: Rejects) -> Images:
    """Return each study's images in the order of the table that names them."""
    images: Images = {}
    if layout.metadata:
        named = _from_metadata(layout, layout.metadata, rejects)
    elif layout.images and layout.image_names:
        named = _from_names(layout, layout.images, layout.image_names, rejects)
    elif layout.record_list:
        named = _from_records(layout, layout.record_list, rejects)
    elif layout.images:
        named = _from_folders(layout, layout.images, studies)
    else:
        return images
    for study_id, image in named:
        images.setdefault(study_id, []).append(image)
    return images


def _from_metadata(layout: _Layout, path: Path, rejects: Rejects) -> Iterator[tuple[str, Image]]:
    assert layout.images
    table, below = layout.named(path), _below(layout.root, layout.images)
    needed, optional = ("dicom_id", "subject_id", "study_id"), ("ViewPosition", "Rows", "Columns")
    views: dict[str, str] = {}  # one string a view, not one a row
    for line, row in read_table(path, needed, rejects, name=table, optional=optional):
        dicom_id, subject_id, study_id, view, rows, columns = row
        if not (_DICOM_ID.fullmatch(dicom_id) and _is_id(subject_id) and _is_id(study_id)):
            detail = (
                f"expected dicom_id, subject_id and study_id, got {', '.join(map(repr, row[:3]))}"
            )
            rejects.add(f"{table}:{line}", "malformed_row", detail)
            continue
        file = _jpg(below, subject_id, study_id, dicom_id)
        height, width = _pixels(rows), _pixels(columns)
        yield study_id, Image(file, dicom_id, views.setdefault(view, view) or None, width, height)


def _from_records(layout: _Layout, path: Path, rejects: Rejects) -> Iterator[tuple[str, Image]]:
    """Name the images of the record list: JPG files where that release is there, else DICOM."""
    table, columns = layout.named(path), ("subject_id", "study_id", "dicom_id", "path")
    below = _below(layout.root, layout.images or path.parent)
    for line, (subject_id, study_id, dicom_id, file) in read_table(
        path, columns, rejects, name=table
    ):
        place = f"{table}:{line}"
        if not (_DICOM_ID.fullmatch(dicom_id) and _is_id(subject_id) and _is_id(study_id)):
            rejects.add(place, "malformed_row", "expected subject_id, study_id and dicom_id")
        elif not stays_inside(file):
            rejects.add(place, "path_outside_root", f"{file!r} leaves the release", study_id)
        elif layout.images:
            yield study_id, Image(_jpg(below, subject_id, study_id, dicom_id), dicom_id)
        else:
            yield study_id, Image(below + file, dicom_id)


def _from_names(
    layout: _Layout, folder: Path, path: Path, rejects: Rejects
) -> Iterator[tuple[str, Image]]:
    table, below = layout.named(path), _below(layout.root, folder)
    for line, text in open_lines(path, rejects, name=table):
        file = (text or "").strip()
        if file and not stays_inside(file):
            rejects.add(f"{table}:{line}", "path_outside_root", f"{file!r} leaves the release")
        elif match := _IMAGE_FILE.fullmatch(file):
            yield match[1], Image(below + file, match[2])
        elif file:
            detail = f"expected files/pNN/pNNNNNNNN/sNNNNNNNN/<dicom_id>.jpg, got {file!r}"
            rejects.add(f"{table}:{line}", "malformed_row", detail)


def _from_folders(
    layout: _Layout, folder: Path, studies: dict[str, _Study]
) -> Iterator[tuple[str, Image]]:
    below = _below(layout.root, folder)
    listed: dict[str, list[str]] = {}
    if is_remote(folder):  # whose folders would be a request each
        for path in layout.listed(folder / "files"):
            parent, _, name = f"files/{path}".rpartition("/")
            listed.setdefault(parent, []).append(name)
    for study in studies.values():
        place = study.path.removesuffix(".txt")
        try:
            names = (
                listed.get(place, [])
                if is_remote(folder)
                else [path.name for path in (folder / place).iterdir()]
            )
        except OSError:
            continue
        for name in sorted(names):
            if match := _IMAGE_FILE.fullmatch(f"{place}/{name}"):
                yield study.study_id, Image(f"{below}{place}/{name}", match[2])


def _jpg(below: str, subject_id: str, study_id: str, dicom_id: str) -> str:
    return f"{below}files/p{subject_id[:2]}/p{subject_id}/s{study_id}/{dicom_id}.jpg"


def _pixels(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=True,
    redistribution=CREDENTIALED,
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Johnson et al., MIMIC-CXR, Scientific Data 6:317, 2019; "
    "Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042, 2019",
)
