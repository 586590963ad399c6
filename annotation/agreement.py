"""How far readers agree: with each other, with the machine, and on chains planted wrong.

A unit is a label of a study that was read; its state is positive, uncertain, negative or absent, as
CheXpert aggregates chains. Reviews that were rejected or skipped are no readings. Chains planted
wrong count for the readers' own score alone. NaN stands where a figure cannot be had.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain as chained
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd
from rich.console import Group
from rich.table import Table

from annotation.readers import latest, readings
from annotation.reviews import OUTCOMES, Review
from cot_builder.boxes import iou
from cot_builder.errors import UserError
from cot_builder.labels import report_labels
from cot_builder.records import Chain, Row
from cot_builder.vocabulary import ASSERTIONS, LABELS

MACHINE: Final = "machine"
ALL: Final = "all labels"
_STATES: Final = {1: "positive", 0: "negative", -1: "uncertain", None: "absent"}
_READ: Final = ("accepted", "edited", "second read")

Reading = Mapping[str, Chain]


class Measured(NamedTuple):
    """The tables: kappas by label and assertion, pairs of readers, and the readers one by one."""

    kappas: pd.DataFrame
    pairs: pd.DataFrame
    readers: pd.DataFrame


# -- the coefficients


def cohen(pairs: Sequence[tuple[str, str]]) -> float:
    """Return Cohen's kappa (1960) of two readers; NaN without units, or with one state alone.

    >>> cohen([("a", "a"), ("b", "b"), ("a", "b"), ("b", "a")])
    0.0
    """
    n = len(pairs)
    one, other = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(one[state] * other[state] for state in one)
    if chance == n * n:  # true of no pairs as well
        return math.nan
    return (sum(a == b for a, b in pairs) * n - chance) / (n * n - chance)


def fleiss(units: Iterable[Sequence[str]]) -> float:
    """Return Fleiss' kappa (1971) of units that equally many readers read, the most there are."""
    read = [unit for unit in units if len(unit) > 1]
    raters = max(map(len, read), default=0)
    counts = [Counter(unit) for unit in read if len(unit) == raters]
    if not counts:
        return math.nan
    alike = sum(n * (n - 1) for unit in counts for n in unit.values())
    observed = alike / (len(counts) * raters * (raters - 1))
    total = sum(counts, Counter[str]())
    chance = sum((n / total.total()) ** 2 for n in total.values())
    return (observed - chance) / (1 - chance) if len(total) > 1 else math.nan


def krippendorff(units: Iterable[Sequence[str]]) -> float:
    """Return Krippendorff's alpha (2011) for nominal states; units may have any number of readers.

    >>> krippendorff([("a", "a"), ("b", "b", "b"), ("a",)])
    1.0
    """
    read = [Counter(unit) for unit in units if len(unit) > 1]
    total = sum(read, Counter[str]())
    n = total.total()
    expected = n * n - sum(count**2 for count in total.values())
    if not expected:
        return math.nan
    apart = sum(
        (unit.total() ** 2 - sum(count**2 for count in unit.values())) / (unit.total() - 1)
        for unit in read
    )
    return 1 - (n - 1) * apart / expected


# -- what is measured


def measure(reviews: Sequence[Review]) -> Measured:
    """Measure all readings of all studies; UserError where nothing was read."""
    last = [review for review in latest(reviews) if review.task.kind == "review"]
    studies = _studies(last)
    if not studies:
        raise UserError("no study was read yet: all answers are skipped or rejected")
    return Measured(_kappas(studies), _pairs(studies), _readers(last))


def _studies(reviews: Iterable[Review]) -> list[dict[str, Reading]]:
    """Return each study's readings by reader, the machine's among them."""
    by_study: dict[str, list[Review]] = {}
    for review in reviews:
        if review.outcome in _READ:
            by_study.setdefault(review.study_id, []).append(review)
    studies: list[dict[str, Reading]] = []
    for read in by_study.values():
        planted = {review.task.planted for review in read}
        own = zip((review.reader for review in read), readings(read), strict=True)
        found = {MACHINE: read[0].task.base, **dict(own)}
        studies.append(
            {who: {n: c for n, c in of.items() if n not in planted} for who, of in found.items()}
        )
    return studies


def _states(reading: Reading) -> dict[str, str]:
    return {label: _STATES[value] for label, value in report_labels(reading.values()).items()}


def _kappas(studies: Sequence[Mapping[str, Reading]]) -> pd.DataFrame:
    states = [{who: _states(of) for who, of in study.items()} for study in studies]
    units = {
        label: [{who: of[label] for who, of in study.items()} for study in states]
        for label in LABELS
    }
    every = list(chained.from_iterable(units.values()))
    # An assertion's units are all labels of all studies: is it this one, or another?
    by_assertion = {
        assertion: [{who: str(s == assertion) for who, s in unit.items()} for unit in every]
        for assertion in ASSERTIONS
    }
    rows = {**units, ALL: every, **by_assertion}
    return pd.DataFrame(
        {"of": name, **_coefficients(found)} for name, found in rows.items()
    ).set_index("of")


def _coefficients(units: Sequence[Mapping[str, str]]) -> Row:
    human = [[s for who, s in unit.items() if who != MACHINE] for unit in units]
    twice = [unit for unit in human if len(unit) > 1]
    pairs = [pair for unit in twice for pair in combinations(unit, 2)]
    n, mean = _mean_cohen(units, machine=False)
    machine_n, machine = _mean_cohen(units, machine=True)
    return {
        "units": len(twice),
        "agreement": sum(a == b for a, b in pairs) / len(pairs) if pairs else math.nan,
        "cohen": mean,
        "cohen_n": n,
        "fleiss": fleiss(twice),
        "alpha": krippendorff(twice),
        "machine_cohen": machine,
        "machine_n": machine_n,
    }


def _mean_cohen(units: Sequence[Mapping[str, str]], *, machine: bool) -> tuple[int, float]:
    """Return Cohen's kappa over the pairs of readers, each by its units, and how many units."""
    by_pair: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for unit in units:
        for one, other in combinations(sorted(unit), 2):
            if (MACHINE in (one, other)) == machine:
                by_pair.setdefault((one, other), []).append((unit[one], unit[other]))
    found = [(len(pairs), cohen(pairs)) for pairs in by_pair.values()]
    known = [(n, kappa) for n, kappa in found if not math.isnan(kappa)]
    total = sum(n for n, _ in known)
    return total, sum(n * kappa for n, kappa in known) / total if total else math.nan


def _pairs(studies: Sequence[Mapping[str, Reading]]) -> pd.DataFrame:
    names = sorted({who for study in studies for who in study} - {MACHINE})
    rows = []
    for one, other in (*combinations(names, 2), *((name, MACHINE) for name in names)):
        both = [(study[one], study[other]) for study in studies if {one, other} <= study.keys()]
        if both:
            rows.append({"reader": one, "other": other, "studies": len(both), **_pair(both)})
    columns = ["reader", "other", "studies", *_pair([])]
    return pd.DataFrame(rows, columns=columns)


def _pair(both: Sequence[tuple[Reading, Reading]]) -> Row:
    states = [(_states(a), _states(b)) for a, b in both]
    ious = [value for a, b in both for value in _ious(a, b)]
    return {
        "cohen": cohen([(a[label], b[label]) for a, b in states for label in LABELS]),
        "span_f1": _f1(both, lambda c: (c.section, c.start, c.end)),
        "span_and_disease_f1": _f1(both, lambda c: (c.section, c.start, c.end, c.disease)),
        "chain_f1": _f1(
            both, lambda c: (c.section, c.start, c.end, c.disease, c.assertion, c.regions)
        ),
        "box_iou": sum(ious) / len(ious) if ious else math.nan,
        "boxes": len(ious),
    }


def _f1(both: Sequence[tuple[Reading, Reading]], said: Callable[[Chain], object]) -> float:
    shared = total = 0
    for a, b in both:
        one, other = Counter(map(said, a.values())), Counter(map(said, b.values()))
        shared += (one & other).total()
        total += one.total() + other.total()
    return 2 * shared / total if total else math.nan


def _ious(a: Reading, b: Reading) -> list[float]:
    """Return each box's best IoU with the other reader's of the same finding, 0 without one."""
    best = []
    for name in a.keys() & b.keys():
        for boxes, others in ((a[name].boxes, b[name].boxes), (b[name].boxes, a[name].boxes)):
            for box in boxes:
                on_image = (o for o in others if o.image_id == box.image_id)
                best.append(max((iou(box.xyxy, o.xyxy) for o in on_image), default=0.0))
    return best


def _readers(reviews: Sequence[Review]) -> pd.DataFrame:
    by_reader: dict[str, list[Review]] = {}
    for review in reviews:
        by_reader.setdefault(review.reader, []).append(review)
    rows = []
    for reader, own in sorted(by_reader.items()):
        outcomes = Counter(review.outcome for review in own)
        planted = Counter(review.planted for review in own if review.planted)
        times = pd.Series([r.lead_time for r in own if r.lead_time is not None], dtype=float)
        rows.append(
            {"reader": reader, **{name: outcomes[name] for name in OUTCOMES},
             "median_seconds": times.median(), "planted": planted.total(),
             "planted_found": planted["found"]}
        )  # fmt: skip
    return pd.DataFrame(rows)


def summary(reviews: Sequence[Review]) -> Row | None:
    """Return the figures that a reviewed dataset's manifest keeps; None where nobody read twice."""
    try:
        measured = measure(reviews)
    except UserError:
        return None
    row: Any = measured.kappas.loc[ALL]
    if not row["units"]:
        return None
    human: Any = measured.pairs[measured.pairs["other"] != MACHINE]
    figures: dict[str, float] = {
        name: row[name] for name in ("agreement", "cohen", "fleiss", "alpha")
    }
    figures |= {name: _weighted(human, name, "studies") for name in ("span_f1", "chain_f1")}
    figures["box_iou"] = _weighted(human, "box_iou", "boxes")
    rounded = {n: None if math.isnan(v) else round(float(v), 4) for n, v in figures.items()}
    return {"units": int(row["units"]), **rounded, "boxes": int(human["boxes"].sum())}


def _weighted(table: Any, name: str, by: str) -> float:
    known = table[table[name].notna()]
    total = known[by].sum()
    return float((known[name] * known[by]).sum() / total) if total else math.nan


# -- to look at


def agreement_tables(measured: Measured) -> Group:
    """Return the tables for the terminal; a dash is a figure that cannot be had."""
    titles = ("Agreement by label and assertion", "Pairs of readers", "Readers")
    frames = (measured.kappas.reset_index(), measured.pairs, measured.readers)
    return Group(*(_table(t, frame) for t, frame in zip(titles, frames, strict=True)))


def _table(title: str, frame: pd.DataFrame) -> Table:
    table = Table(*map(str, frame.columns), title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "—" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def write_tables(measured: Measured, folder: Path) -> None:
    """Write each table as CSV into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        measured.kappas.to_csv(folder / "kappas.csv")
        measured.pairs.to_csv(folder / "pairs.csv", index=False)
        measured.readers.to_csv(folder / "readers.csv", index=False)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error.strerror}") from None
