"""Coverage-guided fuzzing (atheris, libFuzzer) of what reads other people's text.

    make fuzz-guided                                                        # 4 minutes a reader
    python benchmarks/fuzz_atheris.py --seconds 20 --readers boxes,answers  # nothing is written

Each reader runs in a process of its own, from seeds that are whole inputs, with a dictionary of its
words. Our own modules are instrumented, libraries are not. Whatever comes, a reader gives a result
or the error that its callers catch, within --soon seconds, and what it gives holds together: see
the asserts. An input that breaks this is kept in out/fuzz, and its stack is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
FULL = 240
sys.path.insert(0, str(HERE.parent))


class Reader(NamedTuple):
    """What is fuzzed: inputs to begin with, words, and what makes the function of one input."""

    seeds: list[str]
    words: str
    make: Callable[[], Callable[[bytes], None]]


def sections() -> Callable[[bytes], None]:
    from cot_builder.records import Section
    from cot_builder.sections import compile_headings, split_sections
    from cot_builder.sentences import split_sentences
    from knowledge_banks import load_banks

    headings = compile_headings(load_banks().headings)

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        for section in (*split_sections(text, headings), Section("findings", text)):
            end = 0
            for sentence in split_sentences(section):
                assert section.text[sentence.start : sentence.end] == sentence.text
                assert end <= sentence.start < sentence.end
                end = sentence.end

    return read


def xml() -> Callable[[bytes], None]:
    from cot_builder.sources import SOURCES, SourceOptions
    from knowledge_banks import load_banks

    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    file = root / "ecgen-radiology" / "1.xml"
    file.parent.mkdir()
    options = SourceOptions(banks=load_banks(), root=root)
    file.touch()
    plan, load = SOURCES["iu_xray"].plan, SOURCES["iu_xray"].load

    def read(data: bytes) -> None:
        file.write_bytes(data)
        (task,) = plan(options).tasks
        found = load(task, options)
        assert found.report or found.rejects

    return read


def answers() -> Callable[[bytes], None]:
    from cot_builder.answers import Answer, AnswerError

    def read(data: bytes) -> None:
        with suppress(AnswerError):
            answer = Answer.parse(data.decode("utf-8", "surrogateescape"))
            assert Answer.parse(answer.render()) == answer

    return read


def boxes() -> Callable[[bytes], None]:
    from cot_builder.answers import AnswerError, read_boxes

    def read(data: bytes) -> None:
        with suppress(AnswerError):
            found = read_boxes(data.decode("utf-8", "surrogateescape"))
            assert all(x1 <= x2 and y1 <= y2 for x1, y1, x2, y2 in found.xyxy)
            assert len(found.confidences) in (0, len(found.xyxy))

    return read


def export() -> Callable[[bytes], None]:
    from annotation.log import ANNOTATIONS, read_reviews, record
    from cot_builder.errors import UserError

    task = _task()
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    (folder / "tasks.jsonl").write_text(json.dumps(task.to_row()) + "\n")

    def read(data: bytes) -> None:
        try:
            exported = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(exported, list):  # the command line tells so
            return
        (folder / ANNOTATIONS).unlink(missing_ok=True)
        with suppress(UserError):
            new, _ = record(folder, exported, {task.key: task})
            reviews, rejects = read_reviews(folder)
            assert new >= len(reviews) + len(rejects)

    return read


def llm() -> Callable[[bytes], None]:
    from cot_builder.decompose import Decomposer
    from cot_builder.proposals import grounds, verify
    from cot_builder.replies import _read
    from knowledge_banks import load_banks, load_prompt

    banks, prompt = load_banks(), load_prompt("chains")
    by = grounds(banks, Decomposer(banks, cache=False).lexicon, prompt.id)

    def read(data: bytes) -> None:
        """A sentence, a line break, and what a model answers to it."""
        sentence, _, answer = data.decode("utf-8", "surrogateescape").partition("\n")
        found, problem = _read(answer, prompt.schema)
        if problem:
            return
        verdicts = verify(sentence, found, by)
        assert len(verdicts) == len(found["mentions"])
        for verdict in verdicts:
            assert bool(verdict.told) != bool(verdict.faults)
            if told := verdict.told:
                assert sentence[told.start : told.end] == told.finding

    return read


def _task() -> Any:
    from annotation.tasks import review_task
    from cot_builder.dataset import read_studies
    from cot_builder.pipeline import build
    from cot_builder.shards import BuildOptions
    from cot_builder.sources import SourceOptions
    from knowledge_banks import load_banks

    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "demo"
        release = SourceOptions(banks=load_banks(), limit=3)
        build(BuildOptions(source="demo", release=release, out=out))
        row = min(read_studies(out), key=lambda row: len(row["chains"]) or 99)
    return review_task(row, sections=("findings", "impression"), model_version="1")


def _exported() -> list[str]:
    from annotation.tasks import result

    task = _task()
    verdict = {
        "id": "v", "from_name": "verdict", "to_name": "report", "type": "choices",
        "value": {"choices": ["accept"]},
    }  # fmt: skip
    said = {"id": 1, "completed_by": {"email": "a@b"}, "result": [*result(task), verdict]}
    row = {"id": 1, "project": 1, "data": task.request(str)["data"], "annotations": [said]}
    return [json.dumps([row]), json.dumps([row], indent=1)]


_MENTION = (
    '{"finding": "small left effusion", "disease": "Pleural Effusion", "concepts": [], '
    '"assertion": "positive", "regions": ["left lung"]}'
)
_BOXES = "[ ] ( ) , . 1 -2 1e9 nan inf Position Confidence : No_Objects ' { }"
# To add one: what makes the function of an input, and a line here.
READERS: dict[str, Reader] = {
    "sections": Reader(
        [
            "FINAL REPORT\n EXAMINATION: CHEST\n\n FINDINGS: No effusion. T12.The heart is big.\n"
            " 1. Small\n 2) large\n\n IMPRESSION:\n As above.\n ____________\n ADDENDUM: None.\n",
            "the lungs are clear, dr. smith. 3.5 cm nodule; no pneumothorax",
        ],
        "FINDINGS: IMPRESSION: COMPARISON: INDICATION: ADDENDUM WET READ ____________ Dr. no. 1. "
        "2) cm mm vs. a.m. ___ // - * # >",
        sections,
    ),
    "xml": Reader(
        [
            '<eCitation><uId id="CXR1"/><MedlineCitation><Article><Abstract><AbstractText '
            'Label="FINDINGS">No effusion &amp; clear.</AbstractText><AbstractText Label='
            '"IMPRESSION">Clear.</AbstractText></Abstract></Article></MedlineCitation>'
            '<parentImage id="CXR1_1_IM-0001-3001"/></eCitation>',
        ],
        '<!DOCTYPE <!ENTITY <![CDATA[ ]]> <AbstractText </AbstractText> Label= &amp; &#x41; <? ?> '
        '<!-- --> <uId id= encoding= xmlns: "',
        xml,
    ),
    "answers": Reader(
        ["<think>There.</think><answer>[1, 2, 30, 40]</answer>", "<think>x</think>"],
        f"<think> </think> <answer> </answer> {_BOXES}",
        answers,
    ),
    "boxes": Reader(
        [
            "[[1, 2, 30, 40], [1.5,2e1,3,4]]", "(1,2),(3,4)", "No Objects",
            "[{'Position': [30, 2, 1, 40], 'Confidence': 0.9}]",
        ],
        _BOXES,
        boxes,
    ),
    "export": Reader(
        [],  # those of `_exported`
        '"result" "value" "from_name" "to_name" "type" "id" "from_id" "to_id" "relation" "labels" '
        '"choices" "rectanglelabels" "start" "end" "text" "x" "width" "was_cancelled" null true '
        '1e999 -1 "data" "annotations" "completed_by" [ ] { } , :',
        export,
    ),
    "llm": Reader(
        [
            f'There is a small left effusion, no edema.\n{{"mentions": [{_MENTION}]}}',
            f'Effusion or small edema.\n```json\n{{"mentions": [{_MENTION}, {_MENTION}]}}\n```',
        ],
        '"mentions" "finding" "disease" "concepts" "assertion" "regions" "positive" "negative" '
        '"uncertain" "Edema" "unmapped" "No_Finding" "left lung" ```json no without ( * \\u0130',
        llm,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=FULL, help="For each reader.")
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--soon", type=int, default=10, help="The longest for one input, seconds.")
    parser.add_argument("--keep", type=Path, default=HERE.parent / "out" / "fuzz")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options, libfuzzer = parser.parse_known_args()
    if options.run:
        _fuzz(options.run, libfuzzer)
        return
    path = HERE / "results" / "fuzz.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rows = dict(found.get("guided", {}))
    for name in options.readers.split(","):
        rows[name] = _measured(name, options)
        print(f"{name}: {rows[name]}", flush=True)
        if options.seconds == FULL:
            machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
            found |= {"machine": machine, "atheris": version("atheris"), "guided": rows}
            path.write_text(json.dumps(found, indent=1) + "\n")


def _fuzz(name: str, libfuzzer: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["cot_builder", "annotation", "knowledge_banks"]):
        read = READERS[name].make()
    atheris.Setup([sys.argv[0], *libfuzzer], read)
    atheris.Fuzz()


def _measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    kept = options.keep / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        corpus, words = Path(place, "corpus"), Path(place, "words")
        corpus.mkdir()
        for number, seed in enumerate(READERS[name].seeds or _exported()):
            (corpus / f"seed-{number}").write_text(seed)
        entries = (re.sub(r'(["\\])', r"\\\1", word) for word in READERS[name].words.split())
        words.write_text("".join(f'"{word.replace("_", " ")}"\n' for word in entries))
        done = subprocess.run(
            [
                sys.executable, __file__, "--run", name, f"-max_total_time={options.seconds}",
                "-max_len=8000", f"-timeout={options.soon}", "-print_final_stats=1", "-seed=1",
                "-rss_limit_mb=3000", f"-artifact_prefix={kept}/", f"-dict={words}", str(corpus),
            ],
            capture_output=True, text=True, check=False, errors="replace",
        )  # fmt: skip
        said = done.stdout + done.stderr
        inputs = len(list(corpus.iterdir()))
    if done.returncode:
        print(said[-3000:], flush=True)
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
    covered = re.findall(r"#\d+\s+\w+\s+cov: (\d+) ft: (\d+)", said)
    return {
        "seconds": options.seconds,
        "executions": int(stats.get("number_of_executed_units", 0)),
        "covered": int(covered[-1][0]) if covered else 0,
        "features": int(covered[-1][1]) if covered else 0,
        "inputs": inputs,
        "slowest_seconds": int(stats.get("slowest_unit_time_sec", 0)),
        "failed": done.returncode != 0,
    }


if __name__ == "__main__":
    main()
