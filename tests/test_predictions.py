"""Predictions folders and other people's files: read, paired, written, gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cot_builder.errors import UserError
from cot_builder.predictions import Located, Prediction, Writer, read_predictions
from eval.records import pair, read_pairs


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def report(study_id: object, text: str | None = "No effusion.", **more: object) -> dict:
    return {"study_id": study_id, "report": text, **more}


def test_order_does_not_matter_and_missing_empty_and_extra_ones_are_told(tmp_path: Path) -> None:
    references = lines(tmp_path / "r.jsonl", *(report(i, f"Text {i}.") for i in range(1, 5)))
    predictions = lines(
        tmp_path / "p.jsonl",
        report(3, "three"),
        report("9", "nine"),
        report(1, ""),
        report(2, "two"),
    )
    found = read_pairs(predictions, references)
    assert [(p.study_id, p.prediction) for p in found.pairs] == [
        ("1", ""), ("2", "two"), ("3", "three"), ("4", ""),
    ]  # fmt: skip
    assert (found.missing, found.empty, found.extra) == (("4",), ("1",), ("9",))
    skipped = read_pairs(predictions, references, missing="skip")
    assert [p.study_id for p in skipped.pairs] == ["1", "2", "3"]
    assert skipped.missing == ("4",)


def test_an_error_is_a_missing_report_and_an_empty_reference_is_left_out(tmp_path: Path) -> None:
    references = lines(tmp_path / "r.jsonl", report(1), report(2, ""), report(3))
    predictions = lines(
        tmp_path / "p.jsonl", report(1), report(2), report(3, None, error="image_missing")
    )
    found = read_pairs(predictions, references)
    assert found.counts == {
        "pairs": 2,
        "missing": 0,
        "errors": 1,
        "empty": 0,
        "extra": 0,
        "no_reference": 1,
    }
    assert found.pairs[1].prediction == ""


def test_csv_as_pandas_writes_it_and_ids_as_mimic_spells_them(tmp_path: Path) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text('study_id,report\n50414267,"No effusion,\nno edema."\n')
    references = lines(tmp_path / "r.jsonl", report("s50414267"))
    (found,) = read_pairs(file, references).pairs
    assert found.prediction == "No effusion,\nno edema."
    with_gap = lines(tmp_path / "gap.jsonl", report(50414267.0))  # a column that had a gap
    assert len(read_pairs(with_gap, references).pairs) == 1


SENTENCE = {"text": "a", "boxes": [[1, 2, 3, 4]]}
TWICE = json.dumps(report(1)) + "\n" + json.dumps(report("1", "b"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", TWICE, "a.jsonl:2: study 1 stands in line 1 already"),
        ("a.jsonl", {"study_id": 1, "text": "a"}, "no 'report': expected study_id and report, got"),
        ("a.jsonl", {"report": "a"}, "no 'study_id'"),
        ("a.jsonl", report(""), "study_id: expected a text"),
        ("a.jsonl", {"study_id": 1, "report": 5}, "report: expected a text, got 5"),
        ("a.jsonl", "[1]", "expected an object"),
        ("a.jsonl", "not json", "neither JSON Lines"),
        ("a.jsonl", "\n", "holds no prediction"),
        ("a.csv", "id,report\n1,a\n", "no 'study_id'"),
        ("a.jsonl", report(1, frame="norm1000", sentences=[SENTENCE]), "width and height"),
        ("a.jsonl", report(1, sentences=[{"text": "a", "boxes": [[1, 2]]}]), "not a prediction"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(
    tmp_path: Path, name: str, content: str | dict, told: str
) -> None:
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_predictions(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read predictions .*gone\.jsonl: No such file"):
        read_predictions(tmp_path / "gone.jsonl")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is not JSON"):
        read_predictions(tmp_path)


def test_predictions_of_other_studies_are_refused(tmp_path: Path) -> None:
    references = lines(tmp_path / "r.jsonl", report(1))
    with pytest.raises(UserError, match="its ids begin 7, 8"):
        pair(
            read_predictions(lines(tmp_path / "p.jsonl", report(7), report(8))),
            iter([("1", "Text.", None)]),
        )
    with pytest.raises(UserError, match="--split is for a dataset folder"):
        read_pairs(references, references, split="test")


def test_boxes_of_another_frame_become_the_original_s_pixels(tmp_path: Path) -> None:
    row = report(
        1, width=2000, height=500, sentences=[{"text": "a", "boxes": [[100, 200, 300, 400]]}]
    )
    file = lines(tmp_path / "p.jsonl", row)
    for found in (
        read_predictions(file, frame="norm1000"),
        read_predictions(lines(tmp_path / "q.jsonl", {**row, "frame": "norm1000"})),
    ):
        assert found.by_study["1"].sentences[0].boxes == ((200, 100, 600, 200),)
    assert read_predictions(file).by_study["1"].sentences[0].boxes == ((100, 200, 300, 400),)


PREDICTION = Prediction(
    "1", "A. B.", "i", "i.png", 10, 20,
    sentences=(Located("A.", 0, 2, "<think>x</think>", "x", ((1, 2, 3, 4),), (0.5,)),
               Located("B.", 3, 5, "?", problem="tags: none")),
)  # fmt: skip


def test_a_folder_is_complete_with_its_manifest_and_gives_back_what_was_written(
    tmp_path: Path,
) -> None:
    writer = Writer(tmp_path / "out", {"checkpoint": "c"}, resume=False)
    writer.write(PREDICTION)
    with pytest.raises(UserError, match="--resume"):
        read_predictions(tmp_path / "out")
    writer.write(Prediction("2", None, error="image_missing: no such file"))
    manifest = writer.finish()
    assert manifest["counts"] == {
        "answers": 2, "empty_reports": 0, "errors": 1, "studies": 2, "unreadable_answers": 1,
    }  # fmt: skip
    found = read_predictions(tmp_path / "out")
    assert found.by_study["1"] == PREDICTION
    assert found.manifest == manifest


def test_a_killed_run_goes_on_where_it_stopped_and_tries_errors_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"checkpoint": "c", "batch": (1, 2)}
    writer = Writer(out, settings, resume=False)
    writer.write(PREDICTION)
    writer.write(Prediction("2", None, error="image_missing"))
    with (out / "predictions.jsonl").open("ab") as stream:
        stream.write('{"study_id": "3", "report": "é'.encode()[:-1])  # killed within a character
    again = Writer(out, settings, resume=True)
    assert again.done == {"1"}
    again.write(Prediction("2", "Text."))
    assert again.finish()["counts"]["studies"] == 2
    assert list(read_predictions(out).by_study) == ["1", "2"]
    with pytest.raises(UserError, match="another checkpoint"):
        Writer(out, {**settings, "checkpoint": "d"}, resume=True)
    with pytest.raises(UserError, match="holds predictions already"):
        Writer(out, settings, resume=False)
