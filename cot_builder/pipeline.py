"""Release files to a dataset folder: plan, shards in parallel, rejects, manifest.

A shard is a pure job over a fixed slice of the plan, so its bytes depend neither on the number of
workers nor on what else ran. While a build is under way the folder `.unfinished` holds one record a
finished shard (its job's key, its counts, its rejects); `--resume` keeps the shards whose record
fits the job at hand. The manifest is written last, and only after the counts have added up.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import platform
import re
import secrets
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import version
from itertools import groupby, islice
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder import __version__
from cot_builder.boxes import KINDS, Frame, Size
from cot_builder.checks import refuse_leaks
from cot_builder.dataset import (
    MANIFEST,
    REJECTS,
    json_lines,
    read_manifest,
    shard_name,
    study_row,
    write_shard,
    write_whole,
)
from cot_builder.decompose import Decomposer
from cot_builder.decompose.grounded import attach_boxes
from cot_builder.drafting import Drafter, Drafting, distinct, read_asks
from cot_builder.errors import UserError
from cot_builder.images import IMAGES, BadImageError, Scaling, derivative, write_reduced
from cot_builder.labels import report_labels
from cot_builder.llm import Client, Estimate, Tally, refuse_sending
from cot_builder.paths import is_remote, make_folder, remove_tree, told
from cot_builder.records import Rejected, Report, Row, Section
from cot_builder.sources import Loaded, Plan, SourceOptions, Task, get_source, image_root
from cot_builder.vocabulary import ASSERTIONS, LABELS

UNFINISHED: Final = ".unfinished"
ASKS: Final = ".asks"  # the sentences of a shard that a model is asked
AT_ONCE: Final = 32  # studies that a worker loads from a store at a time
STARTED: Final = "started"
RUN: Final = "run"  # who pays: a build's budget holds over all its restarts
SHARD: Final = re.compile(r"\w+-\d{5}-of-\d{5}\.parquet")
_SPLIT_ORDER: Final = ("train", "validation", "test", None)

Counts = Counter[str]
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build: a source's name and its options, the sections to decompose, where to.

    Without `sections`, the source's own. `frame` is recorded only: the dataset's boxes stay in the
    pixels of the original images. With a `scaling`, reduced copies of the images are written too;
    with a `drafting`, a model is asked what the rules leave open. `link` is the knowledge base
    (a file or folder) that findings get their concept ids from.
    """

    source: str
    release: SourceOptions
    out: Path
    sections: tuple[str, ...] = ()
    frame: Frame = field(default_factory=Frame)
    scaling: Scaling | None = None
    drafting: Drafting | None = None
    link: Path | None = None
    shard_size: int = 4000
    workers: int = 1
    resume: bool = False
    overwrite: bool = False
    seed: int = 0
    command: str = ""


class Job(NamedTuple):
    """One shard to write; `key` hashes all that its bytes depend on, but for the report files."""

    shard: str
    split: str | None
    tasks: tuple[Task, ...]
    key: str


# What yields each of some jobs when its shard is on the disk.
Engine = Callable[[BuildOptions, Sequence[Job]], Iterator[Job]]


class Outline(NamedTuple):
    """What a dataset is made of, before its shards: all that `finish` needs beside them."""

    identity: Row
    planned: int
    rejects: list[Row]
    jobs: tuple[Job, ...]


class Part(NamedTuple):
    """One finished shard: its hash, its counts, and what was rejected on the way."""

    key: str
    sha256: str
    counts: dict[str, int]
    rejects: list[Row]


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
        for job in run or _run(left, options, Worker.build_shard, here):
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
            "sections": list(_sections(options)),
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


def _link(rows: list[Row], kb: Path) -> None:
    """Give the mentions of studies the concepts of their findings, the most similar first."""
    from cot_builder.spacy_component import link_findings

    mentions = [mention for row in rows for mention in (*row["chains"], *row["unmapped"])]
    links = link_findings(sorted({mention["finding"] for mention in mentions}), kb)
    for mention in mentions:
        mention["concept_ids"] = [concept for concept, _ in links[mention["finding"]]]


def _sections(options: BuildOptions) -> tuple[str, ...]:
    return options.sections or get_source(options.source).sections


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


def read_part(out: Path, job: Job) -> Part | None:
    """Return the record of a finished shard, if it is there, whole, and of this very job."""
    try:
        with told(out):
            part = Part(**json.loads((out / UNFINISHED / f"{job.shard}.json").read_bytes()))
            content = (out / job.shard).read_bytes()
    except (FileNotFoundError, ValueError, TypeError):
        return None
    fits = part.key == job.key and hashlib.sha256(content).hexdigest() == part.sha256
    return part if fits else None


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
    left = [job for job in jobs if read_asks(_asks_file(options, job), job.key) is None]
    done, total = 0, sum(len(job.tasks) for job in left)
    for job in _run(left, options, Worker.gather, here):
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


def _asks_file(options: BuildOptions, job: Job) -> Path:
    return options.out / UNFINISHED / f"{job.shard}{ASKS}"


def _sentences(options: BuildOptions, jobs: Iterable[Job]) -> Iterator[str]:
    """Yield the sentences that a model is asked, each once."""
    return distinct(
        sentence for job in jobs for sentence in read_asks(_asks_file(options, job), job.key) or ()
    )


def _credentialed(options: BuildOptions) -> str | None:
    return options.source if get_source(options.source).credentialed else None


# -- the shards


def _run(
    jobs: list[Job],
    options: BuildOptions,
    work: Callable[[Worker, Job], None],
    here: Callable[[], Worker],
) -> Iterator[Job]:
    """Yield each job when its work is on the disk."""
    if options.workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            work(here(), job)
            yield job
        return
    others = active_children()
    # In a file, for a pipe holds 64 KiB: a worker that dies before it has read more than that from
    # one would leave this process waiting for ever.
    if is_remote(options.out):
        handed = Path(tempfile.mkstemp(".pickle")[1])
    else:
        handed = options.out / UNFINISHED / "options.pickle"
    with _writing(handed):
        handed.write_bytes(pickle.dumps(options))
    pool = ProcessPoolExecutor(
        min(options.workers, len(jobs)),
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(handed,),
    )
    waiting = iter(jobs)
    running: dict[Future[None], Job] = {}
    try:
        while True:
            # As many as there are workers: neither tasks nor results pile up.
            for job in islice(waiting, options.workers - len(running)):
                running[pool.submit(_in_worker, work, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)
        pool.shutdown()
    except BrokenProcessPool:
        shards = " or ".join(sorted(job.shard for job in running.values()))
        raise UserError(
            "a worker process died (killed, out of memory, or started by a script without "
            f"`if __name__ == '__main__'`) while it wrote {shards}; "
            "finished shards are kept: run again with --resume, perhaps with fewer --workers"
        ) from None
    finally:
        # After an error or Ctrl-C nobody waits for shards in hand: each is whole or not there.
        for child in active_children():
            if child not in others:
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        handed.unlink(missing_ok=True)


class Worker:
    """What one process needs to build shards; it holds the compiled banks."""

    def __init__(self, options: BuildOptions) -> None:
        self.options = options
        self.source = get_source(options.source)
        self.sections = _sections(options)
        self.decomposer = Decomposer(options.release.banks)
        self.drafter = options.drafting and Drafter(options.drafting, self.decomposer)

    def gather(self, job: Job) -> None:
        """Write which sentences of a job's studies a model is to be asked."""
        assert self.drafter
        release = replace(self.options.release, check_images=False)  # once is enough
        asked: dict[str, None] = {}
        for _, load in self._loads(job.tasks, release):
            try:
                if report := load().report:
                    asked.update(dict.fromkeys(self.drafter.to_ask(self._chosen(report))))
            except UserError:
                raise
            except Exception:  # a defect of ours: `build_study` will say so
                continue
        content = json.dumps({"key": job.key, "sentences": list(asked)}).encode()
        parts = self.options.out / UNFINISHED
        write_whole(_asks_file(self.options, job), content, scratch=parts)

    def _chosen(self, report: Report) -> list[Section]:
        return [
            section
            for section in report.sections
            if section.name in self.sections and section.text.strip()
        ]

    def build_shard(self, job: Job) -> None:
        """Write a job's shard, then the record that says so."""
        rows: list[Row] = []
        rejects: list[Row] = []
        counts: Counts = Counter(planned=len(job.tasks))
        for task, load in self._loads(job.tasks, self.options.release):
            row, rejected = self.build_study(task, load)
            if row:
                rows.append(row)
                counts.update(count_study(row))
                counts["lines_beside_written"] += len(rejected)
            else:
                counts["rejected"] += 1
                counts["lines_of_rejected"] += len(rejected)
            rejects += (record.to_row() for record in rejected)
        if self.drafter:
            counts.update({f"llm/{name}": n for name, n in self.drafter.counts.items()})
            self.drafter.counts.clear()
        if self.options.link:
            _link(rows, self.options.link)
        parts = self.options.out / UNFINISHED
        with _writing(self.options.out / job.shard):
            sha256 = write_shard(self.options.out / job.shard, rows, scratch=parts)
            record = json.dumps(Part(job.key, sha256, dict(counts), rejects)._asdict())
            write_whole(parts / f"{job.shard}.json", record.encode(), scratch=parts)

    def _loads(
        self, tasks: Sequence[Task], release: SourceOptions
    ) -> Iterator[tuple[Task, Callable[[], Loaded]]]:
        """Yield each task with what loads it; of a store many are under way at once."""
        if not (is_remote(release.root) or is_remote(release.mimic_root)):
            yield from ((task, partial(self.source.load, task, release)) for task in tasks)
            return
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            loading = [pool.submit(self.source.load, task, release) for task in tasks]
            yield from ((task, future.result) for task, future in zip(tasks, loading, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)

    def build_study(
        self, task: Task, load: Callable[[], Loaded]
    ) -> tuple[Row | None, tuple[Rejected, ...]]:
        """Return one study's row, or None, with what was rejected on the way."""
        try:
            report, rejects = load()
            if report is None:
                assert rejects, "the source gave neither a report nor a reason"
                return None, rejects
            chosen = self._chosen(report)
            if not chosen:
                found = ", ".join(section.name for section in report.sections) or "no section"
                detail = f"looked for {', '.join(self.sections)}; found {found}"
                return None, (
                    *rejects,
                    self._reject(task, "no_findings_or_impression", detail),
                )
            self._check_frame(report)
            if self.options.scaling:
                report, unreadable = self._reduce_images(report, self.options.scaling)
                rejects += unreadable
            if self.drafter:
                decomposition, fallen = self.drafter.decompose(chosen)
                rejects += tuple(self._reject(task, *why) for why in fallen)
            else:
                decomposition = self.decomposer.decompose(chosen)
            if report.grounded:
                decomposition = attach_boxes(decomposition, report, self.decomposer)
            row = study_row(
                report,
                decomposition,
                report_labels(decomposition.chains, whole=not report.grounded),
                bank_version=self.options.release.banks.version,
            )
        except UserError:
            raise
        except Exception as error:  # a defect of ours: this study is set aside, and the run says so
            return None, (self._reject(task, "internal_error", _last_line(error)),)
        return row, rejects

    def _check_frame(self, report: Report) -> None:
        """Refuse a frame that would not fit the images, which is a mistake in the options."""
        for image in report.images:
            try:
                # A strip of an image that no processor takes is for the doctor to tell.
                with suppress(ValueError):
                    self.options.frame.extent(Size(image.width or 1, image.height or 1))
            except UserError as error:
                raise UserError(f"study {report.study_id}: {error}") from None

    def _reduce_images(
        self, report: Report, scaling: Scaling
    ) -> tuple[Report, tuple[Rejected, ...]]:
        """Write a report's images reduced; one that cannot be read is lost, with its boxes."""
        root, out = image_root(self.options.release), self.options.out
        rejects: list[Rejected] = []
        lost: set[str] = set()
        for image in report.images:
            try:
                with _writing(out / derivative(image.path)):
                    write_reduced(
                        root / image.path,
                        out / derivative(image.path),
                        scratch=out / UNFINISHED,
                        scale=scaling.scale,
                        invert=image.image_id in scaling.inverted,
                    )
            except BadImageError as error:
                lost.add(image.image_id)
                boxes = sum(
                    box.image_id == image.image_id
                    for phrase in report.grounded
                    for box in phrase.boxes
                )
                detail = f"{error.detail}; left out with its boxes: {boxes}"
                rejects.append(
                    Rejected(report.source, image.path, error.reason, detail, report.study_id)
                )
        if not lost:
            return report, ()
        grounded = (
            phrase._replace(boxes=tuple(box for box in phrase.boxes if box.image_id not in lost))
            for phrase in report.grounded
        )
        left = replace(
            report,
            images=tuple(image for image in report.images if image.image_id not in lost),
            grounded=tuple(phrase for phrase in grounded if phrase.boxes),
        )
        return left, tuple(rejects)

    def _reject(self, task: Task, reason: str, detail: str) -> Rejected:
        return Rejected(self.options.source, task.file, reason, detail, task.study_id)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what is finished is kept: make room "
            "and run again with --resume"
        ) from None


_worker: Worker  # of this process; set when the pool starts it


def _start_worker(handed: Path) -> None:
    # Ctrl-C reaches every process of the terminal: the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    gc.disable()
    global _worker
    _worker = Worker(pickle.loads(handed.read_bytes()))


def _die_with_parent() -> None:
    # A killed parent cannot stop its workers, and they would write into the next run's folder.
    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def _in_worker(work: Callable[[Worker, Job], None], job: Job) -> None:
    work(_worker, job)


def _last_line(error: Exception) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__}: {error} ({where})"


# -- the counts


def count_study(row: Row) -> Counts:
    """Count a study's chains, sentences and boxes, for `tallies`."""
    counts: Counts = Counter(written=1)
    counts.update(f"chains/{chain['disease']}/{chain['assertion']}" for chain in row["chains"])
    counts.update(f"unmapped/{finding['assertion']}" for finding in row["unmapped"])
    for name in ("sentences", "bearing", "covered"):
        counts[name] += row["provenance"][name]
    boxed = [chain for chain in row["chains"] if chain["boxes"]]
    for phrase in row["grounded"]:
        counts.update(f"box_kinds/{box['kind']}" for box in phrase["boxes"])
        holding = [chain["rule"] for chain in boxed if _overlap(chain, phrase)]
        made = all(rule.startswith("release.") for rule in holding)
        counts["phrases/" + (("from_label" if made else "read") if holding else "none")] += 1
    return counts


def _overlap(chain: Row, phrase: Row) -> bool:
    same = bool(chain["section"] == phrase["section"])
    return same and chain["start"] < phrase["end"] and phrase["start"] < chain["end"]


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


def tallies(total: Mapping[str, int], rejects: Iterable[Row]) -> Row:
    """Return the manifest's counts of chains, unmapped findings, coverage and boxes."""
    return {
        "chains": {
            label: {name: total[f"chains/{label}/{name}"] for name in ASSERTIONS}
            for label in LABELS
        },
        "unmapped": {name: total[f"unmapped/{name}"] for name in ASSERTIONS},
        "coverage": _coverage(total),
        "boxes": _boxes(total, rejects),
    }


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


def _coverage(total: Mapping[str, int]) -> Row:
    bearing, covered = total["bearing"], total["covered"]
    return {
        "sentences": total["sentences"],
        "bearing": bearing,
        "covered": covered,
        "share": covered / bearing if bearing else None,
    }


def _boxes(total: Mapping[str, int], rejects: Iterable[Row]) -> Row:
    """Count phrases by where their chain comes from, boxes by kind, and boxes not taken."""
    faults = Counter(row["reason"] for row in rejects if row["reason"].startswith("box_"))
    return {
        "phrases": {
            "chain_read": total["phrases/read"],
            "chain_from_label": total["phrases/from_label"],
            "no_chain": total["phrases/none"],
        },
        "by_kind": {kind: total[f"box_kinds/{kind}"] for kind in KINDS},
        "clipped": faults.pop("box_clipped", 0),
        "rejected": sum(faults.values()),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "pyarrow": version("pyarrow")}
