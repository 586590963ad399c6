"""BLEU, ROUGE-L and METEOR against pycocoevalcap itself and against published values."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.records import Pair, UnavailableError
from eval.text import TOKENS, bleu, bleu_counts, measure_text, meteor, ptb, rouge_l
from tests.reports import report_pairs

S1 = "the heart is normal in size . the lungs are clear ."
# Reference, prediction, BLEU-1 to -4, ROUGE-L, METEOR: computed with pycocoevalcap 1.2.
VALUES = (
    (S1, S1, (1, 1, 1, 1), 1, 1),
    (S1, "the heart is normal in size .", (0.489542,) * 4, 0.703460, 0.373590),
    (
        *("the heart is normal in size .", S1),
        *((0.583333, 0.564076, 0.541853, 0.515663), 0.773551, 0.537605),
    ),
    (
        *("no pleural effusion .", "pleural effusion ."),
        *((0.716531, 0.716531, 0.716531, 0.022659), 0.835616, 0.462227),
    ),
    ("no pleural effusion", "clear lungs bilaterally", (0, 0, 0, 0), 0, 0),
    (
        *("the lungs are clear . the heart is normal in size .", S1),
        *((1, 1, 0.928318, 0.854574), 0.583333, 0.580704),
    ),
    ("the lungs are clear .", "the the the the the", (0.2, 0, 0, 0), 0.2, 0.047619),
    (
        "mild cardiomegaly with small effusions .",
        "mildly enlarged heart with small effusion .",
        *((0.428571, 0.267261, 0.000002, 0), 0.468031, 0.256605),
    ),
    ("cardiomegaly", "cardiomegaly", (1, 0.001, 0.0001, 0.000032), 1, 1),
    ("no acute disease", "no acute disease", (1, 1, 1, 0.031623), 1, 1),
    ("the lungs are clear .", "", (0, 0, 0, 0), 0, 0),
)
needs_java = pytest.mark.skipif(not shutil.which("java"), reason="METEOR needs Java")


def ours(references: Sequence[str], predictions: Sequence[str]) -> tuple[np.ndarray, list[float]]:
    pairs = list(zip(references, predictions, strict=True))
    counts = np.array([bleu_counts(r.split(), p.split()) for r, p in pairs])
    return counts, [rouge_l(r.split(" "), p.split(" ")) for r, p in pairs]


@pytest.mark.parametrize("row", VALUES, ids=range(len(VALUES)))
def test_reference_values(row: tuple) -> None:
    reference, prediction, blues, rouge, _ = row
    counts, rouges = ours([reference], [prediction])
    assert bleu(counts[0]) == pytest.approx(blues, abs=1e-6)
    assert rouges[0] == pytest.approx(rouge, abs=1e-6)


@needs_java
@pytest.mark.slow
def test_meteor_is_the_jar_s_value_and_survives_what_hangs_its_wrapper() -> None:
    pytest.importorskip("pycocoevalcap")
    rows = [row for row in VALUES if row[1]]
    found = meteor(
        [row[0].replace(" . ", " .\n") for row in rows] + ["a ||| b"],
        [row[1] for row in rows] + ["a b\n\nc"],
    )
    assert found.segments[: len(rows)] == pytest.approx([row[4] for row in rows], abs=1e-6)
    assert 0 < found.corpus < 1


@needs_java
@pytest.mark.slow
def test_meteor_equals_pycocoevalcap_s_own_wrapper() -> None:
    """On 300 invented pairs, cleaned: of the corpus and of each."""
    wrapper = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
    pairs = report_pairs(300)
    references = TOKENS["r2gen"]([r for r, _ in pairs])
    predictions = TOKENS["r2gen"]([p for _, p in pairs])
    corpus, segments = wrapper.compute_score(
        {i: [" ".join(text.split())] for i, text in enumerate(references)},
        {i: [" ".join(text.split())] for i, text in enumerate(predictions)},
    )
    found = meteor(references, predictions)
    assert found.corpus == pytest.approx(corpus, abs=1e-6)
    assert found.segments == pytest.approx(segments, abs=1e-6)


def against_pycocoevalcap(references: list[str], predictions: list[str]) -> None:
    bleus = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouges = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    gold = {i: [text] for i, text in enumerate(references)}
    found = {i: [text] for i, text in enumerate(predictions)}
    counts, rouge = ours(references, predictions)
    corpus, each = bleus.compute_score(gold, found, verbose=0)
    assert bleu(counts.sum(axis=0)) == pytest.approx(corpus, abs=1e-9)
    assert pytest.approx(np.array(each), abs=1e-9) == bleu(counts).T
    mean, each_rouge = rouges.compute_score(gold, found)
    assert np.mean(rouge) == pytest.approx(mean, abs=1e-9)
    assert rouge == pytest.approx(list(each_rouge), abs=1e-9)


@pytest.mark.parametrize("tokens", ["r2gen", "r2gen_iu", "raw", "lower"])
def test_bleu_and_rouge_equal_pycocoevalcap(tokens: str) -> None:
    pairs = report_pairs(400)
    against_pycocoevalcap(*(TOKENS[tokens]([p[side] for p in pairs]) for side in (0, 1)))


def test_bleu_and_rouge_equal_pycocoevalcap_on_real_reports(shared: Path) -> None:
    with (shared / "data/iu_xray/indiana_reports.csv").open(newline="") as stream:
        texts = [row["findings"] for row in csv.DictReader(stream) if row["findings"].strip()]
    cleaned = TOKENS["r2gen"](texts[:501])
    assert len(cleaned) > 300
    against_pycocoevalcap(cleaned[:-1], cleaned[1:])


def test_bleu_and_rouge_equal_pycocoevalcap_on_radeval_s_fixture(shared: Path) -> None:
    rows = json.loads((shared / "data/fixtures/radeval/divergence_examples.json").read_text())
    for tokens in ("raw", "r2gen"):
        against_pycocoevalcap(*(TOKENS[tokens]([r[k] for r in rows]) for k in ("ref", "hyp")))


def test_r2gen_cleaning_is_its_regular_expression() -> None:
    """R2Gen's pattern, with its range ":-[", on every printable character."""
    letters = "".join(map(chr, range(32, 127)))
    for character in letters:
        text = f"a{character}b"
        bare = re.sub(r"[\"/\\']", "", text.lower())
        expected = re.sub(r"[.,?;*!%^&_+():-\[\]{}]", "", bare) + " ."
        assert TOKENS["r2gen"]([text]) == [expected]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", " ."),
        ("W/ CT: 12.5 cm.", "w ct 125 cm ."),
        ("1. One. 2. Two. 3. Three.", "one . two . three ."),
        ("x-ray\nfollow-up__", "x-ray follow-up ."),
        ("A..... B", "a . b ."),
    ],
)
def test_r2gen_cleaning(text: str, cleaned: str) -> None:
    assert TOKENS["r2gen"]([text]) == [cleaned]


def test_every_score_says_its_tokens_and_n_and_empty_predictions_count_as_zero() -> None:
    pairs = [Pair("1", "No effusion.", "No effusion."), Pair("2", "No effusion.", "")]
    found = measure_text(pairs, tokens="lower")
    assert {score.n for score in found.scores if score.value is not None} == {2}
    assert all("tokens=lower" in score.signature for score in found.scores)
    assert found.per_study["ROUGE-L"] == [1, 0]
    # Precision is whole, brevity is exp(1 - 4/2).
    blue = next(score.value for score in found.scores if score.name == "BLEU-1")
    assert blue == pytest.approx(np.exp(-1))


def test_r2gen_s_length_cuts_the_reference_one_word_shorter() -> None:
    """Its start token counts: 60 leaves 59 words of a reference."""
    words = " ".join(f"w{i}" for i in range(80))
    found = measure_text([Pair("1", words, words)], tokens="raw", max_seq_length=60)
    assert found.counts["bleu"][0][:2] == (59, 60)
    assert "max_seq_length=60" in found.scores[0].signature


def test_without_java_meteor_is_unavailable_and_says_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = measure_text([Pair("1", "No effusion.", "Effusion.")])
    (score,) = [score for score in found.scores if score.name == "METEOR"]
    assert score.value is None
    assert "install Java" in score.note
    assert "cot-builder[meteor]" in score.note
    assert "METEOR" not in found.per_study
    with pytest.raises(UnavailableError, match="install Java"):
        ptb(["a"])


@needs_java
def test_ptb_drops_punctuation_and_keeps_empty_texts_in_their_place() -> None:
    """Brackets stay, as in pycocoevalcap: they are lower-cased before they are looked up."""
    pytest.importorskip("pycocoevalcap")
    assert ptb(["The heart isn't large.", "", "No (new) effusion."]) == [
        "the heart is n't large",
        "",
        "no -lrb- new -rrb- effusion",
    ]
