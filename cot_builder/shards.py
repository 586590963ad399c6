"""The shards of a dataset: jobs over slices of a plan, and the processes that do them.

A shard is a pure job, so its bytes depend neither on the number of workers nor on what else ran.
While a build is under way the folder `.unfinished` holds one record a finished shard (its job's
key, its counts, its rejects).
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from functools import partial
from itertools import islice
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from typing import Final, NamedTuple

from cot_builder.boxes import Frame, Size
from cot_builder.counts import Counts, count_study
from cot_builder.dataset import (
    study_row,
    write_shard,
    write_whole,
)
from cot_builder.decompose import Decomposer
from cot_builder.decompose.grounded import attach_boxes
from cot_builder.drafting import Drafter, Drafting
from cot_builder.errors import UserError
from cot_builder.images import BadImageError, Scaling, derivative, write_reduced
from cot_builder.labels import report_labels
from cot_builder.paths import is_remote, told
from cot_builder.records import Rejected, Report, Row, Section
from cot_builder.sources import Loaded, SourceOptions, Task, get_source, image_root

UNFINISHED: Final = ".unfinished"
ASKS: Final = ".asks"  # the sentences of a shard that a model is asked
AT_ONCE: Final = 32  # studies that a worker loads from a store at a time


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


class Part(NamedTuple):
    """One finished shard: its hash, its counts, and what was rejected on the way."""

    key: str
    sha256: str
    counts: dict[str, int]
    rejects: list[Row]


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


def chosen_sections(options: BuildOptions) -> tuple[str, ...]:
    """Return the names of the sections to decompose."""
    return options.sections or get_source(options.source).sections


def asks_file(options: BuildOptions, job: Job) -> Path:
    """Return where a shard's sentences for a model are kept while a build is under way."""
    return options.out / UNFINISHED / f"{job.shard}{ASKS}"


class Worker:
    """What one process needs to build shards; it holds the compiled banks."""

    def __init__(self, options: BuildOptions) -> None:
        self.options = options
        self.source = get_source(options.source)
        self.sections = chosen_sections(options)
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
        write_whole(asks_file(self.options, job), content, scratch=parts)

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


def _link(rows: list[Row], kb: Path) -> None:
    """Give the mentions of studies the concepts of their findings, the most similar first."""
    from cot_builder.spacy_component import link_findings

    mentions = [mention for row in rows for mention in (*row["chains"], *row["unmapped"])]
    links = link_findings(sorted({mention["finding"] for mention in mentions}), kb)
    for mention in mentions:
        mention["concept_ids"] = [concept for concept, _ in links[mention["finding"]]]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what is finished is kept: make room "
            "and run again with --resume"
        ) from None


def _last_line(error: Exception) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__}: {error} ({where})"


# -- processes


def run_jobs(
    jobs: list[Job],
    options: BuildOptions,
    work: Callable[[Worker, Job], None],
    here: Callable[[], Worker],
) -> Iterator[Job]:
    """Do work on each job, by as many processes as `workers`; yield it when that is on the disk."""
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
