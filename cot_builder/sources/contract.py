"""What every source takes and gives: options in, a plan of tasks, one loaded report a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cot_builder.records import Image, Rejected, Report, Section
from knowledge_banks import Banks

# The dataset's split values are `datasets`' own; releases write the second one in many ways.
SPLITS: Final = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Where a release lies and how to read it; a source ignores the options that are not its own.

    `root` is the release's folder (for `table`: the file). `splits` (iu_xray) is a JSON file of ids
    by split. The `*_column` names are for `table`. For box sources, `columns` pairs our names of
    columns with the release's, `boxes` is told its `box_columns` and `box_format`, and
    `mimic_root` is where MIMIC-CXR-JPG lies for those that annotate it.
    """

    banks: Banks
    root: Path | None = None
    limit: int | None = None
    check_images: bool = False
    iu_format: Literal["auto", "openi", "kaggle"] = "auto"
    splits: Path | None = None
    text_column: str | None = None
    findings_column: str | None = None
    impression_column: str | None = None
    id_column: str | None = None
    subject_column: str | None = None
    split_column: str | None = None
    image_column: str | None = None
    mimic_root: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    box_columns: tuple[str, ...] = ()
    box_format: Literal["xyxy", "xywh"] | None = None

    def described(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, for the manifest.

        Root and banks are left out: the manifest names them in its own way.
        """
        chosen = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("root", "banks") and getattr(self, field.name) != field.default
        }
        return {
            name: value.name if isinstance(value, Path) else value for name, value in chosen.items()
        }


class Mark(NamedTuple):
    """A phrase on an image as one row of a release says it, with its box if it has one.

    `box` is xyxy in the image's pixels, unchecked; `classes` are the release's own. `place` is the
    row (`name.csv:line`); `reader` keeps the phrases of two readings of an image apart.
    """

    place: str
    image_id: str
    phrase: str
    box: tuple[float, float, float, float] | None
    classes: tuple[str, ...] = ()
    kind: str = "manual"
    certainty: float | None = None
    reader: str = ""


class Task(NamedTuple):
    """One study to load; `file` is its report below the root (a table: `name.csv:line`).

    `texts` holds the raw sections where the plan had to read them; a section named "" is a whole
    report. `marks` are a box source's phrases. `have_images`: the release has image files, so that
    a missing one is a reject.
    """

    study_id: str
    subject_id: str | None
    split: str | None
    file: str
    images: tuple[Image, ...] = ()
    texts: tuple[Section, ...] = ()
    have_images: bool = True
    marks: tuple[Mark, ...] = ()


class Plan(NamedTuple):
    """The studies to load, in a fixed order, and all that could not become one.

    `release` says which release it is, `notes` what a reader of the manifest should know.
    """

    tasks: list[Task]
    rejects: list[Rejected]
    release: str | None = None
    notes: tuple[str, ...] = ()


class Loaded(NamedTuple):
    """One study read: the report, or None with the reason; a report may have lost an image."""

    report: Report | None
    rejects: tuple[Rejected, ...] = ()


class Redistribution(NamedTuple):
    """What of a release its holders may hand on, and why no more: its reports, its pixels."""

    text: bool
    images: bool
    why: str = ""


OPEN: Final = Redistribution(True, True)
CREDENTIALED: Final = Redistribution(
    False, False, "its data use agreement forbids to share access with anyone else"
)
UNKNOWN: Final = Redistribution(
    False, False, "its licence is yours to read: cot-builder does not know it"
)


class Source(NamedTuple):
    """A kind of release. `load` is a pure function of the files, run in worker processes.

    `redistribution` is what `publish` goes by; `sections` are those that a build decomposes unless
    it is told others.
    """

    name: str
    plan: Callable[[SourceOptions], Plan]
    load: Callable[[Task, SourceOptions], Loaded]
    credentialed: bool
    redistribution: Redistribution
    licence: str
    citation: str
    sections: tuple[str, ...] = ("findings", "impression")


def in_order(tasks: Iterable[Task], limit: int | None) -> list[Task]:
    """Sort tasks by study id, shorter ids first (CXR2 before CXR10), and keep the first `limit`."""
    return sorted(tasks, key=lambda task: (len(task.study_id), task.study_id))[:limit]
