"""What the sources of boxes share: rows to tasks by study, and the marks of a task to a report.

A report of such a source has one section, `phrases`: a line for each phrase of an image. Rows of
the same phrase, image and reader are one line with several boxes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.boxes import Box
from cot_builder.errors import UserError
from cot_builder.images import SUFFIXES, BadImageError, probe
from cot_builder.records import Grounded, Image, Rejected, Report, Section
from cot_builder.sections import clean_text
from cot_builder.sources.contract import SPLITS, Loaded, Mark, SourceOptions, Task, in_order
from cot_builder.sources.reading import Rejects, UnusableError
from cot_builder.vocabulary import LABELS
from knowledge_banks import Banks

SECTION: Final = "phrases"

XYXY = tuple[float, float, float, float]
# Image, reader and phrase → label → boxes.
Lines = dict[tuple[str, str, str], dict[str | None, list[Box]]]


class Marked(NamedTuple):
    """A row of a release: a mark, its study and image, and the split in the release's own word."""

    study_id: str
    subject_id: str | None
    split: str
    image: Image
    mark: Mark


# -- columns


def column_names(
    options: SourceOptions, *, source: str, ours: Iterable[str], theirs: Mapping[str, str] = {}
) -> dict[str, str]:
    """Return the release's name for each of our columns, `--columns` before `theirs`."""
    known = list(ours)
    for name, _ in options.columns:
        if name not in known:
            raise UserError(
                f"--columns {name}=...: --source {source} has no such column; it reads "
                f"{', '.join(known)}"
            )
    return {name: name for name in known} | dict(theirs) | dict(options.columns)


def number(value: Any, column: str) -> float:
    """Read a number of a table; UnusableError for anything else, an empty cell too."""
    try:
        return float(value)
    except (TypeError, ValueError):
        detail = f"column {column!r}: expected a number, got {value!r:.60}"
        raise UnusableError("malformed_row", detail) from None


def pixels(value: Any, column: str) -> int | None:
    """Read the width or height of an image; None where the cell is empty."""
    if value in (None, ""):
        return None
    size = number(value, column)
    if not (math.isfinite(size) and size >= 1 and size == int(size)):
        detail = f"column {column!r}: expected a number of pixels, got {value!r:.60}"
        raise UnusableError("malformed_row", detail)
    return int(size)


def xywh_to_xyxy(x: float, y: float, w: float, h: float) -> XYXY:
    """Turn left upper corner, width and height into two corners.

    >>> xywh_to_xyxy(10, 20, 30, 40)
    (10, 20, 40, 60)
    """
    return x, y, x + w, y + h


def find_image(folder: Path, name: str, below: str = "images") -> str:
    """Return an image's path from a folder: in it, or in the folder `below` if it lies there."""
    inside = f"{below}/{name}"
    return inside if not (folder / name).exists() and (folder / inside).exists() else name


# -- rows to tasks


def tasks_by_study(
    rows: Iterable[Marked],
    rejects: Rejects,
    options: SourceOptions,
    *,
    root: Path,
    official: Mapping[str, str] | None = None,
) -> tuple[list[Task], tuple[str, ...]]:
    """Gather rows into tasks, one a study, with notes for the manifest; image paths start at root.

    `official` has the split of each study of the release that the rows annotate ("" where that is
    unclear): a row that says another becomes a reject. So do rows whose split nobody knows, and
    those whose subject, split or image is not that of the study's first row.
    """
    studies: dict[str, list[Marked]] = {}
    unmapped: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for row in rows:
        words[row.split] += 1
        try:
            row = row._replace(split=_split(row, official))
            same = studies.setdefault(row.study_id, [])
            if same:
                _check_same(same, row)
        except UnusableError as error:
            rejects.add(row.mark.place, error.reason, error.detail, row.study_id)
            continue
        same.append(row)
        unmapped.update(name for name in row.mark.classes if not label_of(name, options.banks))
    have_images = any((root / row.image.path).exists() for same in studies.values() for row in same)
    tasks = [_task(same, have_images=have_images) for same in studies.values()]
    notes = _notes(words, unmapped, official=official is not None, have_images=have_images)
    return in_order(tasks, options.limit), tuple(notes)


def _split(row: Marked, official: Mapping[str, str] | None) -> str:
    """Return our name of a row's split, "" where its release has none."""
    own = SPLITS.get(row.split.lower())
    if row.split and own is None:
        detail = f"{row.split!r}; expected one of {', '.join(SPLITS)}"
        raise UnusableError("unknown_split", detail)
    if official is None:
        return own or ""
    theirs = official.get(row.study_id)
    if not theirs:
        raise UnusableError("no_split", "MIMIC-CXR's split table gives the study no split")
    if own and own != theirs:
        detail = f"the release says {row.split!r}, MIMIC-CXR says {theirs!r}"
        raise UnusableError("split_disagrees", detail)
    return theirs


def _check_same(same: list[Marked], row: Marked) -> None:
    first = same[0]
    for what, ours, theirs in (
        ("split", row.split, first.split),
        ("subject", row.subject_id, first.subject_id),
    ):
        if ours != theirs:
            detail = f"{what} {ours!r}; {first.mark.place} of the same study says {theirs!r}"
            raise UnusableError(f"{what}_conflict", detail)
    for other in same:
        if other.image.image_id == row.image.image_id and other.image != row.image:
            detail = f"{row.image}; {other.mark.place} says {other.image}"
            raise UnusableError("image_conflict", detail)


def _task(rows: list[Marked], *, have_images: bool) -> Task:
    first = rows[0]
    return Task(
        study_id=first.study_id,
        subject_id=first.subject_id,
        split=first.split or None,
        file=first.mark.place,
        images=tuple({row.image.image_id: row.image for row in rows}.values()),
        have_images=have_images,
        marks=tuple(row.mark for row in rows),
    )


def _notes(
    words: Counter[str], unmapped: Counter[str], *, official: bool, have_images: bool
) -> Iterator[str]:
    total = words.total()
    if official:
        yield "rows whose split is not MIMIC-CXR's are left out, as `split_disagrees`"
        if odd := {
            word: count for word, count in words.items()
            if word and word != "validate" and SPLITS.get(word.lower()) == "validation"
        }:  # fmt: skip
            said = " and ".join(f"`{word}`" for word in odd)
            yield (
                f"{sum(odd.values()):,} of {total:,} rows say {said} where MIMIC-CXR says "
                "`validate`: read as the same; to compare the words would lose all of them"
            )
    elif set(words) - {""}:
        yield "splits are the release's own (on MIMIC-CXR, --mimic-root compares them with its)"
    if not have_images:
        yield "no image files were found: sizes are as the release's tables give them"
    if unmapped:
        listed = ", ".join(f"{name} ({count:,})" for name, count in sorted(unmapped.items()))
        yield f"classes that are none of the 14 labels: {listed}"


# -- a task to its report


def load_marks(source: str, task: Task, options: SourceOptions, *, root: Path) -> Loaded:
    """Make the report of a task from its marks, with boxes that fit the images.

    Image paths start at `root`. A box that is partly outside its image is clipped, and stands in
    the rejects too; one that cannot be used stands there alone, with its row.
    """
    rejects: list[Rejected] = []

    def reject(file: str, reason: str, detail: str) -> None:
        rejects.append(Rejected(source, file, reason, detail, task.study_id))

    images: dict[str, Image] = {}
    for image in task.images:
        try:
            images[image.image_id] = _sized(image, root, task, full=options.check_images)
        except BadImageError as error:
            reject(image.path, error.reason, error.detail)
    lines: Lines = {}
    for mark in task.marks:
        try:
            phrase, box, clipped = _read_mark(mark, images.get(mark.image_id), source)
            line = lines.setdefault((mark.image_id, mark.reader, phrase), {})
            if box and not _add(box, line, mark, options.banks):
                raise UnusableError("duplicate_box", f"another row gives {phrase!r:.80} this box")
        except UnusableError as error:
            reject(mark.place, error.reason, error.detail)
            continue
        if clipped:
            assert box
            reject(mark.place, clipped, f"{mark.box}; the image ends at {tuple(box.size)}")
    if not lines:
        return Loaded(None, tuple(rejects))
    text, grounded = _written(lines)
    report = Report(
        task.study_id, task.subject_id, source, task.split, (Section(SECTION, text),),
        tuple(images.values()), task.file, grounded,
    )  # fmt: skip
    return Loaded(report, tuple(rejects))


def _sized(image: Image, root: Path, task: Task, *, full: bool) -> Image:
    """Return an image with the size of its file; one of another size has its boxes elsewhere."""
    path = root / image.path
    if task.have_images and not path.exists():
        raise BadImageError("image_missing", "the release names this image, and it is not there")
    said = (image.width, image.height)
    if task.have_images and path.suffix.lower() in SUFFIXES:
        found = probe(path, full=full)
        if all(said) and said != found:
            raise BadImageError(
                "image_size_mismatch",
                f"the boxes are for {said[0]} x {said[1]} pixels, the file has {found[0]} x "
                f"{found[1]}; give the release's original images",
            )
        return image._replace(width=found[0], height=found[1])
    if not all(said):
        raise BadImageError("no_image_size", "neither a table nor an image file tells its size")
    return image


def _read_mark(mark: Mark, image: Image | None, source: str) -> tuple[str, Box | None, str | None]:
    """Return a mark's phrase on one line, its box, and why that was cut if it was."""
    phrase = " ".join(clean_text(mark.phrase).split()) if mark.phrase.strip() else ""
    if not phrase:
        raise UnusableError("empty_phrase", f"got {mark.phrase!r:.60}")
    if image is None or image.width is None or image.height is None:
        raise UnusableError("box_without_image", f"image {mark.image_id} cannot be used")
    if mark.box is None:
        return phrase, None, None
    box, reason = Box.clipped(
        *mark.box, width=image.width, height=image.height, image_id=image.image_id,
        source=source, kind=mark.kind, certainty=mark.certainty,
    )  # fmt: skip
    if box is None:
        assert reason
        raise UnusableError(reason, f"{mark.box} in {image.width} x {image.height} pixels")
    return phrase, box, reason


def _add(box: Box, line: dict[str | None, list[Box]], mark: Mark, banks: Banks) -> bool:
    """Add a box to a line for each label of its mark; False when it stood there already."""
    labels = {label: None for name in mark.classes if (label := label_of(name, banks))}
    new = [boxes for label in labels or [None] if box not in (boxes := line.setdefault(label, []))]
    for boxes in new:
        boxes.append(box)
    return bool(new)


def _written(lines: Lines) -> tuple[str, tuple[Grounded, ...]]:
    """Write the phrases below each other; a phrase of two labels is grounded once for each."""
    texts: list[str] = []
    grounded: list[Grounded] = []
    start = 0
    for (_, _, phrase), by_label in lines.items():
        end = start + len(phrase)
        for label, boxes in by_label.items():
            grounded.append(Grounded(SECTION, start, end, label, tuple(boxes)))
        texts.append(phrase)
        start = end + 1
    return "\n".join(texts), tuple(grounded)


# -- labels

_labels: dict[str, dict[str, str | None]] = {}


def label_of(category: str, banks: Banks) -> str | None:
    """Return which of the 14 labels a release's class is, by the banks; None for none of them."""
    if banks.sha256 not in _labels:
        names = {name: label or None for name, label in banks.releases["category"].items()}
        for disease in banks.diseases["disease"]:
            names |= dict.fromkeys(disease.get("aliases", ()), disease["name"])
        names |= {label: label for label in LABELS}
        _labels[banks.sha256] = {name.casefold(): label for name, label in names.items()}
    return _labels[banks.sha256].get(category.casefold())
