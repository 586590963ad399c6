"""Rewards over the steps of SVR in whole runs of the smoke recipe, one a seed.

Reads each run's metrics, which were logged at every step, and writes results/svr.json and
results/svr.png. Run: make bench-svr, or python benchmarks/bench_svr.py RUN...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from training.watching import read_metrics

RESULTS = Path(__file__).with_name("results")
REWARDS = {
    "format rate": "rewards/format_reward/mean",
    "IoU reward": "rewards/iou_reward/mean",
}
TOGETHER = 5  # steps to a point, as the recipe logs them


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    result = {}
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = dict(zip(REWARDS, figure.subplots(1, len(REWARDS)), strict=True))
    for run in runs:
        rows = [row for row in read_metrics(run) if row["stage"] == "svr" and "reward" in row]
        recipe = json.loads((run / "run.json").read_text())["recipe"]
        seed = f"seed {recipe['run']['seed']}"
        result[seed] = {"svr": recipe["svr"]} | {
            name: [round(row[key], 4) for row in rows] for name, key in REWARDS.items()
        }
        for name, axes in panels.items():
            steps = range(0, len(rows), TOGETHER)
            means = [fmean(result[seed][name][step : step + TOGETHER]) for step in steps]
            axes.plot([step + TOGETHER for step in steps], means, linewidth=1.2, label=seed)
            axes.set(title=f"{name}, mean of {TOGETHER} steps", xlabel="step", ylim=(0, 1))
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        for name in REWARDS:
            values = result[seed][name]
            print(f"{seed}: {name} {fmean(values[:10]):.2f} → {fmean(values[-10:]):.2f}")
    (RESULTS / "svr.json").write_text(json.dumps(result) + "\n")
    figure.savefig(RESULTS / "svr.png", dpi=100)


if __name__ == "__main__":
    main()
