"""A run: stages one after another, each from the checkpoint of the one before, in one folder.

`run.json` has the resolved recipe; `base/` a tiny model, where one was made; `mcl/`, `svr/` and
`adapter/` are checkpoints once their `manifest.json` is there; `metrics.jsonl`, `curves.png`,
`samples/` and `tensorboard/` tell how it went, and `README.md` is the model card.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import Dataset, Image, List, disable_progress_bars
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from cot_builder import __version__
from cot_builder.boxes import Frame, Size, check_frames
from cot_builder.errors import UserError
from cot_builder.records import Row
from knowledge_banks import Banks
from training import adapter, mcl, svr
from training.card import write_card
from training.checkpoints import read_checkpoint, write_checkpoint, write_json
from training.conversations import Source, columns, open_source, texts
from training.models import TINY, make_tiny
from training.pictures import draw_curves
from training.processors import load_processor, model_kind, processor_pixels, save_processor
from training.recipe import STAGES, Recipe
from training.resume import newest_checkpoint
from training.stage import Job
from training.watching import Bar, Journal, Sample, Samples

RUN: Final = "run.json"
# To add one: a stage's name, as in recipes, and what makes its trainer of a job.
TRAINERS: Final = {"mcl": mcl.trainer, "svr": svr.trainer, "adapter": adapter.trainer}
_LIBRARIES: Final = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What to train: stages in their order, on which datasets, into which folder.

    `reports` are the adapter's datasets where they are others; `base` is what the first stage
    starts from, instead of the recipe's model or the checkpoint of the stage before it in `out`.
    """

    stages: tuple[str, ...]
    recipe: Recipe
    datasets: tuple[str, ...]
    out: Path
    banks: Banks
    reports: tuple[str, ...] = ()
    image_root: Path | None = None
    base: str | None = None
    resume: bool = False
    command: str = ""


def train(options: RunOptions) -> Path:
    """Train the stages of a run and return the last checkpoint.

    With `resume`, finished stages are kept, and one that was cut off goes on from its newest whole
    checkpoint to the same weights as if it had not been.
    """
    begin()
    open_run(options)
    base = first_base(options)
    PartialState().wait_for_everyone()
    for stage in options.stages:
        folder = options.out / stage
        if not read_checkpoint(folder):
            train_stage(options, stage, base)
        if is_first():
            for left in folder.glob("checkpoint-*"):
                shutil.rmtree(left)
        base = str(folder.resolve())
    return Path(base)


def begin() -> None:
    """Know of the other processes; silence bars that say nothing, and TRL's use of older names."""
    # Kept for all who ask later; without `cpu`, each of torchrun's processes on CPUs is the first.
    PartialState(cpu=not torch.cuda.is_available())
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)


def is_first() -> bool:
    """Tell whether this process is the one that writes and speaks for all."""
    return bool(PartialState().is_main_process)


def train_stage(options: RunOptions, stage: str, base: str) -> None:
    """Train one stage and leave its checkpoint; the manifest comes last."""
    job, frame = prepare(options, stage, base)
    world = PartialState()
    checkpoint = newest_checkpoint(job.folder, processes=world.num_processes)
    world.wait_for_everyone()  # all have looked before one writes
    set_seed(options.recipe.run.seed)
    trainer = TRAINERS[stage](job)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(str(job.folder))
    world.wait_for_everyone()
    if world.is_main_process:
        save_processor(job.processor, job.folder, model_kind(base))
        manifest = describe(options, job, frame, steps=trainer.state.global_step)
        draw_curves(options.out)
        write_card(job.folder, manifest, options.out)
        write_checkpoint(job.folder, manifest)
    world.wait_for_everyone()
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare(options: RunOptions, stage: str, base: str) -> tuple[Job, Frame]:
    """Gather what a stage needs: processor, frame, columns and callbacks; UserError where not."""
    recipe, folder = options.recipe, options.out / stage
    sources = open_sources(options, stage)
    frame, processor = frame_and_processor(recipe, sources[0].frame, base)
    rows = stage_rows(options, stage, sources, frame)
    # Wherever TensorBoard's callback writes is told by the environment only.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(options.out / "tensorboard" / stage)
    callbacks = (
        Journal(options.out, stage),
        Bar(stage),
        Samples(
            options.out, stage, pick_samples(rows, recipe.run.samples), processor,
            every=recipe.run.sample_every, tokens=recipe.svr.completion,
        ),
    )  # fmt: skip
    return Job(stage, recipe, base, folder, processor, rows, callbacks), frame


def stage_rows(options: RunOptions, stage: str, sources: Sequence[Source], frame: Frame) -> Dataset:
    """Return the columns on which a stage trains: the train split, never another."""
    return columns(
        sources, stage, frame=frame, banks=options.banks, reward=options.recipe.svr.reward,
        limit=options.recipe.stage(stage).limit,
    )  # fmt: skip


def dataset_names(options: RunOptions, stage: str) -> tuple[str, ...]:
    """Return the names of the datasets that a stage learns from."""
    return options.reports if stage == "adapter" and options.reports else options.datasets


def open_sources(options: RunOptions, stage: str) -> tuple[Source, ...]:
    """Open a stage's datasets; UserError where they name different frames."""
    named = dataset_names(options, stage)
    sources = tuple(open_source(name, options.image_root) for name in named)
    for source in sources[1:]:
        check_frames(data=sources[0].frame, checkpoint=source.frame)
    return sources


def frame_and_processor(recipe: Recipe, data: Frame, base: str) -> tuple[Frame, Any]:
    """Return the frame of a run and the processor that sees so; UserError where a base differs.

    What the recipe does not say is the dataset's; the factor is the model's own.
    """
    model = recipe.model
    given = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    pixels = data.pixels._replace(**{key: n for key, n in given.items() if n is not None})
    processor = load_processor(
        base,
        revision=model.revision if base == model.name else None,
        min_pixels=pixels.min_pixels,
        max_pixels=pixels.max_pixels,
    )
    seen = processor_pixels(processor)
    frame = Frame(model.frame or data.name, pixels._replace(factor=seen.factor), data.scale)
    manifest = read_checkpoint(Path(base))
    trained = Frame.from_row(manifest["frame"]) if manifest and manifest["frame"] else None
    check_frames(data=frame, processor=seen, checkpoint=trained)
    return frame, processor


def pick_samples(rows: Dataset, count: int) -> list[Sample]:
    """Return a few examples, spread over all, for the model to answer now and then."""
    few = min(count, len(rows))
    chosen = rows.cast_column("images", List(Image(decode=False))).select(
        [place * len(rows) // few for place in range(few)]
    )
    return [
        Sample(
            Path(row["images"][0]["path"]),
            row["prompt"][0]["content"],
            row["completion"][0]["content"] if "completion" in row else row["solution"],
            tuple(tuple(box) for box in row.get("boxes", ())),
            Size(*row["size"]) if "size" in row else None,
            Size(*row["extent"]) if "extent" in row else None,
        )
        for row in chosen
    ]


# -- the run's folder


def open_run(options: RunOptions) -> None:
    """Make a run's folder, or open it again; UserError where it holds another run."""
    named = {stage: list(dataset_names(options, stage)) for stage in options.stages}
    row = {"recipe": options.recipe.to_row(), "datasets": named}
    path = options.out / RUN
    world = PartialState()
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    # A run that was killed at once may have left the file that was to become this one.
    filled = options.out.is_dir() and any(p.name != f".{RUN}" for p in options.out.iterdir())
    done = [stage for stage in options.stages if (options.out / stage).is_dir()]
    world.wait_for_everyone()  # all have looked before one writes
    if before is None and filled:
        raise UserError(f"{options.out} holds other files; choose an empty folder for a run")
    if before:
        row["datasets"] = before["datasets"] | named
        before["datasets"] = {**named, **before["datasets"]}
    if before and (difference := _difference(before, row)):
        raise UserError(
            f"{options.out} was trained otherwise: {difference}; choose another "
            "--out, or the recipe and datasets of before"
        )
    if before and done and not options.resume:
        raise UserError(
            f"{options.out} has {', '.join(done)} already, whole or in part; go on with --resume, "
            "or choose another --out"
        )
    if world.is_main_process:
        options.out.mkdir(parents=True, exist_ok=True)
        whole = row | {"command": options.command, "versions": versions()}
        write_json(path, before or whole)
    world.wait_for_everyone()


def _difference(before: Row, now: Row) -> str:
    for key, value in now.items():
        old = before.get(key)
        if old == value:
            continue
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            return f"{key} {_difference(dict(old), dict(value))}"
        return f"{key} was {old}, is {value}"
    return ""


def first_base(options: RunOptions, folder: Path | None = None) -> str:
    """Return what the first stage starts from: told, the stage before it, or the recipe's model.

    A tiny model is made, by the first process in the run's `base`, or in a folder of one's own.
    """
    if options.base:
        return options.base
    before = STAGES[: STAGES.index(options.stages[0])]
    done = [stage for stage in before if read_checkpoint(options.out / stage)]
    if done:
        return str((options.out / done[-1]).resolve())
    if not options.recipe.model.name.startswith(TINY):
        return options.recipe.model.name
    mine = folder or options.out / "base"
    if (folder or is_first()) and not read_checkpoint(mine):
        name, seed = options.recipe.model.name, options.recipe.run.seed
        make_tiny(name, run_texts(options), mine, seed=seed)
        write_checkpoint(mine, {"stage": "base", "base": name, "frame": None, "seed": seed})
    return str(mine.resolve())


def run_texts(options: RunOptions) -> list[str]:
    """Return what a run asks and answers in every stage that its datasets can feed."""
    found: list[str] = []
    for stage in STAGES:
        sources = open_sources(options, stage)
        try:
            found += texts(stage_rows(options, stage, sources, sources[0].frame))
        except UserError:
            if stage in options.stages:
                raise
    return found


def describe(options: RunOptions, job: Job, frame: Frame, *, steps: int) -> Row:
    """Return a checkpoint's manifest: all that it took to make it."""
    base = Path(job.base)
    inside = base.is_dir() and base.resolve().parent == options.out.resolve()
    return {
        "stage": job.stage,
        "base": f"../{base.name}" if inside else str(base.resolve()) if base.is_dir() else job.base,
        "adapter": (job.folder / "adapter_config.json").is_file(),
        "frame": frame.to_row(),
        "templates": dict(Counter(job.rows["template"])),
        "banks": {"version": options.banks.version, "sha256": options.banks.sha256},
        "datasets": [source.to_row() for source in open_sources(options, job.stage)],
        "examples": len(job.rows),
        "steps": steps,
        "seed": options.recipe.run.seed,
        "recipe": options.recipe.to_row(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what trains."""
    return {
        "cot-builder": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }
