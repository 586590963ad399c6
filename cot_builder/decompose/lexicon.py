"""Compile the banks into one table of phrases, each a term with its roles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from rapidfuzz import process
from rapidfuzz.distance import OSA

from cot_builder.records import Assertion
from knowledge_banks import Banks, expand

# A word, up to three underscores (a mask), or a sign; white space parts them.
TOKEN: Final = re.compile(r"[^\W_]+|_{1,3}|[^\w\s]")

Side = Literal["left", "right", "both"]
Row: TypeAlias = Mapping[str, Any]  # a table of a bank


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A kind of place: its regions by side, or the same ones whatever the side."""

    id: str
    by_side: dict[Side | None, frozenset[str]]
    sided: bool


Place: TypeAlias = tuple[Side | None, Site | None, bool]  # side, site, weak


class Observation(NamedTuple):
    """What a phrase stands for: one or more labels, or none of them (unmapped)."""

    rule: str
    diseases: tuple[str, ...]
    site: Site
    stated: bool = True
    concepts: tuple[str, ...] = ()
    fixed: bool = False  # lies at its site, but for sites in `places`
    fact: bool = False  # cannot be hedged ("post-surgical change")
    places: frozenset[str] = frozenset()
    part: bool = False  # of a device ("leads"): told only where the sentence has no whole one
    says: Assertion = "positive"  # what the phrase asserts by itself ("extubation": negative)

    @property
    def normal(self) -> bool:
        """Tell whether it is the label No Finding."""
        return self.diseases == ("No Finding",)

    @property
    def device(self) -> bool:
        """Tell whether it is a support device."""
        return "Support Devices" in self.diseases


class Meaning(NamedTuple):
    """What one state of one structure says."""

    observation: Observation
    assertion: Assertion


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """A structure of the chest and what its states mean; `normal` is the verdict of normality."""

    id: str
    site: Site
    means: dict[str, Meaning]
    normal: Observation


class Cue(NamedTuple):
    """A word that turns observations around."""

    id: str = ""
    means: str = ""
    nested: bool = False


NO_CUE: Final = Cue()


@dataclass(slots=True, eq=False)
class Term:
    """One phrase of the banks with all its roles.

    A phrase may play several: "hilar" is a place and a structure. A word that is no phrase of the
    banks has none, and no text.
    """

    text: str
    observation: Observation | None = None
    structure: Structure | None = None
    adjective: bool = False  # of a structure: "cardiac"
    shape: bool = False
    generic: bool = False
    states: tuple[str, ...] = ()
    site: Site | None = None
    site_side: Side | None = None
    weak: bool = False
    side: Side | None = None
    forward: Cue = NO_CUE
    backward: Cue = NO_CUE
    mask: bool = False
    severity: str | None = None
    temporal: str | None = None
    plain: bool = False
    stop: bool = False
    verb: bool = False
    preposition: bool = False
    positive_start: bool = False
    companion: bool = False
    ignore: bool = False
    silent: bool = False
    outside: bool = False
    determiner: bool = False
    evidence: bool = False
    told_before: bool = False
    past: bool = False
    accompanies: bool = False
    adverb: bool = False
    filler: bool = False
    relative: bool = False
    verdict: bool = False
    stands: bool = False  # a pronoun, or a bare side, which may stand for a finding
    # "," is a comma, "and", "or" ("versus" too); ";" ends a clause, ":" and brackets part it.
    join: str = ""
    # Derived from the roles.
    place: Place | None = None  # the side and site that it names
    modifier: bool = False  # belongs to the phrase of an observation
    lists: bool = False  # joins the items of a list
    breaks: bool = False  # ends the reach of a cue
    roles: int = 0  # bits of Role: a pass is left out where no term of a sentence has its role
    inner: tuple[Place, ...] = ()  # the places in an observation's own phrase ("apical cap")


WORD: Final = Term("")
_ROLES_OF: Final = attrgetter(*(f.name for f in fields(Term) if f.name != "text"))


class Role:
    """Bits that tell what a sentence holds, so that its passes need not look."""

    OUTSIDE = 1
    STRUCTURE = 2
    FORWARD = 4
    BACKWARD = 8
    MASK = 16
    OR = 32
    PLACE = 64
    TOLD_BEFORE = 128
    OBSERVATION = 256
    PART = 512
    STATE = 1024
    GENERIC = 2048
    SEVERITY = 4096
    COLON = 8192
    STANDS = 16384
    WHERE = 32768


def _roles(term: Term) -> int:
    return (
        Role.OUTSIDE * term.outside
        | Role.STRUCTURE * (term.structure is not None or term.generic)
        | Role.FORWARD * bool(term.forward.means)
        | Role.BACKWARD * bool(term.backward.means)
        | Role.MASK * term.mask
        | Role.OR * (term.join == "or")
        | Role.PLACE * (term.place is not None)
        | Role.TOLD_BEFORE * term.told_before
        | Role.OBSERVATION * (term.observation is not None)
        | Role.PART * (term.observation is not None and term.observation.part)
        | Role.STATE * bool(term.states)
        | Role.GENERIC * term.generic
        | Role.SEVERITY * (term.severity is not None)
        | Role.COLON * (term.join == ":")
        | Role.STANDS * term.stands
        | Role.WHERE * (term.text == "where")
    )


# A token of phrases: the term that ends with it, and the tokens that may follow.
Node: TypeAlias = "tuple[Term | None, dict[str, Node] | None]"


class Lexicon(NamedTuple):
    """The compiled banks."""

    phrases: dict[str, Node]
    terms: dict[str, Term]
    words: frozenset[str]
    spelling: Callable[[str], str]
    ranks: dict[str, int]
    whole_chest: Observation
    outside: frozenset[str]
    chest: frozenset[str]
    refers: frozenset[str]
    refers_within: frozenset[str]
    version: str


_SIGNS: Final = {",": ",", ";": ";", ":": ":", "(": "(", ")": "(", "/": "and", "&": "and"}
_SHORTEST_SPELT: Final = 8  # letters of a bank word that a misspelt one may be taken for


class _Terms(dict[str, Term]):
    """Terms by phrase; a phrase that is asked for the first time gets one."""

    def __missing__(self, phrase: str) -> Term:
        term = self[phrase] = Term(phrase)
        return term

    def each(self, phrases: Iterable[str]) -> Iterator[Term]:
        """Yield the terms of bank phrases, written out."""
        return (self[word] for phrase in phrases for word in expand(phrase))


def compile_lexicon(banks: Banks) -> Lexicon:
    """Compile banks; the result depends on nothing but their content."""
    terms = _Terms()
    sites = {row["id"]: _site(row) for row in banks.regions["site"]}
    signs = _add_observations(terms, banks, sites)
    normal = {
        site.id: Observation(f"structures.{site.id}", ("No Finding",), site)
        for site in sites.values()
    }
    _add_structures(terms, banks, sites, signs, normal)
    _add_places(terms, banks, sites)
    _add_cues(terms, banks)
    _add_attributes(terms, banks.attributes)
    _derive(terms)
    shared = _shared(terms)
    known = chain(terms, banks.attributes["lookalikes"]["words"])
    return Lexicon(
        phrases=_tree(shared),
        terms=shared,
        words=frozenset(word for phrase in known for word in phrase.split()),
        spelling=_speller(terms),
        ranks={state: place for place, state in enumerate(banks.states["rank"]["order"])},
        whole_chest=normal["heart_and_lungs"]._replace(rule="structures.generic"),
        outside=frozenset(banks.attributes["body_parts"]["outside"]),
        chest=frozenset(banks.attributes["body_parts"]["chest"]),
        refers=frozenset(banks.attributes["refers"]["words"]),
        refers_within=frozenset(banks.attributes["refers"]["within"]),
        version=banks.version,
    )


def _tree(terms: Mapping[str, Term]) -> dict[str, Node]:
    """Order terms by their tokens: each leads to the term that ends there, and to what goes on."""
    tree: dict[str, Node] = {}
    for phrase, term in terms.items():
        *path, last = TOKEN.findall(phrase)
        level = tree
        for token in path:
            ends, further = level.get(token, (None, None))
            if further is None:
                further = {}
                level[token] = (ends, further)
            level = further
        level[last] = (term, level.get(last, (None, None))[1])
    return tree


def _shared(terms: Mapping[str, Term]) -> dict[str, Term]:
    """Let observations' phrases of the same roles be one term; the text of it is nowhere read.

    A twentieth of the terms is left: less for the processor's caches, and for the collector.
    """
    first: dict[tuple[object, ...], Term] = {}
    return {
        phrase: first.setdefault(_ROLES_OF(term), term) if term.observation else term
        for phrase, term in terms.items()
    }


# -- observations


def _add_observations(
    terms: _Terms, banks: Banks, sites: Mapping[str, Site]
) -> dict[str, Observation]:
    """Add the phrases of observations; return the signs by id.

    Of two banks that claim one phrase, the later of this order has it: unmapped findings, devices,
    signs, labels.
    """

    def add(rule: str, row: Row, labels: tuple[str, ...], *, stated: bool = True) -> Observation:
        observation = _observation(f"{rule}.{row['id']}", row, labels, sites, stated=stated)
        for term in terms.each(row["phrases"]):
            term.observation = observation
        return observation

    for row in banks.unmapped["finding"]:
        add("unmapped", row, (), stated=False)
    for row in banks.devices["device"]:
        add("devices", row, ("Support Devices",))
    signs = {
        row["id"]: add("signs", row, (row["disease"],), stated=row.get("stated", False))
        for row in banks.signs["sign"]
    }
    for disease in banks.diseases["disease"]:
        for row in disease.get("group", ()):
            add("diseases", row, (disease["name"], *row.get("also", ())))
    return signs


def _observation(
    rule: str, row: Row, diseases: tuple[str, ...], sites: Mapping[str, Site], *, stated: bool
) -> Observation:
    return Observation(
        rule=rule,
        diseases=diseases,
        site=sites[row["site"]],
        stated=stated,
        concepts=tuple(row.get("concepts", ())),
        fixed=row.get("fixed", False),
        fact=row.get("fact", False),
        places=frozenset(row.get("places", ())),
        part=row.get("part", False),
        says=row.get("says", "positive"),
    )


# -- structures and their states


def _add_structures(
    terms: _Terms,
    banks: Banks,
    sites: Mapping[str, Site],
    signs: Mapping[str, Observation],
    normal: Mapping[str, Observation],
) -> None:
    rows = banks.structures["structure"]
    structures = [_structure(row, sites[row["site"]], signs, normal) for row in rows]
    # A noun of one structure is no adjective of another, and the first structure has it.
    for key in ("nouns", "adjectives"):
        for row, structure in zip(rows, structures, strict=True):
            for term in terms.each(row.get(key, ())):
                if term.structure is None:
                    term.structure, term.adjective = structure, key == "adjectives"
    for term in terms.each(banks.structures["shapes"]):
        term.shape = True
    for term in terms.each(banks.structures["generics"]):
        term.generic = True
    for state, phrases in banks.states["state"].items():
        for term in terms.each(phrases):
            term.states = (*term.states, state)


def _structure(
    row: Row, site: Site, signs: Mapping[str, Observation], normal: Mapping[str, Observation]
) -> Structure:
    rule = f"structures.{row['id']}"
    means = {
        state: _meaning(f"{rule}.{state}", text, site, signs, normal[site.id])
        for state, text in row["means"].items()
        if text
    }
    return Structure(row["id"], site, means, normal[site.id]._replace(rule=f"{rule}.generic"))


def _meaning(
    rule: str, text: str, site: Site, signs: Mapping[str, Observation], normal: Observation
) -> Meaning:
    """Read a state: "No Finding", "sign ID", "LABEL ASSERTION" or "unmapped ASSERTION"."""
    if text == "No Finding":
        return Meaning(normal._replace(rule=rule), "positive")
    head, _, tail = text.rpartition(" ")
    if head == "sign":
        sign = signs[tail]
        where = site if site.sided else sign.site
        return Meaning(sign._replace(rule=rule, site=where), "positive")
    labels = () if head == "unmapped" else (head,)
    observation = Observation(rule, labels, site, stated=bool(labels), fixed=not site.sided)
    return Meaning(observation, _ASSERTIONS[tail])


_ASSERTIONS: Final[dict[str, Assertion]] = {
    "positive": "positive", "negative": "negative", "uncertain": "uncertain",
}  # fmt: skip


# -- places


def _site(row: Row) -> Site:
    same = row.get("all")
    by_side = {side: frozenset(same or row[side or "unsided"]) for side in _SIDES}
    return Site(row["id"], by_side, sided=same is None)


_SIDES: Final[tuple[Side | None, ...]] = ("left", "right", "both", None)


def _add_places(terms: _Terms, banks: Banks, sites: Mapping[str, Site]) -> None:
    for row in banks.regions["site"]:
        site = sites[row["id"]]
        for side in _SIDES:
            if side is not None:
                for term in terms.each(row.get(f"{side}_phrases", ())):
                    term.site, term.site_side = site, side
        for term in terms.each(row.get("phrases", ())):
            term.site = term.site or site
        for key, side in (("weak_phrases", None), ("weak_both_phrases", "both")):
            for term in terms.each(row.get(key, ())):
                if term.site is None:
                    term.site, term.site_side, term.weak = site, side, True
    for row in banks.regions["side"]:
        for term in terms.each(row["phrases"]):
            term.side = row["id"]


# -- cues and attributes


def _add_cues(terms: _Terms, banks: Banks) -> None:
    for row in banks.cues["cue"]:
        cue = Cue(row["id"], row["means"], row.get("nested", False))
        for term in terms.each(row["phrases"]):
            if cue.means == "mask":
                term.mask = True
            elif row["reach"] == "forward":
                term.forward = cue
            else:
                term.backward = cue


_ROLES: Final = {
    "plain": "plain", "stop": "stop", "verbs": "verb", "prepositions": "preposition",
    "positive_start": "positive_start", "companions": "companion",
}  # fmt: skip


def _add_attributes(terms: _Terms, attributes: Row) -> None:
    for severity, phrases in attributes["severity"].items():
        for term in terms.each(phrases):
            term.severity = severity
    for temporal, phrases in attributes["temporal"].items():
        for term in terms.each(phrases):
            term.temporal = term.temporal or temporal
    roles = {role: attributes[table]["words"] for table, role in _ROLES.items()}
    for role, phrases in {
        **roles,
        **attributes["small_words"],  # each list by the field of Term that it fills
        "ignore": attributes["ignore"]["phrases"],
        "silent": attributes["silent"]["phrases"],
        "outside": attributes["body_parts"]["terms"],
    }.items():
        for term in terms.each(phrases):
            setattr(term, role, True)
    for sign, join in _SIGNS.items():
        terms[sign].join = join
    for join, phrases in attributes["joins"].items():
        for term in terms.each(phrases):
            term.join = join


# -- what follows from the roles


def _derive(terms: Mapping[str, Term]) -> None:
    for term in terms.values():
        if term.site is not None or term.side is not None:
            term.place = (term.side or term.site_side, term.site, term.weak)
        term.modifier = bool(term.plain or term.severity or term.temporal or term.mask)
        term.lists = term.join in (",", "and", "or")
        term.breaks = term.join == ";" or term.forward.means == "end"
        bare = term.side in ("left", "right") and term.site is None
        term.stands = term.observation is None and (bare or term.stands)
        term.roles = _roles(term)
    places = {phrase: term.place for phrase, term in terms.items() if _tells_side(term)}
    for phrase, term in terms.items():
        if term.observation is not None and not term.observation.fixed and " " in phrase:
            term.inner = _inner_places(phrase, places)


def _tells_side(term: Term) -> bool:
    sided = term.site is not None and term.site.sided and not term.weak
    return term.side is not None or sided


def _inner_places(phrase: str, places: Mapping[str, Place | None]) -> tuple[Place, ...]:
    """Return the places that a phrase names, pairs of words first ("minor fissure")."""
    words = phrase.split()
    pairs = map(" ".join, pairwise(words)) if len(words) > 2 else ()
    found: list[Place] = []
    seen = ""
    for part in chain(pairs, words):
        place = places.get(part)
        if place is not None and part not in seen:
            found.append(place)
            seen = f"{seen} {part}"
    return tuple(found)


# -- misspellings


def _speller(terms: Mapping[str, Term]) -> Callable[[str], str]:
    """Return a function that finds the one bank word that a misspelt word is nearly, or "".

    One slip (a letter wrong, missing, doubled or swapped) in eight letters, two in fourteen.
    """
    heads = sorted(
        phrase
        for phrase, term in terms.items()
        if term.observation is not None and len(phrase) >= _SHORTEST_SPELT and phrase.isalpha()
    )

    @cache
    def as_long_as(length: int) -> list[str]:
        return [head for head in heads if abs(len(head) - length) < 0.16 * max(len(head), length)]

    @lru_cache(maxsize=100_000)
    def spelling(word: str) -> str:
        near = as_long_as(len(word))
        found = process.extractOne(word, near, scorer=OSA.normalized_similarity, score_cutoff=0.85)
        return found[0] if found and found[0][0] == word[0] else ""

    return spelling
