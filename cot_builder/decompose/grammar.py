"""From units to mentions: states of structures, then cues, then places.

Each pass is a function over one `Parse`, in a room of its own: structures, scopes, places.
"""

from __future__ import annotations

from cot_builder.decompose.lexicon import Lexicon
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.places import read_places
from cot_builder.decompose.scopes import read_cues
from cot_builder.decompose.structures import read_structures
from cot_builder.decompose.units import Unit, find_units


def parse(folded: str, lexicon: Lexicon) -> Parse:
    """Find the mentions of one sentence with their assertions, regions and spans."""
    units = find_units(folded, lexicon)
    p = Parse(folded, units, lexicon)
    if any(u.term.outside for u in units):
        return p
    if any(u.term.structure is not None or u.term.generic for u in units):
        read_structures(p)
    observed = False
    for i, unit in enumerate(units):
        if unit.term.observation is not None and i not in p.used and not _is_title(units, i):
            observed = True
            p.mentions.append(Mention(i, i, unit.term.observation, unit.term.observation.says, ""))
    if observed:
        p.mentions.sort(key=lambda m: m.first)
        read_cues(p)
    read_places(p)
    # "This pneumothorax measures 3 cm" speaks of one that was told before.
    p.mentions = [m for m in p.mentions if m.left == 0 or p.text(m.left - 1) not in ("this", "these")]
    for mention in p.mentions:
        mention.start, mention.end = units[mention.left].start, units[mention.right].end
    return p


def _is_title(units: list[Unit], i: int) -> bool:
    """Tell whether an observation is a heading: "Lines and tubes: right PICC"."""
    return (
        i + 1 < len(units) and units[i + 1].term.join == ":"
        and any(u.term.observation is not None for u in units[i + 2 :])
    )  # fmt: skip
