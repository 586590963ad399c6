"""The three stages on the demo corpus and a tiny model, in one process and one chain of runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("trl")

from cot_builder.boxes import Frame, Pixels
from cot_builder.cli import app
from cot_builder.errors import UserError
from cot_builder.images import Scaling
from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks
from training import adapter
from training.checkpoints import base_of, read_checkpoint
from training.conversations import columns, open_source
from training.models import load_checkpoint, merge, part_of
from training.preflight import Finding, preflight
from training.recipe import load_recipe
from training.resume import newest_checkpoint
from training.run import TRAINERS, RunOptions, open_run, pick_samples, train
from training.stage import Job
from training.watching import Journal, complete, read_metrics

BANKS = load_banks()
SHORT = (
    "mcl.epochs=1", "mcl.max_steps=6", "svr.max_steps=4", "svr.batch_size=1", "svr.generations=2",
    "svr.completion=96", "svr.limit=8", "adapter.max_steps=6", "run.save_every=2",
    "run.log_every=1", "run.sample_every=4", "run.samples=1", "run.keep=9",
)  # fmt: skip


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus with reduced images."""
    out = tmp_path_factory.mktemp("demo") / "dataset"
    build(
        BuildOptions(
            source="demo", release=SourceOptions(banks=BANKS), out=out,
            frame=Frame("norm1000", Pixels(), 0.25), scaling=Scaling(0.25),
        )
    )  # fmt: skip
    return out


def options(demo: Path, out: Path, *changes: str, **given: Any) -> RunOptions:
    return RunOptions(
        **{
            "stages": ("mcl", "svr", "adapter"), "recipe": load_recipe("smoke", [*SHORT, *changes]),
            "datasets": (str(demo),), "out": out, "banks": BANKS, **given,
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of all stages."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train(options(demo, out)) == (out / "adapter").resolve()
    return out


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# -- conversations


@pytest.mark.parametrize(
    ("stage", "reward", "count"),
    [("mcl", "set", 18), ("svr", "set", 23), ("svr", "paper", 10), ("adapter", "set", 8)],
)
def test_columns(demo: Path, stage: str, reward: str, count: int) -> None:
    source = open_source(str(demo))
    rows = columns([source], stage, frame=source.frame, banks=BANKS, reward=reward)
    assert len(rows) == count
    assert rows[0]["images"][0].size == (128, 128)
    assert {name for name in rows.column_names if name in ("completion", "solution")}


def test_images_of_a_dataset_without_its_own_are_asked_for(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "bare")
    manifest = json.loads((demo / "manifest.json").read_text()) | {"images": None}
    (tmp_path / "bare/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="--image-root"):
        open_source(str(tmp_path / "bare"))
    assert open_source(str(tmp_path / "bare"), tmp_path).frame.scale == 1


def test_no_such_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OWNER/NAME@REVISION"):
        open_source(str(tmp_path / "nothing"))


# -- a run


@pytest.mark.slow
def test_a_run_leaves_what_it_says(run: Path) -> None:
    for stage, base in (("mcl", "../base"), ("svr", "../mcl"), ("adapter", "../svr")):
        manifest = read_checkpoint(run / stage)
        assert manifest
        assert (manifest["stage"], manifest["base"]) == (stage, base)
        assert Frame.from_row(manifest["frame"]) == Frame("norm1000", Pixels(), 0.25)
        assert (run / stage / "README.md").read_text().startswith("---\nlibrary_name: ")
        assert not list((run / stage).glob("checkpoint-*"))
        assert list((run / "tensorboard" / stage).iterdir())
    assert (run / "curves.png").stat().st_size > 10_000
    assert {path.name for path in (run / "samples").glob("*.png")} >= {
        "mcl-000004.png", "mcl-000006.png", "svr-000004.png", "adapter-000006.png"
    }  # fmt: skip
    rows = list(read_metrics(run))
    losses = [row["loss"] for row in rows if row["stage"] == "mcl" and "loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert {"reward", "kl", "rewards/format_reward/mean"} <= set().union(*rows)
    assert list((run / "svr/completions").glob("*.parquet"))


@pytest.mark.slow
def test_svr_earns_more_at_its_end_than_at_its_start(demo: Path, tmp_path: Path) -> None:
    """The smoke recipe as it is, as a newcomer sees it."""
    recipe = load_recipe("smoke", ["run.samples=0", "run.report_to=[]"])
    train(options(demo, tmp_path / "run", stages=("mcl", "svr"), recipe=recipe))
    rows = [row for row in read_metrics(tmp_path / "run") if "reward" in row]
    assert rows[-1]["step"] == 60
    for key in ("rewards/format_reward/mean", "rewards/iou_reward/mean"):
        before, after = (sum(row[key] for row in part) / 3 for part in (rows[:3], rows[-3:]))
        assert after > before + 0.05, key


@pytest.mark.slow
def test_training_the_adapter_leaves_the_base_to_the_bit(
    run: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the trainer's memory, since a checkpoint has the adapter only."""
    made: list[tuple[Any, dict[str, str]]] = []

    def watched(job: Job) -> Any:
        trainer = adapter.trainer(job)
        made.append((trainer.model, digests(trainer.model)))
        return trainer

    monkeypatch.setitem(TRAINERS, "adapter", watched)
    train(options(demo, tmp_path / "run", stages=("adapter",), base=str(run / "svr")))
    ((model, before),) = made
    after = digests(model)
    assert after.keys() == before.keys()
    learnt = {name for name in after if after[name] != before[name]}
    assert learnt == {name for name in after if "lora_" in name}
    assert len(learnt) == 28


def digests(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(weight.numpy(force=True).tobytes()).hexdigest()
        for name, weight in model.state_dict().items()
    }


@pytest.mark.slow
def test_the_adapter_sits_on_the_language_model(run: Path, demo: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(run / "adapter")
    names = [name for name, _ in loaded.model.named_parameters() if "lora_" in name]
    assert len(names) == 28
    assert {part_of(name) for name in names} == {"language"}
    source = open_source(str(demo))
    (sample,) = pick_samples(columns([source], "adapter", frame=source.frame, banks=BANKS), 1)
    said = complete(loaded.model, loaded.processor, sample, tokens=12)
    assert said.strip()
    merge(run / "adapter", tmp_path / "merged")
    merged = load_checkpoint(tmp_path / "merged")
    assert merged.frame == loaded.frame
    assert complete(merged.model, merged.processor, sample, tokens=12) == said


@pytest.mark.slow
def test_a_moved_run_finds_its_base(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    assert base_of(tmp_path / "moved/adapter") == str((tmp_path / "moved/svr").resolve())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "killed_on", "at", "last"),
    [
        ("mcl", "on_step_begin", 3, 2), ("svr", "on_step_begin", 3, 2),
        ("adapter", "on_step_begin", 3, 2), ("mcl", "on_train_end", 6, 6),
        ("svr", "on_train_end", 4, 4),
    ],
)  # fmt: skip
def test_resumed_is_the_same_as_never_stopped(
    stage: str, killed_on: str, at: int, last: int, run: Path, demo: Path, tmp_path: Path
) -> None:
    """A stage killed within a step, or after its last one, with half of another checkpoint."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / stage)
    shutil.copy(run / "metrics.jsonl", out)
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from transformers import TrainerCallback
from training import run, watching
import test_training_run as t
from pathlib import Path
def die(self, args, state, control, **_):
    if state.global_step == {at}:
        os.kill(os.getpid(), 9)
watching.Bar.{killed_on} = die
run.train(t.options(Path({str(demo)!r}), Path({str(out)!r}), stages=({stage!r},), resume=True))
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, env=environment())
    assert killed.returncode == -signal.SIGKILL
    assert newest_checkpoint(out / stage) == out / stage / f"checkpoint-{last}"
    (out / stage / "checkpoint-7").mkdir()  # one that was being written
    train(options(demo, out, stages=(stage,), resume=True))
    weights = "adapter_model.safetensors" if stage == "adapter" else "model.safetensors"
    for name in (weights, "manifest.json", "tokenizer.json"):
        assert digest(out / stage / name) == digest(run / stage / name), name
    steps = [row["step"] for row in read_metrics(out) if row["stage"] == stage and "loss" in row]
    assert steps == sorted(set(steps)), "a step that is taken again is logged once"


def test_what_a_kill_cuts_off_of_a_runs_files_is_no_obstacle(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.json").write_text('{"recipe": {"mod')  # killed before run.json was there
    given = options(demo, out, resume=True)
    open_run(given)
    told = (out / "run.json").read_text()
    open_run(given)
    assert (out / "run.json").read_text() == told
    lines = [{"stage": "mcl", "step": step, "loss": 1.0} for step in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "metrics.jsonl").write_text(text + '{"stage": "mcl", "st')
    assert list(read_metrics(out)) == lines
    state = SimpleNamespace(global_step=2, is_world_process_zero=True)
    Journal(out, "mcl").on_train_begin(None, state, None)
    assert list(read_metrics(out)) == lines[:2]
    assert {path.name for path in out.iterdir()} == {"run.json", "metrics.jsonl"}


@pytest.mark.slow
def test_a_stage_that_ended_leaves_no_checkpoints_though_it_was_killed_then(
    run: Path, demo: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    left = tmp_path / "run/svr/checkpoint-4"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"gigabytes")
    train(options(demo, tmp_path / "run", resume=True))
    assert not left.exists()
    weights = "svr/model.safetensors"
    assert digest(tmp_path / "run" / weights) == digest(run / weights)


def program(demo: Path, out: Path, **given: Any) -> str:
    """A run in Python, whose last process dies after three steps of the stage DIES_IN."""
    return f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_training_run as t
from training import run, watching
def die(self, args, state, control, **_):
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    if state.global_step == 3 and self.stage == os.environ.get("DIES_IN") and last:
        os.kill(os.getpid(), 9)
watching.Bar.on_step_begin = die
run.train(t.options(Path({str(demo)!r}), Path({str(out)!r}), **{given!r}))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def torchrun(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in two processes that know of each other."""
    launched = (
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "--no-python", sys.executable, *command,
    )  # fmt: skip
    return subprocess.run(
        launched, check=False, env=environment() | variables, cwd=folder, capture_output=True,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes(demo: Path, tmp_path: Path) -> None:
    changes = [word for change in SHORT for word in ("--set", change)]
    command = (
        "-c", "from cot_builder.cli import main; main()",
        "train", "all", "--recipe", "smoke", "--dataset", str(demo), "--out", str(tmp_path / "run"),
        *changes,
    )  # fmt: skip
    done = torchrun(tmp_path, *command)
    assert done.returncode == 0, done.stderr[-9000:]
    assert done.stderr.count("all well") == 1, "the first process alone looks"
    assert done.stdout.count("trained mcl, svr, adapter") == 1, "and speaks"
    again = torchrun(tmp_path, *command)
    assert again.returncode
    assert again.stderr.count("go on with --resume") == 1
    for stage in ("mcl", "svr", "adapter"):
        assert read_checkpoint(tmp_path / "run" / stage)
    rows = [row for row in read_metrics(tmp_path / "run") if row["stage"] == "mcl"]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_that_die_go_on_to_the_same_weights(demo: Path, tmp_path: Path) -> None:
    """One run that dies in each of its stages and goes on, beside one that was left alone."""
    whole = torchrun(tmp_path, "-c", program(demo, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-9000:]
    for stage in ("mcl", "svr", "adapter", ""):
        script = program(demo, tmp_path / "died", resume=True)
        done = torchrun(tmp_path, "-c", script, DIES_IN=stage)
        assert (done.returncode == 0) is (not stage), done.stderr[-9000:]
        if stage:
            kept = newest_checkpoint(tmp_path / "died" / stage, processes=2)
            assert kept == tmp_path / "died" / stage / "checkpoint-2", done.stderr[-9000:]
    for weights in ("mcl/model", "svr/model", "adapter/adapter_model"):
        one, other = (
            digest(tmp_path / run / f"{weights}.safetensors") for run in ("whole", "died")
        )
        assert one == other, weights


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused(run: Path, demo: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        train(options(demo, run))
    with pytest.raises(UserError, match=r"recipe svr beta was 0\.04, is 0\.1"):
        train(options(demo, run, "svr.beta=0.1", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts", [("vision",), ("projector",), ("vision", "adapter"), ("projector", "adapter")]
)
def test_table_5(parts: Sequence[str], run: Path, demo: Path, tmp_path: Path) -> None:
    listed = ", ".join(f'"{part}"' for part in parts)
    given = options(
        demo, tmp_path / "run", f"adapter.trainable=[{listed}]", "adapter.max_steps=2",
        stages=("adapter",), base=str(run / "svr"),
    )  # fmt: skip
    trained = load_checkpoint(train(given))
    before = load_checkpoint(run / "svr").model.state_dict()
    changed = set()
    if "adapter" in parts:
        trained.model.merge_and_unload()
        model = trained.model.base_model.model
    else:
        model = trained.model
    for name, weight in model.state_dict().items():
        if not weight.equal(before[name]):
            changed.add("adapter" if part_of(name) == "language" else part_of(name))
    assert changed == set(parts)


# -- preflight


def found(demo: Path, out: Path, *changes: str, **given: Any) -> dict[tuple[str, str], Finding]:
    return {(f.stage, f.name): f for f in preflight(options(demo, out, *changes, **given))}


@pytest.mark.slow
def test_all_is_well(demo: Path, tmp_path: Path) -> None:
    findings = found(demo, tmp_path / "run")
    assert [finding for finding in findings.values() if not finding.well] == []
    assert {stage for stage, _ in findings} == {"mcl", "svr", "adapter"}
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        ("svr.completion=9", "lengths", "completion = 9: the longest right answer has"),
        ("svr.generations=1", "groups", "generations = 1"),
        ("svr.temperature=0", "groups", "temperature = 0"),
        ("svr.batch_size=99", "groups", "99 prompts a step, and there are 8"),
        ("model.frame=quarter_pixels", "data and frame", ""),
    ],
)
def test_what_is_not_well(demo: Path, tmp_path: Path, change: str, check: str, said: str) -> None:
    finding = found(demo, tmp_path / "run", change, stages=("svr",))["svr", check]
    assert finding.well is (not said)
    assert said in finding.said


def test_a_run_that_cannot_go_well_is_not_begun(demo: Path, tmp_path: Path) -> None:
    flags = ("--recipe", "smoke", "--dataset", str(demo), "--out", str(tmp_path / "run"))
    changes = ("--set", "svr.completion=9", "--set", "svr.batch_size=99")
    runner = CliRunner(env={"COLUMNS": "300"})
    result = runner.invoke(app, ["train", "all", *flags, *changes])
    assert result.exit_code == 1
    assert re.search(r"svr +lengths +no +\[svr\] completion = 9: the longest", result.output)
    assert re.search(r"svr +groups +no +\[svr\] batch_size 99 x", result.output)
    assert re.search(r"2 of \d+ checks failed; nothing was trained", result.output)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_broken_images_are_seen(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "broken")
    for image in (tmp_path / "broken/images/images").glob("*.jpg"):
        image.write_bytes(b"")
    findings = found(tmp_path / "broken", tmp_path / "run", stages=("mcl",))
    assert "cannot be read" in findings["mcl", "images"].said


@pytest.mark.slow
def test_a_checkpoint_of_another_frame_is_refused(run: Path, demo: Path, tmp_path: Path) -> None:
    given = options(demo, tmp_path / "run", "model.max_pixels=50176", stages=("svr",))
    with pytest.raises(UserError, match="max_pixels"):
        train(replace(given, base=str(run / "mcl")))
