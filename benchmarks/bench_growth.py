"""How time, memory and shards of a build grow from 1,000 studies to MIMIC-CXR's 227,835.

    make bench-growth                                           # all sizes, about 15 minutes
    python benchmarks/bench_growth.py --sizes 1000,5000         # quickly; nothing is written

Each size is a build of its own generated tree, as in bench_build.py. Writes results/growth.json and
results/growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_build import FULL, HERE, _tree, _watched

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, FULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--workers", type=int, default=2)
    scratch = Path(tempfile.gettempdir()) / "cot-builder-bench"
    parser.add_argument("--scratch", type=Path, default=scratch)
    options = parser.parse_args()
    rows = [
        _measured(int(size), options.scratch, options.workers) for size in options.sizes.split(",")
    ]
    print(_table(rows))
    if rows[-1]["studies"] == FULL:
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        content = {"machine": machine, "workers": options.workers, "sizes": rows}
        (HERE / "results" / "growth.json").write_text(json.dumps(content, indent=1) + "\n")
        _plot(rows, HERE / "results" / "growth.png")


def _measured(studies: int, scratch: Path, workers: int) -> dict[str, Any]:
    root, out = scratch / f"mimic-{studies}", scratch / f"out-{studies}"
    _tree(root, studies)
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("cot-builder")), "build", "--source", "mimic"]
    command += ["--root", str(root), "--out", str(out), "--workers", str(workers)]
    watched = _watched(command)
    before = sum(row["cpu_seconds"] for row in _done)  # getrusage adds all children up
    watched["cpu_seconds"] = round(watched["cpu_seconds"] - before, 1)
    _done.append(watched)
    shards = list(out.glob("*.parquet"))
    return {
        "studies": studies,
        **watched,
        "per_second": round(studies / watched["wall_seconds"]),
        "shards": len(shards),
        "parquet_mib": round(sum(path.stat().st_size for path in shards) / 2**20, 1),
    }


_done: list[dict[str, Any]] = []


def _table(rows: list[dict[str, Any]]) -> str:
    head = [*rows[0]]
    lines = [head, ["---:"] * len(head), *([f"{row[name]:,}" for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    sizes = [row["studies"] for row in rows]
    for axes, (name, unit) in zip(
        figure.subplots(1, 3),
        (("wall_seconds", "s"), ("peak_mib", "MiB, all processes"), ("per_second", "studies / s")),
        strict=True,
    ):
        axes.plot(sizes, [row[name] for row in rows], marker="o")
        axes.set(xscale="log", xlabel="studies", ylabel=unit)
        if name == "wall_seconds":
            axes.set(yscale="log")
        else:
            axes.set(ylim=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
