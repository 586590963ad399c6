"""What a dataset holds: counts of chains, regions and labels, coverage and report lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cot_builder.dataset import read_manifest, read_studies
from cot_builder.errors import UserError
from cot_builder.show import coverage_line, cross_table, plain_table
from cot_builder.vocabulary import ASSERTIONS, LABEL_VALUES, LABELS, REGIONS

_COLUMNS = (
    "split",
    "sections",
    "labels",
    "chains.list.element.disease",
    "chains.list.element.assertion",
    "chains.list.element.regions",
    "unmapped.list.element.assertion",
    "provenance.sentences",
    "provenance.bearing",
    "provenance.covered",
)


class DatasetStatistics(NamedTuple):
    """Counts over all studies of a dataset; `caption` tells which dataset and bank they are of."""

    caption: str
    studies: Counter[str]
    chains: Counter[tuple[str, str]]
    unmapped: Counter[str]
    regions: Counter[tuple[str, str]]
    labels: Counter[tuple[str, int | None]]
    pairs: Counter[tuple[str, str]]
    sentences: int
    bearing: int
    covered: int
    coverage: Counter[tuple[int, int]]
    words: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of studies."""
        return self.studies.total()


def dataset_statistics(folder: Path) -> DatasetStatistics:
    """Read a dataset folder once and count.

    `chains` and `regions` count chains by assertion; `labels` and `pairs` count studies (a pair:
    both labels positive); `coverage` counts studies by (bearing, covered) sentences; `words` holds
    the length of each study's decomposed sections.
    """
    manifest = read_manifest(folder)
    chosen = set(manifest["options"]["sections"])
    studies: Counter[str] = Counter()
    chains: Counter[tuple[str, str]] = Counter()
    unmapped: Counter[str] = Counter()
    regions: Counter[tuple[str, str]] = Counter()
    labels: Counter[tuple[str, int | None]] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    coverage: Counter[tuple[int, int]] = Counter()
    words: list[int] = []
    sentences = 0
    for row in read_studies(folder, columns=_COLUMNS):
        studies[row["split"] or "no split"] += 1
        for chain in row["chains"]:
            chains[chain["disease"], chain["assertion"]] += 1
            for region in chain["regions"]:
                regions[region, chain["assertion"]] += 1
        unmapped.update(finding["assertion"] for finding in row["unmapped"])
        labels.update(row["labels"].items())
        positive = [label for label, value in row["labels"].items() if value == 1]
        pairs.update((one, other) for one in positive for other in positive)
        counts = row["provenance"]
        sentences += counts["sentences"]
        coverage[counts["bearing"], counts["covered"]] += 1
        words.append(sum(len(s["text"].split()) for s in row["sections"] if s["name"] in chosen))
    if not words:
        raise UserError(f"{folder} holds no study; its rejects.jsonl says why")
    return DatasetStatistics(
        caption=f"{folder.resolve().name}, n = {len(words):,} studies, "
        f"bank {manifest['banks']['version']}",
        studies=studies,
        chains=chains,
        unmapped=unmapped,
        regions=regions,
        labels=labels,
        pairs=pairs,
        sentences=sentences,
        bearing=sum(bearing * n for (bearing, _), n in coverage.items()),
        covered=sum(covered * n for (_, covered), n in coverage.items()),
        coverage=coverage,
        words=tuple(words),
    )


def statistics_tables(statistics: DatasetStatistics) -> Group:
    """Draw the counts as tables for the terminal."""
    words = statistics.words
    studies = ", ".join(f"{split} {n:,}" for split, n in statistics.studies.items())
    values = {**LABEL_VALUES, "not mentioned": None}
    return Group(
        Text(statistics.caption, style="bold"),
        Text(f"Studies: {studies}"),
        cross_table(
            "Chains by label",
            LABELS,
            ASSERTIONS,
            lambda label, name: statistics.chains[label, name],
        ),
        cross_table(
            "Chains by region (one with two regions counts in both)",
            REGIONS,
            ASSERTIONS,
            lambda region, name: statistics.regions[region, name],
        ),
        cross_table(
            "Studies by label (from stated chains)",
            LABELS,
            tuple(values),
            lambda label, name: statistics.labels[label, values[name]],
        ),
        _pairs_table(statistics),
        coverage_line(statistics.covered, statistics.bearing, statistics.sentences),
        Text(f"Unmapped findings: {statistics.unmapped.total():,}"),
        Text(
            f"Report length: median {median(words):g} words, shortest {min(words):,}, "
            f"longest {max(words):,} (decomposed sections)"
        ),
    )


def _pairs_table(statistics: DatasetStatistics, most: int = 10) -> Table:
    table = plain_table("Labels most often positive together")
    table.add_column("label")
    table.add_column("label")
    table.add_column("studies", justify="right")
    pairs = {
        (one, other): statistics.pairs[one, other]
        for place, one in enumerate(LABELS)
        for other in LABELS[place + 1 :]
    }
    for (one, other), n in sorted(pairs.items(), key=lambda item: -item[1])[:most]:
        if n:
            table.add_row(one, other, f"{n:,}")
    return table
