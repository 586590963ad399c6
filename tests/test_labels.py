"""Report-level labels: what counts, which assertion wins, when there is no finding."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import pytest

from cot_builder.decompose import Decomposer
from cot_builder.labels import report_labels
from cot_builder.records import Assertion, Basis, Chain, Section
from cot_builder.sections import clean_text
from cot_builder.vocabulary import LABELS
from knowledge_banks import load_banks

Said = tuple[str, Assertion] | tuple[str, Assertion, Basis]


def chain(disease: str, assertion: Assertion, basis: Basis = "stated") -> Chain:
    return Chain("findings", 0, "x", 0, 1, disease, basis, assertion, ("whole lung",))


CASES: Final[list[tuple[str, list[Said], dict[str, int]]]] = [
    ("no chains at all", [], {"No Finding": 1}),
    ("normal", [("No Finding", "positive")], {"No Finding": 1}),
    ("positive", [("Edema", "positive")], {"Edema": 1}),
    ("uncertain", [("Edema", "uncertain")], {"Edema": -1}),
    ("negative", [("Edema", "negative")], {"Edema": 0, "No Finding": 1}),
    # which assertion wins, in any order
    ("positive over negative", [("Edema", "negative"), ("Edema", "positive")], {"Edema": 1}),
    ("positive over uncertain", [("Edema", "positive"), ("Edema", "uncertain")], {"Edema": 1}),
    ("uncertain over negative", [("Edema", "uncertain"), ("Edema", "negative")], {"Edema": -1}),
    (
        "all three",
        [("Edema", "uncertain"), ("Edema", "positive"), ("Edema", "negative")],
        {"Edema": 1},
    ),
    # labels do not mix
    (
        "two labels",
        [("Edema", "negative"), ("Pneumonia", "uncertain")],
        {"Edema": 0, "Pneumonia": -1},
    ),
    # implied chains do not count
    ("implied", [("Edema", "positive", "implied")], {"No Finding": 1}),
    (
        "implied beside stated",
        [("Edema", "positive", "implied"), ("Edema", "negative")],
        {"Edema": 0, "No Finding": 1},
    ),
    # No Finding
    ("devices only", [("Support Devices", "positive")], {"Support Devices": 1, "No Finding": 1}),
    (
        "a device in doubt",
        [("Support Devices", "uncertain")],
        {"Support Devices": -1, "No Finding": 1},
    ),
    (
        "normal statement beside a finding",
        [("No Finding", "positive"), ("Fracture", "positive")],
        {"Fracture": 1},
    ),
    (
        "normal statement beside a doubt",
        [("No Finding", "positive"), ("Pleural Other", "uncertain")],
        {"Pleural Other": -1},
    ),
]


@pytest.mark.parametrize(("said", "labels"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_report_labels(said: list[Said], labels: dict[str, int]) -> None:
    found = report_labels(chain(*mention) for mention in said)
    assert list(found) == list(LABELS)
    assert {label: value for label, value in found.items() if value is not None} == labels


@pytest.mark.parametrize("label", [x for x in LABELS if x not in ("No Finding", "Support Devices")])
def test_every_other_label_denies_no_finding(label: str) -> None:
    assert report_labels([chain(label, "positive")])["No Finding"] is None
    assert report_labels([chain(label, "uncertain")])["No Finding"] is None
    assert report_labels([chain(label, "negative")])["No Finding"] == 1


def test_the_sample_of_chexpert_labeler_is_met_exactly(shared: Path) -> None:
    decomposer = Decomposer(load_banks())
    path = shared / "data" / "fixtures" / "chexpert_labeler" / "labeled_reports.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert rows
    for row in rows:
        text = clean_text(row["Reports"])
        found = report_labels(decomposer.decompose([Section("findings", text)]).chains)
        assert found == {label: int(float(row[label])) if row[label] else None for label in LABELS}


def test_phrases_are_no_whole_report() -> None:
    assert report_labels((), whole=True)["No Finding"] == 1
    assert report_labels((), whole=False)["No Finding"] is None
