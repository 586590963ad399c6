"""What is measured: a score with its recipe, and the studies that it was measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cot_builder.errors import UserError
from cot_builder.paths import is_remote
from cot_builder.predictions import Prediction, Predictions, read_predictions
from cot_builder.records import Row

SECTION: Final = "findings"


class UnavailableError(Exception):
    """A measure that cannot be taken here; its text is the remedy."""


class Score(NamedTuple):
    """One number with its recipe: what the `signature` says, over `n`; None says why in `note`.

    `failed` were asked for and gave nothing: they are in no mean.
    """

    name: str
    value: float | None
    n: int
    signature: str
    note: str = ""
    failed: int = 0

    def __str__(self) -> str:
        value = "unavailable" if self.value is None else f"{self.value:.4f}"
        return f"{self.name} {value} (n = {self.n}, {self.signature})"


class Measured(NamedTuple):
    """What one family of metrics gives: scores, a value a study, counts a study that add up.

    `per_study` has a value for every pair in their order, None where there is none. `counts` has a
    row of whole numbers a pair; of their sums a corpus score is computed, in a resample too.
    `tables` hold what is no single number.
    """

    scores: tuple[Score, ...]
    per_study: Mapping[str, Sequence[float | None]] = {}
    counts: Mapping[str, Sequence[Sequence[int]]] = {}
    tables: Mapping[str, Any] = {}


class Pair(NamedTuple):
    """A study's reference report beside what was predicted; `row` is the dataset's, if any.

    A prediction that is missing or empty is the empty text.
    """

    study_id: str
    reference: str
    prediction: str
    row: Row | None = None
    predicted: Prediction | None = None
    section: str = SECTION


class Paired(NamedTuple):
    """Pairs in the order of the references, and what did not pair."""

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    errors: tuple[str, ...]
    empty: tuple[str, ...]
    extra: tuple[str, ...]
    no_reference: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many studies of each kind."""
        return {name: len(value) for name, value in self._asdict().items()}


def read_pairs(
    predictions: Path,
    references: Path,
    *,
    split: str | None = None,
    section: str = SECTION,
    missing: Literal["empty", "skip"] = "empty",
    frame: str | None = None,
) -> Paired:
    """Read predictions and references, and pair them by study id; see `pair`."""
    found = read_predictions(predictions, frame=frame)
    texts = read_references(references, split=split, section=section)
    return pair(found, texts, missing=missing, section=section)


def read_references(
    path: Path, *, split: str | None = None, section: str = SECTION
) -> Iterator[tuple[str, str, Row | None]]:
    """Yield id, report and row of the references: a dataset folder, or a JSON Lines or CSV file."""
    from cot_builder.dataset import read_studies

    if is_remote(path) or path.is_dir():
        for row in read_studies(path):
            if split in (None, row["split"]):
                texts = (s["text"] for s in row["sections"] if s["name"] == section)
                yield row["study_id"], " ".join(" ".join(texts).split()), row
        return
    if split:
        raise UserError(f"--split is for a dataset folder; {path} is a file and has no splits")
    for study_id, reference in read_predictions(path).by_study.items():
        yield study_id, reference.report or "", None


def pair(
    predictions: Predictions,
    references: Iterator[tuple[str, str, Row | None]],
    *,
    missing: Literal["empty", "skip"] = "empty",
    section: str = SECTION,
) -> Paired:
    """Pair predictions with references by study id, whatever the order of either.

    A study without a prediction, or with an error in its place, counts as an empty report: leaving
    out the hard ones gains nothing. With `missing="skip"` it is left out. An empty report is always
    scored. Studies without a reference text, and predictions of no reference, are left out and
    told. UserError when nothing pairs.
    """
    pairs: list[Pair] = []
    told: dict[str, list[str]] = {n: [] for n in ("missing", "errors", "empty", "no_reference")}
    seen: set[str] = set()
    for study_id, reference, row in references:
        key = next((k for k in _spellings(study_id) if k in predictions.by_study), None)
        seen.update([key] if key else [])
        if not reference:
            told["no_reference"].append(study_id)
            continue
        predicted = predictions.by_study[key] if key else None
        report = (predicted and predicted.report) or ""
        if predicted is None or predicted.error is not None:
            told["missing" if predicted is None else "errors"].append(study_id)
            if missing == "skip":
                continue
        elif not report.strip():
            told["empty"].append(study_id)
        pairs.append(Pair(study_id, reference, report, row, predicted, section))
    extra = tuple(key for key in predictions.by_study if key not in seen)
    if not seen or not pairs:
        ids = ", ".join(list(predictions.by_study)[:3])
        raise UserError(
            f"no prediction of {predictions.name} is for a study of the references (with a text to "
            f"compare with); its ids begin {ids}"
        )
    return Paired(tuple(pairs), extra=extra, **{k: tuple(v) for k, v in told.items()})


def _spellings(study_id: str) -> tuple[str, ...]:
    """MIMIC-CXR's files say s50414267 where its tables say 50414267, IU X-Ray CXR7 or 7."""
    bare = study_id.removeprefix("CXR").removeprefix("s")
    return study_id, *((bare, f"s{bare}", f"CXR{bare}") if bare.isdigit() else ())
