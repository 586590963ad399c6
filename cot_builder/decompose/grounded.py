"""Give chains the boxes of the phrases in which they were read."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cot_builder.boxes import Box
from cot_builder.decompose import Decomposer
from cot_builder.decompose.grammar import parse
from cot_builder.decompose.lexicon import Place
from cot_builder.decompose.places import regions_of
from cot_builder.decompose.units import find_units, fold
from cot_builder.records import Chain, Decomposition, Grounded, Report, Section, in_bank_order
from cot_builder.sentences import split_sentences

# The one label whose own name is no phrase of the banks.
_SPOKEN: Final = {"Pleural Other": "pleural thickening"}


def attach_boxes(found: Decomposition, report: Report, decomposer: Decomposer) -> Decomposition:
    """Give every chain the boxes of the grounded phrases that it overlaps.

    A box shows something that is there: negative chains and No Finding take boxes of kind `prior`
    only, which show a region. A phrase that is left without a chain but has a label of its release
    gets a chain for the label, at the places that the phrase names.
    """
    boxes: dict[Chain, dict[Box, None]] = {}  # a set, in order
    made: list[Chain] = []
    for phrase in report.grounded:
        held = False
        for chain in found.chains:
            if _overlap(chain, phrase):
                taken = {box: None for box in phrase.boxes if _may_hold(chain, box)}
                boxes.setdefault(chain, {}).update(taken)
                held |= bool(taken)
        if not held and phrase.label and phrase.label != "No Finding":
            made.append(_chain_of_label(phrase, phrase.label, report, decomposer))
    chains = [
        replace(chain, boxes=tuple(boxes[chain])) if chain in boxes else chain
        for chain in found.chains
    ]
    return found._replace(chains=(*chains, *made))


def _overlap(chain: Chain, phrase: Grounded) -> bool:
    same = chain.section == phrase.section
    return same and chain.start < phrase.end and phrase.start < chain.end


def _may_hold(chain: Chain, box: Box) -> bool:
    return box.kind == "prior" or (chain.assertion != "negative" and chain.disease != "No Finding")


def _chain_of_label(phrase: Grounded, label: str, report: Report, decomposer: Decomposer) -> Chain:
    text = report.section(phrase.section)
    finding = text[phrase.start : phrase.end]
    sentences = split_sentences(Section(phrase.section, text))
    return Chain(
        section=phrase.section,
        sentence=next((s.index for s in sentences if s.end > phrase.start), 0),
        finding=finding,
        start=phrase.start,
        end=phrase.end,
        disease=label,
        basis="stated",
        assertion="positive",
        regions=_regions(finding, label, decomposer),
        boxes=phrase.boxes,
        rule=f"release.{report.source}@{decomposer.lexicon.version}",
    )


def _regions(finding: str, label: str, decomposer: Decomposer) -> tuple[str, ...]:
    lexicon = decomposer.lexicon
    mention = parse(fold(_SPOKEN.get(label, label)), lexicon).mentions[0]
    terms = find_units(fold(finding), lexicon).terms
    places: list[Place] = [(t.side or t.site_side, t.site, t.weak) for t in terms if t.place]
    return in_bank_order(regions_of(mention.observation, places))
