"""The decomposer as a spaCy component, and what scispaCy adds: tokens, misspellings, concept ids.

>>> import spacy
>>> nlp = spacy.blank("en")
>>> component = nlp.add_pipe("cot_chains")
>>> doc = nlp("Small left-sided effusion. No pneumothorax. The aorta is tortuous.")
>>> for span in doc.spans["findings"]:
...     print(span.text, "|", span.label_, "|", span._.record.assertion)
Small left-sided effusion | Pleural Effusion | positive
pneumothorax | Pneumothorax | negative
aorta is tortuous | unmapped | positive
>>> [chain.regions for chain in doc._.chains]
[('left lung',), ('whole lung',)]
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.decompose import Decomposer
from cot_builder.decompose.lexicon import WORD, Lexicon
from cot_builder.decompose.units import find_units, fold
from cot_builder.errors import UserError
from cot_builder.records import Chain, Decomposition, Row, Section, Unmapped
from cot_builder.sentences import split_sentences
from knowledge_banks import load_banks

try:
    from spacy.language import Language
    from spacy.tokens import Doc, Span
except ImportError as error:
    raise UserError(
        f"the component cot_chains needs spaCy ({error}); pip install 'cot-builder[sci]'"
    ) from None

Link = tuple[str, float]  # concept id, similarity from 0 to 1
Lookup = Callable[[list[str]], list[list[Link]]]

FINDINGS: Final = "findings"  # the span group that the component writes
LINK_THRESHOLD: Final = 0.8
LINKS_PER_FINDING: Final = 5

_KEY: Final = "cot_chains"
# The index proposes, letters decide: by trigrams alone "pnuemothorax" is nearest to "hemothorax".
_PROPOSED: Final = 0.5
_PROPOSALS: Final = 20
_ALIKE: Final = 0.86
_SHORTEST_MISSPELT: Final = 5
_LONGEST_TERM: Final = 2  # words; longer bank phrases are found by their parts
# Up to here each query is compared with every alias: exact, and nothing to build.
_EXACT_UP_TO: Final = 10_000


class Settings(NamedTuple):
    """The config of the component; `make_cot_chains` says what each key does."""

    banks: str | None = None
    section: str = "text"
    sections: str | None = None
    spelling: bool = False
    link: str | None = None


class CotChains:
    """Writes the findings of each document, with the text and the offsets that the build gives.

    `doc.spans["findings"]` holds one span per chain and unmapped finding in reading order, labelled
    with the disease or `unmapped` and widened to whole tokens; `span._.record` is the Chain or the
    Unmapped itself, with the exact characters. `doc._.chains` and `doc._.unmapped` are all of them;
    `span._.concept_ids` are (concept id, similarity) pairs where `link` is set.
    """

    def __init__(self, nlp: Language, settings: Settings) -> None:
        self.nlp = nlp
        self.settings = settings
        self._compile()

    def _compile(self) -> None:
        banks = self.settings.banks
        self.decomposer = Decomposer(load_banks(Path(banks) if banks else None))
        self._speller = Speller(self.decomposer) if self.settings.spelling else None
        self._lookup: Lookup | None = None
        self._links: dict[str, list[Link]] = {}

    # What was compiled is compiled again in the other process: indices and automata do not travel.
    def __getstate__(self) -> dict[str, Any]:
        return {"nlp": self.nlp, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    def __call__(self, doc: Doc) -> Doc:
        """Write findings, chains and unmapped findings into a document."""
        chains: list[Chain] = []
        unmapped: list[Unmapped] = []
        spans: list[Span] = []
        for section, start in self._sections(doc):
            found = self.decomposer.decompose([section])
            added = self._speller.more(section, found) if self._speller else ()
            records: list[Chain | Unmapped] = [*found.chains, *found.unmapped, *added]
            for record in records:
                if isinstance(record, Chain):
                    label, place = record.disease, f"chains:{len(chains)}"
                    chains.append(record)
                else:
                    label, place = "unmapped", f"unmapped:{len(unmapped)}"
                    unmapped.append(record)
                span = _span(doc, start + record.start, start + record.end, label, place)
                spans.append(span)
        doc.spans[FINDINGS] = sorted(spans, key=lambda span: (span.start, span.end))
        # Rows, not records: spaCy packs user_data into bytes between processes and on disk.
        doc.user_data[_KEY] = {
            "chains": [chain.to_row() for chain in chains],
            "unmapped": [finding.to_row() for finding in unmapped],
            "links": self._link({c.finding for c in chains} | {u.finding for u in unmapped}),
        }
        return doc

    def _sections(self, doc: Doc) -> Iterator[tuple[Section, int]]:
        group = self.settings.sections
        if group is None:
            yield Section(self.settings.section, doc.text), 0
        elif group not in doc.spans:
            raise UserError(
                f"cot_chains: sections = {group!r}: expected a span group of the document whose "
                f"labels are section names, as sections_doc makes it; got {list(doc.spans)}"
            )
        else:
            for span in doc.spans[group]:
                yield Section(span.label_, span.text), span.start_char

    def _link(self, findings: set[str]) -> dict[str, list[Link]]:
        if self.settings.link is None:
            return {}
        if self._lookup is None:  # not before: the linker may stand behind this component
            self._lookup = _pipe_or_file(self.nlp, self.settings.link)
        self._links.update(_link(sorted(findings - self._links.keys()), self._lookup))
        return {finding: self._links[finding] for finding in sorted(findings)}


@Language.factory(
    "cot_chains",
    assigns=["doc.spans", "doc._.chains", "doc._.unmapped", "span._.record", "span._.concept_ids"],
    default_config=Settings()._asdict(),
)
def make_cot_chains(
    nlp: Language,
    name: str,
    banks: str | None,
    section: str,
    sections: str | None,
    spelling: bool,
    link: str | None,
) -> CotChains:
    """Make the component from its config, which is all that a saved pipeline keeps of it.

    `banks`: folder of banks laid over the shipped ones. `section`: name of the one section that a
    document is; or `sections`: span group of the document whose labels are section names.
    `spelling`: add marked findings for misspelt phrases (needs scispaCy). `link`: where concept ids
    come from, a component of the pipeline that sets `ent._.kb_ents` on `doc.ents`, as scispaCy's
    linker does, or a knowledge base on disk as `link_findings` takes it.
    """
    return CotChains(nlp, Settings(banks, section, sections, spelling, link))


def sections_doc(nlp: Language, sections: Iterable[Section], *, group: str = "sections") -> Doc:
    """Make a document of a report's sections, for `nlp(doc)` with the config `sections = group`.

    >>> import spacy
    >>> nlp = spacy.blank("en")
    >>> component = nlp.add_pipe("cot_chains", config={"sections": "sections"})
    >>> report = [Section("findings", "Lungs are clear."), Section("impression", "No edema.")]
    >>> [(c.section, c.start, c.finding) for c in nlp(sections_doc(nlp, report))._.chains]
    [('findings', 0, 'Lungs are clear'), ('impression', 3, 'edema')]
    """
    gap, start, places = "\n\n", 0, []
    kept = [section for section in sections if section.text.strip()]
    for section in kept:
        places.append((start, start + len(section.text), section.name))
        start += len(section.text) + len(gap)
    doc = nlp.make_doc(gap.join(section.text for section in kept))
    doc.spans[group] = [_span(doc, start, end, name) for start, end, name in places]
    for span, section in zip(doc.spans[group], kept, strict=True):
        if span.text != section.text:
            raise UserError(
                f"section {section.name!r}: expected text without white space around it, as "
                f"split_sections returns it; got {section.text[:40]!r}"
            )
    return doc


def scispacy_tokenizer(nlp: Language) -> Callable[[str], Doc]:
    """Return scispaCy's rule tokenizer, which keeps `port-a-cath` and `left-sided` whole.

    Set it before use: `nlp.tokenizer = scispacy_tokenizer(nlp)`. Raises UserError without scispaCy.
    """
    try:
        from scispacy.custom_tokenizer import combined_rule_tokenizer
    except ImportError as error:
        raise _missing("the tokenizer", error) from None
    tokenizer: Callable[[str], Doc] = combined_rule_tokenizer(nlp)
    return tokenizer


def _span(doc: Doc, start: int, end: int, label: str, place: str = "") -> Span:
    span = doc.char_span(start, end, label=label, alignment_mode="expand", span_id=place)
    assert span is not None, "characters of a document lie in its tokens"
    return span


# -- extensions


def _chains(doc: Doc) -> tuple[Chain, ...]:
    return tuple(map(Chain.from_row, doc.user_data.get(_KEY, {}).get("chains", ())))


def _unmapped(doc: Doc) -> tuple[Unmapped, ...]:
    return tuple(map(Unmapped.from_row, doc.user_data.get(_KEY, {}).get("unmapped", ())))


def _record(span: Span) -> Chain | Unmapped | None:
    kind, _, place = span.id_.partition(":")
    rows = span.doc.user_data.get(_KEY, {}).get(kind)
    if rows is None or not place.isdigit():
        return None
    return (Chain if kind == "chains" else Unmapped).from_row(rows[int(place)])


def _concept_ids(span: Span) -> list[Link]:
    record = _record(span)
    links = span.doc.user_data.get(_KEY, {}).get("links", {})
    return [(concept, score) for concept, score in links.get(record.finding if record else "", ())]


# `force`, since a module that is imported again under pytest or in a notebook sets them again.
Doc.set_extension("chains", getter=_chains, force=True)
Doc.set_extension("unmapped", getter=_unmapped, force=True)
Span.set_extension("record", getter=_record, force=True)
Span.set_extension("concept_ids", getter=_concept_ids, force=True)


# -- concept ids


def link_findings(
    findings: Iterable[str],
    kb: Path,
    *,
    threshold: float = LINK_THRESHOLD,
    limit: int = LINKS_PER_FINDING,
) -> dict[str, list[Link]]:
    """Return the concepts of each distinct finding, the most similar first; none is an empty list.

    `kb` is a JSONL file of concepts in scispaCy's form (`concept_id`, `canonical_name`, `aliases`,
    and optionally `types`, `definition`), or a folder with one such file and, for a large one, the
    four index files that scispaCy makes of it, one of them a pickle: take none that you do not
    trust. Similarity is the cosine of TF-IDF letter trigrams. A finding that is no alias as a whole
    is linked by its longest parts that are. Raises UserError for a missing or malformed knowledge
    base, and without scispaCy.
    """
    return _link(dict.fromkeys(findings), _file_lookup(kb, threshold=threshold, limit=limit))


def _link(findings: Iterable[str], lookup: Lookup) -> dict[str, list[Link]]:
    words = {finding: re.findall(r"[\w/'-]+", finding) for finding in findings}
    links: dict[str, list[Link]] = {finding: [] for finding in words}
    for size in range(max(map(len, words.values()), default=0), 0, -1):
        parts = {
            finding: [" ".join(own[at : at + size]) for at in range(len(own) - size + 1)]
            for finding, own in words.items()
            if not links[finding]
        }
        phrases = list(dict.fromkeys(part for own in parts.values() for part in own))
        found = dict(zip(phrases, lookup(phrases), strict=True))
        for finding, own in parts.items():
            best: dict[str, float] = {}
            for concept, score in (link for part in own for link in found[part]):
                best[concept] = max(score, best.get(concept, 0.0))
            links[finding] = _ranked(best)
    return links


def _ranked(best: dict[str, float]) -> list[Link]:
    return sorted(best.items(), key=lambda link: (-link[1], link[0]))


def _pipe_or_file(nlp: Language, link: str) -> Lookup:
    if link in nlp.pipe_names:
        return _pipe_lookup(nlp, link)
    if Path(link).exists():
        return _file_lookup(Path(link))
    raise UserError(
        f"cot_chains: link = {link!r}: expected a component of this pipeline "
        f"({', '.join(nlp.pipe_names)}) or a knowledge base on disk, a JSONL file or its folder"
    )


def _pipe_lookup(nlp: Language, name: str) -> Lookup:
    """Ask a linker of the pipeline, by its contract: entities in, `ent._.kb_ents` out."""
    linker = nlp.get_pipe(name)

    def lookup(phrases: list[str]) -> list[list[Link]]:
        doc = Doc(nlp.vocab, words=phrases)  # one token a phrase, so that each is one entity
        doc.ents = [Span(doc, at, at + 1, label="FINDING") for at in range(len(phrases))]
        doc = linker(doc)
        if not Span.has_extension("kb_ents"):
            raise UserError(
                f"cot_chains: link = {name!r}: expected a linker that sets `ent._.kb_ents`, as "
                f"scispaCy's does; this component is a {type(linker).__name__}"
            )
        return [
            [(concept, float(score)) for concept, score in entity._.kb_ents] for entity in doc.ents
        ]

    return lookup


def _file_lookup(
    kb: Path, *, threshold: float = LINK_THRESHOLD, limit: int = LINKS_PER_FINDING
) -> Lookup:
    file = kb_file(kb)
    generator = _generator_of(file, file.stat().st_mtime_ns)

    def lookup(phrases: list[str]) -> list[list[Link]]:
        found = []
        for candidates in generator(phrases, 30):
            best = {c.concept_id: round(max(c.similarities), 4) for c in candidates}
            found.append(_ranked({c: s for c, s in best.items() if s >= threshold})[:limit])
        return found

    return lookup


def kb_file(kb: Path) -> Path:
    """Return the JSONL file of a knowledge base, which may lie alone in a folder; or UserError."""
    if kb.is_file():
        return kb
    files = sorted(kb.glob("*.jsonl"))
    if len(files) != 1:
        raise UserError(
            f"--link {kb}: expected a JSONL file of concepts or a folder with one, got "
            f"{', '.join(file.name for file in files) or 'none'}"
        )
    return files[0]


@lru_cache(maxsize=4)
def _generator_of(file: Path, changed: int) -> Any:
    """Return the candidate generator of a knowledge base; a changed file is another one."""
    return _generator(_read_concepts(file), file.parent)


def _read_concepts(file: Path) -> Iterator[Row]:
    known = ("concept_id", "canonical_name", "aliases", "types", "definition")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                names = [row["canonical_name"], *row["aliases"]]
                fits = (
                    isinstance(row["concept_id"], str)
                    and isinstance(row["aliases"], list)
                    and all(isinstance(name, str) and name.strip() for name in names)
                )
            except (ValueError, KeyError, TypeError):
                fits = False
            if not fits:
                raise UserError(
                    f'{file}:{number}: expected a concept such as {{"concept_id": "C0032326", '
                    f'"canonical_name": "Pneumothorax", "aliases": ["PTX"]}}, '
                    f"got {line.strip()[:80]!r}"
                )
            yield {key: row[key] for key in known if row.get(key) is not None}


def _generator(concepts: Iterable[Row], folder: Path | None = None) -> Any:
    """Return scispaCy's CandidateGenerator over concepts, with the index of a folder that has one.

    The index is built here, since scispaCy's own builder wants trigrams of ten aliases each, 60
    threads and an older scipy.
    """
    try:
        import nmslib
        from scispacy.candidate_generation import CandidateGenerator, LinkerPaths
        from scispacy.linking_utils import Entity, KnowledgeBase
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise _missing("a knowledge base", error) from None
    kb = KnowledgeBase([Entity(**row) for row in concepts])
    if not kb.alias_to_cuis:
        raise UserError(f"the knowledge base in {folder} is empty; expected one concept a line")
    if folder and (paths := LinkerPaths.from_directory(folder)).is_locally_cached():
        names, vectorizer, index = paths.load()
        return CandidateGenerator(index, vectorizer, names, kb)
    names = sorted(kb.alias_to_cuis)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), min_df=1)
    vectors = vectorizer.fit_transform(names).astype("float32")
    exact = len(names) <= _EXACT_UP_TO
    index = nmslib.init(
        method="brute_force" if exact else "hnsw",
        space="cosinesimil_sparse",
        data_type=nmslib.DataType.SPARSE_VECTOR,
    )
    index.addDataPointBatch(vectors)
    # One thread: with more, the index and so the neighbours differ from run to run.
    index.createIndex({} if exact else {"M": 30, "efConstruction": 200, "indexThreadQty": 1})
    if not exact:
        index.setQueryTimeParams({"efSearch": 200})
    return CandidateGenerator(index, vectorizer, names, kb)


def _missing(what: str, error: ImportError) -> UserError:
    return UserError(f"{what} needs scispaCy ({error}); pip install 'cot-builder[sci]'")


# -- misspellings


def bank_concepts(lexicon: Lexicon) -> Iterator[Row]:
    """Yield the bank entries and their short phrases as concepts of a knowledge base."""
    phrases: dict[str, list[str]] = {}
    for phrase, term in lexicon.terms.items():
        if len(phrase.split()) > _LONGEST_TERM or not phrase.replace(" ", "").isalpha():
            continue
        if term.observation is not None:
            phrases.setdefault(term.observation.rule, []).append(phrase)
        elif term.structure is not None and not term.adjective:
            phrases.setdefault(f"structures.{term.structure.id}", []).append(phrase)
    for concept, aliases in sorted(phrases.items()):
        yield {"concept_id": concept, "canonical_name": aliases[0], "aliases": sorted(aliases)}


def write_knowledge_base(lexicon: Lexicon, path: Path) -> None:
    """Write the bank's phrases as a JSONL knowledge base, for scispaCy or as `link`."""
    lines = (json.dumps(row, ensure_ascii=False) for row in bank_concepts(lexicon))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class Respelling(NamedTuple):
    """A stretch of a text and the bank phrase that it is read as."""

    start: int
    end: int
    phrase: str


class Speller:
    """Reads misspelt phrases as phrases of the banks, through a knowledge base of them."""

    def __init__(self, decomposer: Decomposer) -> None:
        self.decomposer = decomposer
        self.lexicon = decomposer.lexicon
        self._generator = _generator(bank_concepts(self.lexicon))
        self._known: dict[str, tuple[float, str]] = {}

    def more(self, section: Section, found: Decomposition) -> list[Chain | Unmapped]:
        """Return what a section holds beside the found, once its misspelt phrases are read right.

        Each finding is marked: its rule names the phrase read,
        `diseases.pneumothorax≈pneumothorax@1.0.0`. No finding of the text as it stands is changed.
        """
        fixes = self.respellings(section)
        if not fixes:
            return []
        text, places = _respelt(section.text, fixes)
        read = self.decomposer.decompose([section._replace(text=text)])
        taken = [(chain.start, chain.end) for chain in found.chains]
        taken += [(finding.start, finding.end) for finding in found.unmapped]
        added: list[Chain | Unmapped] = []
        records: list[Chain | Unmapped] = [*read.chains, *read.unmapped]
        for record in records:
            start, end = places[record.start][0], places[record.end - 1][1]
            fix = next((f for f in fixes if start < f.end and f.start < end), None)
            if fix and not any(start < right and left < end for left, right in taken):
                finding, rule = section.text[start:end], _marked(record.rule, fix)
                added.append(replace(record, finding=finding, start=start, end=end, rule=rule))
        return added

    def respellings(self, section: Section) -> list[Respelling]:
        """Return what to read differently in a section, in order and apart from each other."""
        options: list[tuple[float, Respelling]] = []
        for sentence in split_sentences(section):
            options += self._options(fold(sentence.text), sentence.start)
        chosen: list[Respelling] = []
        for _, fix in sorted(options, key=lambda option: (-option[0], option[1])):
            if all(fix.end <= other.start or other.end <= fix.start for other in chosen):
                chosen.append(fix)
        return sorted(chosen)

    def _options(self, folded: str, offset: int) -> Iterator[tuple[float, Respelling]]:
        """Yield the readings of unknown words, alone or with a neighbour ("pneumo thorx")."""
        units = find_units(folded, self.lexicon)
        starts, ends = units.starts, units.ends
        words = [folded[start:end] for start, end in zip(starts, ends, strict=True)]
        unknown = [
            term is WORD and word not in self.lexicon.words and word.isalpha()
            for term, word in zip(units.terms, words, strict=True)
        ]
        windows = [
            (first, last)
            for first in range(len(words))
            for last in range(first, min(first + _LONGEST_TERM, len(words)))
            if any(unknown[first : last + 1])
            and folded[starts[first] : ends[last]].replace(" ", "").isalpha()
        ]
        for first, last in windows:
            score, phrase = self._nearest(folded[starts[first] : ends[last]])
            # A known word is not to be read away: "left pnuemothorax" keeps its side.
            kept = all(words[at] in phrase for at in range(first, last + 1) if not unknown[at])
            if phrase and kept:
                place = offset + starts[first], offset + ends[last]
                yield score, Respelling(*place, phrase)

    def _nearest(self, phrase: str) -> tuple[float, str]:
        if phrase not in self._known:
            self._known[phrase] = self._search(phrase)
        return self._known[phrase]

    def _search(self, phrase: str) -> tuple[float, str]:
        if len(phrase) < _SHORTEST_MISSPELT:
            return 0.0, ""
        (candidates,) = self._generator([phrase], _PROPOSALS)
        names = {
            name
            for candidate in candidates
            for name, score in zip(candidate.aliases, candidate.similarities, strict=True)
            if score >= _PROPOSED
            and name[0] == phrase[0]
            and name.count(" ") <= phrase.count(" ")  # "peripherally" is no "peripheral line"
        }
        matcher = SequenceMatcher(None, b=phrase, autojunk=False)
        ranked = []
        for name in names:
            matcher.set_seq1(name)
            ranked.append((matcher.ratio(), name))
        best = max(ranked, default=(0.0, ""))
        return best if best[0] >= _ALIKE else (0.0, "")


def _respelt(text: str, fixes: list[Respelling]) -> tuple[str, list[tuple[int, int]]]:
    """Return a text read differently, and the stretch of the text that each of its characters is.

    >>> _respelt("No edmea.", [Respelling(3, 8, "edema")])[0]
    'No edema.'
    """
    pieces: list[str] = []
    places: list[tuple[int, int]] = []
    done = 0
    for fix in fixes:
        pieces += text[done : fix.start], fix.phrase
        places += [(at, at + 1) for at in range(done, fix.start)]
        places += [(fix.start, fix.end)] * len(fix.phrase)
        done = fix.end
    places += [(at, at + 1) for at in range(done, len(text))]
    return "".join([*pieces, text[done:]]), places


def _marked(rule: str, fix: Respelling) -> str:
    entry = re.match(r"[^~+@]*", rule)
    end = entry.end() if entry else 0
    return f"{rule[:end]}≈{fix.phrase}{rule[end:]}"
