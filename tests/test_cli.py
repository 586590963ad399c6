"""The command line: quick help, one-line errors, and what each command prints."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cot_builder import __version__
from cot_builder.cli import app
from tests.test_house import COMMANDS as EVERY_COMMAND

HEAVY = (
    *("polars", "pyarrow", "spacy", "torch", "PIL", "matplotlib", "datasets"),
    *("numpy", "rapidfuzz", "starlette", "jinja2"),
)
COMMANDS = (
    *("", "build", "show", "browse", "stats", "explain", "score-chains"),
    *("banks", "banks lint", "banks show", "banks diff"),
)
ROWS = (
    ("1", "train", "Small left pleural effusion. No pneumothorax.", "Possible pneumonia."),
    ("2", "test", "The lungs are clear. Degenerative changes of the spine.", ""),
    ("3", "", "", ""),
)


def run(*arguments: str | Path) -> Result:
    # Wide, so that no message is broken over lines.
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    with (folder / "reports.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("study", "split", "findings", "impression"), *ROWS])
    result = run("build", *build_flags(folder / "reports.csv"), "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out"


def build_flags(table: Path) -> list[str | Path]:
    return [
        *("--source", "table", "--root", table, "--id-column", "study", "--split-column", "split"),
        *("--findings-column", "findings", "--impression-column", "impression"),
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_heavy_library(command: str) -> None:
    code = (
        "import sys\n"
        "from cot_builder.cli import app\n"
        f"sys.argv = ['cot-builder', *{command.split()!r}, '--help']\n"
        "try:\n    app()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.endswith("LOADED []\n"), finished.stdout + finished.stderr
    assert "Usage" in finished.stdout


@pytest.mark.parametrize(("name", "command"), list(EVERY_COMMAND.items()))
def test_help_gives_an_example_and_says_what_each_option_is_for(name: str, command: Any) -> None:
    assert f"`cot-builder {name}" in command.help
    assert [param.name for param in command.params if not param.help] == []


def test_version() -> None:
    assert run("--version").output == f"cot-builder {__version__}\n"


def test_build_prints_counts_that_add_up(dataset: Path) -> None:
    result = run(
        "build", *build_flags(dataset.parent / "reports.csv"), "--out", dataset, "--resume"
    )
    assert "2 studies planned = 2 written + 0 rejected; 1 set aside before" in result.output
    assert "Coverage: " in result.output
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["chains"]["Pneumonia"]["uncertain"] == 1
    assert manifest["seed"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "--source", "mimicc", "--out", "OUT"], "unknown source 'mimicc'"),
        (["build", "--source", "table", "--root", "nowhere.csv", "--out", "OUT"], "nowhere.csv"),
        (["build", "--source", "demo", "--out", "OUT", "--banks", "nowhere"], "nowhere"),
        (["build", "--source", "demo", "--out", "OUT", "--sections", " , "], "names no section"),
        (["show", "--dataset", "OUT"], "no dataset folder at OUT"),
        (["stats", "OUT"], "no dataset folder at OUT"),
        (["stats", "OUT", "--disagreements", "d.csv"], "--disagreements needs --against"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("cot-builder:")]
    assert says in line
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_build_that_wrote_nothing_fails_aloud(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("study,split,findings,impression\n1,train,,\n")
    result = run("build", *build_flags(table), "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "no study was written" in result.stderr


def test_show_draws_a_report_and_its_chains(dataset: Path) -> None:
    output = run("show", "1", "--dataset", dataset).output
    for text in ("study 1", "FINDINGS", "pleural effusion → Pleural Effusion → left lung"):
        assert text in output
    assert "Pneumothorax → whole lung  (negative)" in output
    assert "Pneumonia: uncertain" in output
    assert "study 2" not in output


def test_show_without_a_study_shows_the_first_ones(dataset: Path) -> None:
    assert run("show", "--dataset", dataset).output.count("CHAINS".lower()) == 2
    one = run("show", "--dataset", dataset, "--first", "1").output
    assert "study 1" in one
    assert "study 2" not in one


def test_show_names_a_study_that_is_not_there(dataset: Path) -> None:
    result = run("show", "77", "--dataset", dataset)
    assert result.exit_code == 1
    assert "no study '77'" in result.stderr
    assert "rejects.jsonl" in result.stderr


def test_no_report_can_steer_the_terminal(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        "study,split,findings,impression\n1,train,\x1b[2J[bold]No\x07 pneumothorax.[/bold],\n"
    )
    run("build", *build_flags(table), "--out", tmp_path / "out")
    output = run("show", "--dataset", tmp_path / "out").output
    assert "pneumothorax" in output
    assert "\x1b[2J" not in output
    assert "\x07" not in output


def test_stats_prints_tables_and_draws_every_plot(dataset: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    result = run("stats", dataset, "--plots", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    assert "out, n = 2 studies, bank" in result.output
    assert "Studies: train 1, test 1" in result.output
    names = {"flow", "labels", "regions", "cooccurrence", "coverage", "length"}
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == names
    for path in (tmp_path / "plots").iterdir():
        with image.open(path) as picture:
            assert picture.width > 1000


def test_stats_against_a_table_of_labels(dataset: Path, tmp_path: Path) -> None:
    table = tmp_path / "chexpert.csv"
    table.write_text("study_id,Pneumonia,Edema\n1,1.0,\n2,,\n")
    result = run("stats", dataset, "--against", table, "--disagreements", tmp_path / "d.csv")
    assert result.exit_code == 0, result.output
    assert "Agreement with chexpert.csv, n = 2 studies" in result.output
    assert "1: Pneumonia uncertain → positive" in result.output
    assert "undefined" in result.output  # Edema: both always blank
    assert "no column for No Finding" in result.output
    assert (tmp_path / "d.csv").read_text().splitlines()[1:] == ["1,Pneumonia,uncertain,positive"]


def test_banks_lint_names_the_bank(tmp_path: Path) -> None:
    assert "are sound" in run("banks", "lint").output
    (tmp_path / "cues.toml").write_text("version = 1")
    result = run("banks", "lint", "--banks", tmp_path)
    assert result.exit_code == 1
    assert "cues.toml" in result.stderr


def test_banks_diff_shows_what_an_edit_changes(dataset: Path, tmp_path: Path) -> None:
    assert "chains changed: 0; studies: 0" in run("banks", "diff", dataset).output
    (tmp_path / "diseases.toml").write_text(
        'version = "99.0.0"\nextends = true\n\n[[disease]]\nname = "Pneumonia"\n\n'
        '[[disease.group]]\nid = "mine"\nsite = "lung"\nphrases = ["degenerative changes"]\n'
    )
    output = run("banks", "diff", dataset, "--banks", tmp_path).output
    assert "studies: 1" in output
    assert "Pneumonia" in output
    assert "99.0.0" in run("banks", "show", "--banks", tmp_path).output
