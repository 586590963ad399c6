"""What a dataset holds, counted: chains by label and assertion, coverage, boxes by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cot_builder.boxes import KINDS
from cot_builder.records import Row
from cot_builder.vocabulary import ASSERTIONS, LABELS

Counts = Counter[str]


def count_study(row: Row) -> Counts:
    """Count a study's chains, sentences and boxes, for `tallies`."""
    counts: Counts = Counter(written=1)
    counts.update(f"chains/{chain['disease']}/{chain['assertion']}" for chain in row["chains"])
    counts.update(f"unmapped/{finding['assertion']}" for finding in row["unmapped"])
    for name in ("sentences", "bearing", "covered"):
        counts[name] += row["provenance"][name]
    boxed = [chain for chain in row["chains"] if chain["boxes"]]
    for phrase in row["grounded"]:
        counts.update(f"box_kinds/{box['kind']}" for box in phrase["boxes"])
        holding = [chain["rule"] for chain in boxed if _overlap(chain, phrase)]
        made = all(rule.startswith("release.") for rule in holding)
        counts["phrases/" + (("from_label" if made else "read") if holding else "none")] += 1
    return counts


def _overlap(chain: Row, phrase: Row) -> bool:
    same = bool(chain["section"] == phrase["section"])
    return same and chain["start"] < phrase["end"] and phrase["start"] < chain["end"]


def tallies(total: Mapping[str, int], rejects: Iterable[Row]) -> Row:
    """Return the manifest's counts of chains, unmapped findings, coverage and boxes."""
    return {
        "chains": {
            label: {name: total[f"chains/{label}/{name}"] for name in ASSERTIONS}
            for label in LABELS
        },
        "unmapped": {name: total[f"unmapped/{name}"] for name in ASSERTIONS},
        "coverage": _coverage(total),
        "boxes": _boxes(total, rejects),
    }


def _coverage(total: Mapping[str, int]) -> Row:
    bearing, covered = total["bearing"], total["covered"]
    return {
        "sentences": total["sentences"],
        "bearing": bearing,
        "covered": covered,
        "share": covered / bearing if bearing else None,
    }


def _boxes(total: Mapping[str, int], rejects: Iterable[Row]) -> Row:
    """Count phrases by where their chain comes from, boxes by kind, and boxes not taken."""
    faults = Counter(row["reason"] for row in rejects if row["reason"].startswith("box_"))
    return {
        "phrases": {
            "chain_read": total["phrases/read"],
            "chain_from_label": total["phrases/from_label"],
            "no_chain": total["phrases/none"],
        },
        "by_kind": {kind: total[f"box_kinds/{kind}"] for kind in KINDS},
        "clipped": faults.pop("box_clipped", 0),
        "rejected": sum(faults.values()),
    }
