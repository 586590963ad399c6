"""Score decomposed chains against gold chains, as the chain specification says (section 8)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cot_builder.errors import UserError
from cot_builder.records import Row
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS

Triple = tuple[str, str, str]  # disease, assertion, region
Placed = tuple[str, str, str, str]  # report, disease, assertion, region


class Counts(NamedTuple):
    """True positives, false positives and false negatives; a score comes from these, summed."""

    hit: int = 0
    extra: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        """Share of the predicted that is right; NaN when nothing was predicted."""
        return _share(self.hit, self.hit + self.extra)

    @property
    def recall(self) -> float:
        """Share of gold that was found; NaN when there is nothing to find."""
        return _share(self.hit, self.hit + self.missed)

    @property
    def f1(self) -> float:
        """2 hit / (2 hit + extra + missed); NaN when gold and prediction are both empty."""
        return _share(2 * self.hit, 2 * self.hit + self.extra + self.missed)


class ChainScores(NamedTuple):
    """What `cot-builder score-chains` prints, over the `reports` that gold and dataset share."""

    reports: int
    missing: tuple[str, ...]
    triples: Counts
    by_assertion: dict[str, Counts]
    by_label: dict[str, Counts]
    label_assertion: Counts
    region_right: int
    region_pairs: int
    unmapped: Counts
    offsets_exact: int
    offsets: int
    differences: tuple[tuple[str, str, Triple], ...]

    @property
    def macro_f1(self) -> float:
        """Plain mean of the F1 of the labels that occur in gold or prediction."""
        values = [c.f1 for c in self.by_label.values() if sum(c)]
        return sum(values) / len(values) if values else float("nan")

    @property
    def region_accuracy(self) -> float:
        """Share of pairs with agreeing label and assertion whose sets of regions agree too."""
        return _share(self.region_right, self.region_pairs)

    def __rich__(self) -> Group:
        """Return the scores as tables: headline, by label, and the commonest differences."""
        headline = Table("measure", "value", "n")
        for name, value, n in (
            ("triple micro-F1", self.triples.f1, sum(self.triples)),
            ("triple precision", self.triples.precision, self.triples.hit + self.triples.extra),
            ("triple recall", self.triples.recall, self.triples.hit + self.triples.missed),
            *((f"F1 of {a}", c.f1, c.hit + c.missed) for a, c in self.by_assertion.items()),
            (
                "macro-F1 over labels",
                self.macro_f1,
                sum(1 for c in self.by_label.values() if sum(c)),
            ),
            ("label-and-assertion F1", self.label_assertion.f1, sum(self.label_assertion)),
            ("region accuracy", self.region_accuracy, self.region_pairs),
            ("unmapped F1", self.unmapped.f1, sum(self.unmapped)),
            ("exact offsets", _share(self.offsets_exact, self.offsets), self.offsets),
        ):
            headline.add_row(name, f"{value:.4f}", str(n))
        labels = Table("label", "F1", "precision", "recall", "gold")
        for label, c in self.by_label.items():
            labels.add_row(
                label, *(f"{v:.3f}" for v in (c.f1, c.precision, c.recall)), str(c.hit + c.missed)
            )
        wrong = Table("commonest differences", "times")
        for (kind, triple), times in most_common(self, 12):
            wrong.add_row(f"{kind}: {' · '.join(triple)}", str(times))
        told = f"{self.reports} reports"
        if self.missing:
            ids = ", ".join(self.missing[:5])
            told += f"; {len(self.missing)} gold reports are not in the dataset: {ids}"
        return Group(headline, labels, wrong, Text(told))


def triples(chains: Iterable[Mapping[str, Any]]) -> set[Triple]:
    """Return the set of (disease, assertion, region), one for each region of each chain.

    >>> sorted(triples([{"disease": "Edema", "assertion": "negative", "regions": ["whole lung"]}]))
    [('Edema', 'negative', 'whole lung')]
    """
    return {(c["disease"], c["assertion"], region) for c in chains for region in c["regions"]}


def compare(gold: Set[Hashable], predicted: Set[Hashable]) -> Counts:
    """Count agreeing, extra and missed ones."""
    return Counts(len(gold & predicted), len(predicted - gold), len(gold - predicted))


def score(pairs: Iterable[tuple[str, Row, Row]], *, missing: Iterable[str] = ()) -> ChainScores:
    """Score (id, gold row, predicted row) of each report.

    Rows have `chains` and `unmapped`; the predicted one has `sections` too, for its offsets.
    """
    pairs = list(pairs)
    gold = {(uid, *t) for uid, row, _ in pairs for t in triples(row["chains"])}
    found = {(uid, *t) for uid, _, row in pairs for t in triples(row["chains"])}
    regions, right_regions = _regions(found), _regions(gold)
    agreeing = regions.keys() & right_regions.keys()
    exact = [offsets for _, _, row in pairs for offsets in _exact_offsets(row)]
    wrong = [("extra", t) for t in found - gold] + [("missed", t) for t in gold - found]
    return ChainScores(
        reports=len(pairs),
        missing=tuple(missing),
        triples=compare(gold, found),
        by_assertion={
            name: compare({t for t in gold if t[2] == name}, {t for t in found if t[2] == name})
            for name in ASSERTIONS
        },
        by_label={
            name: compare({t for t in gold if t[1] == name}, {t for t in found if t[1] == name})
            for name in LABELS
        },
        label_assertion=compare(set(right_regions), set(regions)),
        region_right=sum(regions[pair] == right_regions[pair] for pair in agreeing),
        region_pairs=len(agreeing),
        unmapped=compare(
            {(uid, *t) for uid, row, _ in pairs for t in _places(row["unmapped"])},
            {(uid, *t) for uid, _, row in pairs for t in _places(row["unmapped"])},
        ),
        offsets_exact=sum(exact),
        offsets=len(exact),
        differences=tuple((t[0], kind, t[1:]) for kind, t in sorted(wrong, key=_by_report)),
    )


def read_gold(path: Path) -> list[Row]:
    """Read gold chains: JSON Lines with `uid`, a text for each annotated section, and `chains`.

    Raises UserError with file and line for what is malformed, and for a study that comes twice.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"gold file {path}: {error.strerror}; expected JSON Lines") from None
    except UnicodeDecodeError as error:
        raise UserError(f"gold file {path} is not text in UTF-8: {error}") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = _gold_row(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            what = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}:{number}: not a gold record: {what}") from None
        key = _bare(row["uid"])
        if key in lines:
            raise UserError(
                f"{path}:{number}: study {row['uid']!r} stands in line {lines[key]} already"
            )
        lines[key] = number
        rows.append(row)
    if not rows:
        raise UserError(f"gold file {path} holds no record")
    return rows


def score_chains(gold_path: Path, dataset: Path) -> ChainScores:
    """Score a dataset folder against a gold file; "74", "CXR74" and "s74" are one study.

    Only the sections that the gold record gives a text for are compared.
    """
    from cot_builder.dataset import read_studies

    gold = {_bare(row["uid"]): row for row in read_gold(gold_path)}
    found: dict[str, Row] = {}
    columns = ["study_id", "sections", "chains", "unmapped"]
    for row in read_studies(dataset, columns=columns):
        key = _bare(row["study_id"])
        if key not in gold:
            continue
        if key in found:
            raise UserError(
                f"{dataset}: studies {found[key]['study_id']!r} and {row['study_id']!r} both are "
                f"{gold[key]['uid']!r} of {gold_path}; expected one"
            )
        annotated = _annotated(gold[key])
        for column in ("chains", "unmapped"):
            row[column] = [m for m in row[column] if m["section"] in annotated]
        found[key] = row
    if not found:
        raise UserError(
            f"no study of {dataset} is in {gold_path}; gold ids begin {next(iter(gold))!r}"
        )
    missing = [row["uid"] for key, row in gold.items() if key not in found]
    return score(((gold[k]["uid"], gold[k], row) for k, row in found.items()), missing=missing)


def most_common(scores: ChainScores, count: int = 20) -> list[tuple[tuple[str, Triple], int]]:
    """Return the differences that occur most often."""
    return Counter((kind, triple) for _, kind, triple in scores.differences).most_common(count)


def _gold_row(row: Any) -> Row:
    """Check one record; what is not scored (offsets, basis) may be absent."""
    if not isinstance(row, dict):
        raise TypeError(f"expected an object, got {row!r}")
    gold: Row = {"unmapped": [], **row, "uid": str(row["uid"])}
    if not _annotated(gold):
        raise ValueError("expected the text of a section, such as findings")
    for chain in gold["chains"]:
        _check(chain["disease"], LABELS, "disease")
    for mention in [*gold["chains"], *gold["unmapped"]]:
        _check(mention["assertion"], ASSERTIONS, "assertion")
        if not isinstance(mention["regions"], list) or not mention["regions"]:
            raise ValueError(f"expected a list of regions, got {mention['regions']!r}")
        for region in mention["regions"]:
            _check(region, REGIONS, "region")
    return gold


def _check(name: str, known: tuple[str, ...], what: str) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; expected one of {', '.join(known)}")


def _annotated(row: Row) -> set[str]:
    return {name for name, text in row.items() if isinstance(text, str)} - {"uid"}


def _bare(study_id: str) -> str:
    return re.sub(r"^(?:CXR|s)(?=\d)", "", study_id)


def _regions(found: Iterable[Placed]) -> dict[tuple[str, str, str], set[str]]:
    regions: dict[tuple[str, str, str], set[str]] = {}
    for *pair, region in found:
        regions.setdefault((pair[0], pair[1], pair[2]), set()).add(region)
    return regions


def _places(unmapped: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(finding["assertion"], region) for finding in unmapped for region in finding["regions"]}


def _exact_offsets(row: Row) -> Iterator[bool]:
    if not row["sections"]:  # what a model says has no place in a report
        return
    texts = {section["name"]: section["text"] for section in row["sections"]}
    for mention in [*row["chains"], *row["unmapped"]]:
        said = texts.get(mention["section"], "")[mention["start"] : mention["end"]]
        yield said == mention["finding"]


def _by_report(difference: tuple[str, Placed]) -> tuple[str, str, Placed]:
    kind, triple = difference
    return triple[0], kind, triple


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
