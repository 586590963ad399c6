"""The paper's Fig. 5: bars by GREEN category and by CheXpert class, and radars of the ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.score import Scored

# Okabe and Ito's palette: told apart by colour-blind readers.
_COLOURS: Final = (
    "#56B4E9",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#0072B2",
    "#F0E442",
    "#555555",
)


class Panel(NamedTuple):
    """What one figure shows: a value a category and run, and which categories are better low."""

    name: str
    title: str
    axis: str
    categories: tuple[str, ...]
    values: Mapping[str, Sequence[float]]
    lower: frozenset[str] = frozenset()


def panels(runs: Sequence[Scored]) -> list[Panel]:
    """Return the panels for which the runs have numbers."""
    found = []
    for name, title, axis, key, label, value in (
        ("green", "GREEN: errors and matched findings", "mean count a report",
         "green_categories", "category", "mean"),
        ("chexpert", "CheXpert F1 by class", "F1", "chexpert_classes", "label", "f1"),
    ):  # fmt: skip
        rows = {run.name: run.tables[key] for run in runs if run.tables.get(key)}
        if rows:
            first = next(iter(rows.values()))
            numbers = {
                f"{run.name} (n = {run.counts['pairs']:,})": [
                    float("nan") if row[value] is None else row[value] for row in rows[run.name]
                ]
                for run in runs
                if run.name in rows
            }
            lower = frozenset(r[label] for r in first if r.get("lower_is_better"))
            categories = tuple(str(r[label]) for r in first)
            found.append(Panel(name, title, axis, categories, numbers, lower))
    return found


def write_figures(runs: Sequence[Scored], folder: Path) -> list[Path]:
    """Draw every panel into a folder, as PNG, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for panel in panels(runs):
        figure = Figure(figsize=(15, 6.5), layout="constrained")
        axes = figure.subplot_mosaic(
            [["bars", "radar"]],
            width_ratios=(1.9, 1),
            per_subplot_kw={"radar": {"projection": "polar"}},
        )
        draw_bars(axes["bars"], panel)
        draw_radar(axes["radar"], panel)
        figure.suptitle(panel.title, fontweight="bold")
        figure.legend(*axes["bars"].get_legend_handles_labels(), loc="outside lower center",
                      ncols=min(4, len(panel.values)), frameon=False)  # fmt: skip
        files.append(folder / f"fig5_{panel.name}.png")
        figure.savefig(files[-1], dpi=150)
    return files


def draw_bars(axes: Axes, panel: Panel) -> None:
    """Bars a category, one a run; a black line marks the best of each category."""
    places = np.arange(len(panel.categories))
    width = 0.8 / len(panel.values)
    for number, (run, values) in enumerate(panel.values.items()):
        offset = (number - (len(panel.values) - 1) / 2) * width
        colour = _COLOURS[number % len(_COLOURS)]
        axes.bar(places + offset, values, width, label=run, color=colour)
    for place, best in zip(places, _best(panel), strict=True):
        axes.hlines(best, place - 0.4, place + 0.4, color="black", linewidth=1.5)
    names = [f"{c} ↓" if c in panel.lower else c for c in panel.categories]
    axes.set_xticks(places, names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_ylabel(panel.axis + (" (↓ lower is better)" if panel.lower else ""))
    axes.spines[["top", "right"]].set_visible(False)


def draw_radar(axes: Any, panel: Panel) -> None:
    """Each run as a polygon; on every axis the best run is at 1, whether low or high is better."""
    angles = np.linspace(0, 2 * math.pi, len(panel.categories), endpoint=False)
    best = _best(panel)
    for number, values in enumerate(panel.values.values()):
        shares = [
            _relative(value, top, low=category in panel.lower)
            for value, top, category in zip(values, best, panel.categories, strict=True)
        ]
        colour = _COLOURS[number % len(_COLOURS)]
        around = [*angles, angles[0]]
        axes.plot(around, [*shares, shares[0]], color=colour, linewidth=2)
        axes.fill(around, [*shares, shares[0]], color=colour, alpha=0.1)
    axes.set_xticks(angles, [_short(c) for c in panel.categories], fontsize=7)
    axes.tick_params(axis="x", pad=20)
    axes.set_rlabel_position(180 / len(panel.categories))  # between the first two axes
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0.5, 1], ["0.5", "best"], fontsize=7, color="#666666")


def _best(panel: Panel) -> list[float]:
    table = np.array(list(panel.values.values()), dtype=float)
    return [
        float("nan")
        if np.isnan(column).all()
        else float(np.nanmin(column) if category in panel.lower else np.nanmax(column))
        for category, column in zip(panel.categories, table.T, strict=True)
    ]


def _relative(value: float, best: float, *, low: bool) -> float:
    if math.isnan(value) or math.isnan(best):
        return 0.0
    if low:
        return 1.0 if value == best else (best + 1e-9) / (value + 1e-9)
    return value / best if best else 1.0


def _short(name: str) -> Any:
    return name.replace(" ", "\n", 1) if len(name) > 10 else name
