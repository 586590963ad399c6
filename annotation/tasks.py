"""A study of a dataset as a task of Label Studio, with its chains as the prediction to correct.

The words and boxes of a chain are regions of the task: a span with the chain's id holds disease,
assertion and regions of the body; each box is a region of its own, tied to its spans by a relation.
One image is shown, with the boxes that lie on it; boxes on other images stay as they are.
"""

from __future__ import annotations

import hashlib
import html
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from cot_builder.boxes import Box, Frame
from cot_builder.errors import UserError
from cot_builder.records import Chain, Image, Row, Section, in_bank_order
from cot_builder.vocabulary import LABELS

PERCENT: Final = Frame("percent")
# What Label Studio shows where a study has no image.
NO_IMAGE: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGPQAAAAKgApazFUc"
    "wAAAABJRU5ErkJggg=="
)
_SIDES: Final = {"left": "right", "right": "left"}
_COLUMNS: Final = ("finding", "disease", "assertion", "regions", "rule")

ImageUrl = Callable[[str], str]


# -- the report as it is shown


class Shown(NamedTuple):
    """The sections of a report as one text, and where in it each section begins."""

    text: str
    sections: tuple[Section, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, sections: Iterable[Section]) -> Shown:
        r"""Join sections, each below its name.

        >>> Shown.of([Section("findings", "No edema.")]).text
        'FINDINGS\nNo edema.\n'
        """
        text, starts, kept = "", [], tuple(sections)
        for section in kept:
            text += f"{section.name.upper().replace('_', ' ')}\n"
            starts.append(len(text))
            # Browsers read a carriage return as a line break: offsets would move.
            text += section.text.replace("\r", " ") + "\n"
        return cls(text, kept, tuple(starts))

    def offset(self, section: str) -> int:
        """Return where a section begins in the shown text."""
        return next(
            start for one, start in zip(self.sections, self.starts, strict=True)
            if one.name == section
        )  # fmt: skip

    def place(self, start: int, end: int) -> tuple[Section, int] | None:
        """Return the section that holds these characters, and its offset; None for none or two."""
        for section, offset in zip(self.sections, self.starts, strict=True):
            if offset <= start < end <= offset + len(section.text):
                return section, offset
        return None


# -- the task


@dataclass(frozen=True, slots=True)
class Task:
    """A study as it is sent for review, with all that is needed to read the answer.

    `base` are the dataset's chains by id; `proposed` is what the prediction says instead where it
    says something else: a chain planted wrong on purpose (`planted` is its id), or the versions of
    readers who differ (`c3-1`, `c3-2` for `c3`).
    """

    study_id: str
    kind: str
    model_version: str
    sections: tuple[Section, ...]
    image: Image | None
    base: dict[str, Chain]
    proposed: dict[str, Chain]
    planted: str | None = None
    score: float = 1.0
    note: str = ""

    @property
    def shown(self) -> Shown:
        """The report as the reader sees it."""
        return Shown.of(self.sections)

    @property
    def key(self) -> str:
        """A hash of all that the reader sees; the same study with the same chains has the same."""
        path = self.image.path if self.image else None
        seen = (
            self.study_id, self.model_version, self.shown.text, path, result(self), self.note
        )  # fmt: skip
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:20]

    def request(self, image_url: ImageUrl, **data: str) -> Row:
        """Return the task as Label Studio imports it."""
        return {
            "data": {
                "image": image_url(self.image.path) if self.image else NO_IMAGE,
                "report": self.shown.text,
                "study_id": self.study_id,
                "task": self.key,
                "proposal": proposal(self.proposed, self.note),
                **data,
            },
            "predictions": [
                {"model_version": self.model_version, "score": self.score, "result": result(self)}
            ],
        }

    def to_row(self) -> Row:
        """Return the task as a line of `tasks.jsonl`."""
        return {
            "task": self.key,
            "study_id": self.study_id,
            "kind": self.kind,
            "model_version": self.model_version,
            "sections": [section._asdict() for section in self.sections],
            "image": self.image._asdict() if self.image else None,
            "base": {name: chain.to_row() for name, chain in self.base.items()},
            "proposed": None if self.proposed == self.base
            else {name: chain.to_row() for name, chain in self.proposed.items()},
            "planted": self.planted,
            "score": self.score,
            "note": self.note,
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Task:
        """Read a task back from a line of `tasks.jsonl`."""
        base = {name: Chain.from_row(chain) for name, chain in row["base"].items()}
        proposed = row["proposed"]
        return cls(
            **{
                **{name: value for name, value in row.items() if name != "task"},
                "sections": tuple(Section(**section) for section in row["sections"]),
                "image": Image(**row["image"]) if row["image"] else None,
                "base": base,
                "proposed": base if proposed is None
                else {name: Chain.from_row(chain) for name, chain in proposed.items()},
            }
        )  # fmt: skip


def review_task(
    row: Row, *, sections: Sequence[str], model_version: str, plant: random.Random | None = None
) -> Task:
    """Return the task to review a study: its `sections`, and others that a chain stands in.

    With `plant`, one chain of the proposal is made wrong.
    """
    chains = {f"c{place}": Chain.from_row(chain) for place, chain in enumerate(row["chains"])}
    wanted = {*sections, *(chain.section for chain in chains.values())}
    planted = plant.choice(list(chains)) if plant and chains else None
    return Task(
        study_id=row["study_id"],
        kind="review",
        model_version=model_version,
        sections=tuple(Section(**s) for s in row["sections"] if s["name"] in wanted),
        image=_shown_image(row),
        base=chains,
        proposed=chains if planted is None or plant is None
        else {**chains, planted: wrong(chains[planted], plant)},
        planted=planted,
        score=confidence(row),
    )  # fmt: skip


def adjudication_task(
    task: Task, found: Mapping[str, Sequence[Chain | None]], *, note: str = ""
) -> Task:
    """Return the task to decide between readings of a study: the versions of each chain, by id.

    What all readers say stands once; otherwise each version stands beside the others.
    """
    proposed = {
        name if len(versions) == 1 else f"{name}-{place}": chain
        for name, versions in found.items()
        for place, chain in enumerate(versions, start=1)
        if chain
    }
    return replace(
        task, kind="adjudication", proposed=proposed, planted=None, score=0.0, note=note,
        model_version=f"{task.model_version} adjudication",
    )  # fmt: skip


def _shown_image(row: Row) -> Image | None:
    """Return the image with most boxes, of those a frontal one, of those the first."""
    boxes = Counter(box["image_id"] for chain in row["chains"] for box in chain["boxes"])
    images = [Image(**image) for image in row["images"] if image["width"] and image["height"]]
    return max(
        images,
        key=lambda image: (boxes[image.image_id], (image.view or "").upper() in ("AP", "PA")),
        default=None,
    )


def result(task: Task) -> list[Row]:
    """Return the prediction: the regions and relations of the proposed chains."""
    shown, boxes = task.shown, _box_ids(task)
    rows: list[Row] = []
    drawn: set[str] = set()
    for name, chain in task.proposed.items():
        offset = shown.offset(chain.section)
        start, end = offset + chain.start, offset + chain.end
        span = {"start": start, "end": end, "text": shown.text[start:end]}
        for control, kind, value in (
            ("disease", "labels", [chain.disease]),
            ("assertion", "choices", [chain.assertion]),
            ("anatomy", "choices", list(chain.regions)),
        ):
            rows.append(
                {"id": name, "from_name": control, "to_name": "report", "type": kind,
                 "value": {**span, kind: value}}
            )  # fmt: skip
        for box in chain.boxes:
            if box_id := boxes.get(box):
                if box_id not in drawn:
                    rows.append(_rectangle(box_id, box, chain.regions[0]))
                    drawn.add(box_id)
                rows.append(
                    {"type": "relation", "from_id": name, "to_id": box_id, "direction": "right"}
                )
    return rows


def shown_boxes(task: Task) -> dict[str, Box]:
    """Return the boxes that the reader sees, by the id of their region."""
    return {name: box for box, name in _box_ids(task).items()}


def _box_ids(task: Task) -> dict[Box, str]:
    boxes = dict.fromkeys(
        box
        for chain in task.proposed.values()
        for box in chain.boxes
        if task.image and box.image_id == task.image.image_id
    )
    return {box: f"b{place}" for place, box in enumerate(boxes)}


def _rectangle(name: str, box: Box, region: str) -> Row:
    x1, y1, x2, y2 = PERCENT.into(box.xyxy, box.size)
    return {
        "id": name, "from_name": "box", "to_name": "image", "type": "rectanglelabels",
        "original_width": box.width, "original_height": box.height, "image_rotation": 0,
        "value": {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0,
                  "rectanglelabels": [region]},
    }  # fmt: skip


def proposal(chains: Mapping[str, Chain], note: str = "") -> str:
    """Return the chains as an HTML table to read beside the report: what was found, by what rule.

    The rule's bank version is left out.
    """
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (
            chain.finding, chain.disease, chain.assertion, ", ".join(chain.regions),
            chain.rule.partition("@")[0],
        )) + "</tr>"
        for chain in chains.values()
    )  # fmt: skip
    said = f"<p>{html.escape(note)}</p>" if note else ""
    return f"{said}<table><tr>{head}</tr>{body}</table>"


# -- chains that are wrong on purpose


def wrong(chain: Chain, chance: random.Random) -> Chain:
    """Return a chain with another disease, the other assertion, or the other side.

    Its rule is one that would have said so: nothing but the mistake tells it from other chains.
    """
    entry, _, version = chain.rule.partition("@")
    entry = entry.partition("+")[0]
    label = chance.choice([one for one in LABELS if one not in ("No Finding", chain.disease)])
    mistakes: list[dict[str, Any]] = [
        {"disease": label, "rule": f"diseases.{label.lower().replace(' ', '_')}@{version}"},
        {"assertion": "negative", "rule": f"{entry}+no@{version}"}
        if chain.assertion != "negative"
        else {"assertion": "positive", "rule": f"{entry}@{version}"},
    ]
    swapped = in_bank_order(frozenset(map(_other_side, chain.regions)))
    if swapped != chain.regions:
        mistakes.append({"regions": swapped})
    return replace(chain, **chance.choice(mistakes))


def _other_side(region: str) -> str:
    side, _, rest = region.partition(" ")
    return f"{_SIDES[side]} {rest}" if side in _SIDES else region


# -- which studies to send


class Candidate(NamedTuple):
    """What a strategy knows of a study; `other` are the labels of the LLM or the release."""

    study_id: str
    labels: dict[str, int | None]
    confidence: float
    other: Mapping[str, int | None]


def candidate(row: Row, other: Mapping[str, Mapping[str, int | None]] | None = None) -> Candidate:
    """Return a study as the strategies see it.

    Without `other` labels by study, those of the release's own phrases with boxes.
    """
    own = {phrase["label"]: 1 for phrase in row["grounded"] if phrase["label"]}
    theirs = own if other is None else other.get(row["study_id"], {})
    return Candidate(row["study_id"], row["labels"], confidence(row), theirs)


def confidence(row: Row) -> float:
    """Return the share of a study's findings that were read plainly; 1 where there is nothing.

    Plain is a stated chain that is not uncertain. Implied chains, uncertain ones, unmapped findings
    and finding-bearing sentences that gave nothing are not.
    """
    plain = sum(
        chain["basis"] == "stated" and chain["assertion"] != "uncertain" for chain in row["chains"]
    )
    silent = row["provenance"]["bearing"] - row["provenance"]["covered"]
    every = len(row["chains"]) + len(row["unmapped"]) + silent
    return round(plain / every, 4) if every else 1.0


def choose(
    candidates: Iterable[Candidate], strategy: str, *, sample: int | None, seed: int = 0
) -> list[str]:
    """Return the ids of the studies that a strategy takes first; ties fall by the seed.

    >>> studies = [Candidate(f"s{n}", {}, n / 9, {}) for n in range(9)]
    >>> choose(studies, "confidence", sample=2)
    ['s0', 's1']
    """
    if strategy not in STRATEGIES:
        raise UserError(
            f"unknown strategy {strategy!r}; the strategies are {', '.join(STRATEGIES)}"
        )
    shuffled = sorted(candidates, key=lambda one: seeded(seed, one.study_id))
    return [one.study_id for one in STRATEGIES[strategy](shuffled)][:sample]


def seeded(seed: int, study_id: str) -> float:
    """Return a number from 0 to 1 that depends on the seed and the study alone."""
    digest = hashlib.sha256(f"{seed}\n{study_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _stratified(studies: list[Candidate]) -> Iterator[Candidate]:
    """Take one study of each label in turn, the rarest label first."""
    groups = {
        label: [one for one in studies if one.labels.get(label) in (1, -1)] for label in LABELS
    }
    ranked = sorted(groups.values(), key=len)
    taken: set[str] = set()
    for one in (*(one for turn in zip_longest(*ranked) for one in turn if one), *studies):
        if one.study_id not in taken:
            taken.add(one.study_id)
            yield one


def _differing(studies: list[Candidate]) -> list[Candidate]:
    """Take the studies whose labels differ, most differences first."""
    counted = [(differences(one), one) for one in studies]
    return [one for count, one in sorted(counted, key=lambda pair: -pair[0]) if count]


def differences(study: Candidate) -> int:
    """Count the labels that the other labeller gives otherwise."""
    return sum(study.labels[label] != value for label, value in study.other.items())


# To add one: a function that orders shuffled studies, and a line here.
STRATEGIES: Final[dict[str, Callable[[list[Candidate]], Iterable[Candidate]]]] = {
    "random": lambda studies: studies,
    "stratified": _stratified,
    "disagreement": _differing,
    "confidence": lambda studies: sorted(studies, key=lambda one: one.confidence),
}


def assigned(readers: Sequence[str], place: int, overlap: int) -> tuple[str, ...]:
    """Return who reads the task at `place`, each task `overlap` readers, all readers alike.

    >>> [assigned(("a", "b", "c"), place, 2) for place in range(3)]
    [('a', 'b'), ('b', 'c'), ('c', 'a')]
    """
    return tuple(readers[(place + turn) % len(readers)] for turn in range(overlap))
