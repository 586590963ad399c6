"""Cut a sentence into units: phrases of the banks, and the words between them."""

from __future__ import annotations

import re
from itertools import accumulate
from string import ascii_uppercase
from typing import Final, NamedTuple

from cot_builder.decompose.lexicon import TOKEN, WORD, Lexicon, Term

# One character for one, so that offsets stay: hyphens, dashes and line breaks read as spaces.
_FOLD: Final = {ord(sign): " " for sign in "-‐‑–—\n\t\u00a0"} | {
    ord(letter): letter.lower() for letter in ascii_uppercase
}
# A token with the white space before it.
_PIECE: Final = re.compile(rf"\s*(?:{TOKEN.pattern})")
_PLAIN_PIECE: Final = re.compile(r"\s*(?:[a-z0-9]+|_{1,3}|[^\w\s])", re.ASCII)  # as fast again
_WORD: Final = re.compile(r"[a-z0-9_.]*[a-z0-9_]")
_SHORTEST_MISSPELT: Final = 7


class Units(NamedTuple):
    """The stretches of a sentence, each with the term that it is."""

    terms: list[Term]
    starts: list[int]
    ends: list[int]
    spelt: dict[int, str]  # the bank word that a misspelt one was taken for, by its unit


def fold(text: str) -> str:
    """Lower-case text and read hyphens as spaces, character for character.

    >>> fold("Left-sided PICC")
    'left sided picc'
    """
    if text.isascii():  # four times faster
        return text.lower().replace("-", " ").replace("\n", " ").replace("\t", " ")
    return text.translate(_FOLD)


def find_units(folded: str, lexicon: Lexicon) -> Units:
    """Return the units of a folded sentence: leftmost, longest bank phrases, and single words."""
    units = Units([], [], [], {})
    terms, starts, ends, _ = units
    pieces = (_PLAIN_PIECE if folded.isascii() else _PIECE).findall(folded)
    tokens = [*map(str.lstrip, pieces), ""]  # "" begins and continues no phrase
    stops = list(accumulate(map(len, pieces)))
    begin = lexicon.phrases.get
    first = parted = 0  # tokens; those between are not of a phrase
    while first < len(stops):
        if (node := begin(tokens[first])) is None:
            first += 1
            continue
        term, further = node
        i = last = first
        while further is not None and (node := further.get(tokens[i + 1])) is not None:
            longer, further = node
            i += 1
            if longer is not None:
                term, last = longer, i
        if term is None:
            first += 1
            continue
        start = stops[first] - len(tokens[first])
        if first > parted:
            _add_words(units, folded, stops[parted] - len(tokens[parted]), start, lexicon)
        terms.append(term)
        starts.append(start)
        ends.append(stops[last])
        first = parted = last + 1
    # Mostly a full stop is left, which is no word.
    if len(stops) - parted > 1 or tokens[parted].isalnum() or tokens[parted][:1] == "_":
        _add_words(units, folded, stops[parted] - len(tokens[parted]), len(folded), lexicon)
    return units


def _add_words(units: Units, folded: str, start: int, end: int, lexicon: Lexicon) -> None:
    for match in _WORD.finditer(folded, start, end):
        word, term = match.group(), WORD
        unknown = len(word) >= _SHORTEST_MISSPELT and word not in lexicon.words
        if unknown and (spelt := lexicon.spelling(word)):
            units.spelt[len(units.terms)] = spelt
            term = lexicon.terms[spelt]
        units.terms.append(term)
        units.starts.append(match.start())
        units.ends.append(match.end())
