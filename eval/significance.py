"""Is one run better than another: Wilcoxon on studies, paired bootstrap, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from cot_builder.errors import UserError
from eval.chexpert import confusion, table3, table3_mean
from eval.text import bleu

Array = np.ndarray[Any, Any]
_ROUND: Final = 12  # differences that only rounding made are ties
_CHUNK: Final = 100


class Wilcoxon(NamedTuple):
    """A one-tailed signed-rank test: `n` pairs, `nonzero` of which differ; p is None for none."""

    n: int
    nonzero: int
    statistic: float | None
    p: float | None


class Interval(NamedTuple):
    """A difference (other minus one) with the 95 % interval of its paired bootstrap, over `n`."""

    difference: float
    low: float
    high: float
    n: int


def wilcoxon(lower: Sequence[float | None], higher: Sequence[float | None]) -> Wilcoxon:
    """Test whether the first run's values are lower than the second's, study by study.

    As in the paper: one-tailed, ties dropped. Pairs where either side has no value are left out,
    and n says how many are left.

    >>> wilcoxon([1, 2, 3, 4, 5], [2, 4, 6, 8, 10]).p
    0.03125
    """
    pairs = [(a, b) for a, b in zip(lower, higher, strict=True) if _is_number(a, b)]
    off = np.round([float(a or 0) - float(b or 0) for a, b in pairs], _ROUND)
    nonzero = int(np.count_nonzero(off))
    if not nonzero:
        return Wilcoxon(len(pairs), 0, None, None)
    found = stats.wilcoxon(off, alternative="less", zero_method="wilcox")
    return Wilcoxon(len(pairs), nonzero, float(found.statistic), float(found.pvalue))


def _is_number(*values: float | None) -> bool:
    return all(value is not None and not math.isnan(value) for value in values)


def stars(p: float | None) -> str:
    """Return the paper's stars.

    >>> stars(0.03), stars(0.0099), stars(0.05), stars(None)
    ('*', '**', '', '')
    """
    return "" if p is None or p >= 0.05 else "**" if p < 0.01 else "*"


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct p values of one family for how many they are (Holm, 1979); None stays None.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    worst = 0.0
    for rank, (p, place) in enumerate(order):
        worst = max(worst, min(1.0, p * (len(order) - rank)))
        corrected[place] = worst
    return corrected


# -- the bootstrap: a corpus score is computed anew of the counts of each resample


def _bleu(order: int) -> Callable[[Array], Array]:
    return lambda sums: bleu(sums)[..., order - 1]


def _table3(sums: Array) -> Array:
    return table3_mean(table3(sums.reshape(-1, 14, 4, 4)))[..., 3]


def _counted(name: str, per_study: pd.DataFrame) -> tuple[Array, Callable[[Array], Array]]:
    """Return what adds up over studies for a score, and how the score comes of its sums."""
    if name.startswith("BLEU-") and "counts/bleu" in per_study:
        return np.array(per_study["counts/bleu"].tolist(), dtype=float), _bleu(int(name[-1]))
    if name == "CheXpert" and "counts/chexpert" in per_study:
        tables = confusion(np.array(per_study["counts/chexpert"].tolist(), dtype=int))
        return tables.reshape(len(tables), -1).astype(float), _table3
    values = per_study[name].to_numpy(dtype=float)
    there = ~np.isnan(values)
    parts = np.stack([np.where(there, values, 0), there], axis=1)
    return parts, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1)


def bootstrap(
    one: pd.DataFrame, other: pd.DataFrame, name: str, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the difference of a score between two runs on the same studies, with its interval.

    BLEU and CheXpert (Table 3's F1) are computed anew in each resample; the others are means of
    studies, METEOR of its segments.
    """
    draw = np.random.default_rng(seed)
    first, combine = _counted(name, one)
    second, _ = _counted(name, other)
    n = len(first)
    found = float(combine(second.sum(axis=0, keepdims=True))[0]) - float(
        combine(first.sum(axis=0, keepdims=True))[0]
    )
    differences = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = draw.multinomial(n, np.full(n, 1 / n), size=size).astype(float)
        differences.append(combine(weights @ second) - combine(weights @ first))
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return Interval(found, float(low), float(high), n)


class Compared(NamedTuple):
    """One score of a run held against the full model's; `corrected` is p after Holm."""

    run: str
    score: str
    test: Wilcoxon
    corrected: float | None
    interval: Interval


def compare_runs(
    runs: Mapping[str, pd.DataFrame], full: str, names: Sequence[str], *, resamples: int = 1000
) -> list[Compared]:
    """Test every run against the full one on the studies that both have, Holm over all tests.

    UserError for runs that share no study.
    """
    rows: list[tuple[str, str, Wilcoxon, Interval]] = []
    for run, table in runs.items():
        if run == full:
            continue
        shared = table.merge(runs[full][["study_id"]], on="study_id")["study_id"]
        if shared.empty:
            raise UserError(f"runs {run} and {full} share no study: they cannot be compared")
        one, other = (
            t.set_index("study_id").loc[shared].reset_index() for t in (table, runs[full])
        )
        for name in names:
            if name in one and name in other:
                test = wilcoxon(one[name].tolist(), other[name].tolist())
                rows.append((run, name, test, bootstrap(one, other, name, resamples=resamples)))
    corrected = holm([test.p for _, _, test, _ in rows])
    return [
        Compared(run, name, test, p, interval)
        for (run, name, test, interval), p in zip(rows, corrected, strict=True)
    ]
