"""The plot of `cot-builder review agree`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from annotation.agreement import Measured

# Okabe and Ito's palette, and a shape each: told apart in grey.
_MARKS: Final = {
    "fleiss": ("#0072B2", "o", "readers, Fleiss' kappa"),
    "alpha": ("#E69F00", "D", "readers, Krippendorff's alpha"),
    "machine_cohen": ("#D55E00", "x", "readers and machine, Cohen's kappa"),
}


def write_plot(measured: Measured, path: Path) -> None:
    """Draw the coefficients by label and assertion, with their n, as PNG."""
    table = measured.kappas
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    places = range(len(table))
    for name, (colour, marker, said) in _MARKS.items():
        axes.scatter(table[name], places, color=colour, marker=marker, label=said, zorder=3)
    units = zip(table.index, table["units"], strict=True)
    axes.set_yticks(places, [f"{name} (n={n:,})" for name, n in units])
    axes.invert_yaxis()
    axes.set_xlim(min(-0.05, table[list(_MARKS)].min().min() - 0.05), 1.05)
    axes.axvline(0, color="#999999", linewidth=1)
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel("chance-corrected agreement; n: units that two readers or more read")
    axes.set_title("Agreement by label and by assertion")
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
