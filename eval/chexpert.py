"""Clinical efficacy: the 14 CheXpert labels of predicted and reference reports, compared.

Published numbers differ by convention: what becomes of uncertain labels, and how the labels are
averaged. Each convention has a name here, and a number without one means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from cot_builder.decompose import Decomposer
from cot_builder.errors import UserError
from cot_builder.labels import Labels, report_labels
from cot_builder.records import Section
from cot_builder.vocabulary import LABELS
from eval.label_agreement import read_label_table
from eval.records import Measured, Pair, Score

Array = np.ndarray[Any, Any]

# The five that CheXpert's own paper scores (Irvin et al., 2019).
FIVE: Final = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
BLANK: Final = 2  # beside 1, 0 and -1: a label that is not mentioned
# A state's place in the table of counts of a label.
_PLACE: Final = {1: 0, 0: 1, -1: 2, BLANK: 3}
_POSITIVE, _NEGATIVE, _UNCERTAIN, _NONE = range(4)
HEADLINE: Final = "boxmed_table3"

Uncertain = Literal["positive", "negative", "ignored", "own"]


class Rates(NamedTuple):
    """What a convention makes of labels; NaN where there is nothing to divide by."""

    accuracy: float
    precision: float
    recall: float
    f1: float


class Convention(NamedTuple):
    """How labels become one number: the fate of uncertain ones, the labels, and the average.

    Blank counts as negative. `own` makes two columns of a label: is it positive, is it uncertain;
    `ignored` leaves out a label of a study where either side is uncertain.
    """

    uncertain: Uncertain
    labels: tuple[str, ...]
    average: str


def states(vectors: Sequence[Labels]) -> Array:
    """Return label vectors as (studies, 14), by name and in CheXpert's order; blank is 2."""
    return np.array(
        [[BLANK if v[label] is None else v[label] for label in LABELS] for v in vectors], dtype=int
    ).reshape(-1, len(LABELS))


def label_reports(texts: Sequence[str], decomposer: Decomposer) -> list[Labels]:
    """Label reports by the rules; an empty report mentions nothing, not even No Finding."""
    blank: Labels = dict.fromkeys(LABELS)
    return [
        report_labels(decomposer.decompose([Section("findings", text)]).chains)
        if text.strip()
        else blank
        for text in texts
    ]


def read_labels(path: Path, study_ids: Sequence[str]) -> list[Labels]:
    """Read a user's own labels (CheXbert's, CheXpert's or MIMIC-CXR's column names) by study id.

    UserError for a study that the file lacks, and for a label without a column.
    """
    table = read_label_table(path)
    known = {key.removeprefix("s"): row for key, row in table.items()}
    missing = [s for s in study_ids if s not in known and s.removeprefix("s") not in known]
    if missing:
        raise UserError(
            f"{path} has no labels of {len(missing)} studies, such as {missing[0]}: expected a "
            "line for each scored study"
        )
    found = [known.get(s) or known[s.removeprefix("s")] for s in study_ids]
    if absent := [label for label in LABELS if found and label not in found[0]]:
        raise UserError(f"{path} has no column for {', '.join(absent)}")
    return [dict(row) for row in found]


# -- binary conventions


def _columns(reference: Array, prediction: Array, how: Convention) -> tuple[Array, Array, Array]:
    """Return truth, prediction and whether each counts, as booleans of (studies, columns)."""
    chosen = [LABELS.index(label) for label in how.labels]
    reference, prediction = reference[:, chosen], prediction[:, chosen]
    if how.uncertain == "own":
        pairs = [np.hstack([side == 1, side == -1]) for side in (reference, prediction)]
        return pairs[0], pairs[1], np.ones(pairs[0].shape, dtype=bool)
    positive = (1, -1) if how.uncertain == "positive" else (1,)
    counts = np.ones(reference.shape, dtype=bool)
    if how.uncertain == "ignored":
        counts = (reference != -1) & (prediction != -1)
    return np.isin(reference, positive), np.isin(prediction, positive), counts


def _rates(hit: Array, extra: Array, missed: Array, right: Array, n: Array) -> Array:
    """Return accuracy, precision, recall and F1 along a last axis of 4; 0 where nothing was hit."""
    return np.stack(
        [_share(right, n), _share(hit, hit + extra), _share(hit, hit + missed),
         _share(2 * hit, 2 * hit + extra + missed)],
        axis=-1,
    )  # fmt: skip


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def _counted(truth: Array, found: Array, counts: Array, axis: int) -> tuple[Array, ...]:
    return (
        (truth & found & counts).sum(axis),
        (~truth & found & counts).sum(axis),
        (truth & ~found & counts).sum(axis),
        ((truth == found) & counts).sum(axis),
        counts.sum(axis),
    )


def per_class(reference: Array, prediction: Array, how: Convention) -> Array:
    """Return accuracy, precision, recall and F1 of each column, as (columns, 4)."""
    return _rates(*_counted(*_columns(reference, prediction, how), axis=0))


def _macro(reference: Array, prediction: Array, how: Convention) -> Array:
    return np.asarray(per_class(reference, prediction, how).mean(axis=0))


def _micro(reference: Array, prediction: Array, how: Convention) -> Array:
    sums = (part.sum() for part in _counted(*_columns(reference, prediction, how), axis=0))
    return _rates(*map(np.asarray, sums))


def _weighted(reference: Array, prediction: Array, how: Convention) -> Array:
    truth, _, counts = _columns(reference, prediction, how)
    support = (truth & counts).sum(axis=0)
    if not support.sum():
        return np.full(4, np.nan)
    return np.asarray(support @ per_class(reference, prediction, how) / support.sum())


def by_example(reference: Array, prediction: Array, how: Convention) -> Array:
    """Return accuracy, precision, recall and F1 of each study, as (studies, 4).

    A study where neither side has a positive label scores 0, as PromptMRG's and RGRG's code has it.
    """
    return _rates(*_counted(*_columns(reference, prediction, how), axis=1))


def _example(reference: Array, prediction: Array, how: Convention) -> Array:
    return np.asarray(by_example(reference, prediction, how).mean(axis=0))


# -- the paper's Table 3


def cells(reference: Array, prediction: Array) -> Array:
    """Return where each label of each study lies in a 4 x 4 table of states: (studies, 14)."""
    places = np.vectorize(_PLACE.__getitem__, otypes=[int])
    return np.asarray(places(reference) * 4 + places(prediction))


def confusion(cells: Array) -> Array:
    """Return the tables of states of studies, each with one 1: (studies, 14, 4, 4)."""
    return np.asarray(np.eye(16, dtype=np.int64)[cells].reshape(*cells.shape, 4, 4))


def table3(counts: Array) -> Array:
    """Return the four rates of each label from summed tables (..., 14, 4, 4): (..., 14, 4).

    A label has three classes: positive, uncertain, and negative or not mentioned. Precision, recall
    and F1 are the plain means over the classes that occur on either side, NaN where neither side
    has the label positive or uncertain. So read, the F1 of the paper's Table 3 average to its
    headline .412; its authors do not say how they computed them.
    """
    merged = counts.copy()
    merged[..., _NEGATIVE, :] += merged[..., _NONE, :]
    merged[..., :, _NEGATIVE] += merged[..., :, _NONE]
    merged = merged[..., :_NONE, :_NONE]
    hit = np.diagonal(merged, axis1=-2, axis2=-1)
    truth, found = merged.sum(-1), merged.sum(-2)
    occurs = (truth + found) > 0
    rates = _rates(hit, found - hit, truth - hit, hit, truth)[..., 1:]
    means = (rates * occurs[..., None]).sum(-2) / np.maximum(occurs.sum(-1), 1)[..., None]
    said = occurs[..., _POSITIVE] | occurs[..., _UNCERTAIN]
    means = np.where(said[..., None], means, np.nan)
    accuracy = _share(hit.sum(-1), truth.sum(-1))
    return np.concatenate([accuracy[..., None], means], axis=-1)


def table3_mean(rows: Array) -> Array:
    """Return the mean over the labels that have a number, of rates (..., 14, 4): (..., 4)."""
    there = ~np.isnan(rows)
    n = there.sum(axis=-2)
    return np.divide(
        np.where(there, rows, 0).sum(axis=-2), n, out=np.full(n.shape, np.nan), where=n > 0
    )


def _table3(reference: Array, prediction: Array, how: Convention) -> Array:
    return table3_mean(table3(confusion(cells(reference, prediction)).sum(axis=0)))


def _exact(reference: Array, prediction: Array, how: Convention) -> Array:
    truth, found, counts = _columns(reference, prediction, how)
    same = ((truth == found) | ~counts).all(axis=1).mean()
    return np.array([same, np.nan, np.nan, np.nan])


# To add one: a function of both sides' states that returns accuracy, precision, recall and F1.
AVERAGES: Final[dict[str, Callable[[Array, Array, Convention], Array]]] = {
    "macro": _macro,
    "micro": _micro,
    "weighted": _weighted,
    "example": _example,
    "exact": _exact,
    "table3": _table3,
}
_SHORT: Final[dict[str, Uncertain]] = {
    "u1": "positive", "u0": "negative", "ignored": "ignored", "own": "own",
}  # fmt: skip
# Named uncertain/average-labels: u0/macro-14 is R2Gen's, u1/micro-5 is Miura's and RGRG's.
CONVENTIONS: Final[dict[str, Convention]] = {
    **{
        f"{short}/{average}-{len(labels)}": Convention(uncertain, labels, average)
        for short, uncertain in _SHORT.items()
        for average in ("macro", "micro", "weighted", "example", "exact")
        for labels in (LABELS, FIVE)
    },
    HEADLINE: Convention("own", LABELS, "table3"),
}
REPORTED: Final = (
    HEADLINE,
    "u0/macro-14",
    "u0/micro-14",
    "u1/macro-14",
    "u1/micro-5",
    "u0/example-14",
)


def rates(reference: Array, prediction: Array, convention: str) -> Rates:
    """Return accuracy, precision, recall and F1 by a named convention.

    `reference` and `prediction` are states (studies, 14). UserError for an unknown name.
    """
    if convention not in CONVENTIONS:
        raise UserError(
            f"unknown convention {convention!r}; the conventions are {', '.join(CONVENTIONS)}"
        )
    how = CONVENTIONS[convention]
    if not len(reference):
        return Rates(*[float("nan")] * 4)
    return Rates(*map(float, AVERAGES[how.average](reference, prediction, how)))


def spread(reference: Array, prediction: Array) -> dict[str, Rates]:
    """Return the rates by every convention: how far one set of predictions moves between them."""
    return {name: rates(reference, prediction, name) for name in CONVENTIONS}


class Sides(NamedTuple):
    """Both sides' states, and who labelled them."""

    reference: Array
    prediction: Array
    labeler: str


def both_sides(
    pairs: Sequence[Pair],
    decomposer: Decomposer,
    *,
    reference_labels: Path | None = None,
    prediction_labels: Path | None = None,
) -> Sides:
    """Label both sides of the pairs, by the rules or from a user's own files."""
    ids = [p.study_id for p in pairs]
    sides, names = [], []
    for file, texts in (
        (reference_labels, [p.reference for p in pairs]),
        (prediction_labels, [p.prediction for p in pairs]),
    ):
        vectors = read_labels(file, ids) if file else label_reports(texts, decomposer)
        sides.append(states(vectors))
        names.append(file.name if file else f"rules@{decomposer.banks.version}")
    return Sides(sides[0], sides[1], "+".join(dict.fromkeys(names)))


def measure_chexpert(sides: Sides, *, convention: str = HEADLINE) -> Measured:
    """Measure CheXpert efficacy: the headline by `convention`, then those that others report."""
    reference, prediction, labeler = sides
    n = len(reference)
    named = [
        ("CheXpert", convention),
        *((f"CheXpert[{name}]", name) for name in REPORTED if name != convention),
    ]
    scores = []
    for label, name in named:
        found = rates(reference, prediction, name)
        recipe = f"{name},labeler={labeler}"
        if label == "CheXpert":
            for what, value in zip(Rates._fields[:3], found[:3], strict=True):
                scores.append(Score(f"CheXpert {what}", value, n, recipe))
        scores.append(Score(label, found.f1, n, f"F1,{recipe}"))
    example = by_example(reference, prediction, CONVENTIONS["u0/example-14"])[:, 3]
    return Measured(
        tuple(scores),
        {"CheXpert": example.tolist()},
        {"chexpert": cells(reference, prediction).tolist()},
        {"chexpert_classes": class_rows(sides, convention)},
    )


def class_rows(sides: Sides, convention: str) -> list[Mapping[str, Any]]:
    """Return a row a label, as the paper's Table 3: rates, and how many references are positive.

    A rate is None where the convention has none for the label.
    """
    how = CONVENTIONS[convention]
    if how.average == "table3":
        found = table3(confusion(cells(sides.reference, sides.prediction)).sum(axis=0))
    else:
        whole = how._replace(
            labels=LABELS, uncertain="negative" if how.uncertain == "own" else how.uncertain
        )
        found = per_class(sides.reference, sides.prediction, whole)
    support = (sides.reference == 1).sum(axis=0)
    return [
        {
            "label": label,
            **{
                name: None if np.isnan(rate) else float(rate)
                for name, rate in zip(Rates._fields, row, strict=True)
            },
            "n": int(n),
        }
        for label, row, n in zip(LABELS, found, support, strict=True)
    ]
