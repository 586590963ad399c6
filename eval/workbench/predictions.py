"""Read a predictions folder one study at a time, however many it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.boxes import XYXY
from cot_builder.errors import UserError

PREDICTIONS: Final = "predictions.jsonl"


class PredictedSentence(NamedTuple):
    """A sentence that a model wrote: `report[start:end]`, what it thought, and where it looked."""

    text: str
    start: int
    end: int
    think: str
    boxes: tuple[XYXY, ...]


class Prediction(NamedTuple):
    """What a model said of one study; boxes are xyxy in the pixels of the original image."""

    image_id: str
    report: str
    sentences: tuple[PredictedSentence, ...]
    error: str


class Predictions(Mapping[str, Prediction]):
    """The predictions of a folder by study id; only where each line begins is kept in memory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PREDICTIONS
        self._starts: dict[str, int] = {}
        at = 0
        try:
            with self._path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        study_id, _ = _read(line, f"{self._path}, line {number}")
                        self._starts[study_id] = at
                    at += len(line)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read ({error.strerror}); --predictions wants the folder "
                f"that holds {PREDICTIONS}"
            ) from None

    def __getitem__(self, study_id: str) -> Prediction:
        with self._path.open("rb") as lines:
            lines.seek(self._starts[study_id])
            return _read(lines.readline(), str(self._path))[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)


def _read(line: bytes, where: str) -> tuple[str, Prediction]:
    try:
        row = json.loads(line)
        study_id, image_id = str(row["study_id"]), str(row.get("image_id") or "")
        sentences = tuple(map(_sentence, row.get("sentences") or ()))
        report, error = str(row.get("report") or ""), str(row.get("error") or "")
        return study_id, Prediction(image_id, report, sentences, error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where}: expected a prediction with study_id, report and sentences of text, start, "
            f"end, think and boxes; got {type(error).__name__}: {error}"
        ) from None


def _sentence(row: Mapping[str, Any]) -> PredictedSentence:
    boxes = tuple(map(_box, row.get("boxes") or ()))
    think = str(row.get("think") or "")
    return PredictedSentence(str(row["text"]), int(row["start"]), int(row["end"]), think, boxes)


def _box(numbers: Any) -> XYXY:
    x1, y1, x2, y2 = map(float, numbers)
    if not (all(map(math.isfinite, (x1, y1, x2, y2))) and x1 <= x2 and y1 <= y2):
        raise ValueError(f"box {numbers!r} is not xyxy")
    return x1, y1, x2, y2
