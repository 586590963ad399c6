"""One MCL and one SVR step beside a bare TRL script, on the same tiny model and data in one run.

Writes results/training.json. Run: python benchmarks/bench_training.py [--steps 30]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForImageTextToText, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cot_builder.boxes import Frame, Pixels
from cot_builder.images import Scaling
from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks
from training.recipe import load_recipe
from training.rewards import REWARDS
from training.run import TRAINERS, RunOptions, first_base, prepare

RESULTS = Path(__file__).with_name("results")


class Clock(TrainerCallback):
    """The CPU seconds of each step, those between two steps (logs, samples) among them.

    CPU, since what else the machine does would be most of the difference otherwise.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when a step begins."""
        self.times.append(time.process_time())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note when the last one ended."""
        self.times.append(time.process_time())

    def median(self) -> float:
        """Return the CPU seconds of a step."""
        # The first steps warm the caches; the median passes over other processes' bursts.
        seconds = [
            after - before for before, after in zip(self.times, self.times[1:], strict=False)
        ]
        return statistics.median(seconds[2:])


def ours(options: RunOptions, stage: str, base: str) -> float:
    job, _ = prepare(options, stage, base)
    clock = Clock()
    trainer = TRAINERS[stage](job._replace(callbacks=(*job.callbacks, clock)))
    trainer.train()
    return clock.median()


def bare(options: RunOptions, stage: str, base: str) -> float:
    """The shortest script that trains the same: the same arguments, none of our callbacks."""
    job, _ = prepare(options, stage, base)
    settings = options.recipe.stage(stage)
    shared: dict[str, Any] = {
        "output_dir": str(job.folder) + "-bare", "max_steps": settings.max_steps, "seed": 0,
        "learning_rate": settings.learning_rate, "use_cpu": True, "bf16": False,
        "activation_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "dataloader_pin_memory": False, "optim": "adamw_torch",
    }  # fmt: skip
    clock = Clock()
    model = AutoModelForImageTextToText.from_pretrained(base)
    common = {"model": model, "train_dataset": job.rows, "processing_class": job.processor}
    if stage == "mcl":
        config = SFTConfig(
            **shared, max_length=None, per_device_train_batch_size=settings.batch_size
        )
        trainer: Any = SFTTrainer(args=config, callbacks=[clock], **common)
    else:
        svr = options.recipe.svr
        config = GRPOConfig(
            **shared, num_generations=svr.generations, beta=svr.beta, loss_type="grpo",
            per_device_train_batch_size=svr.batch_size * svr.generations,
            max_completion_length=svr.completion, temperature=svr.temperature,
        )  # fmt: skip
        trainer = GRPOTrainer(
            args=config, callbacks=[clock], reward_funcs=list(REWARDS[svr.reward]), **common
        )
    trainer.train()
    return clock.median()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    banks = load_banks()
    with TemporaryDirectory() as scratch:
        dataset, out = Path(scratch, "dataset"), Path(scratch, "run")
        build(
            BuildOptions(
                source="demo", release=SourceOptions(banks=banks), out=dataset,
                frame=Frame("norm1000", Pixels(), 0.25), scaling=Scaling(0.25),
            )
        )  # fmt: skip
        changes = [
            f"mcl.max_steps={args.steps}", f"svr.max_steps={args.steps}", "svr.completion=48",
            "run.sample_every=9999", "run.log_every=10",
        ]  # fmt: skip
        options = RunOptions(
            stages=("mcl", "svr"), recipe=load_recipe("smoke", changes),
            datasets=(str(dataset),), out=out, banks=banks,
        )  # fmt: skip
        out.mkdir()
        base = first_base(options)
        result: dict[str, Any] = {"steps": args.steps, "rounds": args.rounds}
        for stage in options.stages:
            # In turns, so that what else the machine does falls on both.
            pairs = [
                (ours(options, stage, base), bare(options, stage, base)) for _ in range(args.rounds)
            ]
            own, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            result[stage] = {
                "cpu_seconds_a_step": round(own, 4), "bare_trl": round(theirs, 4),
                "ratio": round(own / theirs, 3),
                "rounds": [[round(seconds, 4) for seconds in pair] for pair in pairs],
            }  # fmt: skip
            print(stage, result[stage], flush=True)
    (RESULTS / "training.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
