"""Report-level CheXpert labels from chains (Irvin et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterable

from cot_builder.records import Chain
from cot_builder.vocabulary import LABEL_VALUES, LABELS

Labels = dict[str, int | None]

# No Finding holds when none of these is positive or uncertain.
_ABNORMAL = tuple(label for label in LABELS if label not in ("No Finding", "Support Devices"))


def report_labels(chains: Iterable[Chain], *, whole: bool = True) -> Labels:
    """Aggregate stated chains to the 14 labels: 1 positive, 0 negative, -1 uncertain, else None.

    Positive wins over uncertain, uncertain over negative. No Finding is 1 exactly when no other
    label except Support Devices is positive or uncertain, and None otherwise (chain specification,
    section 4). In phrases that are not the `whole` report, what is missing says nothing: No Finding
    is then None.
    """
    found: dict[str, set[int]] = {}
    for chain in chains:
        if chain.basis == "stated":
            found.setdefault(chain.disease, set()).add(LABEL_VALUES[chain.assertion])
    labels: Labels = {label: _strongest(found.get(label, set())) for label in LABELS}
    abnormal = any(labels[label] in (1, -1) for label in _ABNORMAL)
    labels["No Finding"] = 1 if whole and not abnormal else None
    return labels


def _strongest(values: set[int]) -> int | None:
    return next((value for value in (1, -1, 0) if value in values), None)
