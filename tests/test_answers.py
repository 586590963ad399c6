"""The think/answer grammar: what is written is read back, and what is not of it is told apart."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_builder.answers import Answer, AnswerError, Step, read_boxes

BOX = (12, 30, 400, 512)
numbers = st.integers(0, 1000) | st.floats(0, 5000)
corners = st.tuples(numbers, numbers, numbers, numbers).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@given(
    think=st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text),
    boxes=st.none() | st.lists(corners, max_size=4).map(tuple),
)
def test_an_answer_is_read_back_as_it_was_written(think: str, boxes: Any) -> None:
    assert Answer.parse(Answer(think, boxes).render()) == Answer(think.strip(), boxes)


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        (Answer("There.", ()), "[]"),
        (Answer("There.", (BOX, (0, 0, 5, 5))), "[12, 30, 400, 512], [0, 0, 5, 5]"),
        (
            Answer("There.", (BOX, (0, 0, 5, 5)), (0.9, 0.25)),
            '[{"Position": [12, 30, 400, 512], "Confidence": 0.9}, '
            '{"Position": [0, 0, 5, 5], "Confidence": 0.25}]',
        ),
    ],
)
def test_answers_are_written_so(answer: Answer, written: str) -> None:
    assert answer.render() == f"<think>There.</think><answer>{written}</answer>"
    assert Answer.parse(answer.render()) == answer


def test_confidences_are_of_all_boxes_or_none() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Answer("There.", (BOX, BOX), (0.9,)).render()
    found = read_boxes(
        '[{"Position": [1, 2, 3, 4], "Confidence": 0.9}, {"Position": [5, 6, 7, 8]}]'
    )
    assert found == (((1, 2, 3, 4), (5, 6, 7, 8)), ())


@pytest.mark.parametrize(
    "written",
    [
        "[12, 30, 400, 512]",
        "[[12,30,400,512]]",
        "\n[\n  12,\n  30,\n  400,\n  512\n]\n",
        "[12.0, 30.0, 400.0, 512.0]",
        "(12,30),(400,512)",
        "(12, 30, 400, 512)",
        "[400, 512, 12, 30]",
        '[{"Position": [12, 30, 400, 512], "label": "the heart\'s border"}]',
        "{'bbox_2d': [12, 30, 400, 512], 'label': \"Kerley's lines\"}",
        '```json\n[{"bbox_2d": [12, 30, 400, 512]}]\n```',
        "The opacity is at [12, 30, 400, 512].",
    ],
)
def test_a_right_box_is_read_however_it_is_written(written: str) -> None:
    assert read_boxes(written).xyxy == (BOX,)
    whole = f"<think>\nSeen.\n</think>\n<answer>\n{written}\n</answer>\n"
    assert Answer.parse(whole).boxes == (BOX,)


@pytest.mark.parametrize("written", ["[]", " [ ] ", "[[]]", "No Objects", "no objects."])
def test_nothing_there_is_an_answer(written: str) -> None:
    assert read_boxes(written).xyxy == ()


TAGS = "tags: expected <think> </think> <answer> </answer>, got "
NUMBERS = "not_boxes: expected four numbers a box, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"{TAGS}''"),
        ("[1, 2, 3, 4]", f"{TAGS}''"),
        (
            "<think>a</think><answer>[1, 2, 3, 4]",
            f"{TAGS}'<think> </think> <answer>'",
        ),
        (
            "<answer>[1, 2, 3, 4]</answer><think>a</think>",
            f"{TAGS}'<answer> </answer> <think> </think>'",
        ),
        (
            "<think>a<think>b</think></think><answer>[1, 2, 3, 4]</answer>",
            f"{TAGS}'<think> <think> </think> </think> <answer> </answer>'",
        ),
        (
            "<think>a</think><answer>[1, 2, 3, 4]</answer><answer>[1, 2, 3, 4]</answer>",
            f"{TAGS}'<think> </think> <answer> </answer> <answer> </answer>'",
        ),
        (
            "<think>a</think><answer>[1]</answer>[1, 2, 3, 4]</answer>",
            f"{TAGS}'<think> </think> <answer> </answer> </answer>'",
        ),
        ("so <think>a</think><answer>[1, 2, 3, 4]</answer>", "text_outside_tags: 'so'"),
        ("<think>a</think> and <answer>[1, 2, 3, 4]</answer>", "text_outside_tags: 'and'"),
        ("<think>a</think><answer>[1, 2, 3, 4]</answer> ok", "text_outside_tags: 'ok'"),
        (
            "<think> \n</think><answer>[1, 2, 3, 4]</answer>",
            "empty_think: nothing stands between <think> and </think>",
        ),
        (
            "<think>a</think><answer> \n</answer>",
            "empty_answer: nothing stands between <answer> and </answer>",
        ),
        (
            "<think>a</think><answer>left lung</answer>",
            "no_boxes: expected [x1, y1, x2, y2] or [], got 'left lung'",
        ),
        ("<think>a</think><answer>[1, 2, 3]</answer>", f"{NUMBERS}'[1, 2, 3]'"),
        ("<think>a</think><answer>[1, 2, 3, 4, 5]</answer>", f"{NUMBERS}'[1, 2, 3, 4, 5]'"),
        (
            "<think>a</think><answer>[1, 2, 3, 4] [5, 6]</answer>",
            f"{NUMBERS}'[1, 2, 3, 4] [5, 6]'",
        ),
        ("<think>a</think><answer>[[1, 2, 3, 4] 5]</answer>", f"{NUMBERS}'[[1, 2, 3, 4] 5]'"),
        ("<think>a</think><answer>[NaN, 2, 3, 4]</answer>", f"{NUMBERS}'[NaN, 2, 3, 4]'"),
        ("<think>a</think><answer>[1, 2, inf, 4]</answer>", f"{NUMBERS}'[1, 2, inf, 4]'"),
        (
            "<think>a</think><answer>[1, 2, 1e999, 4]</answer>",
            "not_finite: '[1, 2, 1e999, 4]'",
        ),
        (
            "<think>a</think><answer>[1, 2, 3, 4] confidence: 1e999</answer>",
            "not_finite: '[1, 2, 3, 4] confidence: 1e999'",
        ),
    ],
)
def test_what_is_not_of_the_grammar_says_why(text: str, message: str) -> None:
    with pytest.raises(AnswerError) as error:
        Answer.parse(text)
    assert str(error.value) == message
    assert error.value.reason == message.partition(":")[0]


@pytest.mark.parametrize("think", ["", " \n", "a</think><answer>[1, 2, 3, 4]</answer>", "<think>"])
def test_a_think_text_that_would_not_be_read_back_is_not_written(think: str) -> None:
    with pytest.raises(ValueError, match="think text"):
        Answer(think, (BOX,)).render()


@given(st.text(max_size=400))
def test_no_text_breaks_the_parser(text: str) -> None:
    for wrapped in (text, f"<think>a</think><answer>{text}</answer>"):
        with suppress(AnswerError):
            Answer.parse(wrapped)


def test_a_finding_with_tags_and_quotes_is_made_safe() -> None:
    chain = {
        "finding": 'a "large"\n<answer> mass', "concepts": ["nodule"], "disease": "Lung Lesion",
        "assertion": "positive", "regions": ["left lung"],
    }  # fmt: skip
    assert Step.of(chain) == Step(
        "a 'large' mass", ("nodule",), "Lung Lesion", "positive", ("left lung",)
    )
