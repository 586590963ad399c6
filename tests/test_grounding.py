"""Boxes by hand, COCO's AP, RadFact's rates, and what predictions of a dataset score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cot_builder.cli import app
from cot_builder.decompose import Decomposer
from cot_builder.predictions import Located
from eval.grounding import (
    Asked,
    Claim,
    Detections,
    Said,
    average_precision,
    entailment,
    matched_ious,
    mean_average_precision,
    measure_phrases,
    overlap,
    phrase_iou,
    rule_claims,
    set_iou,
)
from eval.predicted_chains import measure_chains, well_formed
from eval.records import Pair, Score
from knowledge_banks import load_banks

WHOLE = (0, 0, 10, 10)


def named(scores: tuple[Score, ...]) -> dict[str, float | None]:
    return {score.name: score.value for score in scores}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([WHOLE], [WHOLE], 1),
        ([(5, 0, 15, 10)], [WHOLE], 1 / 3),
        ([(0, 0, 5, 5)], [WHOLE], 0.25),
        ([(10, 0, 20, 10)], [WHOLE], 0),
        ([(0, 0, 2, 2)], [(1, 1, 3, 3)], 1 / 7),
        ([(0, 4, 10, 6)], [(4, 0, 6, 10)], 1 / 9),
        ([(0.1, 0.1, 0.4, 0.4)], [(0.2, 0.2, 0.4, 0.4)], 4 / 9),  # no +1: any frame
        ([(5, 5, 5, 5)], [WHOLE], 0),
        ([(10, 10, 0, 0)], [WHOLE], 0),
        ([(0, 0, 5, 10), (5, 0, 10, 10)], [WHOLE], 1),  # two halves
        ([(0, 0, 10, 10), (20, 20, 30, 30)], [WHOLE], 0.5),  # one spills
        ([(0, 0, 10, 10), (0, 0, 10, 10)], [WHOLE], 1),  # twice the same covers no more
        ([], [WHOLE], 0),
        ([], [], 0),
    ],
)
def test_set_iou_by_hand(one: list, other: list, expected: float) -> None:
    assert set_iou(one, other) == pytest.approx(expected)
    assert set_iou(other, one) == pytest.approx(expected)
    scaled = [[tuple(7.5 * n for n in box) for box in boxes] for boxes in (one, other)]
    assert set_iou(*scaled) == pytest.approx(expected), "the same in every frame"


def test_boxes_are_paired_once_the_best_first() -> None:
    true = [(0, 0, 10, 10), (20, 0, 30, 10)]
    assert matched_ious([(0, 0, 10, 10), (1, 0, 10, 10)], true) == [1]
    assert phrase_iou([(20, 0, 30, 10), (0, 0, 10, 5)], true) == pytest.approx(0.75)
    assert phrase_iou([(0, 0, 30, 10)], true) == pytest.approx(1 / 6)  # one hull for two boxes


def test_average_precision_is_coco_s() -> None:
    """Values of pycocotools 2.0.11 for the same boxes."""
    found = [
        Detections([(0, 0, 10, 10), (50, 50, 60, 60)], [0.9, 0.8], [(0, 0, 10, 10)]),
        Detections([(0, 0, 10, 10)], [0.7], [(0, 0, 10, 20)]),
    ]
    assert average_precision(found, 0.5) == pytest.approx(0.834983, abs=1e-6)
    assert average_precision(found, 0.75) == pytest.approx(0.504950, abs=1e-6)
    assert mean_average_precision(found) == pytest.approx(0.537954, abs=1e-6)
    half = [Detections([(0, 0, 10, 8)], [0.9], [(0, 0, 10, 10), (50, 50, 60, 60)])]
    assert average_precision(half, 0.5) == pytest.approx(0.504950, abs=1e-6)
    assert mean_average_precision(half) == pytest.approx(0.353465, abs=1e-6)
    late = [Detections([(0, 0, 10, 10)] * 3, [0.9, 0.8, 0.7], [(0, 0, 10, 10)])]
    assert average_precision(late, 0.5) == 1


def test_phrases_unanswered_or_unreadable_score_zero_and_absent_ones_apart() -> None:
    phrases = [
        Asked(0, [WHOLE], Located("a", boxes=(WHOLE,))),
        Asked(0, [WHOLE], Located("b", problem="tags")),
        Asked(1, [WHOLE], None),
        Asked(1, [], Located("c", boxes=())),
        Asked(1, [], Located("d", boxes=(WHOLE,))),
    ]
    found = measure_phrases(phrases, 3)
    values = named(found.scores)
    assert values["mIoU"] == pytest.approx(1 / 3)
    assert values["acc@0.5"] == pytest.approx(1 / 3)
    assert values["absent phrases left empty"] == 0.5
    assert values["AP"] is None
    assert found.scores[0].failed == 2
    assert found.per_study["mIoU"] == [0.5, 0, None]


def test_an_iou_of_a_half_counts_at_a_half() -> None:
    values = named(measure_phrases([Asked(0, [WHOLE], Located("a", boxes=((0, 0, 10, 5),)))], 1)[0])
    assert values["acc@0.5"] == 1


def test_radfact_s_rates_by_hand() -> None:
    half, most = (0, 0, 5, 10), (0, 0, 6, 10)
    claims = [
        Claim(True, [WHOLE], [most]),  # six tenths of its area are evidence
        Claim(True, [WHOLE], [half]),  # exactly half is not more than half
        Claim(True),
        Claim(False, [WHOLE], [WHOLE]),
    ]
    assert entailment(claims) == pytest.approx((3 / 4, 1 / 2, 1 / 3))
    assert entailment([]) == (None, None, None)
    assert overlap([WHOLE], [most]).both == 60


def test_rules_hold_one_report_against_the_other() -> None:
    effusion = ("Pleural Effusion", "positive", frozenset({"left lung"}))
    none = ("Edema", "negative", frozenset({"whole lung"}))
    right = ("Pleural Effusion", "positive", frozenset({"right lung"}))
    claims = rule_claims(
        [Said((effusion,), [WHOLE]), Said((right,), [WHOLE]), Said((), [WHOLE])],
        [Said((effusion, none), [(0, 0, 9, 9)])],
    )
    assert claims == [Claim(True, [WHOLE], [(0, 0, 9, 9)]), Claim(False, [WHOLE], [])]


# -- chains of predictions


def test_predicted_chains_made_up_findings_and_well_formed_answers() -> None:
    decomposer = Decomposer(load_banks())
    reference = "Small left pleural effusion. No pneumothorax."
    prediction = "Small left pleural effusion. Pulmonary edema."
    found = measure_chains([Pair("1", reference, prediction)], decomposer)
    values = named(found.scores)
    assert values["chains precision"] == values["chains recall"] == values["chains F1"] == 0.5
    assert values["hallucinated findings"] == 0.5  # edema, of two
    assert "format rate" not in values
    assert found.per_study == {"chains F1": [0.5]}
    empty = named(measure_chains([Pair("1", reference, "")], decomposer).scores)
    assert empty["chains precision"] is None
    assert empty["chains recall"] == 0
    assert empty["hallucinated findings"] is None


GOOD = '"small effusion" → Pleural Effusion (present) → left lung'


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (Located("a", think=GOOD), True),
        (Located("a", think=f"{GOOD}\nand so on"), False),
        (Located("a", think=None, problem="tags: none"), False),
        (Located("a", think=" "), False),
    ],
)
def test_an_answer_is_well_formed_when_every_line_is_read_back(answer: Located, good: bool) -> None:
    assert well_formed(answer, load_banks()) is good


# -- from a dataset with boxes to a case sheet


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """A dataset of two phrases with boxes, on an image of the demo corpus."""
    corpus = Path(__file__).resolve().parents[1] / "cot_builder/sources/demo_corpus/images"
    image = sorted(corpus.iterdir())[0]
    shutil.copy(image, tmp_path)
    table = tmp_path / "boxes.csv"
    table.write_text(
        "image,phrase,x1,y1,x2,y2\n"
        f"{image.name},small left pleural effusion,300,300,450,480\n"
        f"{image.name},right apical pneumothorax <b>,40,30,150,160\n"
    )
    out = tmp_path / "dataset"
    where = ("--source", "boxes", "--root", str(table), "--out", str(out), "--workers", "1")
    box = ("--box-columns", "x1,y1,x2,y2", "--box-format", "xyxy")
    done = CliRunner().invoke(app, ["build", *where, *box])
    assert done.exit_code == 0, done.output
    return out


def test_a_case_sheet_has_boxes_in_both_colours_escapes_texts_and_needs_nothing_else(
    boxed: Path, tmp_path: Path
) -> None:
    from cot_builder.dataset import read_studies

    (study,) = read_studies(boxed)
    image = study["images"][0]
    sentences = [
        {"text": "small left pleural effusion", "think": GOOD, "boxes": [[310, 300, 450, 470]]},
        {"text": "<script>alert(1)</script>", "boxes": None, "problem": "tags: <none>"},
    ]
    row = {
        "study_id": study["study_id"],
        "report": "small left pleural effusion",
        "image_id": image["image_id"],
        "image_path": image["path"],
        "width": image["width"],
        "height": image["height"],
        "sentences": sentences,
        "phrases": [{"text": "small left pleural effusion", "boxes": [[300, 300, 450, 480]]}],
    }
    predictions = tmp_path / "p.jsonl"
    predictions.write_text(json.dumps(row))
    section = study["sections"][0]["name"]
    out = tmp_path / "cases.html"
    shared = ["--section", section]
    done = CliRunner().invoke(
        app,
        [
            "cases",
            str(predictions),
            str(boxed),
            "--root",
            str(tmp_path),
            "--out",
            str(out),
            *shared,
        ],
    )
    assert done.exit_code == 0, done.output
    page = out.read_text()
    assert page.count('stroke="#1a9641"') == 2
    assert page.count('stroke="#d7191c"') == 1
    assert "data:image/jpeg;base64," in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "pneumothorax &lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('<mark style="background:#ffe08a">small left pleural effusion</mark>') == 2

    scores = CliRunner().invoke(
        app,
        ["score", str(predictions), str(boxed), "--measures", "grounding", *shared],
        env={"COLUMNS": "200"},
    )
    assert scores.exit_code == 0, scores.output
    (line,) = [line for line in scores.output.splitlines() if line.split()[:1] == ["mIoU"]]
    assert line.split()[1:3] == ["0.5000", "2"]  # one of two phrases, exactly
