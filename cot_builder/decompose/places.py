"""Where an observation lies: its own places, those lent to it, and the regions that they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cot_builder.decompose.lexicon import WORD, Observation, Place, Role, Side, Site, Term
from cot_builder.decompose.parse import Mention, Parse, in_phrase
from cot_builder.decompose.structures import own_side

BOTH_LUNGS: Final = frozenset({"left lung", "right lung"})


def read_places(p: Parse) -> None:
    """Collect the places of every mention, share them, and resolve them to regions."""
    free = [mention for mention in p.mentions if not mention.said]
    if free:
        _read_own_places(p, free)
    if p.roles & Role.PLACE or any(mention.places for mention in p.mentions):
        if len(free) > 1:
            _share_in_lists(p, free)
        _share_in_sentence(p, free)
        _share_with_explanations(p)
    for mention in p.mentions:
        mention.regions = regions_of(mention.observation, mention.places)


# -- the places of its own phrase


def _read_own_places(p: Parse, free: list[Mention]) -> None:
    heads = {m.first for m in free}
    quiet = {k for r in p.cues if r.means == "emphasis" for k in range(r.first, r.last + 1)}
    last = len(p.terms) - 1
    for mention in free:
        _read_before(p, mention, heads)
        if mention.last < last:
            _read_behind(p, mention, heads, quiet)
        if mention.observation.places:
            mention.places = _places_till_next(p, mention, heads)


def _places_in(terms: Sequence[Term]) -> list[Place]:
    return [term.place for term in terms if term.place]


def _places_till_next(p: Parse, mention: Mention, heads: set[int]) -> list[Place]:
    """Return all places behind a mention but those that lead to the next one."""
    stop = min((h for h in heads if h > mention.last), default=len(p.terms))
    if stop < len(p.terms):
        stop = p.before(stop - 1, in_phrase) + 1
    return _places_in(p.terms[mention.last + 1 : stop])


def _read_before(p: Parse, mention: Mention, heads: set[int]) -> None:
    """Read the noun phrase before an observation: its places, its first unit, its course."""
    found: list[Place] = []
    left = mention.first
    for j in range(mention.first - 1, -1, -1):
        term = p.terms[j]
        if j in heads or (j in p.used and not term.place):
            break
        if not in_phrase(term) and _ends_phrase(p, j, heads):
            break
        if term.place:
            found.append(term.place)
            p.taken.add(j)
            left = j
        elif term.modifier:
            if not term.mask and not term.evidence:
                left = j
            mention.temporal = mention.temporal or term.temporal
        elif not term.join and (term.states or not term.text):
            left = j
    mention.places = [*reversed(found), *p.terms[mention.first].inner]
    mention.leading = bool(mention.places)
    mention.left, mention.right = left, mention.first


def _ends_phrase(p: Parse, j: int, heads: set[int]) -> bool:
    """Tell whether the noun phrase of a later observation begins behind `j`, not in a phrase."""
    term = p.terms[j]
    if term.verb or term.forward.means:
        return True
    if term.lists and j > 0:
        return not _joins_phrase(p, j, heads)
    if term.stop or term.join or term.observation is not None:
        return True
    known = term.states or term.structure or term.shape
    return bool(term.text) and not known


def _joins_phrase(p: Parse, j: int, heads: set[int]) -> bool:
    """Tell whether "and", "or" or a comma stands inside a phrase: "right lower and middle lobe"."""
    i = p.before(j - 1, lambda t: t.lists)  # "right middle, and left lower lobes"
    before, after = p.at(i), p.at(p.past(j + 1, lambda t: t.lists))
    if not (in_phrase(before) and in_phrase(after)):
        return False
    if i in heads or _ends_place_phrase(p, i):
        return False
    if p.terms[j].join == "," or (before.place and after.place):
        return True
    if before.side:
        return not (p.at(i - 1).preposition or p.at(i - 1).stop)
    return not before.place and (after.modifier or _follows_side(p, i))


def _ends_place_phrase(p: Parse, j: int) -> bool:
    """Tell whether the places up to `j` have a preposition: "in the right base | and effusion"."""
    first = p.before(j, lambda t: in_phrase(t) or t.states or t.text == "the")
    word = p.text(first + 1).partition(" ")[0]  # "below the diaphragm" is one place
    return p.at(first).preposition or p.lexicon.terms.get(word, WORD).preposition


def _follows_side(p: Parse, j: int) -> bool:
    """Tell whether modifiers up to `j` follow a side: "right lower and middle lobes"."""
    return p.at(p.before(j, lambda t: t.modifier and not t.side)).side is not None


def _read_behind(p: Parse, mention: Mention, heads: set[int], quiet: set[int]) -> None:
    """Read the places behind an observation, and how far its phrase goes on."""
    found: list[Place] = []
    j, joined = mention.last + 1, True  # until a verb or an unknown word parts the place from it
    while j < len(p.terms) and j not in heads:
        term = p.terms[j]
        if j in quiet:
            j += 1
        elif term.place and not (j in p.used and term.structure is not None and not term.side):
            run = _past_places(p, j)
            if run in heads:
                # "markers within the left lobe mass": both lie there; else it is the next one's.
                if _is_behind_preposition(p, mention, j):
                    found += _places_in(p.terms[j:run])
                break
            for k in range(j, run):
                place = p.terms[k].place
                if place and k not in quiet and k not in p.taken:
                    found.append(place)
                    p.taken.add(k)
                    mention.trailing = True
                    if joined:
                        mention.right = k
            j = run
        elif term.verb or term.temporal or (term.backward.means and not term.forward.means):
            if term.verb or (p.terms[j - 1].verb and not p.heads_observation(j)):
                mention.temporal = mention.temporal or term.temporal
            joined = False
            j += 1
        elif term.join in ("and", "or"):
            further = _further_places(p, j, heads, found)
            if further is None:
                break
            j = further
        elif term.join == "," and not (found or mention.places) and _trails(p, j + 1):
            j += 1
        elif term.join == "(" and (aside := _past_aside(p, j)) is not None:
            j = aside
        elif _ends_behind(p, j):
            break
        else:
            if not term.text and not any(t.place for t in p.terms[j + 1 : j + 4]):
                joined = False
            j += 1
    mention.places += found


def _past_aside(p: Parse, j: int) -> int | None:
    """Return the unit behind brackets, if a place follows: "scar (linear) in the left base"."""
    close = p.past(j + 1, lambda t: t.join != "(" and t.observation is None)
    after = p.at(close + 1)
    return close + 1 if p.at(close).join == "(" and (after.preposition or after.place) else None


def _ends_behind(p: Parse, j: int) -> bool:
    """Tell whether no place of an observation before `j` can follow there."""
    term = p.terms[j]
    if term.join == ",":
        return not (_is_other_side(p, j + 1) or _is_on_both(p, j + 1))
    if term.forward.means and not term.preposition:
        return True
    if term.accompanies or term.join or term.observation is not None:
        return True
    small = term.preposition or term.stop or term.shape
    return not (small or term.modifier or term.structure or term.states or not term.text)


def _is_on_both(p: Parse, j: int) -> bool:
    """Tell whether a finding is said to be on both sides: "bilaterally", not "both unchanged"."""
    return p.at(j).side == "both" and (p.at(j).text != "both" or p.at(j + 1).place is not None)


def _trails(p: Parse, j: int) -> bool:
    """Tell whether places at `j` end a clause: "calcified granuloma, right base"."""
    end = _past_places(p, j)
    return end > j and (end == len(p.terms) or p.at(end).breaks) and not _leads_on(p, j)


def _is_other_side(p: Parse, j: int) -> bool:
    """Tell whether a state and its side begin at `j`: "small on the right, stable on the left"."""
    small = p.past(j, lambda t: t.severity or t.temporal or t.adverb)
    side = p.past(small, lambda t: t.preposition or t.determiner)
    return side > small > j and p.at(side).side is not None and not _leads_on(p, side)


def _further_places(p: Parse, j: int, heads: set[int], found: list[Place]) -> int | None:
    """Return the unit of the places that "and" at `j` adds: "in the right base and the left"."""
    if not (found or p.terms[j - 1].modifier):
        return None
    k = p.past(j + 1, lambda t: t.preposition or t.determiner or t.modifier or t.text == "also")
    run = _past_places(p, k)
    if run == k or run in heads or (p.at(run).structure is not None and run in p.used):
        return None
    return k


def _past_places(p: Parse, j: int) -> int:
    """Return the unit behind a run of places and their modifiers that begins at `j`."""
    while True:
        if in_phrase(p.at(j)):
            j += 1
            continue
        further = p.past(j, lambda t: t.lists)
        joins = further > j and p.at(further).place and in_phrase(p.at(j - 1))
        if not joins or _leads_on(p, further):
            return j
        j = further


def _leads_on(p: Parse, j: int) -> bool:
    """Tell whether the places at `j` lead straight into another observation."""
    j = p.past(j, in_phrase)
    return p.at(j).observation is not None or j in p.used


def _is_behind_preposition(p: Parse, mention: Mention, j: int) -> bool:
    j = p.before(j - 1, lambda t: t.determiner or t.modifier)
    return j > mention.last and p.terms[j].preposition


# -- places that others lend


def _share_in_lists(p: Parse, free: list[Mention]) -> None:
    """Let a place before a list govern its items, and a place behind it those before."""
    for before, mention in pairwise(free):
        if _is_placed(mention) or before.observation.fixed:
            continue
        between = p.terms[before.last + 1 : mention.first]
        if before.leading and _is_list(between):
            mention.places = _lent(mention, before) + mention.places
            mention.leading = True
        elif (
            mention.linked_to is None
            and not (before.denied or mention.denied)
            and any(t.companion or t.accompanies for t in between)
        ):
            giver = before if _is_placed(before) else before.linked_to or before
            mention.places = _lent(mention, giver) + mention.places
            mention.leading = bool(mention.places)
    for mention, after in reversed(list(pairwise(free))):
        governs = after.trailing and not after.leading and not after.observation.fixed
        alike = mention.linked_to is None and mention.denied == after.denied
        takes = alike and not _is_strong(mention)
        if governs and takes and _is_list(p.terms[mention.last + 1 : after.first]):
            mention.places = mention.places + after.places


def _is_list(between: list[Term]) -> bool:
    return any(t.lists for t in between) and all(
        t.lists or in_phrase(t) or t.states or t.determiner or t.filler or not t.text
        for t in between
    )


def _share_in_sentence(p: Parse, free: list[Mention]) -> None:
    """Give observations without a side the places that head the sentence, or its subject's."""
    loose = [i for i, t in enumerate(p.terms) if t.place and i not in p.taken and i not in p.used]
    for mention in free:
        if mention.linked_to is not None or _is_placed(mention):
            continue
        if p.roles & Role.WHERE and (where := _places_before_where(p, mention)):
            lent = where
        elif mention.denied:
            lent = _side_of_clear_lung(p, mention) or _side_of_subject(p, mention)
        elif lead := _leading_places(p, mention, loose):
            lent = [place for place in lead if place[0] or not _is_strong(mention)]
        else:
            lent = _side_of_subject(p, mention)
        mention.places = lent + mention.places
    for index, mention in enumerate(free):
        if mention.assertion != "uncertain" or mention.linked_to or _is_strong(mention):
            continue
        if not (p.at(mention.by).forward.id == "doubt" and p.at(mention.by - 1).join == ","):
            # "right base opacity may be atelectasis, but pneumonia is not excluded": there as well.
            head = next((m for m in reversed(free[:index]) if _lends(m)), None)
            if head is not None:
                mention.places = _lent(mention, head) + mention.places


def _lends(head: Mention) -> bool:
    observation = head.observation
    return _is_strong(head) and not (head.denied or observation.fixed or observation.device)


def _leading_places(p: Parse, mention: Mention, loose: list[int]) -> list[Place]:
    """Return the places that head a sentence: "In the right lung, there is an opacity"."""
    if not loose:
        return []
    lead = [
        i
        for i in loose
        if i < mention.first
        and not any(
            t.join == ";" or t.forward.means == "emphasis" for t in p.terms[i : mention.first]
        )
    ]
    runs = [lead[:1]]
    for i in lead[1:]:
        if _goes_on(p.terms[runs[-1][-1] + 1 : i]):
            runs[-1].append(i)
        else:
            runs.append([i])
    # "On the right there is an opacity, and on the left an effusion": each has its own.
    head = next((run for run in reversed(runs) if run and _heads(p, run[0], within=True)), [])
    if not head and len(runs) == 1 and lead and _heads(p, lead[0], within=False):
        # "The left base shows an opacity", but "the left base is clear, there is an opacity".
        clause = p.terms[lead[-1] + 1 : mention.first]
        head = [] if any(map(_opens_clause, clause)) else lead
    return _places_in([p.terms[i] for i in head])


def _heads(p: Parse, i: int, *, within: bool) -> bool:
    """Tell whether a place at `i` opens a clause, behind a preposition ("within") or as subject."""
    small = p.before(i - 1, lambda t: t.determiner)
    opens = p.before(small, lambda t: t.preposition) if within else small
    led = opens < small if within else i == 0 or small < i - 1 or p.at(i - 1).join == ";"
    return led and (p.mentions[0].first > i or bool(p.at(opens).join or p.at(opens).breaks))


def _goes_on(between: list[Term]) -> bool:
    """Tell whether two places are of one phrase: "in the right base and the left apex"."""
    return all(in_phrase(t) or t.lists or t.preposition or t.determiner for t in between)


def _places_before_where(p: Parse, mention: Mention) -> list[Place]:
    """Return the places that a clause speaks of: "worse on the right, where there is edema"."""
    where = p.before(mention.first - 1, lambda t: t.text != "where" and t.observation is None)
    if p.at(where).text != "where":
        return []
    last = p.before(where - 1, lambda t: t.lists)
    places = _places_in(p.terms[p.before(last, in_phrase) + 1 : last + 1])
    return places if _sides(places) else []


def _side_of_subject(p: Parse, mention: Mention) -> list[Place]:
    """Return the side of the lung that a clause is about: "the right lung shows atelectasis"."""
    group = next((g for g in reversed(p.groups) if g.last < mention.first), None)
    if group is None or not group.members[0].structure.site.sided:
        return []
    between = p.terms[group.last + 1 : mention.first]
    if between and between[0].verb and not any(map(_opens_clause, between)):
        return _sides(own_side(p, group))
    return []


def _side_of_clear_lung(p: Parse, mention: Mention) -> list[Place]:
    """Return the side that a denial speaks of: "the left lung is clear without consolidation"."""
    cue = p.scope[mention.first].cue
    if cue < 0 or cue > mention.first or p.terms[cue].text in ("no", "negative for"):
        return []
    group = next((g for g in reversed(p.groups) if g.last < cue), None)
    if group is None or group.members[0].structure.id != "lungs" or len(group.members) > 1:
        return []
    between = p.terms[group.last + 1 : cue]
    if any(_opens_clause(t) or t.observation is not None for t in between):
        return []
    return _sides(own_side(p, group))


def _opens_clause(term: Term) -> bool:
    """Tell whether another subject follows: "the left lung is clear, there is no effusion"."""
    return term.breaks and not term.relative and term.forward.id != "same_subject"


def _share_with_explanations(p: Parse) -> None:
    """Let an explanation lie where the observation lies that it explains, or the reverse."""
    for mention in p.mentions:
        head = mention.linked_to
        if head is None:
            continue
        if not _is_placed(mention):
            head = _shifted(p, head) if mention.observation.site.sided else head
            lent = _lent(mention, head) if _is_strong(mention) else head.places
            mention.places = lent + mention.places
        elif not (_is_placed(head) or head.said or head.observation.fixed):
            head.places = list(mention.places)


def _shifted(p: Parse, head: Mention) -> Mention:
    """Return what a shift goes with: "opacified with shift to the right, from ..."."""
    place = p.mentions.index(head)
    if place and not (head.observation.site.sided or head.observation.diseases):
        before = p.mentions[place - 1]
        if any(t.accompanies for t in p.terms[before.last + 1 : head.left]):
            return before
    return head


def _lent(mention: Mention, giver: Mention) -> list[Place]:
    """Return the places that one observation lends another.

    One of another kind of place ("hilar adenopathy and effusion"), or that names a site itself,
    takes the sides alone.
    """
    site = mention.observation.site
    if not site.sided:
        return []
    if _is_strong(mention) or mention.observation.device or giver.observation.site is not site:
        return _sides([(side, None, False) for side, _, _ in giver.places])
    return [place for place in giver.places if place[1] is None or place[1].sided]


def _sides(places: list[Place]) -> list[Place]:
    return [place for place in places if place[0]]


def _is_placed(mention: Mention) -> bool:
    """Tell whether a mention has a side, or a site that has none."""
    return any(side or (site is not None and not site.sided) for side, site, _ in mention.places)


def _is_strong(mention: Mention) -> bool:
    return any(not weak for _, _, weak in mention.places)


# -- places of the sentence before


def lends_on(mention: Mention) -> bool:
    """Tell whether the next sentence, if it refers back, lies where a mention lies."""
    sided = mention.places and mention.observation.site.sided
    return bool(sided) and _lends(mention) and not mention.observation.normal


def takes_back(p: Parse, mention: Mention) -> bool:
    """Tell whether a mention lies where the sentence before says: "Findings suggest pneumonia."."""
    if mention.places or mention.said or mention.denied or mention.observation.fixed:
        return False
    if not mention.observation.site.sided:
        return False
    first = min(mention.first, p.past(0, lambda t: t.determiner or t.adverb or t.modifier))
    if p.text(first).partition(" ")[0] in p.lexicon.refers or _is_guess(p, mention):
        return True
    phrase = range(mention.left, mention.first)  # "associated volume loss"
    return mention is p.mentions[0] and any(p.text(i) in p.lexicon.refers_within for i in phrase)


def _is_guess(p: Parse, mention: Mention) -> bool:
    """Tell whether a sentence only names what may explain the one before: "Possible pneumonia."."""
    alone = mention.by == 0 and mention.assertion == "uncertain" and p.mentions == [mention]
    return alone and all(
        t.modifier or t.forward.means == "uncertain" or t.observation is not None for t in p.terms
    )


# -- regions


def regions_of(observation: Observation, places: Sequence[Place]) -> frozenset[str]:
    """Resolve places to regions: a site takes the side before it, a lone side the own site."""
    if not places:
        return observation.site.by_side[None]
    elsewhere = observation.places if observation.fixed else None
    return _resolved(observation.site, elsewhere, tuple(places))


@lru_cache(maxsize=16_384)  # a few thousand stand for nearly all; each is some microseconds' work
def _resolved(
    site: Site, elsewhere: frozenset[str] | None, places: tuple[Place, ...]
) -> frozenset[str]:
    """Resolve places of a finding at a site; one that is fixed there may lie `elsewhere` only."""
    if elsewhere is not None:
        named = {s.id for _, s, weak in places if s is not None and not weak}
        if site.id in named or not named & elsewhere:
            return site.by_side[None]
        places = tuple(place for place in places if place[1] is None or place[1].id in elsewhere)
    if "whole lung" not in site.by_side[None]:  # weak places are of the lungs: "diffuse osteopenia"
        places = tuple(place for place in places if not place[2])
    regions, lone = _regions_of_sites(places)
    both = any(side == "both" and at is not None and not weak for side, at, weak in places)
    if site.sided and not both:  # "biapical scarring, right greater than left"
        regions.update(*(site.by_side[side] for side in lone))
    return tidy(regions or set(site.by_side[None]))


def _regions_of_sites(places: Sequence[Place]) -> tuple[set[str], set[Side | None]]:
    """Return the regions of the sites among places, and the sides that no site took."""
    strong = any(site is not None and not weak for _, site, weak in places)
    one_sided = any(side in ("left", "right") for side, _, _ in places)
    lone = {side for side, site, _ in places if site is None}
    regions: set[str] = set()
    waiting: list[Site] = []  # for a side behind them
    current: Side | None = None
    fresh = False  # no site has taken the current side yet
    for side, site, weak in places:
        if site is None:
            current, fresh = side, True
        elif not (weak and (strong or (side == "both" and one_sided))):
            if _takes_side(side, site, current, fresh=fresh):
                side, fresh = current, False
                lone.discard(current)
            if side is None and site.sided:
                waiting.append(site)
            else:
                regions |= site.by_side[side]
    for site in waiting:
        for side in lone if lone and not regions else {current}:
            regions |= site.by_side[side]
    return regions, set() if waiting else lone


def _takes_side(side: Side | None, site: Site, current: Side | None, *, fresh: bool) -> bool:
    """Tell whether a site takes the side before it: a side of its own gives way to a fresh one."""
    if side is None:
        return current is not None and site.sided
    return fresh and side != "both" and current in ("left", "right")


def tidy(regions: set[str]) -> frozenset[str]:
    """Both lungs are the whole lung, and the whole lung holds each of them.

    >>> sorted(tidy({"left lung", "right lung"}))
    ['whole lung']
    """
    if regions >= BOTH_LUNGS:
        regions = regions | {"whole lung"}
    return frozenset(regions - BOTH_LUNGS if "whole lung" in regions else regions)
