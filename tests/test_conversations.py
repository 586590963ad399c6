"""What a model is asked and should answer, and that its reasoning reads back as chains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_builder.answers import Answer, Step, quotable
from cot_builder.boxes import Frame
from cot_builder.conversations import (
    EXAMPLES,
    main_image,
    read_step,
    read_steps,
    think_text,
    wordings,
)
from cot_builder.errors import UserError
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS
from knowledge_banks import load_banks

BANKS = load_banks()
FINDINGS = "Left effusion. No pneumothorax. Heart is enlarged."


def chain(finding: str, disease: str, assertion: str, region: str, **more: Any) -> dict[str, Any]:
    start = FINDINGS.index(finding)
    return {
        "section": "findings", "finding": finding, "start": start, "end": start + len(finding),
        "concepts": [], "disease": disease, "assertion": assertion, "regions": [region],
        "boxes": [], "rule": "", **more,
    }  # fmt: skip


def box(x1: float, image_id: str = "a") -> dict[str, Any]:
    return {
        "x1": x1, "y1": 10.0, "x2": x1 + 50, "y2": 60.0, "image_id": image_id, "width": 200,
        "height": 100, "source": "test", "kind": "manual", "certainty": None,
    }  # fmt: skip


def image(image_id: str, view: str | None) -> dict[str, Any]:
    return {
        "path": f"images/{image_id}.png", "image_id": image_id, "view": view,
        "width": 200, "height": 100,
    }  # fmt: skip


STUDY = {
    "study_id": "s1", "subject_id": "p1", "source": "test", "split": "train",
    "sections": [{"name": "findings", "text": FINDINGS}],
    "images": [image("lat", "LATERAL"), image("a", "PA")],
    "chains": [
        chain("Left effusion", "Pleural Effusion", "positive", "left lung"),
        chain("pneumothorax", "Pneumothorax", "negative", "whole lung"),
        chain("Heart is enlarged", "Cardiomegaly", "positive", "cardiac silhouette"),
    ],
    "grounded": [{
        "section": "findings", "start": 0, "end": 13, "label": None,
        "boxes": [box(0.0), box(100.0)],
    }],
}  # fmt: skip


def examples(task: str, study: dict[str, Any] = STUDY) -> list[dict[str, Any]]:
    return list(EXAMPLES[task](study, BANKS, Frame()))


def said(example: dict[str, Any]) -> str:
    return str(example["completion"][0]["content"])


steps = st.builds(
    Step,
    st.text(min_size=1).map(quotable).filter(bool),
    st.sampled_from([(), ("collapse",), ("collapse", "mediastinal shift")]),
    st.sampled_from(LABELS),
    st.sampled_from(ASSERTIONS),
    st.lists(st.sampled_from(REGIONS), min_size=1, unique=True).map(tuple),
)


@given(st.lists(steps, min_size=1, max_size=4).map(tuple))
def test_every_wording_is_read_back_as_it_was_written(chains: tuple[Step, ...]) -> None:
    for wording in wordings(BANKS):
        think = think_text(chains, wording)
        assert read_steps(think, BANKS) == chains
        assert Answer.parse(Answer(think).render()).think == think.strip()


@pytest.mark.parametrize(
    "line",
    [
        "The heart is big.",
        '"heart" → Heart disease (present) → cardiac silhouette',
        '"heart" → Cardiomegaly (maybe) → cardiac silhouette',
        '"heart" → Cardiomegaly (present) → left ventricle',
        '"" → Cardiomegaly (present) → cardiac silhouette',
    ],
)
def test_a_line_of_no_wording_is_no_step(line: str) -> None:
    assert read_step(line, BANKS) is None
    with pytest.raises(ValueError, match="line of no wording"):
        read_steps(line, BANKS)


def test_mcl_teaches_the_studys_chains_and_then_each_phrase_with_its_boxes() -> None:
    whole, phrase = examples("mcl")
    assert [step.disease for step in read_steps(Answer.parse(said(whole)).think, BANKS)] == [
        "Pleural Effusion", "Pneumothorax", "Cardiomegaly",
    ]  # fmt: skip
    assert Answer.parse(said(whole)).boxes is None
    assert Answer.parse(said(phrase)).boxes == ((0, 100, 250, 600), (500, 100, 750, 600))
    assert whole["image_id"] == phrase["image_id"] == "a"
    assert whole.keys() == phrase.keys()


def test_svr_keeps_both_boxes_of_a_phrase_together_and_asks_for_what_is_absent() -> None:
    present, absent = examples("svr")
    assert present["boxes"] == [[0.0, 10.0, 50.0, 60.0], [100.0, 10.0, 150.0, 60.0]]
    assert (present["phrase"], absent["phrase"]) == ("Left effusion", "pneumothorax")
    assert absent["boxes"] == []
    assert Answer.parse(said(absent)).boxes == ()
    assert "0 to 1000" in present["prompt"][0]["content"]
    assert (absent["width"], absent["height"], absent["frame"]) == (200, 100, "norm1000")


def test_a_label_that_is_present_elsewhere_is_not_asked_for_as_absent() -> None:
    also = chain("Left effusion", "Pneumothorax", "uncertain", "left lung")
    assert [
        e["phrase"] for e in examples("svr", {**STUDY, "chains": [*STUDY["chains"], also]})
    ] == ["Left effusion"]


def test_a_normal_structure_is_not_asked_for_as_absent() -> None:
    normal = chain(
        "Heart is enlarged", "Cardiomegaly", "negative", "cardiac silhouette",
        rule="structures.heart.normal@1.1.0",
    )  # fmt: skip
    asked = examples("svr", {**STUDY, "chains": [*STUDY["chains"][:2], normal]})
    assert [example["phrase"] for example in asked] == ["Left effusion", "pneumothorax"]


def test_report_is_the_findings_section_on_one_line() -> None:
    (example,) = examples("report")
    assert said(example) == example["findings"] == FINDINGS
    assert examples("report", {**STUDY, "sections": [{"name": "findings", "text": " "}]}) == []


def test_a_study_without_images_gives_nothing() -> None:
    bare = {**STUDY, "images": [], "grounded": []}
    assert [examples(task, bare) for task in EXAMPLES] == [[], [], []]


@pytest.mark.parametrize(
    ("views", "chosen"),
    [(["LATERAL", "AP"], 1), (["LL", None], 1), (["lateral"], 0), (["PA", "AP"], 0), ([None], 0)],
)
def test_the_main_image_is_the_first_frontal_one(views: list[str | None], chosen: int) -> None:
    images = [image(str(number), view) for number, view in enumerate(views)]
    assert main_image({"images": images}) == images[chosen]


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        ("step = '{finding} is {disease} {assertion} {regions}{via}'", "quotation marks"),
        ("""step = '"{finding}" is {disease} {assertion}{via}'""", "regions"),
        ("""step = '"{finding}" is {disease} {assertion} {regions} {place}{via}'""", "place"),
        ("""step = '"{finding}" is {disease} {assertion} {regions}'""", "no such group"),
        ("""step = '"{finding}" is {disease} {assertion} {regions}{via}'""", "read back"),
    ],
)
def test_a_wording_that_loses_something_is_refused(
    wording: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "templates.toml").write_text(
        'extends = true\nversion = "1.0.1"\n[[wording]]\nid = "mine"\n' + wording + "\n"
        'via = " by {concepts}"\njoint = "; "\npositive = "yes"\nnegative = "yes"\n'
        'uncertain = "maybe"\n'
    )
    with pytest.raises(UserError, match=message) as error:
        wordings(load_banks(tmp_path))
    assert "[[wording]] 'mine'" in str(error.value)
