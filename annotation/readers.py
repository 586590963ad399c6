"""Several readers of one study: what they say alike, and what their answers come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from annotation.reviews import Review
from cot_builder.boxes import iou
from cot_builder.records import Chain

# Readers' boxes of one finding that overlap by this much are the same place.
SAME_PLACE: Final = 0.5


def same_reading(one: Chain | None, other: Chain | None) -> bool:
    """Tell whether two readers say the same of a finding; boxes may differ by a hand's breadth."""
    if one is None or other is None:
        return one is other
    return _said(one) == _said(other) and len(one.boxes) == len(other.boxes) and all(
        any(a.image_id == b.image_id and iou(a.xyxy, b.xyxy) >= SAME_PLACE for b in other.boxes)
        for a in one.boxes
    )  # fmt: skip


def _said(chain: Chain) -> tuple[Any, ...]:
    return (
        chain.section, chain.start, chain.end, chain.disease, chain.assertion, chain.regions
    )  # fmt: skip


def readings(reviews: Iterable[Review]) -> list[dict[str, Chain]]:
    """Return each reader's chains of one study, with one id for the same added phrase.

    Label Studio gives every added region an id of its own.
    """
    named: dict[tuple[str, int, int, int], str] = {}
    read = []
    for review in reviews:
        chains: dict[str, Chain] = {}
        seen: Counter[tuple[str, int, int]] = Counter()
        for edit in review.edits:
            if edit.after and edit.before:
                chains[edit.name] = edit.after
            elif edit.after:
                place = edit.after.section, edit.after.start, edit.after.end
                added = named.setdefault((*place, seen[place]), f"a{len(named)}")
                chains[added] = edit.after
                seen[place] += 1
        read.append(chains)
    return read


def versions(read: Sequence[Mapping[str, Chain]], name: str) -> list[Chain | None]:
    """Return what readers say of one finding, each thing once; None where one has no such chain."""
    found: list[Chain | None] = []
    for reading in read:
        if not any(same_reading(reading.get(name), one) for one in found):
            found.append(reading.get(name))
    return found


class Decision(NamedTuple):
    """What the readers' answers to a study come to.

    `outcome` is accepted, edited or rejected; or `disagreed`, `second read` or `skipped`: then the
    study stays as it was. `review` is the one to apply.
    """

    study_id: str
    outcome: str
    review: Review
    names: tuple[str, ...]
    adjudicated: bool

    @property
    def readers(self) -> int:
        """How many readers answered, adjudicators apart."""
        return len(self.names)

    @property
    def settled(self) -> bool:
        """Whether the study was reviewed to an end."""
        return self.outcome in ("accepted", "edited", "rejected")


def decide(reviews: Iterable[Review]) -> dict[str, Decision]:
    """Return what each study's reviews come to, by study.

    A reader's latest answer counts, and an adjudicator's over all others. Readers who agree settle
    a study; so does one reader alone.
    """
    by_study: dict[str, list[Review]] = {}
    for review in latest(reviews):
        by_study.setdefault(review.study_id, []).append(review)
    return {study: _decide(of) for study, of in sorted(by_study.items())}


def latest(reviews: Iterable[Review]) -> list[Review]:
    """Return the last answer of each reader to each study, of each kind, in a fixed order."""
    last: dict[tuple[str, str, str], Review] = {}
    for review in sorted(reviews, key=lambda one: one.updated_at):
        last[review.study_id, review.task.kind, review.reader] = review
    return [last[key] for key in sorted(last)]


def _decide(reviews: Sequence[Review]) -> Decision:
    readers = tuple(sorted({r.reader for r in reviews if r.task.kind == "review"}))
    answered = [review for review in reviews if review.outcome != "skipped"]
    final = [review for review in answered if review.task.kind == "adjudication"]
    counting = sorted(final, key=lambda one: one.updated_at)[-1:] or answered
    if not counting:
        return Decision(reviews[0].study_id, "skipped", reviews[0], readers, False)
    first = counting[0]
    outcomes = {review.outcome for review in counting}
    if "second read" in outcomes:
        outcome = "second read"
    elif outcomes == {"rejected"} or (outcomes <= {"accepted", "edited"} and _agree(counting)):
        outcome = first.outcome
    else:
        outcome = "disagreed"
    return Decision(first.study_id, outcome, first, readers, bool(final))


def _agree(reviews: Sequence[Review]) -> bool:
    read = readings(reviews)
    names = dict.fromkeys(name for reading in read for name in reading)
    return all(len(versions(read, name)) == 1 for name in names)
