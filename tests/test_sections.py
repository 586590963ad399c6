"""Each way of writing a report that loses text elsewhere, and the bank's linting."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest

from cot_builder.errors import UserError
from cot_builder.sections import Headings, clean_text, compile_headings, split_sections
from knowledge_banks import load_banks

SYNTH = Path("/work/shared/data/mimic_synth/mimic-cxr/files")
RULE = " " + "_" * 78


@pytest.fixture(scope="module")
def headings() -> Headings:
    return compile_headings(load_banks().headings)


def page(*lines: str) -> str:
    return "\n".join([" " * 33 + "FINAL REPORT", *(f" {line}" for line in lines)])


CASES: dict[str, tuple[str, dict[str, str]]] = {
    "wrapped lines": (
        page(
            "INDICATION:  ___ year old woman with ?effusion  // ?effusion", "",
            "TECHNIQUE:  Chest PA and lateral", "", "COMPARISON:  ___", "", "FINDINGS: ", "",
            "Cardiac size cannot be evaluated.  Large left pleural effusion is new.  Small",
            "right effusion is new.", "", "IMPRESSION: ", "", "Large left pleural effusion",
        ),
        {
            "indication": "___ year old woman with ?effusion // ?effusion",
            "technique": "Chest PA and lateral",
            "comparison": "___",
            "findings": "Cardiac size cannot be evaluated. Large left pleural effusion is new. "
            "Small right effusion is new.",
            "impression": "Large left pleural effusion",
        },
    ),
    "two FINDINGS": (
        page("FINDINGS:  Comparison is made with prior study ___.", "", "The tube is high.", "",
             "FINDINGS:  Heart is normal."),
        {"findings": "Comparison is made with prior study ___.\nThe tube is high.\n"
         "Heart is normal."},
    ),
    "mixed case, no blank line": (
        page("EXAMINATION:  CHEST RADIOGRAPH", "", "Findings: the trachea is midline.  Mild",
             "thickening.", "Impression: no acute findings."),
        {"examination": "CHEST RADIOGRAPH", "findings": "the trachea is midline. Mild thickening.",
         "impression": "no acute findings."},
    ),
    "small letters": (
        "findings: lungs clear. heart normal.\n\nimpression: normal.",
        {"findings": "lungs clear. heart normal.", "impression": "normal."},
    ),
    "body between HISTORY and IMPRESSION": (
        page("HISTORY:  Chest pain.", "", "The lungs are clear.", "", "IMPRESSION:  Normal."),
        {"history": "Chest pain.", "findings": "The lungs are clear.", "impression": "Normal."},
    ),
    "body of two paragraphs, the first a title": (
        page("REASON FOR EXAM:  Cough.", "", "PA and lateral views of the chest.", "",
             "There is a nodule.", "", "CONCLUSION:  Nodule."),
        {"indication": "Cough.", "examination": "PA and lateral views of the chest.",
         "findings": "There is a nodule.", "impression": "Nodule."},
    ),
    "no heading at all": ("The lungs are clear.", {"findings": "The lungs are clear."}),
    "no heading, some paragraphs": (
        page("AP chest compared to ___:", "", "Edema has worsened.", "", "No pneumothorax."),
        {"examination": "AP chest compared to ___:",
         "findings": "Edema has worsened.\nNo pneumothorax."},
    ),
    "FINDINGS AND IMPRESSION": (
        page("HISTORY:  Pain.", "", "FINDINGS AND IMPRESSION:  Clear."),
        {"history": "Pain.", "findings": "Clear."},
    ),
    "FINDINGS/IMPRESSION": ("FINDINGS / IMPRESSION: Clear.", {"findings": "Clear."}),
    "FINDINGS & IMPRESSION": ("FINDINGS & IMPRESSION: Clear.", {"findings": "Clear."}),
    "CHEST, TWO VIEWS and CONCLUSION": (
        page("CHEST, TWO VIEWS:  The lungs are", "clear.", "", "CONCLUSION:  No acute process."),
        {"examination": "CHEST, TWO VIEWS", "findings": "The lungs are clear.",
         "impression": "No acute process."},
    ),
    "SINGLE AP VIEW OF THE CHEST": (
        page("SINGLE AP PORTABLE VIEW OF THE CHEST AT 5:30 AM:  Edema.", "", "IMPRESSION:  Edema."),
        {"examination": "SINGLE AP PORTABLE VIEW OF THE CHEST AT 5:30 AM", "findings": "Edema.",
         "impression": "Edema."},
    ),
    "title line": (
        page("PORTABLE CHEST ___", "", "COMPARISON:  ___ radiograph.", "", "Left atelectasis."),
        {"examination": "PORTABLE CHEST ___", "comparison": "___ radiograph.",
         "findings": "Left atelectasis."},
    ),
    "title line, then text at once": (
        page("PORTABLE CHEST, ___", "The lungs are clear."),
        {"examination": "PORTABLE CHEST, ___", "findings": "The lungs are clear."},
    ),
    "body under an empty COMPARISON": (
        page("COMPARISON:", "", "Frontal and lateral radiographs show a patchy left lower opacity.",
             "", "IMPRESSION:  Opacity."),
        {"findings": "Frontal and lateral radiographs show a patchy left lower opacity.",
         "impression": "Opacity."},
    ),
    "note under an empty COMPARISON": (
        page("COMPARISON:", "", "Chest radiograph from ___.", "", "FINDINGS:  Clear."),
        {"comparison": "Chest radiograph from ___.", "findings": "Clear."},
    ),
    "indication of two paragraphs": (
        page("INDICATION:  Cough.", "", "Rule out pneumonia.", "", "FINDINGS:  Clear."),
        {"indication": "Cough.\nRule out pneumonia.", "findings": "Clear."},
    ),
    "IMPRESSION that compares": (
        page("IMPRESSION:  AP chest compared to ___:", "", "Edema has worsened."),
        {"impression": "AP chest compared to ___:\nEdema has worsened."},
    ),
    "IMPRESSION that compares, on a line of its own": (
        page("IMPRESSION:", "", "AP CHEST COMPARED TO ___: no change.", "", "Edema."),
        {"impression": "AP CHEST COMPARED TO ___: no change.\nEdema."},
    ),
    "addendum above a rule": (
        page("ADDENDUM:  Discussed with Dr. ___ at 4:15 pm on", "___.", RULE, "FINAL REPORT",
             "FINDINGS:", "", "New pneumothorax."),
        {"addendum": "Discussed with Dr. ___ at 4:15 pm on ___.", "findings": "New pneumothorax."},
    ),
    "addendum with headings of its own": (
        f"FINAL ADDENDUM\nADDENDUM  Corrected.\n\nIMPRESSION: Nodule.\n{RULE}\nFINAL REPORT\n"
        "IMPRESSION: Clear.",
        {"addendum": "Corrected.\nIMPRESSION: Nodule.", "impression": "Clear."},
    ),
    "addendum without its name": (
        f" The nodule was seen before.\n{RULE}\n FINAL REPORT\n HISTORY:  Pain.\n \n Clear.",
        {"addendum": "The nodule was seen before.", "history": "Pain.", "findings": "Clear."},
    ),
    "wet read": (
        f" WET READ: ___ ___ ___ 9:12 AM\n  No acute process. \n{RULE}\n FINAL REPORT\n"
        " FINDINGS:  Clear.",
        {"wet_read": "___ ___ ___ 9:12 AM\nNo acute process.", "findings": "Clear."},
    ),
    "wet read and addendum": (
        f" WET READ VERSION #1 ___\n Clear.\n{RULE}\n ADDENDUM  Seen.\n{RULE}\n FINDINGS: Clear.",
        {"wet_read": "VERSION #1 ___\nClear.", "addendum": "Seen.", "findings": "Clear."},
    ),
    "addendum at the end": (
        page("IMPRESSION:  Clear.", "", "ADDENDUM:  Seen."),
        {"impression": "Clear.", "addendum": "Seen."},
    ),
    "rule at the end": (
        page("IMPRESSION:  Clear.", RULE, "Dr. ___"), {"impression": "Clear.\nDr. ___"}
    ),
    "numbers are no items": (
        page("FINDINGS: ", "", "IMPRESSON: ", "", "1.2 cm nodule in the left upper lobe."),
        {"impression": "1.2 cm nodule in the left upper lobe."},
    ),
    "numbered items": (
        page("IMPRESSION:", "", "1.  Right opacity, which may represent pneumonia in the",
             "appropriate clinical setting.", "2.  Cardiomegaly.", "3) Edema."),
        {"impression": "1. Right opacity, which may represent pneumonia in the appropriate "
         "clinical setting.\n2. Cardiomegaly.\n3) Edema."},
    ),
    "sub-headings stay": (
        page("FINDINGS:", "", "LUNGS AND PLEURA:  Clear", "HEART:  Normal", "Bones: Intact.",
             "The following: a line ends high.", "", "IMPRESSION:  Normal."),
        {"findings": "LUNGS AND PLEURA: Clear\nHEART: Normal\nBones: Intact.\n"
         "The following: a line ends high.", "impression": "Normal."},
    ),
    "sub-headings as a body": (
        page("HISTORY:  Pain.", "LUNGS:  Clear.", "HEART:  Normal.", "", "IMPRESSION:  Normal."),
        {"history": "Pain.", "findings": "LUNGS: Clear.\nHEART: Normal.", "impression": "Normal."},
    ),
    "findings go on after a comparison": (
        page("FINDINGS:  Heart is normal.", "COMPARISON:  ___.", "", "Lungs are clear."),
        {"findings": "Heart is normal.\nLungs are clear.", "comparison": "___."},
    ),
    "recommendation and notification": (
        page("IMPRESSION:  Nodule.", "", "RECOMMENDATION(S):  CT.", "", "Within 3 months.", "",
             "NOTIFICATION:  Dr. ___ by phone."),
        {"impression": "Nodule.", "recommendation": "CT.\nWithin 3 months.",
         "notification": "Dr. ___ by phone."},
    ),
    "headings with no colon": (
        "FINDINGS\nThe lungs are clear.\n\nIMPRESSION\n1. Normal.",
        {"findings": "The lungs are clear.", "impression": "1. Normal."},
    ),
    "odd colons": (
        "**FINDINGS:** Clear.\nIMPRESSION - Normal.",
        {"findings": "Clear.", "impression": "Normal."},
    ),
    "flattened": (
        "FINAL REPORT EXAMINATION: CHEST INDICATION: Cough. REASON FOR EXAM: Fever. "
        "COMPARISON: None FINDINGS: The lungs are clear. Lungs: clear. Impression: Normal.",
        {"examination": "CHEST", "indication": "Cough.\nFever.", "comparison": "None",
         "findings": "The lungs are clear. Lungs: clear.", "impression": "Normal."},
    ),
    "one statement a line": (
        "FINDINGS:\nLungs clear\nHeart normal\nNo effusion",
        {"findings": "Lungs clear\nHeart normal\nNo effusion"},
    ),
    "odd characters": (
        "\ufeffFINDINGS:\u00a0No\u200b \u201ceffusion\u201d\u2014XXXX\x00.\r\n",
        {"findings": 'No "effusion"-XXXX.'},
    ),
    "nothing but headings": (page("FINDINGS:", "", "IMPRESSION:", ""), {}),
    "nothing": ("", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_report_is_split(case: str, headings: Headings) -> None:
    text, expected = CASES[case]
    assert dict(split_sections(text, headings)) == expected


MISSPELT = {
    "IMPRESSON": "impression", "IMPRSSION": "impression", "CONLCUSION": "impression",
    "FINDIGNS": "findings", "FINDINDGS": "findings", "FINDINGS AND IMRPESSION": "findings",
    "COMPARISION": "comparison", "COMAPRISON": "comparison", "TECHIQUE": "technique",
    "IDICATION": "indication", "CLINCAL HISTORY": "history", "RECOMMEDATIONS": "recommendation",
}  # fmt: skip


@pytest.mark.parametrize("heading", MISSPELT)
def test_misspelt_headings(heading: str, headings: Headings) -> None:
    name = MISSPELT[heading]
    assert [s.name for s in split_sections(f" {heading}:  Text.", headings)] == [name]


@pytest.mark.parametrize("heading", ["LUNGS", "MEDIASTINUM", "OSSEOUS STRUCTURES", "MEDICATION"])
def test_words_that_are_no_headings(heading: str, headings: Headings) -> None:
    text = f"FINDINGS: Clear.\n{heading}: Normal."
    assert dict(split_sections(text, headings)) == {"findings": f"Clear.\n{heading}: Normal."}


def test_every_word_ends_in_a_section(headings: Headings) -> None:
    for text, _ in CASES.values():
        words = {w.strip(".:,*-\x00\u200b") for w in text.split() if w.islower() and w.isascii()}
        kept = " ".join(section.text for section in split_sections(text, headings))
        heads = {"findings", "impression", "history"}
        assert all(word in kept for word in words - heads), text


@pytest.mark.parametrize(
    "text",
    [
        "A" * 300_000,
        "A b: " * 60_000,
        ". A" * 100_000,
        "IMPRESSION: " * 30_000,
        " \n" * 150_000,
        "_" * 300_000,
        "(" * 300_000,
        "A B\n" * 75_000,
    ],
)
def test_hostile_text_takes_linear_time(text: str, headings: Headings) -> None:
    started = time.process_time()
    split_sections(text, headings)
    assert time.process_time() - started < 5


def test_clean_text_leaves_clean_text_alone() -> None:
    text = "The XXXX are normal. 1.5 cm nodule; chest x-XXXX. ___ Caf\u00e9 \u00bd."
    assert clean_text(text) == text


BROKEN: dict[str, tuple[str, Any, str]] = {
    "no titles": ("titles", None, r"\[titles\]"),
    "unknown table": ("extra", {}, 'unknown key "extra"'),
    "section is no list": ("section", {"findings": 1}, r"\[\[section\]\]"),
    "word list holds a number": ("furniture", {"lines": [1]}, 'key "lines"'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_bank(case: str) -> None:
    key, value, words = BROKEN[case]
    table = dict(load_banks().headings)
    table.pop(key, None)
    if value is not None:
        table[key] = value
    with pytest.raises(UserError, match=words) as caught:
        compile_headings(table, file="mine.toml")
    assert "mine.toml" in str(caught.value)


BROKEN_SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"name": "x", "phrases": [], "frases": []}, 'unknown key "frases"'),
    "no phrases": ({"name": "x"}, 'key "phrases"'),
    "phrase is no text": ({"name": "x", "phrases": [1]}, "list of strings"),
    "body is no truth": ({"name": "x", "phrases": [], "body": "yes"}, 'key "body"'),
    "name with a blank": ({"name": "Wet read", "phrases": []}, 'key "name"'),
    "claimed twice": ({"name": "x", "phrases": ["Findings:"]}, "heading of 'findings' already"),
    "empty phrase": ({"name": "x", "phrases": [" : "]}, "is empty"),
    "findings twice": ({"name": "findings", "phrases": []}, "named 'findings', got 2"),
}


@pytest.mark.parametrize("case", BROKEN_SECTIONS)
def test_broken_section(case: str) -> None:
    section, words = BROKEN_SECTIONS[case]
    table = copy.deepcopy(load_banks().headings)
    table["section"].append(section)
    with pytest.raises(UserError, match=words):
        compile_headings(table)


@pytest.mark.skipif(not SYNTH.is_dir(), reason="the synthetic MIMIC tree is not on this machine")
def test_synthetic_tree(headings: Headings) -> None:
    found = {
        path.stem: [section.name for section in split_sections(path.read_text(), headings)]
        for path in SYNTH.glob("*/*/*.txt")
    }
    assert found["s50900004"] == ["history", "findings"]
    assert found["s50900006"] == ["addendum", "examination", "findings", "impression"]
    assert found["s50900010"] == ["examination", "indication"]
    without = [study for study, names in found.items() if not {"findings", "impression"} & {*names}]
    assert without == ["s50900010"]
