"""What can be known before hours are spent: in seconds before each run, or with one batch too."""

from __future__ import annotations

import heapq
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import torch
from accelerate import init_empty_weights
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from trl.import_utils import is_vllm_available

from cot_builder.answers import Answer, AnswerError
from cot_builder.boxes import Frame, Size
from cot_builder.errors import UserError
from training.checkpoints import read_checkpoint
from training.models import part_of
from training.rewards import REWARDS
from training.run import (
    TRAINERS,
    RunOptions,
    begin,
    first_base,
    frame_and_processor,
    is_first,
    open_sources,
    pick_samples,
    stage_rows,
)
from training.stage import Job

# Modes that the models' processors read as they are; others come out white, or not at all.
_MODES: Final = ("L", "RGB", "RGBA", "1", "P")
_LOOKED_AT: Final = 200
_MEASURED: Final = 1000
_GIB: Final = 2**30


class Finding(NamedTuple):
    """What one check found, of one stage; `well` is False where training would fail or mislead."""

    stage: str
    name: str
    well: bool
    said: str


class Look(NamedTuple):
    """What the checks of a stage look at."""

    options: RunOptions
    stage: str
    base: str
    frame: Frame
    processor: Any
    rows: Dataset
    scratch: Path

    @property
    def settings(self) -> Any:
        """The stage's table of the recipe."""
        return self.options.recipe.stage(self.stage)


class ProblemError(Exception):
    """What a check found wrong, in the words of the recipe."""


def preflight(options: RunOptions, *, costly: bool = True) -> list[Finding]:
    """Check every stage of a run that is not trained yet; return what was found, train nothing.

    A later stage is checked on the model from which the first one starts: they are of one shape.
    Without `costly`, the checks of `COSTLY` are left out.
    """
    begin()
    checks = {name: check for name, check in CHECKS.items() if costly or name not in COSTLY}
    with TemporaryDirectory() as scratch:
        base = first_base(options, Path(scratch, "base"))
        return [*_findings(options, base, Path(scratch), checks)]


def first_look(options: RunOptions) -> list[Finding]:
    """Return what the cheap checks find, in every process; the first one looks for all."""
    begin()
    found = [preflight(options, costly=False) if is_first() else None]
    return broadcast_object_list(found)[0] or []


def _findings(
    options: RunOptions, base: str, scratch: Path, checks: Mapping[str, Check]
) -> Iterator[Finding]:
    for stage in options.stages:
        if read_checkpoint(options.out / stage):
            continue
        try:
            look = _look(options, stage, base, scratch)
        except UserError as error:
            yield Finding(stage, "data and frame", False, str(error))
            continue
        said = f"{len(look.rows):,} examples; {look.frame.name}, {look.frame.pixels}"
        yield Finding(stage, "data and frame", True, said)
        for name, check in checks.items():
            try:
                if told := check(look):
                    yield Finding(stage, name, True, told)
            except ProblemError as problem:
                yield Finding(stage, name, False, str(problem))
            except OSError as error:  # of an image that the check of images has told
                yield Finding(stage, name, False, f"not checked: {error}")


def _look(options: RunOptions, stage: str, base: str, scratch: Path) -> Look:
    sources = open_sources(options, stage)
    frame, processor = frame_and_processor(options.recipe, sources[0].frame, base)
    rows = stage_rows(options, stage, sources, frame)
    return Look(options, stage, base, frame, processor, rows, scratch)


# -- the checks


def images(look: Look) -> str:
    """Some images of the stage are there, and of a mode that processors read."""
    samples = pick_samples(look.rows, _LOOKED_AT)
    for path in sorted({sample.image for sample in samples}):
        try:
            with Image.open(path) as image:
                mode = image.mode
        except OSError as error:
            raise ProblemError(f"image {path} cannot be read: {error}") from None
        if mode not in _MODES:
            raise ProblemError(
                f"image {path} has mode {mode}, which the processor would turn white: build the "
                "dataset with --image-scale (1 keeps the size)"
            )
    return f"{len(samples):,} of {len(look.rows):,} looked at"


def templates(look: Look) -> str:
    """Every answer can be read back, and no text holds a token of the chat template."""
    answers = _answers(look)
    for text in (*_prompts(look), *answers):
        if "<|" in text:
            raise ProblemError(f"a text holds what reads as a special token: {text!r:.100}")
    for text in answers if look.stage != "adapter" else ():
        try:
            Answer.parse(text)
        except AnswerError as error:
            raise ProblemError(f"{text!r:.100} is no answer: {error}") from None
    return ", ".join(sorted({used.rpartition("+")[0] or used for used in look.rows["template"]}))


def lengths(look: Look) -> str:
    """The longest prompt with its image and answer fits the model; answers fit `completion`.

    Tokens are counted of the texts with the most characters, since a release has millions.
    """
    config = AutoConfig.from_pretrained(look.base)
    most = config.get_text_config().max_position_embeddings
    answered, asked = (_most_tokens(look, found(look)) for found in (_answers, _prompts))
    seen = max(_image_tokens(look), default=0)
    if look.stage == "svr":
        room = look.settings.completion
        if answered + 1 > room:
            raise ProblemError(
                f"[svr] completion = {room}: the longest right answer has {answered + 1} tokens, "
                "so it would be cut off and never rewarded"
            )
        answered = room
    total = asked + answered + seen + 32  # the chat template's own
    if total > most:
        raise ProblemError(
            f"{total:,} tokens ({seen:,} of the image, {asked:,} asked, {answered:,} answered) are "
            f"more than the model's {most:,}: lower [model] max_pixels"
        )
    return f"at most {total:,} of {most:,} tokens, {seen:,} of the image"


def _prompts(look: Look) -> list[str]:
    return list(dict.fromkeys(row[0]["content"] for row in look.rows["prompt"]))


def _answers(look: Look) -> list[str]:
    if look.stage == "svr":
        return [text for text in dict.fromkeys(look.rows["solution"]) if text]
    return list(dict.fromkeys(row[0]["content"] for row in look.rows["completion"]))


def _most_tokens(look: Look, found: list[str]) -> int:
    longest = heapq.nlargest(_MEASURED, found, key=len)
    return max(map(len, look.processor.tokenizer(longest)["input_ids"])) if longest else 0


def _image_tokens(look: Look) -> Iterator[int]:
    for sample in pick_samples(look.rows, _LOOKED_AT):
        with Image.open(sample.image) as image:
            yield look.frame.pixels.tokens(Size(*image.size))


def groups(look: Look) -> str | None:
    """SVR's groups: more than one answer each, and whole on every step of all processes."""
    if look.stage != "svr":
        return None
    svr = look.options.recipe.svr
    if svr.generations < 2:
        raise ProblemError(
            f"[svr] generations = {svr.generations}: an answer alone has no advantage; at least 2"
        )
    if svr.reward not in REWARDS:
        raise ProblemError(f"[svr] reward = {svr.reward!r}: expected one of {', '.join(REWARDS)}")
    if svr.temperature == 0:
        raise ProblemError("[svr] temperature = 0: the answers of a group would all be the same")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    prompts = svr.batch_size * svr.accumulation * world
    if prompts > len(look.rows):
        raise ProblemError(
            f"[svr] batch_size {svr.batch_size} x accumulation {svr.accumulation} x {world} "
            f"processes = {prompts} prompts a step, and there are {len(look.rows)}: no step is full"
        )
    return (
        f"{prompts} prompts x {svr.generations} answers a step, "
        f"{math.ceil(svr.epochs * (len(look.rows) // prompts))} steps"
    )


def vllm(look: Look) -> str | None:
    """vLLM, where it is to write SVR's answers, is there in a version that TRL takes."""
    if look.stage != "svr" or not look.settings.use_vllm:
        return None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = is_vllm_available()
    if not there or said:
        wanted = next(line for line in requires("trl") or () if line.startswith("vllm"))
        found = str(said[0].message) if said else "it is not installed"
        raise ProblemError(
            f"[svr] use_vllm: {found}; TRL takes {wanted.partition(';')[0]}: install one "
            "(training/README.md says what is in the way), or set svr.use_vllm=false"
        )
    return str(look.settings.vllm_mode)


def rewards(look: Look) -> str | None:
    """The right answers, in the frame of the run, earn the most that there is."""
    if look.stage != "svr":
        return None
    rows = look.rows.remove_columns("images").filter(lambda row: row["solution"] != "")
    batch = rows[: min(len(rows), 1000)]
    if not len(rows):
        return "no right answer is known: nothing to try"
    true = {key: batch[key] for key in ("boxes", "size", "extent")}
    scores = [
        function(completions=batch["solution"], **true)
        for function in REWARDS[look.options.recipe.svr.reward]
    ]
    told = [[value for value in column if value is not None] for column in scores]
    means = [sum(column) / len(column) for column in told if column]
    if not means or means[0] < 0.9:
        raise ProblemError(
            f"[svr] reward {look.options.recipe.svr.reward!r} gives the right answers {means[:1]} "
            "of 1: boxes and answers are in different frames"
        )
    return f"right answers earn {', '.join(f'{mean:.3f}' for mean in means)}"


def reference(look: Look) -> str | None:
    """What SVR is held close to can be loaded: a folder or a name, with the weights in it."""
    if look.stage != "svr" or look.options.recipe.svr.beta == 0:
        return None
    if not Path(look.base).is_dir() and look.base.count("/") != 1:
        raise ProblemError(f"the reference model is loaded again from {look.base}: no such folder")
    return f"{look.base}, or the MCL checkpoint of this run"


def memory(look: Look) -> str:
    """An estimate of the memory that weights, gradients, optimizer and reference take."""
    need, told = _needed(look)
    have, what = _memory()
    if need > have:
        raise ProblemError(
            f"about {need / _GIB:.1f} GiB for {told}, and {what} has {have / _GIB:.1f}: share the "
            "weights out (training/recipes/fsdp.yaml), or train fewer parts (trainable)"
        )
    return f"about {need / _GIB:.1f} of {have / _GIB:.1f} GiB ({what}), activations apart: {told}"


def disk(look: Look) -> str:
    """Room for the checkpoints that are kept, optimizer states with them, and one in writing."""
    parameters, trainable = _parameters(look)
    keep = look.options.recipe.run.keep
    need = (keep + 1) * (4 * parameters + 8 * trainable) + 4 * parameters
    out = look.options.out
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise ProblemError(
            f"checkpoints take up to {need / _GIB:.1f} GiB, {place} has {free / _GIB:.1f} free: "
            "lower [run] keep, or choose another --out"
        )
    return f"up to {need / _GIB:.2f} of {free / _GIB:.0f} GiB"


def one_batch(look: Look) -> str:
    """One batch of the stage's own trainer goes through the model and gives a finite loss."""
    stage = "mcl" if look.stage == "svr" else look.stage  # SVR's answers as if they were told
    rows = look.rows.select(range(min(len(look.rows), look.settings.batch_size)))
    if look.stage == "svr":
        rows = rows.map(
            lambda row: {"completion": [{"role": "assistant", "content": row["solution"] or "[]"}]}
        )
    job = Job(stage, look.options.recipe, look.base, look.scratch, look.processor, rows)
    trainer = TRAINERS[stage](job)
    batch = trainer.data_collator([rows[place] for place in range(len(rows))])
    places = batch["input_ids"] == look.processor.image_token_id
    if not torch.equal(batch.get("mm_token_type_ids", places).bool(), places):
        raise ProblemError("image tokens do not stand where the processor says")
    supervised = int((batch["labels"] != -100).sum())
    if not supervised:
        raise ProblemError("no token of the answer is learnt from: the chat template lost it")
    with torch.no_grad():
        moved = {key: value.to(trainer.model.device) for key, value in batch.items()}
        loss = float(trainer.model(**moved).loss)
    if not math.isfinite(loss):
        raise ProblemError(f"the loss of one batch is {loss}")
    return f"loss {loss:.3f} over {supervised} tokens"


Check = Callable[[Look], str | None]
# To add one: a function of a stage's Look that says what it found, None where it does not apply,
# or raises ProblemError.
CHECKS: Final[dict[str, Check]] = {
    "images": images,
    "templates": templates,
    "lengths": lengths,
    "groups": groups,
    "vllm": vllm,
    "rewards": rewards,
    "reference": reference,
    "memory": memory,
    "disk": disk,
    "one batch": one_batch,
}
# These load the model, or only estimate: asked for, and not before every run.
COSTLY: Final = ("memory", "one batch")


def _parameters(look: Look) -> tuple[int, int]:
    """Return how many parameters the model has, and how many of them learn in this stage."""
    with init_empty_weights():
        make: Any = AutoModelForImageTextToText.from_config
        model = make(AutoConfig.from_pretrained(look.base))
    model.tie_weights()  # the head is the embedding, if the config says so: counted once
    sizes = [(part_of(name), p.numel()) for name, p in model.named_parameters()]
    parts = look.settings.trainable
    lora = 0
    if "adapter" in parts:
        rank = look.settings.rank
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name and "visual" not in name:
                lora += rank * (module.in_features + module.out_features)
    return sum(n for _, n in sizes), lora + sum(n for part, n in sizes if part in parts)


def _needed(look: Look) -> tuple[int, str]:
    parameters, trainable = _parameters(look)
    bytes_each = 4 if look.options.recipe.model.dtype == "float32" else 2
    weights = parameters * bytes_each
    learning = trainable * (bytes_each + 2 * bytes_each)  # gradient, and AdamW's two moments
    kept = weights if look.stage == "svr" and look.options.recipe.svr.beta else 0
    told = f"{parameters:,} parameters, {trainable:,} learning"
    if kept:
        told += ", and the reference"
    shares = int(os.environ.get("WORLD_SIZE", "1")) if _sharded() else 1
    if shares > 1:
        told += f", a {shares}th of each"
    return (weights + learning + kept) // shares, told


def _sharded() -> bool:
    """Return whether `accelerate launch` shares the weights out over the processes."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(os.environ.get(name, "").lower() == "true" for name in names)


def _memory() -> tuple[int, str]:
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), "the GPU"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
