"""Predictions of a checkpoint: a report for each study, then reasoning and boxes of each sentence.

As in the paper's inference: the adapter writes the report; its base, trained to reason and to find,
is asked about each sentence of it. A checkpoint without an adapter does both. The folder is that of
`cot_builder.predictions`; a stopped run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from cot_builder import __version__
from cot_builder.answers import Answer, AnswerError, quotable
from cot_builder.boxes import Frame, Size, check_frames
from cot_builder.conversations import main_image, svr_examples
from cot_builder.dataset import MANIFEST, read_studies
from cot_builder.images import BadImageError, probe, reduced
from cot_builder.predictions import Located, Prediction, Writer
from cot_builder.records import Row, Section
from cot_builder.sentences import split_sentences
from knowledge_banks import Banks
from training.conversations import Source
from training.models import Loaded, load_checkpoint
from training.processors import processor_pixels

LIBRARIES: Final = ("torch", "transformers", "peft")


class Decoding(NamedTuple):
    """How the model writes: greedily, so many at a time, and at most so many tokens."""

    batch: int = 4
    report_tokens: int = 256
    answer_tokens: int = 256
    dtype: str = "float32"
    device: str = "cpu"


GREEDY: Final = Decoding()


class Seen(NamedTuple):
    """An image as the model sees it, with the size of the original."""

    image: Any
    image_id: str
    path: str
    size: Size


@dataclass(frozen=True, slots=True)
class Asker:
    """A model with the questions it is asked; each is the templates bank's first of its task."""

    loaded: Loaded
    frame: Frame
    banks: Banks
    decoding: Decoding

    def question(self, task: str) -> Row:
        """Return the question of a task."""
        rows: list[Row] = self.banks.templates["question"]
        return next(row for row in rows if row["task"] == task)

    def reports(self, images: Sequence[Seen]) -> list[str]:
        """Write a report for each image, by the adapter where there is one."""
        prompt = self.question("report")["text"]
        return self._complete([(seen, prompt) for seen in images], self.decoding.report_tokens)

    def locate(self, asked: Sequence[tuple[Seen, Located]]) -> list[Located]:
        """Ask the base for reasoning and boxes of sentences or phrases, and read its answers."""
        question = self.question("svr")["text"]
        where = self.banks.templates["coordinates"][self.frame.name]
        prompts = [
            (seen, question.format(phrase=quotable(located.text), coordinates=where))
            for seen, located in asked
        ]
        with self._base():
            answers = self._complete(prompts, self.decoding.answer_tokens)
        return [
            read_answer(located, raw, self.frame, seen.size)
            for (seen, located), raw in zip(asked, answers, strict=True)
        ]

    def _base(self) -> AbstractContextManager[Any]:
        """Leave the adapter out for a while, where there is one."""
        off = getattr(self.loaded.model, "disable_adapter", None)
        return off() if off else nullcontext()

    def _complete(self, prompts: Sequence[tuple[Seen, str]], tokens: int) -> list[str]:
        said: list[str] = []
        for start in range(0, len(prompts), self.decoding.batch):
            some = prompts[start : start + self.decoding.batch]
            said += complete(self.loaded, [(seen.image, text) for seen, text in some], tokens)
        return said


def complete(loaded: Loaded, prompts: Sequence[tuple[Any, str]], tokens: int) -> list[str]:
    """Return what a model writes for (image, text) prompts, the likeliest word each time."""
    processor = loaded.processor
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for _, text in prompts
    ]
    images = [image for image, _ in prompts]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    batch = batch.to(loaded.model.device)
    with torch.inference_mode():
        ids = loaded.model.generate(
            **batch,
            max_new_tokens=tokens,
            do_sample=False,
            top_p=None,
            top_k=None,
            temperature=None,
        )
    new = ids[:, batch["input_ids"].shape[1] :]
    return [str(t) for t in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def read_answer(located: Located, raw: str, frame: Frame, size: Size) -> Located:
    """Read an answer's reasoning and boxes, in original pixels; or say why it cannot be read."""
    try:
        answer = Answer.parse(raw)
    except AnswerError as error:
        return located._replace(raw=raw, problem=str(error))
    boxes = answer.boxes
    return located._replace(
        raw=raw,
        think=answer.think,
        boxes=None if boxes is None else tuple(frame.back(box, size) for box in boxes),
        confidences=answer.confidences,
        problem="no_answer: it has no <answer>" if boxes is None else None,
    )


def predict(
    checkpoint: str,
    source: Source,
    out: Path,
    *,
    banks: Banks,
    split: str | None = "test",
    phrases: bool = False,
    limit: int | None = None,
    decoding: Decoding = GREEDY,
    resume: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Row:
    """Write a predictions folder for the studies of a split, and return its manifest.

    With `phrases` the model is asked for the dataset's own phrases too. A study whose image cannot
    be read is written with its error, and counted. Raises UserError where dataset and checkpoint
    differ in frame or pixel budget.
    """
    loaded = load_checkpoint(checkpoint, dtype=decoding.dtype, device=decoding.device)
    frame = loaded.frame or source.frame
    # What the model sees is the processor's; an original is not reduced before it.
    check_frames(data=source.frame._replace(scale=frame.scale), checkpoint=frame,
                 processor=processor_pixels(loaded.processor))  # fmt: skip
    asker = Asker(loaded, frame, banks, decoding)
    writer = Writer(out, _settings(checkpoint, source, asker, split, phrases, limit), resume=resume)
    studies = islice((s for s in read_studies(source.folder) if split in (None, s["split"])), limit)
    done = 0
    for some in _batches((s for s in studies if s["study_id"] not in writer.done), decoding.batch):
        for prediction in _predict(some, source, asker, phrases=phrases):
            writer.write(prediction)
            done += 1
            progress(done)
    return writer.finish()


def _predict(
    studies: Sequence[Row], source: Source, asker: Asker, *, phrases: bool
) -> Iterator[Prediction]:
    seen = [_look(study, source, asker.frame) for study in studies]
    good = [image for image in seen if isinstance(image, Seen)]
    reports = [report.strip() for report in asker.reports(good)]
    # All questions about a batch of studies at once: one study's may be fewer than a batch.
    asked: list[tuple[Seen, Located]] = []
    counts: list[tuple[int, int]] = []
    shown = [study for study, image in zip(studies, seen, strict=True) if isinstance(image, Seen)]
    for study, image, report in zip(shown, good, reports, strict=True):
        sentences = split_sentences(Section("findings", report))
        own = [(image, Located(s.text, s.start, s.end)) for s in sentences]
        others = list(_phrases(study, source, image, asker)) if phrases else []
        asked += own + others
        counts.append((len(own), len(others)))
    answers, written = iter(asker.locate(asked)), iter(zip(reports, counts, strict=True))
    for study, found in zip(studies, seen, strict=True):
        if isinstance(found, str):
            yield Prediction(study["study_id"], None, error=found)
            continue
        report, (of_report, of_dataset) = next(written)
        yield Prediction(
            study["study_id"], report, found.image_id, found.path,
            round(found.size.width), round(found.size.height),
            tuple(islice(answers, of_report)), tuple(islice(answers, of_dataset)),
        )  # fmt: skip


def _phrases(
    study: Row, source: Source, image: Seen, asker: Asker
) -> Iterator[tuple[Seen, Located]]:
    """Yield the dataset's phrases with the images that they are of."""
    images = {image.image_id: image}
    for example in svr_examples(study, asker.banks, asker.frame):
        name = example["image_id"]
        if name not in images:
            size = Size(example["width"], example["height"])
            try:
                images[name] = Seen(
                    _opened(source, example["image_path"], asker.frame),
                    *(name, example["image_path"], size),
                )
            except BadImageError:
                continue  # scoring counts it as unanswered
        yield images[name], Located(example["phrase"], image_id=name)


def _look(study: Row, source: Source, frame: Frame) -> Seen | str:
    """Return a study's image as the model sees it, or why there is none."""
    image = main_image(study)
    if image is None:
        return "no_image: the dataset has no image of this study"
    try:
        size = Size(image["width"], image["height"]) if image["width"] and image["height"] else None
        if size is None:
            size = Size(*probe(source.image(image["path"])))
        picture = _opened(source, image["path"], frame)
    except BadImageError as error:
        return f"{error.reason}: {image['path']}: {error.detail}"
    return Seen(picture, image["image_id"], image["path"], size)


def _opened(source: Source, path: str, frame: Frame) -> Any:
    """Open an image at the scale of training, which the dataset's own images have already."""
    scale = 1.0 if source.reduced else frame.scale
    return reduced(source.image(path), scale=scale).convert("RGB")


def _settings(
    checkpoint: str,
    source: Source,
    asker: Asker,
    split: str | None,
    phrases: bool,
    limit: int | None,
) -> Row:
    """Return what decides the predictions, for their manifest."""
    questions = {task: asker.question(task) for task in ("report", "svr")}
    trained = asker.loaded.manifest or {}
    file = Path(checkpoint) / MANIFEST
    return {
        "tool": f"cot-builder {__version__}",
        "checkpoint": {
            "path": checkpoint,
            "stage": trained.get("stage"),
            "manifest_sha256": hashlib.sha256(file.read_bytes()).hexdigest()
            if file.is_file()
            else None,
        },
        "dataset": source.to_row(),
        "split": split,
        "phrases": phrases,
        "limit": limit,
        "frame": asker.frame.to_row(),
        "prompts": {
            task: {"id": f"{row['id']}@{asker.banks.templates['version']}", "text": row["text"]}
            for task, row in questions.items()
        },
        "decoding": {"strategy": "greedy", **asker.decoding._asdict()},
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _batches(studies: Iterable[Row], size: int) -> Iterator[list[Row]]:
    remaining = iter(studies)
    while some := list(islice(remaining, size)):
        yield some
