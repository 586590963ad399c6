"""Split the text of a section into sentences, with offsets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cot_builder.records import Section, Sentence

# A sentence ends at . ! ? before white space or the end, at a full stop glued to the next one
# ("clear.There", "T12.The", "effusion.2. No"), at a line break, and before an inline list number
# ("... 2) No effusion"). The full stop of an abbreviation is read with it, and ends nothing.
_BREAK: Final = re.compile(
    r"(?P<abbreviation>(?<!\w)(?:(?i:drs?|mrs?|ms|prof|approx|vs|st|nos|fig|i\.e|e\.g|cf|resp|pt)\."
    r"|(?i:no)\.(?=\s\d{1,2}\b(?![.)]))|(?i:[ap]\.m)\.(?!\s+[A-Z])))"
    r"|(?<![.!?])[.!?]++[\"')\]]*+(?=\s|$)"
    r"|(?<=[a-z)\s])\.(?=[A-Z_])|(?<=[A-Z0-9_]{2})\.(?=[A-Z][a-z])"
    r"|(?<=[A-Za-z)])\.(?=\d{1,2}[.)]\s*[A-Z_])"
    r"|\n+"
    r"|\s(?=\(?\d{1,2}\)\s+[A-Z_])"
)
# Characters; the longest of 2,900 sentences in real reports has 198.
LONGEST: Final = 2_000
_SPACE: Final = re.compile(r"\s*")
_LIST_NUMBER: Final = re.compile(r"(?:\(?\d{1,2}[.)](?!\d)|[-*•]|#\d{1,2}\b[.):]?)\s*")


def split_sentences(section: Section) -> Iterator[Sentence]:
    """Yield the sentences of a section in order; list numbers and white space stay outside them.

    >>> [s.text for s in split_sections_of("1. Nodule of 4.5 cm. 2. Lungs are clear.No edema")]
    ['Nodule of 4.5 cm.', 'Lungs are clear.', 'No edema']
    """
    text, index = section.text, 0
    for start, end in (piece for span in _spans(text) for piece in _pieces(text, *span)):
        if number := _LIST_NUMBER.match(text, start, end):
            start = number.end()
        sentence = text[start:end].rstrip()
        if any(map(str.isalnum, sentence)):
            yield Sentence(section.name, index, start, start + len(sentence), sentence)
            index += 1


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a damaged, endless sentence at white space: the decomposer's time is quadratic in one."""
    while end - start > LONGEST:
        cut = text.rfind(" ", start + 1, start + LONGEST)
        cut = cut if cut > start else start + LONGEST
        yield start, cut
        start = _after_space(text, cut)
    yield start, end


def split_sections_of(text: str) -> list[Sentence]:
    """Split bare text, as one section named `text`."""
    return list(split_sentences(Section("text", text)))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each piece of text between two breaks; white space leads none."""
    start = _after_space(text, 0)
    for match in _BREAK.finditer(text, start):
        end = match.end()
        # The full stop of a list number ends nothing: "1. Lungs are clear."
        if match["abbreviation"] or _LIST_NUMBER.fullmatch(text, start, end):
            continue
        yield start, end
        start = _after_space(text, end)
    yield start, len(text)


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
