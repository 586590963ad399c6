"""Release files to a dataset folder: plan, shards (`shards`), rejects, manifest.

`--resume` keeps the shards whose record fits the job at hand. The manifest is written last, and
only after the counts have added up.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder import __version__
from cot_builder.boxes import Size
from cot_builder.checks import refuse_leaks
from cot_builder.counts import Counts, tallies
from cot_builder.dataset import (
    MANIFEST,
    REJECTS,
    json_lines,
    read_manifest,
    shard_name,
    write_whole,
)
from cot_builder.drafting import Drafting, distinct, read_asks
from cot_builder.errors import UserError
from cot_builder.images import IMAGES
from cot_builder.llm import Client, Estimate, Tally, refuse_sending
from cot_builder.paths import is_remote, make_folder, remove_tree, told
from cot_builder.records import Row
from cot_builder.shards import (
    ASKS,
    UNFINISHED,
    BuildOptions,
    Job,
    Worker,
    asks_file,
    chosen_sections,
    read_part,
    run_jobs,
)
from cot_builder.sources import Plan, Task, get_source

STARTED: Final = "started"
RUN: Final = "run"  # who pays: a build's budget holds over all its restarts
SHARD: Final = re.compile(r"\w+-\d{5}-of-\d{5}\.parquet")
_SPLIT_ORDER: Final = ("train", "validation", "test", None)

Manifest = dict[str, Any]


# What yields each of some jobs when its shard is on the disk.
Engine = Callable[[BuildOptions, Sequence[Job]], Iterator[Job]]


class Outline(NamedTuple):
    """What a dataset is made of, before its shards: all that `finish` needs beside them."""

    identity: Row
    planned: int
    rejects: list[Row]
    jobs: tuple[Job, ...]


class Progress(NamedTuple):
    """Where a build stands, in what its stage counts; `kept` of those `done` were there before."""

    done: int
    total: int
    kept: int
    stage: str = "studies"
    note: str = ""


@contextmanager
def _without_collector() -> Iterator[None]:
    """Stop the garbage collector: studies leave no circles, and it would look for them in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def build(
    options: BuildOptions,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    estimated: Callable[[Estimate], None] = lambda _: None,
    engine: Engine | None = None,
) -> Manifest:
    """Build a dataset folder and return its manifest.

    The same input, with the same answers of a model, gives the same bytes, whatever the workers,
    the order, or earlier runs that were cut off. A folder that holds anything is refused unless
    `resume` or `overwrite` is set. `estimated` is told what asking a model will take, before.
    An `engine` runs the shards instead of processes of this machine.
    """
    outline = make_outline(options)
    if finished := _finished_before(options, outline.identity):
        return finished
    here = cache(partial(Worker, options))
    build_shards(options, outline.jobs, here, progress, estimated, engine)
    drafted = partial(_llm, options, outline.jobs, here)
    return finish(options.out, outline, command=options.command, drafted=drafted)


def make_outline(options: BuildOptions) -> Outline:
    """Plan a build: light, since a source's plan reads lists and tables only."""
    source = get_source(options.source)
    if options.drafting:
        refuse_sending(options.drafting.endpoint, _credentialed(options))
    options.frame.extent(Size(1, 1))  # an unknown frame is told before anything is read
    with told(options.out):
        _check_out(options)
    root = options.release.root
    with told(root):
        if root and is_remote(root):
            root.exists()  # what keeps us from it is told here; other questions answer no
        plan = source.plan(options.release)
    refuse_leaks(options.source, plan.tasks)
    identity = _identity(options, plan)
    rejects = [rejected.to_row() for rejected in plan.rejects]
    return Outline(identity, len(plan.tasks), rejects, tuple(_jobs(options, plan, identity)))


def build_shards(
    options: BuildOptions,
    jobs: tuple[Job, ...],
    here: Callable[[], Worker],
    progress: Callable[[Progress], None],
    estimated: Callable[[Estimate], None] = lambda _: None,
    engine: Engine | None = None,
) -> None:
    """Write the shards of these jobs, but for those that are there already.

    `here` makes the worker of this process, should it need one.
    """
    _open_folder(options, jobs)
    total = sum(len(job.tasks) for job in jobs)
    left = [job for job in jobs if not read_part(options.out, job)]
    done = kept = total - sum(len(job.tasks) for job in left)
    if options.drafting:
        _draft(options, options.drafting, jobs, here, progress, estimated)
    progress(Progress(done, total, kept))
    with _without_collector():
        run = engine(options, left) if engine and left else None
        for job in run or run_jobs(left, options, Worker.build_shard, here):
            done += len(job.tasks)
            progress(Progress(done, total, kept))


# -- the plan


def _jobs(options: BuildOptions, plan: Plan, identity: Row) -> Iterator[Job]:
    settings = {**identity, "plan_sha256": None, "root": str(_root(options))}
    by_split = sorted(plan.tasks, key=lambda task: _SPLIT_ORDER.index(task.split))
    any_split = any(task.split for task in plan.tasks)
    for split, tasks in groupby(by_split, key=lambda task: task.split):
        slices = list(_slices(tuple(tasks), options.shard_size))
        for number, tasks_of_shard in enumerate(slices):
            yield Job(
                shard=shard_name(split, number, len(slices), any_split=any_split),
                split=split,
                tasks=tasks_of_shard,
                key=_sha256(json.dumps(settings, default=str), *map(repr, tasks_of_shard)),
            )


def _slices(tasks: tuple[Task, ...], size: int) -> Iterator[tuple[Task, ...]]:
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def _identity(options: BuildOptions, plan: Plan) -> Row:
    """Return all that decides a dataset's content, in the manifest's words."""
    source = get_source(options.source)
    banks = options.release.banks
    identity = {
        "tool": {"name": "cot-builder", "version": __version__},
        "banks": {"version": banks.version, "sha256": banks.sha256},
        "decomposer": options.drafting.described(banks) if options.drafting else {"kind": "rules"},
        "source": {
            "name": options.source,
            "release": plan.release,
            "notes": list(plan.notes),
            "licence": source.licence,
            "citation": source.citation,
            "credentialed": source.credentialed,
            "root": _root(options).name if options.release.root else None,
        },
        "options": {
            "sections": list(chosen_sections(options)),
            "shard_size": options.shard_size,
            **options.release.described(),
        },
        "frame": options.frame.to_row(),
        "images": options.scaling and options.scaling.described(),
        "link": options.link and _described_link(options.link),
        "seed": options.seed,
        "plan_sha256": _sha256(*(f"{task.split}/{task.study_id}" for task in plan.tasks)),
    }
    return dict(json.loads(json.dumps(identity)))  # as it will be read back, tuples as lists


def _described_link(kb: Path) -> Row:
    from cot_builder.spacy_component import (
        LINK_THRESHOLD,
        LINKS_PER_FINDING,
        kb_file,
        link_findings,
    )

    link_findings((), kb)  # trouble with it is told before any report is read
    with kb_file(kb).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    settings = {"threshold": LINK_THRESHOLD, "most": LINKS_PER_FINDING}
    return {"knowledge_base": kb_file(kb).name, "sha256": sha256, **settings}


def _root(options: BuildOptions) -> Path:
    return (options.release.root or Path()).resolve()


def _sha256(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


# -- the folder


def _check_out(options: BuildOptions) -> None:
    out = options.out
    if str(out).startswith("hf://"):
        raise UserError(
            f"--out {out}: the Hub takes whole versions only; build into a folder or a bucket, "
            "then `cot-builder publish`"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    complete, unfinished = (out / MANIFEST).exists(), (out / UNFINISHED).exists()
    if complete:
        read_manifest(out)
    if not complete and not unfinished:
        raise UserError(f"--out {out} holds other files than a dataset; name a new or empty folder")
    if options.resume or options.overwrite:
        return
    if unfinished and not complete:
        raise UserError(
            f"--out {out} holds an unfinished build: --resume continues it, --overwrite starts anew"
        )
    raise UserError(f"--out {out} holds a complete dataset: --overwrite replaces it")


def _finished_before(options: BuildOptions, identity: Row) -> Manifest | None:
    if not options.resume or not (options.out / MANIFEST).exists():
        return None
    manifest = read_manifest(options.out)
    if {key: manifest.get(key) for key in identity} != identity:
        raise UserError(
            f"--out {options.out} holds a complete dataset of other input, options or banks: "
            "--overwrite replaces it"
        )
    remove_tree(options.out / UNFINISHED)
    return manifest


def _open_folder(options: BuildOptions, jobs: tuple[Job, ...]) -> None:
    """Make the folder ready: only shards of these jobs are left in it, and no manifest."""
    parts = options.out / UNFINISHED
    make_folder(parts)
    if is_remote(parts):  # a folder of a store is there as long as it holds something
        write_whole(parts / STARTED, b"", scratch=parts)
    (options.out / MANIFEST).unlink(missing_ok=True)
    if not options.resume:
        remove_tree(options.out / IMAGES)
    wanted = {job.shard for job in jobs}
    for path in options.out.iterdir():
        ours = SHARD.fullmatch(path.name) or path.name == REJECTS
        if ours and (path.name not in wanted or not options.resume):
            path.unlink()
    for path in parts.iterdir():
        ours = path.stem in wanted and path.suffix in (".json", ASKS)
        if path.name != STARTED and (not (ours or path.name == RUN) or not options.resume):
            path.unlink()


# -- asking a model


def _draft(
    options: BuildOptions,
    drafting: Drafting,
    jobs: Sequence[Job],
    here: Callable[[], Worker],
    progress: Callable[[Progress], None],
    estimated: Callable[[Estimate], None],
) -> None:
    """Ask all that the rules leave open in any shard; workers will read the answers in the cache.

    Which sentences these are is worked out shard by shard, as the shards are, and kept as they are.
    """
    left = [job for job in jobs if read_asks(asks_file(options, job), job.key) is None]
    done, total = 0, sum(len(job.tasks) for job in left)
    for job in run_jobs(left, options, Worker.gather, here):
        done += len(job.tasks)
        progress(Progress(done, total, 0, "studies to ask about"))
    run = options.out / UNFINISHED / RUN
    if not run.exists():
        write_whole(run, secrets.token_hex(8).encode(), scratch=run.parent)
    drafter = here().drafter
    assert drafter
    with Client(
        drafting.endpoint, drafting.cache, credentialed=_credentialed(options), run=run.read_text()
    ) as client:
        estimate = client.estimate(map(drafter.request, _sentences(options, jobs)))
        estimated(estimate)
        client.afford(estimate)

        def tell(tally: Tally) -> None:
            done = (tally.done, estimate.requests, estimate.kept)
            progress(Progress(*done, "sentences", str(tally)))

        requests = map(drafter.request, _sentences(options, jobs))
        client.fill(requests, batch=drafting.batch, progress=tell)


def _sentences(options: BuildOptions, jobs: Iterable[Job]) -> Iterator[str]:
    """Yield the sentences that a model is asked, each once."""
    return distinct(
        sentence for job in jobs for sentence in read_asks(asks_file(options, job), job.key) or ()
    )


def _credentialed(options: BuildOptions) -> str | None:
    return options.source if get_source(options.source).credentialed else None


# -- the shards


# -- the counts


def finish(
    out: Path,
    outline: Outline,
    *,
    command: str,
    drafted: Callable[[Mapping[str, int]], Row] = lambda _: {},
) -> Manifest:
    """Add the counts up, then write `rejects.jsonl` and, last of all, the manifest."""
    rejects = list(outline.rejects)
    total: Counts = Counter(planned=0)
    by_split: dict[str, Counts] = {}
    shards: list[Row] = []
    for job in outline.jobs:
        part = read_part(out, job)
        if part is None:
            raise UserError(
                f"{out / job.shard} changed while the build ran; run again with --resume"
            )
        rejects += part.rejects
        total.update(part.counts)
        by_split.setdefault(job.split or "unsplit", Counter()).update({**part.counts, "shards": 1})
        shards.append(
            {
                "file": job.shard,
                "split": job.split,
                "studies": part.counts.get("written", 0),
                "sha256": part.sha256,
            }
        )
    if not total["planned"] == outline.planned == total["written"] + total["rejected"]:
        raise AssertionError(f"counts do not add up: {outline.planned} tasks, {total}")
    manifest: Manifest = {
        **outline.identity,
        "command": command,
        "created_by": _versions(),
        "counts": {
            "equation": "planned = written + rejected",
            **{name: total[name] for name in ("planned", "written", "rejected")},
        },
        "splits": {
            split: {name: counts[name] for name in ("planned", "written", "rejected", "shards")}
            for split, counts in by_split.items()
        },
        "shards": shards,
        **tallies(total, rejects),
        **drafted(total),
        "rejects": {
            "lines": len(rejects),
            "before_planning": len(outline.rejects),
            "of_rejected_studies": total["lines_of_rejected"],
            "beside_written_studies": total["lines_beside_written"],
            "by_reason": dict(sorted(Counter(row["reason"] for row in rejects).items())),
        },
    }
    scratch = out / UNFINISHED
    write_whole(out / REJECTS, json_lines(rejects), scratch=scratch)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / MANIFEST, text.encode("utf-8", "backslashreplace"), scratch=scratch)
    remove_tree(scratch)
    return manifest


def _llm(
    options: BuildOptions,
    jobs: Sequence[Job],
    here: Callable[[], Worker],
    total: Mapping[str, int],
) -> Row:
    """Return what became of the sentences that a model was asked, and of what it proposed."""
    if not options.drafting:
        return {}
    drafter = here().drafter
    assert drafter
    counts = {name.removeprefix("llm/"): n for name, n in total.items() if name.startswith("llm/")}
    tokens = drafter.tokens(_sentences(options, jobs))
    return {"llm": options.drafting.account(counts, tokens)}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "pyarrow": version("pyarrow")}
