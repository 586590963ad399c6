"""Show why a sentence gives the chains that it gives: its units, cues, reaches, places and decisions."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cot_builder.decompose import rule_id
from cot_builder.decompose.grammar import parse
from cot_builder.decompose.lexicon import Place, Term, compile_lexicon
from cot_builder.decompose.parse import Parse
from cot_builder.decompose.units import fold
from cot_builder.records import in_bank_order
from cot_builder.sentences import split_sections_of
from knowledge_banks import Banks

COLOURS = {"positive": "red", "negative": "green", "uncertain": "yellow"}


def explain(text: str, banks: Banks) -> RenderableType:
    """Return a printable account of every sentence in `text`: mentions, cues with their reach, regions, and reasons."""
    lexicon = compile_lexicon(banks)
    parts: list[RenderableType] = []
    for sentence in split_sections_of(text):
        p = parse(fold(sentence.text), lexicon)
        parts += [
            _coloured(sentence.text, p),
            _units(p),
            *_cues(sentence.text, p),
            _decisions(sentence.text, p),
            Text(),
        ]
    return Group(*parts)


def _coloured(text: str, p: Parse) -> Text:
    line = Text(text, style="bold")
    for mention in p.mentions:
        line.stylize(COLOURS[mention.assertion], mention.start, mention.end)
    return line


def _units(p: Parse) -> Text:
    line = Text("units: ")
    for i, unit in enumerate(p.units):
        roles = f"~{unit.spelt}" if unit.spelt else ", ".join(_roles(unit.term))
        line.append(p.text(i)).append(f"[{roles}] " if roles else " ", style="dim")
    return line


def _roles(term: Term) -> list[str]:
    """Name the roles of a term; plain joining words have none worth showing."""
    named = [
        (term.observation is not None, "observation"),
        (term.structure is not None, "structure"),
        (bool(term.states), "/".join(term.states)),
        (term.place, "place"),
        (term.forward is not None, f"cue {term.forward.id} →" if term.forward else ""),
        (term.backward is not None, f"← cue {term.backward.id}" if term.backward else ""),
        (term.generic, "verdict"),
    ]
    return [name for holds, name in named if holds]


def _cues(text: str, p: Parse) -> list[Text]:
    return [
        Text(
            f"cue: {p.text(cue)!r} ({means}) reaches {text[p.units[first].start : p.units[last].end]!r}"
        )
        for means, cue, first, last in p.cues
    ]


def _decisions(text: str, p: Parse) -> RenderableType:
    if not p.mentions:
        why = (
            "it carries no finding"
            if any(u.term.silent for u in p.units)
            else "the banks have no words for it"
        )
        return Text(f"no chain: {why}, or what it says is only supposed", style="dim")
    table = Table(box=None, pad_edge=False)
    for column in ("finding", "disease", "assertion", "because", "regions", "from", "rule"):
        table.add_column(column, overflow="fold")
    for mention in p.mentions:
        observation = mention.observation
        concepts = "".join(f" ← {concept}" for concept in reversed(observation.concepts))
        table.add_row(
            text[mention.start : mention.end],
            (" + ".join(observation.diseases) or "unmapped")
            + ("" if observation.stated or not observation.diseases else f" (implied){concepts}"),
            Text(mention.assertion, style=COLOURS[mention.assertion]),
            mention.reason,
            ", ".join(in_bank_order(mention.regions)),
            _places(mention.places) or f"default of {observation.site.id}",
            rule_id(mention, p),
        )
    return table


def _places(places: list[Place]) -> str:
    return ", ".join(
        " ".join(filter(None, (side, site.id if site else ""))) for side, site, _ in places
    )
