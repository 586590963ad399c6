"""What a cue reaches: denials, hedges, explanations, advice, and alternatives."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from cot_builder.decompose.lexicon import Cue, Role, Term
from cot_builder.decompose.parse import FREE, Hold, Mention, Parse, Reached, in_phrase

_REACHING: Final = frozenset({"negative", "uncertain", "drop", "link", "emphasis"})
_JUDGING: Final = frozenset({"negative", "uncertain"})
_HEDGING: Final = frozenset({"uncertain", "link"})
_CONTRASTS: Final = frozenset({"favor_over", "rather_than"})  # cues that deny an explanation


def read_cues(p: Parse) -> None:
    """Judge every observation, drop what is only supposed, and link explanations."""
    p.scope = [FREE] * len(p.terms)
    if p.roles & Role.FORWARD:
        for i, term in enumerate(p.terms):
            if term.forward.means in _REACHING and i not in p.used and _takes_hold(p, i):
                _reach_forward(p, i)
    if p.roles & Role.BACKWARD:
        for i, term in enumerate(p.terms):
            if term.backward.means and i not in p.used and not _looks_forward(p, i):
                _reach_back(p, i, term.backward.means)
    if p.roles & Role.MASK:
        for i, term in enumerate(p.terms):
            if term.mask and i > 0:
                _read_mask(p, i)
    _assert_mentions(p)
    if p.roles & Role.OR:
        _alternatives(p)


# -- forward cues


def _takes_hold(p: Parse, i: int) -> bool:
    """Tell whether a forward cue works where it stands."""
    term = p.terms[i]
    cue = term.forward
    if _stays_held(cue, p.scope[i], i):
        return False
    if term.text == "not" and p.at(i + 1).states:
        return False  # denies the state, not what follows it
    if cue.means == "emphasis" and p.heads_observation(i + 1):
        return False  # "more extensive consolidation on the left"
    return cue.id != "favor_over" or any(t.text.startswith("favor") for t in p.terms[:i])


def _stays_held(cue: Cue, held: Hold, i: int) -> bool:
    if held.means == "negative":
        return cue.means in _HEDGING
    if held.means == "uncertain":  # "most likely | due to atelectasis": the hedge stands
        return cue.means == "link" and i - held.cue <= 3
    return held.means == "drop"


def _reach_forward(p: Parse, i: int) -> None:
    term = p.terms[i]
    means = term.forward.means
    last = _reach(p, i, means)
    if last > i:
        p.cues.append(Reached(means, i, i + 1, last))
    if means != "emphasis":
        p.scope[i + 1 : last + 1] = [Hold(means, i)] * (last - i)
    lonely = means == "uncertain" and not term.backward.means
    if lonely and not _observes(p.terms[i + 1 : last + 1]) and _closes(p, i):
        _reach_back(p, i, means)


def _observes(terms: list[Term]) -> bool:
    return any(term.observation is not None for term in terms)


def _closes(p: Parse, i: int) -> bool:
    """Tell whether only a closing verb follows a hedge: "pneumonia may be present"."""
    if i + 1 < len(p.terms) and not p.terms[i + 1].verb and not p.terms[i].backward.means:
        return False
    j = p.past(i + 1, _is_closing)
    return j == len(p.terms) or p.terms[j].breaks or p.terms[j].join == ","


def _is_closing(term: Term) -> bool:
    if term.breaks or term.join == ",":
        return False
    return term.verb or term.stop or term.preposition or in_phrase(term)


def _reach(p: Parse, i: int, means: str) -> int:
    """Return the last unit that a forward cue at `i` reaches."""
    listed = False  # an "or" has come: a later comma closes the list
    seen = False  # an observation has come: a verb begins another clause
    j = i + 1
    while j < len(p.terms):
        term = p.terms[j]
        if _ends_reach(p, i, j, means, seen=seen):
            break
        joins = term.join == "," or (term.join == "and" and means != "drop")
        if joins and not (
            (not seen and _parts_adjectives(p, j))
            or _list_goes_on(p, i, j, listed=listed, means=means)
        ):
            break
        listed = listed or term.join == "or"
        seen = seen or term.observation is not None or term.generic
        j += 1
    while j > i + 1 and p.terms[j - 1].join:
        j -= 1
    return j - 1


def _ends_reach(p: Parse, i: int, j: int, means: str, *, seen: bool) -> bool:
    """Tell whether the reach of a cue at `i` ends before the unit `j`."""
    term = p.terms[j]
    if term.breaks or term.join == ":":
        return True
    if term.forward.means and not term.join and _takes_over(p, i, j, means):
        return True
    if means == "drop":
        return False
    if seen and term.text == "only":  # "no edema, only mild congestion"
        return True
    if term.backward.means in _JUDGING and not term.forward.means and not term.modifier:
        return True
    if seen and (term.verb or (term.accompanies and not _goes_with(p, i, j))):
        return True
    return j > i + 1 and j in p.used and term.structure is not None and not term.place


def _goes_with(p: Parse, cue: int, j: int) -> bool:
    """Tell whether an explanation goes on: "may be an effusion | with associated collapse"."""
    explains = p.terms[cue].forward
    return explains.means in _HEDGING and explains.id != "doubt" and p.at(j + 1).companion


def _takes_over(p: Parse, i: int, j: int, means: str) -> bool:
    """Tell whether a cue at `j` takes over from a cue at `i`."""
    cue = p.terms[j].forward
    if means == "negative":
        after_comma = p.terms[j - 1].join == "," and not cue.nested
        anew = cue.means in ("negative", "none") and j > i + 1
        return anew or (cue.means == "uncertain" and after_comma)
    return means in _HEDGING and cue.means in ("negative", "none") and cue.id != "resolved"


def _parts_adjectives(p: Parse, comma: int) -> bool:
    """Tell whether a comma stands within the phrase of an observation: "mild, patchy opacity"."""
    within = in_phrase(p.terms[comma - 1]) and p.at(comma + 1).modifier
    return within and p.heads_observation(comma + 1)


def _list_goes_on(p: Parse, cue: int, comma: int, *, listed: bool, means: str) -> bool:
    """Tell whether the list that a cue heads continues behind a comma or an "and"."""
    begin = p.past(comma + 1, lambda t: t.lists and t.join != "or")
    if p.at(begin).join == "or":
        return True
    if begin == len(p.terms):
        return False
    more_or = seen = False
    for k in range(begin, len(p.terms)):
        term = p.terms[k]
        more_or = more_or or term.join == "or"
        if term.breaks:
            break
        if not seen and (term.verb or (k in p.used and term.structure is not None)):
            return False
        said = seen and not more_or and (term.verb or term.temporal)
        if said and means == "negative" and _is_clause(p, k):
            return False  # "no effusion, pulmonary nodules are small"
        if term.verb and means != "drop":
            break  # "no effusion, the heart is large": a clause of its own
        if seen and not more_or and means == "negative" and term.backward.means == "uncertain":
            return False  # "no effusion, pneumonia possible"
        seen = seen or term.observation is not None
    if not seen:
        return means == "drop"
    first = p.terms[begin]
    if first.forward.means in _JUDGING and not first.forward.nested:
        return False
    if means == "negative" and p.at(comma).join == "," and _is_device_list(p, cue, begin):
        return False
    if means == "drop":
        return True
    # "No edema and small effusion" begins anew, "resolution of edema and small effusion" does not.
    of = p.terms[cue].forward.id == "resolved" and p.text(cue).endswith(" of")
    anew = (first.positive_start or first.side) and not of
    if p.terms[comma].join == "and":
        return means != "negative" or not anew
    if means in _HEDGING:
        return (more_or and not listed) or p.terms[cue].forward.id == "differential"
    return more_or or not (anew or listed)


def _is_device_list(p: Parse, cue: int, begin: int) -> bool:
    """Tell whether devices follow findings that are denied: "no fracture, and surgical clips"."""
    denied, listed = (
        [t.observation.device for t in terms if t.observation]
        for terms in (p.terms[cue:begin], p.terms[begin:])
    )
    offered = any(t.join == "or" for t in p.terms[begin:])
    return not offered and denied[-1:] == [False] and listed[:1] == [True]


def _is_clause(p: Parse, i: int) -> bool:
    """Tell whether more than being seen is said at `i`: "are small", "has increased"."""
    term, after = p.terms[i], p.at(i + 1)
    if term.temporal:
        return not p.heads_observation(i)
    ends = i + 1 == len(p.terms) or after.lists or after.breaks or after.preposition
    seen = p.at(p.past(i + 1, lambda t: not t.text or t.stop)).verb  # "is currently seen"
    return term.verb and not (ends or after.verb or seen or after.backward.means)


# -- backward cues


def _looks_forward(p: Parse, i: int) -> bool:
    """Tell whether a cue that could work backwards works forwards here."""
    term = p.terms[i]
    means = term.forward.means
    if means and _observes(p.terms[i + 1 : _reach(p, i, means) + 1]):
        return True
    if means == "uncertain" and not _closes(p, i):
        return True
    return bool(term.temporal) and p.heads_observation(i + 1)


def _reach_back(p: Parse, i: int, means: str) -> None:
    """Let a cue at `i` reach the list before it."""
    terms, last = p.terms, i - 1
    if p.at(last).join == "," and terms[i].text.startswith("if "):
        last -= 1  # "effusion, if any"
    last = _before_aside(p, last)
    # The nearest observation, past verbs: "would be hard to see and cannot be excluded".
    last = p.before(last, lambda t: t.observation is None and t.join in ("", "and", ":"))
    if p.at(last).observation is None:
        return
    j = last
    while j >= 0 and not _ends_reach_back(p, j, last, means):
        j -= 1
    if last > j:
        p.cues.append(Reached(means, i, j + 1, last))
    hedge_behind = means == "uncertain" and bool(terms[i].backward.means)
    for k in range(j + 1, last + 1):
        if _yields(p.scope[k].means, means, hedge_behind=hedge_behind):
            p.scope[k] = Hold(means, i)


def _before_aside(p: Parse, last: int) -> int:
    """Return the unit before what commas hold: "effusion, which was small, has resolved"."""
    if p.at(last).join != ",":
        return last
    comma = p.before(last - 1, lambda t: t.join != ",")
    aside = p.terms[comma + 1 : last]
    held = p.at(comma + 1).relative or all(in_phrase(t) or not t.text for t in aside)
    return comma - 1 if held else last


def _ends_reach_back(p: Parse, j: int, last: int, means: str) -> bool:
    term = p.terms[j]
    if term.breaks or term.verb or (j in p.used and term.structure is not None):
        return True
    if term.temporal and p.at(j - 1).observation is not None:
        return True  # "the effusion has decreased | and the opacity is no longer seen"
    if term.join == "," and not any(t.join for t in p.terms[j + 1 : last + 1]):
        return True
    if means == "uncertain" and term.forward.means in _HEDGING:
        return True
    return term.backward.means not in ("", means) and not term.forward.means


def _yields(held: str, means: str, *, hedge_behind: bool) -> bool:
    """Tell whether what holds a unit gives way to a cue behind it."""
    if held in ("", "link") or means == "drop":
        return True
    return held == "uncertain" if means == "negative" else hedge_behind and held == "uncertain"


# -- masked words


def _read_mask(p: Parse, i: int) -> None:
    """Read a masked word that leads to an explanation as a hedge: "opacities, XXXX atelectasis"."""
    head = next((m for m in reversed(p.mentions) if m.last < i and _can_be_explained(m)), None)
    if p.terms[i - 1].accompanies or p.at(i + 1).join or p.scope[i].means == "negative":
        return
    linked = p.at(i + 1).forward.means == "link"
    refers = p.text(i - 1) in p.lexicon.refers or p.at(i - 1).relative
    if head is None and not (linked and refers):
        return  # but "this XXXX represents" explains the sentence before
    if linked and p.terms[i + 1].text.endswith(("consistent with", "compatible with")):
        return
    if not linked and head and _parts_from_mask(p.terms[head.last + 1 : i]):
        return
    first = i + 2 if linked else i + 1
    last = _reach(p, first - 1, "uncertain")
    reached = p.terms[first : last + 1]
    if all(t.observation is None or t.observation.device for t in reached):
        return
    explanation = p.past(first, lambda t: t.observation is None)
    if not linked and any(t.preposition for t in p.terms[first:explanation]):
        return
    p.cues.append(Reached("uncertain", i, first, last))
    p.scope[first : last + 1] = [Hold("uncertain", i)] * (last + 1 - first)


def _can_be_explained(mention: Mention) -> bool:
    return not (mention.said and (mention.denied or mention.observation.normal))


def _parts_from_mask(between: list[Term]) -> bool:
    """Tell whether the terms between an observation and a masked word part the two."""
    return any(
        (t.verb and not t.modifier and t.text != "is")
        or t.breaks
        or t.join in ("and", "or")
        or t.forward.means == "negative"
        or (t.preposition and between[-1].join != "," and not between[-1].verb)
        for t in between
    )


# -- assertions


def _assert_mentions(p: Parse) -> None:
    kept: list[Mention] = []
    explained: Mention | None = None
    for mention in p.mentions:
        if mention.said:
            if _can_be_explained(mention):
                explained = mention
        else:
            held = p.scope[mention.first]
            if held.means == "drop" and not mention.observation.fact:
                continue
            if kept and kept[-1].observation.device and _is_broken(p, kept[-1], mention):
                continue
            if held.means != "uncertain" or not _is_of_attribute(p, mention, held.cue):
                _judge(p, mention, held)
            if explained is not None and _explains(p, held, explained):
                mention.linked_to = explained
            elif not mention.denied:
                explained = mention
        kept.append(mention)
    # A part ("leads") belongs to another device of the sentence, if there is one.
    if p.roles & Role.PART and any(m.observation.device and not m.observation.part for m in kept):
        kept = [m for m in kept if not m.observation.part]
    p.mentions = kept


def _is_of_attribute(p: Parse, mention: Mention, cue: int) -> bool:
    """Tell whether a hedge behind a finding is of its kind or place: "nodule, likely calcified"."""
    after = p.at(cue + 1)
    device = mention.observation.device and after.preposition
    return cue > mention.last and (after.plain or device)


def _is_broken(p: Parse, device: Mention, mention: Mention) -> bool:
    """Tell whether a fracture is of no bone: "the second sternal wire is fractured"."""
    if "Fracture" not in mention.observation.diseases:
        return False
    between = p.terms[device.last + 1 : mention.first]
    said = between and not any(t.join or t.accompanies or t.place or t.breaks for t in between)
    return bool(said) and any(t.verb for t in between)


def _judge(p: Parse, mention: Mention, held: Hold) -> None:
    """Give a mention the assertion of the cue that holds it, if it does."""
    if held.means == "negative" or (held.means == "uncertain" and not mention.observation.fact):
        mention.assertion = "negative" if held.means == "negative" else "uncertain"
        mention.cue, mention.by = _cue_id(p.terms[held.cue], held.means), held.cue
    elif p.roles & Role.SEVERITY and mention.assertion == "positive":
        at = p.before(mention.first - 1, lambda t: in_phrase(t) and t.severity != "borderline")
        if p.at(at).severity == "borderline":  # "borderline cardiomegaly"
            mention.assertion, mention.cue, mention.by = "uncertain", "borderline", at


def _cue_id(term: Term, means: str) -> str:
    for cue in (term.forward, term.backward):
        if cue.means == means:
            return cue.id
    return "mask" if term.mask else means


def _explains(p: Parse, held: Hold, head: Mention) -> bool:
    """Tell whether what holds an observation makes it the explanation of `head`."""
    if held.means not in ("uncertain", "link", "negative") or held.cue <= head.last:
        return False
    term, before = p.terms[held.cue], p.terms[held.cue - 1]
    cue = term.forward
    if not (cue.means in _HEDGING or cue.id in _CONTRASTS or term.mask):
        return False
    again = p.at(head.by).forward.id == "doubt"  # "probable effusion, possible edema"
    if cue.id == "doubt" and (before.join == "and" or before.accompanies or again):
        return False  # a further item: "opacity and possible effusion"
    between = p.terms[head.last + 1 : held.cue]
    return not any(t.breaks and not t.relative for t in between)


def _alternatives(p: Parse) -> None:
    """Diagnoses joined by "or" or "versus" are each uncertain, unless they are denied together."""
    free = [m for m in p.mentions if not m.said]
    for index, (left, right) in enumerate(pairwise(free)):
        between = p.terms[left.last + 1 : right.first]
        joins = [t.join for t in between]
        if "or" not in joins or left.denied or right.denied:
            continue
        parted = any((t.verb and not t.modifier) or t.breaks for t in between)
        # "Distortion that may be scar versus tumor": the distortion is none of the two.
        hedged = any(t.forward.means in _HEDGING for t in between[: joins.index("or")])
        if parted or hedged or _is_of_change(p, left):
            continue
        right.linked_to = right.linked_to or left.linked_to
        if not any(t.accompanies for t in between):  # "opacity with new or residual pneumonia"
            _offer(left)
        _offer(right)
        if "," in joins:  # "A, B, or C"
            while index > 0 and _is_list_gap(p.terms[free[index - 1].last + 1 : free[index].first]):
                index -= 1
                _offer(free[index])


def _is_of_change(p: Parse, mention: Mention) -> bool:
    """Tell whether a list says what has not changed: "no change in the effusion or atelectasis"."""
    cue = p.before(mention.first - 1, lambda t: t.forward.means in ("", "end"))
    between = p.terms[cue + 1 : mention.first]
    plain = all(in_phrase(t) or t.determiner or t.lists or t.observation for t in between)
    within = plain or any(t.preposition for t in between)  # "no change is seen in the effusion"
    return p.at(cue).forward.id == "change" and within and not p.at(cue + 1).lists


def _is_list_gap(between: list[Term]) -> bool:
    commas = any(t.join == "," for t in between)
    return commas and all(t.join == "," or in_phrase(t) for t in between)


def _offer(mention: Mention) -> None:
    if mention.assertion == "positive" and not mention.observation.fact:
        mention.assertion, mention.cue = "uncertain", "alternatives"
