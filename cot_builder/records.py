"""What flows through a build, in the order of the flow; each record is valid at birth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from cot_builder.boxes import Box
from cot_builder.vocabulary import ASSERTIONS, LABEL_VALUES, LABELS, REGIONS

Assertion = Literal["positive", "negative", "uncertain"]
Basis = Literal["stated", "implied"]
Row = dict[str, Any]

BASES: Final = ("stated", "implied")

_LABEL_SET: Final = frozenset(LABELS)
_REGION_ORDER: Final = {region: place for place, region in enumerate(REGIONS)}


class Section(NamedTuple):
    """A named part of a report; all character offsets of chains point into `text`."""

    name: str
    text: str


class Image(NamedTuple):
    """One radiograph of a study: path below the release root, view as released, size in pixels."""

    path: str
    image_id: str
    view: str | None = None
    width: int | None = None
    height: int | None = None


class Grounded(NamedTuple):
    """A phrase of a section, `text[start:end]`, with its boxes, as a release gives them.

    `label` is the release's own name for it, if it has one, as one of the 14.
    """

    section: str
    start: int
    end: int
    label: str | None
    boxes: tuple[Box, ...]

    def to_row(self) -> Row:
        """Return the phrase as a row of the dataset's `grounded` column."""
        return {**self._asdict(), "boxes": [box.to_row() for box in self.boxes]}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Grounded:
        """Read a phrase back from a row of the `grounded` column."""
        return cls(**{**row, "boxes": tuple(map(Box.from_row, row["boxes"]))})


@dataclass(frozen=True, slots=True)
class Report:
    """One study as its release gives it: sections of text, images, and phrases with boxes.

    `file` is the path of the report below the release root (for a table: `name.csv:row`).
    """

    study_id: str
    subject_id: str | None
    source: str
    split: str | None
    sections: tuple[Section, ...]
    images: tuple[Image, ...] = ()
    file: str = ""
    grounded: tuple[Grounded, ...] = ()

    def section(self, name: str) -> str:
        """Return the text of one section, or the empty string when the report has none."""
        return next((s.text for s in self.sections if s.name == name), "")


class Sentence(NamedTuple):
    """One sentence of a section, the `index`-th from 0: `text == section_text[start:end]`."""

    section: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one looks for in a sentence
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One mention of one observation: finding → concepts → disease → regions.

    `section_text[start:end] == finding` always; `rule` names the bank entry and the cue that made
    the chain. `concept_ids` are those of the finding in a knowledge base, the most similar first;
    None: nobody looked.
    """

    section: str
    sentence: int
    finding: str
    start: int
    end: int
    disease: str
    basis: Basis
    assertion: Assertion
    regions: tuple[str, ...]
    concepts: tuple[str, ...] = ()
    severity: str | None = None
    temporal: str | None = None
    boxes: tuple[Box, ...] = ()
    rule: str = ""
    concept_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.disease not in _LABEL_SET:
            raise ValueError(
                f"unknown disease {self.disease!r}; expected one of {', '.join(LABELS)}"
            )
        if self.basis not in BASES:
            raise ValueError(f"unknown basis {self.basis!r}; expected one of {', '.join(BASES)}")
        _check_mention(self)

    def to_row(self) -> Row:
        """Return the chain as a row of the dataset's `chains` column."""
        return {
            "section": self.section,
            "sentence": self.sentence,
            "finding": self.finding,
            "start": self.start,
            "end": self.end,
            "concepts": list(self.concepts),
            "disease": self.disease,
            "basis": self.basis,
            "assertion": self.assertion,
            "regions": list(self.regions),
            "severity": self.severity,
            "temporal": self.temporal,
            "boxes": [box.to_row() for box in self.boxes],
            "rule": self.rule,
            "concept_ids": None if self.concept_ids is None else list(self.concept_ids),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Chain:
        """Read a chain back from a row of the `chains` column."""
        return cls(
            **{
                **row,
                "concepts": tuple(row["concepts"]),
                "regions": tuple(row["regions"]),
                "boxes": tuple(map(Box.from_row, row["boxes"])),
                "concept_ids": _concept_ids(row),
            }
        )


@dataclass(frozen=True, slots=True)
class Unmapped:
    """An abnormal observation that belongs to none of the 14 labels, kept beside the chains."""

    section: str
    sentence: int
    finding: str
    start: int
    end: int
    assertion: Assertion
    regions: tuple[str, ...]
    rule: str = ""
    concept_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_mention(self)

    def to_row(self) -> Row:
        """Return the finding as a row of the dataset's `unmapped` column."""
        return {
            "section": self.section,
            "sentence": self.sentence,
            "finding": self.finding,
            "start": self.start,
            "end": self.end,
            "assertion": self.assertion,
            "regions": list(self.regions),
            "rule": self.rule,
            "concept_ids": None if self.concept_ids is None else list(self.concept_ids),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Unmapped:
        """Read a finding back from a row of the `unmapped` column."""
        regions = tuple(row["regions"])
        return cls(**{**row, "regions": regions, "concept_ids": _concept_ids(row)})


class Decomposition(NamedTuple):
    """What one report yields.

    `bearing` counts the sentences that carry a finding, `covered` those of them that gave a chain
    or an unmapped finding; coverage is covered / bearing.
    """

    chains: tuple[Chain, ...]
    unmapped: tuple[Unmapped, ...]
    sentences: int
    bearing: int
    covered: int


class Rejected(NamedTuple):
    """An input that gave no row, or lost a part of one: where it lies, and why.

    `reason` is a short fixed code (`empty_report`); `detail` says what was expected and what came.
    """

    source: str
    file: str
    reason: str
    detail: str
    study_id: str | None = None

    def to_row(self) -> Row:
        """Return the record as a line of `rejects.jsonl`."""
        return self._asdict()


@lru_cache(maxsize=4096)
def in_bank_order(regions: frozenset[str]) -> tuple[str, ...]:
    """Sort regions into bank order.

    >>> in_bank_order(frozenset({"trachea", "left lung"}))
    ('left lung', 'trachea')
    """
    return tuple(sorted(regions, key=_REGION_ORDER.__getitem__))


@lru_cache(maxsize=4096)  # there are 4,095 sets of regions; a build checks millions of mentions
def _are_regions(regions: tuple[str, ...]) -> bool:
    places = [_REGION_ORDER.get(region, -1) for region in regions]
    return bool(places) and places == sorted(set(places)) and places[0] >= 0


def _concept_ids(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    ids = row.get("concept_ids")  # datasets of version 0.1.0 may lack the field
    return None if ids is None else tuple(ids)


def _check_mention(mention: Chain | Unmapped) -> None:
    size = mention.end - mention.start
    if size != len(mention.finding) or size == 0 or mention.start < 0:
        raise ValueError(
            f"finding {mention.finding!r} does not span characters {mention.start} to {mention.end}"
        )
    if mention.assertion not in LABEL_VALUES:
        raise ValueError(
            f"unknown assertion {mention.assertion!r}; expected one of {', '.join(ASSERTIONS)}"
        )
    if not _are_regions(mention.regions):
        raise ValueError(
            f"regions {mention.regions!r}: expected one or more, once each, in bank order, of "
            f"{', '.join(REGIONS)}"
        )
