"""Boxes on chains: what is read in a phrase, what the release's label makes, what stays bare."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from cot_builder.boxes import Box, Frame, Pixels
from cot_builder.dataset import read_studies
from cot_builder.decompose import Decomposer
from cot_builder.decompose.grounded import attach_boxes
from cot_builder.errors import UserError
from cot_builder.pipeline import build
from cot_builder.records import Chain, Grounded, Report, Section
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from cot_builder.vocabulary import LABELS
from knowledge_banks import load_banks

DECOMPOSER: Final = Decomposer(load_banks())


def box(x1: float = 10, kind: str = "manual") -> Box:
    return Box(x1, 10, 90, 90, 100, 100, "image", "ms_cxr", kind)


def attached(*phrases: tuple[str, str | None, tuple[Box, ...]]) -> tuple[Chain, ...]:
    """The chains of a report with a line for each phrase, label and boxes."""
    text = "\n".join(phrase for phrase, _, _ in phrases)
    grounded = tuple(
        Grounded("phrases", text.index(phrase), text.index(phrase) + len(phrase), label, boxes)
        for phrase, label, boxes in phrases
    )
    sections = (Section("phrases", text),)
    report = Report("s1", None, "ms_cxr", None, sections, grounded=grounded)
    found = attach_boxes(DECOMPOSER.decompose(sections), report, DECOMPOSER)
    for chain in found.chains:
        assert text[chain.start : chain.end] == chain.finding
    return found.chains


def said(chains: tuple[Chain, ...]) -> list[tuple[Any, ...]]:
    return [(chain.disease, chain.assertion, chain.regions, len(chain.boxes)) for chain in chains]


def test_every_chain_of_a_phrase_has_all_its_boxes() -> None:
    chains = attached(
        ("Bilateral opacities, atelectasis or pneumonia", "Pneumonia", (box(10), box(50))),
        ("Cardiomegaly", "Cardiomegaly", (box(30),)),
    )
    assert said(chains) == [
        ("Lung Opacity", "positive", ("whole lung",), 2),
        ("Atelectasis", "uncertain", ("whole lung",), 2),
        ("Pneumonia", "uncertain", ("whole lung",), 2),
        ("Cardiomegaly", "positive", ("cardiac silhouette",), 1),
    ]
    assert chains[3].boxes == (box(30),)


@pytest.mark.parametrize(
    ("text", "phrase", "boxes"),
    [
        ("Left effusion without pneumothorax", "Left effusion without pneumothorax", [1, 0]),
        ("Cardiomegaly. Left effusion.", "Left effusion", [0, 1]),
        ("Left effusion/edema", "Left effusion/", [1, 0]),
        ("Left effusion/edema", "/edema", [0, 1]),
    ],
)
def test_only_the_chains_of_a_phrase_have_its_boxes(
    text: str, phrase: str, boxes: list[int]
) -> None:
    start = text.index(phrase)
    grounded = Grounded("phrases", start, start + len(phrase), "Pleural Effusion", (box(),))
    sections = (Section("phrases", text),)
    report = Report("s1", None, "ms_cxr", None, sections, grounded=(grounded,))
    found = attach_boxes(DECOMPOSER.decompose(sections), report, DECOMPOSER)
    assert [len(chain.boxes) for chain in found.chains] == boxes


def test_what_is_denied_is_nowhere_unless_the_box_is_its_region() -> None:
    phrase = "Left effusion without pneumothorax, lungs otherwise clear"
    assert [(chain.disease, len(chain.boxes)) for chain in attached((phrase, None, (box(),)))] == [
        ("Pleural Effusion", 1),
        ("Pneumothorax", 0),
        ("No Finding", 0),
    ]
    prior = attached((phrase, None, (box(kind="prior"),)))
    assert [len(chain.boxes) for chain in prior] == [1, 1, 1]


@pytest.mark.parametrize(
    ("phrase", "label", "regions"),
    [
        ("Something at the right base", "Pneumonia", ("right lung",)),
        ("Something seen again", "Pneumonia", ("whole lung",)),
        ("Something in the left apex", "Cardiomegaly", ("cardiac silhouette",)),
        ("Something on the left", "Pleural Other", ("left lung",)),
        ("No pneumothorax on the right", "Pneumothorax", ("right lung",)),
    ],
)
def test_a_phrase_without_a_chain_has_one_of_its_label(
    phrase: str, label: str, regions: tuple[str, ...]
) -> None:
    (chain,) = (chain for chain in attached((phrase, label, (box(),))) if chain.boxes)
    assert chain.finding == phrase
    assert said((chain,)) == [(label, "positive", regions, 1)]
    assert chain.basis == "stated"
    assert chain.rule.startswith("release.ms_cxr@")


@pytest.mark.parametrize("label", LABELS)
def test_every_label_has_a_place_of_its_own(label: str) -> None:
    chains = attached(("Here", label, (box(),)))
    assert len(chains) == (label != "No Finding")


def test_a_phrase_with_neither_chain_nor_label_stays_a_phrase() -> None:
    assert attached(("right lung", None, (box(),))) == ()


def test_the_sentence_of_a_chain_of_a_label_is_its_phrases() -> None:
    chains = attached(
        ("Cardiomegaly", None, (box(),)), ("Something at the base", "Edema", (box(20),))
    )
    assert [(chain.section, chain.sentence) for chain in chains] == [("phrases", 0), ("phrases", 1)]
    (chain,) = attached(("--", "Edema", (box(),)))  # no words, so no sentence
    assert chain.sentence == 0


def test_the_manifest_counts_phrases_and_boxes(tmp_path: Path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text(
        "image,width,height,phrase,label,x1,y1,x2,y2\n"
        "a.png,100,100,Cardiomegaly,,10,10,90,90\n"
        "a.png,100,100,Bilateral effusions,,5,60,40,90\n"
        "a.png,100,100,Bilateral effusions,,60,60,120,90\n"  # clipped
        "a.png,100,100,Something,Edema,10,10,50,50\n"
        "a.png,100,100,right lung,,10,10,50,90\n"
        "a.png,100,100,Nodule,,50,10,10,90\n"  # inverted
    )
    options = SourceOptions(
        banks=DECOMPOSER.banks,
        root=table,
        box_columns=("x1", "y1", "x2", "y2"),
        box_format="xyxy",
    )
    frame = Frame("model_pixels", Pixels(32, 4096, 401408))
    out = tmp_path / "out"
    manifest = build(BuildOptions(source="boxes", release=options, out=out, frame=frame))
    assert manifest["boxes"] == {
        "phrases": {"chain_read": 2, "chain_from_label": 1, "no_chain": 1},
        "by_kind": {"manual": 5, "ellipse": 0, "gaze": 0, "prior": 0, "model": 0},
        "clipped": 1,
        "rejected": 1,
    }
    assert manifest["options"]["sections"] == ["phrases"]
    assert Frame.from_row(manifest["frame"]) == frame
    (row,) = read_studies(out)
    phrases = [Grounded.from_row(phrase) for phrase in row["grounded"]]
    assert [len(phrase.boxes) for phrase in phrases] == [1, 2, 1, 1]
    assert [len(Chain.from_row(chain).boxes) for chain in row["chains"]] == [1, 2, 1]
    assert phrases[1].boxes[1].xyxy == (60, 60, 100, 90)
    with pytest.raises(UserError, match="the frames are norm1000"):
        build(BuildOptions(source="boxes", release=options, out=out, frame=Frame("norm")))
