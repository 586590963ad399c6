"""What watches a trainer: its numbers as JSON Lines, a progress bar, and samples as pictures."""

from __future__ import annotations

import json
import math
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from accelerate import PartialState
from accelerate.utils import DistributedType
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from cot_builder.answers import Answer, AnswerError
from cot_builder.boxes import XYXY, Size, rescaled
from training.checkpoints import replace_text
from training.models import evaluating

METRICS: Final = "metrics.jsonl"
# Where one process alone cannot ask the model; `accelerate launch` says nothing of it in `args`.
SHARDED: Final = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's metrics: stage, step, and what was logged there.

    A last line without its end was cut off, and is left out.
    """
    path = folder / METRICS
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.endswith("\n"))


class Journal(TrainerCallback):
    """Writes what the trainer logs to a run's metrics, with steps and examples a second.

    A resumed stage takes back the lines of steps that it takes again.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder = folder
        self.stage = stage
        self.started = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget steps that are taken again, and start the clock."""
        self.started = (time.monotonic(), state.global_step)
        if state.is_world_process_zero:
            kept = [
                row
                for row in read_metrics(self.folder)
                if row["stage"] != self.stage or row["step"] <= state.global_step
            ]
            text = "".join(json.dumps(row) + "\n" for row in kept)
            replace_text(self.folder / METRICS, text)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write one line."""
        if not state.is_world_process_zero:
            return
        began, at = self.started
        steps = state.global_step - at
        seconds = time.monotonic() - began
        speed = {"steps_per_second": round(steps / seconds, 4)} if steps and seconds else {}
        row = {"stage": self.stage, "step": state.global_step, "steps": state.max_steps}
        numbers = {key: _number(value) for key, value in (logs or {}).items()}
        with (self.folder / METRICS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row | numbers | speed) + "\n")


def _number(value: Any) -> Any:
    """Return a value fit for JSON: what is not finite is not there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Bar(TrainerCallback):
    """A progress bar on standard error: steps, time left, and the numbers logged last."""

    SHOWN: Final = {"loss": "loss", "reward": "reward", "kl": "KL"}

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"), console=Console(stderr=True),
            refresh_per_second=1,
        )  # fmt: skip
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar, on the first process only."""
        if state.is_world_process_zero:
            self.task = self.bar.add_task(
                self.stage, total=state.max_steps, completed=state.global_step, said=""
            )
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move on."""
        if self.task is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Say the numbers."""
        if self.task is not None:
            said = [f"{w} {logs[k]:.4g}" for k, w in self.SHOWN.items() if (logs or {}).get(k)]
            self.bar.update(self.task, said="  ".join(said) or self.bar.tasks[0].fields["said"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the bar as it ended."""
        if self.task is not None:
            self.bar.stop()


class Sample(NamedTuple):
    """One example to answer now and then; boxes in original pixels, none where none are known."""

    image: Path
    prompt: str
    right: str
    boxes: tuple[XYXY, ...] = ()
    size: Size | None = None
    extent: Size | None = None


class Samples(TrainerCallback):
    """Lets the model answer the same few examples every N steps, and draws what it says.

    `samples/STAGE-000020.png` has an image each, true boxes green and found ones red, with the text
    below; `.jsonl` beside it has the texts. Sharded models cannot be asked in between.
    """

    def __init__(
        self, folder: Path, stage: str, samples: Sequence[Sample], processor: Any, *,
        every: int, tokens: int,
    ) -> None:  # fmt: skip
        self.folder = folder / "samples"
        self.stage = stage
        self.samples = samples
        self.processor = processor
        self.every = every
        self.tokens = tokens

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Answer and draw, when it is time."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        sharded = PartialState().distributed_type in SHARDED
        if due and self.samples and state.is_world_process_zero and not sharded:
            plain = getattr(model, "module", model)
            said = [complete(plain, self.processor, s, tokens=self.tokens) for s in self.samples]
            write_samples(self.folder, f"{self.stage}-{state.global_step:06d}", self.samples, said)


def complete(model: Any, processor: Any, sample: Sample, *, tokens: int) -> str:
    """Return what a model writes for an example, the likeliest word each time."""
    turn = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}
    ]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    with Image.open(sample.image) as image:
        batch = processor(images=[image.convert("RGB")], text=[text], return_tensors="pt")
    batch = batch.to(model.device)
    with evaluating(model):
        ids = model.generate(
            **batch,
            max_new_tokens=tokens,
            do_sample=False,
            top_p=None,
            top_k=None,
            temperature=None,
        )
    new = ids[0, batch["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(new, skip_special_tokens=True))


def write_samples(folder: Path, name: str, samples: Sequence[Sample], said: Sequence[str]) -> None:
    """Write answers as JSON Lines, and draw them as one picture."""
    from training.pictures import draw_samples

    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Mapping[str, Any]] = [
        {"image": str(s.image), "prompt": s.prompt, "right": s.right, "said": text}
        for s, text in zip(samples, said, strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    draw_samples(folder / f"{name}.png", name, samples, said)


def found_boxes(sample: Sample, text: str) -> tuple[XYXY, ...]:
    """Return the boxes that an answer names, in original pixels; none where it names none."""
    if not (sample.size and sample.extent):
        return ()
    try:
        boxes = Answer.parse(text).boxes or ()
    except AnswerError:
        return ()
    return tuple(rescaled(box, sample.extent, sample.size) for box in boxes)


def wrapped(text: str, width: int = 60, lines: int = 9) -> str:
    """Return a text in short lines, the last one cut off with an ellipsis."""
    broken = [part for line in text.splitlines() for part in textwrap.wrap(line, width)]
    return "\n".join(broken[:lines] + (["…"] if len(broken) > lines else []))
