"""Annotations of Label Studio as reviews of chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from annotation.interface import keys
from annotation.tasks import PERCENT, Shown, Task, result, shown_boxes
from cot_builder.boxes import Box, Size
from cot_builder.records import Chain, Row, Section, in_bank_order
from cot_builder.sentences import split_sentences
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS

# A box whose sides moved by less than this many pixels was not moved: percent and screen round.
UNMOVED: Final = 0.5
# What the rules of chains begin with that a reader changed or added.
RULE: Final = "review"
OUTCOMES: Final = ("accepted", "edited", "second read", "rejected", "skipped")

# What a control of the interface may hold, and the type of its regions.
_CHOICES: Final = {
    "disease": ("labels", frozenset(LABELS)),
    "assertion": ("choices", frozenset(ASSERTIONS)),
    "anatomy": ("choices", frozenset(REGIONS)),
    "box": ("rectanglelabels", frozenset(REGIONS)),
    "verdict": ("choices", frozenset(keys()["verdict"])),
    "reason": ("choices", frozenset(keys()["reason"])),
}
_SINGLE: Final = ("disease", "assertion", "box", "verdict")


# -- the records


class Edit(NamedTuple):
    """What a reader did to a chain: None before is an added chain, None after a deleted one."""

    name: str
    before: Chain | None
    after: Chain | None

    @property
    def op(self) -> str:
        """What was done: kept, changed, added or deleted."""
        if self.before and self.after:
            return "kept" if self.before == self.after else "changed"
        return "added" if self.after else "deleted"

    @property
    def fields(self) -> tuple[str, ...]:
        """Which of finding, disease, assertion, regions and boxes were changed."""
        if not (self.before and self.after):
            return ()
        return tuple(
            name
            for name in ("finding", "disease", "assertion", "regions", "boxes")
            if getattr(self.before, name) != getattr(self.after, name)
        )


@dataclass(frozen=True, slots=True)
class Review:
    """One reader's answer to one task; `outcome` is one of `OUTCOMES`.

    `planted` is `found` or `missed` where a chain was wrong on purpose: the reader's answer to that
    chain counts there and nowhere else. `notes` are what a chain cannot hold and a lead may see.
    """

    task: Task
    reader: str
    outcome: str
    edits: tuple[Edit, ...]
    reasons: tuple[str, ...] = ()
    comment: str = ""
    lead_time: float | None = None
    updated_at: str = ""
    planted: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def study_id(self) -> str:
        """The study that was reviewed."""
        return self.task.study_id

    @property
    def chains(self) -> dict[str, Chain]:
        """The chains as the reader left them, by id, in the report's order."""
        return {edit.name: edit.after for edit in self.edits if edit.after}


class UnreadableError(Exception):
    """An annotation that the interface cannot have made: each thing that is wrong with it."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


# -- one annotation


@dataclass(slots=True)
class _Marks:
    """What the regions of an annotation hold, by region id, and what is wrong with them."""

    shown: Shown
    sent: dict[str, Box]
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    boxes: dict[str, Box] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comment: str = ""

    def one(self, control: str, name: str = "") -> str:
        return next(iter(self.values.get((control, name), ())), "")


def read_annotation(task: Task, annotation: Mapping[str, Any]) -> Review:
    """Turn an annotation of a task into a review; UnreadableError when it is not of this interface.

    A chain whose marks are as they were sent is the very chain of the dataset.
    """
    said: dict[str, Any] = {
        "reader": str(annotation["reader"]),
        "lead_time": annotation.get("lead_time"),
        "updated_at": str(annotation.get("updated_at") or ""),
    }
    if annotation.get("was_cancelled"):
        return Review(task, outcome="skipped", edits=(), **said)
    marks = _marks(task, annotation["result"])
    chains = {} if marks.faults else _chains(task, marks)
    verdict = marks.one("verdict")
    if not verdict:
        marks.faults.append("no verdict: the study was not reviewed")
    if marks.faults:
        raise UnreadableError(marks.faults)
    planted = None
    if task.planted:
        untouched = chains.get(task.planted) == task.proposed[task.planted]
        planted = "missed" if untouched else "found"
        chains[task.planted] = task.base[task.planted]
    edits = _edits(task, {name: chains[name] for name in _in_order(task, chains)})
    changed = any(edit.op != "kept" for edit in edits)
    return Review(
        task,
        outcome={"reject": "rejected", "second read": "second read"}.get(
            verdict, "edited" if changed else "accepted"
        ),
        edits=edits,
        reasons=marks.values.get(("reason", ""), ()),
        comment=marks.comment,
        planted=planted,
        notes=tuple(marks.notes),
        **said,
    )


def faults(task: Task) -> tuple[str, ...]:
    """Return what is wrong with the prediction of a task: it has to come back as it goes.

    Label Studio itself takes anything: unknown labels, boxes outside the image, open relations.
    """
    verdict = {"from_name": "verdict", "type": "choices", "value": {"choices": ["accept"]}}
    unplanted = replace(task, base=task.proposed, planted=None)
    try:
        review = read_annotation(unplanted, {"reader": "", "result": [*result(task), verdict]})
    except UnreadableError as error:
        return error.faults
    return tuple(f"{edit.name} would be {edit.op}" for edit in review.edits if edit.op != "kept")


def _marks(task: Task, rows: Any) -> _Marks:
    marks = _Marks(task.shown, shown_boxes(task))
    for row in rows if isinstance(rows, list) else ():
        try:
            if row.get("type") == "relation":
                marks.links.append((str(row["from_id"]), str(row["to_id"])))
                continue
            control, value = row["from_name"], row["value"]
            if control == "comment":
                marks.comment = " ".join(value["text"])
                continue
            _read_region(task, marks, control, row, value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            marks.faults.append(f"not a region of this interface ({error!r}): {row!r:.80}")
    return marks


def _read_region(task: Task, marks: _Marks, control: str, row: Row, value: Row) -> None:
    if control not in _CHOICES:
        marks.faults.append(f"unknown control {control!r}")
        return
    kind, allowed = _CHOICES[control]
    study_level = control in ("verdict", "reason")
    name = "" if study_level else row["id"]
    held = tuple(value[kind])
    if row["type"] != kind or not held or not allowed.issuperset(held):
        marks.faults.append(f"{name or control}: {control} cannot be {', '.join(map(str, held))}")
    elif control in _SINGLE and len(held) > 1:
        marks.faults.append(f"{name or control}: more than one {control}: {', '.join(held)}")
    elif (control, name) in marks.values:
        marks.faults.append(f"{name or control}: {control} stands twice")
    else:
        marks.values[control, name] = held
    if control == "box":
        marks.boxes[name] = _box(task, marks.sent.get(name), row, value)
    elif not study_level:
        span = value["start"], value["end"]
        if not all(isinstance(character, int) for character in span):
            raise ValueError(f"characters {span}")
        if marks.spans.setdefault(name, span) != span:
            marks.faults.append(f"{name}: two places in the report")
        elif not marks.shown.place(*span):
            marks.faults.append(f"{name}: characters {span} are not inside one section")
        elif value.get("text", "") not in ("", marks.shown.text[span[0] : span[1]]):
            marks.faults.append(
                f"{name}: says {value['text']!r:.40}, where the report has "
                f"{marks.shown.text[span[0] : span[1]]!r:.40}"
            )


def _box(task: Task, before: Box | None, row: Row, value: Row) -> Box:
    """Return the box of a region, the one that was sent where the reader did not move it."""
    if not task.image or not task.image.width or not task.image.height:
        raise ValueError("a box, where the study has no image")
    if value.get("rotation") or row.get("image_rotation"):
        raise ValueError("a box or image that was turned")
    size = Size(task.image.width, task.image.height)
    left, top = float(value["x"]), float(value["y"])
    percent = (left, top, left + float(value["width"]), top + float(value["height"]))
    x1, y1, x2, y2 = (round(number, 2) for number in PERCENT.back(percent, size))
    if before and all(
        abs(new - old) < UNMOVED for new, old in zip((x1, y1, x2, y2), before.xyxy, strict=True)
    ):
        return before
    clipped = Box.clipped(
        x1, y1, x2, y2, width=task.image.width, height=task.image.height,
        image_id=task.image.image_id, source="review", kind="manual",
    )  # fmt: skip
    if clipped.box is None:
        raise ValueError(f"{clipped.reason}: {x1}, {y1}, {x2}, {y2}")
    return clipped.box


def _chains(task: Task, marks: _Marks) -> dict[str, Chain]:
    """Return the chains of the marks, by region id."""
    boxes = _linked(task, marks)
    chains: dict[str, Chain] = {}
    for name, span in marks.spans.items():
        lacking = [
            control
            for control in ("disease", "assertion", "anatomy")
            if (control, name) not in marks.values
        ]
        if lacking:
            marks.faults.append(f"{name}: no {' and no '.join(lacking)}")
        elif marks.shown.place(*span):
            try:
                chains[name] = _chain(task, marks, name, boxes.get(name, ()))
            except ValueError as error:
                marks.faults.append(f"{name}: {error}")
    return chains


def _chain(task: Task, marks: _Marks, name: str, boxes: tuple[Box, ...]) -> Chain:
    """Return the chain of a span: the one that was sent, where all is as it was sent."""
    place = marks.shown.place(*marks.spans[name])
    assert place
    section, offset = place
    start, end = (character - offset for character in marks.spans[name])
    sent = task.proposed.get(name)
    if sent is None or (sent.start, sent.end) != (start, end):
        start += len(section.text[start:end]) - len(section.text[start:end].lstrip())
        end = start + len(section.text[start:end].rstrip())
    said: dict[str, Any] = {
        "section": section.name,
        "finding": section.text[start:end],
        "start": start,
        "end": end,
        "disease": marks.one("disease", name),
        "assertion": marks.one("assertion", name),
        "regions": in_bank_order(frozenset(marks.values["anatomy", name])),
    }
    if sent is None:
        sentence = _sentence(section, start)
        return Chain(**said, sentence=sentence, basis="stated", boxes=boxes, rule=f"{RULE}.added")
    elsewhere = tuple(box for box in sent.boxes if box not in marks.sent.values())
    if set(boxes) | set(elsewhere) != set(sent.boxes):
        said["boxes"] = (*boxes, *elsewhere)
    if all(getattr(sent, name) == value for name, value in said.items()):
        return sent
    if said["disease"] != sent.disease:
        said |= {"concepts": (), "basis": "stated"}
    if said["finding"] != sent.finding:
        said |= {"severity": None, "temporal": None, "concept_ids": None}
        said["sentence"] = _sentence(section, start)
    if not sent.rule.startswith(RULE):
        said["rule"] = f"{RULE}.edited+{sent.rule}"
    return replace(sent, **said)


def _sentence(section: Section, start: int) -> int:
    for sentence in split_sentences(section):
        if sentence.start <= start < sentence.end:
            return sentence.index
    raise ValueError(f"no sentence of {section.name} holds character {start}")


def _linked(task: Task, marks: _Marks) -> dict[str, tuple[Box, ...]]:
    """Return the boxes of each span, by the relations, whichever way they were drawn.

    A box tied to nothing goes to the one finding of its region that has no box. One whose findings
    were all deleted goes with them. Any other is a fault: nobody can tell what it shows.
    """
    linked: dict[str, dict[str, Box]] = {name: {} for name in marks.spans}
    for one, other in marks.links:
        span, box = (other, one) if one in marks.boxes else (one, other)
        if span not in marks.spans or box not in marks.boxes:
            marks.faults.append(f"a relation from {one} to {other} joins no finding and box")
        else:
            linked[span][box] = marks.boxes[box]
    tied = {box for boxes in linked.values() for box in boxes}
    sent = marks.sent
    for name in (box for box in marks.boxes if box not in tied):
        region = marks.one("box", name)
        bare = [
            span
            for span in marks.spans
            if not linked[span]
            and region in marks.values.get(("anatomy", span), ())
            and marks.one("assertion", span) != "negative"
            and (name not in sent or span not in task.proposed)
        ]
        owners = [span for span, chain in task.proposed.items() if sent.get(name) in chain.boxes]
        if len(bare) == 1:
            linked[bare[0]][name] = marks.boxes[name]
        elif name not in sent or any(span in marks.spans for span in owners):
            marks.faults.append(f"{name}: a box of {region} that is tied to no finding")
    _note_regions(task, marks, linked)
    return {span: tuple(boxes.values()) for span, boxes in linked.items()}


def _note_regions(task: Task, marks: _Marks, linked: Mapping[str, Mapping[str, Box]]) -> None:
    """Note boxes that a reader gave a region of no finding they are tied to: a box keeps none."""
    sent = {
        row["id"]: row["value"]["rectanglelabels"][0]
        for row in (result(task) if marks.boxes else ())
        if row.get("from_name") == "box"
    }
    for name in marks.boxes:
        owners = [span for span, boxes in linked.items() if name in boxes]
        region = marks.one("box", name)
        told = {r for span in owners for r in marks.values.get(("anatomy", span), ())}
        if owners and region != sent.get(name) and region not in told:
            marks.notes.append(
                f"box {name} is of {region}, its finding {owners[0]} of {', '.join(sorted(told))}"
            )


def _in_order(task: Task, chains: Mapping[str, Chain]) -> list[str]:
    """Return the ids of chains: those that were sent as they were sent, others where they stand."""
    names = [section.name for section in task.sections]

    def place(name: str) -> tuple[int, int]:
        return names.index(chains[name].section), chains[name].start

    ordered = [name for name in task.proposed if name in chains]
    for name in (name for name in chains if name not in task.proposed):
        before = (n for n, other in enumerate(ordered) if place(other) > place(name))
        ordered.insert(next(before, len(ordered)), name)
    return ordered


def _edits(task: Task, chains: Mapping[str, Chain]) -> tuple[Edit, ...]:
    edits: dict[str, Edit] = {}
    for name, chain in chains.items():
        # Of several readers' versions of a chain, the first that is left is what became of it.
        stem = name.partition("-")[0]
        if name not in task.proposed or stem not in task.base or stem in edits:
            stem = name
        edits[stem] = Edit(stem, task.base.get(stem), chain)
    gone = (Edit(name, chain, None) for name, chain in task.base.items() if name not in edits)
    return (*edits.values(), *gone)
