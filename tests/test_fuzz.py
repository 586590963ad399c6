"""Readers under junk: whatever comes, a result, a reject or a UserError, and soon.

`make fuzz` tries thousands of examples each; the suite a few dozen.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotation.log import record
from annotation.reviews import UnreadableError, read_annotation
from annotation.tasks import review_task
from cot_builder.answers import Answer, AnswerError
from cot_builder.conversations import read_steps
from cot_builder.dataset import read_manifest, read_studies
from cot_builder.decompose import Decomposer
from cot_builder.decompose.explain import account
from cot_builder.errors import UserError
from cot_builder.pipeline import build
from cot_builder.predictions import read_predictions
from cot_builder.proposals import grounds, verify
from cot_builder.records import Row, Section
from cot_builder.replies import Completion, Model, Request, converse
from cot_builder.sections import Headings, clean_text, compile_headings, split_sections
from cot_builder.sentences import split_sentences
from cot_builder.shards import BuildOptions
from cot_builder.sources import SOURCES, SourceOptions
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS
from eval.label_agreement import Comparison, Disagreement, read_label_table, write_disagreements
from knowledge_banks import load_banks, load_prompt

EXAMPLES: Final = int(os.environ.get("COT_BUILDER_FUZZ", "40"))
BANKS: Final = load_banks()
# CPU seconds for one hostile input; the worst took 2.7, a megabyte of "no. " decomposed.
SOON: Final = 15.0
MEGABYTE: Final = 1_000_000

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = (
    *("no", "without", "effusion", "left", "right", "pneumothorax", "may represent", "heart"),
    *("is", "normal", "lungs", "clear", "or", "and", "versus", ",", ".", ";", ":", "\n", "\n\n"),
    *("FINDINGS:", "IMPRESSION:", "1.", "2)", "___", "XXXX", "T12.The", "cannot be excluded"),
    *("<b>", "</think>", "&lt;", "\0", "\u202e", "é", "ß", "İ", "ﬁ", "\ud800", "=cmd()", "//"),
)
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=40).map(" ".join)
numbers = st.integers() | st.floats() | st.just(10**400)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=12) | st.sampled_from(WORDS)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


@cache
def decomposer() -> Decomposer:
    return Decomposer(BANKS, cache=False)


@cache
def headings() -> Headings:
    return compile_headings(BANKS.headings)


@contextmanager
def soon() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < SOON


# -- text: what a report may hold

HOSTILE = {
    "a line of one word": "effusion " * (MEGABYTE // 9),
    "no white space": "a" * MEGABYTE,
    "full stops": "." * MEGABYTE,
    "white space": " " * MEGABYTE,
    "line breaks": "\n" * MEGABYTE,
    "digits": "1" * MEGABYTE,
    "list numbers": "1. " * (MEGABYTE // 3),
    "abbreviations": "no. " * (MEGABYTE // 4),
    "headings": "FINDINGS: " * (MEGABYTE // 10),
    "heading-like": "A" * MEGABYTE + ":",
    "colons": ":" * MEGABYTE,
    "near headings": "IMPRESSON \n" * 20_000,
    "rules": ("_" * 79 + "\n") * 12_000,
    "underscores": "_" * MEGABYTE,
    "cues": "no evidence of no " * 50_000,
    "a list": "no " + "effusion, " * 50_000,
    "negations in negations": "cannot exclude but without " * 40_000,
    "misspelt": "pnuemothroax " * 70_000,
    "brackets": "(" * MEGABYTE,
    "quotes": "\"'" * (MEGABYTE // 2),
    "combining marks": "e\u0301" * (MEGABYTE // 3),
    "slashes": "//" * (MEGABYTE // 2),
    "hyphens": "-" * MEGABYTE,
    "dates": "1/1/" * (MEGABYTE // 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_of_anything_is_read_soon(kind: str) -> None:
    text = HOSTILE[kind]
    with soon():
        sections = split_sections(text, headings())
    with soon():
        clean_text(text)
    with soon():
        sentences = list(split_sentences(Section("findings", text)))
    with soon():
        decomposer().decompose(sections or [Section("findings", text)])
    assert all(text[s.start : s.end] == s.text for s in sentences)


@fuzz
@given(texts)
def test_any_report_is_split_and_decomposed(text: str) -> None:
    for section in (Section("findings", text), *split_sections(text, headings())):
        for sentence in split_sentences(section):
            assert section.text[sentence.start : sentence.end] == sentence.text
            account(sentence.text, decomposer().lexicon)
        found = decomposer().decompose([section])
        for mention in (*found.chains, *found.unmapped):
            assert section.text[mention.start : mention.end] == mention.finding
        assert found.covered <= found.bearing <= found.sentences


# -- answers of models


ANSWER = (
    *("<think>", "</think>", "<answer>", "</answer>", "[", "]", "1", "-2.5", "1e999", "nan", ","),
    *(
        " ",
        "{'Position': [1, 2, 3, 4]",
        "}",
        "confidence ",
        "[1, 2, 3, 4]",
        "No Objects",
        "\n",
        "٣",
        "1_0",
    ),
)


@fuzz
@given(st.lists(st.sampled_from(ANSWER) | st.text(max_size=5), max_size=30).map("".join))
def test_an_answer_is_read_back_or_refused(text: str) -> None:
    try:
        answer = Answer.parse(text)
    except AnswerError:
        return
    assert Answer.parse(answer.render()) == answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 150_000,
        "<think>x</think><answer>" + "[" * MEGABYTE + "</answer>",
        "<think>x</think><answer>" + "[1, 2, 3, 4], " * 70_000 + "</answer>",
        "<think>x</think><answer>" + "1 " * 500_000 + "</answer>",
        "<think>x</think><answer>[" + "1" * MEGABYTE + ", 2, 3, 4]</answer>",
        "<think>x</think><answer>" + " " * MEGABYTE + "x</answer>",
        "<think>x</think><answer>[1, 2, 3, " + "\t" * MEGABYTE + "</answer>",
        "<think>x</think><answer>[1.1, " + "1." * 500_000 + "]</answer>",
        "<" * MEGABYTE,
    ],
    ids=range(9),
)
def test_a_megabyte_of_answer_is_read_soon(text: str) -> None:
    with soon(), suppress(AnswerError):
        Answer.parse(text)
    with soon(), pytest.raises(ValueError, match=r"^a line of no wording: .{,200}$"):
        read_steps(text, BANKS)


@fuzz
@given(st.lists(anything | texts, max_size=5))
def test_predictions_are_read_or_refused(tmp_path: Path, rows: list[Any]) -> None:
    file = tmp_path / "said.jsonl"
    lines = [json.dumps(row) if not isinstance(row, str) else row for row in rows]
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    refused(lambda: read_predictions(file))


@fuzz
@given(st.dictionaries(st.sampled_from(("study_id", "report", "sentences", "frame", "width",
       "height", "error", "phrases")), anything | st.lists(st.dictionaries(st.sampled_from(
       ("text", "start", "end", "boxes", "think")), anything))))  # fmt: skip
def test_a_prediction_of_odd_fields_is_read_or_refused(tmp_path: Path, row: Row) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text(json.dumps(row) + "\n")
    refused(lambda: read_predictions(file))


SENTENCE = "No left effusion, but a small right effusion may represent edema (new)."
mentions = st.fixed_dictionaries(
    {
        "finding": texts | st.sampled_from(("small right effusion", "effusion", "(new", "*", "")),
        "disease": st.sampled_from((*LABELS, "unmapped", "Effusion")),
        "concepts": st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=3),
        "assertion": st.sampled_from((*ASSERTIONS, "maybe")),
        "regions": st.lists(st.sampled_from((*REGIONS, "left foot")), max_size=3),
    }
)


@fuzz
@given(texts | st.just(SENTENCE), st.one_of(
    anything.map(json.dumps), texts,
    st.lists(mentions, max_size=4).map(lambda rows: json.dumps({"mentions": rows})),
    st.lists(mentions, max_size=2).map(lambda rows: f"So: ```json\n{json.dumps(rows)}```{{"),
))  # fmt: skip
def test_an_answer_of_a_language_model_is_verified_or_told(sentence: str, answer: str) -> None:
    """As `draft` and builds read it: with the repair turn's reason, or a reply that is verified."""
    prompt = load_prompt("chains")
    grounds_ = grounds(BANKS, decomposer().lexicon, prompt.id)
    talk = converse(Request.of(prompt, sentence), Model("m"))
    next(talk)
    try:
        again = talk.send(Completion("answered", answer))
    except StopIteration as end:
        for verdict in verify(sentence, end.value.parsed, grounds_):
            assert bool(verdict.told) != bool(verdict.faults)
            if told := verdict.told:
                assert sentence[told.start : told.end] == told.finding
        return
    assert "{problem}" not in again.messages[-1]["content"]
    with pytest.raises(StopIteration) as ended:
        talk.send(Completion("answered", answer))
    assert ended.value.value.status == "failed"


LLM_HOSTILE = {
    "deep": "[" * MEGABYTE,
    "deep objects": '{"mentions":' * (MEGABYTE // 12),
    "fences": "```" * (MEGABYTE // 3),
    "open fences": "```json\n" * (MEGABYTE // 8),
    "braces": "{" * (MEGABYTE // 2) + "}" * (MEGABYTE // 2),
    "digits": '{"mentions": ' + "1" * MEGABYTE + "}",
    "a megabyte of finding": json.dumps({"mentions": [
        {"finding": "effusion " * 100_000, "disease": "Edema", "concepts": [], "assertion":
         "positive", "regions": ["spine"]}]}),
    "hundreds of mentions": json.dumps({"mentions": [
        {"finding": "effusion", "disease": "Edema", "concepts": [], "assertion": "positive",
         "regions": ["spine"]}] * 500}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", LLM_HOSTILE)
def test_a_megabyte_of_a_language_models_answer_is_read_soon(kind: str) -> None:
    prompt = load_prompt("chains")
    grounds_ = grounds(BANKS, decomposer().lexicon, prompt.id)
    talk = converse(Request.of(prompt, SENTENCE), Model("m"))
    next(talk)
    with soon():
        try:
            talk.send(Completion("answered", LLM_HOSTILE[kind]))
        except StopIteration as end:
            verify(SENTENCE, end.value.parsed, grounds_)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    deep = "[" * 200_000
    file, folder = tmp_path / "said.jsonl", tmp_path / "folder"
    folder.mkdir()
    file.write_text(deep + "\n")
    (folder / "manifest.json").write_text(deep)
    for read in (lambda: read_predictions(file), lambda: read_manifest(folder)):
        with pytest.raises(UserError):
            read()


# -- releases

XML = '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">{}</AbstractText></eCitation>'
LOL = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(10))
DOCUMENTS: Final[dict[str, bytes]] = {
    "billion laughs": f"<!DOCTYPE x [{LOL}]>{XML.format('&l9;')}".encode(),
    "billion laughs in UTF-16": f"<!DOCTYPE x [{LOL}]>{XML.format('&l9;')}".encode("utf-16"),
    "another file": b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><a>&f;</a>',
    "deep": b"<a>" * 200_000,
    "deep and closed": b"<a>" * 100_000 + b"</a>" * 100_000,
    "a tag that never ends": b"<a " + b"x" * MEGABYTE,
    "attributes": b"<a " + b" ".join(b'x%d="1"' % n for n in range(100_000)) + b"/>",
    "a megabyte of text": XML.format("effusion " * 100_000).encode(),
    "references": XML.format("&#x41;" * 150_000).encode(),
    "NUL": XML.format("\0").encode(),
    "another encoding": b'<?xml version="1.0" encoding="utf-7"?><a>+ADw-b+AD4-</a>',
    "nothing": b"",
    "a comment without end": b"<!--" + b"-" * MEGABYTE,
    "processing": b"<?x " * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_hostile_xml_is_a_report_or_a_reject(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    (folder / "1.xml").write_bytes(DOCUMENTS[kind])
    with soon():
        report, rejects = read_release("iu_xray", tmp_path)
    assert report or rejects
    assert "root:" not in str(report)


@fuzz
@given(st.binary(max_size=60) | st.lists(st.sampled_from(
    (b"<a>", b"</a>", b"<AbstractText Label='FINDINGS'>", b"</AbstractText>", b"<", b"&amp;",
     b"&x;", b"<![CDATA[", b"]]>", b"\xff", b"<parentImage id='CXR1_1_IM-0001-3001'>", b"effusion")
), max_size=20).map(b"".join))  # fmt: skip
def test_any_xml_is_a_report_or_a_reject(tmp_path: Path, document: bytes) -> None:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir(exist_ok=True)
    (folder / "1.xml").write_bytes(document)
    report, rejects = read_release("iu_xray", tmp_path)
    assert report or rejects


def read_release(source: str, root: Path, **more: Any) -> tuple[Any, list[Any]]:
    """Plan and load a release of one study."""
    options = SourceOptions(banks=BANKS, root=root, **more)
    plan = SOURCES[source].plan(options)
    found = [SOURCES[source].load(task, options) for task in plan.tasks]
    return [one.report for one in found if one.report], [
        *plan.rejects,
        *(reject for one in found for reject in one.rejects),
    ]


cells = st.text(max_size=10) | numbers.map(str) | st.sampled_from(
    ("nan", "inf", "-1", "1e308", "[1, 2, 3, 4]", "../../x.png", "/etc/passwd", "a\0b", "=1+1", "")
)  # fmt: skip


@fuzz
@given(st.lists(st.tuples(*[cells] * 6), min_size=1, max_size=4))
def test_any_table_of_boxes_is_read_or_rejected(
    tmp_path: Path, rows: list[tuple[str, ...]]
) -> None:
    table = tmp_path / "boxes.csv"
    with table.open("w", newline="", encoding="utf-8", errors="surrogatepass") as stream:
        csv.writer(stream).writerows([("image", "phrase", "x1", "y1", "x2", "y2"), *rows])
    refused(lambda: read_release("boxes", table))


@fuzz
@given(anything, st.sampled_from(("csv", "jsonl", "json")), st.binary(max_size=80))
def test_any_table_of_reports_is_read_or_rejected(
    tmp_path: Path, content: Any, kind: str, junk: bytes
) -> None:
    table = tmp_path / f"reports.{kind}"
    row = json.dumps({"id": content, "report": content, "study_id": content}).encode()
    table.write_bytes((b"id,report\n" if kind == "csv" else b"") + row + b"\n" + junk)
    given = {"id_column": "id", "text_column": "report"}
    refused(lambda: read_release("table", table, **given))
    refused(lambda: read_label_table(table))
    demo = tmp_path / "demo"
    demo.mkdir(exist_ok=True)
    (demo / "studies.jsonl").write_bytes(row + b"\n" + junk)
    refused(lambda: read_release("demo", demo))


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(("images", "annotations", "categories")),
        anything | st.lists(st.dictionaries(st.sampled_from(
            ("id", "image_id", "bbox", "category_id", "file_name", "width", "height", "name")),
            anything), max_size=3),
    )
)  # fmt: skip
def test_any_coco_file_is_read_or_rejected(tmp_path: Path, content: Any) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    refused(lambda: read_release("coco", tmp_path / "annotations.json"))


def refused(read: Callable[[], object]) -> None:
    """Run a reader: nothing but a UserError may come out of it."""
    with suppress(UserError):
        read()


# -- ids and paths


IDS = ("../../evil", "/etc/passwd", "a/b", "..", "a\0b", "=HYPERLINK()", "<script>", "é" * 300, " ")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, out = tmp_path_factory.mktemp("evil"), tmp_path_factory.mktemp("built") / "out"
    lines = [
        json.dumps({"study_id": name, "report": "Small effusion.", "images": [{"path": path}]})
        for name, path in zip(IDS, [*IDS[1:], "x.png"], strict=True)
    ]
    (root / "studies.jsonl").write_text("\n".join(lines))
    build(BuildOptions(source="demo", release=SourceOptions(banks=BANKS, root=root), out=out))
    return out


def test_no_id_or_path_leads_out_of_the_dataset(built: Path) -> None:
    written = {path.name for path in built.rglob("*")}
    assert written == {"train-00000-of-00001.parquet", "rejects.jsonl", "manifest.json"}
    assert not list(built.parent.parent.rglob("*evil.*"))
    for row in read_studies(built):
        assert not any(".." in image["path"] or image["path"][0] == "/" for image in row["images"])


# -- Label Studio


@pytest.fixture(scope="module")
def task(built: Path) -> Any:
    row = next(iter(read_studies(built)))
    return review_task(row, sections=["findings"], model_version="1")


regions = st.dictionaries(
    st.sampled_from(("id", "type", "from_name", "to_name", "value", "from_id", "to_id", "meta")),
    anything
    | st.sampled_from(("labels", "choices", "relation", "rectanglelabels", "verdict", "finding")),
)


@fuzz
@given(result=anything | st.lists(regions, max_size=4))
def test_any_annotation_is_a_review_or_unreadable(task: Any, result: Any) -> None:
    with suppress(UnreadableError):
        read_annotation(task, {"reader": "r", "result": result})


@fuzz
@given(anything, st.lists(st.dictionaries(st.sampled_from(
    ("id", "data", "annotations", "project")), anything), max_size=3))  # fmt: skip
def test_any_export_is_recorded_or_refused(tmp_path: Path, task: Any, junk: Any, rows: Any) -> None:
    whole = {"id": 1, "data": task.request(str)["data"], "annotations": junk}
    for exported in (rows, [whole], junk if isinstance(junk, list) else [junk]):
        refused(lambda exported=exported: record(tmp_path, exported, {task.key: task}))


# -- what spreadsheets open


@fuzz
@given(st.text(max_size=8).map("".join) | st.sampled_from(IDS))
def test_no_cell_is_a_formula(tmp_path: Path, study_id: str) -> None:
    found = Disagreement(study_id, "Edema", 1, 0)
    path = tmp_path / "differ.csv"
    write_disagreements(path, Comparison((), (), 1, 0, 0, (found,)))
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.reader(stream):
            assert not any(cell.lstrip()[:1] in tuple("=+-@") for cell in row)
