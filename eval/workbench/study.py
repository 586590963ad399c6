"""What the page of one study shows: its text in pieces, mentions with reasons, boxes on images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from cot_builder.boxes import XYXY
from cot_builder.decompose.explain import Reason, account
from cot_builder.decompose.lexicon import Lexicon
from cot_builder.predictions import Prediction
from cot_builder.records import Row, Section
from cot_builder.sentences import split_sentences
from cot_builder.show import plain
from eval.workbench.index import UNMAPPED

# What an unmapped finding lacks beside a chain.
_BARE: Final[Row] = {
    "disease": UNMAPPED, "basis": "stated", "concepts": (), "severity": None, "temporal": None,
    "boxes": (),
}  # fmt: skip


class Piece(NamedTuple):
    """A stretch of text, and the numbers of the marks that cover it, the shortest first."""

    text: str
    marks: tuple[int, ...]


class Mention(NamedTuple):
    """A chain or an unmapped finding, by its number on the page, and why it is read so.

    `kind` is the assertion, or `unmapped`; `reason` is None where the rules did not make it.
    """

    number: int
    kind: str
    row: Row
    reason: Reason | None
    cues: tuple[str, ...]


class Part(NamedTuple):
    """A section of the report with its mentions."""

    name: str
    pieces: tuple[Piece, ...]
    mentions: tuple[Mention, ...]


class Drawn(NamedTuple):
    """A box on an image, in its original pixels, and what to open when it is chosen."""

    xyxy: XYXY
    title: str
    kind: str
    target: str


class Picture(NamedTuple):
    """An image of a study with the boxes on it; without a size, no box can be drawn."""

    number: int
    row: Row
    boxes: tuple[Drawn, ...]


def pieces(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Piece, ...]:
    """Cut a text wherever a span begins or ends; marks are the spans' places in the sequence.

    >>> pieces("small effusion", [(0, 14), (6, 14)])
    (Piece(text='small ', marks=(0,)), Piece(text='effusion', marks=(1, 0)))
    """
    size = len(text)
    shortest_first = sorted(range(len(spans)), key=lambda n: spans[n][1] - spans[n][0])
    cuts = sorted({0, size, *(min(max(cut, 0), size) for span in spans for cut in span)})
    return tuple(
        Piece(
            plain(text[start:end]),
            tuple(n for n in shortest_first if spans[n][0] <= start and end <= spans[n][1]),
        )
        for start, end in pairwise(cuts)
    )


def parts(row: Row, lexicon: Lexicon) -> tuple[Part, ...]:
    """Return the sections of a study with its mentions, numbered through, and their reasons."""
    found: list[Part] = []
    number = 0
    for section in row["sections"]:
        mentions = [
            mention
            for mention in (*row["chains"], *row["unmapped"])
            if mention["section"] == section["name"]
        ]
        mentions.sort(key=lambda mention: (mention["start"], mention["end"]))
        reasons = _reasons(Section(**section), lexicon) if mentions else {}
        told = []
        for mention in mentions:
            reason, cues = reasons.get((mention["start"], mention["end"]), (None, ()))
            kind = mention["assertion"] if "disease" in mention else "unmapped"
            told.append(Mention(number, kind, _BARE | mention, reason, cues))
            number += 1
        cut = pieces(section["text"], [(m["start"], m["end"]) for m in mentions])
        first = number - len(told)
        numbered = (p._replace(marks=tuple(first + mark for mark in p.marks)) for p in cut)
        found.append(Part(section["name"], tuple(numbered), tuple(told)))
    return tuple(found)


def pictures(row: Row, shown: Sequence[Part], prediction: Prediction | None) -> tuple[Picture, ...]:
    """Return the images of a study with the dataset's boxes and, of a prediction, the model's."""
    drawn: dict[str, list[Drawn]] = {}
    for image_id, box in (*_boxes_of(shown), *_boxes_without_chain(row), *_predicted(prediction)):
        drawn.setdefault(image_id, []).append(box)
    return tuple(
        Picture(number, image, tuple(drawn.get(image["image_id"], ())))
        for number, image in enumerate(row["images"])
    )


def _reasons(
    section: Section, lexicon: Lexicon
) -> Mapping[tuple[int, int], tuple[Reason, tuple[str, ...]]]:
    """Return the reason of each mention, by its span in the section, with its sentence's cues."""
    found = {}
    for sentence in split_sentences(section):
        told = account(sentence.text, lexicon)
        for reason in told.reasons:
            span = sentence.start + reason.start, sentence.start + reason.end
            found[span] = (reason, told.cues)
    return found


def _boxes_of(shown: Sequence[Part]) -> Iterator[tuple[str, Drawn]]:
    for part in shown:
        for mention in part.mentions:
            for box in mention.row["boxes"]:
                title = f"{mention.row['finding']} ({box['kind']}, {box['source']})"
                yield _drawn(box, title, f"m{mention.number}")


def _boxes_without_chain(row: Row) -> Iterator[tuple[str, Drawn]]:
    """Yield the boxes of phrases that no chain took."""
    taken = {_key(box) for chain in row["chains"] for box in chain["boxes"]}
    for phrase in row["grounded"]:
        text = next((s["text"] for s in row["sections"] if s["name"] == phrase["section"]), "")
        title = f"{text[phrase['start'] : phrase['end']]} (no chain has this box)"
        for box in phrase["boxes"]:
            if _key(box) not in taken:
                yield _drawn(box, title, "")


def _predicted(prediction: Prediction | None) -> Iterator[tuple[str, Drawn]]:
    """Yield a model's boxes: of the sentences of its report, and of phrases that it looked for."""
    if prediction is None:
        return
    for number, located in enumerate((*prediction.sentences, *prediction.phrases)):
        for xyxy in located.boxes or ():
            title = plain(f"predicted: {located.text}")
            yield prediction.image_id or "", Drawn(xyxy, title, "predicted", f"p{number}")


def _drawn(box: Row, title: str, target: str) -> tuple[str, Drawn]:
    return box["image_id"], Drawn(_key(box)[1], plain(title), "true", target)


def _key(box: Row) -> tuple[str, XYXY]:
    return box["image_id"], (box["x1"], box["y1"], box["x2"], box["y2"])
