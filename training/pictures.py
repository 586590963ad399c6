"""Pictures of a run: its curves, and its sample answers with their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cot_builder.boxes import XYXY, Size
from training.watching import Sample, found_boxes, read_metrics, wrapped

# Okabe and Ito's palette, as in eval.plots; boxes are green and red as in the paper's Figure 6.
_BLUE: Final = "#0072B2"
_ACROSS: Final = 4  # curves side by side
_TRUE, _FOUND = "#009E73", "#D55E00"
# What is drawn of a stage where it was logged, by the trainer's name for it.
_CURVES: Final = (
    ("loss", "loss"),
    ("mean_token_accuracy", "token accuracy"),
    ("reward", "reward"),
    ("rewards/", ""),
    ("kl", "KL to the MCL model"),
    ("entropy", "entropy"),
    ("completions/mean_length", "tokens an answer"),
    ("learning_rate", "learning rate"),
)


def draw_curves(folder: Path) -> Path | None:
    """Draw a run's metrics, stage below stage, as `curves.png`; None when nothing was logged."""
    rows = list(read_metrics(folder))
    panels: list[tuple[str, list[tuple[int, float]]]] = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        series = _series([row for row in rows if row["stage"] == stage])
        panels += [(f"{stage}: {name}", points) for name, points in series.items()]
        panels += [("", [])] * (-len(panels) % _ACROSS)  # the next stage begins a new row
    if not panels:
        return None
    high = len(panels) // _ACROSS
    figure = Figure(figsize=(3.2 * _ACROSS, 2.4 * high), layout="constrained")
    grid = figure.subplots(high, _ACROSS, squeeze=False)
    for axes, (title, points) in zip(grid.flat, panels, strict=True):
        if not points:
            axes.set_axis_off()
            continue
        _curve(axes, points)
        axes.set_title(title, fontsize=9)
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _series(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for prefix, words in _CURVES:
        for key in dict.fromkeys(key for row in rows for key in row):
            mean = key.startswith(prefix) and key.endswith("/mean") and prefix == "rewards/"
            if key == prefix or mean:
                points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
                found[words or key.split("/")[1]] = points
    return {name: points for name, points in found.items() if points}


def _curve(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=_BLUE, linewidth=1.2, marker="." if len(points) < 30 else None)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.yaxis.get_offset_text().set_fontsize(7)
    axes.set_xlabel("step", fontsize=7)


def draw_samples(path: Path, title: str, samples: Sequence[Sample], said: Sequence[str]) -> None:
    """Draw images with true boxes green and found ones red, the answer below each."""
    below = [wrapped(text).replace("$", r"\$") or "(nothing)" for text in said]
    # A square an image, and what its text needs.
    high = 4.4 + 0.14 * max(text.count("\n") + 1 for text in below)
    figure = Figure(figsize=(4 * len(samples), high), layout="constrained")
    figure.suptitle(f"{title}: true boxes green, found ones red", fontsize=9)
    grid = figure.subplots(1, len(samples), squeeze=False)[0]
    for axes, sample, text, words in zip(grid, samples, said, below, strict=True):
        with Image.open(sample.image) as image:
            size = sample.size or Size(*image.size)
            axes.imshow(image.convert("L"), cmap="gray", extent=(0, size.width, size.height, 0))
        _boxes(axes, sample.boxes, _TRUE)
        _boxes(axes, found_boxes(sample, text), _FOUND)
        axes.set_xlim(0, size.width)
        axes.set_ylim(size.height, 0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(words, fontsize=7, loc="left")
    figure.savefig(path, dpi=100)


def _boxes(axes: Axes, boxes: Sequence[XYXY], colour: str) -> None:
    for x1, y1, x2, y2 in boxes:
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2)
        )
