"""Which structure has which state: "heart size and mediastinal contours are normal", "no acute osseous abnormality"."""

from __future__ import annotations

from cot_builder.decompose.lexicon import Observation, Place
from cot_builder.decompose.parse import Group, Mention, Parse
from cot_builder.decompose.units import Unit
from cot_builder.records import Assertion


def read_structures(p: Parse) -> None:
    """Find groups of structures, give them their states, and write a mention for each that says something."""
    _find_groups(p)
    _attach_states(p)
    _general_verdicts(p)
    _structure_mentions(p)


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
                or (
                    j > i
                    and (units[j].term.modifier or units[j].term.side)
                    and not units[j].term.states
                )
            ):
                j += 1
            if (
                j >= count
                or units[j].term.structure is None
                or (j > i and units[j - 1].term.text == "of")
            ):
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
    while j >= 0 and (
        units[j].term.text in ("the", "a", "an", "both")
        or units[j].term.side
        or units[j].term.modifier
    ):
        j -= 1
    if j < 0 or not units[j].term.preposition:
        return False
    j -= 1
    while (
        j >= 0
        and (units[j].term.shape or units[j].term.modifier or units[j].term.join == "and")
        and not units[j].term.states
    ):
        j -= 1
    # "normal appearance of the heart" is said of the heart.
    return not (
        j >= 0 and (units[j].term.states or units[j].term.text in ("appearance", "appearance of"))
    )


def _list_of_findings(p: Parse, i: int, j: int) -> bool:
    """A structure word that heads an observation does not join a group: "heart size and lung nodules"."""
    units = p.units
    k = j + 1
    while k < len(units) and (units[k].term.modifier or units[k].term.adjective):
        k += 1
    return (
        units[j].term.adjective
        and k < len(units)
        and units[k].term.observation is not None
        and not units[k].term.shape
    )


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
    return (
        term.verb
        and i > 0
        and (c := units[i - 1].term.forward) is not None
        and c.means == "negative"
    )


def _hedged(units: list[Unit], i: int) -> bool:
    for j in range(max(0, i - 4), i):
        cue = units[j].term.forward
        if (
            cue is not None
            and cue.means == "uncertain"
            and not units[j].term.join
            and not any(units[k].term.join or units[k].term.structure for k in range(j + 1, i))
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
            return None if _heads_observation(p, group) else group
        if (
            term.observation is not None
            and not crossed
            and {"stable", "normal"} & set(units[i].term.states)
        ):
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


def _heads_observation(p: Parse, group: Group) -> bool:
    """Tell whether a group is the place of an observation: "small left lower lobe granuloma"."""
    j = group.last + 1
    while j < len(p.units) and (p.units[j].term.modifier or p.units[j].term.place):
        j += 1
    return j < len(p.units) and p.units[j].term.observation is not None


def _modifies_observation(p: Parse, i: int) -> bool:
    """Tell whether a state word describes an observation: "large effusion", "stable left opacity"."""
    units, j = p.units, i + 1
    if units[i].term.text in ("within normal limits", "clear", "normal", "unremarkable"):
        return False
    while j < len(units):
        term = units[j].term
        if term.observation is not None:
            return True
        if not (
            term.modifier
            or term.place
            or term.states
            or term.adjective
            or term is units[i].term
            or not term.text
        ):
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
            term.observation is not None
            and not term.states
            and not found.states
            and not _predicate(p, i)
        ):
            return None
        if (
            term.forward is not None
            and term.forward.means == "negative"
            and not found.states
            and not _only_fill(p, j + 1, i)
        ):
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
            elif not (
                term.modifier
                or term.join in (",", "and", "or")
                or term.side
                or term.place
                or term.stop
                or term.generic
                or not term.text
            ):
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
            while k < len(units) and (
                units[k].term.preposition or units[k].term.stop or units[k].term.modifier or units[k].term.verb
            ):
                k += 1
            if k > i + 1 and k < len(units) and units[k].term.structure is not None:
                named, last = [(k, k, units[k].term.structure)], k
        if not named:
            subject = _nearest_group(p, j) or next(
                (g for g in reversed(p.groups) if g.standing and g.last < j), None
            )
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
            _say(
                p,
                j,
                last,
                structure.normal,
                "positive",
                f"general verdict {p.text(j)!r} … {p.text(i)!r}",
            )
        if not named:
            chest = p.lexicon.whole_chest
            _say(p, j, i, chest, "positive", f"general verdict {p.text(j)!r} … {p.text(i)!r}")
        p.used.update(range(j, i + 1))
        for group in p.groups:
            if j < group.first < i:
                group.standing = False


def _say(
    p: Parse, first: int, last: int, observation: Observation, assertion: Assertion, reason: str
) -> Mention:
    mention = Mention(
        first, last, observation, assertion, reason, left=first, right=last, said=True
    )
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
            kept = additive + [
                r for r in exclusive[:1] if r[1] != "hidden" and (r[1] != "stable" or not additive)
            ]
            for _, state, at, denied, hedged in kept:
                meaning = structure.means[state]
                assertion = meaning.assertion
                if denied:
                    if assertion != "positive" or meaning.observation.diseases == ("No Finding",):
                        continue
                    assertion = "negative"
                elif (
                    hedged
                    and meaning.observation.diseases != ("No Finding",)
                ):
                    assertion = "uncertain"
                single = len(group.members) == 1
                reason = f"{structure.id} is {'not ' if denied else ''}{'perhaps ' if hedged else ''}{state} ({p.text(at)!r})"
                mention = _say(p, first, last, meaning.observation, assertion, reason)
                mention.cue = (
                    "denied" if denied else "hedged" if assertion == "uncertain" and hedged else ""
                )
                if at < first and (single or first == group.members[0][0]) and first - at <= 3:
                    mention.left = at
                elif at > last and (single or last == group.members[-1][1]):
                    mention.right = at
                while (
                    mention.left > 0
                    and (t := units[mention.left - 1].term).place
                    and t.side
                    and mention.left == first
                ):
                    mention.left -= 1
                mention.places = own_side(p, group) or _side_behind(p, at)
                mention.temporal = "stable" if any(r[1] == "stable" for r in read) else None
                spoken = True
                p.used.add(at)
        if spoken:
            p.used.update(range(group.first, group.last + 1))


def _side_behind(p: Parse, at: int) -> list[Place]:
    """Return the side behind a state: "blunted on the right"."""
    units, j = p.units, at + 1
    while j < len(units) and (units[j].term.preposition or units[j].term.text == "the"):
        j += 1
    return [(units[j].term.side, None, False)] if at + 1 < j < len(units) and units[j].term.side else []


def own_side(p: Parse, group: Group) -> list[Place]:
    units, places = p.units, []
    j = group.first - 1
    while j >= 0 and (
        units[j].term.side
        or units[j].term.modifier
        or (units[j].term.states and units[j].term.states != ())
    ):
        if units[j].term.side:
            places.append((units[j].term.side, None, False))
        j -= 1
    for j in range(group.first, min(group.last + 2, len(units))):
        term = units[j].term
        if term.side:
            places.append((term.side, None, False))
        elif term.site_side and j <= group.last:
            places.append((term.site_side, None, False))
        elif (
            term.site is not None
            and term.site.id in ("apex", "hilum")
            and group.first <= j <= group.last
            and term.structure
            and term.structure.site.id == "lung"
        ):
            places.append((None, term.site, False))
    return places
