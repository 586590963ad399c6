"""Which tasks a push sends, and to whom."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from annotation.readers import decide, latest, readings, versions
from annotation.reviews import Review, faults
from annotation.tasks import (
    Task,
    adjudication_task,
    assigned,
    candidate,
    choose,
    review_task,
    seeded,
)
from cot_builder.dataset import read_manifest, read_studies
from cot_builder.errors import UserError
from cot_builder.images import IMAGES, derivative

_LIGHT = ("study_id", "labels", "chains", "unmapped", "grounded", "provenance")


def review_batch(
    dataset: Path,
    *,
    strategy: str = "random",
    sample: int | None = None,
    seed: int = 0,
    plant: float = 0.0,
    other: Mapping[str, Mapping[str, int | None]] | None = None,
) -> list[Task]:
    """Return the tasks of the studies that a strategy chooses, in its order.

    In a share `plant` of the studies, one chain is made wrong. `other` are the labels of another
    labeller by study. UserError where nothing is chosen, or a study cannot be shown as it is.
    """
    manifest = read_manifest(dataset)
    studies = (candidate(row, other) for row in read_studies(dataset, columns=_LIGHT))
    chosen = choose(studies, strategy, sample=sample, seed=seed)
    if not chosen:
        hint = (
            ": no labels differ; --against names other labels" if strategy == "disagreement" else ""
        )
        raise UserError(f"strategy {strategy!r} finds no study in {dataset}{hint}")
    wanted = set(chosen)
    version = _model_version(manifest)
    tasks: dict[str, Task] = {}
    for row in read_studies(dataset):
        if (study := row["study_id"]) in wanted:
            chance = random.Random(f"{seed} {study}")
            planted = seeded(seed + 1, study) < plant
            tasks[study] = review_task(
                row, sections=manifest["options"]["sections"], model_version=version,
                plant=chance if planted else None,
            )  # fmt: skip
    return checked(tasks[study] for study in chosen)


def _model_version(manifest: Mapping[str, Any]) -> str:
    tool = manifest["tool"]
    return f"{tool['name']} {tool['version']}, banks {manifest['banks']['version']}"


def checked(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks if all would come back as they go; UserError names the first that does not.

    Label Studio itself takes predictions that its own interface cannot show.
    """
    kept = list(tasks)
    for task in kept:
        if wrong := faults(task):
            raise UserError(
                f"study {task.study_id} cannot be reviewed as it is: {'; '.join(wrong)}; nothing "
                "was pushed. `cot-builder check` looks for damaged records"
            )
    return kept


def adjudication_batch(reviews: Sequence[Review]) -> list[Task]:
    """Return the tasks of the studies whose readers differ or want a second read.

    Each shows what the readers say, by number and not by name. UserError where there are none.
    """
    last = latest(reviews)
    tasks = []
    for study, decision in decide(reviews).items():
        if decision.outcome not in ("disagreed", "second read"):
            continue
        answers = [
            review for review in last
            if review.study_id == study and review.task.kind == "review"
            and review.outcome != "skipped"
        ]  # fmt: skip
        read = readings(answers)
        names = dict.fromkeys(name for reading in read for name in reading)
        note = "; ".join(
            f"reader {place}: {', '.join(filter(None, (one.outcome, *one.reasons, one.comment)))}"
            for place, one in enumerate(answers, start=1)
        )
        found = {name: versions(read, name) for name in names}
        tasks.append(adjudication_task(answers[0].task, found, note=note))
    if not tasks:
        raise UserError("no readers differ: there is nothing to adjudicate")
    return checked(tasks)


def by_project(
    tasks: Sequence[Task], title: str, readers: Sequence[str], *, overlap: int, blind: bool
) -> dict[str, list[tuple[Task, dict[str, str]]]]:
    """Return what each project gets: tasks, and who is to read them.

    Blind readers have a project each, for whoever may open a project sees what others did there.
    """
    if overlap > max(1, len(readers)) and (readers or blind):
        raise UserError(
            f"--overlap {overlap} wants as many readers: {len(readers)} --annotator were given"
        )
    if not readers:
        return {title: [(task, {}) for task in tasks]}
    to = [assigned(readers, place, overlap) for place in range(len(tasks))]
    if not blind:
        both = zip(tasks, to, strict=True)
        return {title: [(task, {"assigned": " ".join(who)}) for task, who in both]}
    return {
        f"{title} {reader}": [
            (task, {}) for task, who in zip(tasks, to, strict=True) if reader in who
        ]
        for reader in readers
    }


class Images(NamedTuple):
    """Where readers get the images: a folder that Label Studio serves, or a prefix of addresses."""

    folder: Path | None
    prefix: str
    reduced: bool = False

    @classmethod
    def of(cls, dataset: Path, folder: Path | None, prefix: str | None) -> Images:
        """Return the place; UserError where it is not known.

        A folder may be that of the dataset's own reduced images: boxes are percent to a reader.
        """
        if prefix:
            return cls(None, prefix)
        if folder is None:
            raise UserError(
                "where are the images? --images names the folder at which their paths start, as "
                "the server's machine has it; --image-url a prefix of their addresses"
            )
        folder = folder.resolve()
        return cls(folder, "", folder == (dataset / IMAGES).resolve())

    def url(self, path: str) -> str:
        """Return the address of an image for a task."""
        if self.folder is None:
            return self.prefix + path
        return f"/data/local-files/?d={quote(f'{self.folder.name}/{self._file(path)}')}"

    def _file(self, path: str) -> str:
        return derivative(path).removeprefix(f"{IMAGES}/") if self.reduced else path

    def check(self, paths: Iterable[str]) -> None:
        """Raise UserError where files are missing, as far as this machine can see the folder."""
        if self.folder is None or not self.folder.is_dir():
            return
        missing = [path for path in paths if not (self.folder / self._file(path)).is_file()]
        if missing:
            raise UserError(
                f"{len(missing):,} images are not in {self.folder}, first {missing[0]}: name the "
                "folder at which the image paths of the dataset start with --images"
            )
