"""From units to mentions: states of structures, then cues, then places.

Each pass is a function over one `Parse`, in a room of its own: structures, scopes, places.
"""

from __future__ import annotations

from cot_builder.decompose.lexicon import Lexicon, Role
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.places import read_places
from cot_builder.decompose.scopes import read_cues
from cot_builder.decompose.structures import read_structures
from cot_builder.decompose.units import Units, find_units


def parse(folded: str, lexicon: Lexicon, *, units: Units | None = None) -> Parse:
    """Find the mentions of one sentence with their assertions, regions and spans.

    `units` stand instead of those that the banks find.
    """
    p = Parse(folded, find_units(folded, lexicon) if units is None else units, lexicon)
    if p.roles & Role.OUTSIDE:
        return p
    if p.roles & Role.STRUCTURE:
        read_structures(p)
    if observed := _observed(p):
        said = p.mentions
        p.mentions = sorted(said + observed, key=lambda m: m.first) if said else observed
        read_cues(p)
    read_places(p)
    # "This pneumothorax measures 3 cm" speaks of one that was told before.
    if p.roles & Role.TOLD_BEFORE:
        p.mentions = [m for m in p.mentions if not p.at(m.left - 1).told_before]
    for mention in p.mentions:
        mention.start, mention.end = p.units.starts[mention.left], p.units.ends[mention.right]
    return p


def _observed(p: Parse) -> list[Mention]:
    """Return the observations that no structure has used, as mentions."""
    return [
        Mention(i, i, term.observation, term.observation.says)
        for i, term in enumerate(p.terms)
        if term.observation is not None and i not in p.used and not _is_title(p, i)
    ]


def _is_title(p: Parse, i: int) -> bool:
    """Tell whether an observation is a heading: "Lines and tubes: right PICC"."""
    return p.at(i + 1).join == ":" and any(t.observation is not None for t in p.terms[i + 2 :])
