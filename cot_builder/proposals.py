"""Verify what a model proposes: nothing that it says is believed.

Each finding is found in the sentence itself, its labels are held against the banks, its assertion
against the cues that the rules see.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from cot_builder.decompose import Told
from cot_builder.decompose.grammar import parse
from cot_builder.decompose.lexicon import Lexicon, Observation, Role, Term
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.units import Units, find_units, fold
from cot_builder.records import Row, in_bank_order
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS
from knowledge_banks import Banks

UNMAPPED: Final = "unmapped"
_JUDGING: Final = ("negative", "uncertain")

# What the rules read of a text at least: a finding without any is passed over by them.
_READ: Final = re.compile(r"[a-z0-9_]")

Span = tuple[int, int]


class Proposal(NamedTuple):
    """A mention as a model proposes it, and what the rules make of its words.

    `span` is where its finding stands in the sentence, None if nowhere. In `parse` that span is an
    observation of the banks; `mention` is what came of it, None if the rules dropped it.
    """

    row: Row
    span: Span | None
    inside: tuple[Term, ...]
    parse: Parse
    mention: Mention | None
    concepts: frozenset[str]


class Verdict(NamedTuple):
    """What each check says of a proposal (nothing: it passes), and the mention that it becomes."""

    row: Row
    faults: dict[str, str]
    told: Told | None


def check_verbatim(proposal: Proposal) -> str:
    """The finding is words of the sentence."""
    return "" if proposal.span else "the sentence does not have these words, or not so often"


def check_begin(proposal: Proposal) -> str:
    """The finding does not begin with a word of denial or doubt."""
    first = proposal.inside[0] if proposal.inside else None
    if first is None or first.forward.means not in _JUDGING or _is_normal(proposal):
        return ""
    return f"it begins with {first.text!r}, which is no part of a finding"


def check_label(proposal: Proposal) -> str:
    """The disease is one of the 14 labels, or `unmapped`."""
    disease = proposal.row["disease"]
    known = disease in LABELS or disease == UNMAPPED
    return "" if known else f"{disease!r} is no label of the banks, nor {UNMAPPED!r}"


def check_bank(proposal: Proposal) -> str:
    """The banks do not know the words as another label's."""
    known = {label for t in proposal.inside if t.observation for label in t.observation.diseases}
    if not known or proposal.row["disease"] in known:
        return ""
    return f"the banks have these words as {' and '.join(sorted(known))}"


def check_concepts(proposal: Proposal) -> str:
    """The banks have the concepts, for that disease."""
    odd = [concept for concept in proposal.row["concepts"] if concept not in proposal.concepts]
    return f"{odd[0]!r} leads to {proposal.row['disease']} in no bank" if odd else ""


def check_regions(proposal: Proposal) -> str:
    """There is a region, and all are of the 12."""
    odd = [region for region in proposal.row["regions"] if region not in REGIONS]
    if odd:
        return f"{odd[0]!r} is no region of the banks"
    return "" if proposal.row["regions"] else "it has no region"


def check_side(proposal: Proposal) -> str:
    """A region of one side is not the side that the sentence does not name, naming the other."""
    told = {term.side or term.site_side for term in (*proposal.parse.terms, *proposal.inside)}
    for side, other in (("left", "right"), ("right", "left")):
        one_sided = any(region.startswith(side) for region in proposal.row["regions"])
        if one_sided and other in told and not told & {side, "both"}:
            return f"the sentence says {other}, not {side}"
    return ""


def check_assertion(proposal: Proposal) -> str:
    """The assertion is that of the cue that reaches the finding, if the rules see one."""
    said, mention = proposal.row["assertion"], proposal.mention
    if said not in ASSERTIONS:
        return f"{said!r} is none of {', '.join(ASSERTIONS)}"
    if proposal.span is None:
        return ""
    if mention is None:
        return "the sentence only supposes it, advises on it, or tells it again"
    if _is_normal(proposal):
        return "" if said == "positive" else "No Finding is always positive"
    if mention.assertion in (said, "positive"):
        return ""
    by = f" by {proposal.parse.text(mention.by)!r}" if mention.by >= 0 else ""
    return f"it is said to be {said}; the sentence has it {mention.assertion}{by}"


# To add one: write a function of a proposal that tells what is wrong with it, and name it here.
CHECKS: Final[dict[str, Callable[[Proposal], str]]] = {
    "verbatim": check_verbatim,
    "begin": check_begin,
    "label": check_label,
    "bank": check_bank,
    "concepts": check_concepts,
    "regions": check_regions,
    "side": check_side,
    "assertion": check_assertion,
}


class Grounds(NamedTuple):
    """What proposals are verified by: compiled banks, the concepts to each disease, the prompt."""

    lexicon: Lexicon
    concepts: dict[str, frozenset[str]]
    rule: str


def grounds(banks: Banks, lexicon: Lexicon, prompt: str) -> Grounds:
    """Prepare what proposals to a prompt (name@version) are verified by."""
    concepts: dict[str, set[str]] = {}
    for sign in banks.signs["sign"]:
        concepts.setdefault(sign["disease"], set()).update(sign.get("concepts", ()))
    return Grounds(lexicon, {name: frozenset(of) for name, of in concepts.items()}, prompt)


def verify(text: str, answer: Row, by: Grounds) -> list[Verdict]:
    """Hold every proposal of an answer against its sentence and the banks.

    A finding that stands in the sentence twice is taken where it passes.
    """
    folded = fold(text)
    rows: list[Row] = answer["mentions"]
    places = [_places(row["finding"], folded) for row in rows]
    verdicts: list[Verdict] = []
    taken: set[tuple[Span, str]] = set()
    for row, spans in zip(rows, places, strict=True):
        free: list[Span | None] = [at for at in spans if (at, row["disease"]) not in taken]
        others = [found[0] for found in places if found and found is not spans]
        # Nowhere is where a finding stands that is told a second time.
        tried = [_judge(row, span, others, text, folded, by) for span in free or [None]]
        verdict = next((one for one in tried if one.told), tried[0])
        if verdict.told:
            taken.add(((verdict.told.start, verdict.told.end), row["disease"]))
        verdicts.append(verdict)
    return verdicts


def _judge(
    row: Row, span: Span | None, others: list[Span], text: str, folded: str, by: Grounds
) -> Verdict:
    heard, inside = _hear(folded, span, others, by.lexicon)
    mention = _mention_at(heard, span[0]) if span else None
    concepts = by.concepts.get(row["disease"], frozenset())
    proposal = Proposal(row, span, inside, heard, mention, concepts)
    faults = {name: fault for name, check in CHECKS.items() if (fault := check(proposal))}
    if faults or span is None or mention is None:
        return Verdict(row, faults, None)
    name, _, version = by.rule.partition("@")
    return Verdict(
        row,
        faults,
        Told(
            text[span[0] : span[1]], *span,
            None if row["disease"] == UNMAPPED else row["disease"],
            "implied" if row["concepts"] else "stated",
            row["assertion"], in_bank_order(frozenset(row["regions"])), tuple(row["concepts"]),
            next((term.severity for term in inside if term.severity), None),
            next((term.temporal for term in inside if term.temporal), mention.temporal),
            f"llm.{name}{f'+{mention.cue}' if mention.cue else ''}@{version}",
        ),
    )  # fmt: skip


def _mention_at(heard: Parse, start: int) -> Mention | None:
    place = heard.units.starts.index(start)
    observation = heard.terms[place].observation
    if place in heard.used and observation:  # it is said of a structure, and no cue counts
        return Mention(place, place, observation, "positive")
    return next((mention for mention in heard.mentions if mention.first == place), None)


def _hear(
    folded: str, span: Span | None, others: list[Span], lexicon: Lexicon
) -> tuple[Parse, tuple[Term, ...]]:
    """Let the rules read a sentence as if the proposed findings were phrases of the banks."""
    spans = [span] if span else []
    spans += [other for other in others if not any(overlap(other, one) for one in spans)]
    observation = Observation(UNMAPPED, (), lexicon.whole_chest.site)
    found, units = find_units(folded, lexicon), Units([], [], [], {})
    inside: list[Term] = []
    for term, start, end in zip(found.terms, found.starts, found.ends, strict=True):
        home = next((one for one in spans if overlap((start, end), one)), None)
        if home is not None:
            if home == span:
                inside.append(term)
            if units.starts[-1:] == [home[0]]:
                continue
            (start, end), words = home, folded[slice(*home)]
            term = Term(words, observation=observation, roles=Role.OBSERVATION)
        units.terms.append(term)
        units.starts.append(start)
        units.ends.append(end)
    return parse(folded, lexicon, units=units), tuple(inside)


def _places(finding: str, folded: str) -> list[Span]:
    folded_finding = fold(finding)
    if not _READ.search(folded_finding):
        return []
    words = [re.escape(word) for word in folded_finding.strip(" .,;:").split()]
    pattern = r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, folded)]


def overlap(one: Span, other: Span) -> bool:
    """Tell whether two spans share a character."""
    return one[0] < other[1] and other[0] < one[1]


def _is_normal(proposal: Proposal) -> bool:
    return bool(proposal.row["disease"] == LABELS[0])
