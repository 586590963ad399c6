"""Reports to chains by rules: sentences → units → mentions → chains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cot_builder.decompose.grammar import parse
from cot_builder.decompose.lexicon import Lexicon, compile_lexicon
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.units import fold
from cot_builder.records import Basis, Chain, Decomposition, Section, Unmapped, in_bank_order
from cot_builder.sentences import split_sentences
from knowledge_banks import Banks

CACHED: Final = 100_000  # sentences; about 400 MiB
LONGEST_TITLE: Final = 24  # of a line such as "Left ankle." that opens another part of the body


class SentenceResult(NamedTuple):
    """What one sentence tells, with offsets in it, and whether it bears a finding."""

    chains: tuple[Chain, ...]
    unmapped: tuple[Unmapped, ...]
    bearing: bool


class Decomposer:
    """Turns the sections of a report into chains; holds compiled banks and a cache of sentences.

    Results never depend on the cache: a sentence is decomposed without its neighbours.
    """

    def __init__(self, banks: Banks, *, cache: bool = True) -> None:
        self.banks = banks
        self.lexicon = compile_lexicon(banks)
        self._cache: dict[str, SentenceResult] | None = {} if cache else None

    def decompose(self, sections: Iterable[Section]) -> Decomposition:
        """Decompose the given sections, in order."""
        chains: list[Chain] = []
        unmapped: list[Unmapped] = []
        sentences = bearing = covered = 0
        for section in sections:
            outside = False
            for sentence in split_sentences(section):
                sentences += 1
                if len(sentence.text) <= LONGEST_TITLE:
                    title = fold(sentence.text).rstrip(".: ")
                    outside = title in self.lexicon.outside or (
                        outside and title not in self.lexicon.chest
                    )
                if outside:
                    continue
                result = self.sentence(sentence.text)
                bearing += result.bearing
                covered += bool(result.chains or result.unmapped)
                where = {"section": section.name, "sentence": sentence.index, "by": sentence.start}
                chains += [chain.shifted(**where) for chain in result.chains]  # type: ignore[arg-type]
                unmapped += [finding.shifted(**where) for finding in result.unmapped]  # type: ignore[arg-type]
        return Decomposition(tuple(chains), tuple(unmapped), sentences, bearing, covered)

    def sentence(self, text: str) -> SentenceResult:
        """Decompose one sentence; offsets count from its start."""
        if self._cache is None:
            return decompose_sentence(text, self.lexicon)
        found = self._cache.get(text)
        if found is None:
            if len(self._cache) >= CACHED:
                self._cache.clear()
            found = self._cache[text] = decompose_sentence(text, self.lexicon)
        return found


def decompose_sentence(text: str, lexicon: Lexicon) -> SentenceResult:
    """Decompose one sentence with compiled banks."""
    chains: list[Chain] = []
    unmapped: list[Unmapped] = []
    p = parse(fold(text), lexicon)
    for mention in p.mentions:
        _write(mention, text, p, chains, unmapped)
    bearing = bool(chains or unmapped) or not any(u.term.silent for u in p.units)
    return SentenceResult(tuple(chains), tuple(unmapped), bearing)


def rule_id(mention: Mention, p: Parse) -> str:
    """Name the bank entry, the cue and the bank version that made a mention.

    `diseases.effusion+no@1.0.0` is one; `~word` stands behind the entry when the phrase was found
    by its spelling only.
    """
    spelt = p.units[mention.first].spelt
    cue = f"+{mention.cue}" if mention.cue else ""
    return f"{mention.observation.rule}{f'~{spelt}' if spelt else ''}{cue}@{p.lexicon.version}"


def _write(
    mention: Mention, text: str, p: Parse, chains: list[Chain], unmapped: list[Unmapped]
) -> None:
    observation = mention.observation
    start, end = mention.start, mention.end
    finding, regions, rule = text[start:end], in_bank_order(mention.regions), rule_id(mention, p)
    if not observation.diseases:
        unmapped.append(Unmapped("", 0, finding, start, end, mention.assertion, regions, rule))
        return
    severity = next(
        (t for u in p.units[mention.left : mention.first + 1] if (t := u.term.severity)), None
    )
    basis: Basis = "stated" if observation.stated else "implied"
    for disease in observation.diseases:
        chains.append(
            Chain(
                "", 0, finding, start, end, disease, basis, mention.assertion, regions,
                observation.concepts, severity, mention.temporal, (), rule,
            )
        )  # fmt: skip
