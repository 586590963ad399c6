"""Any table of reports, by its columns: CSV, TSV, JSON lines (plain or .gz) or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.paths import is_remote
from cot_builder.records import Image, Section
from cot_builder.sources.contract import (
    SPLITS,
    UNKNOWN,
    Loaded,
    Plan,
    Source,
    SourceOptions,
    Task,
    in_order,
)
from cot_builder.sources.reading import (
    MOST_BYTES,
    Rejects,
    UnusableError,
    loaded,
    need_root,
    not_loaded,
    open_lines,
    read_table,
    stays_inside,
)

NAME: Final = "table"
HOLDS: Final = "a table of reports (.csv, .tsv, .jsonl, these with .gz, or .parquet)"
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_ROWS_AT_ONCE: Final = 20_000

Row = dict[str, Any]


def plan(options: SourceOptions) -> Plan:
    """Read the table, one task a row.

    A row's id is that of `id_column`, otherwise its line. An image path starts at the table's
    folder; in JSON lines and Parquet a list of paths will do. Raises UserError for a missing
    column, naming those there are.
    """
    root = need_root(options, source=NAME, holds=HOLDS)
    if not root.is_file():
        raise UserError(f"--root {root} is a folder; for --source table it names {HOLDS}")
    texts = {"": options.text_column, "findings": options.findings_column}
    texts["impression"] = options.impression_column
    chosen = {name: column for name, column in texts.items() if column}
    if not chosen:
        raise UserError(
            "--source table needs --text-column (whole reports), or --findings-column and "
            "--impression-column"
        )
    others = (options.id_column, options.subject_column, options.split_column, options.image_column)
    columns = list(dict.fromkeys([*chosen.values(), *filter(None, others)]))
    rejects = Rejects(NAME)
    tasks: dict[str, Task] = {}
    for line, row in read_rows(root, columns, rejects):
        file = f"{root.name}:{line}"
        study_id = (
            _text(row.get(options.id_column or "")) if options.id_column else f"row-{line:07}"
        )
        try:
            task = _task(row, file, study_id, chosen, options)
        except UnusableError as error:
            rejects.add(file, error.reason, error.detail, study_id or None)
            continue
        if tasks.setdefault(task.study_id, task) is not task:
            detail = f"{tasks[task.study_id].file} has it already"
            rejects.add(file, "duplicate_id", detail, task.study_id)
    return Plan(in_order(tasks.values(), options.limit), rejects.records, root.name)


def load(task: Task, options: SourceOptions) -> Loaded:
    """Make the report of the row that the plan read, and look at its images."""
    root = need_root(options, source=NAME, holds=HOLDS)
    try:
        return loaded(NAME, task, task.texts, options, root=root.parent)
    except UnusableError as error:
        return not_loaded(NAME, task, error)


def _task(
    row: Row, file: str, study_id: str, chosen: dict[str, str], options: SourceOptions
) -> Task:
    if not study_id:
        raise UnusableError("malformed_row", f"column {options.id_column!r} is empty")
    sections = []
    for name, column in chosen.items():
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise UnusableError(
                "malformed_row", f"column {column!r}: expected text, got {text!r:.60}"
            )
        if text and len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
            detail = f"column {column!r} has {len(text):,} characters"
            raise UnusableError(
                "report_too_large", f"{detail}; a report has at most {MOST_BYTES:,} bytes"
            )
        sections.append(Section(name, text or ""))
    if not any(section.text.strip() for section in sections):
        raise UnusableError("empty_report", f"nothing in {', '.join(map(repr, chosen.values()))}")
    split = None
    if options.split_column:
        value = _text(row[options.split_column])
        split = SPLITS.get(value.lower())
        if split is None:
            reason = "unknown_split" if value else "no_split"
            raise UnusableError(reason, f"{value!r}; expected one of {', '.join(SPLITS)}")
    images = tuple(_images(row[options.image_column])) if options.image_column else ()
    subject = _text(row[options.subject_column]) if options.subject_column else ""
    return Task(study_id, subject or None, split, file, images, tuple(sections))


def _images(value: Any) -> Iterator[Image]:
    for path in value if isinstance(value, list) else [value]:
        if not path:
            continue
        if not isinstance(path, str):
            raise UnusableError("malformed_row", f"expected an image's path, got {path!r:.60}")
        if not stays_inside(path):
            raise UnusableError("path_outside_root", f"{path!r} leaves the table's folder")
        yield Image(path, Path(path).stem)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # an id column with a gap is read as floats
        value = int(value)
    return "" if value is None else str(value).strip()


# -- the forms of a table


def read_rows(
    path: Path, columns: Sequence[str], rejects: Rejects, *, optional: Sequence[str] = ()
) -> Iterator[tuple[int, Row]]:
    """Yield the chosen columns of each row, with its line (Parquet: its number from 1).

    An optional column that the table lacks is None or "". Raises UserError for a missing column,
    naming those there are.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = (
        suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    )
    if kind in _DELIMITERS:
        delimiter = _DELIMITERS[kind]
        for line, values in read_table(
            path, columns, rejects, name=path.name, optional=optional, delimiter=delimiter
        ):
            yield line, dict(zip((*columns, *optional), values, strict=True))
    elif kind in (".jsonl", ".ndjson"):
        yield from _json_rows(path, columns, rejects, optional)
    elif kind == ".parquet":
        yield from _parquet_rows(path, columns, optional)
    else:
        raise UserError(
            f"{path}: unknown kind of table {kind!r}; expected .csv, .tsv or .jsonl, these with "
            ".gz, or .parquet"
        )


def _json_rows(
    path: Path, columns: Sequence[str], rejects: Rejects, optional: Sequence[str]
) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a file of JSON lines; a column is missing when no line has it."""
    seen: dict[str, None] = {}
    for line, text in open_lines(path, rejects, name=path.name):
        if not (text and text.strip()):
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            rejects.add(f"{path.name}:{line}", "malformed_row", f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            rejects.add(f"{path.name}:{line}", "malformed_row", "expected a JSON object")
            continue
        seen.update(dict.fromkeys(row))
        yield line, {column: row.get(column) for column in (*columns, *optional)}
    _need_columns(path, columns, list(seen))


def _parquet_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, Row]]:
    import polars as pl

    try:
        table = pl.scan_parquet(BytesIO(path.read_bytes()) if is_remote(path) else path)
        names = table.collect_schema().names()
        _need_columns(path, columns, names)
        chosen = [*columns, *(column for column in optional if column in names)]
        number = 0
        while not (part := table.select(chosen).slice(number, _ROWS_AT_ONCE).collect()).is_empty():
            for row in part.iter_rows(named=True):
                number += 1
                yield number, row
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _need_columns(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in there]:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(there) or 'none'}"
        )


SOURCE: Final = Source(
    name=NAME,
    plan=plan,
    load=load,
    credentialed=False,
    redistribution=UNKNOWN,
    licence="the table's own",
    citation="",
)
