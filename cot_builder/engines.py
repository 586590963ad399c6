"""Other engines for a build's shards than this machine's processes: datatrove's executors, or Ray.

The shards are the same pure jobs whichever engine runs them, and so are their bytes; all workers
must see the release and the output folder under the same paths.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Final

from cot_builder.pipeline import BuildOptions, Engine, Job, Worker


def datatrove(options: BuildOptions, jobs: Sequence[Job]) -> Iterator[Job]:
    """Run the jobs as the tasks of datatrove's local executor, as many at once as `workers`."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep

    class Shards(PipelineStep):  # type: ignore[misc]  # datatrove has no types
        name, type = "shards", "cot-builder"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            worker = Worker(options)
            for job in jobs[rank::world_size]:
                worker.build_shard(job)
            yield from ()

    tasks = min(len(jobs), options.workers)
    with tempfile.TemporaryDirectory() as logs:
        LocalPipelineExecutor([Shards()], tasks=tasks, workers=tasks, logging_dir=logs).run()
    yield from jobs


def ray(options: BuildOptions, jobs: Sequence[Job]) -> Iterator[Job]:
    """Run the jobs on a Ray cluster: that of RAY_ADDRESS, or one of `workers` CPUs on this machine.

    Ray reports usage statistics unless told otherwise; here it is told so, and shows no dashboard.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": options.workers}
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **here)
    try:
        workers = [
            ray.remote(Worker).options(num_cpus=1).remote(options)
            for _ in range(min(options.workers, len(jobs)))
        ]
        running = {
            workers[place % len(workers)].build_shard.remote(job): job
            for place, job in enumerate(jobs)
        }
        while running:
            (done,), _ = ray.wait(list(running))
            ray.get(done)
            yield running.pop(done)
    finally:
        ray.shutdown()


# To add one: a function of options and jobs that yields each job when its shard is on the disk.
ENGINES: Final[dict[str, Engine]] = {
    "datatrove": datatrove,
    "ray": ray,
}
