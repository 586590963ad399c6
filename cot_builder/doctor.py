"""Examine the boxes of a dataset as a model will see them: `cot-builder doctor`.

Every box goes through the model's processor into the numbers that a model writes, and back. The
doctor also tells what a perfect model would score if its answers were read in the wrong frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Group
from rich.text import Text

from cot_builder.boxes import (
    QUARTER,
    XYXY,
    Box,
    Frame,
    Pixels,
    Size,
    check_frames,
    iou,
    rescaled,
    rounded,
    scaled,
)
from cot_builder.conversations import grounded_phrases
from cot_builder.dataset import read_manifest, read_rejects, read_studies
from cot_builder.errors import UserError
from cot_builder.images import SUFFIXES, BadImageError, derivative, probe
from cot_builder.records import Row
from cot_builder.show import plain, plain_table

# A truth and an answer whose boxes were one coincide by more than this, whatever their rounding.
_MATCH: Final = 0.5
# So many boxes that all fit a smaller frame are no accident of where the findings lie.
_TELLING: Final = 5
_SMALLER: Final = 0.6
# More faulty boxes than this share come from reading them wrongly, not from slips of the release.
_FAULTY: Final = 0.2
_COLUMNS: Final = ("study_id", "sections", "images", "chains", "grounded")


# From an image's path in the dataset to its file.
Files = Callable[[str], Path]


class Reader(NamedTuple):
    """How a model sees and reads: its real processor, or the recipe's numbers in its place.

    `see` gives the size to which an image (a file, or a blank one of a size) is resized,
    `length` how many tokens a text has.
    """

    name: str
    pixels: Pixels
    see: Callable[[Path | Size], Size]
    length: Callable[[str], int] | None = None


class Example(NamedTuple):
    """A phrase with its boxes on one image, as a model learns it; `path` starts at the root."""

    study_id: str
    path: str
    phrase: str
    boxes: tuple[Box, ...]

    @property
    def where(self) -> str:
        """Name the row for a message."""
        return f"study {self.study_id}, image {self.boxes[0].image_id}, {self.phrase!r:.60}"


@dataclass(slots=True)
class Tally:
    """A mean with its n, its least value, and how often the value was above one half."""

    n: int = 0
    total: float = 0.0
    least: float = float("inf")
    least_at: str = ""
    above: int = 0

    def add(self, value: float, at: str = "") -> None:
        """Count one value, that of the row `at`."""
        self.n += 1
        self.total += value
        self.above += value > _MATCH
        if value < self.least:
            self.least, self.least_at = value, at

    @property
    def mean(self) -> float | None:
        """The mean; None for no values."""
        return self.total / self.n if self.n else None


@dataclass(slots=True)
class Cases:
    """How many rows something holds for, and the first of them."""

    n: int = 0
    first: str = ""

    def add(self, at: str) -> None:
        """Count the row `at`."""
        self.first = self.first or at
        self.n += 1


@dataclass(slots=True)
class Checkup:
    """What the doctor found; `problems` are what must be put right before a model is trained."""

    reader: Reader
    frame: Frame
    files: Files | None
    max_length: int | None
    images: int = 0
    examples: int = 0
    round_trip: Tally = field(default_factory=Tally)
    tokens: Tally = field(default_factory=Tally)
    most_tokens: int = 0
    under_one_patch: Cases = field(default_factory=Cases)
    cut: Cases = field(default_factory=Cases)
    cut_again: Cases = field(default_factory=Cases)
    quarter_cut: Cases = field(default_factory=Cases)
    too_long: Cases = field(default_factory=Cases)
    mistakes: dict[str, Tally] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def recorded_frame(dataset: Path) -> Frame:
    """Return the frame and pixel budget that a dataset's manifest names."""
    return Frame.from_row(read_manifest(dataset).get("frame", {}))


def image_files(dataset: Path, root: Path | None = None) -> Files | None:
    """Return where the file of an image path lies: below `root`, or reduced below the dataset.

    None when neither is known, since a dataset does not tell where its release was.
    """
    if root is not None:
        return lambda path: root / path
    if read_manifest(dataset).get("images"):
        return lambda path: dataset / derivative(path)
    return None


class _Look(NamedTuple):
    """The size of an image as the processor gets it, and as it hands it to the model."""

    shown: Size
    seen: Size


def recipe_reader(pixels: Pixels) -> Reader:
    """Return a reader that resizes by our own `smart_resize`, without a processor."""
    said = f"factor {pixels.factor}, {pixels.min_pixels} to {pixels.max_pixels} pixels"

    def see(image: Path | Size) -> Size:
        return pixels.seen(image if isinstance(image, Size) else Size(*probe(image)))

    return Reader(f"no model: Qwen-VL's resizing ({said})", pixels, see)


def read_examples(dataset: Path) -> Iterator[tuple[Row, Example]]:
    """Yield every phrase with boxes, a phrase on two images twice, with the row it stands in."""
    for row in read_studies(dataset, columns=_COLUMNS):
        for phrase in grounded_phrases(row):
            yield row, Example(row["study_id"], phrase.path, phrase.text, phrase.boxes)


def examine(
    dataset: Path,
    reader: Reader,
    *,
    root: Path | None = None,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Checkup:
    """Run every example through the reader and back, and gather what is wrong.

    With `root`, the folder at which image paths start, the files themselves are read, or else the
    dataset's own reduced images; without either, blank images of the recorded sizes.
    """
    recorded = recorded_frame(dataset)
    frame = recorded._replace(pixels=reader.pixels)
    files = image_files(dataset, root)
    found = Checkup(reader, frame, files, max_length)
    try:
        check_frames(data=recorded, processor=reader.pixels)
    except UserError as error:
        found.problems.append(str(error))
    looks: dict[str, _Look | None] = {}
    placed: dict[str, _Placed] = {}
    for row, example in read_examples(dataset):
        found.examples += 1
        progress(found.examples)
        image_id = example.boxes[0].image_id
        if image_id not in looks:
            looks[image_id] = None
            try:
                look = _look(example, frame, reader, files)
                _count_image(found, example, look)
                looks[image_id] = look
            except (BadImageError, UserError, ValueError) as error:
                found.problems.append(f"{example.where}: {error}")
        if (known := looks[image_id]) is None:
            continue
        for box in example.boxes:
            _count_box(found, box, known, example)
            placed.setdefault(box.source, _Placed()).add(box, example)
        _count_length(found, row, example, known)
    if not found.examples:
        raise UserError(
            f"{dataset} holds no box: build it from a source that has some (--source ms_cxr, nih)"
        )
    found.problems += (said for where in placed.values() if (said := where.suspicion()))
    found.problems += _misread(dataset, boxes=found.round_trip.n)
    return found


# -- one image, one box


def _look(example: Example, frame: Frame, reader: Reader, files: Files | None) -> _Look:
    size = example.boxes[0].size
    wanted = scaled(size, QUARTER if frame.name == "quarter_pixels" else frame.scale)
    frame.extent(size)  # quarter_pixels refuses a budget that resizes again
    file = files(example.path) if files else None
    if file is None or file.suffix.lower() not in SUFFIXES:  # of DICOM the recorded size will do
        return _Look(wanted, reader.see(wanted))
    had = Size(*probe(file))
    if had.width > size.width or abs(had.height - size.height * had.width / size.width) > 1:
        raise BadImageError(
            "image_size_mismatch",
            f"the boxes are for {size.width:.0f} x {size.height:.0f} pixels, {file} has "
            f"{had.width:.0f} x {had.height:.0f}: they are in the frame of another image",
        )
    return (
        _Look(had, reader.see(file)) if wanted in (had, size) else _Look(wanted, reader.see(wanted))
    )


def _count_image(found: Checkup, example: Example, look: _Look) -> None:
    pixels, size = found.reader.pixels, example.boxes[0].size
    tokens = round(look.seen.width * look.seen.height) // pixels.factor**2
    found.images += 1
    found.tokens.add(tokens)
    found.most_tokens = max(found.most_tokens, tokens)
    if pixels.cut(look.shown):
        found.cut.add(example.where)
        if look.shown != size:
            found.cut_again.add(example.where)
    if pixels.cut(scaled(size, QUARTER)):
        found.quarter_cut.add(example.where)


def _count_box(found: Checkup, box: Box, look: _Look, example: Example) -> None:
    frame, size = found.frame, box.size
    # A model that answers in pixels counts those that it really sees.
    extent = look.seen if frame.name == "model_pixels" else frame.extent(size)
    answer = rounded(rescaled(box.xyxy, size, extent), extent)
    found.round_trip.add(iou(frame.back(answer, size), box.xyxy), example.where)
    x1, y1, x2, y2 = rescaled(box.xyxy, size, look.seen)
    if min(x2 - x1, y2 - y1) < found.reader.pixels.factor:
        found.under_one_patch.add(example.where)
    for name, mistake in MISTAKES.items():
        truth, answer_read = mistake(box.xyxy, size, frame.pixels)
        found.mistakes.setdefault(name, Tally()).add(iou(truth, answer_read))


def _count_length(found: Checkup, row: Row, example: Example, look: _Look) -> None:
    if found.max_length is None:
        return
    length = round(look.seen.width * look.seen.height) // found.reader.pixels.factor**2
    if text_length := found.reader.length:
        answer = [found.frame.integers(box.xyxy, box.size) for box in example.boxes]
        report = "\n".join(section["text"] for section in row["sections"])
        length += max(text_length(f"{example.phrase} {answer}"), text_length(report))
    if length > found.max_length:
        found.too_long.add(example.where)


# -- boxes that were wrong before they came here


_FRAMES_MET: Final[dict[str, Callable[[Size], Size]]] = {
    "fractions of the image": lambda size: Size(1, 1),
    "percent": lambda size: Size(100, 100),
    "quarter pixels": lambda size: scaled(size, QUARTER),
    "0-1000": lambda size: Size(1000, 1000),
}


@dataclass(slots=True)
class _Placed:
    """The boxes of a source: how many, the first, and the smaller frames that hold them all."""

    n: int = 0
    first: str = ""
    frames: set[str] = field(default_factory=lambda: set(_FRAMES_MET))

    def add(self, box: Box, example: Example) -> None:
        self.n += 1
        self.first = self.first or f"{example.where}, {box.xyxy} in {box.width} x {box.height}"
        for name in tuple(self.frames):
            limit = _FRAMES_MET[name](box.size)
            inside = box.x2 <= limit.width and box.y2 <= limit.height
            much_smaller = max(limit.width / box.width, limit.height / box.height) <= _SMALLER
            if not (inside and much_smaller):
                self.frames.remove(name)

    def suspicion(self) -> str | None:
        """Say when no box leaves a frame much smaller than the images."""
        if self.n < _TELLING or not self.frames:
            return None
        name = next(name for name in _FRAMES_MET if name in self.frames)
        return (
            f"all {self.n} boxes of a source lie in the upper left of their images, as if in "
            f"{name}; expected original pixels. First: {self.first}"
        )


def _misread(dataset: Path, *, boxes: int) -> Iterator[str]:
    """Say when so many boxes were not valid that their columns must mean something else."""
    meant = {
        "box_inverted": "x, y, width, height read as two corners",
        "box_clipped": "two corners read as x, y, width, height, or boxes of larger images",
        "box_outside": "boxes of larger images",
    }
    faulty = [row for row in read_rejects(dataset) if row["reason"] in meant]
    for reason, said in meant.items():
        rows = [row for row in faulty if row["reason"] == reason]
        if len(rows) >= max(_TELLING, _FAULTY * (boxes + len(faulty))):
            yield (
                f"{len(rows)} boxes met {reason}, beside {boxes} in the dataset: {said}? First: "
                f"{rows[0]['file']}: {rows[0]['detail']}"
            )


# -- what a perfect model would score


def _said(xyxy: XYXY, size: Size, extent: Size) -> XYXY:
    return rounded(rescaled(xyxy, size, extent), extent)


_NORM: Final = Size(1000, 1000)

# To add one: name it here; from a box, its image's size and the pixel budget it makes the truth and
# the answer as they would be compared.
MISTAKES: Final[dict[str, Callable[[XYXY, Size, Pixels], tuple[XYXY, XYXY]]]] = {
    "none, answers in 0-1000": lambda box, size, pixels: (
        box,
        rescaled(_said(box, size, _NORM), _NORM, size),
    ),
    "none, answers in quarter pixels": lambda box, size, pixels: (
        box,
        rescaled(_said(box, size, q := scaled(size, QUARTER)), q, size),
    ),
    "rounded twice: quarter pixels, then 0-1000": lambda box, size, pixels: (
        rescaled(box, size, _NORM),
        _said(_said(box, size, q := scaled(size, QUARTER)), q, _NORM),
    ),
    "truth in quarter pixels, answers in 0-1000": lambda box, size, pixels: (
        rescaled(box, size, scaled(size, QUARTER)),
        _said(box, size, _NORM),
    ),
    "truth in original pixels, answers in 0-1000": lambda box, size, pixels: (
        box,
        _said(box, size, _NORM),
    ),
    "truth in 0-1000, answers in pixels of the resized image": lambda box, size, pixels: (
        rescaled(box, size, _NORM),
        _said(box, size, pixels.seen(size)),
    ),
    "truth in quarter pixels, answers in pixels of the resized quarter": lambda box, size, pixels: (
        rescaled(box, size, q := scaled(size, QUARTER)),
        _said(box, size, pixels.seen(q)),
    ),
    "x, y, width, height read as two corners": lambda box, size, pixels: (
        box,
        (box[0], box[1], box[2] - box[0], box[3] - box[1]),
    ),
    "two corners read as x, y, width, height": lambda box, size, pixels: (
        box,
        (box[0], box[1], box[0] + box[2], box[1] + box[3]),
    ),
    "x and y swapped": lambda box, size, pixels: (box, (box[1], box[0], box[3], box[2])),
    "width and height of the image swapped": lambda box, size, pixels: (
        box,
        rescaled(_said(box, size, _NORM), _NORM, Size(size.height, size.width)),
    ),
    "image mirrored, boxes not": lambda box, size, pixels: (
        box,
        (size.width - box[2], box[1], size.width - box[0], box[3]),
    ),
}


# -- what is printed


def checkup_tables(found: Checkup) -> Group:
    """Draw what was found: figures, the mistakes' scores, then the problems."""
    seen = (
        f"{found.images:,} images"
        if found.files
        else f"{found.images:,} blank images of their size"
    )
    figures = plain_table("What the model sees")
    figures.add_column()
    figures.add_column(justify="right")
    figures.add_column()
    for what, number, note in _figures(found):
        figures.add_row(what, number, plain(note))
    mistakes = plain_table(f"What a perfect model would score (n = {found.round_trip.n:,} boxes)")
    mistakes.add_column("mistake")
    mistakes.add_column("mean IoU", justify="right")
    mistakes.add_column("IoU > 0.5", justify="right")
    for name, tally in found.mistakes.items():
        mistakes.add_row(name, f"{tally.mean:.4f}", f"{100 * tally.above / tally.n:.1f} %")
    problems = [Text(plain(f"problem: {line}"), style="red") for line in found.problems]
    healthy = Text("no problem found", style="green")
    return Group(
        Text(f"reader: {found.reader.name}; {seen}"),
        Text(f"frame: {found.frame.name}, {found.reader.pixels}, scale {found.frame.scale:g}"),
        figures,
        mistakes,
        *(problems or [healthy]),
    )


def _figures(found: Checkup) -> Iterator[tuple[str, str, str]]:
    trip, tokens = found.round_trip, found.tokens
    yield "phrases on an image", f"{found.examples:,}", f"{trip.n:,} boxes"
    if trip.n:
        yield "round trip, mean IoU", f"{trip.mean:.4f}", "whole numbers of the frame and back"
        yield "round trip, least IoU", f"{trip.least:.4f}", trip.least_at
        yield (
            "visual tokens, mean",
            f"{tokens.mean:,.0f}",
            f"{tokens.least:,.0f} to {found.most_tokens:,}",
        )
    rows = {
        "boxes thinner than one token": found.under_one_patch,
        "images reduced by max_pixels": found.cut,
        "… already reduced: resized twice": found.cut_again,
        "… whose quarter would be, too": found.quarter_cut,
    }
    if found.max_length is not None:
        words = "visual tokens and text" if found.reader.length else "visual tokens alone"
        rows[f"longer than {found.max_length:,} ({words})"] = found.too_long
    for what, cases in rows.items():
        yield what, f"{cases.n:,}", f"first: {cases.first}" if cases.n else ""
