"""Kill -9 at random moments: each job, started again, has to end as if nothing had happened.

    make bench-kill                                          # 50 kills of each job, about an hour
    python benchmarks/kill.py --jobs publish,demo --kills 5  # quickly; nothing is written

A job runs once undisturbed: its time, the moment of its first trace on the disk or the network, and
what it leaves are the reference. Then it is started anew, its process group is killed at a drawn
moment, and the same command is started again, which may be killed too (one to three kills a case);
the last start is left alone and has to end well and leave the very same. Three quarters of the
moments are drawn over the time between the first trace and the end, and counted from the killed
start's own first trace, so that a busy machine moves none of them; the others over the whole time.
A kill counts as one within the work where the killed start had left its first trace by then.
Training is started in forks of a process that has imported its libraries, which take longer than
the little that is trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from bench_build import HERE, _tree
from bench_review import ANSWER_ALL, VERDICT

sys.path.insert(0, str(HERE.parent))
from tests.hub_double import HubDouble

CLI = str(Path(sys.executable).with_name("cot-builder"))
FULL = 50
MOST = 3  # kills of one case
STUDIES = 1_000
TASKS = 400
REPO = "ann/chains"
RECIPE = (
    "mcl.epochs=1", "mcl.max_steps=6", "mcl.batch_size=2", "svr.max_steps=2", "svr.generations=2",
    "svr.batch_size=1", "svr.completion=96", "svr.limit=4", "adapter.max_steps=6",
    "run.save_every=2", "run.log_every=1", "run.sample_every=9", "run.samples=1",
)  # fmt: skip


class Job(NamedTuple):
    """A command that is killed and started again, in a folder of its own.

    `fresh` makes the folder ready, `traces` tells that the work has begun, `left` what counts of
    what it leaves, by name. A `warm` one starts with the libraries of training imported.
    """

    command: list[str]
    left: Callable[[], dict[str, str]]
    traces: Callable[[int], bool]
    fresh: Callable[[], None] = lambda: None
    env: dict[str, str] = {}  # noqa: RUF012
    warm: bool = False


class Run(NamedTuple):
    """How one start ended: `status` is negative where it was killed."""

    status: int
    seconds: float
    begun: float | None
    said: str


# -- the jobs: each in an empty folder, which is emptied for each case


@contextmanager
def demo(folder: Path) -> Iterator[Job]:
    yield _build(folder, ["--source", "demo", "--image-scale", "0.25", "--workers", "1"])


@contextmanager
def mimic(folder: Path, workers: int) -> Iterator[Job]:
    root = folder.parent.parent / f"mimic-{STUDIES}"
    _tree(root, STUDIES)
    given = ["--root", str(root), "--workers", str(workers), "--shard-size", "50"]
    yield _build(folder, ["--source", "mimic", *given])


def _build(folder: Path, given: list[str]) -> Job:
    out = folder / "out"
    return Job(
        [CLI, "build", *given, "--out", str(out), "--resume"],
        left=partial(_files, folder),
        traces=lambda _: out.exists(),
        fresh=partial(_emptied, folder),
    )


@contextmanager
def publish(folder: Path) -> Iterator[Job]:
    dataset = folder / "demo"
    with HubDouble() as hub:
        env = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.add_user("ann"), "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder.with_name("hf")),
        }  # fmt: skip

        def fresh() -> None:
            hub.repos.clear()
            hub.objects.clear()
            if not dataset.exists():
                _emptied(folder)
                _well([CLI, "build", "--source", "demo", "--out", str(dataset), "--workers", "1"])

        def left() -> dict[str, str]:
            repo = hub.repos[REPO]
            tree = {
                f"hub/{path}": _hash(data) for path, (data, _) in repo.at("v1.0.0").tree.items()
            }
            commits = [commit.title for commit in repo.commits.values()]
            said = {"commits": commits, "tags": repo.tags, "private": repo.private}
            return {**tree, **_files(folder), "repository": json.dumps(said)}

        given = [str(dataset), "--version", "1.0.0", "--repo", REPO]
        yield Job([CLI, "publish", *given], left, partial(_asks, hub.url), fresh, env)


@contextmanager
def pull(folder: Path) -> Iterator[Job]:
    from annotation import studio
    from annotation.batch import Images, review_batch
    from annotation.interface import interface
    from annotation.log import ANNOTATIONS, PROJECTS, REJECTS, append
    from annotation.log import TASKS as SENT
    from annotation.server import serving
    from cot_builder.pipeline import build
    from cot_builder.shards import BuildOptions
    from cot_builder.sources import SourceOptions
    from cot_builder.sources.demo import CORPUS
    from knowledge_banks import load_banks

    banks, server = load_banks(), folder.with_name("server")
    dataset, log = folder.with_name("demo"), folder / "log"
    build(BuildOptions(source="demo", release=SourceOptions(banks=banks), out=dataset))
    studies = review_batch(dataset)
    tasks = [replace(studies[n % len(studies)], study_id=f"copy-{n}") for n in range(TASKS)]
    images = Images.of(dataset, CORPUS, None)
    _emptied(folder)
    append(log / SENT, (task.to_row() for task in tasks), known=set())
    with serving(server, CORPUS, port=8119) as (account, _):
        opened = studio.connect(account.url, account.token)
        projects = []
        for half in range(2):
            project = studio.open_project(opened, f"kill {half}", interface(banks))
            own = {task.key: partial(task.request, images.url) for task in tasks[half::2]}
            studio.push(opened, project, own, model_version=tasks[0].model_version)
            row = {"url": account.url, "project": project, "title": f"kill {half}"}
            append(log / PROJECTS, [row], known=set())
            with sqlite3.connect(server / "label_studio.sqlite3") as database:
                database.execute(ANSWER_ALL, (json.dumps(VERDICT), project))
            projects.append(project)

        exports = opened.client.projects.exports

        def fresh() -> None:
            for name in (ANNOTATIONS, REJECTS):
                (log / name).unlink(missing_ok=True)
            for project in projects:
                for snapshot in exports.list(id=project):
                    exports.delete(id=project, export_pk=snapshot.id)

        def left() -> dict[str, str]:
            kept = [exports.list(id=project) for project in projects]
            exported = [*(server / "export").rglob("*.*"), *(server / "media/export").rglob("*.*")]
            said = {"snapshots": sum(map(len, kept)), "files of exports": len(exported)}
            return {**_files(folder), "server": json.dumps(said)}

        given = [str(dataset), "--server", str(server), "--reviews", str(log)]
        yield Job([CLI, "review", "pull", *given], left, partial(_asks, account.url), fresh)


@contextmanager
def train(folder: Path) -> Iterator[Job]:
    dataset, out = folder.with_name("demo"), folder / "run"
    given = ["--source", "demo", "--image-scale", "0.25", "--workers", "1", "--out", str(dataset)]
    _well([CLI, "build", *given])
    changes = [word for change in RECIPE for word in ("--set", change)]

    def left() -> dict[str, str]:
        # Times differ from run to run, and TRL logs only what was said since its start.
        unlike = (
            "tensorboard/",
            "svr/completions/",
            "metrics.jsonl",
            "curves.png",
            "training_args.bin",
            "README.md",
        )
        files = {name: of for name, of in _files(out).items() if not name.startswith(unlike)}
        files = {name: of for name, of in files.items() if not name.endswith(unlike)}
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses = [(row["stage"], row["step"], row["loss"]) for row in rows if "loss" in row]
        return {**files, "losses": _hash(json.dumps(losses).encode())}

    yield Job(
        [CLI, "train", "all", "--recipe", "smoke", "--dataset", str(dataset), "--out", str(out),
         *changes, "--resume"],
        left, traces=lambda _: out.exists(), fresh=partial(_emptied, folder), warm=True,
    )  # fmt: skip


# To add one: a context that yields a Job of a folder, and a line here.
JOBS: dict[str, Callable[[Path], Any]] = {
    "build, demo with reduced images": demo,
    "build, MIMIC, one worker": partial(mimic, workers=1),
    "build, MIMIC, two workers": partial(mimic, workers=2),
    "publish to a Hub": publish,
    "review pull from Label Studio": pull,
    "train, three stages": train,
}


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _well(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _asks(url: str, pid: int) -> bool:
    """Tell whether a process holds a connection to a server."""
    port = int(url.rpartition(":")[2])
    with suppress(psutil.Error):
        found = psutil.Process(pid).net_connections()
        return any(connection.raddr and connection.raddr[1] == port for connection in found)
    return False


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): _hash(path.read_bytes())
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- killing


def _start(job: Job, log: Path, moment: float = inf, *, at_work: bool = False) -> Run:
    """Start a job, and kill all of its processes after so many seconds, should it last so long.

    `at_work` counts them from the first trace.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", **job.env}
    begun = None
    process = _Warm(job.command, env, log) if job.warm else _Cold(job.command, env, log)
    began = time.monotonic()
    while process.poll() is None:
        now = time.monotonic() - began
        if begun is None and job.traces(process.pid):
            begun = now
        since = begun if at_work else 0.0
        if since is not None and now - since >= moment:
            break
        time.sleep(0.002)
    for kill in (os.killpg, os.kill):  # of a group of its own, once it has made that
        with suppress(ProcessLookupError):
            kill(process.pid, signal.SIGKILL)
    status = process.wait()
    seconds = time.monotonic() - began
    return Run(status, seconds, begun, log.read_text(errors="replace")[-2000:])


class _Cold(subprocess.Popen[bytes]):
    """A command line as anybody starts it."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        with log.open("wb") as said:
            super().__init__(command, stdout=said, stderr=said, env=env, start_new_session=True)


class _Warm:
    """The same in a fork."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "training.run", "training.preflight"])
        self.process = context.Process(target=_in_fork, args=(command, env, log))
        self.process.start()
        self.pid = self.process.pid or 0

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode or 0


def _in_fork(command: list[str], env: dict[str, str], log: Path) -> None:
    os.setsid()
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ.update(env)
    sys.argv = command
    from cot_builder.cli import main

    main()


def _measured(job: Job, kills: int, draw: random.Random, log: Path) -> dict[str, Any]:
    job.fresh()
    whole = _start(job, log)
    if whole.status or whole.begun is None:
        sys.exit(f"the undisturbed job failed: {whole.said}")
    reference = job.left()
    cases, failures, moments, within = 0, [], [], 0
    while len(moments) < kills:
        job.fresh()
        own: list[float] = []
        for _ in range(min(draw.randint(1, MOST), kills - len(moments))):
            at_work = draw.random() < 0.75
            moment = draw.uniform(0, whole.seconds - at_work * whole.begun)
            run = _start(job, log, moment, at_work=at_work)
            if run.status != -signal.SIGKILL:
                break
            own.append(round(run.seconds, 3))
            within += run.begun is not None
        else:
            run = _start(job, log)
        moments += own
        cases += bool(own)  # a start that ended before its moment was not killed
        found = job.left() if run.status == 0 else {}
        names = {name for name in {*reference, *found} if reference.get(name) != found.get(name)}
        if run.status or names:
            said = run.said if run.status else ""
            failures.append({"moments": own, "differ": sorted(names)[:9], "said": said})
            print(f"  case {cases}, killed at {own}: {failures[-1]}", flush=True)
    return {
        "seconds": round(whole.seconds, 2),
        "first_trace": round(whole.begun, 2),
        "kills": len(moments),
        "within_the_work": within,
        "cases": cases,
        "ended_equal": cases - len(failures),
        "compared": len(reference),
        "moments": moments,
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=FULL)
    parser.add_argument("--jobs", default="", help="Words of the jobs' names; all unless given.")
    parser.add_argument("--seed", type=int, default=0)
    scratch = Path(tempfile.gettempdir()) / "cot-builder-bench"
    parser.add_argument("--scratch", type=Path, default=scratch)
    parser.add_argument("--out", type=Path, help=f"Results; of {FULL} kills, results/kill.json.")
    options = parser.parse_args()
    words = options.jobs.split(",")
    chosen = [name for name in JOBS if any(word in name for word in words)]
    path = options.out or (HERE / "results" / "kill.json" if options.kills == FULL else None)
    rows: dict[str, Any] = {}
    for name in chosen:
        print(name, flush=True)
        with ExitStack() as stack:
            place = Path(stack.enter_context(_scratch(options.scratch / "kill")))
            job = stack.enter_context(JOBS[name](place / "case"))
            draw = random.Random(f"{options.seed} {name}")
            rows[name] = _measured(job, options.kills, draw, place / "log")
        if path:
            machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
            before = json.loads(path.read_text())["jobs"] if path.exists() else {}
            table = {"machine": machine, "seed": options.seed, "jobs": before | rows}
            path.write_text(json.dumps(table, indent=1) + "\n")
    print(_table(rows))


@contextmanager
def _scratch(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
        yield place


def _table(rows: dict[str, Any]) -> str:
    head = ("job", "seconds", "kills", "within the work", "cases", "ended equal", "failures")
    lines = [
        (
            name, f"{row['seconds']:.1f}", row["kills"],
            f"{row['within_the_work']} ({row['within_the_work'] / row['kills']:.0%})",
            row["cases"], row["ended_equal"], len(row["failures"]),
        )
        for name, row in rows.items()
    ]  # fmt: skip
    rule = ("---", *("---:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, rule, *lines))


if __name__ == "__main__":
    main()
