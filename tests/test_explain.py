"""Why a sentence gives its chains: what its words are, what cues reach, what each decision rests on."""

# ruff: noqa: E501 - a sentence and its reasons stand in one line

from __future__ import annotations

from typing import Final

import pytest
from rich.console import Group
from rich.text import Text

from cot_builder.decompose.explain import account, explain
from cot_builder.decompose.lexicon import compile_lexicon
from knowledge_banks import load_banks

BANKS: Final = load_banks()
LEXICON: Final = compile_lexicon(BANKS)


@pytest.mark.parametrize(
    ("sentence", "units"),
    [
        ("No effusion, but a small left effusion.", "no[cue no →] effusion[observation] ,[] but[cue end →] a[] small[low] left[place] effusion[observation]"),
        ("Heart is not enlarged.", "heart is[structure] not[cue no →] enlarged[enlarged/congested/tortuous]"),
        ("Both lungs are clear of any process.", "both lungs[structure, place] are[] clear of[cue no →] any[] process[verdict]"),
        ("An effusoin in the pleura is possible.", "an[] effusoin[~effusion] in[] the[] pleura[structure, place] is possible[← cue hedge_after]"),
    ],
)  # fmt: skip
def test_words_have_their_roles(sentence: str, units: str) -> None:
    told = account(sentence, LEXICON).units
    assert " ".join(f"{words}[{roles}]" for words, roles in told) == units


@pytest.mark.parametrize(
    ("sentence", "reasons"),
    [
        ("Small left effusion.", ["Small left effusion: Pleural Effusion, positive: no cue reaches it, left, diseases.effusion"]),
        ("No pnuemothorax.", ["pnuemothorax: Pneumothorax, negative by 'no', the default of lung, diseases.pneumothorax~pneumothorax+no"]),
        ("Edema has resolved.", ["Edema: Edema, negative by 'has resolved', the default of lung, diseases.edema+absent"]),
        ("Hiatal hernia.", ["Hiatal hernia: unmapped, positive: no cue reaches it, the default of mediastinum, unmapped.mediastinum_other"]),
        ("Lungs are low in volume.", ["Lungs are low in volume: Atelectasis (implied: collapse, mediastinal shift), lungs is low ('low in volume'), the default of lung, structures.lungs.low"]),
        ("Heart is not enlarged.", ["Heart is not enlarged: Cardiomegaly, heart is not enlarged ('enlarged'), the default of heart, structures.heart.enlarged+denied"]),
        ("Heart may be enlarged.", ["Heart may be enlarged: Cardiomegaly, heart is perhaps enlarged ('enlarged'), the default of heart, structures.heart.enlarged+hedged"]),
        ("The lungs show no acute findings.", ["lungs show no acute findings: No Finding, lungs is normal ('findings'), the default of lung, structures.lungs.normal"]),
        ("No acute process.", ["No acute process: No Finding, a general verdict behind 'no', the default of heart_and_lungs, structures.generic"]),
        ("No acute bony process.", ["No acute bony process: No Finding, a general verdict behind 'no', the default of spine, structures.bones.generic"]),
        ("Opacity in the right base, XXXX atelectasis.", [
            "Opacity in the right base: Lung Opacity, positive: no cue reaches it, right, lung, diseases.opacity",
            "atelectasis: Atelectasis, uncertain by 'xxxx', right, lung, diseases.atelectasis+mask",
        ]),
        ("RLL hydropneumothorax.", ["RLL hydropneumothorax: Pneumothorax + Pleural Effusion, positive: no cue reaches it, right lung, diseases.hydropneumothorax"]),
        ("Borderline cardiomegaly.", ["Borderline cardiomegaly: Cardiomegaly, uncertain by 'borderline', the default of heart, diseases.cardiomegaly+borderline"]),
        ("The left effusion is gone, the right is stable.", [
            "left effusion: Pleural Effusion, negative by 'is gone', left, diseases.effusion+absent",
            "right: Pleural Effusion, positive: no cue reaches it, right, diseases.effusion",
        ]),
        ("Left atelectasis or edema.", [
            "Left atelectasis: Atelectasis, one of several offered, left, diseases.atelectasis+alternatives",
            "edema: Edema, one of several offered, left, diseases.edema+alternatives",
        ]),
    ],
)  # fmt: skip
def test_each_decision_has_its_reason(sentence: str, reasons: list[str]) -> None:
    told = account(sentence, LEXICON)
    assert told.silence == ""
    assert [
        f"{sentence[r.start : r.end]}: {r.label}, {r.why}, {r.place}, {r.rule.removesuffix(f'@{BANKS.version}')}"
        for r in told.reasons
    ] == reasons


@pytest.mark.parametrize(
    ("sentence", "silence"),
    [
        ("PA and lateral views.", "it carries no finding, or what it says is only supposed"),
        (
            "Costal frobnication.",
            "the banks have no words for it, or what it says is only supposed",
        ),
    ],
)
def test_a_sentence_that_tells_nothing_says_why(sentence: str, silence: str) -> None:
    told = account(sentence, LEXICON)
    assert (told.reasons, told.silence) == ((), silence)


def test_the_printed_account_of_two_sentences() -> None:
    text = "No pneumothorax, but a small left effusion is possible. Comparison is made."
    printed = explain(text, BANKS)
    assert isinstance(printed, Group)
    lines = [part for part in printed.renderables if isinstance(part, Text)]
    assert (
        "\n".join(line.plain for line in lines).replace(" \n", "\n")
        == f"""\
No pneumothorax, but a small left effusion is possible.
units: no[cue no →] pneumothorax[observation] , but[cue end →] a small[low] left[place] effusion[observation] is possible[← cue hedge_after]
cue: 'no' (negative) reaches 'pneumothorax'
cue: 'is possible' (uncertain) reaches 'a small left effusion'
• pneumothorax → Pneumothorax · negative · whole lung
    assertion: negative by 'no'
    place: the default of lung
    rule: diseases.pneumothorax+no@{BANKS.version}
• small left effusion → Pleural Effusion · uncertain · left lung
    assertion: uncertain by 'is possible'
    place: left
    rule: diseases.effusion+hedge_after@{BANKS.version}


Comparison is made.
units: comparison is made
no chain: it carries no finding, or what it says is only supposed
"""
    )
    adenopathy = explain("Hilar adenopathy.", BANKS)
    assert isinstance(adenopathy, Group)
    told = "\n".join(part.plain for part in adenopathy.renderables if isinstance(part, Text))
    assert "positive · left hilar structures, right hilar structures\n" in told
    coloured = [
        (line.plain[span.start : span.end], span.style)
        for line in lines
        for span in line.spans
        if span.style in ("green", "yellow", "red")
    ]
    assert coloured == [
        ("pneumothorax", "green"), ("small left effusion", "yellow"),
        ("negative", "green"), ("uncertain", "yellow"),
    ]  # fmt: skip
