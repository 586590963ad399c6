"""10,000 tasks pushed to a real Label Studio and pulled back: seconds, and memory of both sides.

    make bench-review                                   # all of them
    python benchmarks/bench_review.py --tasks 500       # quickly; nothing is written to results/

The studies are those of the demo corpus under new ids. Annotations are made in bulk, in the
server's database: 10,000 through its API would measure Label Studio alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from annotation import studio
from annotation.batch import Images, checked, review_batch
from annotation.interface import interface
from annotation.log import TASKS, append, read_reviews, read_tasks, record
from annotation.server import VERSION, serving
from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks

RESULTS = Path(__file__).with_name("results") / "review.json"
FULL = 10_000
# What `predictions_to_annotations` would make, with a verdict, by the first user.
ANSWER_ALL = """
INSERT INTO task_completion (task_id, project_id, completed_by_id, result, was_cancelled,
    ground_truth, created_at, updated_at, lead_time, bulk_created, result_count, unique_id)
SELECT task_id, project_id, 1, json_insert(result, '$[#]', json(?)), 0, 0,
    '2026-01-01 00:00:00', '2026-01-01 00:00:00', 1.0, 1, 1, lower(hex(randomblob(16)))
FROM prediction WHERE project_id = ?
"""
VERDICT = {
    "id": "v", "from_name": "verdict", "to_name": "report", "type": "choices",
    "value": {"choices": ["accept"]},
}  # fmt: skip


@contextmanager
def timed(times: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[what] = round(time.perf_counter() - start, 1)
    print(f"{what}: {times[what]} s", flush=True)


def peak_mib(pid: int) -> int:
    """The most memory that a process ever had, as Linux tells it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=FULL)
    parser.add_argument("--port", type=int, default=8117)
    given = parser.parse_args()
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        result = run(Path(scratch), given.tasks, given.port, times)
    print(json.dumps(result, indent=2))
    if given.tasks == FULL:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def run(scratch: Path, number: int, port: int, times: dict[str, float]) -> dict[str, Any]:
    dataset, log, folder = scratch / "demo", scratch / "log", scratch / "server"
    banks = load_banks()
    build(BuildOptions(source="demo", release=SourceOptions(banks=banks), out=dataset))
    demo = review_batch(dataset)
    tasks = [replace(demo[n % len(demo)], study_id=f"copy-{n}") for n in range(number)]
    images = Images.of(dataset, CORPUS, None)
    with serving(folder, CORPUS, port=port) as (account, process):
        server = studio.connect(account.url, account.token)
        project = studio.open_project(server, "bench", interface(banks))
        requests = {task.key: partial(task.request, images.url) for task in tasks}
        with timed(times, "check every task"):
            checked(tasks)
        with timed(times, "keep what is sent"):
            append(log / TASKS, (task.to_row() for task in tasks), known=set())
        version = tasks[0].model_version
        with timed(times, "push"):
            sent = studio.push(server, project, requests, model_version=version)
        with timed(times, "push again, nothing to send"):
            again = studio.push(server, project, requests, model_version=version)
        with sqlite3.connect(folder / "label_studio.sqlite3") as database:
            database.execute(ANSWER_ALL, (json.dumps(VERDICT), project))
        with timed(times, "pull"):
            exported = studio.pull(server, project)
            new, rejects = record(log, exported, read_tasks(log))
        with timed(times, "read the reviews"):
            reviews, unreadable = read_reviews(log)
        peak = peak_mib(process.pid)
        size = (folder / "label_studio.sqlite3").stat().st_size
    assert (sent.new, again.new, again.known) == (number, 0, number)
    assert (new, len(reviews), rejects, unreadable) == (number, number, [], [])
    assert {review.outcome for review in reviews} == {"accepted"}
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tasks": number,
        "seconds": times,
        "peak_mib": {"cot-builder": own // 1024, "Label Studio": peak},
        "database_mib": size >> 20,
        "log_mib": sum(path.stat().st_size for path in log.iterdir()) >> 20,
        "versions": {"label-studio": VERSION, "python": platform.python_version()},
        "cpus": len(os.sched_getaffinity(0)),
    }


if __name__ == "__main__":
    main()
