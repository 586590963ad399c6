"""What a cue reaches: denials, hedges, explanations, advice, and alternatives."""

from __future__ import annotations

from cot_builder.decompose.parse import Mention, Parse


def read_cues(p: Parse) -> None:
    """Give every observation its assertion, drop what is only supposed, and link explanations to what they explain."""
    _scopes(p)
    _assert_mentions(p)
    _alternatives(p)


def _scopes(p: Parse) -> None:
    units = p.units
    p.scope = [None] * len(units)
    for i, unit in enumerate(units):
        if i in p.used:
            continue
        cue = unit.term.forward
        if cue is not None and cue.means in ("negative", "uncertain", "drop", "link", "emphasis"):
            held = p.scope[i]
            if held is not None and (
                held[0] == "drop"
                or (held[0] == "negative" and cue.means in ("uncertain", "link"))
                # "most likely | due to atelectasis": the hedge stands.
                or (held[0] == "uncertain" and cue.means == "link" and i - held[1] <= 2)
            ):
                continue
            if (
                cue.means == "negative"
                and unit.term.text == "not"
                and i + 1 < len(units)
                and units[i + 1].term.states
            ):
                continue
            if cue.id == "favor_over" and not any(
                units[k].term.text.startswith("favor") for k in range(i)
            ):
                continue
            last = _reach(p, i, cue.means)
            if cue.means != "emphasis":
                for j in range(i + 1, last + 1):
                    p.scope[j] = (cue.means, i)
            if last > i:
                p.cues.append((cue.means, i, i + 1, last))
            if (
                cue.means == "uncertain"
                and unit.term.backward is None
                and not _holds_observation(p, i + 1, last)
                and _closes(p, i)
            ):
                _reach_back(p, i, "uncertain")
    for i, unit in enumerate(units):
        cue = unit.term.backward
        if cue is not None and i not in p.used:
            if unit.term.forward is not None and _holds_observation(
                p, i + 1, _reach(p, i, unit.term.forward.means)
            ):
                continue
            if (
                unit.term.forward is not None
                and unit.term.forward.means == "uncertain"
                and not _closes(p, i)
            ):
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
    if i + 1 < len(p.units) and not p.units[i + 1].term.verb and p.units[i].term.backward is None:
        return False
    for j in range(i + 1, len(p.units)):
        term = p.units[j].term
        if term.join in (";", ",") or (term.forward is not None and term.forward.means == "end"):
            return True
        if not (term.verb or term.stop or term.modifier or term.place or term.preposition):
            return False
    return True


def _reach(p: Parse, i: int, means: str) -> int:
    """Return the last unit that a forward cue at `i` reaches."""
    units, count = p.units, len(p.units)
    listed = False  # an "or" has come: a later comma closes the list
    j = i + 1
    while j < count:
        term = units[j].term
        if term.join in (";", ":") or (term.forward is not None and term.forward.means == "end"):
            break
        cue = term.forward
        if cue is not None and not term.join:
            if means == "negative" and cue.means == "negative" and j > i + 1:
                break
            if (
                means in ("uncertain", "link")
                and cue.means in ("negative", "none")
                and cue.id != "resolved"
            ):
                break
            if (
                means == "negative"
                and cue.means == "uncertain"
                and units[j - 1].term.join == ","
                and not cue.nested
            ):
                break
            if means == "negative" and cue.means == "link" and not _any_observation(p, i, j):
                pass
        if (
            term.backward is not None
            and term.backward.means in ("negative", "uncertain")
            and cue is None
            and not term.modifier
            and means != "drop"
        ):
            break
        if term.verb and means != "drop" and (j > i + 1) and _any_observation(p, i, j):
            break
        if term.text == "with" and means != "drop" and _any_observation(p, i, j):
            break
        if (
            means != "drop"
            and j > i + 1
            and j in p.used
            and not term.place
            and term.structure is not None
        ):
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
    return any(
        p.units[k].term.observation is not None or p.units[k].term.generic for k in range(i + 1, j)
    )


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
    if (
        first.forward is not None
        and first.forward.means in ("negative", "uncertain")
        and not first.forward.nested
    ):
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
    if j >= 0 and units[j].term.join == "," and units[i].term.text.startswith("if "):
        j -= 1  # "effusion, if any"
    # The nearest observation, past the verbs of its clause: "would be hard to see and cannot be excluded".
    last = j
    while last >= 0 and units[last].term.observation is None and units[last].term.join in ("", "and", ":"):
        last -= 1
    if last < 0 or units[last].term.observation is None:
        return
    j = last
    while j >= 0:
        term = units[j].term
        if (
            term.join == ";"
            or (term.forward is not None and term.forward.means == "end")
            or (term.join == "," and not any(units[k].term.join for k in range(j + 1, last + 1)))
            or (means == "uncertain" and term.forward is not None and term.forward.means in ("uncertain", "link"))
            or term.verb
            or (j in p.used and term.structure is not None)
        ):
            break
        if term.backward is not None and term.backward.means != means and term.forward is None:
            break
        j -= 1
    if last > j:
        p.cues.append((means, i, j + 1, last))
    for k in range(j + 1, last + 1):
        held = p.scope[k]
        if (
            held is None
            or held[0] in ("link",)
            or means == "drop"
            or (means == "negative" and held[0] == "uncertain")
            or (
                means == "uncertain"
                and units[i].term.backward is not None
                and held[0] != "drop"
                and held[0] != "negative"
            )
        ):
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
        if (
            j < len(units)
            and units[j].term.forward is not None
            and units[j].term.forward.means == "link"
        ):
            if units[j].term.text.endswith(("consistent with", "compatible with")):
                continue
            j, linked = j + 1, True
        if p.scope[i] is not None and p.scope[i][0] == "negative":  # type: ignore[index]
            continue
        between = [units[k].term for k in range(previous.last + 1, i)]
        if any(t.verb and not t.modifier and not t.text == "is" for t in between) and not linked:
            continue
        if (
            any(
                t.join in ("and", "or", ";")
                or (t.preposition and between[-1].join != ",")
                or (t.forward and t.forward.means in ("end", "negative"))
                for t in between
            )
            and not linked
        ):
            continue
        last = _reach(p, i if not linked else i + 1, "uncertain")
        if not _holds_observation(p, j, last):
            continue
        if not linked and any(
            units[k].term.preposition
            for k in range(j, last + 1)
            if k < next(x for x in range(j, last + 1) if units[x].term.observation)
        ):
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
        means, at = held if held else (None, -1)
        if means == "drop" and not mention.observation.fact:
            continue
        if means == "negative" or (means == "uncertain" and not mention.observation.fact):
            mention.assertion = "negative" if means == "negative" else "uncertain"
            mention.cue, mention.reason = _cue_id(p, at, means), f"{means} by {p.text(at)!r}"
        else:
            mention.reason = f"{mention.assertion}: no cue reaches it"
        if (
            held
            and held[0] in ("uncertain", "link", "negative")
            and explained is not None
            and held[1] > explained.last
        ):
            forward = units[held[1]].term.forward
            explains = (
                forward is not None
                and (forward.means in ("link", "uncertain") or forward.id in ("favor_over", "rather_than"))
            ) or units[held[1]].term.mask
            if explains and _links(p, explained, held[1]):
                mention.linked_to = explained
        if mention.assertion != "negative" and mention.linked_to is None:
            explained = mention
        kept.append(mention)
    p.mentions = [m for m in kept if not (m.observation.part and _has_owner(p, m, kept))]


def _has_owner(p: Parse, part: Mention, mentions: list[Mention]) -> bool:
    """Tell whether a part ("leads") belongs to another device of the sentence."""
    return any(
        m is not part and not m.observation.part and "Support Devices" in m.observation.diseases
        for m in mentions
    )


def _cue_id(p: Parse, at: int, means: str) -> str:
    term = p.units[at].term
    for cue in (term.forward, term.backward):
        if cue is not None and cue.means == means:
            return cue.id
    return "mask" if term.mask else means


def _links(p: Parse, head: Mention, cue: int) -> bool:
    """Tell whether a cue joins what follows to `head` as its explanation: no list item and no new clause begins."""
    before, forward = p.units[cue - 1].term, p.units[cue].term.forward
    if (
        (before.join == "and" or before.text == "with")
        and forward is not None
        and forward.id == "doubt"
    ):
        return False
    return not any(
        (t := p.units[k].term).join == ";"
        or (
            t.forward is not None
            and t.forward.means == "end"
            and t.text not in ("which", "that", "also")
        )
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
        right.linked_to = right.linked_to or left.linked_to
        for mention in (left, right):
            if mention.assertion == "positive" and not mention.observation.fact:
                mention.assertion, mention.cue, mention.reason = (
                    "uncertain",
                    "alternatives",
                    "one of several offered",
                )
        if "," in joins:  # "A, B, or C"
            at = free.index(left)
            while at > 0:
                gap = [units[k].term for k in range(free[at - 1].last + 1, free[at].first)]
                if (
                    not gap
                    or not any(t.join == "," for t in gap)
                    or not all(t.join == "," or t.modifier or t.place for t in gap)
                ):
                    break
                at -= 1
                if free[at].assertion == "positive" and not free[at].observation.fact:
                    free[at].assertion, free[at].cue, free[at].reason = (
                        "uncertain",
                        "alternatives",
                        "one of several offered",
                    )
