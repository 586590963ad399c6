"""Records: bad values are refused at birth, and rows read back as they were written."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_builder.boxes import Box
from cot_builder.records import Chain, Rejected, Report, Section, Unmapped, in_bank_order
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS

CHAIN: Final = Chain(
    section="findings", sentence=2, finding="left effusion", start=10, end=23,
    disease="Pleural Effusion", basis="stated", assertion="positive", regions=("left lung",),
)  # fmt: skip
FINDING: Final = Unmapped(
    section="findings", sentence=0, finding="scoliosis", start=0, end=9,
    assertion="positive", regions=("spine",),
)  # fmt: skip

SLIPS: Final[list[tuple[dict[str, Any], str]]] = [
    ({"assertion": "maybe"}, "unknown assertion 'maybe'; expected one of positive, negative"),
    ({"assertion": None}, "unknown assertion None"),
    ({"start": 9}, "'.*' does not span characters 9 to "),
    ({"end": 30}, "does not span characters .* to 30"),
    ({"finding": ""}, "finding '' does not span"),
    ({"finding": "", "start": 4, "end": 4}, "finding '' does not span characters 4 to 4"),
    ({"finding": "xyz", "start": -1, "end": 2}, "does not span characters -1 to 2"),
    ({"regions": ()}, r"regions \(\): expected one or more, once each, in bank order, of abdomen"),
    ({"regions": ("left lobe",)}, "'left lobe'.*: expected one or more"),
    ({"regions": ("left lung", "left lung")}, "once each"),
    ({"regions": ("whole lung", "left lung")}, "in bank order"),
    ({"regions": ("left lung", "nowhere")}, "'nowhere'"),
]


@pytest.mark.parametrize(("values", "message"), SLIPS)
@pytest.mark.parametrize("mention", [CHAIN, FINDING])
def test_bad_values_are_refused(
    mention: Chain | Unmapped, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(mention, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"disease": "Effusion"}, "unknown disease 'Effusion'; expected one of No Finding"),
        ({"disease": "pleural effusion"}, "unknown disease"),
        ({"disease": "enlarged cardiomegaly"}, "unknown disease"),  # aliases are for input
        ({"basis": "guessed"}, "unknown basis 'guessed'; expected one of stated, implied"),
        ({"basis": None}, "unknown basis None"),
    ],
)
def test_bad_values_of_chains_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CHAIN, **values)


def test_a_bad_row_is_refused() -> None:
    row = CHAIN.to_row()
    with pytest.raises(ValueError, match="unknown disease"):
        Chain.from_row(row | {"disease": "Flu"})
    with pytest.raises(TypeError, match="colour"):
        Chain.from_row(row | {"colour": "red"})


def test_records_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CHAIN.disease = "Edema"  # type: ignore[misc]
    assert not hasattr(CHAIN, "__dict__")


TEXT: Final = st.text(max_size=12)
REGION_SETS: Final = st.frozensets(st.sampled_from(REGIONS), min_size=1).map(in_bank_order)


@st.composite
def mentions(draw: st.DrawFn) -> dict[str, Any]:
    finding, start = draw(st.text(min_size=1, max_size=30)), draw(st.integers(0, 10_000))
    return {
        "section": draw(TEXT),
        "sentence": draw(st.integers(0, 500)),
        "finding": finding,
        "start": start,
        "end": start + len(finding),
        "assertion": draw(st.sampled_from(ASSERTIONS)),
        "regions": draw(REGION_SETS),
        "rule": draw(TEXT),
        "concept_ids": draw(st.none() | st.lists(TEXT, max_size=3).map(tuple)),
    }


BOXES: Final = st.builds(
    lambda corner, end: Box(*corner, *end, 200, 200, "image", "source", "manual"),
    st.tuples(st.floats(0, 99), st.floats(0, 99)),
    st.tuples(st.floats(100, 200), st.floats(100, 200)),
)
CHAINS: Final = st.builds(
    lambda mention, rest: Chain(**mention, **rest),
    mentions(),
    st.fixed_dictionaries(
        {
            "disease": st.sampled_from(LABELS),
            "basis": st.sampled_from(["stated", "implied"]),
            "concepts": st.lists(TEXT, max_size=3).map(tuple),
            "severity": st.none() | TEXT,
            "temporal": st.none() | TEXT,
            "boxes": st.lists(BOXES, max_size=2).map(tuple),
        }
    ),
)
FINDINGS: Final = st.builds(lambda mention: Unmapped(**mention), mentions())


@given(CHAINS | FINDINGS)
def test_rows_read_back(mention: Chain | Unmapped) -> None:
    row = mention.to_row()
    assert set(row) == {f.name for f in dataclasses.fields(mention)}
    assert all(not isinstance(value, tuple) for value in row.values())
    assert type(mention).from_row(row) == mention


def test_report_gives_a_section_by_name() -> None:
    report = Report("1", None, "mine", None, (Section("findings", "Clear."),))
    assert report.section("findings") == "Clear."
    assert report.section("impression") == ""


def test_rejected_is_a_row() -> None:
    rejected = Rejected("mine", "a.txt", "empty_report", "expected text, got nothing", "7")
    assert rejected.to_row() == {
        "source": "mine",
        "file": "a.txt",
        "reason": "empty_report",
        "detail": "expected text, got nothing",
        "study_id": "7",
    }
