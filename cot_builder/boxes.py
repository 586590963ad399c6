"""Boxes in the original image's pixels; every other frame is a conversion at the edge.

A frame is only a size: what the whole image measures in its numbers. In `norm1000` every image is
1000 wide and 1000 high, in `model_pixels` it is as large as the model's processor makes it; so one
rule converts both ways, and no frame has a formula of its own to get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from cot_builder.errors import UserError

# Who or what drew a box: a reader, a reader's ellipse, their gaze, an anatomy detector, a model.
KINDS: Final = ("manual", "ellipse", "gaze", "prior", "model")
# The paper's images are a quarter as wide and as high as the originals.
QUARTER: Final = 0.25
# Longer strips than this are refused by the processors of Qwen-VL.
_LONGEST: Final = 200

XYXY = tuple[float, float, float, float]


class Size(NamedTuple):
    """Width and height, in the units of a frame."""

    width: float
    height: float


class Clipped(NamedTuple):
    """A box made to fit its image, or None, with the reason when it was not taken as it came."""

    box: Box | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle `x1, y1, x2, y2` in the pixels of an original image of `width` x `height`.

    Valid at birth: finite, not empty, inside its image; otherwise ValueError. `source` is the
    release that has it, `kind` how it came about (one of `KINDS`), `certainty` the release's own.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    width: int
    height: int
    image_id: str
    source: str
    kind: str
    certainty: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of box {self.kind!r}; expected one of {KINDS}")
        if reason := _fault(self.xyxy, self.width, self.height):
            raise ValueError(
                f"{reason}: {self.xyxy} in {self.image_id}, {self.width} x {self.height} pixels; "
                "expected 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height"
            )

    @property
    def xyxy(self) -> XYXY:
        """The four corners' numbers, in original pixels."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def size(self) -> Size:
        """The size of the image, in original pixels."""
        return Size(self.width, self.height)

    @classmethod
    def clipped(
        cls,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        *,
        width: int,
        height: int,
        image_id: str,
        source: str,
        kind: str,
        certainty: float | None = None,
    ) -> Clipped:
        """Return the part of a box that lies in its image, and what was wrong with it.

        `box_clipped` comes with the box that is left; `box_not_finite`, `box_empty`, `box_inverted`
        and `box_outside` come without one.
        """
        fault = _fault((x1, y1, x2, y2), width, height)
        if fault and fault != "box_clipped":
            return Clipped(None, fault)
        left, top = float(max(x1, 0)), float(max(y1, 0))
        right, bottom = float(min(x2, width)), float(min(y2, height))
        box = cls(left, top, right, bottom, width, height, image_id, source, kind, certainty)
        return Clipped(box, fault)

    @classmethod
    def from_xywh(cls, x: float, y: float, w: float, h: float, **image: Any) -> Clipped:
        """Clip a box given by its left upper corner, width and height; the rest as `clipped`."""
        return cls.clipped(x, y, x + w, y + h, **image)

    @classmethod
    def from_ellipse(cls, cx: float, cy: float, rx: float, ry: float, **image: Any) -> Clipped:
        """Clip the box around an upright ellipse given by centre and radii; kind is `ellipse`."""
        return cls.clipped(cx - rx, cy - ry, cx + rx, cy + ry, **{**image, "kind": "ellipse"})

    def to_row(self) -> dict[str, Any]:
        """Return the box as a row of the dataset's `boxes`."""
        return {
            "x1": self.x1,
            "y1": self.y1,
            "x2": self.x2,
            "y2": self.y2,
            "image_id": self.image_id,
            "width": self.width,
            "height": self.height,
            "source": self.source,
            "kind": self.kind,
            "certainty": self.certainty,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Box:
        """Read a box back from a row of `boxes`."""
        return cls(**row)


def _fault(xyxy: XYXY, width: int, height: int) -> str | None:
    x1, y1, x2, y2 = xyxy
    if not all(map(math.isfinite, xyxy)):
        return "box_not_finite"
    if x2 < x1 or y2 < y1:
        return "box_inverted"
    if x1 == x2 or y1 == y2:
        return "box_empty"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return "box_outside"
    return "box_clipped" if x1 < 0 or y1 < 0 or x2 > width or y2 > height else None


def iou(a: XYXY, b: XYXY) -> float:
    """Return intersection over union from the coordinates; 0 for an empty or inverted box.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (_area(a) + _area(b) - shared) if shared else 0.0


def _area(xyxy: XYXY) -> float:
    x1, y1, x2, y2 = xyxy
    return max(x2 - x1, 0) * max(y2 - y1, 0)


def union(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all boxes, which lie on one image; the first names it."""
    first, *others = boxes
    if any((box.image_id, box.size) != (first.image_id, first.size) for box in others):
        raise ValueError(f"boxes of several images have no union: {first.image_id} and others")
    x1, y1, x2, y2 = zip(first.xyxy, *(box.xyxy for box in others), strict=True)
    return replace(first, x1=min(x1), y1=min(y1), x2=max(x2), y2=max(y2))


# -- what the model sees


class Pixels(NamedTuple):
    """A processor's pixel budget: sides are multiples of `factor`, the area within the bounds.

    The defaults are those of Qwen2-VL's processor.
    """

    factor: int = 28
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384

    def seen(self, size: Size) -> Size:
        """Return the size to which the processor resizes an image of `size`."""
        height, width = smart_resize(
            round(size.height), round(size.width), self.factor, self.min_pixels, self.max_pixels
        )
        return Size(width, height)

    def tokens(self, size: Size) -> int:
        """Return how many visual tokens an image of `size` becomes: one a square of `factor`."""
        width, height = self.seen(size)
        return round(width * height) // self.factor**2

    def cut(self, size: Size) -> bool:
        """Tell whether `max_pixels` makes an image of `size` smaller, beyond the rounding."""
        return self.seen(size) != self._replace(max_pixels=2**62).seen(size)


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 16384,
) -> tuple[int, int]:  # fmt: skip
    """Return the height and width that Qwen-VL's processors give an image.

    Both are multiples of `factor`, their product within the bounds, the aspect kept as nearly as
    that allows. Source: `smart_resize` of transformers and of qwen-vl-utils, which agree.

    >>> smart_resize(3056, 2544)
    (3052, 2548)
    """
    if min(height, width) < 1 or max(height, width) > _LONGEST * min(height, width):
        raise ValueError(f"{width} x {height} pixels: longer than {_LONGEST} times its other side")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = math.floor(height / shrink / factor)
        columns = math.floor(width / shrink / factor)
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor)
        columns = math.ceil(width * grow / factor)
    return max(rows, 1) * factor, max(columns, 1) * factor


def scaled(size: Size, scale: float) -> Size:
    """Return the size of an image reduced by `scale`, in whole pixels.

    >>> scaled(Size(2544, 3057), 0.25)
    Size(width=636, height=764)
    """
    return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))


# -- the frames


class Frame(NamedTuple):
    """A frame for boxes, one of `FRAMES`, and how the model that reads it sees images.

    `scale` tells how far images are reduced before the processor gets them. The frame belongs to
    the dataset's manifest and to every checkpoint: `check_frames` holds them together.
    """

    name: str = "norm1000"
    pixels: Pixels = Pixels()
    scale: float = 1.0

    def extent(self, size: Size) -> Size:
        """Return what a whole image of `size` measures in this frame.

        UserError for an unknown frame, and for `quarter_pixels` where the quarter image would be
        resized again.
        """
        if self.name not in FRAMES:
            raise UserError(f"unknown frame {self.name!r}; the frames are {', '.join(FRAMES)}")
        return FRAMES[self.name](size, self)

    def into(self, xyxy: XYXY, size: Size) -> XYXY:
        """Convert a box from the pixels of an image of `size` into this frame.

        >>> Frame("norm1000").into((512, 0, 1024, 512), Size(1024, 1024))
        (500.0, 0.0, 1000.0, 500.0)
        """
        return rescaled(xyxy, size, self.extent(size))

    def back(self, xyxy: XYXY, size: Size) -> XYXY:
        """Convert a box of this frame into the pixels of an image of `size`."""
        return rescaled(xyxy, self.extent(size), size)

    def integers(self, xyxy: XYXY, size: Size) -> tuple[int, int, int, int]:
        """Convert a box into this frame's whole numbers, as a model writes them.

        Each number is the nearest one; a box thinner than one unit is widened to one. So a box of
        w x h units comes back with an IoU of at least (1 - 1/w)(1 - 1/h), and whole numbers of the
        frame come back as they were.

        >>> Frame("norm1000").integers((300.2, 0, 300.4, 1024), Size(1024, 1024))
        (293, 0, 294, 1000)
        """
        extent = self.extent(size)
        return rounded(rescaled(xyxy, size, extent), extent)

    def to_row(self) -> dict[str, Any]:
        """Return the frame as the manifest and checkpoints keep it."""
        return {"name": self.name, **self.pixels._asdict(), "scale": self.scale}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Frame:
        """Read a frame back; UserError when the row is none."""
        try:
            return cls(row["name"], Pixels(*(row[name] for name in Pixels._fields)), row["scale"])
        except (KeyError, TypeError):
            keys = ", ".join(Frame().to_row())
            raise UserError(f"{row!r} is no frame: expected {keys}; build again") from None


def rescaled(xyxy: XYXY, old: Size, new: Size) -> XYXY:
    """Convert a box from an image that measures `old` to the same image measuring `new`."""
    x1, y1, x2, y2 = xyxy
    return (
        x1 * new.width / old.width,
        y1 * new.height / old.height,
        x2 * new.width / old.width,
        y2 * new.height / old.height,
    )


def rounded(xyxy: XYXY, extent: Size) -> tuple[int, int, int, int]:
    """Return the nearest whole numbers of a box in an image that measures `extent`; never empty."""
    left, right = _whole_numbers(xyxy[0], xyxy[2], round(extent.width))
    top, bottom = _whole_numbers(xyxy[1], xyxy[3], round(extent.height))
    return left, top, right, bottom


def _whole_numbers(low: float, high: float, most: int) -> tuple[int, int]:
    first, last = round(low), min(round(high), most)
    if first < last:
        return first, last
    first = min(math.floor(low), most - 1)
    return first, first + 1


def _quarter_pixels(size: Size, frame: Frame) -> Size:
    if frame.scale not in (1, QUARTER):
        raise UserError(
            f"frame quarter_pixels: images are reduced to {frame.scale:g} of their size, not to a "
            f"quarter; use --image-scale {QUARTER}, or --frame norm1000"
        )
    quarter = scaled(size, QUARTER)
    if frame.pixels.cut(quarter):
        seen = frame.pixels.seen(quarter)
        raise UserError(
            f"frame quarter_pixels: the quarter of {size.width:.0f} x {size.height:.0f} is "
            f"{quarter.width:.0f} x {quarter.height:.0f} pixels, and max_pixels "
            f"{frame.pixels.max_pixels} would resize it again, to {seen.width:.0f} x "
            f"{seen.height:.0f}: the model would not see the pixels that its boxes count. Raise "
            "--max-pixels, or use --frame norm1000, which no resizing changes"
        )
    return quarter


# To add one: name it here with what a whole image of `size` measures in it.
FRAMES: Final[dict[str, Callable[[Size, Frame], Size]]] = {
    "norm1000": lambda size, frame: Size(1000, 1000),  # Qwen2-VL, Qwen3-VL
    "model_pixels": lambda size, frame: frame.pixels.seen(scaled(size, frame.scale)),  # Qwen2.5-VL
    "quarter_pixels": _quarter_pixels,  # the paper's words, read to the letter
    "percent": lambda size, frame: Size(100, 100),  # Label Studio
}


def check_frames(
    *, data: Frame, processor: Pixels | None = None, checkpoint: Frame | None = None
) -> None:
    """Raise UserError where dataset, processor and checkpoint do not see the same pixels.

    The message names every value that differs, who says which, and the remedy.
    """
    ours = data.to_row()
    others = {
        "the processor": processor._asdict() if processor else {},
        "the checkpoint": checkpoint.to_row() if checkpoint else {},
    }
    differing = [
        f"{key}: the dataset says {ours[key]}, {who} {value}"
        for who, row in others.items()
        for key, value in row.items()
        if value != ours[key]
    ]
    if differing:
        raise UserError(
            f"boxes would be read in another frame: {'; '.join(differing)}. Load the processor "
            "with the dataset's min_pixels and max_pixels, or build the dataset again with the "
            "--frame, --min-pixels and --max-pixels of the processor or checkpoint"
        )
