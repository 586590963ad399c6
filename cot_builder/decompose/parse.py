"""The working state of one sentence while it is parsed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cot_builder.decompose.lexicon import WORD, Lexicon, Observation, Place, Structure, Term
from cot_builder.decompose.units import Units
from cot_builder.records import Assertion


class Member(NamedTuple):
    """A structure of a group, at units `first` to `last`."""

    first: int
    last: int
    structure: Structure


class State(NamedTuple):
    """A state that is said of a group at a unit; without a name, it is one of the unit's own."""

    at: int
    denied: bool = False
    hedged: bool = False
    name: str = ""


@dataclass(slots=True, eq=False)
class Group:
    """Structures that share their states: "heart size and mediastinal contours"."""

    members: list[Member]
    standing: bool  # a noun or a shape word is there; bare adjectives are places only
    first: int
    last: int
    states: list[State] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Mention:
    """One observation at units `first` to `last`, on its way to a chain."""

    first: int
    last: int
    observation: Observation
    assertion: Assertion
    cue: str = ""  # id of the cue that decided the assertion
    by: int = -1  # the unit that did: a cue, a state, the denial of a verdict
    said: bool = False  # said of a structure: cues and lists do not reach it
    left: int = 0  # first unit of the noun phrase
    right: int = 0  # last unit of the phrase with its joined place
    places: list[Place] = field(default_factory=list)
    leading: bool = False  # its places stand before it, so that they head a list
    trailing: bool = False  # it has places behind it
    linked_to: Mention | None = None  # the observation that it explains
    temporal: str | None = None
    regions: frozenset[str] = frozenset()
    start: int = 0
    end: int = 0

    @property
    def denied(self) -> bool:
        """Tell whether it is asserted to be absent."""
        return self.assertion == "negative"


class Hold(NamedTuple):
    """What reaches a unit, and the unit of its cue."""

    means: str = ""
    cue: int = -1


FREE: Final = Hold()


class Reached(NamedTuple):
    """What a cue means, its unit, and the first and last unit that it reaches."""

    means: str
    cue: int
    first: int
    last: int


@dataclass(slots=True, eq=False)
class Parse:
    """The working state of one sentence."""

    folded: str
    units: Units
    lexicon: Lexicon
    terms: list[Term] = field(init=False)  # of the units
    roles: int = 0  # all bits of Role that its terms have
    groups: list[Group] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    scope: list[Hold] = field(default_factory=list)  # per unit, once cues are read
    taken: set[int] = field(default_factory=set)  # places that belong to a mention
    used: set[int] = field(default_factory=set)  # units consumed as structure or state
    cues: list[Reached] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.terms = self.units.terms
        for term in self.terms:
            self.roles |= term.roles

    def at(self, i: int) -> Term:
        """Return the term of a unit; beyond either end of the sentence stands a bare word."""
        return self.terms[i] if 0 <= i < len(self.terms) else WORD

    def text(self, i: int) -> str:
        """Return the words of a unit."""
        return self.folded[self.units.starts[i] : self.units.ends[i]]

    def past(self, i: int, passes: Callable[[Term], object]) -> int:
        """Return the first unit from `i` on that does not pass, or the number of units."""
        while i < len(self.terms) and passes(self.terms[i]):
            i += 1
        return i

    def before(self, i: int, passes: Callable[[Term], object]) -> int:
        """Return the first unit from `i` backwards that does not pass, or -1."""
        while i >= 0 and passes(self.terms[i]):
            i -= 1
        return i

    def heads_observation(self, i: int) -> bool:
        """Tell whether modifiers and places from `i` on lead straight into an observation."""
        return self.at(self.past(i, in_phrase)).observation is not None


def in_phrase(term: Term) -> bool:
    """Tell whether a term is a modifier or a place."""
    return term.modifier or term.place is not None
