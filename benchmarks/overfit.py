"""Eight examples: MCL nearly to the end, then SVR lifts format and IoU from where that stopped.

The examples are eight of the demo corpus's images with their boxes, one sentence a report. Writes
results/overfit.json and results/overfit.png. Run: python benchmarks/overfit.py
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from cot_builder.boxes import Frame, Pixels
from cot_builder.images import Scaling
from cot_builder.pipeline import BuildOptions, build
from cot_builder.sources import SourceOptions
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks
from training.recipe import load_recipe
from training.run import RunOptions, train
from training.watching import read_metrics

RESULTS = Path(__file__).with_name("results")
CHANGES = (
    "mcl.learning_rate=5e-3", "mcl.batch_size=8", "mcl.epochs=99", "mcl.max_steps=150",
    "svr.reward=paper", "svr.batch_size=8", "svr.generations=4", "svr.completion=56",
    "svr.learning_rate=5e-4", "svr.schedule=constant", "svr.epochs=99", "svr.max_steps=40",
    "run.sample_every=9999", "run.save_every=9999", "run.log_every=1",
)  # fmt: skip


def dataset(folder: Path) -> str:
    """Build eight studies of the demo corpus, each one phrase with its box."""
    corpus = folder / "corpus"
    (corpus / "images").mkdir(parents=True)
    shipped = map(json.loads, (CORPUS / "studies.jsonl").read_text().splitlines())
    studies = []
    for study in [study for study in shipped if study["images"]][:8]:
        (image,) = study["images"]
        shutil.copy(CORPUS / image["path"], corpus / image["path"])
        box = image["boxes"][0] | {"phrase": image["boxes"][0]["phrase"].capitalize()}
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


def main() -> None:
    started = time.monotonic()
    with TemporaryDirectory() as scratch:
        here = Path(scratch)
        train(
            RunOptions(
                stages=("mcl", "svr"), recipe=load_recipe("smoke", CHANGES),
                datasets=(dataset(here),), out=here / "run", banks=load_banks(),
            )
        )  # fmt: skip
        rows = list(read_metrics(here / "run"))
    series = {
        "MCL: loss": points(rows, "mcl", "loss"),
        "SVR: format rate": points(rows, "svr", "rewards/format_reward/mean"),
        "SVR: IoU reward": points(rows, "svr", "rewards/iou_reward/mean"),
    }
    result = {
        "examples": 8,
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
