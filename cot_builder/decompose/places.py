"""Where an observation lies: its own places, those of its list, of what it explains, of its sentence; then the regions."""

from __future__ import annotations

from typing import Final

from cot_builder.decompose.lexicon import Observation, Place, Site, Term
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.structures import own_side
from cot_builder.decompose.units import Unit

BOTH_LUNGS: Final = frozenset({"left lung", "right lung"})


def read_places(p: Parse) -> None:
    """Collect the places of every mention, share them where lists and explanations do, and resolve them to regions."""
    _places(p)
    _share_places(p)
    for mention in p.mentions:
        mention.regions = regions_of(mention.observation, mention.places)


def _places(p: Parse) -> None:
    units = p.units
    heads = {m.first: m for m in p.mentions if not m.said}
    quiet = set()
    for means, _, first, last in p.cues:
        if means == "emphasis":
            quiet.update(range(first, last + 1))
    for mention in p.mentions:
        if mention.said:
            continue
        _places_before(p, mention, heads)
        _places_after(p, mention, heads, quiet)
        if mention.observation.places:
            stop = min((h for h in heads if h > mention.last), default=len(units))
            while stop < len(units) and (units[stop - 1].term.place or units[stop - 1].term.modifier):
                stop -= 1  # these lead to the next observation
            mention.places = [
                (t.side or t.site_side, t.site, t.weak)
                for k in range(mention.last + 1, stop)
                if (t := units[k].term).place
            ]


def _places_before(p: Parse, mention: Mention, heads: dict[int, Mention]) -> None:
    units = p.units
    j = mention.first - 1
    left = mention.first
    found: list[Place] = []
    while j >= 0 and j not in heads and (j not in p.used or units[j].term.place):
        term = units[j].term
        if term.verb and not term.modifier and not term.place:
            break
        if term.forward is not None and not term.modifier and not term.place:
            break
        if term.place:
            if term.structure is not None and not term.site and not term.side:
                break
            found.append((term.side or term.site_side, term.site, term.weak))
            left = j
            p.taken.add(j)
        elif term.modifier:
            if not term.mask and term.text not in _OUTSIDE_SPAN:
                left = j
            if term.temporal and mention.temporal is None:
                mention.temporal = term.temporal
        elif term.join in ("and", "or", ",") and j > 0:
            before, after = units[j - 1].term, units[j + 1].term
            if not (before.place or before.modifier) or not (after.place or after.modifier):
                break
            if (j - 1) in heads or _behind_preposition(units, j - 1):
                break
            if term.join != "," and not (
                (before.place and after.place)
                or (
                    before.modifier
                    and not before.place
                    and (after.modifier or _side_before(units, j - 1))
                )
                or (
                    before.side
                    and j > 1
                    and not units[j - 2].term.preposition
                    and not units[j - 2].term.stop
                )
                or (before.side and j == 1)
            ):
                break
        elif term.stop or term.join or term.observation is not None:
            break
        elif term.states:
            left = j
        elif not term.text:
            left = j
        elif term.structure is not None or term.shape:
            pass
        else:
            break
        j -= 1
    mention.places = [*found[::-1], *units[mention.first].term.inner]
    mention.leading = bool(mention.places)
    mention.left = mention.right = mention.first
    if left < mention.first:
        mention.left = left


def _behind_preposition(units: list[Unit], j: int) -> bool:
    """Tell whether the places up to `j` end a phrase of their own: "in the right base | and left effusion"."""
    while j >= 0 and (units[j].term.place or units[j].term.modifier or units[j].term.text == "the"):
        j -= 1
    return j >= 0 and units[j].term.preposition


def _side_before(units: list[Unit], j: int) -> bool:
    """Tell whether modifiers up to `j` follow a side: "right lower and middle lobes"."""
    while j >= 0 and units[j].term.modifier and not units[j].term.side:
        j -= 1
    return j >= 0 and units[j].term.side is not None


_OUTSIDE_SPAN: Final = frozenset(
    {"evidence of", "new", "newly", "visualized", "visible", "again", "definite", "signs of"}
)


def _places_after(p: Parse, mention: Mention, heads: dict[int, Mention], quiet: set[int]) -> None:
    units, count = p.units, len(p.units)
    found: list[Place] = []
    pending: list[tuple[int, Place]] = []
    j, verb, joined = mention.last + 1, False, True
    while j < count:
        term = units[j].term
        if j in heads:
            # "... in the right base and left effusion": the last places belong to the next observation.
            break
        if j in quiet:
            j += 1
            continue
        if term.place and not (j in p.used and term.structure is not None and not term.side):
            run = _run_of_places(p, j)
            if run < count and run in heads:
                # "markers within the left upper lobe mass": both lie there. Otherwise the place is the next one's.
                if _is_joined(p, mention, j):
                    found += [
                        (t.side or t.site_side, t.site, t.weak)
                        for k in range(j, run)
                        if (t := units[k].term).place
                    ]
                break
            for k in range(j, run):
                t = units[k].term
                if t.place and k not in quiet and k not in p.taken:
                    found.append((t.side or t.site_side, t.site, t.weak))
                    p.taken.add(k)
                    mention.trailing = True
                    if joined and not verb:
                        mention.right = k
            j = run
            continue
        if term.verb or term.temporal:
            verb = True
            if term.temporal and mention.temporal is None and term.verb:
                mention.temporal = term.temporal
            j += 1
            continue
        if term.join == ",":
            nxt = units[j + 1].term if j + 1 < count else None
            if nxt is not None and nxt.side == "both":
                j += 1
                continue
            break
        if term.join in ("and", "or"):
            # "in the right base and the left upper lobe"
            k = j + 1
            while k < count and (
                units[k].term.preposition
                or units[k].term.text in ("the", "also")
                or units[k].term.modifier
            ):
                k += 1
            run = _run_of_places(p, k)
            if (
                not (found or units[j - 1].term.modifier)
                or run == k
                or (
                    run < count
                    and (run in heads or units[run].term.structure is not None and run in p.used)
                )
            ):
                break
            j = k
            continue
        if term.forward is not None and not term.preposition:
            break
        if term.text == "with" or term.join in (";", "(", ":"):
            break
        if term.observation is not None:
            break
        if not (
            term.preposition
            or term.modifier
            or term.stop
            or term.structure is not None
            or term.shape
            or not term.text
            or term.states
        ):
            break
        if not term.text and not _place_soon(p, j):
            joined = False
        j += 1
    mention.places += found


def _place_soon(p: Parse, j: int) -> bool:
    return any(p.units[k].term.place for k in range(j + 1, min(j + 4, len(p.units))))


def _run_of_places(p: Parse, j: int) -> int:
    """Return the unit behind a run of places and their modifiers that begins at `j`."""
    units = p.units
    while j < len(units) and (
        units[j].term.place
        or units[j].term.modifier
        or (units[j].term.join in ("and", "or", ",") and j + 1 < len(units) and units[j + 1].term.place and units[j - 1].term.place and not _heads_phrase(p, j + 1))
    ):  # fmt: skip
        j += 1
    return j


def _heads_phrase(p: Parse, j: int) -> bool:
    """Tell whether the places at `j` lead straight into another observation."""
    while j < len(p.units) and (p.units[j].term.place or p.units[j].term.modifier):
        j += 1
    return j < len(p.units) and (p.units[j].term.observation is not None or j in p.used)


def _is_joined(p: Parse, mention: Mention, j: int) -> bool:
    j -= 1
    while j > mention.last and (
        p.units[j].term.text in ("the", "a", "an") or p.units[j].term.modifier
    ):
        j -= 1
    return j > mention.last and p.units[j].term.preposition


def _share_places(p: Parse) -> None:
    """Let lists, explanations and leading phrases give their place to observations that name none."""
    units = p.units
    free = [m for m in p.mentions if not m.said]
    for index, mention in enumerate(free):
        if not _sided(mention) and index:
            before = free[index - 1]
            between = [units[k].term for k in range(before.last + 1, mention.first)]
            companion = any(t.companion for t in between)
            if _same_list(between) and before.leading and not before.observation.fixed:
                mention.places = _given(mention, before) + mention.places
                mention.leading = True
            elif (
                mention.linked_to is None
                and before.assertion != "negative"
                and mention.assertion != "negative"
                and (companion or any(t.text == "with" for t in between))
                and not before.observation.fixed
            ):
                mention.places = _given(mention, before) + mention.places
                mention.leading = bool(mention.places)
    for index in range(len(free) - 2, -1, -1):
        mention, after = free[index], free[index + 1]
        if (
            not _strong(mention)
            and after.trailing
            and not after.leading
            and mention.linked_to is None
        ):
            between = [units[k].term for k in range(mention.last + 1, after.first)]
            if _same_list(between) and not after.observation.fixed:
                mention.places = mention.places + after.places
    loose = [
        i for i, u in enumerate(units) if u.term.place and i not in p.taken and i not in p.used
    ]
    for mention in free:
        if mention.linked_to is not None or _sided(mention):
            continue
        if mention.assertion == "negative":
            mention.places = (
                _side_of_clear_lung(p, mention) or _side_of_subject(p, mention)
            ) + mention.places
            continue
        lead = [
            i
            for i in loose
            if i < mention.first
            and not any(
                units[k].term.join == ";"
                or (units[k].term.forward is not None and units[k].term.forward.means == "emphasis")
                for k in range(i, mention.first)
            )
        ]
        if lead and (
            lead[0] == 0
            or units[lead[0] - 1].term.preposition
            or units[lead[0] - 1].term.text in ("the", "both", "a")
        ):
            given: list[Place] = [
                (
                    units[i].term.side or units[i].term.site_side,
                    units[i].term.site,
                    units[i].term.weak,
                )
                for i in lead
            ]
            mention.places = [x for x in given if not _strong(mention) or x[0]] + mention.places
        else:
            mention.places = _side_of_subject(p, mention) + mention.places
    for index, mention in enumerate(free):
        if mention.assertion == "uncertain" and mention.linked_to is None and not _strong(mention):
            # "right base opacity may be atelectasis, but pneumonia is not excluded": there as well.
            for head in reversed(free[:index]):
                if (
                    _strong(head)
                    and head.assertion != "negative"
                    and not head.observation.fixed
                    and "Support Devices" not in head.observation.diseases
                ):
                    mention.places = _given(mention, head) + mention.places
                    break
    for mention in p.mentions:
        head = mention.linked_to
        if head is None:
            continue
        if not _sided(mention):
            lent = _given(mention, head) if _strong(mention) else list(head.places)
            mention.places = lent + mention.places
        elif not _sided(head) and _sided(mention) and not head.said and not head.observation.fixed:
            head.places = list(mention.places)


def _given(mention: Mention, giver: Mention) -> list[Place]:
    """Return the places that one observation lends another: its sides alone to one that names a site itself."""
    if not mention.observation.site.sided:
        return []
    if _strong(mention) or "Support Devices" in mention.observation.diseases:
        return [(side, None, False) for side, _, _ in giver.places if side]
    return [place for place in giver.places if place[1] is None or place[1].sided]


def _side_of_subject(p: Parse, mention: Mention) -> list[Place]:
    """Return the side of the lung that the sentence is about: "the right lung demonstrates basilar atelectasis"."""
    for group in p.groups:
        if group.last < mention.first and group.members[0][2].site.sided:
            between = [p.units[k].term for k in range(group.last + 1, mention.first)]
            if (
                between
                and between[0].verb
                and not any(t.join == ";" or t.text == "but" for t in between)
            ):
                return [x for x in own_side(p, group) if x[0]]
    return []


def _side_of_clear_lung(p: Parse, mention: Mention) -> list[Place]:
    """Return the side of the lung that a denial speaks of: "the left lung is clear without consolidation"."""
    held = p.scope[mention.first]
    if (
        held is None
        or held[1] > mention.first
        or p.units[held[1]].term.text in ("no", "negative for")
    ):
        return []
    group = next((g for g in reversed(p.groups) if g.last < held[1]), None)
    if group is None or group.members[0][2].id != "lungs" or len(group.members) > 1:
        return []
    between = range(group.last + 1, held[1])
    if any(p.units[k].term.join == ";" or p.units[k].term.observation is not None for k in between):
        return []
    return [x for x in own_side(p, group) if x[0]]


def _sided(mention: Mention) -> bool:
    return any(
        side is not None or (site is not None and not site.sided)
        for side, site, _ in mention.places
    )


def _strong(mention: Mention) -> bool:
    return any(not weak for _, _, weak in mention.places)


def _same_list(between: list[Term]) -> bool:
    return any(t.join in (",", "and", "or") for t in between) and all(
        t.join in (",", "and", "or")
        or t.modifier
        or t.place
        or not t.text
        or t.text in ("a", "the", "any", "definite", "large", "of")
        or t.states
        for t in between
    )


def regions_of(observation: Observation, places: list[Place]) -> frozenset[str]:
    """Resolve places to regions: a site takes the side before it, a lone side the observation's own site."""
    site = observation.site
    if observation.fixed:
        elsewhere = {s.id for _, s, weak in places if s is not None and not weak}
        if not (elsewhere & observation.places) or site.id in elsewhere:
            return site.by_side[None]
        places = [x for x in places if x[1] is None or x[1].id in observation.places]
    strong = any(not weak and s is not None for _, s, weak in places)
    sides = [side for side, s, _ in places if side is not None and s is None]
    regions: set[str] = set()
    current: str | None = None
    free_sides = set(sides)
    waiting: list[Site] = []
    for side, where, weak in places:
        if where is None:
            current = side
            continue
        if weak and strong:
            continue
        if side is not None and current in ("left", "right") and side != "both":
            side = current
            free_sides.discard(current)
        elif side is None and current is not None and where.sided:
            side = current
            free_sides.discard(current)
        elif side is None and where.sided:
            waiting.append(where)
            continue
        regions |= where.by_side[side]
    for where in waiting:
        if free_sides and not regions:
            for side in sorted(free_sides):
                regions |= where.by_side[side]
        else:
            regions |= where.by_side[current]
    if waiting:
        free_sides = set()
    for side in sorted(free_sides):
        if site.sided:
            regions |= site.by_side[side]
    if not regions:
        regions |= site.by_side[None]
    return tidy(regions)


def tidy(regions: set[str]) -> frozenset[str]:
    """Both lungs are the whole lung, and the whole lung holds each of them.

    >>> sorted(tidy({"left lung", "right lung"}))
    ['whole lung']
    """
    if regions >= BOTH_LUNGS:
        regions = regions | {"whole lung"}
    return frozenset(regions - BOTH_LUNGS if "whole lung" in regions else regions)
