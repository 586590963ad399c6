"""A whole build: what comes out, what is set aside, what a kill, a crash or a full disk leaves."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from cot_builder.dataset import MANIFEST, REJECTS, read_manifest, read_rejects, read_studies
from cot_builder.errors import UserError
from cot_builder.pipeline import Progress, build
from cot_builder.records import Report, Section
from cot_builder.shards import UNFINISHED, BuildOptions
from cot_builder.sources import SOURCES, Loaded, Plan, Source, SourceOptions, Task
from cot_builder.sources.contract import OPEN
from knowledge_banks import load_banks

FINDINGS = (
    "The lungs are clear. No pneumothorax.",
    "Small left pleural effusion. Heart size is normal.",
    "Patchy opacity in the right base may represent atelectasis or infiltrate.",
    "Degenerative changes of the thoracic spine.",
)
BANKS = load_banks()
COLUMNS: dict[str, Any] = {
    "id_column": "study",
    "split_column": "split",
    "findings_column": "findings",
    "impression_column": "impression",
}
Files = dict[str, bytes]


def a_table(path: Path, studies: int = 40) -> Path:
    """Studies in three splits; every tenth has no text."""
    draw = random.Random(0)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["study", "split", "findings", "impression"])
        for number in range(studies):
            split = ("train", "validate", "test")[number * 3 // studies]
            text = "" if number % 10 == 9 else " ".join(draw.sample(FINDINGS, 2))
            writer.writerow([f"s{number:06}", split, text, f"Study {number}." if text else ""])
    return path


def options(table: Path, out: Path, **changes: Any) -> BuildOptions:
    limit: int | None = changes.pop("limit", None)
    release = SourceOptions(banks=BANKS, root=table, limit=limit, **COLUMNS)
    chosen: dict[str, Any] = {"source": "table", "release": release, "out": out, "shard_size": 4}
    return BuildOptions(**{**chosen, **changes})


def command(table: Path, out: Path, *more: str) -> list[str]:
    flags = [
        text for name, value in COLUMNS.items() for text in (f"--{name.replace('_', '-')}", value)
    ]
    run = [sys.executable, "-c", "from cot_builder.cli import main; main()", "build"]
    where = ["--source", "table", "--root", str(table), "--out", str(out), "--shard-size", "50"]
    return [*run, *where, *flags, *more]


def files(folder: Path) -> Files:
    """Every file's bytes; of the manifest all but the command line."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found[MANIFEST])
    del manifest["command"]
    return {**found, MANIFEST: json.dumps(manifest).encode()}


def test_every_study_ends_as_a_row_or_as_a_reject(tmp_path: Path) -> None:
    manifest = build(options(a_table(tmp_path / "t.csv"), tmp_path / "out"))
    assert manifest == read_manifest(tmp_path / "out")
    rows = list(read_studies(tmp_path / "out"))
    rejects = list(read_rejects(tmp_path / "out"))
    assert manifest["counts"]["planned"] == len(rows) + manifest["counts"]["rejected"] == 36
    assert manifest["rejects"]["before_planning"] == 4
    assert {row["study_id"] for row in rows} | {line["study_id"] for line in rejects} == {
        f"s{number:06}" for number in range(40)
    }
    assert manifest["rejects"]["lines"] == len(rejects) == 4
    assert manifest["rejects"]["by_reason"] == Counter(line["reason"] for line in rejects)
    assert sum(split["written"] for split in manifest["splits"].values()) == len(rows)
    shards = [shard["file"] for shard in manifest["shards"]]
    assert sorted(shards) == sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert list(manifest["splits"]) == ["train", "validation", "test"]
    for row in rows:
        texts = {section["name"]: section["text"] for section in row["sections"]}
        for mention in (*row["chains"], *row["unmapped"]):
            text = texts[mention["section"]]
            assert text[mention["start"] : mention["end"]] == mention["finding"]
        assert row["provenance"]["bank_version"] == manifest["banks"]["version"]


def test_the_manifest_counts_what_the_rows_hold(tmp_path: Path) -> None:
    manifest = build(options(a_table(tmp_path / "t.csv"), tmp_path / "out"))
    rows = list(read_studies(tmp_path / "out"))
    chains = Counter((c["disease"], c["assertion"]) for row in rows for c in row["chains"])
    assert chains
    assert chains == {
        (label, assertion): n
        for label, counts in manifest["chains"].items()
        for assertion, n in counts.items()
        if n
    }
    assert sum(manifest["unmapped"].values()) == sum(len(row["unmapped"]) for row in rows)
    for name in ("sentences", "bearing", "covered"):
        assert manifest["coverage"][name] == sum(row["provenance"][name] for row in rows)
    assert str(tmp_path) not in json.dumps(manifest)


def test_workers_hash_seeds_and_repeats_change_no_byte(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv", 400)
    for name, workers, seed in (("a", "1", "1"), ("b", "2", "2"), ("c", "3", "3")):
        subprocess.run(
            command(table, tmp_path / name, "--workers", workers),
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_a_part_of_the_input_and_of_the_sections(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv")
    build(options(table, tmp_path / "few", limit=3))
    assert len(list(read_studies(tmp_path / "few"))) == 3
    manifest = build(options(table, tmp_path / "one", sections=("impression",)))
    assert all(
        mention["section"] == "impression"
        for row in read_studies(tmp_path / "one")
        for mention in (*row["chains"], *row["unmapped"])
    )
    assert manifest["options"]["sections"] == ["impression"]


def test_a_report_without_the_wanted_sections_is_set_aside(tmp_path: Path) -> None:
    manifest = build(options(a_table(tmp_path / "t.csv"), tmp_path / "out", sections=("addendum",)))
    assert manifest["counts"]["written"] == 0
    planning, line = list(read_rejects(tmp_path / "out"))[3:5]
    assert (planning["reason"], line["reason"]) == ("empty_report", "no_findings_or_impression")
    assert line["detail"] == "looked for addendum; found findings, impression"
    assert line["study_id"] == "s000000"
    assert "t.csv" in line["file"]


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    build(options(a_table(tmp_path / "t.csv"), tmp_path / "out"), progress=seen.append)
    assert seen[0].done == 0
    assert seen[-1].done == seen[-1].total
    assert [step.done for step in seen] == sorted(step.done for step in seen)


# -- a folder that holds something


def test_a_complete_dataset_is_not_overwritten_unasked(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv")
    build(options(table, tmp_path / "out"))
    before = files(tmp_path / "out")
    with pytest.raises(UserError, match="complete dataset: --overwrite replaces it"):
        build(options(table, tmp_path / "out"))
    with pytest.raises(UserError, match="other input, options or banks"):
        build(options(table, tmp_path / "out", shard_size=5, resume=True))
    build(options(table, tmp_path / "out", resume=True))
    assert files(tmp_path / "out") == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    build(options(table, tmp_path / "out", shard_size=100, overwrite=True))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        *("test-00000-of-00001.parquet", MANIFEST, REJECTS, "notes.txt"),
    }


@pytest.mark.parametrize("changes", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_of_other_files_is_never_touched(tmp_path: Path, changes: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        build(options(tmp_path / "t.csv", tmp_path, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_out_that_is_a_file_and_an_unknown_source_are_named(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"t\.csv is a file"):
        build(options(table, table))
    with pytest.raises(UserError, match=r"unknown source 'mimicc'.*mimic"):
        build(options(table, tmp_path / "out", source="mimicc"))
    assert not (tmp_path / "out").exists()


# -- a build that is cut off


def leave_unfinished(table: Path, out: Path) -> None:
    """Stop a build after its third shard, as Ctrl-C would."""

    def stop(progress: Progress) -> None:
        if progress.done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(options(table, out), progress=stop)


def test_resume_keeps_finished_shards_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv")
    build(options(table, tmp_path / "whole"))
    out = tmp_path / "out"
    leave_unfinished(table, out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(kept) == 3
    with pytest.raises(UserError, match="--resume continues it"):
        build(options(table, out))
    with pytest.raises(UserError, match="not complete"):
        read_manifest(out)
    seen: list[Progress] = []
    build(options(table, out, resume=True), progress=seen.append)
    assert (seen[0].done, seen[0].kept, seen[-1].done) == (12, 12, 36)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert files(out) == files(tmp_path / "whole")


def test_resume_does_shards_again_that_no_longer_fit(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv")
    out = tmp_path / "out"
    leave_unfinished(table, out)
    damaged = out / "train-00000-of-00004.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (out / UNFINISHED / "train-00001-of-00004.parquet.json").write_text('{"key": ')
    (out / UNFINISHED / "train-00002-of-00004.parquet.4711").write_text("half a shard")
    build(options(table, out, resume=True))
    build(options(table, tmp_path / "whole"))
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("changes", [{"shard_size": 7}, {"sections": ("impression",)}])
def test_resume_with_other_options_builds_what_these_ask_for(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    table = a_table(tmp_path / "t.csv")
    leave_unfinished(table, tmp_path / "out")
    build(options(table, tmp_path / "out", resume=True, **changes))
    build(options(table, tmp_path / "whole", **changes))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(
    tmp_path: Path, workers: str
) -> None:
    table = a_table(tmp_path / "t.csv", 2500)
    whole = command(table, tmp_path / "whole", "--workers", workers)
    started = time.monotonic()
    subprocess.run(whole, check=True, capture_output=True)
    seconds = time.monotonic() - started
    draw = random.Random(int(workers))
    out = tmp_path / "out"
    again = command(table, out, "--workers", workers, "--resume")
    for _ in range(3):
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.2, 1.0) * seconds)
        process.kill()
        process.wait()
    subprocess.run(again, check=True, capture_output=True)
    assert files(out) == files(tmp_path / "whole")


def start_and_wait_for_a_shard(arguments: list[str], out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(out.glob("*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]


def test_a_worker_that_dies_ends_the_build_and_names_the_shard(tmp_path: Path) -> None:
    table, out = a_table(tmp_path / "t.csv", 8000), tmp_path / "out"
    process = start_and_wait_for_a_shard(command(table, out, "--workers", "2"), out)
    workers_of(process)[0].kill()
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "a worker process died" in message
    assert re.search(r"while it wrote train-\d{5}-of-\d{5}\.parquet", message)
    assert "--resume" in message
    assert not (out / MANIFEST).exists()


def test_a_script_without_a_main_guard_is_told_so_and_does_not_hang(tmp_path: Path) -> None:
    table, out = a_table(tmp_path / "t.csv", 200), tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text("from cot_builder.cli import main\nmain()\n")
    arguments = command(table, out, "--workers", "2")[3:]
    finished = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 1
    assert "__main__" in finished.stderr
    assert "a worker process died" in finished.stderr


def test_workers_do_not_outlive_a_killed_build(tmp_path: Path) -> None:
    table, out = a_table(tmp_path / "t.csv", 8000), tmp_path / "out"
    process = start_and_wait_for_a_shard(command(table, out, "--workers", "2"), out)
    workers = workers_of(process)
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    table, out = a_table(tmp_path / "t.csv", 8000), tmp_path / "out"
    process = start_and_wait_for_a_shard(command(table, out, "--workers", "2"), out)
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_a_one_line_error(tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    finished = subprocess.run(
        command(a_table(tmp_path / "t.csv", 400), out, "--workers", workers),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert "cannot write" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert [path.name for path in out.iterdir()] == [UNFINISHED]


# -- a defect of the tool


def a_source(texts: dict[str, str]) -> Source:
    """A toy source whose loader fails on the text `boom` and forgets a study on an empty one."""

    def plan(_: SourceOptions) -> Plan:
        return Plan([Task(study, None, None, f"{study}.txt") for study in texts], [], "toy 1")

    def load(task: Task, _: SourceOptions) -> Loaded:
        text = texts[task.study_id]
        if text == "boom":
            raise ZeroDivisionError("a defect")
        sections = (Section("findings", text),)
        report = Report(task.study_id, None, "toy", None, sections, file=task.file)
        return Loaded(report if text else None)

    return Source("toy", plan, load, False, OPEN, "none", "none")


def test_a_defect_costs_one_study_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"1": "Clear lungs.", "2": "boom", "3": "", "4": "Small effusion."}
    monkeypatch.setitem(SOURCES, "toy", a_source(texts))
    manifest = build(options(tmp_path / "none", tmp_path / "out", source="toy"))
    assert [row["study_id"] for row in read_studies(tmp_path / "out")] == ["1", "4"]
    first, second = read_rejects(tmp_path / "out")
    assert first["reason"] == second["reason"] == "internal_error"
    assert first["file"] == "2.txt"
    assert first["detail"].startswith("ZeroDivisionError: a defect (test_pipeline.py:")
    assert "neither a report nor a reason" in second["detail"]
    assert manifest["rejects"]["by_reason"] == {"internal_error": 2}
    assert manifest["source"]["release"] == "toy 1"


def test_a_release_without_splits_goes_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "toy", a_source({"1": "Clear lungs."}))
    manifest = build(options(tmp_path / "none", tmp_path / "out", source="toy"))
    assert [shard["file"] for shard in manifest["shards"]] == ["train-00000-of-00001.parquet"]
    assert next(read_studies(tmp_path / "out"))["split"] is None
