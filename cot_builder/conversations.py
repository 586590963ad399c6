"""Rows of a dataset to what a model is asked and should answer, by the templates bank.

`EXAMPLES` has one function a training task. Each takes a study's row and yields examples of one
image, as rows: `study_id`, `subject_id`, `source`, `split`, `image_id`, `image_path`, `prompt` and
`completion` (lists of `role` and `content`), and `template` (question, wording, bank version).
The wording of a step of reasoning is read back as it was written: `read_step` undoes `say`. A step
may also be worded freely by a model (`phrasings.jsonl` of a dataset), if it reads back the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from cot_builder.answers import Answer, Step, quotable
from cot_builder.boxes import Box, Frame
from cot_builder.errors import UserError
from cot_builder.records import Row
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS
from knowledge_banks import Banks, expand

# The views on which findings are looked for first; a lateral film is the last choice.
_FRONTAL: Final = ("PA", "AP")
_LATERAL: Final = ("LATERAL", "LL", "LAT")
PHRASINGS: Final = "phrasings.jsonl"
_QUOTED: Final = re.compile(r'"([^"\n]+)"')
_CONCEPT: Final = "line of blood"  # stands for any concept while a wording is tried


class Phrase(NamedTuple):
    """A phrase with its boxes on one image, as a model learns it; `path` starts at the root.

    `steps` are the chains that were read in the phrase.
    """

    text: str
    path: str
    image_id: str
    boxes: tuple[Box, ...]
    steps: tuple[Step, ...]


class Wording(NamedTuple):
    """How one step of reasoning is put in words, and the pattern that reads it back."""

    id: str
    row: Row
    pattern: re.Pattern[str]

    def say(self, step: Step) -> str:
        """Write a step as one line."""
        via = self.row["via"].format(concepts=self.row["joint"].join(step.concepts))
        return str(
            self.row["step"].format(
                finding=step.finding,
                via=via if step.concepts else "",
                disease=step.disease,
                assertion=self.row[step.assertion],
                regions=", ".join(step.regions),
            )
        )

    def read(self, line: str) -> Step | None:
        """Read a line back; None when it is not of this wording."""
        found = self.pattern.fullmatch(line)
        if not found:
            return None
        assertion = next(name for name in ASSERTIONS if self.row[name] == found["assertion"])
        concepts = found["concepts"]
        return Step(
            found["finding"],
            tuple(concepts.split(self.row["joint"])) if concepts else (),
            found["disease"],
            assertion,
            tuple(found["regions"].split(", ")),
        )


# -- a study as a model is taught


def mcl_examples(study: Row, banks: Banks, frame: Frame) -> Iterator[Row]:
    """Yield a study's chains as reasoning, then each phrase with boxes as reasoning and boxes."""
    steps = distinct(map(Step.of, study["chains"]))
    if steps and (image := main_image(study)):
        question, wording = _drawn(banks, "mcl", study["study_id"])
        think = think_text(steps, wording, phrased(banks))
        prompt = question["text"].format(labels=", ".join(LABELS), regions=", ".join(REGIONS))
        yield _example(study, image["path"], image["image_id"], prompt, Answer(think).render()) | {
            "template": _template(banks, question["id"], wording.id)
        }
    for example in svr_examples(study, banks, frame):
        if example["boxes"] and example["completion"]:
            yield {key: example[key] for key in example if key not in _SVR_ONLY}


def svr_examples(study: Row, banks: Banks, frame: Frame) -> Iterator[Row]:
    """Yield each phrase with its boxes, then what the report rules out, with no box.

    Adds `phrase`, `boxes` (xyxy in original pixels; none for what is not there), `width` and
    `height` of the original image, and the `frame` in which the completion's boxes are written.
    A phrase in which no chain was read has an empty completion: there is no reasoning to show.
    """
    for phrase in grounded_phrases(study):
        yield _svr_example(study, phrase, banks, frame)
    image = main_image(study)
    if not (image and image["width"] and image["height"]):
        return
    told = {c["disease"] for c in study["chains"] if c["assertion"] != "negative"}
    absent = (
        chain
        for chain in study["chains"]
        if chain["assertion"] == "negative"
        and chain["disease"] not in told
        and "structures." not in chain["rule"]  # "heart size is normal": the heart is there
    )
    for step in distinct(map(Step.of, absent)):
        phrase = Phrase(step.finding, image["path"], image["image_id"], (), (step,))
        yield _svr_example(study, phrase, banks, frame, image)


def report_examples(study: Row, banks: Banks, frame: Frame) -> Iterator[Row]:
    """Yield the findings section as the text to write; adds `findings`. None without the two."""
    texts = (s["text"] for s in study["sections"] if s["name"] == "findings")
    findings = " ".join(" ".join(texts).split())
    if findings and (image := main_image(study)):
        question, _ = _drawn(banks, "report", study["study_id"])
        yield _example(study, image["path"], image["image_id"], question["text"], findings) | {
            "template": _template(banks, question["id"]),
            "findings": findings,
        }


# To add one: a task of the templates bank and the function that yields its examples.
EXAMPLES: Final[dict[str, Callable[[Row, Banks, Frame], Iterator[Row]]]] = {
    "mcl": mcl_examples,
    "svr": svr_examples,
    "report": report_examples,
}
_SVR_ONLY: Final = ("phrase", "boxes", "width", "height", "frame")


def main_image(study: Row) -> Row | None:
    """Return the image on which a study's findings are looked for: the first frontal one."""

    def rank(image: Row) -> int:
        view = (image["view"] or "").upper()
        return 0 if view.startswith(_FRONTAL) else 2 if view.startswith(_LATERAL) else 1

    return min(study["images"], key=rank, default=None)


def grounded_phrases(study: Row) -> Iterator[Phrase]:
    """Yield every phrase with boxes, a phrase on two images twice.

    Phrases are those that the release gives, and findings whose boxes came by another way.
    """
    texts = {section["name"]: section["text"] for section in study["sections"]}
    paths = {image["image_id"]: image["path"] for image in study["images"]}
    told = [box for phrase in study["grounded"] for box in phrase["boxes"]]
    later = [c for c in study["chains"] if any(box not in told for box in c["boxes"])]
    for place in (*study["grounded"], *later):
        within = (
            chain
            for chain in study["chains"]
            if chain["section"] == place["section"]
            and place["start"] <= chain["start"]
            and chain["end"] <= place["end"]
        )
        steps = distinct(map(Step.of, within))
        by_image: dict[str, list[Box]] = {}
        for box in map(Box.from_row, place["boxes"]):
            by_image.setdefault(box.image_id, []).append(box)
        text = texts[place["section"]][place["start"] : place["end"]]
        for image_id, boxes in by_image.items():
            yield Phrase(text, paths.get(image_id, image_id), image_id, tuple(boxes), steps)


def _svr_example(
    study: Row, phrase: Phrase, banks: Banks, frame: Frame, image: Row | None = None
) -> Row:
    size = phrase.boxes[0].to_row() if phrase.boxes else image or {}
    question, wording = _drawn(banks, "svr", study["study_id"], phrase.text)
    answer = ""
    if phrase.steps:
        boxes = tuple(frame.integers(box.xyxy, box.size) for box in phrase.boxes)
        answer = Answer(think_text(phrase.steps, wording, phrased(banks)), boxes).render()
    prompt = question["text"].format(
        phrase=quotable(phrase.text), coordinates=banks.templates["coordinates"][frame.name]
    )
    return _example(study, phrase.path, phrase.image_id, prompt, answer) | {
        "template": _template(banks, question["id"], wording.id),
        "phrase": phrase.text,
        "boxes": [list(box.xyxy) for box in phrase.boxes],
        "width": size["width"],
        "height": size["height"],
        "frame": frame.name,
    }


def _example(study: Row, path: str, image_id: str, prompt: str, completion: str) -> Row:
    return {
        **{key: study[key] for key in ("study_id", "subject_id", "source", "split")},
        "image_id": image_id,
        "image_path": path,
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}] if completion else [],
    }


def _template(banks: Banks, *ids: str) -> str:
    return f"{'+'.join(ids)}@{banks.templates['version']}"


def _drawn(banks: Banks, task: str, *of: str) -> tuple[Row, Wording]:
    """Draw a question and a wording by what the example is of: always the same for the same."""
    number = int.from_bytes(hashlib.sha256("/".join((task, *of)).encode()).digest()[:8])
    questions = [row for row in banks.templates["question"] if row["task"] == task]
    kinds = wordings(banks)
    return questions[number % len(questions)], kinds[number // len(questions) % len(kinds)]


# -- the wording of chains


def distinct(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return steps in their order, each once: findings and impression often say the same."""
    return tuple(dict.fromkeys(steps))


def think_text(
    steps: Sequence[Step], wording: Wording, lines: Mapping[Step, str] = MappingProxyType({})
) -> str:
    """Write steps as a think text, a line each: those of `lines` where they have the step."""
    return "\n".join(lines.get(step) or wording.say(step) for step in steps)


def read_step(line: str, banks: Banks) -> Step | None:
    """Read one line of reasoning back, in a wording of the bank or free; None when it is none."""
    read = (kind.read(line.strip()) for kind in wordings(banks))
    return next(filter(None, read), None) or _read_freely(line, banks)


def read_steps(text: str, banks: Banks) -> tuple[Step, ...]:
    """Read a think text back; ValueError naming the first line that is of no wording."""
    lines = [line for line in text.splitlines() if line.strip()]
    steps = [read_step(line, banks) for line in lines]
    if None in steps:
        raise ValueError(f"a line of no wording: {lines[steps.index(None)]!r:.120}")
    return tuple(filter(None, steps))


# -- wording by a model


def with_phrasings(banks: Banks, folder: Path) -> Banks:
    """Return banks by which steps are worded as `phrasings.jsonl` of a dataset has them, if any."""
    try:
        text = (folder / PHRASINGS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return banks
    rows = map(json.loads, text.splitlines())
    lines = {_step(row["step"]): row["line"] for row in rows if row["line"]}
    return banks._replace(templates={**banks.templates, "phrased": lines})


def phrased(banks: Banks) -> Mapping[Step, str]:
    """Return the lines of `with_phrasings`, by step."""
    lines: Mapping[Step, str] = banks.templates.get("phrased", {})
    return lines


def spoken(assertion: str) -> str:
    """Return the word that a free line has for an assertion."""
    return _SPOKEN[assertion]


def _step(row: Sequence[Any]) -> Step:
    finding, concepts, disease, assertion, regions = row
    return Step(finding, tuple(concepts), disease, assertion, tuple(regions))


def _read_freely(line: str, banks: Banks) -> Step | None:
    """Read a line by what it names: one quoted finding, one label, one assertion, its regions.

    Any other word of denial or doubt would turn what it says around: then it is no step.
    """
    free = _free(banks.sha256, _cues(banks), _concepts(banks))
    findings, rest = _QUOTED.findall(line), _QUOTED.sub(" ", line)
    named = free.labels.findall(rest)
    rest = free.labels.sub(" ", rest)
    regions = set(free.regions.findall(rest))
    rest = free.regions.sub(" ", rest)
    concepts = free.concepts.findall(rest)
    rest = free.concepts.sub(" ", rest)
    assertions = free.assertions.findall(rest)
    rest = free.assertions.sub(" ", rest)
    if [len(found) for found in (findings, named, assertions)] != [1, 1, 1] or not regions:
        return None
    if '"' in rest or free.cues.search(rest.lower().replace("-", " ")):
        return None
    assertion = next(name for name in ASSERTIONS if _SPOKEN[name] == assertions[0])
    ordered = tuple(region for region in REGIONS if region in regions)
    return Step(findings[0], tuple(concepts), named[0], assertion, ordered)


class _Free(NamedTuple):
    labels: re.Pattern[str]
    regions: re.Pattern[str]
    concepts: re.Pattern[str]
    assertions: re.Pattern[str]
    cues: re.Pattern[str]


_SPOKEN: Final = {"positive": "present", "negative": "absent", "uncertain": "possible"}


@lru_cache(maxsize=4)
def _free(_: str, cues: tuple[str, ...], concepts: tuple[str, ...]) -> _Free:
    lists: tuple[Iterable[str], ...] = (LABELS, REGIONS, concepts, _SPOKEN.values(), cues)
    return _Free(*(re.compile(rf"\b(?:{_any(_longest_first(words))})\b") for words in lists))


def _longest_first(words: Iterable[str]) -> list[str]:
    return sorted(words, key=len, reverse=True)


def _concepts(banks: Banks) -> tuple[str, ...]:
    signs = banks.signs["sign"]
    return tuple(dict.fromkeys(concept for s in signs for concept in s.get("concepts", ())))


def _cues(banks: Banks) -> tuple[str, ...]:
    """Return the bank's words of denial and doubt, written out."""
    means = ("negative", "uncertain")
    phrases = [p for cue in banks.cues["cue"] if cue["means"] in means for p in cue["phrases"]]
    return tuple(dict.fromkeys(form for phrase in phrases for form in expand(phrase)))


# -- the wordings of the bank


_wordings: dict[str, tuple[Wording, ...]] = {}  # by the banks' content, compiled once in a process


def wordings(banks: Banks) -> tuple[Wording, ...]:
    """Return the wordings of the bank; UserError for one that would not be read back."""
    if banks.sha256 not in _wordings:
        _wordings[banks.sha256] = tuple(map(_compiled, banks.templates["wording"]))
    return _wordings[banks.sha256]


def _compiled(row: Row) -> Wording:
    """Compile a wording, and read back a step of every kind that it can say."""
    where = f"templates.toml: [[wording]] {row['id']!r}"
    fields = {
        "finding": r'(?P<finding>[^"\n]+)',
        "via": "(?:" + _pattern(row["via"], {"concepts": r'(?P<concepts>[^"\n]+?)'}) + ")?",
        "disease": f"(?P<disease>{_any(LABELS)})",
        "assertion": f"(?P<assertion>{_any([row[name] for name in ASSERTIONS])})",
        "regions": f"(?P<regions>(?:{_any(REGIONS)})(?:, (?:{_any(REGIONS)}))*)",
    }
    if '"{finding}"' not in row["step"]:
        raise UserError(f'{where}: key "step": expected "{{finding}}" within quotation marks')
    try:
        wording = Wording(row["id"], row, re.compile(_pattern(row["step"], fields)))
        for assertion in ASSERTIONS:
            for concepts in ((), (_CONCEPT,), (_CONCEPT, "B")):
                step = Step("A: (b) → c, d.", concepts, LABELS[2], assertion, REGIONS[2:4])
                if wording.read(said := wording.say(step)) != step:
                    raise UserError(f"{where}: {said!r} would not be read back as it was written")
    except (KeyError, IndexError, ValueError, re.error) as error:
        raise UserError(f"{where}: expected the fields {', '.join(fields)}: {error}") from None
    return wording


def _pattern(template: str, fields: dict[str, str]) -> str:
    """Return a pattern of a template: its own words, with a pattern for each {field}."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(
        fields[part] if place % 2 else re.escape(part) for place, part in enumerate(parts)
    )


def _any(words: Sequence[str]) -> str:
    return "|".join(map(re.escape, words))
