"""Sentences: where they end, what stays outside them, and that their offsets hold."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cot_builder.records import Section
from cot_builder.sentences import split_sentences


def texts(text: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(Section("findings", text))]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("The lungs are clear. No effusion.", ["The lungs are clear.", "No effusion."]),
        ("No effusion", ["No effusion"]),
        ("Is it new? Yes! Likely.", ["Is it new?", "Yes!", "Likely."]),
        ('Read as "clear." Normal heart.', ['Read as "clear."', "Normal heart."]),
        # decimals
        ("A 4.5 cm nodule. 1.5 cm today.", ["A 4.5 cm nodule.", "1.5 cm today."]),
        ("Tip 2.5 cm above the carina", ["Tip 2.5 cm above the carina"]),
        # abbreviations
        ("Told to Dr. Smith at 9.", ["Told to Dr. Smith at 9."]),
        ("Told to Dr.Smith. Clear.", ["Told to Dr.Smith.", "Clear."]),
        ("Scar vs. nodule. Clear.", ["Scar vs. nodule.", "Clear."]),
        ("Opacity, e.g. scar, i.e. old. Clear.", ["Opacity, e.g. scar, i.e. old.", "Clear."]),
        ("St. Jude valve (see Fig. 2). Clear.", ["St. Jude valve (see Fig. 2).", "Clear."]),
        ("Paged at 9:12 a.m. on the day.", ["Paged at 9:12 a.m. on the day."]),
        ("Paged at 9:12 a.m. The tube is in.", ["Paged at 9:12 a.m.", "The tube is in."]),
        ("Done at 3 P.M.", ["Done at 3 P.M."]),
        ("Fracture of rib no. 4 on the left.", ["Fracture of rib no. 4 on the left."]),
        ("Effusion: no. Heart normal.", ["Effusion: no.", "Heart normal."]),
        ("Effusion: no. 2. Heart normal.", ["Effusion: no.", "Heart normal."]),
        # a number before the full stop
        ("Wedging of T12. The heart is big.", ["Wedging of T12.", "The heart is big."]),
        ("Fracture of rib 4. The lungs", ["Fracture of rib 4.", "The lungs"]),
        # glued sentences
        ("Lungs are clear.There is none", ["Lungs are clear.", "There is none"]),
        ("Wedging of T12.The heart", ["Wedging of T12.", "The heart"]),
        ("Status post CABG.Heart is big", ["Status post CABG.", "Heart is big"]),
        ("Lungs clear .Heart big", ["Lungs clear .", "Heart big"]),
        ("(unchanged).Heart big", ["(unchanged).", "Heart big"]),
        ("No effusion.2. Heart big.", ["No effusion.", "Heart big."]),
        # lists, inline and on lines
        ("1. Left PICC. 2. Clear.", ["Left PICC.", "Clear."]),
        ("1) Left PICC 2) Clear", ["Left PICC", "Clear"]),
        ("(1) Left PICC (2) Clear", ["Left PICC", "Clear"]),
        ("1.Left PICC.2.Clear.", ["Left PICC.", "Clear."]),
        ("1. Clear\n2. Heart big\n10. Old scar", ["Clear", "Heart big", "Old scar"]),
        ("- Clear\n* Heart big\n• Scar", ["Clear", "Heart big", "Scar"]),
        ("#1 Clear\n#12 Scar", ["Clear", "Scar"]),
        ("1. 2.5 cm nodule", ["2.5 cm nodule"]),
        # full stops in a row, line breaks, nothing
        ("Clear.. Heart big...", ["Clear..", "Heart big..."]),
        ("Lungs are clear\n\nHeart big\r\nScar", ["Lungs are clear", "Heart big", "Scar"]),
        ("  Clear.  \n", ["Clear."]),
        # a page's margin folds a sentence; a capital behind a short line begins another
        ("Right\nlung is clear", ["Right\nlung is clear"]),
        ("Heart big \r\n but stable", ["Heart big \r\n but stable"]),
        ("right base opacity\nheart big", ["right base opacity", "heart big"]),  # no capitals
        (f"{'Clear lungs ' * 5}beside\nPICC", [f"{'Clear lungs ' * 5}beside\nPICC"]),
        (f"{'Clear lungs ' * 5}beside\n- PICC", [("Clear lungs " * 5) + "beside", "PICC"]),
        (f"{'Clear lungs ' * 5}beside\n\nPICC", [("Clear lungs " * 5) + "beside", "PICC"]),
        (f"{'Clear lungs ' * 11}\nHeart big", [("Clear lungs " * 11).strip(), "Heart big"]),
        *((empty, []) for empty in ("", " ", "\n\n", "...", "1.", "2)", "- ", "___", "___.")),
        # removed words
        ("XXXX. XXXX effusion.", ["XXXX.", "XXXX effusion."]),
        ("___ is seen. ___ lungs.", ["___ is seen.", "___ lungs."]),
        ("Seen by ___.Clear.", ["Seen by ___.", "Clear."]),
        ("Clear.___ is seen", ["Clear.", "___ is seen"]),
        ("XXXX.Heart big", ["XXXX.", "Heart big"]),
        ("Chest x-XXXX, 3 XXXX. Clear.", ["Chest x-XXXX, 3 XXXX.", "Clear."]),
    ],
)
def test_split(text: str, sentences: list[str]) -> None:
    assert texts(text) == sentences


PIECES = st.lists(
    st.sampled_from(
        [
            *("The", "heart", "is", "clear", "Dr", "no", "e.g", "a.m", "T12", "4.5", "XXXX", "___"),
            *(" ", " ", " ", "\n", "\r\n", "\t", ".", ".", "..", "!", "?", ",", ")", "(", '"'),
            *("1.", "2)", "(3)", "-", "#4", "10.", "•", "é", "²", "\u2028", "\u00a0"),
        ]
    ),
    max_size=40,
).map("".join)
NUMBERS = re.compile(r"\(?\d{1,2}[.)]|#\d{1,2}[.):]?")


@given(PIECES | st.text(max_size=60))
@example("1. 2. The heart")
@example(" 1.The.2.heart")
def test_offsets_hold_and_nothing_is_lost(text: str) -> None:
    sentences = list(split_sentences(Section("findings", text)))
    end = 0
    outside = []
    for index, sentence in enumerate(sentences):
        assert (sentence.section, sentence.index) == ("findings", index)
        assert end <= sentence.start < sentence.end <= len(text)
        assert sentence.text == text[sentence.start : sentence.end] == sentence.text.strip()
        outside.append(text[end : sentence.start])
        end = sentence.end
    for gap in [*outside, text[end:]]:
        assert not any(map(str.isalnum, NUMBERS.sub("", gap)))


@pytest.mark.parametrize(
    "piece",
    [
        *("No effusion. ", "a", ".", ". ", "1. ", "1) ", "vs. ", "a.B", "...a", ".)", "?!", "(1"),
        *(" ", "\n", " 1", "e.g", "#1 "),
    ],
)
@pytest.mark.parametrize("tail", ["", "a"])
def test_a_stray_file_of_one_line_takes_linear_time(piece: str, tail: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece)) + tail
        started = time.process_time()
        for _ in split_sentences(Section("findings", text)):
            pass
        return time.process_time() - started

    # Quadratic time would be 64 times as much, and hours at the megabyte of a stray file.
    short = min(seconds(8_000) for _ in range(3))
    assert min(seconds(64_000) for _ in range(2)) < 24 * short + 0.02
