"""`cot-builder score` and `conventions` from files to a scores folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cot_builder.cli import app
from cot_builder.errors import UserError
from eval.score import read_scores
from tests.reports import report_pairs


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        app, [str(a) for a in arguments], env={"COLUMNS": "200", "PATH": ""}
    )  # no Java


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    pairs = report_pairs(40)
    paths = tmp_path / "predictions.jsonl", tmp_path / "references.jsonl"
    for side, path in zip((1, 0), paths, strict=True):
        rows = [{"study_id": i, "report": pair[side]} for i, pair in enumerate(pairs)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def test_scores_have_signatures_and_are_read_back(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores"
    done = run("score", *files, "--out", out, "--name", "mine", "--tokens", "lower")
    assert done.exit_code == 0, done.output
    assert "tokens=lower,corpus,pycocoevalcap" in done.output
    assert "CheXpert[u0/macro-14]" in done.output
    found = read_scores(out)
    assert found.name == "mine"
    assert found.counts["pairs"] == 40
    assert all(score.signature for score in found.scores)
    assert len(found.per_study) == 40
    assert found.value("ROUGE-L") == pytest.approx(found.per_study["ROUGE-L"].mean())
    content = json.loads((out / "scores.json").read_text())
    assert content["settings"]["tokens"] == "lower"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tokens", "bpe"], "--tokens 'bpe': expected one of r2gen"),
        (["--convention", "best"], "--convention 'best': expected one of u1/macro-14"),
        (["--measures", "text,bleurt"], "unknown measure 'bleurt'"),
        (["--split", "test"], "--split is for a dataset folder"),
        (["--reference-labels", "none.csv"], "cannot read the label table none.csv"),
    ],
)
def test_mistakes_are_told_in_a_line(
    files: tuple[Path, Path], arguments: list[str], told: str
) -> None:
    done = run("score", *files, *arguments)
    assert done.exit_code == 1
    assert told in done.stderr


def test_conventions_show_how_far_the_same_predictions_move(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run("conventions", *files, "--out", tmp_path / "spread.csv")
    assert done.exit_code == 0, done.output
    assert "boxmed_table3" in done.output
    assert "The same predictions score an F1 from" in done.output
    lines = (tmp_path / "spread.csv").read_text().splitlines()
    assert lines[0] == "convention,accuracy,precision,recall,f1"
    assert len(lines) == 42


def test_a_folder_without_scores_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no scores folder"):
        read_scores(tmp_path)
