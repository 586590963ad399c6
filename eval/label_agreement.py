"""How far a dataset agrees with a release's labels: `chexpert.csv`, `negbio.csv`, a test set."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Group
from rich.text import Text

from cot_builder.dataset import read_studies
from cot_builder.errors import UserError
from cot_builder.show import plain, plain_table
from cot_builder.vocabulary import LABELS
from knowledge_banks.loader import FOLDER, read_bank

State = int | None
# A label's four states, with the words that tables and files use for them.
STATES: Final[Mapping[State, str]] = {1: "positive", 0: "negative", -1: "uncertain", None: "blank"}
_BLANKS: Final = frozenset({"", "nan", "none", "null"})


class LabelAgreement(NamedTuple):
    """One label: `n` studies compared, plain agreement and Cohen's kappa over the four states.

    `confusion` counts (dataset's state, table's state); NaN says that a figure is undefined.
    """

    label: str
    n: int
    agreement: float
    kappa: float
    confusion: Mapping[tuple[State, State], int]


class Disagreement(NamedTuple):
    """One study and label on which the dataset and the table differ."""

    study_id: str
    label: str
    dataset: State
    table: State


class Comparison(NamedTuple):
    """A dataset beside a table of labels; `missing` labels have no column in the table."""

    labels: tuple[LabelAgreement, ...]
    missing: tuple[str, ...]
    compared: int
    dataset_only: int
    table_only: int
    disagreements: tuple[Disagreement, ...]


def compare_labels(dataset: Path, table: Path) -> Comparison:
    """Compare the `labels` column of a dataset folder with a CSV table of CheXpert labels.

    Studies are joined by `study_id`, labels by column name. A table without either, or with a value
    other than 1, 0, -1 and blank, is a UserError that names file and line.
    """
    theirs = read_label_table(table)
    columns = next(iter(theirs.values()), {}).keys()
    counts: dict[str, Counter[tuple[State, State]]] = {label: Counter() for label in columns}
    disagreements: list[Disagreement] = []
    compared = dataset_only = 0
    for row in read_studies(dataset, columns=["study_id", "labels"]):
        states = theirs.get(plain_id(row["study_id"]))
        if states is None:
            dataset_only += 1
            continue
        compared += 1
        for label, other in states.items():
            own = row["labels"][label]
            counts[label][own, other] += 1
            if own != other:
                disagreements.append(Disagreement(row["study_id"], label, own, other))
    return Comparison(
        labels=tuple(label_agreement(label, counts[label]) for label in LABELS if label in counts),
        missing=tuple(label for label in LABELS if label not in counts),
        compared=compared,
        dataset_only=dataset_only,
        table_only=len(theirs) - compared,
        disagreements=tuple(disagreements),
    )


def label_agreement(label: str, confusion: Mapping[tuple[State, State], int]) -> LabelAgreement:
    """Compute agreement and Cohen's kappa (Cohen, 1960) of one label from its confusion counts.

    >>> label_agreement("Edema", {(1, 1): 2, (None, None): 2}).kappa
    1.0
    >>> label_agreement("Edema", {(1, 1): 4}).kappa  # one state alone: chance agreement is 1
    nan
    """
    n = sum(confusion.values())
    if not n:
        return LabelAgreement(label, 0, math.nan, math.nan, dict(confusion))
    observed = sum(count for (own, other), count in confusion.items() if own == other) / n
    own_totals: Counter[State] = Counter()
    other_totals: Counter[State] = Counter()
    for (own, other), count in confusion.items():
        own_totals[own] += count
        other_totals[other] += count
    # Whole numbers until here, so that "always the same state" is exact.
    by_chance = sum(own_totals[state] * other_totals[state] for state in STATES)
    kappa = (
        math.nan if by_chance == n * n else (observed - by_chance / n**2) / (1 - by_chance / n**2)
    )
    return LabelAgreement(label, n, observed, kappa, dict(confusion))


def read_label_table(path: Path) -> dict[str, dict[str, State]]:
    """Read a CSV (or `.csv.gz`) of labels: study id → label → state, labels by column name."""
    lines = _rows(path)
    _, header = next(lines, (0, []))
    if "study_id" not in header:
        raise UserError(
            f"{path} has no study_id column to join on; its columns: {', '.join(header) or 'none'}"
        )
    names = _label_names()
    columns = {
        place: names[name.strip().lower()]
        for place, name in enumerate(header)
        if name.strip().lower() in names
    }
    if not columns:
        raise UserError(
            f"{path} has none of the 14 label columns ({', '.join(LABELS)}); "
            f"its columns: {', '.join(header)}"
        )
    if len(set(columns.values())) < len(columns):
        raise UserError(f"{path} names a label twice: {', '.join(header)}")
    table: dict[str, dict[str, State]] = {}
    for line, cells in lines:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {line}: expected {len(header)} cells, found {len(cells)}"
            )
        study_id = plain_id(cells[header.index("study_id")].strip())
        if study_id in table:
            raise UserError(f"{path}, line {line}: study {study_id} occurs a second time")
        table[study_id] = {
            label: _state(cells[place], f"{path}, line {line}, column {header[place]!r}")
            for place, label in columns.items()
        }
    return table


def write_disagreements(path: Path, comparison: Comparison) -> None:
    """Write the disagreements as CSV: study_id, label, dataset, table; safe in a spreadsheet."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(Disagreement._fields)
        for study_id, label, own, other in comparison.disagreements:
            # A cell that starts like a formula would be run by a spreadsheet.
            formula = study_id.lstrip().startswith(("=", "+", "-", "@"))
            safe = f"'{study_id}" if formula or study_id[:1].isspace() else study_id
            writer.writerow([safe, label, STATES[own], STATES[other]])


def comparison_tables(comparison: Comparison, name: str, *, most: int = 20) -> Group:
    """Draw a comparison for the terminal: a line a label, then the first `most` that disagree."""
    table = plain_table(f"Agreement with {name}, n = {comparison.compared:,} studies")
    table.add_column("label", no_wrap=True)
    for column in ("kappa", "agreement", "n"):
        table.add_column(column, justify="right")
    table.add_column("same")
    table.add_column("dataset → table")
    for label, n, agreement, kappa, confusion in comparison.labels:
        table.add_row(
            label,
            _figure(kappa),
            _figure(agreement),
            f"{n:,}",
            _cells(confusion, same=True),
            _cells(confusion, same=False),
        )
    by_study: dict[str, list[str]] = {}
    for study_id, label, own, other in comparison.disagreements:
        by_study.setdefault(study_id, []).append(f"{label} {STATES[own]} → {STATES[other]}")
    notes = [
        f"{len(by_study):,} studies differ in {len(comparison.disagreements):,} labels "
        "(dataset → table)" + (f"; the first {most}:" if len(by_study) > most else ""),
        *(
            f"  {plain(study)}: {'; '.join(cells)}"
            for study, cells in list(by_study.items())[:most]
        ),
        f"Not compared: {comparison.dataset_only:,} studies that only the dataset has, "
        f"{comparison.table_only:,} that only the table has",
    ]
    if comparison.missing:
        notes.append(f"The table has no column for {', '.join(comparison.missing)}")
    return Group(table, *map(Text, notes))


def _figure(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _cells(confusion: Mapping[tuple[State, State], int], *, same: bool) -> str:
    cells = [(n, pair) for pair, n in confusion.items() if (pair[0] == pair[1]) == same]
    return ", ".join(
        f"{STATES[own]} {n:,}" if same else f"{STATES[own]} → {STATES[other]} {n:,}"
        for n, (own, other) in sorted(cells, key=lambda cell: (-cell[0], str(cell[1])))
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except OSError as error:
        raise UserError(f"cannot read the label table {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} is cut off or damaged: {error}; fetch it again") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV table in UTF-8: {error}") from None


def _label_names() -> dict[str, str]:
    diseases = read_bank(FOLDER / "diseases.toml").get("disease", [])
    aliases = {
        alias.lower(): entry["name"] for entry in diseases for alias in entry.get("aliases", [])
    }
    return {label.lower(): label for label in LABELS} | aliases


def _state(cell: str, where: str) -> State:
    text = cell.strip()
    if text.lower() in _BLANKS:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in (1, 0, -1):
        raise UserError(f"{where}: expected 1, 0, -1 or blank, found {cell!r}")
    return int(value)


def plain_id(study_id: str) -> str:
    """Return a study id as label tables are keyed: MIMIC-CXR's without its `s`."""
    # MIMIC-CXR's files say s50414267 where its tables say 50414267.
    return re.sub(r"^s(?=\d+$)", "", study_id)
