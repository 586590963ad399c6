"""Studies to Label Studio tasks and back, on results as Label Studio writes them."""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from annotation.batch import Images
from annotation.interface import interface, keys
from annotation.log import append, read_lines, read_reviews, read_tasks, record
from annotation.readers import Decision, decide, readings, versions
from annotation.reviewed import apply_reviews
from annotation.reviews import Review, UnreadableError, faults, read_annotation
from annotation.tasks import (
    NO_IMAGE,
    Task,
    adjudication_task,
    candidate,
    choose,
    result,
    review_task,
    wrong,
)
from cot_builder.boxes import Box
from cot_builder.dataset import read_manifest, read_studies
from cot_builder.errors import UserError
from cot_builder.images import Scaling, derivative
from cot_builder.pipeline import build
from cot_builder.records import Chain, Row
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks
from tests.commands import refused, well

FINDINGS = "There is a small left effusion.\nPatchy opacity at the right base. No pneumothorax."
IMPRESSION = "Possible pneumonia & <b>small</b> effusion."


def box(x1: float, y1: float, x2: float, y2: float, image: str = "i1") -> Box:
    return Box(x1, y1, x2, y2, 2544, 3056, image, "ms_cxr", "manual")


LEFT, RIGHT, OTHER = box(1701.3, 1800.7, 2301.1, 2500.9), box(3, 5, 7, 9), box(1, 1, 9, 9, "i2")


def chain(section: str, finding: str, disease: str, **more: Any) -> Row:
    text = {"findings": FINDINGS, "impression": IMPRESSION}[section]
    start = text.index(finding)
    said: dict[str, Any] = {
        "sentence": text.count(".", 0, start), "assertion": "positive", "basis": "stated",
        "regions": ("left lung",), "rule": "diseases.effusion@1.0.0", **more,
    }  # fmt: skip
    return Chain(section, start=start, end=start + len(finding), finding=finding,
                 disease=disease, **said).to_row()  # fmt: skip


STUDY: Row = {
    "study_id": "s1",
    "sections": [
        {"name": "history", "text": "Mr. Secret"},
        {"name": "findings", "text": FINDINGS},
        {"name": "impression", "text": IMPRESSION},
    ],
    "images": [
        {"path": "f/i0.png", "image_id": "i0", "view": "PA", "width": 9, "height": 9},
        {"path": "f/i1.png", "image_id": "i1", "view": "AP", "width": 2544, "height": 3056},
    ],
    "chains": [
        chain("findings", "small left effusion", "Pleural Effusion", boxes=(LEFT, OTHER),
              severity="small"),
        chain("findings", "Patchy opacity at the right base", "Lung Opacity",
              regions=("right lung",), boxes=(RIGHT,)),
        chain("findings", "pneumothorax", "Pneumothorax", assertion="negative",
              regions=("whole lung",)),
        chain("impression", "pneumonia", "Pneumonia", assertion="uncertain",
              regions=("right lung",), boxes=(RIGHT,), concepts=("infection",), basis="implied"),
    ],
    "unmapped": [],
    "grounded": [],
    "labels": {},
    "provenance": {"bearing": 4, "covered": 4},
}  # fmt: skip


@pytest.fixture
def task() -> Task:
    return review_task(STUDY, sections=("findings", "impression"), model_version="rules 1")


def verdict(value: str = "accept", *reasons: str) -> list[Row]:
    rows = [{"from_name": "verdict", "type": "choices", "value": {"choices": [value]}}]
    if reasons:
        choices = {"choices": list(reasons)}
        rows.append({"from_name": "reason", "type": "choices", "value": choices})
    return rows


def submit(task: Task, rows: list[Row], reader: str = "ann@x", **more: Any) -> Review:
    return read_annotation(task, {"reader": reader, "result": rows, **more})


def edited(task: Task, edit: Callable[[list[Row]], Any]) -> list[Row]:
    rows = copy.deepcopy(result(task)) + verdict()
    edit(rows)
    return rows


def row_of(rows: list[Row], name: str, control: str) -> Row:
    return next(row for row in rows if row.get("id") == name and row["from_name"] == control)


def relabel(rows: list[Row], name: str, control: str, *values: str) -> None:
    row = row_of(rows, name, control)
    row["value"][row["type"]] = list(values)


def without(rows: list[Row], *names: str) -> None:
    rows[:] = [
        row for row in rows
        if row.get("id") not in names and not {row.get("from_id"), row.get("to_id")} & {*names}
    ]  # fmt: skip


def add(task: Task, rows: list[Row], name: str, words: str, disease: str, region: str) -> None:
    start = task.shown.text.index(words)
    span = {"start": start, "end": start + len(words), "text": words}
    for control, kind, value in (
        ("disease", "labels", disease), ("assertion", "choices", "positive"),
        ("anatomy", "choices", region),
    ):  # fmt: skip
        rows.append({"id": name, "from_name": control, "type": kind,
                     "value": {**span, kind: [value]}})  # fmt: skip


def draw(rows: list[Row], name: str, region: str, *xywh: float, to: str | None = None) -> None:
    value = dict(zip(("x", "y", "width", "height"), xywh, strict=True))
    rows.append({"id": name, "from_name": "box", "type": "rectanglelabels",
                 "value": {**value, "rotation": 0, "rectanglelabels": [region]}})  # fmt: skip
    if to:
        rows.append({"type": "relation", "from_id": name, "to_id": to, "direction": "right"})


# -- the interface


def test_the_interface_has_the_banks_names_and_a_key_for_each() -> None:
    root = ElementTree.fromstring(interface(load_banks()))
    used: Counter[str] = Counter()
    for control, told in (("disease", "disease"), ("box", "region"), ("anatomy", "region"),
                          ("assertion", "assertion"), ("verdict", "verdict")):  # fmt: skip
        entries = root.findall(f".//*[@name='{control}']/*")
        assert [entry.get("value") for entry in entries] == list(keys()[told])
        used.update(str(entry.get("hotkey")) for entry in entries)
    assert set(used.values()) == {1}, "a key does two things"
    required = {tag.get("name") for tag in root.iter() if tag.get("required")}
    assert required == {"assertion", "anatomy", "verdict", "reason"}
    assert all(tag.get("requiredMessage") for tag in root.iter() if tag.get("required"))


# -- there and back


def test_a_task_holds_the_report_the_boxes_and_nothing_that_was_not_asked_for(task: Task) -> None:
    request = task.request(Images(Path("/x/files root"), "").url)
    data = request["data"]
    assert data["image"] == "/data/local-files/?d=files%20root/f/i1.png"
    assert data["report"] == f"FINDINGS\n{FINDINGS}\nIMPRESSION\n{IMPRESSION}\n"
    assert "Secret" not in json.dumps(request)
    assert "<b>" not in data["proposal"]
    assert "diseases.effusion" in data["proposal"]
    rows = request["predictions"][0]["result"]
    spans = [row for row in rows if row.get("from_name") == "disease"]
    for row in spans:
        value = row["value"]
        assert data["report"][value["start"] : value["end"]] == value["text"]
    # Two chains share a box: one rectangle, two relations. The box on another image stays home.
    assert [row["id"] for row in rows if row.get("from_name") == "box"] == ["b0", "b1"]
    assert sum(row["type"] == "relation" for row in rows) == 3


def test_an_accepted_proposal_comes_back_byte_for_byte(task: Task) -> None:
    review = submit(task, edited(task, lambda rows: None), lead_time=4.5)
    assert (review.outcome, review.lead_time) == ("accepted", 4.5)
    assert [one.to_row() for one in review.chains.values()] == STUDY["chains"]
    assert faults(task) == ()


def test_percent_with_a_browsers_noise_is_the_same_box(task: Task) -> None:
    def noise(rows: list[Row]) -> None:
        value = row_of(rows, "b0", "box")["value"]
        value.update({name: value[name] + 1e-9 for name in ("x", "y", "width", "height")})

    assert submit(task, edited(task, noise)).outcome == "accepted"


def test_every_kind_of_edit(task: Task) -> None:
    def edit(rows: list[Row]) -> None:
        relabel(rows, "c3", "disease", "Consolidation")
        relabel(rows, "c1", "anatomy", "whole lung", "right lung")
        row_of(rows, "b0", "box")["value"].update(x=50.0, y=25.0, width=25.0, height=50.0)
        without(rows, "c2")
        add(task, rows, "new1", "small</b> effusion", "Pleural Effusion", "left lung")
        draw(rows, "newbox", "left lung", 10.0, 20.0, 30.0, 40.0, to="new1")
        rows.append({"from_name": "comment", "type": "textarea", "value": {"text": ["lateral?"]}})

    review = submit(task, edited(task, edit))
    done = {edit.name: (edit.op, edit.fields) for edit in review.edits}
    assert done == {
        "c0": ("changed", ("boxes",)),
        "c1": ("changed", ("regions",)),
        "c2": ("deleted", ()),
        "c3": ("changed", ("disease",)),
        "new1": ("added", ()),
    }
    chains = review.chains
    assert list(chains) == ["c0", "c1", "c3", "new1"]
    assert (review.outcome, review.comment) == ("edited", "lateral?")
    moved, other = chains["c0"].boxes
    assert moved.xyxy == (1272, 764, 1908, 2292)
    assert (moved.kind, moved.source, other) == ("manual", "review", OTHER)
    assert chains["c1"].regions == ("right lung", "whole lung")
    # Another disease is the reader's word: the concepts that led to the old one do not lead to it.
    assert (chains["c3"].basis, chains["c3"].concepts) == ("stated", ())
    assert chains["c3"].rule == "review.edited+diseases.effusion@1.0.0"
    added = chains["new1"]
    assert (added.section, added.finding, added.sentence, added.rule) == (
        "impression", "small</b> effusion", 0, "review.added",
    )  # fmt: skip
    assert IMPRESSION[added.start : added.end] == added.finding
    assert added.boxes[0].xyxy == (254.4, 611.2, 1017.6, 1833.6)


def test_a_box_of_another_region_than_its_finding_is_pointed_out(task: Task) -> None:
    other = submit(task, edited(task, lambda rows: relabel(rows, "b0", "box", "spine")))
    assert other.notes == ("box b0 is of spine, its finding c0 of left lung",)
    assert submit(task, edited(task, lambda rows: None)).notes == ()


def test_white_space_at_the_ends_of_a_marked_phrase_is_left_out(task: Task) -> None:
    rows = edited(task, lambda rows: add(task, rows, "n", "There is ", "Edema", "left lung"))
    assert submit(task, rows).chains["n"].finding == "There is"


def test_a_deleted_finding_takes_its_boxes_along_but_not_those_of_others(task: Task) -> None:
    alone = submit(task, edited(task, lambda rows: without(rows, "c0")))
    assert "c0" not in alone.chains
    shared = submit(task, edited(task, lambda rows: without(rows, "c1")))
    assert shared.chains["c3"].boxes == (RIGHT,)


def test_a_box_tied_to_nothing_goes_to_the_one_finding_it_can_be_of(task: Task) -> None:
    def edit(rows: list[Row]) -> None:
        add(task, rows, "new", "There is", "Cardiomegaly", "cardiac silhouette")
        draw(rows, "bx", "cardiac silhouette", 10, 10, 10, 10)

    assert len(submit(task, edited(task, edit)).chains["new"].boxes) == 1


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        (verdict("reject", "report empty or cut"), "rejected"),
        (verdict("second read", "unsure"), "second read"),
    ],
)
def test_verdicts(task: Task, rows: list[Row], outcome: str) -> None:
    review = submit(task, result(task) + rows)
    assert review.outcome == outcome
    assert len(review.reasons) == 1


def test_a_skipped_task_is_no_review_of_its_chains(task: Task) -> None:
    review = submit(task, [], was_cancelled=True)
    assert (review.outcome, review.edits) == ("skipped", ())


BAD: dict[str, tuple[Callable[[Task, list[Row]], Any], str]] = {
    "no verdict": (lambda task, rows: rows.pop(), "no verdict"),
    "unknown disease": (lambda task, rows: relabel(rows, "c0", "disease", "Flu"), "Flu"),
    "two diseases": (
        lambda task, rows: relabel(rows, "c0", "disease", "Edema", "Fracture"),
        "more than one disease",
    ),
    "no assertion": (
        lambda task, rows: rows.remove(row_of(rows, "c0", "assertion")), "c0: no assertion"
    ),
    "no region": (lambda task, rows: relabel(rows, "c0", "anatomy"), "anatomy cannot be"),
    "unknown region": (lambda task, rows: relabel(rows, "c0", "anatomy", "knee"), "knee"),
    "unknown control": (
        lambda task, rows: rows.append({"id": "x", "from_name": "mood", "type": "choices",
                                        "value": {}}), "unknown control 'mood'"
    ),
    "twice the same": (
        lambda task, rows: rows.append(copy.deepcopy(row_of(rows, "c0", "disease"))), "stands twice"
    ),
    "other text": (
        lambda task, rows: row_of(rows, "c0", "disease")["value"].update(text="large effusion"),
        "where the report has",
    ),
    "outside the text": (
        lambda task, rows: [row["value"].update(start=900, end=910) for row in rows
                            if row.get("id") == "c0"], "not inside one section"
    ),
    "inverted": (
        lambda task, rows: [row["value"].update(start=20, end=12) for row in rows
                            if row.get("id") == "c0"], "not inside one section"
    ),
    "over two sections": (
        lambda task, rows: add(task, rows, "n", "pneumothorax.\nIMPRESSION\nPossible",
                               "Edema", "left lung"), "not inside one section"
    ),
    "a heading": (
        lambda task, rows: add(task, rows, "n", "FINDINGS", "Edema", "left lung"),
        "not inside one section",
    ),
    "two places": (
        lambda task, rows: row_of(rows, "c0", "anatomy")["value"].update(start=1), "two places"
    ),
    "box outside": (
        lambda task, rows: draw(rows, "n", "left lung", 110, 5, 5, 5, to="c0"), "box_outside"
    ),
    "empty box": (
        lambda task, rows: draw(rows, "n", "left lung", 10, 5, 0, 5, to="c0"), "box_empty"
    ),
    "not a number": (
        lambda task, rows: draw(rows, "n", "left lung", float("nan"), 5, 5, 5, to="c0"),
        "box_not_finite",
    ),
    "turned box": (
        lambda task, rows: row_of(rows, "b0", "box")["value"].update(rotation=4), "turned"
    ),
    "loose box": (
        lambda task, rows: draw(rows, "n", "trachea", 10, 5, 5, 5), "tied to no finding"
    ),
    "box cut loose": (
        lambda task, rows: rows.remove(next(r for r in rows if r.get("to_id") == "b0")),
        "tied to no finding",
    ),
    "open relation": (
        lambda task, rows: rows.append({"type": "relation", "from_id": "c0", "to_id": "zz"}),
        "joins no finding and box",
    ),
    "offsets that are no numbers": (
        lambda task, rows: [row["value"].update(start=11.0) for row in rows
                            if row.get("id") == "c0"], "characters (11.0"
    ),
    "relation of lists": (
        lambda task, rows: rows.append({"type": "relation", "from_id": ["c0"], "to_id": {}}),
        "joins no finding and box",
    ),
    "not even a region": (lambda task, rows: rows.append({"foo": 1}), "not a region"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_the_interface_cannot_have_made_is_refused_with_its_reason(
    task: Task, name: str
) -> None:
    edit, expected = BAD[name]
    with pytest.raises(UnreadableError, match=re.escape(expected)):
        submit(task, edited(task, lambda rows: edit(task, rows)))


def test_our_own_check_before_the_push_finds_what_label_studio_takes(task: Task) -> None:
    narrow = Task.from_row({**task.to_row(), "sections": [
        {"name": "findings", "text": FINDINGS}, {"name": "impression", "text": "cut"},
    ]})  # fmt: skip
    assert any("not inside one section" in fault for fault in faults(narrow))


def test_a_task_keeps_its_key_and_comes_back_from_its_line(task: Task) -> None:
    line = json.loads(json.dumps(task.to_row()))
    assert Task.from_row(line) == task
    assert Task.from_row(line).key == task.key == line["task"]
    other = copy.deepcopy(STUDY)
    other["chains"][0]["assertion"] = "negative"
    assert review_task(other, sections=("findings",), model_version="rules 1").key != task.key


def test_a_study_without_an_image_can_be_reviewed_but_gets_no_box() -> None:
    bare = {**STUDY, "images": [], "chains": [{**c, "boxes": []} for c in STUDY["chains"]]}
    task = review_task(bare, sections=(), model_version="rules 1")
    assert task.request(str)["data"]["image"] == NO_IMAGE
    rows = edited(task, lambda rows: draw(rows, "n", "left lung", 1, 1, 5, 5, to="c0"))
    with pytest.raises(UnreadableError, match="no image"):
        submit(task, rows)


# -- chains planted wrong


@pytest.mark.parametrize("seed", range(12))
def test_a_planted_chain_scores_the_reader_and_never_enters_the_dataset(seed: int) -> None:
    task = review_task(STUDY, sections=(), model_version="r", plant=random.Random(seed))
    assert task.planted
    assert task.proposed[task.planted] != task.base[task.planted]
    assert faults(task) == ()
    missed = submit(task, edited(task, lambda rows: None))
    assert (missed.planted, missed.outcome) == ("missed", "accepted")
    found = submit(task, edited(task, lambda rows: without(rows, task.planted or "")))
    assert found.planted == "found"
    for review in (missed, found):
        assert [one.to_row() for one in review.chains.values()] == STUDY["chains"]


def test_a_wrong_chain_is_wrong_in_one_thing_and_its_rule_does_not_tell() -> None:
    right = Chain.from_row(STUDY["chains"][0])
    for seed in range(50):
        bad = wrong(right, random.Random(seed))
        differing = [n for n in ("disease", "assertion", "regions")
                     if getattr(bad, n) != getattr(right, n)]  # fmt: skip
        assert len(differing) == 1
        assert bad.disease == right.disease or "effusion@" not in bad.rule


# -- which studies


def test_strategies() -> None:
    def study(number: int, labels: dict[str, int], covered: int = 4) -> Row:
        return {**STUDY, "study_id": f"s{number}", "labels": labels,
                "provenance": {"bearing": 4, "covered": covered}}  # fmt: skip

    rows = [study(n, {"Edema": 1, "Fracture": 0}, n % 5) for n in range(30)]
    rows.append(study(99, {"Edema": 0, "Fracture": 1}))
    other = {"s7": {"Edema": 0, "Fracture": 1}, "s8": {"Edema": 0}, "s9": {"Edema": 1}}
    studies = [candidate(row, other) for row in rows]
    assert choose(studies, "random", sample=5) == choose(reversed(studies), "random", sample=5)
    assert choose(studies, "random", sample=5) != choose(studies, "random", sample=5, seed=1)
    assert "s99" in choose(studies, "stratified", sample=2)
    assert len(set(choose(studies, "stratified", sample=None))) == 31
    assert choose(studies, "disagreement", sample=9) == ["s7", "s8"]
    confident = choose(studies, "confidence", sample=None)
    assert set(confident[:6]) == {f"s{n}" for n in range(0, 30, 5)}
    with pytest.raises(UserError, match="unknown strategy 'luck'; the strategies are random"):
        choose(studies, "luck", sample=1)


# -- several readers


def test_readers_who_agree_settle_a_study_and_others_go_to_an_adjudicator(task: Task) -> None:
    same = submit(task, edited(task, lambda rows: relabel(rows, "c2", "assertion", "uncertain")))
    again = submit(
        task,
        edited(task, lambda rows: (relabel(rows, "c2", "assertion", "uncertain"),
                                   row_of(rows, "b0", "box")["value"].update(width=22.0))),
        "bob@x",
    )  # fmt: skip
    other = submit(task, edited(task, lambda rows: without(rows, "c2")), "cat@x")
    assert decide([same, again])["s1"].outcome == "edited"
    assert decide([same, other])["s1"].outcome == "disagreed"
    read = readings([same, again, other])
    found = {name: versions(read, name) for name in ("c0", "c2")}
    assert [len(of) for of in found.values()] == [1, 2]

    names = list(dict.fromkeys(name for reading in read for name in reading))
    final = adjudication_task(task, {name: versions(read, name) for name in names})
    assert list(final.proposed) == ["c0", "c1", "c2-1", "c3"]
    decided = submit(final, edited(final, lambda rows: without(rows, "c2-1")), "dan@x")
    assert [(edit.name, edit.op) for edit in decided.edits if edit.op != "kept"] == [
        ("c2", "deleted")
    ]
    decision = decide([same, again, other, decided])["s1"]
    assert (decision.outcome, decision.adjudicated, decision.readers) == ("edited", True, 3)


def test_the_same_phrase_added_by_two_readers_is_one_finding(task: Task) -> None:
    def adds(name: str, disease: str) -> list[Row]:
        return edited(task, lambda rows: add(task, rows, name, "There is", disease, "spine"))

    one, two = submit(task, adds("x1", "Edema")), submit(task, adds("y9", "Edema"), "bob@x")
    assert decide([one, two])["s1"].outcome == "edited"
    three = submit(task, adds("z", "Fracture"), "bob@x")
    assert decide([one, three])["s1"].outcome == "disagreed"


def test_the_last_answer_of_a_reader_counts(task: Task) -> None:
    first = submit(task, edited(task, lambda rows: without(rows, "c0")), updated_at="2026-01-02")
    last = submit(task, edited(task, lambda rows: None), updated_at="2026-01-03")
    assert decide([last, first])["s1"].outcome == "accepted"


# -- the log and the new dataset


def exported(task: Task, *annotations: tuple[str, list[Row]], **data: Any) -> Row:
    request = task.request(str, **data)
    return {
        "id": 7, "project": 3, "data": request["data"],
        "annotations": [
            {"id": n, "completed_by": {"email": who}, "result": rows, "updated_at": f"2026-{n}",
             "lead_time": 2.0, "was_cancelled": False}
            for n, (who, rows) in enumerate(annotations)
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("review") / "demo"
    build(BuildOptions(source="demo", release=SourceOptions(banks=load_banks()), out=out))
    return out


def pushed(demo: Path, folder: Path, *names: str) -> list[Task]:
    tasks = [
        review_task(row, sections=("findings", "impression"), model_version="r")
        for row in read_studies(demo) if row["study_id"] in names
    ]  # fmt: skip
    append(folder / "tasks.jsonl", (task.to_row() for task in tasks), known=set())
    return tasks


def test_the_log_only_grows_and_pulling_twice_adds_nothing(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    (task,) = pushed(demo, folder, "demo-004")
    tasks = read_tasks(folder)
    first = [exported(task, ("a@x", result(task)))]
    assert record(folder, first, tasks) == (1, [])
    assert record(folder, first, tasks) == (0, [])
    _, rejects = read_reviews(folder)
    assert [(one.reason, "no verdict" in one.detail) for one in rejects] == [
        ("annotation_unreadable", True)
    ]
    corrected = [exported(task, ("a@x", result(task) + verdict()))]
    assert record(folder, corrected, tasks) == (1, [])
    reviews, rejects = read_reviews(folder)
    assert ([one.outcome for one in reviews], rejects) == (["accepted"], [])
    assert len(list(read_lines(folder / "annotations.jsonl"))) == 2
    assert (folder / "annotations.jsonl").stat().st_mode & 0o77 == 0


def test_a_log_that_was_cut_off_anywhere_ends_as_if_it_had_not_been(
    demo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "reviews"
    tasks = {task.key: task for task in pushed(demo, folder, "demo-004", "demo-007")}
    answers = [exported(task, ("zoë@x", result(task) + verdict())) for task in tasks.values()]
    record(folder, answers, tasks)
    log = folder / "annotations.jsonl"
    whole = log.read_bytes()
    for size in [*range(0, len(whole), 97), whole.index("ë".encode()) + 1, len(whole) - 1]:
        log.write_bytes(whole[:size])
        lost = 2 - whole[:size].count(b"\n")
        reviews, rejects = read_reviews(folder)
        assert (len(reviews), rejects) == (2 - lost, [])
        assert record(folder, answers, tasks) == (lost, [])
        assert log.read_bytes() == whole


def test_a_line_that_somebody_broke_is_told(demo: Path, tmp_path: Path) -> None:
    (task,) = pushed(demo, tmp_path, "demo-004")
    log = tmp_path / "annotations.jsonl"
    record(tmp_path, [exported(task, ("a@x", result(task)))], {task.key: task})
    log.write_bytes(b'{"task": \n' + log.read_bytes())
    with pytest.raises(UserError, match=r"annotations\.jsonl, line 1 is not JSON"):
        read_reviews(tmp_path)


def test_exports_of_others_are_told(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    one, two = pushed(demo, folder, "demo-004", "demo-007")
    tasks = {one.key: one}
    with pytest.raises(UserError, match="none of the 1 exported tasks was pushed"):
        record(folder, [exported(two)], tasks)
    _, rejects = record(folder, [exported(one), exported(two), exported(one, report="x")], tasks)
    assert [reject.reason for reject in rejects] == ["not_pushed", "task_edited"]
    with pytest.raises(UserError, match="not of a Label Studio export in JSON"):
        record(folder, [{"image": "a"}], tasks)


def test_reviews_give_a_new_dataset_and_the_same_bytes_again(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    names = ("demo-002", "demo-004", "demo-007", "demo-010", "demo-012")
    tasks = dict(zip(names, pushed(demo, folder, *names), strict=True))

    def relabelled(task: Task) -> list[Row]:
        return edited(task, lambda rows: relabel(rows, "c0", "disease", "Fracture"))

    answers = {
        "demo-002": [("a@x", edited(tasks["demo-002"], lambda rows: None))],
        "demo-004": [("a@x", relabelled(tasks["demo-004"]))],
        "demo-007": [("a@x", result(tasks["demo-007"]) + verdict("reject", "unsure"))],
        "demo-010": [("a@x", edited(tasks["demo-010"], lambda rows: None)),
                     ("b@x", edited(tasks["demo-010"], lambda rows: without(rows, "c1")))],
        "demo-012": [("a@x", result(tasks["demo-012"]) + verdict("second read", "unsure"))],
    }  # fmt: skip
    for number, (name, answered) in enumerate(answers.items()):
        row = exported(tasks[name], *answered)
        for place, annotation in enumerate(row["annotations"]):
            annotation["id"] = 10 * number + place
        record(folder, [row], read_tasks(folder))
    reviews, rejects = read_reviews(folder)
    assert rejects == []
    decisions = decide(reviews)
    manifest = apply_reviews(demo, decisions, tmp_path / "one")
    apply_reviews(demo, decisions, tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "manifest.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    assert manifest == read_manifest(tmp_path / "one")
    assert manifest["counts"]["planned"] == 14
    assert (manifest["counts"]["written"], manifest["counts"]["rejected"]) == (13, 1)
    assert manifest["rejects"]["by_reason"] == {"review_rejected": 1}
    assert manifest["review"]["by_outcome"] == {
        "accepted": 1, "disagreed": 1, "edited": 1, "rejected": 1, "second read": 1,
    }  # fmt: skip
    assert (manifest["review"]["settled"], manifest["review"]["annotators"]) == (3, 2)
    assert "@x" not in json.dumps(manifest)
    before = {row["study_id"]: row for row in read_studies(demo)}
    after = {row["study_id"]: row for row in read_studies(tmp_path / "one")}
    assert before.keys() - after.keys() == {"demo-007"}
    changed = [name for name in after if after[name] != before[name]]
    assert changed == ["demo-004"]
    assert after["demo-004"]["labels"]["Fracture"] == 1
    chains = sum(sum(counts.values()) for counts in manifest["chains"].values())
    assert chains == sum(len(row["chains"]) for row in after.values())


def test_reduced_images_follow_but_not_those_of_rejected_studies(tmp_path: Path) -> None:
    scaled, out = tmp_path / "scaled", tmp_path / "out"
    release = SourceOptions(banks=load_banks())
    build(BuildOptions(source="demo", release=release, out=scaled, scaling=Scaling(0.1)))
    (task,) = pushed(scaled, tmp_path / "log", "demo-002")
    apply_reviews(scaled, decide([submit(task, result(task) + verdict("reject"))]), out)
    assert task.image
    gone = {derivative(task.image.path)}
    before, after = ({str(p.relative_to(d)) for p in d.rglob("*.jpg")} for d in (scaled, out))
    assert before - after == gone
    with pytest.raises(UserError, match="out exists: a reviewed dataset is a new folder"):
        apply_reviews(scaled, {}, out)
    (scaled / gone.pop()).unlink()
    with pytest.raises(UserError, match=r"\.jpg is missing: copy it back"):
        apply_reviews(scaled, {}, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_commands_tell_what_they_changed_or_miss(demo: Path, tmp_path: Path) -> None:
    log, server = tmp_path / "log", tmp_path / "server"
    place = ("--reviews", log, "--server", server)
    assert "holds no tasks; --reviews names another" in refused("review", "pull", demo, *place)
    (task,) = pushed(demo, log, "demo-004")
    assert f"no server was started in {server}" in refused("review", "pull", demo, *place)
    server.mkdir()
    (server / "account.json").write_text("{}")
    assert "account.json is damaged" in refused("review", "pull", demo, *place)
    export = tmp_path / "export.json"
    for text, told in (("{", "cannot be read as JSON"), ("{}", "expected the list of tasks")):
        export.write_text(text)
        assert told in refused("review", "pull", demo, "--from", export, *place)
    assert "no reviews in" in refused("review", "diff", demo, "--reviews", log)

    moved = edited(task, lambda rows: relabel(rows, "c0", "anatomy", "spine"))
    export.write_text(json.dumps([exported(task, ("a@x", moved))]))
    assert "1 new annotations" in well("review", "pull", demo, "--from", export, *place)
    edits, learnt = tmp_path / "edits.jsonl", tmp_path / "learnt.toml"
    well("review", "diff", demo, "--reviews", log, "--out", edits)
    (edit,) = read_lines(edits)
    assert (edit["op"], edit["fields"], edit["after"]["regions"]) == (
        "changed",
        ["regions"],
        ["spine"],
    )
    well("review", "learn", demo, "--reviews", log, "--least", "1", "--out", learnt)
    assert 'after = "spine"' in learnt.read_text()
    nowhere = ("--reviews", log, "--out", tmp_path / "export.json/x")
    for command in ("diff", "agree"):
        assert "cannot be written" in refused("review", command, demo, *nowhere)

    (log / "tasks.jsonl").write_text("")
    reviews, rejects = read_reviews(log)
    assert (reviews, [reject.reason for reject in rejects]) == ([], ["not_pushed"])


def test_reviews_of_another_build_are_refused(demo: Path, tmp_path: Path) -> None:
    row = next(row for row in read_studies(demo) if row["study_id"] == "demo-004")
    older = {**row, "chains": row["chains"][1:]}
    task = review_task(older, sections=(), model_version="r")
    decisions = decide([submit(task, result(task) + verdict())])
    with pytest.raises(UserError, match="has other chains than those that were reviewed"):
        apply_reviews(demo, decisions, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    stranger: dict[str, Decision] = {"zz": decisions["demo-004"]._replace(study_id="zz")}
    with pytest.raises(UserError, match="1 reviewed studies are not in"):
        apply_reviews(demo, stranger, tmp_path / "out")
