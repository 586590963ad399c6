"""From units to mentions: which structure has which state, what a cue reaches, where an observation lies.

The passes run in this order over the units of one sentence, each a plain function over one `Parse`:
groups and states → cue scopes → alternatives ("A or B") → places → regions → spans.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cot_builder.decompose.lexicon import Lexicon, Observation, Place, Site, Structure
from cot_builder.decompose.units import Unit
from cot_builder.records import Assertion

BOTH_LUNGS: Final = frozenset({"left lung", "right lung"})


@dataclass(slots=True, eq=False)
class Group:
    """Structures that share their states: "heart size and mediastinal contours"."""

    first: int
    last: int
    members: list[tuple[int, int, Structure]]  # first unit, last unit, structure
    standing: bool  # a noun or a shape word is there; bare adjectives are places only
    states: list[tuple[int, int, str | None, bool, bool]] = field(default_factory=list)  # unit, end, name, denied, hedged


@dataclass(slots=True, eq=False)
class Mention:
    """One observation at units `first` to `last`, on its way to a chain."""

    first: int
    last: int
    observation: Observation
    assertion: Assertion
    reason: str
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

    units: list[Unit]
    lexicon: Lexicon
    groups: list[Group] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    scope: list[tuple[str, int] | None] = field(default_factory=list)  # per unit: what reaches it, from which unit
    taken: set[int] = field(default_factory=set)  # places that belong to a mention
    used: set[int] = field(default_factory=set)  # units consumed as structure or state
    cues: list[tuple[str, int, int, int]] = field(default_factory=list)  # means, cue unit, first, last (explain)


def parse(units: list[Unit], lexicon: Lexicon) -> Parse:
    """Find the mentions of one sentence with their assertions, regions and spans."""
    p = Parse(units, lexicon)
    if any(u.term.structure is not None for u in units):
        _find_groups(p)
        _attach_states(p)
        _general_verdicts(p)
        _structure_mentions(p)
    observed = False
    for i, unit in enumerate(units):
        if unit.term.observation is not None and i not in p.used and not _is_title(units, i):
            observed = True
            p.mentions.append(Mention(i, i, unit.term.observation, unit.term.observation.says, ""))
    if observed:
        p.mentions.sort(key=lambda m: m.first)
        _scopes(p)
        _assert_mentions(p)
        _alternatives(p)
    _places(p)
    _share_places(p)
    _regions(p)
    for mention in p.mentions:
        mention.start, mention.end = units[mention.left].start, units[mention.right].end
    return p


def _is_title(units: list[Unit], i: int) -> bool:
    """Tell whether an observation is a heading: "Lines and tubes: right PICC"."""
    return (
        i + 1 < len(units) and units[i + 1].term.join == ":"
        and any(u.term.observation is not None for u in units[i + 2 :])
    )  # fmt: skip


# --- structures and their states -------------------------------------------------------------------------------


def _find_groups(p: Parse) -> None:
    units, count, i = p.units, len(p.units), 0
    while i < count:
        term = units[i].term
        if term.structure is None or _is_place_only(p, i):
            i += 1
            continue
        group = Group(i, i, [(i, i, term.structure)], not term.adjective)
        i += 1
        while i < count:
            term = units[i].term
            if term.shape and not term.structure:
                group.standing, group.last = True, i
                group.members[-1] = (group.members[-1][0], i, group.members[-1][2])
                i += 1
                continue
            j = i
            while j < count and (
                units[j].term.join in (",", "and", "or")
                or (units[j].term.text in ("the", "both", "of", "a") and j > i)
                or (j > i and (units[j].term.modifier or units[j].term.side) and not units[j].term.states)
            ):
                j += 1
            if j >= count or units[j].term.structure is None or (j > i and units[j - 1].term.text == "of"):
                break
            if _list_of_findings(p, i, j):
                break
            term = units[j].term
            assert term.structure is not None
            group.members.append((j, j, term.structure))
            group.standing = group.standing or not term.adjective
            group.last, i = j, j + 1
        p.groups.append(group)


def _is_place_only(p: Parse, i: int) -> bool:
    """A structure behind a preposition is a place: "opacity in the lung", "structures of the thorax"."""
    units, j = p.units, i - 1
    while j >= 0 and (units[j].term.text in ("the", "a", "an", "both") or units[j].term.side or units[j].term.modifier):
        j -= 1
    if j < 0 or not units[j].term.preposition:
        return False
    j -= 1
    while j >= 0 and (units[j].term.shape or units[j].term.modifier or units[j].term.join == "and") and not units[j].term.states:
        j -= 1
    # "normal appearance of the heart" is said of the heart.
    return not (j >= 0 and (units[j].term.states or units[j].term.text in ("appearance", "appearance of")))


def _list_of_findings(p: Parse, i: int, j: int) -> bool:
    """A structure word that heads an observation does not join a group: "heart size and lung nodules"."""
    units = p.units
    k = j + 1
    while k < len(units) and (units[k].term.modifier or units[k].term.adjective):
        k += 1
    return units[j].term.adjective and k < len(units) and units[k].term.observation is not None and not units[k].term.shape


def _attach_states(p: Parse) -> None:
    units = p.units
    starts = {group.first: group for group in p.groups}
    for i, unit in enumerate(units):
        if not unit.term.states:
            continue
        before = _step(units, i, -1)
        denied = before >= 0 and _denies(units, before)
        hedged = not denied and _hedged(units, i)
        ahead = _ahead(p, i, starts)
        verb_before = before >= 0 and units[before].term.verb
        if ahead is not None and not (verb_before and _nearest_group(p, i) is not None):
            ahead.states.append((i, i, None, denied, hedged))
            continue
        if _modifies_observation(p, i):
            continue
        group = _nearest_group(p, i)
        if group is not None:
            group.states.append((i, i, None, denied, hedged))


def _step(units: list[Unit], i: int, by: int) -> int:
    """Return the next unit in a direction that is no modifier and no filler word."""
    i += by
    while 0 <= i < len(units):
        term = units[i].term
        if not (term.modifier and not term.verb and term.forward is None and not term.states) and term.text not in (
            "size", "the", "in size", "somewhat", "again", "also", "still", "overall"
        ):  # fmt: skip
            return i
        i += by
    return i


def _denies(units: list[Unit], i: int) -> bool:
    term = units[i].term
    if term.forward is not None and term.forward.means == "negative":
        return True
    # "is not significantly enlarged": a verb between.
    return term.verb and i > 0 and (c := units[i - 1].term.forward) is not None and c.means == "negative"


def _hedged(units: list[Unit], i: int) -> bool:
    for j in range(max(0, i - 4), i):
        cue = units[j].term.forward
        if cue is not None and cue.means == "uncertain" and not units[j].term.join and not any(
            units[k].term.join or units[k].term.structure for k in range(j + 1, i)
        ):
            return True
    return False


def _ahead(p: Parse, i: int, starts: dict[int, Group]) -> Group | None:
    """Return the group that a state stands before: "normal heart size", "stable cardiomegaly and mediastinal contour"."""
    units, j = p.units, i + 1
    crossed = False
    while j < len(units):
        group = starts.get(j)
        term = units[j].term
        if group is not None and group.standing:
            return group
        if term.observation is not None and not crossed and {"stable", "normal"} & set(units[i].term.states):
            crossed = True
        elif crossed and term.join in ("and", ","):
            pass
        elif not (
            (term.modifier or term.side or term.text in ("the", "size", "in", "of", "appearance", "appearance of", "in size", "a", "visualized"))
            or (term.join == "and" and j + 1 < len(units) and units[j + 1].term.shape)
            or (term.shape and not term.structure)
            or (not crossed and term.states and not term.verb)
        ):  # fmt: skip
            return None
        j += 1
    return None


def _modifies_observation(p: Parse, i: int) -> bool:
    """Tell whether a state word describes an observation: "large effusion", "stable left opacity"."""
    units, j = p.units, i + 1
    if units[i].term.text in ("within normal limits", "clear", "normal", "unremarkable"):
        return False
    while j < len(units):
        term = units[j].term
        if term.observation is not None:
            return True
        if not (term.modifier or term.place or term.states or term.adjective or term is units[i].term or not term.text):
            return False
        j += 1
    return False


def _nearest_group(p: Parse, i: int) -> Group | None:
    """Return the group that a following state is said of: the last one, with no observation of its own between."""
    found = None
    for group in p.groups:
        if group.first > i:
            break
        if group.standing and group.last < i:
            found = group
    if found is None:
        return None
    for j in range(found.last + 1, i):
        term = p.units[j].term
        if term.join in (";", "(") or (
            term.observation is not None and not term.states and not found.states and not _predicate(p, i)
        ):
            return None
        if term.forward is not None and term.forward.means == "negative" and not found.states and not _only_fill(p, j + 1, i):
            return None
    return found


def _predicate(p: Parse, i: int) -> bool:
    """Tell whether a state has a verb of its own behind "but" or "and": "... but is otherwise clear"."""
    j = i - 1
    while j > 0 and (p.units[j].term.verb or p.units[j].term.text == "otherwise"):
        j -= 1
    return j < i - 1 and (p.units[j].term.join in ("and", ",") or p.units[j].term.text == "but")


def _only_fill(p: Parse, first: int, stop: int) -> bool:
    return all(
        (t := p.units[k].term).modifier or t.verb or t.stop or not t.text for k in range(first, stop)
    )  # fmt: skip


def _general_verdicts(p: Parse) -> None:
    """Read "no acute osseous abnormality" and "the lungs show no acute findings" as normal."""
    units = p.units
    for i, unit in enumerate(units):
        if not unit.term.generic or unit.term.observation is not None:
            continue
        j, named, last = i - 1, [], i
        while j >= 0:
            term = units[j].term
            if term.forward is not None and term.forward.means == "negative":
                break
            if term.structure is not None:
                named.append((j, j, term.structure))
            elif not (term.modifier or term.join in (",", "and", "or") or term.side or term.place or term.stop or term.generic or not term.text):
                j = -1
                break
            j -= 1
        if j < 0:
            continue
        for group in p.groups:
            if group.first == i + 1 + (i + 1 < len(units) and units[i + 1].term.preposition):
                named += group.members
        if not named:
            k = i + 1
            while k < len(units) and (units[k].term.preposition or units[k].term.stop or units[k].term.modifier):
                k += 1
            if k > i + 1 and k < len(units) and units[k].term.structure is not None:
                named, last = [(k, k, units[k].term.structure)], k
        if not named:
            subject = _nearest_group(p, j) or next((g for g in reversed(p.groups) if g.standing and g.last < j), None)
            if subject is not None and not subject.states:
                subject.states.append((i, i, "normal", False, False))
                p.used.update(range(j, i + 1))
                continue
            if subject is not None:
                named = subject.members
        seen = set()
        for member in named:
            structure = member[2]
            if structure.id in seen:
                continue
            seen.add(structure.id)
            _say(p, j, last, structure.normal, "positive", f"{units[j].term.text} … {unit.term.text}")
        if not named:
            chest = p.lexicon.whole_chest
            _say(p, j, i, chest, "positive", f"{units[j].term.text} … {unit.term.text}")
        p.used.update(range(j, i + 1))
        for group in p.groups:
            if j < group.first < i:
                group.standing = False


def _say(p: Parse, first: int, last: int, observation: Observation, assertion: Assertion, reason: str) -> Mention:
    mention = Mention(first, last, observation, assertion, reason, left=first, right=last, said=True)
    p.mentions.append(mention)
    return mention


def _structure_mentions(p: Parse) -> None:
    units, ranks = p.units, p.lexicon.ranks
    for group in p.groups:
        if not group.states or not group.standing:
            continue
        spoken = False
        for first, last, structure in group.members:
            read: list[tuple[int, str, int, bool, bool]] = []
            for at, _, name, denied, hedged in group.states:
                choices = (name,) if name else units[at].term.states
                state = next((s for s in choices if s == "hidden" or s in structure.means), None)
                if state is not None:
                    read.append((ranks[state], state, at, denied, hedged))
            read.sort()
            exclusive = [r for r in read if r[1] in p.lexicon.exclusive]
            additive = [r for r in read if r[1] not in p.lexicon.exclusive]
            kept = additive + [r for r in exclusive[:1] if r[1] != "hidden" and (r[1] != "stable" or not additive)]
            for _, state, at, denied, hedged in kept:
                meaning = structure.means[state]
                assertion = meaning.assertion
                if denied:
                    if assertion != "positive" or meaning.observation.diseases == ("No Finding",):
                        continue
                    assertion = "negative"
                elif hedged and assertion == "positive" and meaning.observation.diseases != ("No Finding",):
                    assertion = "uncertain"
                single = len(group.members) == 1
                reason = f"{structure.id} is {'not ' if denied else ''}{'perhaps ' if hedged else ''}{state} ({units[at].term.text})"
                mention = _say(p, first, last, meaning.observation, assertion, reason)
                if at < first and (single or first == group.members[0][0]) and first - at <= 3:
                    mention.left = at
                elif at > last and (single or last == group.members[-1][1]):
                    mention.right = at
                mention.places = _own_side(p, group)
                mention.temporal = "stable" if any(r[1] == "stable" for r in read) else None
                spoken = True
                p.used.add(at)
        if spoken:
            p.used.update(range(group.first, group.last + 1))


def _own_side(p: Parse, group: Group) -> list[Place]:
    units, places = p.units, []
    j = group.first - 1
    while j >= 0 and (units[j].term.side or units[j].term.modifier or (units[j].term.states and units[j].term.states != ())):
        if units[j].term.side:
            places.append((units[j].term.side, None, False))
        j -= 1
    for j in range(group.first, min(group.last + 2, len(units))):
        term = units[j].term
        if term.side:
            places.append((term.side, None, False))
        elif term.site_side and j <= group.last:
            places.append((term.site_side, None, False))
        elif term.site is not None and term.site.id in ("apex", "hilum") and group.first <= j <= group.last and term.structure and term.structure.site.id == "lung":
            places.append((None, term.site, False))
    return places


# --- cues --------------------------------------------------------------------------------------------------------


def _scopes(p: Parse) -> None:
    units = p.units
    p.scope = [None] * len(units)
    for i, unit in enumerate(units):
        if i in p.used:
            continue
        cue = unit.term.forward
        if cue is not None and cue.means in ("negative", "uncertain", "drop", "link", "emphasis"):
            held = p.scope[i]
            if held is not None and (held[0] == "drop" or (held[0] == "negative" and cue.means in ("uncertain", "link"))):
                continue
            if cue.means == "negative" and unit.term.text == "not" and i + 1 < len(units) and units[i + 1].term.states:
                continue
            if cue.id == "favor_over" and not any(units[k].term.text.startswith("favor") for k in range(i)):
                continue
            last = _reach(p, i, cue.means)
            if cue.means != "emphasis":
                for j in range(i + 1, last + 1):
                    p.scope[j] = (cue.means, i)
            if last > i:
                p.cues.append((cue.means, i, i + 1, last))
            if cue.means == "uncertain" and unit.term.backward is None and not _holds_observation(p, i + 1, last) and _closes(p, i):
                _reach_back(p, i, "uncertain")
    for i, unit in enumerate(units):
        cue = unit.term.backward
        if cue is not None and i not in p.used:
            if unit.term.forward is not None and _holds_observation(p, i + 1, _reach(p, i, unit.term.forward.means)):
                continue
            if unit.term.forward is not None and unit.term.forward.means == "uncertain" and not _closes(p, i):
                continue
            if unit.term.temporal and _premodifies(p, i):
                continue
            _reach_back(p, i, cue.means)
    _masked_links(p)


def _holds_observation(p: Parse, first: int, last: int) -> bool:
    return any(p.units[j].term.observation is not None for j in range(first, last + 1))


def _premodifies(p: Parse, i: int) -> bool:
    j = i + 1
    while j < len(p.units) and (p.units[j].term.modifier or p.units[j].term.place):
        j += 1
    return j < len(p.units) and p.units[j].term.observation is not None


def _closes(p: Parse, i: int) -> bool:
    """Tell whether nothing but a closing verb follows a hedge: "pneumonia is possible", "effusion may be present"."""
    return all(
        (t := p.units[j].term).verb or t.stop or t.modifier or t.place or t.preposition for j in range(i + 1, len(p.units))
    ) and (i + 1 == len(p.units) or p.units[i + 1].term.verb or p.units[i].term.backward is not None)


def _reach(p: Parse, i: int, means: str) -> int:
    """Return the last unit that a forward cue at `i` reaches."""
    units, count = p.units, len(p.units)
    listed = False  # an "or" has come: a later comma closes the list
    j = i + 1
    while j < count:
        term = units[j].term
        if term.join == ";" or (term.forward is not None and term.forward.means == "end"):
            break
        cue = term.forward
        if cue is not None and not term.join:
            if means == "negative" and cue.means == "negative" and j > i + 1:
                break
            if means in ("uncertain", "link") and cue.means in ("negative", "none") and cue.id != "resolved":
                break
            if means == "negative" and cue.means == "uncertain" and units[j - 1].term.join == "," and not cue.nested:
                break
            if means == "negative" and cue.means == "link" and not _any_observation(p, i, j):
                pass
        if term.backward is not None and term.backward.means in ("negative", "uncertain") and cue is None and not term.modifier and means != "drop":
            break
        if term.verb and means != "drop" and (j > i + 1) and _any_observation(p, i, j):
            break
        if term.text == "with" and means != "drop" and _any_observation(p, i, j):
            break
        if means != "drop" and j > i + 1 and j in p.used and not term.place and term.structure is not None:
            break
        if term.join == "," or (term.join == "and" and means != "drop"):
            if not _list_goes_on(p, j, listed=listed, means=means):
                break
        if term.join == "or":
            listed = True
        j += 1
    while j - 1 > i and units[j - 1].term.join:
        j -= 1
    return j - 1


def _any_observation(p: Parse, i: int, j: int) -> bool:
    return any(p.units[k].term.observation is not None or p.units[k].term.generic for k in range(i + 1, j))


def _list_goes_on(p: Parse, comma: int, *, listed: bool, means: str) -> bool:
    """Tell whether the list that a cue heads continues behind a comma or an "and"."""
    units, count = p.units, len(p.units)
    j = comma + 1
    while j < count and units[j].term.join in ("and", "or", ","):
        if units[j].term.join == "or":
            return True
        j += 1
    if j >= count:
        return False
    first = units[j].term
    more_or = False
    seen = False
    k = j
    while k < count:
        term = units[k].term
        if term.join == "or":
            more_or = True
        if term.join == ";" or (term.forward is not None and term.forward.means == "end"):
            break
        if k in p.used and term.structure is not None and not seen:
            return False
        if term.verb and not seen:
            return False
        if term.verb and seen and means != "drop":
            # "no effusion, the heart is large": a clause of its own, unless only a closing participle follows.
            break
        seen = seen or term.observation is not None
        k += 1
    if not seen:
        return means == "drop"
    if first.forward is not None and first.forward.means in ("negative", "uncertain") and not first.forward.nested:
        return False
    if means == "drop":
        return True
    starts_anew = first.positive_start or first.side is not None
    if units[comma].term.join == "and":
        return not starts_anew or means != "negative"
    if means in ("uncertain", "link"):
        return more_or and not listed
    return (more_or or not starts_anew) and not (listed and not more_or)


def _reach_back(p: Parse, i: int, means: str) -> None:
    """Let a backward cue at `i` reach the list before it."""
    units, j = p.units, i - 1
    while j >= 0 and (units[j].term.verb or (units[j].term.stop and not units[j].term.preposition) or units[j].term.modifier and units[j].term.observation is None and not units[j].term.place):
        j -= 1
    last = j
    while j >= 0:
        term = units[j].term
        if term.join == ";" or (term.forward is not None and term.forward.means in ("end",)) or term.verb or (j in p.used and term.structure is not None):
            break
        if term.backward is not None and term.backward.means != means and term.forward is None:
            break
        j -= 1
    if last > j:
        p.cues.append((means, i, j + 1, last))
    for k in range(j + 1, last + 1):
        held = p.scope[k]
        if held is None or held[0] in ("link",) or means == "drop" or (means == "negative" and held[0] == "uncertain") or (means == "uncertain" and units[i].term.backward is not None and held[0] != "drop" and held[0] != "negative"):
            p.scope[k] = (means, i)


def _masked_links(p: Parse) -> None:
    """A masked word between an observation and its explanation is a hedge: "opacities, XXXX atelectasis"."""
    units = p.units
    for i, unit in enumerate(units):
        if not unit.term.mask or i == 0 or units[i - 1].term.text == "with":
            continue
        if i + 1 < len(units) and units[i + 1].term.join:
            continue
        behind = [m for m in p.mentions if m.last < i and not m.said]
        if not behind:
            continue
        previous = behind[-1]
        j = i + 1
        linked = False
        if j < len(units) and units[j].term.forward is not None and units[j].term.forward.means == "link":
            if units[j].term.text.endswith(("consistent with", "compatible with")):
                continue
            j, linked = j + 1, True
        if p.scope[i] is not None and p.scope[i][0] == "negative":  # type: ignore[index]
            continue
        between = [units[k].term for k in range(previous.last + 1, i)]
        if any(t.verb and not t.modifier and not t.text == "is" for t in between) and not linked:
            continue
        if any(t.join in ("and", "or", ";") or (t.preposition and between[-1].join != ",") or (t.forward and t.forward.means in ("end", "negative")) for t in between) and not linked:
            continue
        last = _reach(p, i if not linked else i + 1, "uncertain")
        if not _holds_observation(p, j, last):
            continue
        if not linked and any(units[k].term.preposition for k in range(j, last + 1) if k < next(x for x in range(j, last + 1) if units[x].term.observation)):
            continue
        p.cues.append(("uncertain", i, j, last))
        for k in range(j, last + 1):
            p.scope[k] = ("uncertain", i)


def _assert_mentions(p: Parse) -> None:
    units, kept = p.units, []
    explained: Mention | None = None
    for mention in p.mentions:
        if mention.said:
            kept.append(mention)
            if mention.assertion != "negative" and mention.observation.diseases != ("No Finding",):
                explained = mention
            continue
        held = p.scope[mention.first]
        means = held[0] if held else None
        cue = units[held[1]].term if held else None
        if means == "drop" and not (mention.observation.fact):
            mention.reason = f"not said: {cue.text if cue else ''}"
            continue
        if means == "negative":
            mention.assertion, mention.reason = "negative", f"denied by {cue.text!r}" if cue else ""
        elif means == "uncertain" and not mention.observation.fact:
            mention.assertion, mention.reason = "uncertain", f"hedged by {cue.text!r}" if cue else ""
        else:
            mention.reason = "no cue reaches it"
        if held and held[0] in ("uncertain", "link", "negative") and explained is not None and held[1] > explained.last:
            forward = units[held[1]].term.forward
            explains = (forward is not None and (forward.means == "link" or forward.means == "uncertain" or forward.nested)) or units[held[1]].term.mask
            if explains and _links(p, explained, held[1]):
                mention.linked_to = explained
        if mention.assertion != "negative" and mention.linked_to is None:
            explained = mention
        kept.append(mention)
    p.mentions = kept


def _links(p: Parse, head: Mention, cue: int) -> bool:
    """Tell whether a cue joins what follows to `head` as its explanation: no list item and no new clause begins."""
    before, forward = p.units[cue - 1].term, p.units[cue].term.forward
    if (before.join == "and" or before.text == "with") and forward is not None and forward.id == "doubt":
        return False
    return not any(
        (t := p.units[k].term).join == ";" or (t.forward is not None and t.forward.means == "end" and t.text not in ("which", "that", "also"))
        for k in range(head.last + 1, cue)
    )


def _alternatives(p: Parse) -> None:
    """Diagnoses joined by "or" or "versus" are each uncertain, unless they are denied together."""
    units = p.units
    free = [m for m in p.mentions if not m.said]
    for left, right in zip(free, free[1:], strict=False):
        between = range(left.last + 1, right.first)
        joins = [units[k].term.join for k in between]
        if "or" not in joins or ";" in joins:
            continue
        if any(units[k].term.verb and not units[k].term.modifier for k in between):
            continue
        if left.assertion == "negative" or right.assertion == "negative":
            continue
        for mention in (left, right):
            if mention.assertion == "positive" and not mention.observation.fact:
                mention.assertion, mention.reason = "uncertain", "one of several offered"
        if "," in joins:  # "A, B, or C"
            at = free.index(left)
            while at > 0:
                gap = [units[k].term for k in range(free[at - 1].last + 1, free[at].first)]
                if not gap or not any(t.join == "," for t in gap) or not all(t.join == "," or t.modifier or t.place for t in gap):
                    break
                at -= 1
                if free[at].assertion == "positive" and not free[at].observation.fact:
                    free[at].assertion, free[at].reason = "uncertain", "one of several offered"


# --- places ------------------------------------------------------------------------------------------------------


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
            mention.places = [
                (t.side or t.site_side, t.site, t.weak) for k in range(mention.last + 1, stop) if (t := units[k].term).place
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
            if (j - 1) in heads:
                break
            if term.join != "," and not (
                (before.place and after.place)
                or (before.modifier and not before.place and (after.modifier or _side_before(units, j - 1)))
                or (before.side and j > 1 and not units[j - 2].term.preposition and not units[j - 2].term.stop)
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


def _side_before(units: list[Unit], j: int) -> bool:
    """Tell whether modifiers up to `j` follow a side: "right lower and middle lobes"."""
    while j >= 0 and units[j].term.modifier and not units[j].term.side:
        j -= 1
    return j >= 0 and units[j].term.side is not None


_OUTSIDE_SPAN: Final = frozenset({"evidence of", "new", "newly", "visualized", "visible", "again", "definite", "signs of"})


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
                    found += [(t.side or t.site_side, t.site, t.weak) for k in range(j, run) if (t := units[k].term).place]
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
            while k < count and (units[k].term.preposition or units[k].term.text in ("the", "also") or units[k].term.modifier):
                k += 1
            run = _run_of_places(p, k)
            if not found or run == k or (run < count and (run in heads or units[run].term.structure is not None and run in p.used)):
                break
            j = k
            continue
        if term.forward is not None and not term.preposition:
            break
        if term.text == "with" or term.join in (";", "(", ":"):
            break
        if term.observation is not None:
            break
        if not (term.preposition or term.modifier or term.stop or term.structure is not None or term.shape or not term.text or term.states):
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
    while j > mention.last and (p.units[j].term.text in ("the", "a", "an") or p.units[j].term.modifier):
        j -= 1
    return j > mention.last and p.units[j].term.preposition


def _share_places(p: Parse) -> None:
    """Let lists, explanations and leading phrases give their place to observations that name none."""
    units = p.units
    previous: Mention | None = None
    free = [m for m in p.mentions if not m.said]
    for index, mention in enumerate(free):
        if not _strong(mention) and index:
            before = free[index - 1]
            between = [units[k].term for k in range(before.last + 1, mention.first)]
            companion = any(t.companion for t in between)
            if _same_list(between) and before.leading and not before.observation.fixed:
                mention.places = [x for x in before.places if x[1] is None or x[1].sided] + mention.places
                mention.leading = True
            elif mention.linked_to is None and before.assertion != "negative" and mention.assertion != "negative" and (companion or any(t.text == "with" for t in between)) and not before.observation.fixed:
                mention.places = before.places + mention.places
    for index in range(len(free) - 2, -1, -1):
        mention, after = free[index], free[index + 1]
        if not _strong(mention) and after.trailing and not after.leading and mention.linked_to is None:
            between = [units[k].term for k in range(mention.last + 1, after.first)]
            if _same_list(between) and not after.observation.fixed:
                mention.places = mention.places + after.places
    loose = [i for i, u in enumerate(units) if u.term.place and i not in p.taken and i not in p.used]
    for mention in free:
        if mention.linked_to is not None or _sided(mention):
            continue
        if mention.assertion == "negative":
            mention.places = _side_of_clear_lung(p, mention) + mention.places
            continue
        lead = [i for i in loose if i < mention.first and not any(
            units[k].term.join == ";" or (units[k].term.forward is not None and units[k].term.forward.means == "emphasis") for k in range(i, mention.first)
        )]
        if lead and (lead[0] == 0 or units[lead[0] - 1].term.preposition or units[lead[0] - 1].term.text in ("the", "both", "a")):
            given: list[Place] = [(units[i].term.side or units[i].term.site_side, units[i].term.site, units[i].term.weak) for i in lead]
            mention.places = [x for x in given if not _strong(mention) or x[0]] + mention.places
        else:
            mention.places = _side_of_subject(p, mention) + mention.places
    for index, mention in enumerate(free):
        if mention.assertion == "uncertain" and mention.linked_to is None and not _strong(mention):
            # "right base opacity may be atelectasis, but pneumonia is not excluded": there as well.
            for head in reversed(free[:index]):
                if _strong(head) and head.assertion != "negative" and not head.observation.fixed and "Support Devices" not in head.observation.diseases:
                    mention.places = list(head.places)
                    break
    for mention in p.mentions:
        head = mention.linked_to
        if head is None:
            continue
        if not _strong(mention):
            mention.places = list(head.places)
            if not head.places and head.observation.site.id != mention.observation.site.id and head.said:
                mention.places = []
        elif not _sided(head) and _sided(mention) and not head.said and not head.observation.fixed:
            head.places = list(mention.places)


def _side_of_subject(p: Parse, mention: Mention) -> list[Place]:
    """Return the side of the lung that the sentence is about: "the right lung demonstrates basilar atelectasis"."""
    for group in p.groups:
        if group.last < mention.first and group.members[0][2].site.sided:
            between = [p.units[k].term for k in range(group.last + 1, mention.first)]
            if between and between[0].verb and not any(t.join == ";" or t.text == "but" for t in between):
                return [x for x in _own_side(p, group) if x[0]]
    return []


def _side_of_clear_lung(p: Parse, mention: Mention) -> list[Place]:
    """Return the side of the lung that a denial speaks of: "the left lung is clear without consolidation"."""
    held = p.scope[mention.first]
    if held is None or held[1] > mention.first or p.units[held[1]].term.text in ("no", "negative for"):
        return []
    group = next((g for g in reversed(p.groups) if g.last < held[1]), None)
    if group is None or group.members[0][2].id != "lungs" or len(group.members) > 1:
        return []
    between = range(group.last + 1, held[1])
    if any(p.units[k].term.join == ";" or p.units[k].term.observation is not None for k in between):
        return []
    return [x for x in _own_side(p, group) if x[0]]


def _sided(mention: Mention) -> bool:
    return any(side is not None or (site is not None and not site.sided) for side, site, _ in mention.places)


def _strong(mention: Mention) -> bool:
    return any(not weak for _, _, weak in mention.places)


def _same_list(between: list) -> bool:  # type: ignore[type-arg]
    return any(t.join in (",", "and", "or") for t in between) and all(
        t.join in (",", "and", "or") or t.modifier or t.place or not t.text or t.text in ("a", "the", "any", "definite", "large", "of") or t.states
        for t in between
    )


def _regions(p: Parse) -> None:
    for mention in p.mentions:
        mention.regions = regions_of(mention.observation, mention.places)


def regions_of(observation: Observation, places: list[Place]) -> frozenset[str]:
    """Resolve places to regions: a site takes the side before it, a lone side the observation's own site."""
    site = observation.site
    if observation.fixed:
        elsewhere = {s.id for _, s, _ in places if s is not None}
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
