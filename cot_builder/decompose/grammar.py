"""From units to mentions: states of structures, then cues, then places.

Each pass is a function over one `Parse`, in a room of its own: structures, scopes, places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cot_builder.decompose.lexicon import WORD, Lexicon, Observation, Role, Term
from cot_builder.decompose.parse import Mention, Parse, in_phrase
from cot_builder.decompose.places import read_places
from cot_builder.decompose.scopes import read_cues
from cot_builder.decompose.structures import read_structures
from cot_builder.decompose.units import Units, find_units


def parse(folded: str, lexicon: Lexicon, *, units: Units | None = None) -> Parse:
    """Find the mentions of one sentence with their assertions, regions and spans.

    `units` stand instead of those that the banks find.
    """
    found = find_units(folded, lexicon) if units is None else units
    return _parsed([Parse(folded, found, lexicon)])[0]


def parse_all(folded: Iterable[str], lexicon: Lexicon) -> list[Parse]:
    """Parse sentences together: a quarter faster than one by one, with the same results."""
    found = [(text, find_units(text, lexicon)) for text in folded]
    return _parsed([Parse(text, units, lexicon) for text, units in found])


def _parsed(parses: list[Parse]) -> list[Parse]:
    """Take all sentences through each pass in turn, whose code stays in the processor's caches."""
    chest = [p for p in parses if not p.roles & Role.OUTSIDE]
    for p in chest:
        if p.roles & Role.STRUCTURE:
            read_structures(p)
    for p in chest:
        if p.roles & Role.OBSERVATION:
            _read_observations(p)
    for p in chest:
        read_places(p)
        _read_spans(p)
    return parses


def _read_observations(p: Parse) -> None:
    if p.roles & Role.STANDS:
        _read_ellipses(p)
    if observed := _observed(p):
        said = p.mentions
        p.mentions = sorted(said + observed, key=lambda m: m.first) if said else observed
        read_cues(p)


def _read_ellipses(p: Parse) -> None:
    """Read "the left" or "one" as the finding before: "right effusion has gone, the left not"."""
    told: Observation | None = None
    for i, term in enumerate(p.terms):
        if term.observation is not None and not term.observation.device:
            told = term.observation
        elif term.structure is not None and i in p.used:
            told = None
        elif term.stands and i not in p.used and (found := _stands_for(p, i, told)):
            place = () if term.place is None else (term.place,)
            p.terms[i] = replace(WORD, observation=found, inner=place)


def _stands_for(p: Parse, i: int, told: Observation | None) -> Observation | None:
    """Return the finding that a side or a pronoun at `i` stands for, one told or one ahead."""
    if told is not None and _is_ellipsis(p, i):
        return told
    return _shared_ahead(p, i) if p.terms[i].side else None


def _is_ellipsis(p: Parse, i: int) -> bool:
    """Tell whether a side or "one" stands for a finding: "the left has increased"."""
    term, before, after = p.terms[i], p.at(i - 1), p.at(i + 1)
    if not term.side:
        sided = before.side or (after.preposition and p.at(p.past(i + 1, _is_small)).side)
        return bool(sided) and any(t.side for t in p.terms[: i - 1]) and not p.heads_observation(i)
    end = p.past(i + 1, lambda t: not (t.lists or t.breaks or t.verdict or t.observation))
    closes = i + 1 == len(p.terms) or after.lists or after.breaks
    opens = p.before(i - 1, lambda t: t.modifier)
    if opens < i - 1 and closes:  # "small right effusion, trace left"
        return p.at(opens).join in (",", "and") and p.at(opens - 1).observation is not None
    if not before.determiner or p.at(i - 2).preposition:
        return False
    if closes:  # "as is the right"
        return p.at(i - 2).verb and p.at(i - 3).text == "as"
    subject = not (p.at(end).verdict or p.at(end).observation)
    return subject and bool(after.verb or after.temporal or after.backward.means)


def _shared_ahead(p: Parse, i: int) -> Observation | None:
    """Return the finding that a side shares with a denied one: "small right, but no left ..."."""
    k = p.past(i + 1, lambda t: t.lists or t.determiner or t.text == "but")
    if k == i + 1 or p.at(k).forward.means not in ("negative", "uncertain"):
        return None
    last = p.past(k + 1, lambda t: in_phrase(t) or t.determiner or t.join == ",")
    sided = any(t.side and t.side != p.terms[i].side for t in p.terms[k + 1 : last])
    return p.at(last).observation if sided else None


def _is_small(term: Term) -> bool:
    return term.preposition or term.determiner


def _read_spans(p: Parse) -> None:
    # "This pneumothorax measures 3 cm" speaks of one that was told before.
    if p.roles & Role.TOLD_BEFORE:
        p.mentions = [m for m in p.mentions if not p.at(m.left - 1).told_before]
    for mention in p.mentions:
        mention.start, mention.end = p.units.starts[mention.left], p.units.ends[mention.right]


def _observed(p: Parse) -> list[Mention]:
    """Return the observations that no structure has used, as mentions."""
    titled = p.roles & Role.COLON
    terms = p.terms
    return [
        Mention(
            i,
            i,
            _parted(p, i, term.observation) if i and terms[i - 1].place else term.observation,
            term.observation.says,
        )
        for i, term in enumerate(terms)
        if term.observation is not None
        and i not in p.used
        and not (term.plain and p.heads_observation(i + 1))  # "infectious bronchiolitis"
        and not (titled and _is_title(p, i))
    ]


def _parted(p: Parse, i: int, alone: Observation) -> Observation:
    """Return what a phrase with places inside stands for: "nodular right lower lobe opacity"."""
    j = p.before(i - 1, lambda t: t.place is not None)
    if j < 0 or not p.terms[j].plain:
        return alone
    whole = p.lexicon.terms.get(f"{p.text(j)} {p.text(i)}", WORD).observation
    return whole if whole and whole.diseases else alone  # "overlying rib opacity" is no artifact


def _is_title(p: Parse, i: int) -> bool:
    """Tell whether an observation is of a heading: "Lines/tubes/devices: right PICC"."""
    colon = p.past(i + 1, lambda t: t.lists or t.observation is not None)
    return p.at(colon).join == ":" and any(t.observation is not None for t in p.terms[colon + 1 :])
