"""Split the text of a section into sentences, with offsets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cot_builder.records import Section, Sentence

# A sentence ends at . ! ? before white space or the end, at a full stop glued to a capital
# ("bilaterally.There"), at a line break, and before an inline list number ("... 2) No effusion").
_BREAK: Final = re.compile(
    r"[.!?]+[\"')\]]*(?=\s|$)"
    r"|(?<=[a-z)])\.(?=[A-Z_])"
    r"|\n+"
    r"|\s(?=\d{1,2}\)\s+[A-Z_])"
)
# The longest true sentence among 3,851 reports has 600 characters; time is quadratic in a sentence's length.
LONGEST: Final = 2_000
_LIST_NUMBER: Final = re.compile(r"\s*(?:\(?\d{1,2}[.)](?!\d)|[-*•]|#\d)\s*")
_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(])(?:dr|drs|mr|mrs|ms|prof|approx|vs|st|no|nos|fig|i\.e|e\.g|a\.m|p\.m|cf|resp|pt|\d{1,2})$",
    re.IGNORECASE,
)


def split_sentences(section: Section) -> Iterator[Sentence]:
    """Yield the sentences of a section in order; list numbers and white space stay outside them.

    >>> [s.text for s in split_sections_of("1. Left PICC, 4.5 cm in. 2. Lungs are clear.There is none")]
    ['Left PICC, 4.5 cm in.', 'Lungs are clear.', 'There is none']
    """
    index = 0
    for start, end in _stretches(section.text):
        sentence = _sentence(section, index, start, end)
        if sentence is not None:
            yield sentence
            index += 1


def _stretches(text: str) -> Iterator[tuple[int, int]]:
    """Yield the stretches between sentence ends; a damaged, endless one is cut at white space."""
    start = 0
    for end in (*_ends(text), len(text)):
        while end - start > LONGEST:
            cut = text.rfind(" ", start + 1, start + LONGEST)
            cut = cut if cut > start else start + LONGEST
            yield start, cut
            start = cut
        yield start, end
        start = end


def _ends(text: str) -> Iterator[int]:
    start = 0
    for match in _BREAK.finditer(text):
        if match.group() == "." and _keeps_on(text, start, match.start()):
            continue
        start = match.end()
        yield start


def split_sections_of(text: str) -> list[Sentence]:
    """Split bare text, as one section named `text`."""
    return list(split_sentences(Section("text", text)))


def _keeps_on(text: str, start: int, stop: int) -> bool:
    """Tell whether the full stop at `stop` ends an abbreviation or a list number, not a sentence."""
    if _LIST_NUMBER.fullmatch(text, start, stop + 1):
        return True
    match = _ABBREVIATION.search(text, max(start, stop - 8), stop)
    # "no." and a number end a sentence all the same, when a new one follows: "rib 4. The ..."
    return bool(match) and not (
        match.group().strip(" (").isdigit() or match.group().lower().endswith("no")
    )


def _sentence(section: Section, index: int, start: int, end: int) -> Sentence | None:
    text = section.text
    number = _LIST_NUMBER.match(text, start, end)
    if number:
        start = number.end()
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if not any(letter.isalnum() for letter in text[start:end]):
        return None
    return Sentence(section.name, index, start, end, text[start:end])
