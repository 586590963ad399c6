"""Cut a sentence into units: phrases of the banks, and the words between them."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cot_builder.decompose.lexicon import WORD, Lexicon, Term

# One character for one, so that offsets stay: hyphens, dashes and line breaks read as spaces.
_FOLD: Final = {ord(c): " " for c in "-‐‑–—\n\t\u00a0"} | {
    ord(upper): upper.lower() for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
}
_WORD: Final = re.compile(r"[a-z0-9_.]*[a-z0-9_]")


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
    """Return the units of a folded sentence: the leftmost, longest phrases of the banks in one pass, and single words."""
    longest: dict[int, tuple[int, Term]] = {}
    size = len(folded)
    for last, (length, term) in lexicon.automaton.iter(folded):
        start, end = last - length + 1, last + 1
        # A phrase ends where a word ends; a phrase of signs ("," ">") ends anywhere.
        if (start and folded[start - 1].isalnum() and folded[start].isalnum()) or (
            end < size and folded[end].isalnum() and folded[last].isalnum()
        ):
            continue
        longest[start] = (end, term)
    units: list[Unit] = []
    done = 0
    for start in sorted(longest):
        if start < done:
            continue
        end, term = longest[start]
        if start > done:
            units += _words(folded, done, start, lexicon)
        units.append(Unit(start, end, term))
        done = end
    if done < size:
        units += _words(folded, done, size, lexicon)
    return units


def _words(folded: str, start: int, end: int, lexicon: Lexicon) -> list[Unit]:
    units = []
    for match in _WORD.finditer(folded, start, end):
        word, term, spelt = match.group(), WORD, ""
        if len(word) >= 7 and word not in lexicon.words:
            spelt = lexicon.spelling(word)
            term = lexicon.terms[spelt] if spelt else WORD
        units.append(Unit(match.start(), match.end(), term, spelt))
    return units
