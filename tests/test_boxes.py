"""Boxes valid at birth, frames exact both ways, and budgets that are told apart."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cot_builder.boxes import (
    FRAMES,
    XYXY,
    Box,
    Frame,
    Pixels,
    Size,
    check_frames,
    iou,
    scaled,
    smart_resize,
    union,
)
from cot_builder.errors import UserError

WHERE: Final[dict[str, Any]] = {
    "width": 100, "height": 80, "image_id": "a", "source": "nih", "kind": "manual",
}  # fmt: skip
# What films measure, and the oddest that a processor takes; strips of 200 : 1 are refused.
SIDES: Final = st.integers(120, 4000)
BUDGETS: Final = st.builds(
    lambda factor, least, more: Pixels(factor, least * factor**2, (least + more) * factor**2),
    st.sampled_from([28, 32]),
    st.integers(4, 256),
    st.integers(64, 16384),
)


@st.composite
def placed_boxes(draw: st.DrawFn) -> tuple[XYXY, Size]:
    """Any box of one original pixel or more, anywhere on a film of any size."""
    size = Size(draw(SIDES), draw(SIDES))
    corners: list[tuple[float, float]] = []
    for side in size:
        first = draw(st.floats(0, side - 1))
        corners.append((first, draw(st.floats(first + 1, side))))
    (x1, x2), (y1, y2) = corners
    return (x1, y1, x2, y2), size


def extent_or_skip(frame: Frame, size: Size) -> Size:
    try:
        return frame.extent(size)
    except UserError:
        assume(False)
        raise


# -- the box


@pytest.mark.parametrize(
    ("corners", "box", "reason"),
    [
        ((10, 20, 30, 40), (10, 20, 30, 40), None),
        ((0, 0, 100, 80), (0, 0, 100, 80), None),
        ((-5, 20, 30, 90.5), (0, 20, 30, 80), "box_clipped"),
        ((-5, 20, 1, 40), (0, 20, 1, 40), "box_clipped"),
        ((10, -5, 30, 1), (10, 0, 30, 1), "box_clipped"),
        ((99.5, 79.5, 101, 81), (99.5, 79.5, 100, 80), "box_clipped"),
        ((10, 20, 10, 40), None, "box_empty"),
        ((10, 40, 30, 40), None, "box_empty"),
        ((30, 20, 10, 40), None, "box_inverted"),
        ((10, 40, 30, 20), None, "box_inverted"),
        ((100, 20, 130, 40), None, "box_outside"),
        ((-30, 20, 0, 40), None, "box_outside"),
        ((10, 80, 30, 99), None, "box_outside"),
        ((10, -30, 30, 0), None, "box_outside"),
        ((math.nan, 20, 30, 40), None, "box_not_finite"),
        ((10, 20, math.inf, 40), None, "box_not_finite"),
    ],
)
def test_boxes_are_clipped_or_refused_with_a_reason(
    corners: XYXY, box: XYXY | None, reason: str | None
) -> None:
    found = Box.clipped(*corners, **WHERE)
    assert (found.box and found.box.xyxy, found.reason) == (box, reason)
    if reason:
        with pytest.raises(ValueError, match=reason):
            Box(*corners, **WHERE)


def test_other_forms_of_a_box_become_corners() -> None:
    assert Box.from_xywh(10, 20, 30, 40, **WHERE).box == Box(10, 20, 40, 60, **WHERE)
    ellipse = Box.from_ellipse(50, 40, 60, 10, **WHERE)
    assert ellipse.reason == "box_clipped"
    assert ellipse.box == Box(0, 30, 100, 50, **{**WHERE, "kind": "ellipse"})
    assert Box.clipped(10, 20, 30, 40, **WHERE, certainty=3).box == Box(
        10, 20, 30, 40, **WHERE, certainty=3
    )
    with pytest.raises(ValueError, match="expected one of"):
        Box(10, 20, 30, 40, **{**WHERE, "kind": "guess"})


def test_a_box_that_is_none_says_what_was_expected() -> None:
    with pytest.raises(ValueError, match="box_empty") as refused:
        Box(10, 20, 10, 40, **WHERE)
    assert str(refused.value) == (
        "box_empty: (10, 20, 10, 40) in a, 100 x 80 pixels; "
        "expected 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height"
    )


def test_rows_read_back() -> None:
    box = Box(1.5, 2, 3, 4, **WHERE, certainty=4)
    assert set(box.to_row()) == {field.name for field in dataclasses.fields(Box)}
    assert Box.from_row(box.to_row()) == box


def test_union_holds_all_boxes_of_one_image() -> None:
    left, right = Box(0, 10, 20, 30, **WHERE), Box(15, 5, 40, 25, **WHERE)
    assert union([left, right]) == union([right, left]) == Box(0, 5, 40, 30, **WHERE)
    with pytest.raises(ValueError, match="several images"):
        union([left, Box(15, 5, 40, 25, **{**WHERE, "image_id": "b"})])


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),
        ((0, 0, 2, 2), (2, 0, 4, 2), 0),
        ((0, 0, 0.2, 0.2), (0.1, 0, 0.3, 0.2), 1 / 3),
        ((0, 0, 1, 0.5), (0, 0, 1, 0.25), 1 / 2),
        ((2, 2, 0, 0), (0, 0, 2, 2), 0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),
    ],
)
def test_iou_comes_from_the_coordinates(a: XYXY, b: XYXY, value: float) -> None:
    assert iou(a, b) == iou(b, a) == pytest.approx(value)


# -- frames


@given(placed_boxes(), st.sampled_from(sorted(FRAMES)), BUDGETS, st.sampled_from([1.0, 0.5, 0.25]))
def test_floats_come_back_exactly(
    placed: tuple[XYXY, Size], name: str, pixels: Pixels, scale: float
) -> None:
    box, size = placed
    frame = Frame(name, pixels, scale)
    extent_or_skip(frame, size)
    assert iou(frame.back(frame.into(box, size), size), box) >= 1 - 1e-9


@given(placed_boxes(), st.sampled_from(sorted(FRAMES)), BUDGETS)
def test_whole_numbers_cost_no_more_than_their_rounding(
    placed: tuple[XYXY, Size], name: str, pixels: Pixels
) -> None:
    # Each edge moves by half a unit at most: of a box of w x h units (1 - 1/w)(1 - 1/h) is left.
    # An IoU of 0.99 takes 200 units a side; a small box on a grid of whole numbers cannot have it.
    box, size = placed
    frame = Frame(name, pixels)
    extent = extent_or_skip(frame, size)
    numbers = frame.integers(box, size)
    x1, y1, x2, y2 = numbers
    assert 0 <= x1 < x2 <= extent.width
    assert 0 <= y1 < y2 <= extent.height
    left, top, right, bottom = frame.into(box, size)
    assume(right - left >= 1 and bottom - top >= 1)
    least = (1 - 1 / (right - left)) * (1 - 1 / (bottom - top))
    assert iou(frame.back(numbers, size), box) >= least - 1e-9
    if min(right - left, bottom - top) >= 200:
        assert iou(frame.back(numbers, size), box) >= 0.99


@given(st.data(), SIDES, SIDES, st.sampled_from(sorted(FRAMES)), BUDGETS)
def test_whole_numbers_of_a_frame_come_back_as_they_were(
    data: st.DataObject, width: int, height: int, name: str, pixels: Pixels
) -> None:
    frame, size = Frame(name, pixels), Size(width, height)
    extent = extent_or_skip(frame, size)
    x1 = data.draw(st.integers(0, int(extent.width) - 1))
    y1 = data.draw(st.integers(0, int(extent.height) - 1))
    x2 = data.draw(st.integers(x1 + 1, int(extent.width)))
    y2 = data.draw(st.integers(y1 + 1, int(extent.height)))
    assert frame.integers(frame.back((x1, y1, x2, y2), size), size) == (x1, y1, x2, y2)


@pytest.mark.parametrize(
    ("box", "whole"),
    [
        ((1023.8, 0, 1024, 0.3), (999, 0, 1000, 1)),
        ((0, 1023.8, 0.3, 1024), (0, 999, 1, 1000)),
        ((1024, 1024, 1024, 1024), (999, 999, 1000, 1000)),
    ],
)
def test_a_thin_box_at_the_edge_keeps_one_unit_inside(box: XYXY, whole: XYXY) -> None:
    assert Frame().integers(box, Size(1024, 1024)) == whole


def test_norm1000_does_not_depend_on_any_resizing() -> None:
    box, size = (636, 764, 1272, 1528), Size(2544, 3056)
    for frame in (Frame(), Frame(pixels=Pixels(32, 4096, 401408)), Frame(scale=0.25)):
        assert frame.into(box, size) == (250, 250, 500, 500)


@pytest.mark.parametrize(
    ("size", "pixels", "seen", "tokens"),
    [  # the usual sizes of MIMIC-CXR, as the processors make them
        ((2544, 3056), Pixels(), (2548, 3052), 9919),
        ((636, 764), Pixels(), (644, 756), 621),
        ((636, 764), Pixels(max_pixels=401408), (560, 672), 480),
        ((2544, 3056), Pixels(max_pixels=401408), (560, 672), 480),
        ((434, 506), Pixels(), (448, 504), 288),
        ((20, 10), Pixels(), (84, 56), 6),
        ((30, 40), Pixels(), (56, 84), 6),
        # A product that is a bound is within it; a side may be one square wide.
        ((50, 60), Pixels(), (56, 56), 4),
        ((60, 55), Pixels(max_pixels=56 * 56), (56, 56), 4),
        ((56, 112), Pixels(), (56, 112), 8),
        ((28, 112), Pixels(), (28, 112), 4),
        ((112, 28), Pixels(), (112, 28), 4),
        ((2000, 10), Pixels(), (812, 28), 29),
    ],
)
def test_pixel_budgets(size: Size, pixels: Pixels, seen: Size, tokens: int) -> None:
    assert pixels.seen(Size(*size)) == seen
    assert repr(pixels.tokens(Size(*size))) == repr(tokens)


def test_model_pixels_count_what_the_processor_leaves() -> None:
    size = Size(2544, 3056)
    capped = Pixels(max_pixels=401408)
    assert Frame("model_pixels").extent(size) == (2548, 3052)
    assert Frame("model_pixels", capped).extent(size) == (560, 672)
    assert Frame("model_pixels", scale=0.25).extent(size) == (644, 756)


def test_quarter_pixels_are_refused_where_the_quarter_would_be_resized_again() -> None:
    size = Size(2544, 3056)
    assert Frame("quarter_pixels").extent(size) == scaled(size, 0.25) == (636, 764)
    with pytest.raises(UserError) as refused:
        Frame("quarter_pixels", Pixels(max_pixels=401408)).extent(size)
    assert str(refused.value) == (
        "frame quarter_pixels: the quarter of 2544 x 3056 is 636 x 764 pixels, and max_pixels "
        "401408 would resize it again, to 560 x 672: the model would not see the pixels that its "
        "boxes count. Raise --max-pixels, or use --frame norm1000, which no resizing changes"
    )


def test_a_reduced_image_has_a_pixel_at_least() -> None:
    assert scaled(Size(1, 1), 0.25) == (1, 1)


def test_quarter_pixels_take_no_other_scale() -> None:
    assert Frame("quarter_pixels", scale=0.25).extent(Size(800, 1200)) == (200, 300)
    with pytest.raises(UserError, match=r"--image-scale 0\.25"):
        Frame("quarter_pixels", scale=0.5).extent(Size(800, 1200))


def test_strips_that_no_processor_takes_are_an_error() -> None:
    with pytest.raises(ValueError, match="200 times"):
        smart_resize(10, 2001)


def test_an_unknown_frame_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="norm1000, model_pixels, quarter_pixels, percent"):
        Frame("norm100").extent(Size(10, 10))


# -- data, processor and checkpoint


def test_frames_read_back() -> None:
    frame = Frame("model_pixels", Pixels(32, 4096, 401408), 0.25)
    assert Frame.from_row(frame.to_row()) == frame
    with pytest.raises(UserError, match="no frame: expected name, factor, min_pixels"):
        Frame.from_row({})


def test_the_same_pixels_pass() -> None:
    check_frames(data=Frame(), processor=Pixels(), checkpoint=Frame())


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (
            {"processor": Pixels(max_pixels=401408)},
            "max_pixels: the dataset says 12845056, the processor 401408",
        ),
        ({"processor": Pixels(factor=32)}, "factor: the dataset says 28, the processor 32"),
        (
            {"checkpoint": Frame("quarter_pixels")},
            "name: the dataset says norm1000, the checkpoint quarter_pixels",
        ),
        (
            {"processor": Pixels(32), "checkpoint": Frame(scale=0.25)},
            "factor: the dataset says 28, the processor 32; "
            "scale: the dataset says 1.0, the checkpoint 0.25",
        ),
    ],
)
def test_a_mismatch_says_who_says_what(others: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        check_frames(data=Frame(), **others)
    assert str(refused.value) == (
        f"boxes would be read in another frame: {said}. Load the processor with the dataset's "
        "min_pixels and max_pixels, or build the dataset again with the --frame, --min-pixels and "
        "--max-pixels of the processor or checkpoint"
    )


# -- the originals


@pytest.mark.slow
@pytest.mark.parametrize("budget", [(28, 3136, 12845056), (28, 3136, 401408), (32, 65536, 401408)])
def test_smart_resize_is_transformers_own(budget: tuple[int, int, int]) -> None:
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for height in range(3, 4000, 53):
        for width in range(max(3, height // 200 + 1), min(4000, 200 * height), 61):
            assert smart_resize(height, width, *budget) == theirs.smart_resize(
                height, width, *budget
            ), (height, width)


def test_real_boxes_keep_an_iou_of_99_percent_on_average(shared: Path) -> None:
    values = []
    lines = (shared / "data" / "grounding_triples.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        box, size = tuple(row["box_xyxy"]), Size(row["width"], row["height"])
        frame = Frame()
        values.append(iou(frame.back(frame.integers(box, size), size), box))
    assert sum(values) / len(values) >= 0.99
