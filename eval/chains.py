"""Score decomposed chains against gold chains, by the measures of the chain specification (section 8)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cot_builder.errors import UserError
from cot_builder.records import Row
from cot_builder.vocabulary import ASSERTIONS, LABELS

Triple = tuple[str, str, str]  # disease, assertion, region


class Counts(NamedTuple):
    """True positives, false positives and false negatives; they add, and scores come from sums."""

    hit: int = 0
    extra: int = 0
    missed: int = 0

    def plus(self, other: Counts) -> Counts:
        """Add the counts of another report or label."""
        return Counts(self.hit + other.hit, self.extra + other.extra, self.missed + other.missed)

    @property
    def precision(self) -> float:
        """hit / (hit + extra); NaN when nothing was predicted."""
        return _share(self.hit, self.hit + self.extra)

    @property
    def recall(self) -> float:
        """hit / (hit + missed); NaN when there is nothing to find."""
        return _share(self.hit, self.hit + self.missed)

    @property
    def f1(self) -> float:
        """2 hit / (2 hit + extra + missed); NaN when gold and prediction are both empty."""
        return _share(2 * self.hit, 2 * self.hit + self.extra + self.missed)


class ChainScores(NamedTuple):
    """What `cot-builder score-chains` reports; every value is over `reports` reports found in both."""

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
        """Return the scores as tables: the headline, by assertion, by label, and the commonest differences."""
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
        absent = f"; {len(self.missing)} gold reports are not in the dataset: {', '.join(self.missing[:5])}"
        return Group(
            headline, labels, wrong, Text(f"{self.reports} reports{absent if self.missing else ''}")
        )


def triples(chains: Iterable[Mapping[str, Any]]) -> set[Triple]:
    """Return the set of (disease, assertion, region), one for each region of each chain.

    >>> sorted(triples([{"disease": "Edema", "assertion": "negative", "regions": ["whole lung"]}]))
    [('Edema', 'negative', 'whole lung')]
    """
    return {(c["disease"], c["assertion"], region) for c in chains for region in c["regions"]}


def compare(gold: set[Triple], predicted: set[Triple]) -> Counts:
    """Count agreeing, extra and missed triples of one report."""
    return Counts(len(gold & predicted), len(predicted - gold), len(gold - predicted))


def score(pairs: Iterable[tuple[str, Row, Row]], *, missing: Iterable[str] = ()) -> ChainScores:
    """Score (id, gold row, predicted row) of each report; rows have `chains`, `unmapped` and `sections`."""
    total, labels_only, unmapped = Counts(), Counts(), Counts()
    by_assertion = dict.fromkeys(ASSERTIONS, Counts())
    by_label = dict.fromkeys(LABELS, Counts())
    right = pairs_seen = exact = offsets = reports = 0
    differences: list[tuple[str, str, Triple]] = []
    for uid, gold_row, row in pairs:
        reports += 1
        gold, predicted = triples(gold_row["chains"]), triples(row["chains"])
        total = total.plus(compare(gold, predicted))
        for name in ASSERTIONS:
            part = compare(
                {t for t in gold if t[1] == name}, {t for t in predicted if t[1] == name}
            )
            by_assertion[name] = by_assertion[name].plus(part)
        for name in LABELS:
            part = compare(
                {t for t in gold if t[0] == name}, {t for t in predicted if t[0] == name}
            )
            by_label[name] = by_label[name].plus(part)
        ours, theirs = _regions(predicted), _regions(gold)
        labels_only = labels_only.plus(
            Counts(len(ours.keys() & theirs), len(ours.keys() - theirs), len(theirs.keys() - ours))
        )
        for pair in ours.keys() & theirs.keys():
            pairs_seen += 1
            right += ours[pair] == theirs[pair]
        extra = {("unmapped", u["assertion"], r) for u in row["unmapped"] for r in u["regions"]}
        wanted = {
            ("unmapped", u["assertion"], r) for u in gold_row["unmapped"] for r in u["regions"]
        }
        unmapped = unmapped.plus(compare(wanted, extra))
        texts = {s["name"]: s["text"] for s in row["sections"]}
        for mention in [*row["chains"], *row["unmapped"]]:
            offsets += 1
            exact += (
                texts.get(mention["section"], "")[mention["start"] : mention["end"]]
                == mention["finding"]
            )
        differences += [(uid, "extra", t) for t in sorted(predicted - gold)]
        differences += [(uid, "missed", t) for t in sorted(gold - predicted)]
    return ChainScores(
        reports, tuple(missing), total, by_assertion, by_label, labels_only,
        right, pairs_seen, unmapped, exact, offsets, tuple(differences),
    )  # fmt: skip


def read_gold(path: Path) -> list[Row]:
    """Read gold chains, one JSON object a line with `uid`, a text for each annotated section, `chains` and `unmapped`."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"gold file {path}: {error.strerror}; expected JSON lines") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            triples(row["chains"])
            row["uid"] = str(row["uid"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: not a gold record with uid and chains: {error!r}"
            ) from None
        row.setdefault("unmapped", [])
        rows.append(row)
    if not rows:
        raise UserError(f"gold file {path} holds no record")
    return rows


def score_chains(gold_path: Path, dataset: Path) -> ChainScores:
    """Score a dataset folder against a gold file; studies are joined by id ("74", "CXR74" and "s74" are one study).

    Only the sections that the gold record gives a text for are compared.
    """
    from cot_builder.dataset import read_studies

    gold = {_bare(row["uid"]): row for row in read_gold(gold_path)}
    found: dict[str, Row] = {}
    columns = ["study_id", "sections", "chains", "unmapped"]
    for row in read_studies(dataset, columns=columns):
        key = _bare(row["study_id"])
        if key in gold:
            annotated = {name for name, text in gold[key].items() if isinstance(text, str)} - {
                "uid"
            }
            for column in ("chains", "unmapped"):
                row[column] = [m for m in row[column] if m["section"] in annotated]
            found[key] = row
    if not found:
        raise UserError(
            f"no study of {dataset} is in {gold_path}; gold ids begin {next(iter(gold))!r}"
        )
    missing = [row["uid"] for key, row in gold.items() if key not in found]
    return score(((gold[k]["uid"], gold[k], row) for k, row in found.items()), missing=missing)


def _bare(study_id: str) -> str:
    return re.sub(r"^(?:CXR|s)(?=\d)", "", study_id)


def _regions(found: set[Triple]) -> dict[tuple[str, str], frozenset[str]]:
    regions: dict[tuple[str, str], set[str]] = {}
    for disease, assertion, region in found:
        regions.setdefault((disease, assertion), set()).add(region)
    return {pair: frozenset(names) for pair, names in regions.items()}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def most_common(scores: ChainScores, count: int = 20) -> list[tuple[tuple[str, Triple], int]]:
    """Return the differences that occur most often."""
    return Counter((kind, triple) for _, kind, triple in scores.differences).most_common(count)
