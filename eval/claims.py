"""Claims of improvement held against the numbers they are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from cot_builder.show import plain_table
from eval.score import Scored
from eval.tables import FULL, published


class Checked(NamedTuple):
    """A claim, where and of which metrics it was checked, the gain in percent, and the verdict.

    `holds` is None where a number is missing.
    """

    claim: str
    row: str
    table: str
    metric: str
    value: float
    against: str
    best_other: float
    gain: float
    holds: bool | None


def check_claims(runs: Sequence[Scored] = (), *, corpus: str = "mimic") -> list[Checked]:
    """Check the paper's claims on its own tables, then on our runs beside the published rows.

    A gain is relative, and counts when it rounds to the claimed percent.
    """
    paper = published()
    found = [c for claim in paper["claim"] for table in claim["tables"]
             for c in _check(claim, table, FULL, _rows(paper[table]))]  # fmt: skip
    comparison = "table1" if corpus == "mimic" else "table2"
    for run in runs:
        for claim in paper["claim"]:
            if comparison in claim["tables"]:
                ours = {c: run.value(c) for c in paper[comparison]["columns"] if c != "GEMA-Score"}
                rows = {**_rows(paper[comparison]), run.name: ours}
                rows.pop(FULL, None) if run.name != FULL else None
                found += _check(claim, comparison, run.name, rows)
    return found


def _rows(table: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    return {
        name: dict(zip(table["columns"], numbers, strict=True))
        for name, numbers in table["rows"].items()
    }


def _check(
    claim: Mapping[str, Any], table: str, row: str, rows: Mapping[str, Mapping[str, float | None]]
) -> Iterator[Checked]:
    checked = []
    for metric in claim["metrics"]:
        others = {
            name: number
            for name, numbers in rows.items()
            if name != row and claim.get("over") in (None, name)
            if (number := numbers.get(metric)) is not None and not math.isnan(number)
        }
        value = rows[row].get(metric)
        if value is None or math.isnan(value) or not others:
            yield Checked(claim["text"], row, table, metric, math.nan, "", math.nan, math.nan, None)
            continue
        best = max(others, key=others.__getitem__)
        gain = 100 * (value / others[best] - 1)
        holds = gain >= 0 if claim["gain"] == 0 else round(gain) >= claim["gain"]
        checked.append(
            Checked(claim["text"], row, table, metric, value, best, others[best], gain, holds)
        )
    if not claim.get("mean"):
        yield from checked
    elif checked:
        gain = sum(c.gain for c in checked) / len(checked)
        names = ", ".join(f"{c.metric} {c.gain:+.1f} %" for c in checked)
        yield checked[0]._replace(
            metric=f"mean of {names}", value=math.nan, best_other=math.nan, gain=gain,
            against=claim.get("over") or "the best other",
            holds=round(gain) >= claim["gain"],
        )  # fmt: skip


def claims_table(checked: Sequence[Checked]) -> Table:
    """Draw claims with their verdicts."""
    table = plain_table("Claims of improvement")
    for column in ("claim", "row", "table", "metric", "gain", "over", "holds"):
        table.add_column(column, justify="right" if column == "gain" else "left")
    verdicts = {True: "yes", False: "no", None: "a number is missing"}
    for c in checked:
        gain = "–" if math.isnan(c.gain) else f"{c.gain:+.1f} %"
        cells = (c.claim, c.row, c.table, c.metric, gain, c.against, verdicts[c.holds])
        table.add_row(*map(Text, cells))
    return table
