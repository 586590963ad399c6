"""Rewards of SVR: plain functions over columns, as TRL calls them; also for `trl grpo` by path.

Columns: `completions`, and of each example `boxes` (the true ones, xyxy in original pixels; none
where there is nothing), `size` (the original image's) and `extent` (what that image measures in the
frame of the answers). Both sides meet in original pixels. A function gives one number a completion,
or None where it does not apply.

What no reader would accept as an answer scores 0 in every reward, in the format's too: see
`admitted`. Nothing is earned by what a think text says, so that no wording of it can be gamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from scipy.optimize import linear_sum_assignment

from cot_builder.answers import Answer, AnswerError
from cot_builder.boxes import XYXY, Size, iou, rescaled

# More boxes than this are a net thrown over the image: phrases of MS-CXR have four at most.
MOST_BOXES: Final = 10
# A box on more than this share of the image points at nothing, unless the true one is as large.
COVERING: Final = 0.95
# Visual-RFT's detections count from here.
HIT: Final = 0.5

Columns = Sequence[Any]
Scores = list[float | None]


def admitted(
    completion: Any, boxes: Sequence[XYXY], size: Sequence[float], extent: Sequence[float]
) -> Answer | None:
    """Return the answer that a completion gives, its boxes in original pixels, or None.

    None for what is outside the grammar (no think or no answer, two of them, nested or empty), for
    numbers that are not finite or that leave the image by more than a tenth of it, for more than
    `MOST_BOXES`, and for a box on nearly the whole image where no true one is.
    """
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    try:
        answer = Answer.parse(text)
    except AnswerError:
        return None
    if answer.boxes is None or len(answer.boxes) > MOST_BOXES:
        return None
    whole = Size(*size)
    found = [rescaled(box, Size(*extent), whole) for box in answer.boxes]
    if not all(_inside(box, whole) for box in found):
        return None
    if any(_share(box, whole) > COVERING for box in found) and not any(
        _share(box, whole) > COVERING for box in boxes
    ):
        return None
    return answer._replace(boxes=tuple(found))


def format_reward(
    completions: Columns, boxes: Columns, size: Columns, extent: Columns, **_: Any
) -> Scores:
    """1 for a think and an answer that can be read (Eq. 8), else 0."""
    return [
        float(admitted(*row) is not None)
        for row in zip(completions, boxes, size, extent, strict=True)
    ]


def iou_reward(
    completions: Columns, boxes: Columns, size: Columns, extent: Columns, **_: Any
) -> Scores:
    """IoU of the answer's first box with the true box that it fits best (Eq. 6, 7).

    The paper's is about one box; None where there is nothing to find.
    """

    def score(found: Sequence[XYXY], true: Sequence[XYXY]) -> float | None:
        if not true:
            return None
        return max(iou(found[0], box) for box in true) if found else 0.0

    return _scored(score, completions, boxes, size, extent)


def set_iou_reward(
    completions: Columns, boxes: Columns, size: Columns, extent: Columns, **_: Any
) -> Scores:
    """IoU over boxes matched one to one, by the larger number of boxes; 1 for a right `[]`.

    The match is the best there is (Hungarian), so that order does not count.
    """

    def score(found: Sequence[XYXY], true: Sequence[XYXY]) -> float:
        if not (found and true):
            return float(not found and not true)
        table = [[iou(box, other) for other in true] for box in found]
        rows, columns = linear_sum_assignment(table, maximize=True)
        total: float = sum(table[r][c] for r, c in zip(rows, columns, strict=True))
        return total / max(len(found), len(true))

    return _scored(score, completions, boxes, size, extent)


def hit_iou_reward(
    completions: Columns, boxes: Columns, size: Columns, extent: Columns, **_: Any
) -> Scores:
    """Visual-RFT's IoU: matched greedily, above `HIT` only, by the larger number of boxes."""

    def score(found: Sequence[XYXY], true: Sequence[XYXY]) -> float | None:
        if not true:
            return None
        return sum(_hits(found, true)) / max(len(found), len(true))

    return _scored(score, completions, boxes, size, extent)


def confidence_reward(
    completions: Columns, boxes: Columns, size: Columns, extent: Columns, **_: Any
) -> Scores:
    """Visual-RFT's: a box's confidence where it hits, else what it lacks to 1; mean over boxes.

    0 without confidences, or with one that is none.
    """

    def one(completion: Any, true: Any, size: Any, extent: Any) -> float | None:
        if not true:
            return None
        answer = admitted(completion, true, size, extent)
        if not (answer and answer.boxes and answer.confidences):
            return 0.0
        if not all(0 <= sure <= 1 for sure in answer.confidences):
            return 0.0
        # The surest box takes its true box first.
        order = sorted(range(len(answer.boxes)), key=lambda place: -answer.confidences[place])
        hits = _hits([answer.boxes[place] for place in order], true)
        sures = [answer.confidences[place] for place in order]
        return sum(s if hit else 1 - s for s, hit in zip(sures, hits, strict=True)) / len(hits)

    rows = zip(completions, boxes, size, extent, strict=True)
    return [one(*row) for row in rows]


# To add one: a name for recipes, and the functions whose sum it is.
REWARDS: Final[dict[str, tuple[Callable[..., Scores], ...]]] = {
    "paper": (iou_reward, format_reward),  # Eq. 9
    "visual_rft": (hit_iou_reward, confidence_reward, format_reward),
    "set": (set_iou_reward, format_reward),
}
# These ask nothing of examples with nothing to find; the others learn from them.
NEED_BOXES: Final = ("paper", "visual_rft")


def _scored(
    score: Callable[[Sequence[XYXY], Sequence[XYXY]], float | None],
    completions: Columns,
    boxes: Columns,
    size: Columns,
    extent: Columns,
) -> Scores:
    scores: Scores = []
    for completion, true, whole, frame in zip(completions, boxes, size, extent, strict=True):
        answer = admitted(completion, true, whole, frame)
        worth = score(answer.boxes or () if answer else (), true)
        scores.append(worth if answer or worth is None else 0.0)
    return scores


def _hits(found: Sequence[XYXY], true: Sequence[XYXY]) -> list[float]:
    """Return the IoU of each box with the true box that it takes, in their order; 0 for none."""
    free = list(true)
    hits: list[float] = []
    for box in found:
        values = [iou(box, other) for other in free]
        best = max(values, default=0.0)
        if best > HIT:
            del free[values.index(best)]
        hits.append(best if best > HIT else 0.0)
    return hits


def _inside(box: XYXY, size: Size) -> bool:
    finite = all(map(math.isfinite, box))
    return (
        finite
        and box[0] < box[2]
        and box[1] < box[3]
        and min(box[0] / size.width, box[1] / size.height) >= -0.1
        and max(box[2] / size.width, box[3] / size.height) <= 1.1
    )


def _share(box: XYXY, size: Size) -> float:
    wide = min(box[2], size.width) - max(box[0], 0)
    high = min(box[3], size.height) - max(box[1], 0)
    return wide * high / (size.width * size.height)
