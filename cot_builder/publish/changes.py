"""What two versions of a data set read differently, chain by chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from cot_builder.bank_changes import Change
from cot_builder.publish.configs import CHAINS, decoded, features_of, stored_rows
from cot_builder.records import Row

_SHOWN: Final = ("basis", "assertion", "regions", "concepts", "severity", "temporal")
Place = tuple[str, int, int, str]


def changed_versions(before: Path, after: Path) -> Iterator[Change]:
    """Yield every chain and unmapped finding that two versions' folders do not share.

    A mention is the same when section, offsets and label are; which bank entry made it is told,
    its bank's version is no difference. Studies are in the order of their ids.
    """
    old, new = _studies(before), _studies(after)
    for study_id in sorted(old.keys() | new.keys()):
        first, second = old.get(study_id, {}), new.get(study_id, {})
        for place in sorted(first.keys() | second.keys()):
            if first.get(place) != second.get(place):
                section, start, _, _ = place
                yield Change(study_id, section, start, first.get(place), second.get(place))


def _studies(folder: Path) -> Mapping[str, dict[Place, str]]:
    return {
        row["study_id"]: _mentions(row)
        for path in sorted((folder / CHAINS).glob("*.parquet"))
        for features in [dict(features_of(path))]
        for row in (decoded(features, stored) for stored in stored_rows(path))
    }


def _mentions(row: Row) -> dict[Place, str]:
    return {
        (mention["section"], mention["start"], mention["end"], label): _line(mention, label)
        for mention in (*row["chains"], *row["unmapped"])
        for label in [mention.get("disease", "unmapped")]
    }


def _line(mention: Row, label: str) -> str:
    # A text-free version has the place of a finding only.
    finding = mention.get("finding", f"characters {mention['start']} to {mention['end']}")
    told = (mention.get(name) for name in _SHOWN)
    parts = [", ".join(one) if isinstance(one, list) else one for one in told if one]
    corners = ("x1", "y1", "x2", "y2")
    boxes = [", ".join(f"{box[c]:g}" for c in corners) for box in mention.get("boxes", ())]
    rule = mention["rule"].partition("@")[0]
    return " · ".join([finding, label, *parts, *(f"({box})" for box in boxes)]) + f" [{rule}]"
