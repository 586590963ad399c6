"""Agreement: the coefficients on published examples, the tables, and proposals for the banks."""

from __future__ import annotations

import math
import random
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from annotation.agreement import ALL, MACHINE, cohen, fleiss, krippendorff, measure, summary
from annotation.learning import proposals
from annotation.readers import decide
from annotation.reviewed import edits
from annotation.reviews import Edit, Review
from annotation.tasks import Task
from cot_builder.boxes import Box
from cot_builder.errors import UserError
from cot_builder.records import Chain, Section
from knowledge_banks import load_banks

# Fleiss (1971), as Wikipedia's page has it: ten subjects, fourteen raters, five categories.
FLEISS = """
0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7
"""
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example C: four observers.
KRIPPENDORFF = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def test_cohen_is_scikit_learns() -> None:
    chance = random.Random(1)
    pairs = [(chance.choice("abc"), chance.choice("aabc")) for _ in range(200)]
    assert cohen(pairs) == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))
    assert math.isnan(cohen([]))
    assert math.isnan(cohen([("a", "a")] * 3))
    assert cohen([("a", "b"), ("b", "a")]) == -1


def test_fleiss_of_the_published_example() -> None:
    units = [
        [str(c) for c, n in enumerate(line.split()) for _ in range(int(n))]
        for line in FLEISS.strip().splitlines()
    ]
    assert fleiss(units) == pytest.approx(0.2099, abs=1e-4)
    assert math.isnan(fleiss([]))
    assert math.isnan(fleiss([["a"], ["b"]]))


def test_krippendorff_of_the_published_example() -> None:
    columns = zip(*(line.split() for line in KRIPPENDORFF.strip().splitlines()), strict=True)
    units = [[value for value in column if value != "."] for column in columns]
    assert krippendorff(units) == pytest.approx(0.743, abs=5e-4)
    assert math.isnan(krippendorff([["a"], ["b"]]))
    assert math.isnan(krippendorff([["a", "a"]]))


TEXT = "Right effusion. Left nodule. No edema."
BOX = Box(0, 0, 10, 10, 100, 100, "i", "t", "manual")
CHAINS = {
    "c0": Chain("findings", 0, "Right effusion", 0, 14, "Pleural Effusion", "stated", "positive",
                ("right lung",), boxes=(BOX,), rule="diseases.effusion@1"),
    "c1": Chain("findings", 1, "Left nodule", 16, 27, "Lung Lesion", "stated", "positive",
                ("left lung",), rule="diseases.nodule@1"),
    "c2": Chain("findings", 2, "edema", 32, 37, "Edema", "stated", "negative", ("whole lung",),
                rule="diseases.edema+no@1"),
}  # fmt: skip


def review(study: str, reader: str, *, planted: str | None = None, **after: Chain | None) -> Review:
    task = Task(study, "review", "r", (Section("findings", TEXT),), None, CHAINS, CHAINS, planted)
    chains = {**CHAINS, **after}
    return Review(
        task, reader, "edited" if after else "accepted",
        tuple(Edit(name, CHAINS.get(name), chain) for name, chain in chains.items()),
        lead_time=30.0, planted="found" if planted else None,
    )  # fmt: skip


def test_what_two_readers_and_the_machine_say() -> None:
    uncertain = replace(CHAINS["c2"], assertion="uncertain")
    moved = replace(CHAINS["c0"], boxes=(replace(BOX, x1=5.0, x2=15.0),))
    reviews = [
        review("s1", "ann", c2=uncertain),
        review("s1", "bob", c0=moved),
        review("s2", "ann"),
        review("s2", "bob", c1=None),
        review("s3", "ann"),
        replace(review("s3", "bob"), outcome="rejected"),
    ]
    measured = measure(reviews)
    kappas = measured.kappas
    assert kappas.loc["Edema", "units"] == 2
    assert kappas.loc["Edema", "agreement"] == 0.5
    assert kappas.loc["Pleural Effusion", "agreement"] == 1
    assert math.isnan(kappas.loc["Pleural Effusion", "cohen"])
    assert (kappas.loc[ALL, "units"], kappas.loc[ALL, "machine_n"]) == (28, 14 * 5)
    both = measured.pairs.set_index(["reader", "other"])
    ann_bob = both.loc[("ann", "bob")]
    assert ann_bob["studies"] == 2
    assert ann_bob["span_f1"] == pytest.approx(2 * 5 / 11)
    # s1: IoU 1/3 seen from both sides; s2: the same box twice.
    assert (ann_bob["box_iou"], ann_bob["boxes"]) == (pytest.approx((2 / 3 + 2) / 4), 4)
    assert both.loc[("ann", MACHINE)]["chain_f1"] == pytest.approx(2 * 8 / 18)
    readers = measured.readers.set_index("reader")
    assert readers.loc["bob", "rejected"] == 1
    told = summary(reviews)
    assert told
    assert told["units"] == 28
    assert summary([review("s1", "ann")]) is None
    with pytest.raises(UserError, match="no study was read yet"):
        measure([replace(review("s1", "ann"), outcome="skipped")])


def test_planted_chains_count_for_the_readers_score_alone() -> None:
    reviews = [review("s1", "ann", planted="c1"), review("s1", "bob", planted="c1")]
    measured = measure(reviews)
    assert measured.kappas.loc["Lung Lesion", "agreement"] == 1
    assert (measured.pairs["span_f1"] == 1).all()
    assert list(measured.readers["planted_found"]) == [1, 1]


def test_edits_that_repeat_become_proposals() -> None:
    lesion = replace(CHAINS["c1"], disease="Lung Opacity", rule="review.edited+diseases.nodule@1")
    positive = replace(CHAINS["c2"], assertion="positive")
    added = replace(CHAINS["c1"], finding="Right", start=0, end=5, rule="review.added")
    reviews = [
        review("s1", "ann", c1=lesion, c2=positive, new=added),
        review("s2", "ann", c1=lesion, c0=None),
        review("s3", "ann", c2=positive),
    ]
    text = proposals(edits(decide(reviews).values()), load_banks(), least=2)
    found = tomllib.loads(text)["proposal"]
    assert [(p["kind"], p["phrase"], p["studies"], p["kept"]) for p in found] == [
        ("cue_missed", "edema", 2, 1), ("phrase_disease", "left nodule", 2, 1),
    ]  # fmt: skip
    assert (found[1]["before"], found[1]["after"]) == ("Lung Lesion", "Lung Opacity")
    assert found[1]["examples"] == ["s1", "s2"]
    all_of_them = tomllib.loads(proposals(edits(decide(reviews).values()), load_banks(), least=1))
    kinds = {p["kind"] for p in all_of_them["proposal"]}
    assert kinds == {"cue_missed", "phrase_disease", "phrase_unknown", "phrase_false"}


def test_the_plot_is_written_and_the_same_again(tmp_path: Path) -> None:
    from annotation.plots import write_plot

    measured = measure([review("s1", "ann"), review("s1", "bob", c1=None)])
    for name in ("one.png", "two.png"):
        write_plot(measured, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
