"""CheXpert conventions against scikit-learn, worked examples and the paper's Table 3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (  # type: ignore[import-untyped]
    accuracy_score,
    f1_score,
    precision_score,
    recall_score,
)

from cot_builder.decompose import Decomposer
from cot_builder.errors import UserError
from cot_builder.vocabulary import LABELS
from eval.chexpert import (
    BLANK,
    CONVENTIONS,
    FIVE,
    Sides,
    label_reports,
    measure_chexpert,
    rates,
    read_labels,
    spread,
    states,
)
from knowledge_banks import load_banks

DRAW = np.random.default_rng(3)
REFERENCE = DRAW.choice([1, 0, -1, BLANK], size=(200, 14), p=[0.25, 0.25, 0.1, 0.4])
PREDICTION = np.where(DRAW.random((200, 14)) < 0.6, REFERENCE, DRAW.permutation(REFERENCE))
SCORERS = (precision_score, recall_score, f1_score)


def columns(labels: tuple[str, ...]) -> list[int]:
    return [LABELS.index(label) for label in labels]


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("labels", [LABELS, FIVE], ids=["14", "5"])
@pytest.mark.parametrize(("short", "positive"), [("u0", [1]), ("u1", [1, -1])])
def test_binary_conventions_equal_scikit_learn(
    short: str, positive: list[int], labels: tuple[str, ...], average: str
) -> None:
    truth = np.isin(REFERENCE[:, columns(labels)], positive).astype(int)
    found = np.isin(PREDICTION[:, columns(labels)], positive).astype(int)
    expected = [score(truth, found, average=average, zero_division=0) for score in SCORERS]
    got = rates(REFERENCE, PREDICTION, f"{short}/{average}-{len(labels)}")
    assert got[1:] == pytest.approx(expected, abs=1e-12)
    if average == "micro":
        assert got.accuracy == pytest.approx((truth == found).mean())


@pytest.mark.parametrize("labels", [LABELS, FIVE], ids=["14", "5"])
def test_example_based_and_exact_equal_scikit_learn(labels: tuple[str, ...]) -> None:
    truth = (REFERENCE[:, columns(labels)] == 1).astype(int)
    found = (PREDICTION[:, columns(labels)] == 1).astype(int)
    expected = [score(truth, found, average="samples", zero_division=0) for score in SCORERS]
    assert rates(REFERENCE, PREDICTION, f"u0/example-{len(labels)}")[1:] == pytest.approx(expected)
    exact = rates(REFERENCE, PREDICTION, f"u0/exact-{len(labels)}")
    assert exact.accuracy == pytest.approx(accuracy_score(truth, found))


def test_ignoring_uncertain_ones_drops_the_cells_where_either_side_is() -> None:
    expected = []
    for place in range(14):
        sure = (REFERENCE[:, place] != -1) & (PREDICTION[:, place] != -1)
        truth, found = REFERENCE[sure, place] == 1, PREDICTION[sure, place] == 1
        expected.append([score(truth, found, zero_division=0) for score in SCORERS])
    got = rates(REFERENCE, PREDICTION, "ignored/macro-14")
    assert got[1:] == pytest.approx(np.mean(expected, axis=0))


def test_uncertain_as_its_own_class_is_two_columns_a_label() -> None:
    truth = np.hstack([REFERENCE == 1, REFERENCE == -1]).astype(int)
    found = np.hstack([PREDICTION == 1, PREDICTION == -1]).astype(int)
    expected = [score(truth, found, average="macro", zero_division=0) for score in SCORERS]
    assert rates(REFERENCE, PREDICTION, "own/macro-14")[1:] == pytest.approx(expected)


def test_boxmed_table3_is_the_macro_over_three_classes_of_each_label_then_the_mean() -> None:
    truth, found = (np.where(side == BLANK, 0, side) for side in (REFERENCE, PREDICTION))
    expected = np.mean(
        [
            [
                accuracy_score(truth[:, place], found[:, place]),
                *(
                    score(truth[:, place], found[:, place], average="macro", zero_division=0)
                    for score in SCORERS
                ),
            ]
            for place in range(14)
        ],
        axis=0,
    )
    assert rates(REFERENCE, PREDICTION, "boxmed_table3") == pytest.approx(expected)


def test_boxmed_table3_leaves_out_labels_that_neither_side_has() -> None:
    """Agreement on what is never mentioned is no skill: only Edema, found in half, counts."""
    from eval import chexpert

    nothing = np.full((4, 14), BLANK)
    nothing[:, 0] = 0  # negative is no mention either
    assert all(np.isnan(rates(nothing, nothing, "boxmed_table3")[1:]))
    truth, found = nothing.copy(), nothing.copy()
    edema = LABELS.index("Edema")
    truth[:2, edema], found[0, edema] = 1, 1
    expected = [score(truth[:, edema] == 1, found[:, edema] == 1, average="macro")
                for score in SCORERS]  # fmt: skip
    assert rates(truth, found, "boxmed_table3")[1:] == pytest.approx(expected)
    rows = chexpert.class_rows(chexpert.Sides(truth, found, "x"), "boxmed_table3")
    assert [row["label"] for row in rows if row["f1"] is not None] == ["Edema"]


def test_worked_example_of_four_reports_and_three_labels() -> None:
    """By hand: micro F1 .5 with uncertain as negative, .8 as positive; three-class means .4577."""
    labels = LABELS[3:6]
    convention = {name: how._replace(labels=labels) for name, how in CONVENTIONS.items()}
    blank = [BLANK] * 14

    def side(rows: list[list[int | None]]) -> np.ndarray:
        table = np.array([blank] * 4)
        table[:, 3:6] = [[BLANK if v is None else v for v in row] for row in rows]
        return table

    reference = side([[1, 0, None], [1, -1, None], [None, 1, 1], [0, None, None]])
    prediction = side([[1, None, None], [-1, 1, None], [None, 1, 0], [1, 0, None]])
    expected = {
        "u0/micro-14": ("f1", 0.5),
        "u0/macro-14": ("f1", 0.388889),
        "u0/weighted-14": ("f1", 0.416667),
        "u0/example-14": ("f1", 0.416667),
        "u1/micro-14": ("f1", 0.8),
        "u1/macro-14": ("f1", 0.6),
        "u1/example-14": ("f1", 0.666667),
    }
    from eval import chexpert

    for name, (rate, value) in expected.items():
        how = convention[name]
        got = chexpert.Rates(*chexpert.AVERAGES[how.average](reference, prediction, how))
        assert getattr(got, rate) == pytest.approx(value, abs=1e-6), name
    table = chexpert.table3(chexpert.confusion(chexpert.cells(reference, prediction)).sum(axis=0))
    assert table[3:6, 3] == pytest.approx([0.388889, 0.555556, 0.428571], abs=1e-6)
    assert table[3:6, 3].mean() == pytest.approx(0.4577, abs=1e-4)


def test_an_unknown_convention_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown convention 'u2/macro'.*boxmed_table3"):
        rates(REFERENCE, PREDICTION, "u2/macro")


def test_no_study_gives_nan_not_zero() -> None:
    assert all(np.isnan(rates(REFERENCE[:0], PREDICTION[:0], "u0/macro-14")))


def test_the_spread_has_every_convention_and_perfect_predictions_score_one_in_all() -> None:
    found = spread(REFERENCE, REFERENCE)
    assert found.keys() == CONVENTIONS.keys()
    assert found["boxmed_table3"] == pytest.approx((1, 1, 1, 1))
    assert found["u0/micro-14"] == pytest.approx((1, 1, 1, 1))


def test_labels_come_from_the_rules_and_an_empty_report_says_nothing() -> None:
    decomposer = Decomposer(load_banks())
    full, empty = label_reports(["Small left pleural effusion. No edema.", " "], decomposer)
    assert full["Pleural Effusion"] == 1
    assert full["Edema"] == 0
    assert full["Cardiomegaly"] is None
    assert set(empty.values()) == {None}


def test_a_user_s_label_file_is_read_by_names_in_chexbert_s_order(tmp_path: Path) -> None:
    order = [*LABELS[1:3], LABELS[4], LABELS[3], *LABELS[5:], "No Finding"]  # CheXbert's
    rows = ["study_id,Report Impression," + ",".join(order)]
    rows += [f"s{i},\"text, with comma\"," + ",".join("1" if j == i else "" for j in range(14))
             for i in (2, 3)]  # fmt: skip
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(rows) + "\n")
    found = states(read_labels(file, ["3", "s2"]))
    assert [LABELS[row.tolist().index(1)] for row in found] == ["Lung Lesion", "Lung Opacity"]
    with pytest.raises(UserError, match="no labels of 1 studies, such as 4"):
        read_labels(file, ["2", "4"])
    file.write_text("study_id,Edema\n2,1\n")
    with pytest.raises(UserError, match="no column for No Finding"):
        read_labels(file, ["2"])


def test_measured_scores_say_convention_labeler_and_n() -> None:
    found = measure_chexpert(Sides(REFERENCE, PREDICTION, "mine.csv"))
    headline = next(score for score in found.scores if score.name == "CheXpert")
    assert headline.n == 200
    assert headline.signature == "F1,boxmed_table3,labeler=mine.csv"
    classes = found.tables["chexpert_classes"]
    assert [row["label"] for row in classes] == list(LABELS)
    assert np.mean([row["f1"] for row in classes]) == pytest.approx(headline.value)


def test_radeval_s_examples_are_told_apart(shared: Path) -> None:
    """What RadEval's page says of each: a negation flip and a hallucination must not pass."""
    rows = json.loads((shared / "data/fixtures/radeval/divergence_examples.json").read_text())
    decomposer = Decomposer(load_banks())
    reference = states(label_reports([row["ref"] for row in rows], decomposer))
    prediction = states(label_reports([row["hyp"] for row in rows], decomposer))
    f1 = {
        row["id"]: rates(reference[[i]], prediction[[i]], "u0/example-14").f1
        for i, row in enumerate(rows)
    }
    assert f1[1] == f1[5] == f1[7] == 1  # paraphrase, exact match, severity (which labels ignore)
    assert f1[2] == f1[6] == f1[8] == 0  # negation flip, total mismatch, opposite conclusion
    assert f1[3] == pytest.approx(2 / 3)  # one of two findings is missing
    assert f1[4] == 0  # a hallucinated pneumothorax
