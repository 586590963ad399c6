"""Split the text of a section into sentences, with offsets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from cot_builder.records import Section, Sentence

# Where a sentence may end: full stops and the like, line breaks, an inline list number's bracket.
# The rare character stands alone before the rest, so that it is looked for quickly; `_break`
# decides.
_CANDIDATE: Final = re.compile(
    r"[.!?\n)](?:(?<=[.!?])[.!?]*+[\"')\]]*+|(?<=\n)\n*+|(?<=\))(?=\s+[A-Z_]))"
)
_INLINE_NUMBER: Final = re.compile(r"\s\(?\d{1,2}\Z")
# The full stop of an abbreviation ends nothing; "no. 4" and "9 a.m. on" neither.
_ABBREVIATION: Final = re.compile(
    r"(?<!\w)(?:drs?|mrs?|ms|prof|approx|vs|st|nos?|fig|i\.e|e\.g|cf|resp|pt|[ap]\.m)\.\Z",
    re.IGNORECASE,
)
_LONGER_THAN_ABBREVIATIONS: Final = 7  # letters
_NUMBER_OF: Final = re.compile(r"\s\d{1,2}\b(?![.)])")
_NEW_SENTENCE: Final = re.compile(r"\s+[A-Z]")
# A full stop glued to the next sentence: "clear.There", "T12.The", "effusion.2. No".
_GLUED: Final = re.compile(
    r"(?<=[a-z)\s]\.)[A-Z_]|(?<=[A-Z0-9_]{2}\.)[A-Z][a-z]|(?<=[A-Za-z)]\.)\d{1,2}[.)]\s*[A-Z_]"
)
# A line that ends this many characters before the page's margin was ended on purpose.
_SLACK: Final = 25
_NARROWEST_PAGE: Final = 75
_WIDEST_PAGE: Final = 120  # longer lines are paragraphs
SHOUTED: Final = re.compile(r"[A-Z][A-Z ,/&()'-]{2,50}:")
_SUBHEADING: Final = re.compile(r"[A-Z][A-Za-z/&-]*(?: [A-Za-z/&-]+){0,3}:")
_ITEM: Final = re.compile(r"(?:\(?\d{1,2}[.)]|[-*•]|#\d{1,2})(?:\s|$)")
# Characters; the longest of 2,900 sentences in real reports has 198.
LONGEST: Final = 2_000
_LONGEST_NUMBER: Final = 3  # "(12", "#12"
_LIST_NUMBER: Final = re.compile(r"(?:\(?\d{1,2}[.)](?!\d)|[-*•]|#\d{1,2}\b[.):]?)\s*")


def split_sentences(section: Section) -> Iterator[Sentence]:
    """Yield the sentences of a section in order; list numbers and white space stay outside them.

    >>> [s.text for s in split_sections_of("1. Nodule of 4.5 cm. 2. Lungs are clear.No edema")]
    ['Nodule of 4.5 cm.', 'Lungs are clear.', 'No edema']
    """
    text, index = section.text, 0
    for start, end in _spans(text):
        sentence = text[start:end].rstrip()
        if not sentence[:1].isalpha():  # nearly always it is
            if number := _LIST_NUMBER.match(text, start, end):
                start = number.end()
                sentence = text[start:end].rstrip()
            if not any(map(str.isalnum, sentence)):
                continue
        yield Sentence(section.name, index, start, start + len(sentence), sentence)
        index += 1


def split_sections_of(text: str) -> list[Sentence]:
    """Split bare text, as one section named `text`."""
    return list(split_sentences(Section("text", text)))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each piece of text between two breaks; white space leads none."""
    start = _after_space(text, 0)
    wraps = _wraps(text) if "\n" in text else ()
    for match in _CANDIDATE.finditer(text, start):
        if match.start() in wraps:
            continue
        if end := _break(text, start, match):
            if end - start > LONGEST:
                yield from _pieces(text, start, end)
            else:
                yield start, end
            start = _after_space(text, end)
    yield from _pieces(text, start, len(text))


def _wraps(text: str) -> set[int]:
    """Return the line breaks that stand for a space: there the page's margin folds a sentence."""
    lines = text.split("\n")
    width = max(map(len, lines))
    capitals = not text.islower()
    wraps, at = set(), -1
    for before, line in pairwise(lines):
        at += len(before) + 1
        first, then = before.strip(), line.strip()
        if first and then and not begins_anew(then if capitals else then.title(), first, width):
            wraps.add(at)
    return wraps


def begins_anew(line: str, before: str, width: int) -> bool:
    """Tell whether a line does not continue the one before, of a text whose lines have `width`.

    It is a list item, a sub-heading, or begins with a capital behind a line that was ended on
    purpose.
    """
    if _ITEM.match(line) or SHOUTED.match(line):
        return True
    if not line[0].isupper():
        return False
    full = len(before) + 1 + len(line.split(" ", 1)[0]) > max(width, _NARROWEST_PAGE) - _SLACK
    if not full or width > _WIDEST_PAGE:
        return True
    return before[-1] in ".;:" and _SUBHEADING.match(line) is not None


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a damaged, endless sentence at white space: the decomposer's time is quadratic in one."""
    while end - start > LONGEST:
        cut = text.rfind(" ", start + 1, start + LONGEST)
        cut = cut if cut > start else start + LONGEST
        yield start, cut
        start = _after_space(text, cut)
    yield start, end


def _break(text: str, start: int, match: re.Match[str]) -> int:
    """Return where the sentence that began at `start` ends by this candidate, 0 if it goes on."""
    stop, end = match.span()
    if text[stop] == "\n":
        return end
    if text[stop] == ")":
        number = _INLINE_NUMBER.search(text, max(start, stop - 4), stop)
        return number.start() + 1 if number else 0  # "... | 2) No effusion"
    single = text[stop:end] == "."
    if end < len(text) and not text[end].isspace() and not (single and _GLUED.match(text, end)):
        return 0
    before = text[max(start, stop - _LONGER_THAN_ABBREVIATIONS) : stop]
    abbreviates = len(before) < _LONGER_THAN_ABBREVIATIONS or not before.isalpha()
    if single and abbreviates and _is_abbreviation(text, stop - len(before), end):
        return 0
    # The full stop of a list number ends nothing: "1. Lungs are clear."
    listed = stop - start <= _LONGEST_NUMBER and _LIST_NUMBER.fullmatch(text, start, end)
    return 0 if listed else end


def _is_abbreviation(text: str, start: int, end: int) -> bool:
    match = _ABBREVIATION.search(text, start, end)
    if match is None:
        return False
    word = match.group().lower()
    if word == "no.":
        return _NUMBER_OF.match(text, end) is not None
    return not (word in ("a.m.", "p.m.") and _NEW_SENTENCE.match(text, end))


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at
