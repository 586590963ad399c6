"""`cot-builder predict` with tiny models: adapter and base, errors, resuming, the manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cot_builder.boxes import Frame, Size
from cot_builder.cli import app
from cot_builder.predictions import Located, Predictions, read_predictions

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model

from training.generate import read_answer
from training.models import load_model, make_tiny

SENTENCES = ("Small left effusion.", "No edema.", "<think>a</think><answer>[1, 2, 3, 4]</answer>")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "dataset"
    pixels = ("--min-pixels", "3136", "--max-pixels", "50176")
    done = run(
        "build",
        "--source",
        "demo",
        "--image-scale",
        "0.25",
        "--out",
        out,
        "--workers",
        "1",
        *pixels,
    )
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny("tiny-qwen2_vl", SENTENCES, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the base that is random where a fresh one would change nothing."""
    folder = tmp_path_factory.mktemp("adapter")
    targets = r".*language_model.*\.(q_proj|v_proj|o_proj|down_proj)"
    config = LoraConfig(r=8, lora_alpha=400, init_lora_weights=False, target_modules=targets)
    get_peft_model(load_model(base), config).save_pretrained(folder)
    for file in base.iterdir():
        if file.name.startswith(("tokenizer", "preprocessor", "processor", "chat", "video")):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def predicted(checkpoint: Path, dataset: Path, out: Path, *more: str | Path) -> Predictions:
    short = ("--report-tokens", "12", "--answer-tokens", "12", "--split", "all")
    done = run("predict", checkpoint, dataset, "--out", out, *short, *more)
    assert done.exit_code == 0, done.output
    return read_predictions(out)


@pytest.fixture(scope="module")
def found(adapter: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("found") / "predictions"
    predicted(adapter, demo, out, "--limit", "4", "--phrases")
    return out


def test_every_study_has_a_line_and_images_that_are_missing_a_reason(found: Path) -> None:
    predictions = read_predictions(found)
    assert len(predictions.by_study) == 4
    errors = [p.error for p in predictions.by_study.values() if p.error]
    assert errors == ["no_image: the dataset has no image of this study"]
    for prediction in predictions.by_study.values():
        for sentence in prediction.sentences:
            assert prediction.report
            assert prediction.report[sentence.start : sentence.end] == sentence.text
            assert sentence.raw or sentence.problem
    manifest = predictions.manifest
    assert manifest
    assert manifest["counts"]["studies"] == 4
    assert manifest["counts"]["errors"] == 1
    assert manifest["decoding"]["strategy"] == "greedy"
    assert manifest["prompts"]["report"]["id"].startswith("report-findings@")
    assert manifest["frame"]["name"] == "norm1000"


def test_the_adapter_writes_the_report_and_the_base_answers_the_phrases(
    found: Path, base: Path, demo: Path, tmp_path: Path
) -> None:
    ours = read_predictions(found)
    plain = predicted(base, demo, tmp_path / "base", "--limit", "4", "--phrases")
    studies = [s for s, p in ours.by_study.items() if p.phrases]
    assert studies
    for study in studies:
        assert ours.by_study[study].phrases == plain.by_study[study].phrases
    reports = [(ours.by_study[s].report, plain.by_study[s].report) for s in studies]
    assert any(one != other for one, other in reports)


def test_a_batch_gives_what_one_at_a_time_gives(
    found: Path, adapter: Path, demo: Path, tmp_path: Path
) -> None:
    one = predicted(adapter, demo, tmp_path / "one", "--limit", "4", "--phrases", "--batch", "1")
    assert one.by_study == read_predictions(found).by_study


def test_a_stopped_run_goes_on_and_writes_what_a_whole_one_does(
    found: Path, adapter: Path, demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    predicted(adapter, demo, out, "--limit", "4", "--phrases")
    lines = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    (out / "manifest.json").rename(out / "settings.json")
    refused = run("predict", adapter, demo, "--out", out, "--split", "all")
    assert refused.exit_code == 1
    assert "--resume goes on" in refused.stderr
    again = predicted(adapter, demo, out, "--limit", "4", "--phrases", "--resume")
    assert again.by_study == read_predictions(found).by_study
    other = run("predict", adapter, demo, "--out", out, "--split", "all", "--resume")
    assert "was begun with another phrases, limit, decoding" in other.stderr


def test_an_unreadable_image_is_listed_and_the_others_are_read(
    adapter: Path, demo: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    for file in demo.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(demo)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    broken = sorted((copy / "images").rglob("*.jpg"))[0]
    broken.write_bytes(b"no image")
    predictions = predicted(adapter, copy, tmp_path / "out", "--limit", "14")
    errors = [p.error for p in predictions.by_study.values() if p.error]
    assert any(error.startswith("image_unreadable: ") for error in errors)
    assert len(predictions.by_study) == 14
    assert sum(p.report is not None for p in predictions.by_study.values()) == 14 - len(errors)


def test_another_pixel_budget_is_refused(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    built = run(
        "build", "--source", "demo", "--image-scale", "0.25", "--out", out, "--workers", "1"
    )
    assert built.exit_code == 0
    done = run("predict", adapter, out, "--out", tmp_path / "p")
    assert done.exit_code == 1
    assert "boxes would be read in another frame" in done.stderr


@pytest.mark.parametrize(
    ("raw", "boxes", "problem"),
    [
        ("<think>a</think><answer>[100, 200, 300, 400]</answer>", ((50, 200, 150, 400),), None),
        ("<think>a</think><answer>[]</answer>", (), None),
        ("<think>a</think>", None, "no_answer: it has no <answer>"),
        ("There is an effusion.", None, "tags: "),
        ("<think>a</think><answer>here</answer>", None, "no_boxes: "),
        ("", None, "tags: "),
    ],
)
def test_answers_become_boxes_of_the_original_or_say_why_not(
    raw: str, boxes: tuple | None, problem: str | None
) -> None:
    found = read_answer(Located("a"), raw, Frame("norm1000"), Size(500, 1000))
    assert found.boxes == boxes
    assert found.raw == raw
    assert (found.problem or "").startswith(problem or "")
    assert (found.problem is None) == (problem is None)
    assert json.dumps(found._asdict())
