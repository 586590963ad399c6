"""Show why a sentence gives its chains: units, cues and their reach, places, decisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from cot_builder.decompose import rule_id
from cot_builder.decompose.grammar import parse
from cot_builder.decompose.lexicon import Lexicon, Place, Term, compile_lexicon
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.units import fold
from cot_builder.records import Assertion, in_bank_order
from cot_builder.sentences import split_sections_of
from knowledge_banks import Banks

COLOURS = {"positive": "red", "negative": "green", "uncertain": "yellow"}


class Reason(NamedTuple):
    """Why one mention is read as it is; `start` and `end` are offsets in its sentence.

    `why` is the reason of the assertion, `place` what the regions come from.
    """

    start: int
    end: int
    label: str
    assertion: Assertion
    regions: tuple[str, ...]
    why: str
    place: str
    rule: str


class Account(NamedTuple):
    """What a sentence's words are to the banks, what its cues reach, and why it tells what."""

    units: tuple[tuple[str, str], ...]
    cues: tuple[str, ...]
    reasons: tuple[Reason, ...]
    silence: str


def account(sentence: str, lexicon: Lexicon) -> Account:
    """Return the reasons behind all that a sentence tells; `silence` says why it tells nothing."""
    p = parse(fold(sentence), lexicon)
    spelt = p.units.spelt
    units = tuple(
        (p.text(i), f"~{spelt[i]}" if i in spelt else ", ".join(_roles(term)))
        for i, term in enumerate(p.terms)
    )
    why = (
        "it carries no finding"
        if any(t.silent for t in p.terms)
        else "the banks have no words for it"
    )
    silence = "" if p.mentions else f"{why}, or what it says is only supposed"
    return Account(units, tuple(_cues(sentence, p)), tuple(_reasons(p)), silence)


def explain(text: str, banks: Banks) -> RenderableType:
    """Return a printable account of every sentence in `text`, with the reason of each decision."""
    lexicon = compile_lexicon(banks)
    parts: list[RenderableType] = []
    for sentence in split_sections_of(text):
        told = account(sentence.text, lexicon)
        parts += [
            _coloured(sentence.text, told.reasons),
            _units(told.units),
            *(Text(f"cue: {cue}") for cue in told.cues),
            _decisions(sentence.text, told),
            Text(),
        ]
    return Group(*parts)


def _coloured(text: str, reasons: tuple[Reason, ...]) -> Text:
    line = Text(text, style="bold")
    for reason in reasons:
        line.stylize(COLOURS[reason.assertion], reason.start, reason.end)
    return line


def _units(units: tuple[tuple[str, str], ...]) -> Text:
    line = Text("units: ")
    for words, roles in units:
        line.append(words).append(f"[{roles}] " if roles else " ", style="dim")
    return line


def _roles(term: Term) -> list[str]:
    """Name the roles of a term; plain joining words have none worth showing."""
    named = [
        (term.observation is not None, "observation"),
        (term.structure is not None, "structure"),
        (bool(term.states), "/".join(term.states)),
        (term.place is not None, "place"),
        (bool(term.forward.means), f"cue {term.forward.id} →"),
        (bool(term.backward.means), f"← cue {term.backward.id}"),
        (term.generic, "verdict"),
    ]
    return [name for holds, name in named if holds]


def _cues(text: str, p: Parse) -> Iterator[str]:
    for means, cue, first, last in p.cues:
        reached = text[p.units.starts[first] : p.units.ends[last]]
        yield f"{p.text(cue)!r} ({means}) reaches {reached!r}"


def _reasons(p: Parse) -> Iterator[Reason]:
    for mention in p.mentions:
        observation = mention.observation
        label = " + ".join(observation.diseases) or "unmapped"
        if observation.diseases and not observation.stated:
            label = f"{label} (implied: {', '.join(observation.concepts)})"
        yield Reason(
            mention.start, mention.end, label, mention.assertion, in_bank_order(mention.regions),
            _why(mention, p), _places(mention.places) or f"the default of {observation.site.id}",
            rule_id(mention, p),
        )  # fmt: skip


def _why(mention: Mention, p: Parse) -> str:
    if mention.cue == "alternatives":
        return "one of several offered"
    if mention.by < 0:
        return f"{mention.assertion}: no cue reaches it"
    word = repr(p.text(mention.by))
    if not mention.said:
        return f"{mention.assertion} by {word}"
    structure, _, state = mention.observation.rule.removeprefix("structures.").partition(".")
    if structure == "generic" or state == "generic":
        return f"a general verdict behind {word}"
    how = {"denied": "not ", "hedged": "perhaps "}.get(mention.cue, "")
    return f"{structure} is {how}{state} ({word})"


def _decisions(text: str, told: Account) -> RenderableType:
    if told.silence:
        return Text(f"no chain: {told.silence}", style="dim")
    lines = Text()
    for reason in told.reasons:
        lines.append(f"• {text[reason.start : reason.end]}", style="bold")
        lines.append(f" → {reason.label} · ")
        lines.append(reason.assertion, style=COLOURS[reason.assertion])
        lines.append(f" · {', '.join(reason.regions)}\n")
        lines.append(f"    assertion: {reason.why}\n    place: {reason.place}\n", style="dim")
        lines.append(f"    rule: {reason.rule}\n", style="dim")
    return lines


def _places(places: list[Place]) -> str:
    return ", ".join(
        " ".join(filter(None, (side, site.id if site else ""))) for side, site, _ in places
    )
