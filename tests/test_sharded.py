"""FSDP beside plain data parallelism: two processes on CPUs, through accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("trl")

from cot_builder.boxes import Frame, Pixels
from cot_builder.images import Scaling
from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks
from training.models import load_checkpoint
from training.resume import newest_checkpoint
from training.watching import read_metrics

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHARDED = {
    name: (
        "-m", "accelerate.commands.launch", "--num_processes", "2",
        "--config_file", str(ROOT / f"training/recipes/{name}.yaml"),
    )
    for name in ("fsdp",)
}  # fmt: skip
# No answer of a random model earns anything: weight decay alone drives SVR from its reference.
CHANGES = (
    "mcl.max_steps=4", "svr.max_steps=4", "svr.generations=2", "svr.completion=96", "svr.limit=8",
    "svr.batch_size=1", "svr.learning_rate=0.01", "svr.weight_decay=5.0", "svr.schedule=constant",
    "adapter.max_steps=4", "run.save_every=2", "run.log_every=1", "run.sample_every=2",
    "run.samples=1", "run.keep=9", "run.recompute_activations=true",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "dataset"
    build(
        BuildOptions(
            source="demo", release=SourceOptions(banks=load_banks()), out=out,
            frame=Frame("norm1000", Pixels(), 0.25), scaling=Scaling(0.25),
        )
    )  # fmt: skip
    return out


def train(
    launcher: Sequence[str],
    demo: Path,
    out: Path,
    *words: str,
    stage: str = "all",
    before: str = "",
) -> subprocess.CompletedProcess[str]:
    """Train in two processes, after some lines of Python in each."""
    script = out.parent / f"{out.name}.py"
    wrapped = "" if launcher == PLAIN else "from sharded_on_cpu import as_on_gpus; as_on_gpus()\n"
    script.write_text(f"{wrapped}{before}\nfrom cot_builder.cli import main; main()\n")
    changes = [word for change in CHANGES for word in ("--set", change)]
    return subprocess.run(
        [sys.executable, *launcher, str(script), "train", stage, "--recipe", "smoke",
         "--dataset", str(demo), "--out", str(out), *changes, *words],
        check=False, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip


def numbers(out: Path, key: str) -> dict[tuple[str, int], float]:
    rows = read_metrics(out)
    return {(row["stage"], row["step"]): row[key] for row in rows if key in row}


@pytest.fixture(scope="module")
def plain(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others are held to."""
    out = tmp_path_factory.mktemp("plain") / "run"
    done = train(PLAIN, demo, out)
    assert done.returncode == 0, done.stderr[-9000:]
    assert numbers(out, "kl")["svr", 4] > 1e-3, "SVR moved away from its reference"
    return out


class Run(NamedTuple):
    name: str
    out: Path


@pytest.fixture(scope="module", params=["fsdp"])
def sharded(
    request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    out = tmp_path_factory.mktemp(request.param) / "run"
    done = train(SHARDED[request.param], demo, out)
    assert done.returncode == 0, done.stderr[-9000:]
    return Run(request.param, out)


@pytest.mark.parametrize("key", ["loss", "grad_norm", "kl"])
def test_it_learns_as_plain_data_parallelism_does(plain: Path, sharded: Run, key: str) -> None:
    found = numbers(sharded.out, key)
    assert found == pytest.approx(numbers(plain, key), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("stage", ["mcl", "svr", "adapter"])
def test_the_checkpoint_is_whole(plain: Path, sharded: Run, stage: str) -> None:
    found = load_checkpoint(sharded.out / stage).model.state_dict()
    right = load_checkpoint(plain / stage).model.state_dict()
    assert found.keys() == right.keys()
    for name, weight in right.items():
        # AdamW makes steps of a gradient's last bits; what was not learnt is 1e-2 away
        assert weight.sub(found[name]).abs().mean() < 1e-3, name


DIES_AT_STEP_3 = """
import os
from training import watching
def die(self, args, state, control, **_):
    if state.global_step == 3:
        os._exit(9)
watching.Bar.on_step_begin = die
"""


def test_a_stage_that_was_killed_goes_on(demo: Path, sharded: Run, tmp_path: Path) -> None:
    launcher, out = SHARDED[sharded.name], tmp_path / "run"
    assert train(launcher, demo, out, stage="mcl", before=DIES_AT_STEP_3).returncode
    assert newest_checkpoint(out / "mcl", processes=2) == out / "mcl/checkpoint-2"
    done = train(launcher, demo, out, "--resume", stage="mcl")
    assert done.returncode == 0, done.stderr[-9000:]
    weights = [(run / "mcl/model.safetensors").read_bytes() for run in (sharded.out, out)]
    assert weights[0] == weights[1]
