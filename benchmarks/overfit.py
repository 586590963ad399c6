"""Eight examples: MCL learns the format and roughly where boxes lie, SVR brings them nearer.

The examples are eight of the demo corpus's images with one box each. MCL has eight copies of each,
the box's sides moved at random by up to a quarter of it, so that there is something left to learn;
SVR's rewards know the true box. Writes results/overfit.json and results/overfit.png.
Run: OMP_NUM_THREADS=1 python benchmarks/overfit.py
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from cot_builder.boxes import Frame, Pixels
from cot_builder.images import Scaling
from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks
from training.recipe import load_recipe
from training.run import RunOptions, train
from training.watching import read_metrics

RESULTS = Path(__file__).with_name("results")
COPIES = 8
MOVED = 0.25  # of a box's width or height, either way
SIDE = 512  # of the corpus's images
CHANGES = (
    "mcl.learning_rate=5e-3", "mcl.batch_size=8", "mcl.epochs=999", "mcl.max_steps=1200",
    "mcl.warmup=0", "svr.warmup=0",
    "svr.reward=paper", "svr.batch_size=8", "svr.generations=8", "svr.completion=72",
    "svr.learning_rate=1e-3", "svr.schedule=linear", "svr.beta=0.0", "svr.temperature=0.5",
    "svr.epochs=999", "svr.max_steps=80",
    "run.sample_every=9999", "run.save_every=9999", "run.log_every=1",
)  # fmt: skip


def dataset(folder: Path, chance: random.Random | None = None) -> str:
    """Build eight studies of the demo corpus, each one phrase with its box, moved or not."""
    corpus = folder / "corpus"
    (corpus / "images").mkdir(parents=True)
    shipped = map(json.loads, (CORPUS / "studies.jsonl").read_text().splitlines())
    studies = []
    for study in [study for study in shipped if study["images"]][:8]:
        (image,) = study["images"]
        shutil.copy(CORPUS / image["path"], corpus / image["path"])
        box = image["boxes"][0] | {"phrase": image["boxes"][0]["phrase"].capitalize()}
        if chance:
            box["xyxy"] = moved(box["xyxy"], chance)
        studies.append(
            study | {
                "split": "train", "report": f"FINDINGS: {box['phrase']}.",
                "images": [image | {"boxes": [box]}],
            }
        )  # fmt: skip
    (corpus / "studies.jsonl").write_text("\n".join(map(json.dumps, studies)))
    build(
        BuildOptions(
            source="demo", release=SourceOptions(banks=load_banks(), root=corpus),
            out=folder / "dataset", frame=Frame("norm1000", Pixels(), 0.25), scaling=Scaling(0.25),
        )
    )  # fmt: skip
    return str(folder / "dataset")


def moved(xyxy: Sequence[float], chance: random.Random) -> list[float]:
    """Move each side of a box by itself, within the image."""
    x0, y0, x1, y1 = xyxy
    lengths = (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    sides = (
        side + chance.uniform(-MOVED, MOVED) * n for side, n in zip(xyxy, lengths, strict=True)
    )
    return [round(min(max(side, 0), SIDE - 1), 2) for side in sides]


def main() -> None:
    started = time.monotonic()
    with TemporaryDirectory() as scratch:
        here, chance = Path(scratch), random.Random(0)
        options = partial(
            RunOptions, recipe=load_recipe("smoke", CHANGES), out=here / "run", banks=load_banks()
        )
        near = tuple(dataset(here / f"near-{copy}", chance) for copy in range(COPIES))
        train(options(stages=("mcl",), datasets=near))
        train(options(stages=("svr",), datasets=(dataset(here / "true"),)))
        rows = list(read_metrics(here / "run"))
    series = {
        "MCL: loss": points(rows, "mcl", "loss"),
        "SVR: format rate": points(rows, "svr", "rewards/format_reward/mean"),
        "SVR: IoU reward": points(rows, "svr", "rewards/iou_reward/mean"),
    }
    result = {
        "examples": 8,
        "seed": 0,
        "changes": CHANGES,
        "seconds": round(time.monotonic() - started),
        **{name: [round(value, 4) for _, value in values] for name, values in series.items()},
    }
    (RESULTS / "overfit.json").write_text(json.dumps(result, indent=1) + "\n")
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 3), series.items(), strict=True):
        axes.plot(*zip(*values, strict=True), color="#0072B2", linewidth=1.2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "overfit.png", dpi=110)


def points(rows: list[dict[str, Any]], stage: str, key: str) -> list[tuple[int, float]]:
    return [
        (row["step"], row[key])
        for row in rows
        if row["stage"] == stage and row.get(key) is not None
    ]


if __name__ == "__main__":
    main()
