"""The working state of one sentence while it is parsed."""

from __future__ import annotations

from dataclasses import dataclass, field

from cot_builder.decompose.lexicon import Lexicon, Observation, Place, Structure
from cot_builder.decompose.units import Unit
from cot_builder.records import Assertion


@dataclass(slots=True, eq=False)
class Group:
    """Structures that share their states: "heart size and mediastinal contours"."""

    first: int
    last: int
    members: list[tuple[int, int, Structure]]  # first unit, last unit, structure
    standing: bool  # a noun or a shape word is there; bare adjectives are places only
    states: list[tuple[int, int, str | None, bool, bool]] = field(
        default_factory=list
    )  # unit, end, name, denied, hedged


@dataclass(slots=True, eq=False)
class Mention:
    """One observation at units `first` to `last`, on its way to a chain."""

    first: int
    last: int
    observation: Observation
    assertion: Assertion
    reason: str
    cue: str = ""  # id of the cue or state that decided the assertion
    places: list[Place] = field(default_factory=list)
    regions: frozenset[str] = frozenset()
    start: int = 0
    end: int = 0
    left: int = 0  # first unit of the noun phrase
    right: int = 0  # last unit of the phrase with its joined place
    leading: bool = False  # its places stand before it, so that they head a list
    trailing: bool = False
    said: bool = False  # said of a structure: cues and lists do not reach it
    linked_to: Mention | None = None
    temporal: str | None = None


@dataclass(slots=True, eq=False)
class Parse:
    """The working state of one sentence."""

    folded: str
    units: list[Unit]
    lexicon: Lexicon
    groups: list[Group] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    scope: list[tuple[str, int] | None] = field(
        default_factory=list
    )  # per unit: what reaches it, from which unit
    taken: set[int] = field(default_factory=set)  # places that belong to a mention
    used: set[int] = field(default_factory=set)  # units consumed as structure or state
    cues: list[tuple[str, int, int, int]] = field(
        default_factory=list
    )  # means, cue unit, first, last (explain)

    def text(self, i: int) -> str:
        """Return the words of a unit."""
        return self.folded[self.units[i].start : self.units[i].end]
