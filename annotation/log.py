"""The review folder of a dataset, whose log only grows.

It holds `tasks.jsonl` (what was sent), `projects.jsonl` (where to), `annotations.jsonl` (what
readers submitted, as Label Studio gave it; lines are only ever added) and `rejects.jsonl` (what the
last pull could not use, and why). Reviews are read off tasks and annotations each time: nothing
that a reader did is lost, not even where it cannot be used yet. A last line without its end is a
write that was cut off: it does not count, and the next write begins in its place.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from annotation.reviews import Review, UnreadableError, read_annotation
from annotation.tasks import Task
from cot_builder.dataset import json_lines
from cot_builder.errors import UserError
from cot_builder.records import Rejected, Row

TASKS: Final = "tasks.jsonl"
ANNOTATIONS: Final = "annotations.jsonl"
PROJECTS: Final = "projects.jsonl"
REJECTS: Final = "rejects.jsonl"
SOURCE: Final = "label_studio"


def append(path: Path, rows: Iterable[Row], *, known: set[bytes]) -> int:
    """Add the lines that are not yet `known` to a log, and return how many those were."""
    lines = dict.fromkeys(json_lines([row]) for row in rows)
    new = [line for line in lines if line not in known]
    if new:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # half a line is then nobody's who still writes
            if log.seek(0, os.SEEK_END) and not _ends_well(log):
                log.seek(0)
                log.truncate(log.read().rfind(b"\n") + 1)
            log.write(b"".join(new))
            log.flush()
            os.fsync(log.fileno())
        known.update(new)
    return len(new)


def _ends_well(log: BinaryIO) -> bool:
    log.seek(-1, os.SEEK_END)
    return log.read(1) == b"\n"


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the lines of a log, none where there is no log yet; UserError for a broken line."""
    for number, line in enumerate(_lines(path), start=1):
        try:
            yield json.loads(line)
        except ValueError:
            raise UserError(
                f"{path}, line {number} is not JSON: the file was edited; remove that line, then "
                "pull or push again"
            ) from None


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as lines:
            yield from (line for line in lines if line.endswith(b"\n"))


def known_lines(path: Path) -> set[bytes]:
    """Return the lines of a log, to tell which ones are new."""
    return set(_lines(path))


def read_tasks(folder: Path) -> dict[str, Task]:
    """Return what was sent, by the task's key."""
    return {row["task"]: Task.from_row(row) for row in read_lines(folder / TASKS)}


def record(
    folder: Path,
    exported: Iterable[Row],
    tasks: Mapping[str, Task],
    *,
    readers: Mapping[int, str] | None = None,
) -> tuple[int, list[Rejected]]:
    """Add the annotations of an export to the log; return how many are new, and the rejects.

    `exported` are tasks as Label Studio exports them, `readers` the names of its users. UserError
    where it is no such export, or where none of its tasks was sent from here.
    """
    new: list[Row] = []
    rejects: list[Rejected] = []
    strangers = known = 0
    for place, row in enumerate(exported):
        try:
            where = f"project {row.get('project')}, task {row.get('id', place)}"
            reason, detail = _edited(row["data"], tasks)
            known += reason != "not_pushed"
            strangers += reason == "not_pushed"
            if reason:
                study = str(row["data"].get("study_id"))
                rejects.append(Rejected(SOURCE, where, reason, detail, study))
            else:
                new += (
                    _snapshot(row, annotation, readers or {}) for annotation in row["annotations"]
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"task {place} is not of a Label Studio export in JSON ({error!r}): expected a "
                "list of tasks with `data` and `annotations`; export as JSON, not as JSON_MIN"
            ) from None
    if strangers and not known:
        raise UserError(
            f"none of the {strangers} exported tasks was pushed from this dataset: this is another "
            f"project, or another --reviews folder than {folder}"
        )
    path = folder / ANNOTATIONS
    return append(path, new, known=known_lines(path)), rejects


def _edited(data: Mapping[str, Any], tasks: Mapping[str, Task]) -> tuple[str, str]:
    """Return why the answers to an exported task cannot be used, if so: a reason and the detail."""
    task = tasks.get(str(data.get("task")))
    if task is None:
        return "not_pushed", "the task was not pushed from this dataset; pull its own project"
    for name, expected in (("study_id", task.study_id), ("report", task.shown.text)):
        if data.get(name) != expected:
            return "task_edited", (
                f"{name} is not what was pushed: someone edited the task in Label Studio; push the "
                "study again and review that task"
            )
    return "", ""


def _snapshot(task: Row, annotation: Row, readers: Mapping[int, str]) -> Row:
    by = annotation["completed_by"]
    reader = by["email"] if isinstance(by, dict) else readers.get(by, f"user {by}")
    return {
        "task": task["data"]["task"],
        "study_id": task["data"]["study_id"],
        "project": task.get("project"),
        "id": annotation["id"],
        "reader": reader,
        **{name: annotation.get(name) for name in ("updated_at", "lead_time", "was_cancelled")},
        "result": annotation["result"],
    }


def read_reviews(folder: Path) -> tuple[list[Review], list[Rejected]]:
    """Read the reviews off the folder, of each annotation its last state, and the rejects."""
    tasks = read_tasks(folder)
    last = {(line["project"], line["id"]): line for line in read_lines(folder / ANNOTATIONS)}
    reviews: list[Review] = []
    rejects: list[Rejected] = []
    for (project, number), line in sorted(last.items(), key=lambda item: str(item[0])):
        where = f"project {project}, annotation {number}"
        try:
            reviews.append(read_annotation(tasks[line["task"]], line))
        except UnreadableError as error:
            detail = f"{error}; correct it in Label Studio and pull again"
            rejects.append(
                Rejected(SOURCE, where, "annotation_unreadable", detail, line["study_id"])
            )
        except KeyError:
            detail = f"{TASKS} has no task {line['task']}"
            rejects.append(Rejected(SOURCE, where, "not_pushed", detail, line["study_id"]))
    return reviews, rejects


def write_rejects(folder: Path, rejects: Iterable[Rejected]) -> None:
    """Write what the last pull could not use."""
    (folder / REJECTS).write_bytes(json_lines(rejected.to_row() for rejected in rejects))
