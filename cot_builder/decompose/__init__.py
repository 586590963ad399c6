"""Reports to chains by rules: sentences → units → mentions → chains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from cot_builder.decompose.grammar import parse_all
from cot_builder.decompose.lexicon import Lexicon, Role, compile_lexicon
from cot_builder.decompose.parse import Mention, Parse
from cot_builder.decompose.places import lends_on, takes_back
from cot_builder.decompose.units import fold
from cot_builder.records import (
    Assertion,
    Basis,
    Chain,
    Decomposition,
    Section,
    Sentence,
    Unmapped,
    in_bank_order,
)
from cot_builder.sentences import split_sentences
from knowledge_banks import Banks

CACHED: Final = 100_000  # sentences; about 400 MiB
LONGEST_TITLE: Final = 24  # of a line such as "Left ankle." that opens another part of the body


class Told(NamedTuple):
    """One mention of a sentence, with offsets in it; without a disease it is unmapped."""

    finding: str
    start: int
    end: int
    disease: str | None
    basis: Basis
    assertion: Assertion
    regions: tuple[str, ...]
    concepts: tuple[str, ...]
    severity: str | None
    temporal: str | None
    rule: str
    lends: bool = False  # its regions, to a sentence behind it that refers back
    takes: bool = False  # those of the sentence before, if that lends any


class SentenceResult(NamedTuple):
    """What one sentence tells, and whether it bears a finding."""

    told: tuple[Told, ...]
    bearing: bool


class Decomposer:
    """Turns the sections of a report into chains; holds compiled banks and a cache of sentences.

    Results never depend on the cache: a sentence is decomposed without its neighbours, and what
    refers to the one before takes its regions when chains are made.
    """

    def __init__(self, banks: Banks, *, cache: bool = True) -> None:
        self.banks = banks
        self.lexicon = compile_lexicon(banks)
        self._cache: dict[str, SentenceResult] | None = {} if cache else None

    def decompose(self, sections: Iterable[Section]) -> Decomposition:
        """Decompose the given sections, in order."""
        return assemble(self.read(sections))

    def read(self, sections: Iterable[Section]) -> list[tuple[Sentence, SentenceResult | None]]:
        """Read the sentences of sections; those of other parts of the body have no result."""
        sentences = [s for section in sections for s in split_sentences(section)]
        results = self._results([sentence.text for sentence in sentences])
        outside = self._outside(sentences)
        return [
            (sentence, None if out else result)
            for sentence, result, out in zip(sentences, results, outside, strict=True)
        ]

    def _outside(self, sentences: list[Sentence]) -> list[bool]:
        """Tell which sentences stand below the title of another part of the body."""
        told, outside = [], False
        for sentence in sentences:
            outside = outside and sentence.index > 0
            if len(sentence.text) <= LONGEST_TITLE:
                title = fold(sentence.text).rstrip(".: ")
                outside = title in self.lexicon.outside or (
                    outside and title not in self.lexicon.chest
                )
            told.append(outside)
        return told

    def _results(self, texts: list[str]) -> list[SentenceResult]:
        cache = self._cache
        if cache is None:
            return decompose_sentences(texts, self.lexicon)
        if len(cache) >= CACHED:
            cache.clear()
        new = [text for text in dict.fromkeys(texts) if text not in cache]
        cache.update(zip(new, decompose_sentences(new, self.lexicon), strict=True))
        return [cache[text] for text in texts]


def assemble(read: Iterable[tuple[Sentence, SentenceResult | None]]) -> Decomposition:
    """Make chains and unmapped findings of what sentences tell, with offsets in their sections."""
    chains: list[Chain] = []
    unmapped: list[Unmapped] = []
    sentences = bearing = covered = 0
    lent: tuple[str, ...] = ()  # regions, by the sentence before
    for sentence, result in read:
        sentences += 1
        if result is None:
            continue
        bearing += result.bearing
        covered += bool(result.told)
        before, lent = lent if sentence.index else (), ()
        for told in result.told:
            if before and told.takes:
                told = told._replace(regions=before, lends=True)
            if told.lends and not lent:
                lent = told.regions
            if told.disease is None:
                unmapped.append(_unmapped(told, sentence))
            else:
                chains.append(_chain(told, told.disease, sentence))
    return Decomposition(tuple(chains), tuple(unmapped), sentences, bearing, covered)


def decompose_sentences(texts: Sequence[str], lexicon: Lexicon) -> list[SentenceResult]:
    """Decompose sentences with compiled banks, each without its neighbours."""
    parses = parse_all(map(fold, texts), lexicon)
    return [_result(text, p) for text, p in zip(texts, parses, strict=True)]


def _result(text: str, p: Parse) -> SentenceResult:
    told: list[Told] = []
    for mention in p.mentions:
        told += _tell(mention, text, p)
    return SentenceResult(tuple(told), bool(told) or not any(term.silent for term in p.terms))


def rule_id(mention: Mention, p: Parse) -> str:
    """Name the bank entry, the cue and the bank version that made a mention.

    `diseases.effusion+no@1.0.0` is one; `~word` stands behind the entry when the phrase was found
    by its spelling only.
    """
    spelt = p.units.spelt.get(mention.first)
    cue = f"+{mention.cue}" if mention.cue else ""
    return f"{mention.observation.rule}{f'~{spelt}' if spelt else ''}{cue}@{p.lexicon.version}"


def _tell(mention: Mention, text: str, p: Parse) -> list[Told]:
    observation = mention.observation
    start, end = mention.start, mention.end
    severity = None
    if p.roles & Role.SEVERITY:
        phrase = p.terms[mention.left : mention.first + 1]
        severity = next((term.severity for term in phrase if term.severity), None)
    return [
        Told(
            text[start:end], start, end, disease, "stated" if observation.stated else "implied",
            mention.assertion, in_bank_order(mention.regions), observation.concepts, severity,
            mention.temporal, rule_id(mention, p), lends_on(mention), takes_back(p, mention),
        )
        for disease in observation.diseases or (None,)
    ]  # fmt: skip


def _chain(told: Told, disease: str, sentence: Sentence) -> Chain:
    return Chain(
        sentence.section, sentence.index, told.finding,
        told.start + sentence.start, told.end + sentence.start, disease, told.basis,
        told.assertion, told.regions, told.concepts, told.severity, told.temporal, (), told.rule,
    )  # fmt: skip


def _unmapped(told: Told, sentence: Sentence) -> Unmapped:
    return Unmapped(
        sentence.section, sentence.index, told.finding,
        told.start + sentence.start, told.end + sentence.start,
        told.assertion, told.regions, told.rule,
    )  # fmt: skip
