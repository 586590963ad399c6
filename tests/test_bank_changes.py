"""What a bank edit does to a dataset: chains that come, go and change; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from cot_builder.bank_changes import (
    Change,
    banks_table,
    changed_chains,
    changes_table,
    write_changes,
)
from cot_builder.cli import app
from cot_builder.errors import UserError
from knowledge_banks import Banks, load_banks

STUDIES = [
    {
        "study_id": "1",
        "sections": [
            {"name": "findings", "text": "Batwing pattern. Small left effusion."},
            {"name": "history", "text": "Batwing pattern."},
        ],
    },
    {"study_id": "2", "sections": [{"name": "findings", "text": "No effusion. Hiatal hernia."}]},
]
EXTENDS = 'version = "1.0.0"\nextends = true\n'


def extended(folder: Path, **files: str) -> Banks:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(f"{EXTENDS}{text}\n")
    return load_banks(folder)


def changes(old: Banks, new: Banks) -> list[Change]:
    return list(changed_chains(STUDIES, old, new, sections=["findings"]))


def printed(renderable: object) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_same_banks_change_nothing(tmp_path: Path) -> None:
    shipped = load_banks()
    assert changes(shipped, shipped) == []
    # Other banks, and so another version in every rule, that read these studies as the shipped do.
    unused = extended(tmp_path, signs='[[sign]]\nid = "volume_loss"\nphrases = ["zzyzx"]')
    assert unused.version != shipped.version
    assert changes(shipped, unused) == []


def test_a_chain_comes_and_goes(tmp_path: Path) -> None:
    shipped = load_banks()
    mine = extended(
        tmp_path,
        signs='[[sign]]\nid = "batwing"\ndisease = "Edema"\nsite = "lung"\n'
        'phrases = ["batwing pattern"]',
    )
    said = "Batwing pattern · Edema · positive · whole lung [signs.batwing]"
    # The history is no part of what was decomposed.
    assert changes(shipped, mine) == [Change("1", "findings", 0, None, said)]
    assert changes(mine, shipped) == [Change("1", "findings", 0, said, None)]


def test_a_chain_changes_its_assertion(tmp_path: Path) -> None:
    shipped = load_banks()
    mine = extended(tmp_path, cues='[[cue]]\nid = "no"\nremove = ["no"]')
    (change,) = changes(shipped, mine)
    assert change[:3] == ("2", "findings", 3)
    assert change.before is not None
    assert change.after is not None
    assert " · negative · " in change.before
    assert " · positive · " in change.after


def test_a_finding_becomes_a_chain(tmp_path: Path) -> None:
    mine = extended(
        tmp_path,
        diseases='[[disease]]\nname = "Pneumonia"\n[[disease.group]]\nid = "odd"\nsite = "lung"\n'
        'phrases = ["hiatal hernia"]',
    )
    come, gone = changes(load_banks(), mine)
    assert (come.before, gone.after) == (None, None)
    assert come.after == "Hiatal hernia · Pneumonia · positive · whole lung [diseases.odd]"
    assert gone.before is not None
    assert gone.before.startswith("Hiatal hernia · unmapped · positive · mediastinum")


def test_table_counts_what_it_does_not_show() -> None:
    found = [Change(str(number // 2), "findings", 0, "a", None) for number in range(7)]
    text = printed(changes_table(found, limit=3))
    assert "chains changed: 7; studies: 4; the first 3 are shown" in text
    assert text.count("findings") == 3
    assert "chains changed: 0; studies: 0" in printed(changes_table([]))


def test_changes_are_written_as_json_lines(tmp_path: Path) -> None:
    change = Change("1", "findings", 3, None, "é")
    write_changes(tmp_path / "changes.jsonl", [change])
    assert json.loads((tmp_path / "changes.jsonl").read_text("utf-8")) == change._asdict()
    with pytest.raises(UserError, match=r"--out .*none/c.jsonl: cannot be written"):
        write_changes(tmp_path / "none" / "c.jsonl", [change])


def test_banks_are_shown_by_name(tmp_path: Path) -> None:
    mine = extended(tmp_path, states='[state]\nnormal = ["tip top"]')
    text = printed(banks_table(mine))
    for part in (mine.version, mine.sha256[:12], "Enlarged Cardiomediastinum", "low_volumes"):
        assert part in text
    assert "low_volumes → Atelectasis" in text
    assert "no → negative" in text


# -- the command


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    rows = ({"id": s["study_id"], "text": s["sections"][0]["text"]} for s in STUDIES)  # type: ignore[index]
    (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("--id-column", "id", "--findings-column", "text", "--workers", "1")
    source = ("--source", "table", "--root", folder / "reports.jsonl")
    result = run("build", *source, *columns, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_the_command_tells_and_writes(dataset: Path, tmp_path: Path) -> None:
    extended(tmp_path / "mine", cues='[[cue]]\nid = "no"\nremove = ["no"]')
    out = tmp_path / "changes.jsonl"
    result = run("banks", "diff", dataset, "--banks", tmp_path / "mine", "--out", out)
    assert result.exit_code == 0, result.output
    assert "chains changed: 1; studies: 1" in result.output
    (change,) = map(json.loads, out.read_text().splitlines())
    assert (change["study_id"], change["start"]) == ("2", 3)
    back = run("banks", "diff", dataset, "--old", tmp_path / "mine", "--out", out)
    assert back.exit_code == 0
    (undone,) = map(json.loads, out.read_text().splitlines())
    assert (undone["before"], undone["after"]) == (change["after"], change["before"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--banks", "nowhere"], "nowhere: no such folder"),
        (["--old", "nowhere"], "nowhere: no such folder"),
        (["--out", "nowhere/changes.jsonl"], "nowhere/changes.jsonl: cannot be written"),
    ],
)
def test_bad_flags_are_named(dataset: Path, arguments: list[str], message: str) -> None:
    result = run("banks", "diff", dataset, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
