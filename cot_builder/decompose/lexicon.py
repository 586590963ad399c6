"""Compile the banks into one Aho–Corasick automaton of terms, each with every role its phrase can play."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import ahocorasick
from rapidfuzz import process
from rapidfuzz.distance import OSA

from cot_builder.records import Assertion
from knowledge_banks import Banks, expand

Side = Literal["left", "right", "both"]
Place = tuple[str | None, "Site | None", bool]  # side, site, weak


class Site(NamedTuple):
    """A kind of place: its regions by side, or the same ones whatever the side."""

    id: str
    by_side: dict[str | None, frozenset[str]]
    sided: bool


class Observation(NamedTuple):
    """What a phrase stands for: one or more labels, or none of them (unmapped)."""

    rule: str
    diseases: tuple[str, ...]
    stated: bool
    concepts: tuple[str, ...]
    site: Site
    fixed: bool
    fact: bool
    places: frozenset[str]
    part: bool = False
    says: Assertion = "positive"  # what the phrase asserts by itself ("extubation": negative)


class Meaning(NamedTuple):
    """What one state of one structure says; no observation means No Finding."""

    observation: Observation
    assertion: Assertion


class Structure(NamedTuple):
    """A structure of the chest and what its states mean."""

    id: str
    site: Site
    means: dict[str, Meaning]
    normal: Observation


class Cue(NamedTuple):
    """A word that turns observations around."""

    id: str
    means: str
    nested: bool


@dataclass(slots=True, eq=False)
class Term:
    """One phrase of the banks with all its roles; a phrase may play several ("hilar": a place, and a structure)."""

    text: str
    observation: Observation | None = None
    structure: Structure | None = None
    adjective: bool = False
    shape: bool = False
    generic: bool = False
    states: tuple[str, ...] = ()
    site: Site | None = None
    site_side: Side | None = None
    weak: bool = False
    side: Side | None = None
    forward: Cue | None = None
    backward: Cue | None = None
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
    mask: bool = False
    outside: bool = False
    # Joins: "," is a comma, "and", "or" ("/", "versus" too), ";" ends a clause, ":" and brackets part it.
    join: str = ""
    inner: tuple[
        Place, ...
    ] = ()  # derived: the places that an observation's own phrase names ("apical cap")
    place: bool = False  # derived: names a site or a side
    modifier: bool = False  # derived: belongs to the phrase of an observation


class Lexicon(NamedTuple):
    """The compiled banks."""

    automaton: Any
    terms: dict[str, Term]
    words: frozenset[str]
    spelling: Callable[[str], str]
    ranks: dict[str, int]
    exclusive: frozenset[str]
    whole_chest: Observation
    outside: frozenset[str]
    chest: frozenset[str]
    version: str


# Of these a structure has one: the first in the rank of states.toml.
EXCLUSIVE: Final = frozenset({"borderline", "enlarged", "normal", "stable", "hidden"})
WORD: Final = Term("")
_JOINS: Final = {
    ",": ",", "and": "and", "or": "or", "nor": "or", "and/or": "or", "/": "and", "versus": "or", "vs": "or",
    "vs.": "or", ";": ";", ":": ":", "(": "(", ")": "(", "&": "and", "plus": "and", "as well as": "and",
    "or possibly": "or", "and possibly": "and", "or other": "or", "and or": "or",
}  # fmt: skip


def compile_lexicon(banks: Banks) -> Lexicon:
    """Compile banks; the result depends on nothing but their content."""
    terms: dict[str, Term] = {}

    def term(phrase: str) -> Term:
        found = terms.get(phrase)
        if found is None:
            found = terms[phrase] = Term(phrase)
        return found

    def each(phrases: Iterable[str]) -> Iterable[Term]:
        return (term(word) for phrase in phrases for word in expand(phrase))

    sites = {row["id"]: _site(row) for row in banks.regions["site"]}
    normal = {site.id: _no_finding(site) for site in sites.values()}
    signs: dict[str, Observation] = {}

    # Later banks lose to earlier ones where both claim a phrase: a label before a sign before an unmapped finding.
    for row in banks.unmapped["finding"]:
        observation = _observation(f"unmapped.{row['id']}", row, (), sites)
        for entry in each(row["phrases"]):
            entry.observation = observation
    for row in banks.devices["device"]:
        observation = _observation(f"devices.{row['id']}", row, ("Support Devices",), sites)
        for entry in each(row["phrases"]):
            entry.observation = observation
    for row in banks.signs["sign"]:
        observation = _observation(
            f"signs.{row['id']}", row, (row["disease"],), sites, stated=row.get("stated", False)
        )
        signs[row["id"]] = observation
        for entry in each(row["phrases"]):
            entry.observation = observation
    for disease in banks.diseases["disease"]:
        for row in disease.get("group", ()):
            labels = (disease["name"], *row.get("also", ()))
            observation = _observation(f"diseases.{row['id']}", row, labels, sites)
            for entry in each(row["phrases"]):
                entry.observation = observation
    structures = [
        (row, _structure(row, sites, signs, normal)) for row in banks.structures["structure"]
    ]
    for adjective, key in ((False, "nouns"), (True, "adjectives")):
        for row, structure in structures:
            for entry in each(row.get(key, ())):
                if entry.structure is None:
                    entry.structure, entry.adjective = structure, adjective
    for entry in each(banks.structures["shapes"]):
        entry.shape = True
    for entry in each(banks.structures["generics"]):
        entry.generic = True
    for state, phrases in banks.states["state"].items():
        for entry in each(phrases):
            entry.states = (*entry.states, state)
    for row in banks.regions["site"]:
        for key, side in (
            ("left_phrases", "left"),
            ("right_phrases", "right"),
            ("both_phrases", "both"),
        ):
            for entry in each(row.get(key, ())):
                entry.site, entry.site_side = sites[row["id"]], side  # type: ignore[assignment]
        for entry in each(row.get("phrases", ())):
            entry.site = entry.site or sites[row["id"]]
        for entry in each(row.get("weak_phrases", ())):
            if entry.site is None:
                entry.site, entry.weak = sites[row["id"]], True
    for row in banks.regions["side"]:
        for entry in each(row["phrases"]):
            entry.side = row["id"]
    for row in banks.cues["cue"]:
        cue = Cue(row["id"], row["means"], row.get("nested", False))
        for entry in each(row["phrases"]):
            if row["means"] == "mask":
                entry.mask = True
            elif row["reach"] == "forward":
                entry.forward = cue
            else:
                entry.backward = cue
    attributes = banks.attributes
    for severity, words in attributes["severity"].items():
        for entry in each(words):
            entry.severity = severity
    for temporal, words in attributes["temporal"].items():
        for entry in each(words):
            entry.temporal = entry.temporal or temporal
    for key, role in (
        ("plain", "plain"), ("stop", "stop"), ("verbs", "verb"), ("prepositions", "preposition"),
        ("positive_start", "positive_start"), ("companions", "companion"),
    ):  # fmt: skip
        for entry in each(attributes[key]["words"]):
            setattr(entry, role, True)
    for entry in each(attributes["ignore"]["phrases"]):
        entry.ignore = True
    for entry in each(attributes["silent"]["phrases"]):
        entry.silent = True
    for entry in each(attributes["body_parts"]["terms"]):
        entry.outside = True
    for phrase, join in _JOINS.items():
        term(phrase).join = join

    automaton = ahocorasick.Automaton()
    for phrase, entry in terms.items():
        entry.place = entry.site is not None or entry.side is not None
        entry.modifier = bool(entry.plain or entry.severity or entry.temporal or entry.mask)
        automaton.add_word(phrase, (len(phrase), entry))
        if entry.observation is not None and not entry.observation.fixed and " " in phrase:
            entry.inner = _inner_places(phrase, terms)
    automaton.make_automaton()
    words = frozenset(
        word for phrase in (*terms, *attributes["lookalikes"]["words"]) for word in phrase.split()
    )
    heads = sorted(
        phrase for phrase, entry in terms.items()
        if len(phrase) >= 8 and " " not in phrase and phrase.isalpha() and entry.observation is not None
    )  # fmt: skip
    return Lexicon(
        automaton=automaton,
        terms=terms,
        words=words,
        spelling=_speller(heads),
        ranks={state: place for place, state in enumerate(banks.states["rank"]["order"])},
        exclusive=EXCLUSIVE,
        whole_chest=normal["heart_and_lungs"]._replace(rule="structures.generic"),
        outside=frozenset(attributes["body_parts"]["outside"]),
        chest=frozenset(attributes["body_parts"]["chest"]),
        version=banks.version,
    )


def _inner_places(phrase: str, terms: dict[str, Term]) -> tuple[Place, ...]:
    """Return the sides and sided sites that a phrase names, pairs of words first ("minor fissure" is on the right)."""
    places: list[Place] = []
    seen = ""
    for part in _parts(phrase):
        word = terms.get(part)
        if word is None or part in seen:
            continue
        if word.side or (word.site is not None and word.site.sided and not word.weak):
            places.append((word.side or word.site_side, word.site, word.weak))
            seen = f"{seen} {part}"
    return tuple(places)


def _parts(phrase: str) -> list[str]:
    words = phrase.split()
    pairs = [" ".join(pair) for pair in pairwise(words)] if len(words) > 2 else []
    return [*pairs, *words]


def _speller(heads: list[str]) -> Callable[[str], str]:
    """Return a function that finds the one bank word that a misspelt word is nearly, or the empty string.

    One slip (a letter wrong, missing, doubled or swapped) in eight letters, two in fourteen.
    """

    @lru_cache(maxsize=100_000)
    def spelling(word: str) -> str:
        found = process.extractOne(word, heads, scorer=OSA.normalized_similarity, score_cutoff=0.85)
        return found[0] if found and found[0][0] == word[0] else ""

    return spelling


def _site(row: dict[str, Any]) -> Site:
    if "all" in row:
        same = frozenset(row["all"])
        return Site(row["id"], {"left": same, "right": same, "both": same, None: same}, sided=False)
    return Site(
        row["id"],
        {side: frozenset(row[side or "unsided"]) for side in ("left", "right", "both", None)},
        sided=True,
    )


def _observation(
    rule: str,
    row: dict[str, Any],
    diseases: tuple[str, ...],
    sites: dict[str, Site],
    *,
    stated: bool | None = None,
) -> Observation:
    return Observation(
        rule=rule,
        diseases=diseases,
        stated=stated if stated is not None else bool(diseases),
        concepts=tuple(row.get("concepts", ())),
        site=sites[row["site"]],
        fixed=row.get("fixed", False),
        fact=row.get("fact", False),
        places=frozenset(row.get("places", ())),
        part=row.get("part", False),
        says=row.get("says", "positive"),
    )


def _no_finding(site: Site) -> Observation:
    return Observation(
        f"structures.{site.id}", ("No Finding",), True, (), site, False, False, frozenset()
    )


def _structure(
    row: dict[str, Any], sites: dict[str, Site], signs: dict[str, Observation],
    normal: dict[str, Observation],
) -> Structure:  # fmt: skip
    site = sites[row["site"]]
    means: dict[str, Meaning] = {}
    for state, text in row["means"].items():
        if not text:
            continue
        rule = f"structures.{row['id']}.{state}"
        head, _, tail = text.rpartition(" ")
        if text == "No Finding":
            means[state] = Meaning(normal[site.id]._replace(rule=rule), "positive")
        elif head == "sign":
            means[state] = Meaning(
                signs[tail]._replace(rule=rule, site=site if site.sided else signs[tail].site),
                "positive",
            )
        else:
            labels = () if head == "unmapped" else (head,)
            observation = Observation(
                rule, labels, bool(labels), (), site, not site.sided, False, frozenset()
            )
            means[state] = Meaning(observation, tail)  # type: ignore[arg-type]
    return Structure(
        row["id"], site, means, normal[site.id]._replace(rule=f"structures.{row['id']}.generic")
    )
