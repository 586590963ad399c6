"""Which structure has which state: "heart size and contours are normal", "no bony abnormality"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cot_builder.decompose.lexicon import Meaning, Observation, Place, Role, Structure, Term
from cot_builder.decompose.parse import Group, Member, Mention, Parse, State
from cot_builder.records import Assertion

# Of these a structure has one: the first in the rank of states.toml.
EXCLUSIVE: Final = frozenset({"borderline", "enlarged", "normal", "stable", "hidden"})
_LUNG_PARTS: Final = frozenset({"apex", "hilum"})  # sites that a structure of the lungs may name


def read_structures(p: Parse) -> None:
    """Group structures, give them their states, and write a mention for each that tells one."""
    _find_groups(p)
    if p.roles & Role.STATE:
        _attach_states(p)
    if p.roles & Role.GENERIC:
        for i, term in enumerate(p.terms):
            if term.generic and term.observation is None:
                _read_verdict(p, i)
    for group in p.groups:
        if group.states and group.standing:
            _say_states(p, group)


# -- groups


def _find_groups(p: Parse) -> None:
    i = 0
    while i < len(p.terms):
        structure = p.terms[i].structure
        if structure is not None and not _is_place_only(p, i):
            p.groups.append(_group(p, Member(i, i, structure)))
            i = p.groups[-1].last
        elif p.groups and p.terms[i].stands and _is_the_other(p, i, p.groups[-1]):
            p.groups.append(Group([Member(i, i, p.groups[-1].members[0].structure)], True, i, i))
        i += 1


def _is_the_other(p: Parse, i: int, group: Group) -> bool:
    """Tell whether a side stands for a structure: "the right hilum is normal, the left is full"."""
    term, behind = p.terms[i], p.terms[i + 1 : i + 5]
    if not (term.side and p.at(i + 1).verb):
        return False
    named = p.at(i - 1).determiner and not p.at(i - 2).preposition and own_side(p, group)
    parted = any(t.observation is not None for t in (*p.terms[group.last : i], *behind))
    return bool(named) and not parted and any(t.states for t in behind)


def _is_place_only(p: Parse, i: int) -> bool:
    """A structure behind a preposition is a place: "opacity in the lung", "bones of the thorax"."""
    j = p.before(i - 1, lambda t: t.determiner or t.side or t.modifier)
    if not p.at(j).preposition:
        return False
    j = p.before(j - 1, lambda t: (t.shape or t.modifier or t.join == "and") and not t.states)
    return not p.at(j).states  # "normal appearance of the heart" is said of the heart


def _group(p: Parse, head: Member) -> Group:
    """Gather the structures and shape words that follow a structure in one list."""
    members, standing, last = [head], not p.terms[head.first].adjective, head.last
    while (i := last + 1) < len(p.terms):
        if p.terms[i].shape and not p.terms[i].structure:
            members[-1] = members[-1]._replace(last=i)
            standing, last = True, i
            continue
        j = _past_joins(p, i)
        structure = p.at(j).structure
        if structure is None or p.at(j - 1).text == "of" or _heads_finding(p, j):
            break
        members.append(Member(j, j, structure))
        standing, last = standing or not p.terms[j].adjective, j
    return Group(members, standing, head.first, last)


def _past_joins(p: Parse, i: int) -> int:
    """Return the unit behind a comma or an "and" at `i` and what may lead to a structure."""
    if not p.at(i).lists:
        return i
    return p.past(
        i + 1,
        lambda t: (
            t.lists or t.determiner or t.text == "of" or ((t.modifier or t.side) and not t.states)
        ),
    )


def _heads_finding(p: Parse, i: int) -> bool:
    """Tell whether a structure word heads an observation: "heart size and lung nodules"."""
    term = p.at(p.past(i + 1, lambda t: t.modifier or t.adjective))
    return p.terms[i].adjective and term.observation is not None and not term.shape


# -- states


def _attach_states(p: Parse) -> None:
    starts = {group.first: group for group in p.groups}
    for i, term in enumerate(p.terms):
        if not term.states:
            continue
        before = p.before(i - 1, _is_filler)
        group = _group_ahead(p, i, starts)
        if group is None or (p.at(before).verb and _has_state(_subject(p, i))):
            group = None if _modifies_observation(p, i) else _subject(p, i)
        if group is not None:
            denied = _denies(p, before)
            hedged = not denied and (_is_hedged(p, i) or _is_doubted(p, group))
            group.states.append(State(i, denied, hedged))
    for group in p.groups:
        if len(group.states) > 1:  # "the heart, which was enlarged, is now normal"
            group.states = [s for s in group.states if not _was(p, s.at)] or group.states


def _has_state(subject: Group | None) -> bool:
    """Tell whether a state behind a verb is the subject's: "the chest shows clear lungs" is not."""
    return subject is not None and subject.members[0].structure.id != "chest"


def _is_filler(term: Term) -> bool:
    """Tell whether a term may stand between a state and the verb or denial before it."""
    bare = term.modifier and not (term.verb or term.forward.means or term.states)
    return bare or term.determiner or term.adverb


def _denies(p: Parse, i: int) -> bool:
    """Tell whether a denial stands at `i`, or behind a verb there: "is not much enlarged"."""
    term = p.at(i)
    denial = p.at(i - 1) if term.verb else term
    return "negative" in (term.forward.means, denial.forward.means)


def _was(p: Parse, i: int) -> bool:
    """Tell whether a state is of the past: "which had been enlarged"."""
    return p.at(p.before(i - 1, _is_filler)).past


def _is_hedged(p: Parse, i: int) -> bool:
    return any(
        p.terms[j].forward.means == "uncertain"
        and not p.terms[j].join
        and not any(t.join or t.structure for t in p.terms[j + 1 : i])
        for j in range(max(0, i - 4), i)
    )


def _is_doubted(p: Parse, group: Group) -> bool:
    """Tell whether a clause is in doubt: "it is hard to tell if the heart is enlarged"."""
    cue = p.before(group.first - 1, lambda t: t.determiner)
    return cue < group.first - 1 and p.terms[cue].forward.id == "hedge" and cue >= 0


def _group_ahead(p: Parse, i: int, starts: dict[int, Group]) -> Group | None:
    """Return the group that a state stands before: "normal heart size".

    It may cross one observation: "stable cardiomegaly and mediastinal contour".
    """
    crossed = False
    for j in range(i + 1, len(p.terms)):
        group, term = starts.get(j), p.terms[j]
        if group is not None and group.standing:
            return None if p.heads_observation(group.last + 1) else group
        if not crossed and term.observation is not None and _may_cross(p.terms[i]):
            crossed = True
        elif not (
            (crossed and term.join in ("and", ","))
            or (not crossed and term.states and not term.verb)
            or _leads_to_structure(term)
            or (term.join == "and" and p.at(j + 1).shape)
        ):
            return None
    return None


def _may_cross(state: Term) -> bool:
    return "stable" in state.states or "normal" in state.states


def _leads_to_structure(term: Term) -> bool:
    small = term.determiner or term.text in ("in", "of")
    return bool(small or term.modifier or term.side or (term.shape and not term.structure))


def _modifies_observation(p: Parse, i: int) -> bool:
    """Tell whether a state word describes an observation: "large effusion", "stable opacity"."""
    if p.terms[i].verdict:
        return False
    j = p.past(
        i + 1,
        lambda t: (
            t.observation is None
            and (t.modifier or t.place or t.states or t.adjective or not t.text)
        ),
    )
    return p.at(j).observation is not None


def _group_before(p: Parse, i: int) -> Group | None:
    return next((g for g in reversed(p.groups) if g.standing and g.last < i), None)


def _subject(p: Parse, i: int) -> Group | None:
    """Return the group that a following state is said of: the last one, if nothing parts them."""
    group = _group_before(p, i)
    if group is None:
        return None
    for j in range(group.last + 1, i):
        term = p.terms[j]
        if term.join in (";", "("):
            return None
        if group.states:
            continue
        if term.observation is not None and not term.states and not _is_predicate(p, i):
            return None
        if term.forward.means == "negative" and not (
            _is_aside(p, j, i) or all(map(_is_fill, p.terms[j + 1 : i]))
        ):
            return None
    return group


def _is_aside(p: Parse, denial: int, i: int) -> bool:
    """Tell whether commas hold a denial before a state: "the heart, without change, is large"."""
    comma = p.before(i - 1, lambda t: t.join != ",")
    return p.at(denial - 1).join == "," and comma > denial and p.at(comma + 1).verb


def _is_predicate(p: Parse, i: int) -> bool:
    """Tell whether a state has a verb of its own behind "but" or "and": "... but is clear"."""
    j = p.before(i - 1, lambda t: t.verb or t.text == "otherwise")
    return j < i - 1 and (p.at(j).join in ("and", ",") or p.at(j).text == "but")


def _is_fill(term: Term) -> bool:
    return term.modifier or term.verb or term.stop or not term.text


# -- verdicts


def _read_verdict(p: Parse, i: int) -> None:
    """Read "no acute osseous abnormality" and "the lungs show no acute findings" as normal."""
    denial = p.before(i - 1, _is_within_verdict)
    if p.at(denial).forward.means != "negative":
        return
    named, last = _named_in_verdict(p, denial, i)
    if not named:
        subject = _subject(p, denial) or _group_before(p, denial)
        if subject is not None and not subject.states:
            subject.states.append(State(i, name="normal"))
            p.used.update(range(denial, i + 1))
            return
        named = _structures_of(subject) if subject is not None else []
    normal = {structure.id: structure.normal for structure in named}
    for observation in normal.values() or (p.lexicon.whole_chest,):
        _say(p, denial, last, observation, "positive", denial)
    p.used.update(range(denial, i + 1))
    for group in p.groups:
        if denial < group.first < i:
            group.standing = False


def _is_within_verdict(term: Term) -> bool:
    """Tell whether a term may stand between a denial and its general noun."""
    inside = term.modifier or term.place or term.lists or term.stop or term.generic
    return term.forward.means != "negative" and bool(inside or term.structure or not term.text)


def _named_in_verdict(p: Parse, denial: int, i: int) -> tuple[list[Structure], int]:
    """Return the structures before or right behind a general noun, and the last unit of it all."""
    named = _structures_at(p, range(i - 1, denial, -1))
    behind = i + 2 if p.at(i + 1).preposition else i + 1
    for group in p.groups:
        if group.first == behind:
            named += _structures_of(group)
    if named:
        return named, i
    j = p.past(i + 1, lambda t: t.preposition or t.stop or t.modifier or t.verb)
    if j > i + 1 and p.at(j).structure is not None:
        units = [j]
        while p.at(j + 1).join == "or" and p.at(j := _past_joins(p, j + 1)).structure is not None:
            units.append(j)  # "no acute abnormality in the heart or lungs"
        return _structures_at(p, units), units[-1]
    return [], i


def _structures_at(p: Parse, units: Iterable[int]) -> list[Structure]:
    return [s for j in units if (s := p.terms[j].structure) is not None]


def _structures_of(group: Group) -> list[Structure]:
    return [member.structure for member in group.members]


# -- mentions


def _say(
    p: Parse, first: int, last: int, observation: Observation, assertion: Assertion, by: int
) -> Mention:
    mention = Mention(first, last, observation, assertion, "", by, True, first, last)
    p.mentions.append(mention)
    return mention


def _say_states(p: Parse, group: Group) -> None:
    """Write a mention for each structure of a group and each state that means something for it."""
    spoken = False
    for member in group.members:
        read = _readings(p, group, member.structure)
        for name, state in _told(read):
            meaning = member.structure.means[name]
            assertion = _assertion(meaning, state)
            if assertion is None:
                continue
            mention = _say_state(p, group, member, name, state, assertion)
            if any(other == "stable" for other, _ in read):
                mention.temporal = "stable"
            spoken = True
            p.used.add(state.at)
    if spoken:
        p.used.update(range(group.first, group.last + 1))


def _readings(p: Parse, group: Group, structure: Structure) -> list[tuple[str, State]]:
    """Return the states of a group that mean something for one structure, by rank."""
    read = []
    for state in group.states:
        for name in (state.name,) if state.name else p.terms[state.at].states:
            if name == "hidden" or name in structure.means:
                read.append((p.lexicon.ranks[name], name, state))
                break
    return [(name, state) for _, name, state in sorted(read)]


def _told(read: list[tuple[str, State]]) -> list[tuple[str, State]]:
    """Return the states that are told: all that go together, and the first of those that do not."""
    together = [(name, state) for name, state in read if name not in EXCLUSIVE]
    for name, state in read:
        if name in EXCLUSIVE:
            if name != "hidden" and not (name == "stable" and together):
                together.append((name, state))
            break
    return together


def _assertion(meaning: Meaning, state: State) -> Assertion | None:
    """Return what a state asserts; the denial of a normal or doubtful one asserts nothing."""
    if state.denied:
        told = meaning.assertion == "positive" and not meaning.observation.normal
        return "negative" if told else None
    if state.hedged and not meaning.observation.normal:
        return "uncertain"
    return meaning.assertion


def _say_state(
    p: Parse, group: Group, member: Member, name: str, state: State, assertion: Assertion
) -> Mention:
    first, last, structure = member
    mention = _say(p, first, last, structure.means[name].observation, assertion, state.at)
    hedged = state.hedged and assertion == "uncertain"
    mention.cue = "denied" if state.denied else "hedged" if hedged else ""
    near = first - 6 <= state.at < first and first == group.first  # "fullness of the left hilum"
    if near and all(term.observation is None for term in p.terms[state.at + 1 : first]):
        mention.left = state.at
    elif state.at > last and last == group.last:
        mention.right = state.at
    if mention.left == first and p.at(first - 1).side:
        mention.left -= 1
        p.taken.add(mention.left)
    mention.places = own_side(p, group) or _side_behind(p, state.at)
    return mention


# -- sides


def _side_behind(p: Parse, at: int) -> list[Place]:
    """Return the side behind a state: "blunted on the right"."""
    j = p.past(at + 1, lambda t: t.preposition or t.determiner)
    side = p.at(j).side
    return [(side, None, False)] if side and j > at + 1 else []


def own_side(p: Parse, group: Group) -> list[Place]:
    """Return the sides, and the parts of the lung, that a group of structures names."""
    lead = p.before(group.first - 1, lambda t: t.side or t.modifier or t.states)
    places: list[Place] = [
        (term.side, None, False) for term in reversed(p.terms[lead + 1 : group.first]) if term.side
    ]
    for term in p.terms[group.first : group.last + 1]:
        if term.side or term.site_side:
            places.append((term.side or term.site_side, None, False))
        elif term.site is not None and term.site.id in _LUNG_PARTS and _is_of_lung(term):
            places.append((None, term.site, False))
    if side := p.at(group.last + 1).side:
        places.append((side, None, False))
    return places


def _is_of_lung(term: Term) -> bool:
    return term.structure is not None and term.structure.site.id == "lung"
