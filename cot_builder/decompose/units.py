"""Cut a sentence into units: phrases of the banks, and the words between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Final, NamedTuple

from cot_builder.decompose.lexicon import TOKEN, WORD, Lexicon, Term

# One character for one, so that offsets stay: hyphens, dashes and line breaks read as spaces.
_FOLD: Final = {ord(sign): " " for sign in "-‐‑–—\n\t\u00a0"} | {
    ord(letter): letter.lower() for letter in ascii_uppercase
}
_WORD: Final = re.compile(r"[a-z0-9_.]*[a-z0-9_]")
_SHORTEST_MISSPELT: Final = 7


class Unit(NamedTuple):
    """A stretch of a sentence and the term that it is."""

    start: int
    end: int
    term: Term
    spelt: str = ""  # the bank word that a misspelt one was taken for


def fold(text: str) -> str:
    """Lower-case text and read hyphens as spaces, character for character.

    >>> fold("Left-sided PICC")
    'left sided picc'
    """
    return text.translate(_FOLD)


def find_units(folded: str, lexicon: Lexicon) -> list[Unit]:
    """Return the units of a folded sentence: leftmost, longest bank phrases, and single words."""
    longest = _longest(folded, lexicon)
    units: list[Unit] = []
    done = 0
    for start in sorted(longest):
        if start < done:
            continue
        if start - done > 1 or (start > done and folded[done] != " "):
            units += _words(folded, done, start, lexicon)
        end, term = longest[start]
        units.append(Unit(start, end, term))
        done = end
    units += _words(folded, done, len(folded), lexicon)
    return units


def _longest(folded: str, lexicon: Lexicon) -> dict[int, tuple[int, Term]]:
    """Return the end and the term of the longest phrase at each start where there is one."""
    spans = [match.span() for match in TOKEN.finditer(folded)]
    number = lexicon.tokens.get
    numbers = tuple([number(folded[start:end], 0) for start, end in spans])
    longest = {}
    for last, (length, term) in lexicon.automaton.iter(numbers):
        # Those of one start come by length: the last stands.
        longest[spans[last - length + 1][0]] = (spans[last][1], term)
    return longest


def _words(folded: str, start: int, end: int, lexicon: Lexicon) -> Iterator[Unit]:
    for match in _WORD.finditer(folded, start, end):
        word, term, spelt = match.group(), WORD, ""
        if len(word) >= _SHORTEST_MISSPELT and word not in lexicon.words:
            spelt = lexicon.spelling(word)
            term = lexicon.terms[spelt] if spelt else WORD
        yield Unit(match.start(), match.end(), term, spelt)
