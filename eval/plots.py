"""The pictures of `cot-builder stats --plots`: one PNG a question, titled with dataset and n."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cot_builder.records import Row
from cot_builder.vocabulary import LABELS, REGIONS
from eval.dataset_statistics import DatasetStatistics

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
_COLOURS: Final = {"positive": "#D55E00", "uncertain": "#F0C242", "negative": "#0072B2"}


def write_plots(statistics: DatasetStatistics, folder: Path) -> tuple[Path, ...]:
    """Draw every plot of `PLOTS` into a folder, as PNG, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(_write(plot, statistics, folder / f"{name}.png") for name, plot in PLOTS.items())


def metrics_png(rows: Iterable[Row]) -> bytes:
    """Draw what a training run has logged as PNG, a row a stage: each of `_LOGGED` that it has."""
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        panels = drawn.setdefault(row["stage"], {})
        for key in _LOGGED:
            if isinstance(row.get(key), int | float):
                panels.setdefault(key, []).append((row["step"], row[key]))
    wide = max(1, *map(len, drawn.values()))
    figure = Figure(figsize=(3.2 * wide, 2.6 * len(drawn)), layout="constrained")
    grid = figure.subplots(len(drawn), wide, squeeze=False)
    for axes_row, (stage, panels) in zip(grid, drawn.items(), strict=True):
        for axes in axes_row[len(panels) :]:
            axes.set_axis_off()
        for axes, (key, points) in zip(axes_row, panels.items(), strict=False):
            axes.plot(*zip(*points, strict=True), color=_BARS["color"], linewidth=1.2, marker=".")
            axes.set_title(f"{stage}: {key}".replace("$", r"\$"), fontsize=9)
            axes.set_xlabel("step", fontsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def plot_flow(axes: Axes, statistics: DatasetStatistics) -> None:
    """What became of the reports, and the parts of a chain."""
    chains, unmapped = statistics.chains.total(), statistics.unmapped.total()
    steps = (
        f"{statistics.total:,}\nreports",
        f"{statistics.sentences:,}\nsentences",
        f"{statistics.bearing:,}\nbear a finding",
        f"{chains:,} chains\n{unmapped:,} unmapped",
    )
    parts = ("finding\nthe report's words", "concepts\nthat lead to it", "disease\none of 14",
             "anatomy\nsome of 12 regions")  # fmt: skip
    for height, row, colour in ((1.0, steps, "#E3F0F8"), (0.0, parts, "#FFF4D6")):
        for place, text in enumerate(row):
            box = {"boxstyle": "square,pad=0.5", "facecolor": colour, "edgecolor": "#666666"}
            axes.text(place, height, text, bbox=box, ha="center", va="center", fontsize=10.5)
            if place:
                ends = (place - 0.36, height), (place - 0.64, height)
                axes.annotate("", *ends, arrowprops=_ARROW)
    axes.annotate("", (0.35, 0.3), (2.65, 0.7), arrowprops={**_ARROW, "linestyle": "--"})
    axes.text(1.5, 0.5, " each chain ", ha="center", va="center", backgroundcolor="white")
    axes.set_title("From reports to chains: finding → concepts → disease → anatomy")
    axes.set_xlim(-0.5, 3.5)
    axes.set_ylim(-0.4, 1.4)
    axes.axis("off")


def plot_labels(axes: Axes, statistics: DatasetStatistics) -> None:
    """Chains by label and assertion."""
    _stacked_bars(axes, LABELS, statistics.chains)
    axes.set_title(f"Chains by label and assertion ({statistics.chains.total():,} chains)")
    axes.set_xlabel("chains")


def plot_regions(axes: Axes, statistics: DatasetStatistics) -> None:
    """Chains by region and assertion; a chain counts in each of its regions."""
    _stacked_bars(axes, REGIONS, statistics.regions)
    axes.set_title(f"Chains by region and assertion ({statistics.regions.total():,} places)")
    axes.set_xlabel("chains (one with two regions counts in both)")


def plot_cooccurrence(axes: Axes, statistics: DatasetStatistics) -> None:
    """Of the studies with the row's label positive, the share with the column's positive too."""
    counts = np.array([[statistics.pairs[row, column] for column in LABELS] for row in LABELS])
    totals = counts.diagonal()[:, None]
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    np.fill_diagonal(shares, np.nan)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share) and share > 0:
            colour = "white" if share > 0.5 else "#222222"
            axes.text(
                column, row, _percent(share), ha="center", va="center", fontsize=7.5, color=colour
            )
    axes.set_facecolor("#eeeeee")
    axes.set_xticks(range(len(LABELS)), LABELS, rotation=45, ha="right", rotation_mode="anchor")
    names = [f"{label} ({n:,})" for label, n in zip(LABELS, counts.diagonal(), strict=True)]
    axes.set_yticks(range(len(LABELS)), names)
    axes.set_xticks(np.arange(len(LABELS)) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(LABELS)) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_title("Labels found together: % of the row's positive studies")


def plot_coverage(axes: Axes, statistics: DatasetStatistics) -> None:
    """Share of each study's finding-bearing sentences that gave a chain or an unmapped finding."""
    bearing = {key: n for key, n in statistics.coverage.items() if key[0]}
    shares = [100 * covered / bearing_sentences for bearing_sentences, covered in bearing]
    axes.hist(shares, bins=list(range(0, 101, 5)), weights=list(bearing.values()), **_BARS)
    share = 100 * statistics.covered / statistics.bearing if statistics.bearing else np.nan
    axes.set_title(
        f"Coverage: {share:.1f} % of {statistics.bearing:,} finding-bearing sentences "
        f"gave a chain\n("
        f"{statistics.total - sum(bearing.values()):,} studies have no such sentence)"
    )
    axes.set_xlabel("% of a study's finding-bearing sentences")
    axes.set_ylabel("studies")
    _count(axes.yaxis)
    axes.set_xlim(0, 100)


def plot_length(axes: Axes, statistics: DatasetStatistics) -> None:
    """Words of the decomposed sections, a study each."""
    words = np.array(statistics.words)
    # The longest hundredth would squeeze the rest; it is counted in the last bar.
    longest = max(int(np.percentile(words, 99)), 10)
    # As many bars as studies can fill, each as wide as some whole number of words.
    shortest = int(words.min())
    step = math.ceil((longest - shortest + 1) / min(40, max(8, len(words) // 2)))
    starts = range(shortest, longest + step + 1, step)
    axes.hist(np.minimum(words, longest), bins=[start - 0.5 for start in starts], **_BARS)
    median = float(np.median(words))
    axes.axvline(median, color="#222222", linewidth=1, linestyle="--")
    axes.annotate(
        f"median {median:g}",
        (median, 1),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
        va="top",
    )
    axes.margins(y=0.12)  # room for these words above the bars
    axes.set_title(f"Report length (the last bar holds all of {starts[-2]:,} words or more)")
    axes.set_xlabel("words in the decomposed sections")
    axes.set_ylabel("studies")
    _count(axes.yaxis)


_LOGGED: Final = ("loss", "mean_token_accuracy", "reward", "kl", "entropy", "learning_rate")
# To add one: write a function that draws on the axes it is given, and name its file here.
PLOTS: Final[Mapping[str, Callable[[Axes, DatasetStatistics], None]]] = {
    "flow": plot_flow,
    "labels": plot_labels,
    "regions": plot_regions,
    "cooccurrence": plot_cooccurrence,
    "coverage": plot_coverage,
    "length": plot_length,
}
_HEIGHTS: Final[Mapping[Any, float]] = {plot_flow: 3.4, plot_cooccurrence: 8}
_ARROW: Final[dict[str, Any]] = {"arrowstyle": "->", "color": "#444444"}
_BARS: Final[Mapping[str, Any]] = {"color": "#0072B2", "edgecolor": "white"}


def _write(
    plot: Callable[[Axes, DatasetStatistics], None], statistics: DatasetStatistics, path: Path
) -> Path:
    figure = Figure(figsize=(9, _HEIGHTS.get(plot, 5.5)), layout="constrained")
    axes = figure.add_subplot()
    plot(axes, statistics)
    axes.title.set_fontweight("bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(statistics.caption, fontsize=8, color="#666666", x=0.99, ha="right")
    figure.savefig(path, dpi=150)
    return path


def _stacked_bars(axes: Axes, names: Sequence[str], counts: Mapping[tuple[str, str], int]) -> None:
    left = np.zeros(len(names))
    for assertion, colour in _COLOURS.items():
        widths = np.array([counts[name, assertion] for name in names])
        axes.barh(names, widths, left=left, color=colour, label=assertion, height=0.75)
        left += widths
    _write_totals(axes, left)
    axes.set_xlim(0, max(left.max(), 1) * 1.1)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _count(axes.xaxis)
    # Outside, where no bar can run into it; the caption takes the other corner.
    axes.figure.legend(frameon=False, ncols=3, loc="outside lower left")


def _count(axis: Axis) -> None:
    """Let an axis count: whole numbers only, of which none comes twice."""
    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter("{x:,.0f}")


def _write_totals(axes: Axes, totals: Iterable[float]) -> None:
    for place, total in enumerate(totals):
        axes.annotate(
            f"{total:,.0f}",
            (total, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#444444",
        )


def _percent(share: float) -> str:
    return "<1" if share < 0.005 else f"{100 * share:.0f}"
