"""The scripts for Slurm under a real one: two nodes of one CPU each, both on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARRAY = ROOT / "benchmarks/build_array.sbatch"
TRAIN = ROOT / "training/recipes/slurm.sh"
ON_A_NODE = ("--cpus-per-task=1", "--mem=2G")

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path="/usr/bin:/usr/sbin") for name in ("slurmd", "slurmctld")),
        reason="no Slurm: apt-get install slurmctld slurmd slurm-client munge",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which commands find the cluster, and jobs this checkout's commands."""
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "tests/slurm.sh")
    for name, module in (
        ("cot-builder", "cot_builder.cli"),
        ("torchrun", "torch.distributed.run"),
        ("launch_pickled_pipeline", "datatrove.tools.launch_pickled_pipeline"),
    ):
        lines = f"#!{sys.executable}\nfrom {module} import main\n"
        (folder / name).write_text(f"{lines}if __name__ == '__main__':\n    main()\n")
        (folder / name).chmod(0o755)
    started = subprocess.run(["bash", script, "start", folder / "cluster"], check=False)
    logs = [path.read_text() for path in (folder / "cluster").glob("*.log")]
    assert started.returncode == 0, "\n".join(logs)
    yield {
        **os.environ, "SLURM_CONF": str(folder / "cluster/slurm.conf"), "OMP_NUM_THREADS": "1",
        "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    subprocess.run(["bash", script, "stop", folder / "cluster"], check=False)


def ask(slurm: dict[str, str], *command: str | Path) -> str:
    return subprocess.run(command, env=slurm, check=True, text=True, capture_output=True).stdout


def submit(slurm: dict[str, str], folder: Path, *command: str | Path) -> str:
    """Submit a job whose output goes to the folder, and return its number."""
    said = ask(slurm, "sbatch", f"--chdir={folder}", *ON_A_NODE, *command)
    return said.split()[-1]


def wait(what: Callable[[], bool], folder: Path, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            outputs = [path.read_text()[-3000:] for path in folder.glob("slurm-*.out")]
            pytest.fail("\n".join(["it did not come to pass; the jobs said:", *outputs]))
        time.sleep(0.1)


def nothing_runs(slurm: dict[str, str]) -> bool:
    return not ask(slurm, "squeue", "--noheader")


# -- a build in parts


def studies(count: int) -> Iterator[str]:
    texts = ("Small left effusion. No edema.", "The lungs are clear.", "Severe cardiomegaly.")
    for number in range(count):
        row = {"study_id": f"s{number:05}", "report": f"FINDINGS: {texts[number % 3]}"}
        yield json.dumps({**row, "split": ("train", "val")[number % 2]}) + "\n"


def files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    manifest = json.loads(found["manifest.json"]) | {"command": ""}
    return found | {"manifest.json": json.dumps(manifest).encode()}


def test_a_build_whose_task_was_cancelled_ends_with_the_bytes_of_a_single_one(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    release, out, part = tmp_path / "release", tmp_path / "out", tmp_path / "out.parts/1"
    release.mkdir()
    (release / "studies.jsonl").write_text("".join(studies(12000)))
    given = {**slurm, "SOURCE": "demo", "ROOT": str(release), "OUT": str(out), "PARTS": "2"}
    options = ("--shard-size", "1000")
    job = submit(given, tmp_path, "--array=0-1", ARRAY, *options)
    wait(lambda: any(part.glob("*.parquet")), tmp_path)
    ask(slurm, "scancel", f"{job}_1")
    wait(lambda: nothing_runs(slurm), tmp_path)  # the merge has gone with the task it waited for
    assert (part.parent / "0/part.json").exists()
    assert not (part / "part.json").exists()
    assert not out.exists()
    whole = {path: path.stat().st_mtime_ns for path in part.glob("*.parquet")}

    submit(given, tmp_path, "--array=1", ARRAY, *options)
    wait(lambda: nothing_runs(slurm), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole, "what was whole is kept"
    command = ["cot-builder", "build", "--source", "demo", "--root", release, *options]
    ask(slurm, *command, "--out", tmp_path / "single")
    assert files(out) == files(tmp_path / "single")


def test_datatrove_sends_a_build_to_slurm_for_the_bytes_of_a_single_one(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("datatrove")
    (tmp_path / "studies.jsonl").write_text("".join(studies(12000)))
    command = ("cot-builder", "build", "--source", "demo", "--root", tmp_path,
               "--shard-size", "500")  # fmt: skip
    out = ("--out", tmp_path / "out", "--workers", "2")
    sent = ("--engine", "datatrove-slurm", "--sbatch", "partition=all", "--sbatch")

    def refused(*more: str | Path) -> str:
        run = subprocess.run(
            [*command, *out, *sent, *more], env=slurm, text=True, capture_output=True, check=False
        )
        assert run.returncode == 1
        return run.stderr

    assert "needs --sbatch time=" in refused("mem-per-cpu=2G")
    assert "sbatch took no job" in refused("time=soon", "--resume")
    with subprocess.Popen([*command, *out, *sent, "time=5", "--resume"], env=slurm) as process:
        wait(lambda: any((tmp_path / "out").glob("*.parquet")), tmp_path)
        ask(slurm, "scancel", "--user", str(os.getuid()))
    assert process.returncode == 1
    assert len([*tmp_path.glob("out.cot-builder-*/slurm_logs/*.out")]) == 2, "they are kept"
    ask(slurm, *command, *out, *sent, "time=5", "--resume")
    ask(slurm, *command, "--out", tmp_path / "single")
    assert files(tmp_path / "out") == files(tmp_path / "single")
    assert nothing_runs(slurm)


# -- training


def test_training_that_is_stopped_and_sent_again_ends_with_the_same_weights(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    ask(slurm, "cot-builder", "build", "--source", "demo", "--image-scale", "0.25",
        "--out", tmp_path / "demo")  # fmt: skip
    changes = ("mcl.max_steps=12", "run.save_every=3", "run.samples=0", "run.keep=9")

    def send(out: Path) -> str:
        words = [word for change in changes for word in ("--set", change)]
        return submit(slurm, tmp_path, "--gpus-per-node=0", TRAIN, "mcl", "--recipe", "smoke",
                      "--dataset", tmp_path / "demo", "--out", out, *words)  # fmt: skip

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    job = send(cut)
    wait(lambda: (cut / "mcl/checkpoint-3/trainer_state.json").exists(), tmp_path)
    ask(slurm, "scancel", "--batch", "--signal=TERM", job)  # as Slurm does before the time limit
    wait(lambda: "PENDING" in ask(slurm, "scontrol", "show", "job", job), tmp_path)
    ask(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait 2 minutes
    wait(lambda: nothing_runs(slurm), tmp_path)
    assert "Restarts=1" in ask(slurm, "scontrol", "show", "job", job)
    send(whole)
    wait(lambda: nothing_runs(slurm), tmp_path)
    weights = [(folder / "mcl/model.safetensors").read_bytes() for folder in (cut, whole)]
    assert weights[0] == weights[1]

    failed = send(tmp_path / "demo")  # no folder for a run: the job must say so
    wait(lambda: nothing_runs(slurm), tmp_path)
    assert "JobState=FAILED" in ask(slurm, "scontrol", "show", "job", failed)
    assert "holds other files" in (tmp_path / f"slurm-{failed}.out").read_text()
