"""Other engines for a build's shards than this machine's processes: datatrove's executors, or Ray.

The shards are the same pure jobs whichever engine runs them, and so are their bytes; all workers
must see the release and the output folder under the same paths.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import Any, Final

from cot_builder.errors import UserError
from cot_builder.paths import beside
from cot_builder.pipeline import Engine
from cot_builder.shards import BuildOptions, Job, Worker, read_part

_ASK_SLURM: Final = 5.0  # seconds between two looks at its queue


def _shards(options: BuildOptions, jobs: Sequence[Job]) -> Any:
    """Return the step of a datatrove pipeline whose tasks write these shards, each every n-th."""
    from datatrove.pipeline.base import PipelineStep

    class Shards(PipelineStep):  # type: ignore[misc]  # datatrove has no types
        name, type = "shards", "cot-builder"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            worker = Worker(options)
            for job in jobs[rank::world_size]:
                worker.build_shard(job)
            yield from ()

    return Shards()


def datatrove(options: BuildOptions, jobs: Sequence[Job]) -> Iterator[Job]:
    """Run the jobs as the tasks of datatrove's local executor, as many at once as `workers`."""
    from datatrove.executor import LocalPipelineExecutor

    tasks, step = min(len(jobs), options.workers), _shards(options, jobs)
    with tempfile.TemporaryDirectory() as logs:
        LocalPipelineExecutor([step], tasks=tasks, workers=tasks, logging_dir=logs).run()
    yield from jobs


def datatrove_slurm(
    options: BuildOptions,
    jobs: Sequence[Job],
    *,
    sbatch: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Job]:
    """Run the jobs as `workers` tasks of datatrove's Slurm executor, and wait for them.

    `sbatch` holds options of that program by their long names; datatrove wants partition and time.
    What is in the queue goes with a wait that ends early. UserError where the tasks are gone from
    it and a shard is not there; what they said is then left beside the output folder.
    """
    from datatrove.executor import SlurmPipelineExecutor

    class Executor(SlurmPipelineExecutor):  # type: ignore[misc]
        def launch_merge_stats(self) -> None:
            """Send no job that adds datatrove's statistics up: the manifest has the counts."""

    if missing := {"partition", "time"} - sbatch.keys():
        raise UserError(f"--engine datatrove-slurm needs --sbatch {min(missing)}=...")
    name = f"cot-builder-{token_hex(4)}"
    logs = beside(options.out, f"{options.out.name}.{name}").resolve()
    logs.mkdir()
    executor = Executor(
        [_shards(options, jobs)],
        tasks=min(len(jobs), options.workers),
        partition=sbatch["partition"],
        time=sbatch["time"],
        qos=None,
        sbatch_args=dict(sbatch),
        job_name=name,
        logging_dir=str(logs),
        # Its script calls a program of datatrove's, which lies beside this Python.
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
    )
    left = list(jobs)
    try:
        try:
            executor.launch_job()
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(logs)
            raise UserError(f"--engine datatrove-slurm: sbatch took no job: {error}") from None
        while True:
            queue = subprocess.run(
                ["squeue", "--noheader", f"--name={name}"], capture_output=True, check=False
            )
            for job in left.copy():
                if read_part(options.out, job):
                    left.remove(job)
                    yield job
            if not left:
                break
            # A Slurm that does not answer is waited for.
            if queue.returncode == 0 and not queue.stdout:
                raise UserError(
                    f"Slurm's tasks are gone and {len(left)} shards are not there, such as "
                    f"{left[0].shard}; {logs} has what they said; what is finished is kept: run "
                    "again with --resume"
                )
            time.sleep(_ASK_SLURM)
    finally:
        if left and executor.job_id:
            subprocess.run(["scancel", f"--name={name}"], check=False)
    shutil.rmtree(logs)


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
    "datatrove-slurm": datatrove_slurm,
    "ray": ray,
}
