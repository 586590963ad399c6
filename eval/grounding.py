"""Predicted boxes against true ones, all from coordinates: IoU, accuracy, AP, RadFact's rates.

No mask is painted and nothing is rounded, so that every number is the same in every frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from cot_builder.boxes import XYXY, Frame, iou
from cot_builder.checks import SIDE_TOLERANCE, beyond, one_side
from cot_builder.conversations import svr_examples
from cot_builder.decompose import Decomposer
from cot_builder.predictions import Located
from cot_builder.records import Row, Section
from eval.records import Measured, Pair, Score

THRESHOLDS: Final = (0.3, 0.5)
# RadFact's: a phrase's boxes are entailed when more than half of their area is evidence.
ENTAILED: Final = 0.5
_COCO: Final = tuple(np.arange(0.5, 1, 0.05).round(2).tolist())
_RECALLS: Final = np.linspace(0, 1, 101)
Boxes = Sequence[XYXY]


# -- areas of several boxes together


class Overlap(NamedTuple):
    """Areas that two sets of boxes cover: each, and both."""

    one: float
    other: float
    both: float


def overlap(one: Boxes, other: Boxes) -> Overlap:
    """Return the areas covered by two sets of boxes, from their coordinates alone.

    >>> overlap([(0, 0, 5, 10), (5, 0, 10, 10)], [(0, 0, 10, 10)])
    Overlap(one=100.0, other=100.0, both=100.0)
    """
    boxes = [*one, *other]
    xs = np.unique([x for box in boxes for x in box[::2]])
    ys = np.unique([y for box in boxes for y in box[1::2]])
    if len(xs) < 2 or len(ys) < 2:
        return Overlap(0.0, 0.0, 0.0)
    cells = np.diff(xs)[:, None] * np.diff(ys)[None, :]

    def covered(some: Boxes) -> Any:
        found = np.zeros(cells.shape, dtype=bool)
        for x1, y1, x2, y2 in some:
            across, down = (xs[:-1] >= x1) & (xs[1:] <= x2), (ys[:-1] >= y1) & (ys[1:] <= y2)
            found |= across[:, None] & down[None, :]
        return found

    first, second = covered(one), covered(other)
    return Overlap(*(float(cells[where].sum()) for where in (first, second, first & second)))


def set_iou(one: Boxes, other: Boxes) -> float:
    """Return the IoU of the areas that two sets of boxes cover; 0 when both cover nothing."""
    found = overlap(one, other)
    either = found.one + found.other - found.both
    return found.both / either if either else 0.0


def matched_ious(predicted: Boxes, true: Boxes) -> list[float]:
    """Return the IoUs of boxes paired greedily, the best pair first; no box is paired twice."""
    pairs = sorted(
        ((iou(p, t), i, j) for i, p in enumerate(predicted) for j, t in enumerate(true)),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    used: tuple[set[int], set[int]] = (set(), set())
    found = []
    for value, i, j in pairs:
        if value > 0 and i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            found.append(value)
    return found


def phrase_iou(predicted: Boxes, true: Boxes) -> float:
    """Return the sum of matched IoUs over the larger number of boxes; the IoU for one and one.

    >>> phrase_iou([(0, 0, 10, 10)], [(0, 0, 10, 10), (20, 20, 30, 30)])
    0.5
    """
    return sum(matched_ious(predicted, true)) / max(len(predicted), len(true), 1)


# -- average precision


class Detections(NamedTuple):
    """Of one phrase: predicted boxes with their confidences, and the true ones."""

    boxes: Boxes
    confidences: Sequence[float]
    true: Boxes


def average_precision(found: Sequence[Detections], threshold: float) -> float:
    """Return COCO's AP at one IoU threshold, over 101 recalls; NaN without a true box.

    Equal confidences keep the order of the list, which then decides: a model without confidences
    has no AP.
    """
    total = sum(len(phrase.true) for phrase in found)
    if not total:
        return math.nan
    hits: list[tuple[float, bool]] = []
    for boxes, confidences, true in found:
        left = list(true)
        for place in np.argsort(-np.asarray(confidences, dtype=float), kind="stable"):
            best = max(left, key=lambda t: iou(boxes[place], t), default=None)
            hit = best is not None and iou(boxes[place], best) >= min(threshold, 1 - 1e-10)
            if hit and best is not None:
                left.remove(best)
            hits.append((float(confidences[place]), hit))
    if not hits:
        return 0.0
    order = np.argsort([-confidence for confidence, _ in hits], kind="stable")
    right = np.cumsum([hits[place][1] for place in order])
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.mean([envelope[p] if p < len(envelope) else 0.0 for p in places]))


def mean_average_precision(found: Sequence[Detections]) -> float:
    """Return COCO's AP: the mean over IoU thresholds .5, .55, ... .95."""
    return float(np.mean([average_precision(found, threshold) for threshold in _COCO]))


# -- phrases that the model was asked to find


class Asked(NamedTuple):
    """A phrase of the dataset with its true boxes, and what the model answered, if it did."""

    study: int
    true: Boxes
    answer: Located | None

    @property
    def boxes(self) -> Boxes:
        """What the model drew; nothing where it did not answer."""
        return (self.answer and self.answer.boxes) or ()


def asked(pairs: Sequence[Pair], decomposer: Decomposer) -> Iterator[Asked]:
    """Yield every phrase that the dataset has for the model, answered or not."""
    for place, pair in enumerate(pairs):
        if pair.row is None:
            continue
        answered = pair.predicted.phrases if pair.predicted else ()
        answers = {(p.image_id, p.text): p for p in answered}
        for example in svr_examples(pair.row, decomposer.banks, Frame()):
            text = example["phrase"]
            answer = answers.get((example["image_id"], text)) or answers.get((None, text))
            yield Asked(place, [tuple(box) for box in example["boxes"]], answer)


def measure_phrases(phrases: Sequence[Asked], studies: int) -> Measured:
    """Measure what the model drew for the phrases that it was asked to find.

    A phrase without an answer, or with one that cannot be read, has no box: its IoU is 0. Phrases
    that are not there have no true box, and are scored apart.
    """
    there = [p for p in phrases if p.true]
    absent = [p for p in phrases if not p.true]
    failed = sum(p.answer is None or p.answer.boxes is None for p in there)
    ious = np.array([phrase_iou(p.boxes, p.true) for p in there])
    areas = [set_iou(p.boxes, p.true) for p in there]
    recipe, n = "xyxy,no rounding", len(there)
    scores = [
        _mean("mIoU", ious, f"matched over max(boxes),{recipe}", failed),
        *(_mean(f"acc@{t}", ious >= t, f"mIoU>={t},{recipe}", failed) for t in THRESHOLDS),
        _mean("set-IoU", areas, f"areas covered,{recipe}", failed),
    ]
    hits = sum(sum(v >= 0.5 for v in matched_ious(p.boxes, p.true)) for p in there)
    drawn, true = sum(len(p.boxes) for p in there), sum(len(p.true) for p in there)
    f1 = 2 * hits / (drawn + true) if drawn + true else None
    scores.append(Score("box F1@0.5", f1, n, f"greedy pairs with IoU>=0.5,{recipe}", failed=failed))
    nothing = [p.answer is not None and p.answer.boxes == () for p in absent]
    scores.append(_mean("absent phrases left empty", nothing, "no box where nothing is", 0))
    sure = [p for p in there if p.answer and p.answer.confidences]
    if sure:
        found = [Detections(p.boxes, p.answer.confidences if p.answer else (), p.true)
                 for p in there if not p.boxes or (p.answer and p.answer.confidences)]  # fmt: skip
        for name, value in (
            ("AP", mean_average_precision(found)),
            ("AP50", average_precision(found, 0.5)),
        ):
            scores.append(Score(name, value, len(found), "COCO's 101 recalls,confidences"))
    else:
        scores.append(Score("AP", None, 0, "COCO", "the model gives no confidences"))
    by_study: dict[int, list[float]] = {}
    for phrase, value in zip(there, ious.tolist(), strict=True):
        by_study.setdefault(phrase.study, []).append(value)
    values = [float(np.mean(by_study[i])) if i in by_study else None for i in range(studies)]
    return Measured(tuple(scores), {"mIoU": values})


# -- RadFact's rates, and faithfulness


class Claim(NamedTuple):
    """A sentence or phrase of one side: whether the other side entails it, and both their boxes."""

    entailed: bool
    boxes: Boxes = ()
    evidence: Boxes = ()

    @property
    def boxes_entailed(self) -> bool:
        """More than half of the area of its boxes is evidence."""
        found = overlap(self.boxes, self.evidence)
        return found.one > 0 and found.both / found.one > ENTAILED


class Entailment(NamedTuple):
    """RadFact's three rates of one side of a report; None without anything to divide by."""

    logical: float | None
    grounding: float | None
    spatial: float | None


def entailment(claims: Sequence[Claim]) -> Entailment:
    """Return the rates of one report (Bannur et al., 2024).

    logical: claims that are entailed. grounding: of the entailed ones with boxes, those whose boxes
    are entailed. spatial: of all claims with boxes, those entailed with their boxes.
    """
    boxed = [claim for claim in claims if claim.boxes]
    right = [claim.entailed and claim.boxes_entailed for claim in boxed]
    return Entailment(
        _rate([claim.entailed for claim in claims]),
        _rate([ok for claim, ok in zip(boxed, right, strict=True) if claim.entailed]),
        _rate(right),
    )


def _rate(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def entailment_scores(
    precision: Sequence[Entailment], recall: Sequence[Entailment], recipe: str, *, failed: int = 0
) -> tuple[Score, ...]:
    """Average the rates over the reports that have them, precision and recall apart."""
    scores = []
    for rate in Entailment._fields:
        for what, side in (("precision", precision), ("recall", recall)):
            values = [v for e in side if (v := getattr(e, rate)) is not None]
            signature = f"mean of reports,{recipe}"
            scores.append(_mean(f"RadFact-style {rate} {what}", values, signature, failed))
    return tuple(scores)


class Said(NamedTuple):
    """What a sentence says, as (disease, assertion, regions), and its boxes."""

    chains: tuple[tuple[str, str, frozenset[str]], ...]
    boxes: Boxes


def _supports(chain: tuple[str, str, frozenset[str]], other: Said) -> bool:
    return any(chain[:2] == c[:2] and chain[2] & c[2] for c in other.chains)


def rule_claims(one: Sequence[Said], other: Sequence[Said]) -> list[Claim]:
    """Hold what one side says against the other by rules: same label, assertion and a region.

    A sentence that says nothing is no claim. Evidence are the boxes of the sentences that agree.
    """
    claims = []
    for said in one:
        if said.chains:
            support = [[o for o in other if _supports(c, o)] for c in said.chains]
            boxes = [box for found in support for o in found for box in o.boxes]
            claims.append(Claim(all(support), said.boxes, boxes))
    return claims


def _said_of_text(located: Iterable[Located], decomposer: Decomposer) -> Iterator[Said]:
    for sentence in located:
        chains = decomposer.decompose([Section("findings", sentence.text)]).chains
        yield Said(
            tuple((c.disease, c.assertion, frozenset(c.regions)) for c in chains),
            sentence.boxes or (),
        )


def _said_of_row(row: Row) -> list[Said]:
    """A dataset's chains a sentence, with the boxes that lie on them or on a phrase around them."""
    sentences: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for chain in row["chains"]:
        sentences.setdefault((chain["section"], chain["sentence"]), []).append(chain)
    return [
        Said(
            tuple((c["disease"], c["assertion"], frozenset(c["regions"])) for c in chains),
            tuple({(b["x1"], b["y1"], b["x2"], b["y2"]): None for c in chains for b in c["boxes"]
                   if b["kind"] != "prior"}),
        )
        for chains in sentences.values()
    ]  # fmt: skip


def measure_sentences(pairs: Sequence[Pair], decomposer: Decomposer) -> Measured:
    """Measure the boxes of report sentences: RadFact's rates by rules, and faithfulness.

    A sentence is faithful to its box where its side is the box's, and its region holds more than
    half of the box (only where the dataset has boxes of regions, such as Chest ImaGenome's).
    """
    precision, recall = [], []
    sides: list[bool] = []
    regions: list[bool] = []
    for pair in pairs:
        if pair.row is None:
            continue
        sentences = pair.predicted.sentences if pair.predicted else ()  # none: an empty report
        predicted = list(_said_of_text(sentences, decomposer))
        true = _said_of_row(pair.row)
        precision.append(entailment(rule_claims(predicted, true)))
        recall.append(entailment(rule_claims(true, predicted)))
        width = (pair.predicted and pair.predicted.width) or next(
            (i["width"] for i in pair.row["images"]), None
        )
        priors = _region_boxes(pair.row)
        for said in predicted:
            held = [box for r in _regions(said) for box in priors.get(r, ())]
            if said.boxes and width and (side := one_side(_regions(said) or ("",))):
                off = [beyond(box, width, side) for box in said.boxes]
                sides.append(min(off) <= SIDE_TOLERANCE)
            if said.boxes and held:
                regions.append(Claim(True, said.boxes, held).boxes_entailed)
    recipe = f"entailment=rules@{decomposer.banks.version}"
    return Measured(
        (
            *entailment_scores(precision, recall, recipe),
            _mean("faithful side", sides, "box centre on the sentence's side", 0),
            _mean("faithful region", regions, "over half of the box in the sentence's region", 0),
        )
    )


def _regions(said: Said) -> set[str]:
    return {region for _, assertion, found in said.chains for region in found
            if assertion != "negative"}  # fmt: skip


def _region_boxes(row: Row) -> dict[str, list[XYXY]]:
    found: dict[str, list[XYXY]] = {}
    for chain in row["chains"]:
        for box in chain["boxes"]:
            if box["kind"] == "prior" and len(chain["regions"]) == 1:
                xyxy = (box["x1"], box["y1"], box["x2"], box["y2"])
                found.setdefault(chain["regions"][0], []).append(xyxy)
    return found


def measure_grounding(pairs: Sequence[Pair], decomposer: Decomposer) -> Measured:
    """Measure phrases asked for, and sentences of reports, as far as the predictions have them."""
    phrases = list(asked(pairs, decomposer))
    scores: list[Score] = []
    per_study: Mapping[str, Sequence[float | None]] = {}
    if any(phrase.answer for phrase in phrases):
        found = measure_phrases(phrases, len(pairs))
        scores += found.scores
        per_study = found.per_study
    else:
        why = "the predictions answer no phrase of the dataset; `predict --phrases` asks them"
        scores.append(Score("mIoU", None, 0, "matched over max(boxes)", why))
    if any(pair.predicted and pair.predicted.sentences for pair in pairs):
        scores += measure_sentences(pairs, decomposer).scores
    return Measured(tuple(scores), per_study)


def _mean(name: str, values: Any, recipe: str, failed: int) -> Score:
    n = len(values)
    return Score(name, float(np.mean(values)) if n else None, n, recipe,
                 "" if n else "nothing to measure", failed)  # fmt: skip
