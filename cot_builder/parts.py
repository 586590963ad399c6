"""A build in parts, as an array of jobs on a cluster runs it, and their merging into one dataset.

A part is a build's folder with every n-th shard, the records of these in `.unfinished`, and last
`part.json`: which part it is, and the whole build's outline, so that a merge needs no release.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cot_builder.dataset import MANIFEST, take_file, write_whole
from cot_builder.errors import UserError
from cot_builder.images import IMAGES
from cot_builder.paths import make_folder
from cot_builder.pipeline import (
    SHARD,
    Manifest,
    Outline,
    Progress,
    build_shards,
    finish,
    make_outline,
)
from cot_builder.records import Row
from cot_builder.shards import UNFINISHED, BuildOptions, Job, Worker, read_part

PART: Final = "part.json"


class Portion(NamedTuple):
    """Which part of a build: the `number`-th from 0, `of` so many."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Portion:
        """Read a portion as `3/8`.

        >>> Portion.parse("3/8")
        Portion(number=3, of=8)
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise UserError(f"--shard {text!r}: expected I/N with I from 0 to N-1, such as 0/8")
        return cls(int(number), int(of))

    def of_jobs(self, outline: Outline) -> tuple[Job, ...]:
        """Return the jobs of this portion: every n-th, so that all have a share of all splits."""
        return outline.jobs[self.number :: self.of]


class Done(NamedTuple):
    """What `part.json` of a finished part says."""

    portion: Portion
    outline: Outline
    command: str

    def to_row(self) -> Row:
        """Return it as the content of `part.json`; which studies a job has is left out."""
        jobs = [[job.shard, job.split, job.key] for job in self.outline.jobs]
        outline = {**self.outline._asdict(), "jobs": jobs}
        return {"part": self.portion, "outline": outline, "command": self.command}

    @classmethod
    def from_row(cls, row: Row) -> Done:
        """Read it back; ValueError, KeyError or TypeError where it is none."""
        jobs = tuple(Job(shard, split, (), key) for shard, split, key in row["outline"]["jobs"])
        if not all(SHARD.fullmatch(job.shard) for job in jobs):
            raise ValueError("a shard with an odd name")
        outline = Outline(**{**row["outline"], "jobs": jobs})
        return cls(Portion(*row["part"]), outline, row["command"])


def build_part(
    options: BuildOptions,
    portion: Portion,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Job, ...]:
    """Build every n-th shard of a dataset into a folder that `merge` takes; return its jobs.

    They are shards of the single build: plan and shard size alone decide which there are.
    """
    if options.drafting:
        raise UserError(
            "--shard cuts a build by rules only; the budget and answers of a model are those of "
            "a whole build: leave out --shard, or --decomposer"
        )
    outline = make_outline(options)
    mine = portion.of_jobs(outline)
    (options.out / PART).unlink(missing_ok=True)
    build_shards(options, mine, lambda: Worker(options), progress)
    content = json.dumps(Done(portion, outline, options.command).to_row()).encode()
    write_whole(options.out / PART, content, scratch=options.out / UNFINISHED)
    return mine


def merge(out: Path, parts: Sequence[Path], *, command: str = "") -> Manifest:
    """Put all parts of a build together and return the manifest; the parts stay as they are.

    The dataset is that of a single build, byte for byte, but for the commands in its manifest.
    Files are linked where the disk allows it, else copied. A merge that was cut off starts anew.
    """
    done = {part: _read(part) for part in parts}
    _check(done)
    _check_out(out)
    scratch = out / UNFINISHED
    make_folder(scratch)
    for part, (portion, outline, _) in done.items():
        for job in portion.of_jobs(outline):
            for name in (job.shard, f"{UNFINISHED}/{job.shard}.json"):
                _take(part / name, out / name, scratch)
            if read_part(out, job) is None:
                raise UserError(f"{part / job.shard} is damaged: build this part again")
        for image in (part / IMAGES).rglob("*.jpg"):
            _take(image, out / image.relative_to(part), scratch)
    _, outline, built_by = done[parts[0]]
    return finish(out, outline, command="; ".join(filter(None, (built_by, command))))


def _read(part: Path) -> Done:
    try:
        return Done.from_row(json.loads((part / PART).read_bytes()))
    except OSError:
        raise UserError(
            f"{part} has no {PART}: it is no finished part of a build; run that with --shard, or "
            "again with --resume"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{part / PART} is damaged ({error}): build this part again") from None


def _check(done: Mapping[Path, Done]) -> None:
    """Refuse parts that are not, each once, all parts of one build."""
    (first, (portion, outline, _)), *_ = done.items()
    by_number: dict[int, Path] = {}
    for part, other in done.items():
        if (other.portion.of, other.outline) != (portion.of, outline):
            raise UserError(
                f"{first} and {part} are parts of different builds: the number of parts, the "
                "release, options, banks and shard size must be the same"
            )
        if twice := by_number.get(other.portion.number):
            raise UserError(f"{twice} and {part} are the same part of the build: give it once")
        by_number[other.portion.number] = part
    if missing := [n for n in range(portion.of) if n not in by_number]:
        names = ", ".join(f"{n}/{portion.of}" for n in missing[:10])
        raise UserError(f"{len(missing)} of {portion.of} parts are missing, of them {names}")


def _check_out(out: Path) -> None:
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if MANIFEST in held or PART in held or (held and UNFINISHED not in held):
        raise UserError(f"{out} holds a dataset, a part or other files; name a new or empty folder")


def _take(source: Path, target: Path, scratch: Path) -> None:
    try:
        take_file(source, target, scratch=scratch)
    except FileNotFoundError:
        raise UserError(f"{source} is missing: build this part again") from None
