"""Each reward over answers that deserve it, and over all that should earn nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cot_builder.boxes import Frame, Size
from training.rewards import (
    REWARDS,
    confidence_reward,
    format_reward,
    hit_iou_reward,
    iou_reward,
    set_iou_reward,
)

SIZE = (2000, 1000)
LEFT, RIGHT = (200.0, 100.0, 600.0, 500.0), (1200.0, 100.0, 1600.0, 500.0)
# The same in norm1000.
L, R = "[100, 100, 300, 500]", "[600, 100, 800, 500]"
NOTHING: tuple[tuple[float, ...], ...] = ()


def columns(text: str, *true: tuple[float, ...]) -> dict[str, list[object]]:
    return {
        "completions": [[{"role": "assistant", "content": text}]],
        "boxes": [list(true)],
        "size": [SIZE],
        "extent": [(1000, 1000)],
    }


def said(answer: str, think: str = "It is left.") -> str:
    return f"<think>{think}</think><answer>{answer}</answer>"


def scores(text: str, *true: tuple[float, ...], reward: str) -> list[float | None]:
    return [function(**columns(text, *true))[0] for function in REWARDS[reward]]


PERFECT = {
    "plain": said(L),
    "white space": f" \n{said(L)}\n ",
    "newline in the answer": said(f"\n{L}\n"),
    "newline between the tags": f"<think>Left.\nIt is.</think>\n\n<answer>{L}</answer>",
    "pretty-printed JSON": said(json.dumps([json.loads(L)], indent=2)),
    "list of lists": said(f"[{L}]"),
    "floats": said("[100.0, 100.0, 300.0, 500.0]"),
    "no spaces": said("[100,100,300,500]"),
    "Qwen's corners": said("(100,100),(300,500)"),
    "swapped corners": said("[300, 500, 100, 100]"),
    "one pair swapped": said("[300, 100, 100, 500]"),
    "object": said('[{"Position": [100, 100, 300, 500], "Confidence": 1.0}]'),
    "Python's quotes": said("[{'Position': [100, 100, 300, 500], 'Confidence': 1.0}]"),
    "apostrophe in a label": said(
        "[{'label': \"Hodgkin's mass\", 'Position': [100, 100, 300, 500], 'Confidence': 1.0}]"
    ),
    "bare apostrophe": said('[{"label": "Kerley\'s lines", "bbox_2d": [100, 100, 300, 500]}]'),
}


@pytest.mark.parametrize("text", PERFECT.values(), ids=PERFECT.keys())
def test_a_perfect_box_scores_however_it_is_written(text: str) -> None:
    assert scores(text, LEFT, reward="paper") == [1, 1]
    assert scores(text, LEFT, reward="set") == [1, 1]
    assert scores(text, LEFT, reward="visual_rft")[::2] == [1, 1]
    assert iou_reward(**{**columns(text, LEFT), "completions": [text]}) == [1]


PROMPT = (
    "Where is it? First reason between <think> and </think>, then give each box as "
    "[x1, y1, x2, y2] between <answer> and </answer>."
)
WORTHLESS = {
    "nothing": "",
    "a bare list outside tags": L,
    "prompt echoed": PROMPT,
    "prompt echoed before the answer": f"{PROMPT} {said(L)}",
    "prompt echoed inside": said(PROMPT),
    "empty think": said(L, think=" \n"),
    "empty answer": said(" "),
    "no think": f"<answer>{L}</answer>",
    "no answer": "<think>It is left.</think>",
    "answer not closed": f"<think>It is left.</think><answer>{L}",
    "answer first": f"<answer>{L}</answer><think>It is left.</think>",
    "two answers": said(L) + f"<answer>{L}</answer>",
    "two thinks": "<think>a</think>" + said(L),
    "nested answers": said(f"<answer>{L}</answer>"),
    "nested thinks": said(L, think="<think>a</think>"),
    "answer in the think": f"<think>a<answer>{L}</answer></think>",
    "words after": said(L) + " That is it.",
    "whole image": said("[0, 0, 1000, 1000]"),
    "whole image and more": said("[-50, -50, 1050, 1050]"),
    "whole image beside the box": said(f"{L}, [0, 0, 1000, 1000]"),
    "nearly the whole image": said("[5, 5, 995, 995]"),
    "a hundred boxes": said(", ".join([L] * 100)),
    "a grid of boxes": said(
        ", ".join(f"[{x}, {y}, {x + 250}, {y + 250}]" for x in range(0, 1000, 250)
                  for y in range(0, 1000, 250))
    ),
    "NaN": said("[NaN, 100, 300, 500]"),
    "infinity": said("[100, 100, Infinity, 500]"),
    "1e9": said("[100, 100, 1e9, 500]"),
    "1e999": said("[100, 100, 1e999, 500]"),
    "in pixels, not in the frame": said("[200, 100, 600, 5000]"),
    "three numbers": said("[100, 100, 300]"),
    "five numbers": said("[100, 100, 300, 500, 7]"),
    "a point": said("[100, 100, 100, 100]"),
    "no width": said("[100, 100, 100, 500]"),
    "no height": said("[100, 100, 300, 100]"),
    "too far to the left": said("[-101, 100, 300, 500]"),
    "too far up": said("[100, -101, 300, 500]"),
    "too far to the right": said("[100, 100, 1101, 500]"),
    "too far down": said("[100, 100, 300, 1101]"),
    "eleven boxes": said(", ".join([L] * 11)),
    "a bit too wide": said("[0, 0, 950.2, 1000]"),
    "a bit too high": said("[0, 0, 1000, 950.5]"),
    "words": said("on the left"),
}  # fmt: skip


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("text", WORTHLESS.values(), ids=WORTHLESS.keys())
def test_nothing_else_scores(text: str, reward: str) -> None:
    assert scores(text, LEFT, reward=reward) == [0] * len(REWARDS[reward])
    assert scores(text, LEFT, RIGHT, reward=reward) == [0] * len(REWARDS[reward])


@pytest.mark.parametrize("text", WORTHLESS.values(), ids=WORTHLESS.keys())
def test_nothing_else_scores_where_there_is_nothing(text: str) -> None:
    assert scores(text, reward="set") == [0, 0]


def test_a_box_on_the_whole_image_is_right_where_the_true_one_is() -> None:
    assert scores(said("[0, 0, 1000, 1000]"), (0, 0, *SIZE), reward="set") == [1, 1]
    assert scores(said("[0, 0, 1000, 1000]"), (0, 0, 1900, 1000), reward="set") == [0, 0]


@pytest.mark.parametrize(
    "answer",
    [
        "[-100, -100, 300, 500]",
        "[600, 500, 1100, 1100]",
        "[10, 600, 50, 900]",
        "[0, 0, 950, 1000]",
        "[60, 0, 1000, 1000]",
        "[0, 60, 1000, 1000]",
        ", ".join([L] * 10),
    ],
)
def test_an_answer_just_within_the_bounds_is_one(answer: str) -> None:
    assert format_reward(**columns(said(answer), LEFT)) == [1]


@pytest.mark.parametrize("reward", [function for row in REWARDS.values() for function in row])
@pytest.mark.parametrize("column", ["completions", "boxes", "size", "extent"])
def test_columns_of_several_lengths_are_an_error(reward: Callable[..., Any], column: str) -> None:
    row = columns(said(L), LEFT)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        reward(**{**row, column: row[column] * 2})


@pytest.mark.parametrize(
    ("text", "true", "set_iou", "paper"),
    [
        (said(f"{L}, {R}"), (LEFT, RIGHT), 1, 1),
        (said(f"{R}, {L}"), (LEFT, RIGHT), 1, 1),
        (said(L), (LEFT, RIGHT), 0.5, 1),
        (said(f"{L}, {R}"), (LEFT,), 0.5, 1),
        (said(f"{R}, {L}"), (LEFT,), 0.5, 0),  # only the first box is the paper's
        (said(f"{L}, {L}"), (LEFT, RIGHT), 0.5, 1),  # one true box cannot be found twice
        (said(R), (LEFT,), 0, 0),
        (said("[]"), (LEFT,), 0, 0),
        (said("[]"), NOTHING, 1, None),
        (said("No Objects"), NOTHING, 1, None),
        (said(L), NOTHING, 0, None),
        (said("[100, 100, 300, 300]"), (LEFT,), 0.5, 0.5),
    ],
)
def test_several_boxes_and_none(
    text: str, true: tuple[tuple[float, ...], ...], set_iou: float, paper: float | None
) -> None:
    assert set_iou_reward(**columns(text, *true)) == [pytest.approx(set_iou)]
    assert iou_reward(**columns(text, *true)) == (
        [paper] if paper is None else pytest.approx([paper])
    )
    assert format_reward(**columns(text, *true)) == [1]


def test_the_match_is_the_best_one_not_the_first() -> None:
    # Greedy would give the first box the second true one (0.6) and leave 0 for the other.
    true = ((0.0, 0.0, 1000.0, 1000.0), (200.0, 0.0, 1200.0, 1000.0))
    text = said("[50, 0, 550, 1000], [300, 0, 800, 1000]")
    assert set_iou_reward(**columns(text, *true)) == [pytest.approx((900 / 1100 + 600 / 1400) / 2)]


@pytest.mark.parametrize(
    ("text", "true", "hit", "sure"),
    [
        (said("[{'Position': [100, 100, 300, 500], 'Confidence': 0.8}]"), (LEFT,), 1, 0.8),
        (said("[{'Position': [600, 100, 800, 500], 'Confidence': 0.8}]"), (LEFT,), 0, 0.2),
        (said("[{'Position': [100, 100, 300, 303], 'Confidence': 0.7}]"), (LEFT,), 0.5075, 0.7),
        (said("[{'Position': [100, 100, 300, 298], 'Confidence': 0.7}]"), (LEFT,), 0, 0.3),
        (said("[{'Position': [100, 100, 300, 300], 'Confidence': 0.7}]"), (LEFT,), 0, 0.3),
        (said("[{'Position': [100, 100, 300, 500], 'Confidence': 1}]"), (LEFT,), 1, 1),
        (said("[{'Position': [600, 100, 800, 500], 'Confidence': 0}]"), (LEFT,), 0, 1),
        (said("[{'Position': [100, 100, 300, 500], 'Confidence': 1.5}]"), (LEFT,), 1, 0),
        (said("[{'Position': [100, 100, 300, 500], 'Confidence': 7}]"), (LEFT,), 1, 0),
        (said(f"{L}, {R}"), (LEFT, RIGHT), 1, 0),
        (said(f"[100, 100, 300, 300], {L}"), (LEFT,), 0.5, 0),  # half a hit takes no true box
        (said(f"{R}, {L}, {L}"), (LEFT, RIGHT), 2 / 3, 0),
        # Of two boxes on one true box the surer has it, whichever comes first.
        (
            said(
                "[{'Position': [100, 100, 300, 500], 'Confidence': 0.6}, "
                "{'Position': [100, 100, 300, 480], 'Confidence': 0.9}]"
            ),
            (LEFT,),
            0.5,
            0.65,
        ),
        (said(L), (LEFT,), 1, 0),
        (said("[]"), (LEFT,), 0, 0),
        (said("[]"), NOTHING, None, None),
    ],
)
def test_visual_rft(
    text: str, true: tuple[tuple[float, ...], ...], hit: float | None, sure: float | None
) -> None:
    for function, worth in ((hit_iou_reward, hit), (confidence_reward, sure)):
        (score,) = function(**columns(text, *true))
        assert score == (None if worth is None else pytest.approx(worth))


def test_both_sides_meet_in_original_pixels() -> None:
    frame = Frame("model_pixels")
    extent = frame.extent(Size(*SIZE))
    numbers = frame.integers((200, 100, 600, 500), Size(*SIZE))
    row = {**columns(said(str(list(numbers))), LEFT), "extent": [tuple(extent)]}
    (score,) = iou_reward(**row)
    assert score
    assert score > 0.98
    assert iou_reward(**columns(said("[200, 100, 600, 500]"), LEFT)) != [1]
