"""Show why a sentence gives its chains: units, cues and their reach, places, decisions."""

from __future__ import annotations

from rich.console import Group, RenderableType
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
    """Return a printable account of every sentence in `text`, with the reason of each decision."""
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
        (term.place is not None, "place"),
        (bool(term.forward.means), f"cue {term.forward.id} →"),
        (bool(term.backward.means), f"← cue {term.backward.id}"),
        (term.generic, "verdict"),
    ]
    return [name for holds, name in named if holds]


def _cues(text: str, p: Parse) -> list[Text]:
    lines = []
    for means, cue, first, last in p.cues:
        reached = text[p.units[first].start : p.units[last].end]
        lines.append(Text(f"cue: {p.text(cue)!r} ({means}) reaches {reached!r}"))
    return lines


def _decisions(text: str, p: Parse) -> RenderableType:
    if not p.mentions:
        why = (
            "it carries no finding"
            if any(u.term.silent for u in p.units)
            else "the banks have no words for it"
        )
        return Text(f"no chain: {why}, or what it says is only supposed", style="dim")
    lines = Text()
    for mention in p.mentions:
        observation = mention.observation
        label = " + ".join(observation.diseases) or "unmapped"
        if observation.diseases and not observation.stated:
            label = f"{label} (implied: {', '.join(observation.concepts)})"
        lines.append(f"• {text[mention.start : mention.end]}", style="bold")
        lines.append(f" → {label} · ")
        lines.append(mention.assertion, style=COLOURS[mention.assertion])
        lines.append(f" · {', '.join(in_bank_order(mention.regions))}\n")
        places = _places(mention.places) or f"the default of {observation.site.id}"
        lines.append(f"    assertion: {mention.reason}\n    place: {places}\n", style="dim")
        lines.append(f"    rule: {rule_id(mention, p)}\n", style="dim")
    return lines


def _places(places: list[Place]) -> str:
    return ", ".join(
        " ".join(filter(None, (side, site.id if site else ""))) for side, site, _ in places
    )
