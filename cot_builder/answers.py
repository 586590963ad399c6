"""What a model writes: the one think/answer grammar, for data, rewards and evaluation alike."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cot_builder.boxes import XYXY

_TAG: Final = re.compile(r"</?(?:think|answer)>")
_THINK: Final = ["<think>", "</think>"]
_BOTH: Final = [*_THINK, "<answer>", "</answer>"]
_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GAP: Final = r"\s*,\s*"
# [x1, y1, x2, y2], in round brackets as well, or two corners (x1,y1),(x2,y2).
_BOX: Final = re.compile(
    rf"[\[(]\s*({_NUMBER}){_GAP}({_NUMBER})(?:\s*[\])]{_GAP}[\[(]\s*|{_GAP})"
    rf"({_NUMBER}){_GAP}({_NUMBER})\s*[\])]"
)
_CONFIDENCE: Final = re.compile(rf"confidence\W{{1,4}}({_NUMBER})", re.IGNORECASE)
# A bracket that holds a number, or what stands for none: whatever is left of these is no box.
_NUMBERS: Final = re.compile(r"[\[(]\s*(?:[-+]?\.?\d|[-+]?(?:nan|inf))", re.IGNORECASE)
_NOTHING: Final = re.compile(r"\[[\s\[\]]*\]|no objects?\.?", re.IGNORECASE)


class AnswerError(ValueError):
    """A text outside the grammar; `reason` is a short fixed code such as `empty_think`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Boxes(NamedTuple):
    """Boxes in the numbers of some frame, and the confidence of each where it is told."""

    xyxy: tuple[XYXY, ...]
    confidences: tuple[float, ...] = ()


class Answer(NamedTuple):
    """What a model thinks, and where it says the thing is, in the numbers of a frame.

    `boxes` is empty where there is nothing to find, and None where no place was asked for.
    `confidences` has one number a box, or none at all.
    """

    think: str
    boxes: tuple[XYXY, ...] | None = None
    confidences: tuple[float, ...] = ()

    def render(self) -> str:
        """Write the answer out; ValueError for a think text that would not be read back.

        >>> Answer("There.", ((1, 2, 30, 40),)).render()
        '<think>There.</think><answer>[1, 2, 30, 40]</answer>'
        """
        if not self.think.strip() or _TAG.search(self.think):
            raise ValueError(f"a think text is not empty and has no tags, got {self.think!r:.80}")
        think = f"<think>{self.think.strip()}</think>"
        if self.boxes is None:
            return think
        return f"{think}<answer>{_written(self.boxes, self.confidences)}</answer>"

    @classmethod
    def parse(cls, text: str) -> Answer:
        """Read what a model wrote; AnswerError where it is not of the grammar.

        One think, then one answer or none, nothing around them; white space does not matter.

        >>> Answer.parse('<think>There.</think> <answer>[[1, 2, 30, 40]]</answer>')
        Answer(think='There.', boxes=((1, 2, 30, 40),), confidences=())
        """
        tags = _TAG.findall(text)
        if tags not in (_THINK, _BOTH):
            raise AnswerError("tags", f"expected {' '.join(_BOTH)}, got {' '.join(tags)!r:.80}")
        before, think, between, *rest = (part.strip() for part in _TAG.split(text))
        outside = before + between + "".join(rest[1:])
        if outside:
            raise AnswerError("text_outside_tags", f"{outside!r:.80}")
        if not think:
            raise AnswerError("empty_think", "nothing stands between <think> and </think>")
        return cls(think, *read_boxes(rest[0])) if rest else cls(think)


def read_boxes(text: str) -> Boxes:
    """Read the boxes of an answer, the smaller corner first; AnswerError where there are none.

    Lists of four, nested or not, pairs of corners, and objects with a position and a confidence
    are read, whatever their white space and quotation marks. `[]` and "No Objects" mean nothing.

    >>> read_boxes("[{'Position': [30, 2, 1, 40], 'Confidence': 0.9}]")
    Boxes(xyxy=((1, 2, 30, 40),), confidences=(0.9,))
    """
    text = text.strip()
    if not text:
        raise AnswerError("empty_answer", "nothing stands between <answer> and </answer>")
    if _NOTHING.fullmatch(text):
        return Boxes(())
    boxes = tuple(_corners(found.groups()) for found in _BOX.finditer(text))
    if _NUMBERS.search(_BOX.sub("", text)):
        raise AnswerError("not_boxes", f"expected four numbers a box, got {text!r:.80}")
    if not boxes:
        raise AnswerError("no_boxes", f"expected [x1, y1, x2, y2] or [], got {text!r:.80}")
    confidences = tuple(float(found[1]) for found in _CONFIDENCE.finditer(text))
    if not all(map(math.isfinite, (*confidences, *(side for box in boxes for side in box)))):
        raise AnswerError("not_finite", f"{text!r:.80}")
    return Boxes(boxes, confidences if len(confidences) == len(boxes) else ())


def _corners(numbers: tuple[str, ...]) -> XYXY:
    x1, y1, x2, y2 = map(_number, numbers)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _written(boxes: tuple[XYXY, ...], confidences: tuple[float, ...]) -> str:
    if confidences:
        objects = zip(boxes, confidences, strict=True)
        return json.dumps([{"Position": [*box], "Confidence": sure} for box, sure in objects])
    return ", ".join(json.dumps([*box]) for box in boxes) or "[]"


# -- what a chain says


class Step(NamedTuple):
    """What a chain says, without its place in a report: finding, concepts, disease, anatomy."""

    finding: str
    concepts: tuple[str, ...]
    disease: str
    assertion: str
    regions: tuple[str, ...]

    @classmethod
    def of(cls, chain: Mapping[str, Any]) -> Step:
        """Return what a row of the dataset's `chains` says.

        White space, quotation marks and tags of the report's words would not be read back.
        """
        return cls(
            quotable(chain["finding"]),
            tuple(chain["concepts"]),
            chain["disease"],
            chain["assertion"],
            tuple(chain["regions"]),
        )


def quotable(words: str) -> str:
    r"""Return a report's words on one line, fit for quotation marks and without the tags.

    >>> quotable('a "mass"\n of 3 cm')
    "a 'mass' of 3 cm"
    """
    return " ".join(_TAG.sub(" ", words).replace('"', "'").split())
