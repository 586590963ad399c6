"""Read the files and tables of a release: trouble becomes a reject, and the run goes on."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Final

from cot_builder.errors import UserError
from cot_builder.images import SUFFIXES, BadImageError, probe
from cot_builder.paths import is_remote, opened
from cot_builder.records import Image, Rejected, Report, Section
from cot_builder.sections import Headings, clean_text, compile_headings, split_sections
from cot_builder.sources.contract import Loaded, SourceOptions, Task
from knowledge_banks import Banks

MOST_BYTES: Final = 1_000_000

# A quote that nobody closes makes one field of the rest of a table; a megabyte is no field.
csv.field_size_limit(64 * MOST_BYTES)


class UnusableError(Exception):
    """A report or row that cannot be used: a reject's reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Rejects:
    """Collects the rejects of one source's plan."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.records: list[Rejected] = []

    def add(self, file: str, reason: str, detail: str, study_id: str | None = None) -> None:
        """Set an input aside with its reason."""
        self.records.append(Rejected(self.source, file, reason, detail, study_id))


def need_root(options: SourceOptions, *, source: str, holds: str, on_mimic: bool = False) -> Path:
    """Return `--root`, an existing path; otherwise a UserError says what it should hold.

    Only a release that annotates MIMIC-CXR (`on_mimic`) may have a `--mimic-root` beside it.
    """
    if options.mimic_root and not on_mimic:
        raise UserError(
            f"--mimic-root is for releases that annotate MIMIC-CXR, such as ms_cxr; "
            f"--source {source} has its splits and images at --root"
        )
    if options.root is None:
        raise UserError(f"--source {source} needs --root: {holds}")
    if not (_exists(options.root) if is_remote(options.root) else options.root.exists()):
        raise UserError(f"--root {options.root}: no such file or folder; expected {holds}")
    return options.root


# Asked for every study, and of a store each question is a request.
@cache
def _exists(root: Path) -> bool:
    return root.exists()


def stays_inside(path: str) -> bool:
    """Tell whether a path from a table stays below the folder that it starts from.

    >>> stays_inside("files/p10/s1.txt"), stays_inside("../s1.txt"), stays_inside("/etc/passwd")
    (True, False, False)
    """
    plain = path.replace("\\", "/")
    outside = plain.startswith("/") or plain[1:2] == ":" or ".." in plain.split("/")
    return not (outside or "\0" in plain)


def folders_below(root: Path, patterns: Iterable[str]) -> list[Path]:
    """Return a folder and those below it that fit a pattern, the last version first."""
    folders = [root]
    for pattern in patterns:
        folders += sorted((path for path in root.glob(pattern) if path.is_dir()), reverse=True)
    return folders


def find_file(folders: Iterable[Path], pattern: str) -> Path | None:
    """Return the first file of a pattern, plain or .gz, the last version first."""
    for folder in folders:
        near = sorted(folder.glob(f"{pattern}*"), reverse=True)  # one request of a store
        for fits in (pattern, f"{pattern}.gz"):
            if found := next((path for path in near if fnmatch(path.name, fits)), None):
                return found
    return None


def read_bytes(path: Path) -> bytes:
    """Read a report file; UnusableError when it is missing, unreadable or too large."""
    try:
        with opened(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size > MOST_BYTES:
                raise UnusableError(
                    "report_too_large", f"{size:,} bytes; a report has at most {MOST_BYTES:,}"
                )
            return file.read()
    except FileNotFoundError:
        raise UnusableError("report_missing", "there is no such file") from None
    except OSError as error:
        raise UnusableError("unreadable", error.strerror or str(error)) from None


def decode(raw: bytes) -> str:
    """Decode UTF-8; UnusableError names the first byte that is not: a guess would change words."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableError(
            "not_utf8", f"byte {error.start} is 0x{raw[error.start]:02x}: {error.reason}"
        ) from None


def read_sections(texts: Iterable[Section], banks: Banks) -> tuple[Section, ...]:
    """Clean the sections of a report; one named "" is a whole report, and is split."""
    found: dict[str, str] = {}
    for name, text in texts:
        parts = (
            (Section(name, clean_text(text)),) if name else split_sections(text, headings_of(banks))
        )
        for part in parts:
            if part.text:
                found[part.name] = (
                    f"{found[part.name]}\n{part.text}" if part.name in found else part.text
                )
    if not found:
        raise UnusableError("empty_report", "no text in it")
    return tuple(Section(name, text) for name, text in found.items())


_compiled: dict[str, Headings] = {}


def headings_of(banks: Banks) -> Headings:
    """Return the compiled headings of a bank, compiled once in a process."""
    if banks.sha256 not in _compiled:
        _compiled[banks.sha256] = compile_headings(
            banks.headings, file=f"{banks.folder}/headings.toml"
        )
    return _compiled[banks.sha256]


def loaded(
    source: str, task: Task, texts: Iterable[Section], options: SourceOptions, *, root: Path
) -> Loaded:
    """Make the report of a task from its raw texts and the images that the plan named.

    Image paths start at `root`. An image that is not whole or not there is left out, and becomes a
    reject beside the report. Raises UnusableError.
    """
    sections = read_sections(texts, options.banks)
    kept: list[Image] = []
    rejects: list[Rejected] = []
    for image in task.images:
        try:
            kept.append(_looked_at(image, root, task, full=options.check_images))
        except BadImageError as error:
            rejects.append(Rejected(source, image.path, error.reason, error.detail, task.study_id))
    report = Report(
        task.study_id, task.subject_id, source, task.split, sections, tuple(kept), task.file
    )
    return Loaded(report, tuple(rejects))


def _looked_at(image: Image, root: Path, task: Task, *, full: bool) -> Image:
    path = root / image.path
    if not task.have_images or path.suffix.lower() not in SUFFIXES:
        return image
    size = (image.width, image.height) if image.width and image.height else None
    try:
        width, height = probe(path, full=full, size=size)
    except BadImageError:
        if not path.exists():
            detail = "the release names this image, and there is no such file"
            raise BadImageError("image_missing", detail) from None
        raise
    return image._replace(width=width, height=height)


def not_loaded(source: str, task: Task, error: UnusableError) -> Loaded:
    """Answer a task whose report cannot be used."""
    return Loaded(None, (Rejected(source, task.file, error.reason, error.detail, task.study_id),))


# -- tables


def open_lines(path: Path, rejects: Rejects, *, name: str) -> Iterator[tuple[int, str | None]]:
    """Yield the numbered lines of a text file, plain or .gz.

    A line that is not UTF-8 is a reject, and None. A .gz that ends too early is a reject, and the
    lines before its end are used.
    """
    number = 0
    try:
        with (
            opened(path) as file,
            gzip.open(file) if path.suffix == ".gz" else file as raw,
            # Line by line, GzipFile is six times slower than the wrapper.
            io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as lines,
        ):
            for number, line in enumerate(lines, 1):
                if not line.isascii() and (bad := _first_bad_byte(line)) is not None:
                    rejects.add(f"{name}:{number}", "not_utf8", f"byte {bad} of the line")
                    yield number, None
                else:
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        detail = f"{error}; {number:,} lines could be read, and were used"
        rejects.add(name, "table_truncated", detail)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _first_bad_byte(line: str) -> int | None:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return len(line[: error.start].encode())
    return None


def read_table(
    path: Path,
    needed: Sequence[str],
    rejects: Rejects,
    *,
    name: str,
    optional: Sequence[str] = (),
    delimiter: str = ",",
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and the chosen columns of each row of a CSV file, plain or .gz.

    An optional column that the table lacks is read as "". `name` is the table's path in rejects.
    Rows of the wrong length, with bad quotes or with bytes that are not UTF-8 become rejects; a
    missing column is a UserError that lists the columns there are.
    """
    bad_lines: set[int] = set()

    def lines() -> Iterator[str]:
        for number, line in open_lines(path, rejects, name=name):
            if line is None:
                bad_lines.add(number)
            yield line or "\n"

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
    except csv.Error as error:
        raise UserError(f"{path}: cannot read its header: {error}") from None
    missing = [column for column in needed if column not in header]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(header) or 'none'}"
        )
    columns = [header.index(column) if column in header else -1 for column in (*needed, *optional)]
    while True:
        before = rows.line_num
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            place = _place(name, before + 1, rows.line_num)
            rejects.add(place, "malformed_row", f"quotes do not pair: {error}")
            continue
        if bad_lines and not bad_lines.isdisjoint(range(before + 1, rows.line_num + 1)):
            continue
        if len(row) == len(header):
            yield before + 1, [row[column] if column >= 0 else "" for column in columns]
        elif row:
            place = _place(name, before + 1, rows.line_num)
            detail = f"{len(row)} fields; the header has {len(header)}"
            rejects.add(place, "malformed_row", detail)


def _place(name: str, first: int, last: int) -> str:
    return f"{name}:{first}" if first >= last else f"{name}:{first}-{last}"
