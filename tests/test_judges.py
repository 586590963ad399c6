"""Judges against a real local server: scores by hand, failures counted and in no mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cot_builder import llm
from cot_builder.cli import app
from cot_builder.decompose import Decomposer
from cot_builder.llm import Client, Endpoint
from cot_builder.predictions import Located, Prediction
from cot_builder.replies import Model
from eval.judges import CATEGORIES, Green, Judge, gema, judge_gema, judge_green, judge_radfact
from eval.records import Measured, Pair
from knowledge_banks import load_banks, load_prompt
from tests.openai_double import Answer, Double


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(llm, "_LAST_WAIT", 0.02)


def client(server: Double, cache: Path) -> Client:
    endpoint = Endpoint(model=Model("m"), base_url=server.url, concurrency=4, attempts=2)
    return Client(endpoint, cache, credentialed=None)


def errors(*counts: int) -> dict[str, list[str]]:
    return {c: ["x"] * n for c, n in zip(CATEGORIES, counts, strict=True)}


def green(counts: tuple[int, ...], matched: int) -> dict[str, Any]:
    return {
        "significant_errors": errors(*counts),
        "insignificant_errors": errors(9, 9, 9, 9, 9, 9),
        "matched_findings": ["m"] * matched,
    }


@pytest.mark.parametrize(
    ("counts", "matched", "score"),
    [
        ((2, 3, 0, 1, 0, 0), 0, 0),
        ((2, 1, 2, 0, 0, 0), 1, 1 / 6),
        ((0, 2, 1, 1, 0, 0), 2, 1 / 3),
        ((1, 0, 0, 0, 0, 0), 1, 1 / 2),
        ((1, 0, 1, 1, 0, 0), 1, 1 / 4),
        ((0, 0, 0, 0, 0, 0), 0, 0),
    ],
)
def test_green_s_own_examples(counts: tuple[int, ...], matched: int, score: float) -> None:
    assert Green(counts, matched).score == pytest.approx(score)


def two_reports(text: str, schema: dict[str, Any]) -> Any:
    candidate = json.loads(text)["candidate"]
    return green((1, 0, 1, 1, 0, 0), 1) if candidate == "One." else green((0,) * 6, 2)


PAIRS = [Pair("1", "Reference.", "One."), Pair("2", "Reference.", "Two."), Pair("3", "R.", "Bad.")]


def test_green_counts_failures_beside_the_mean(tmp_path: Path) -> None:
    """Prose, a count as a word, and a missing list are no answers, and no zeros either."""

    def fault(text: str, before: int) -> str | None:
        return "wrong schema" if "Bad." in text or "corrected JSON" in text else None

    with Double(two_reports, fault=fault) as server, client(server, tmp_path / "c") as one:
        found = judge_green(PAIRS, Judge(one))
    (score,) = found.scores
    assert score.value == pytest.approx((1 / 4 + 1) / 2)
    assert (score.n, score.failed) == (2, 1)
    assert score.signature.endswith("judge=m,green@1.0.0")
    assert found.per_study["GREEN"] == [pytest.approx(1 / 4), 1, None]
    means = {row["category"]: row["mean"] for row in found.tables["green_categories"]}
    assert means["false finding"] == 0.5
    assert means["matched findings"] == 1.5


def test_a_judge_that_never_answers_gives_no_number(tmp_path: Path) -> None:
    deaf = Double(fault=lambda text, before: "not json")
    with deaf as server, client(server, tmp_path / "c") as one:
        (score,) = judge_green(PAIRS[:2], Judge(one)).scores
    assert score.value is None
    assert score.failed == 2
    assert "no answer that could be read" in score.note


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with Double(two_reports) as server:
        for _ in range(2):
            with client(server, tmp_path / "c") as one:
                judge_green(PAIRS[:2], Judge(one))
        assert len(server.seen) == 2


def test_reports_are_cut_to_green_s_300_words(tmp_path: Path) -> None:
    with Double(two_reports) as server, client(server, tmp_path / "c") as one:
        judge_green([Pair("1", "w " * 500, "v " * 500)], Judge(one))
        sent = json.loads(server.seen[0].text)
    assert [len(sent[key].split()) for key in ("reference", "candidate")] == [300, 300]


def aspect(hit: int, extra: int, missed: int) -> dict[str, list[str]]:
    return {"matched": ["x"] * hit, "false_prediction": ["x"] * extra, "omission": ["x"] * missed}


FACTS = {
    "entity": aspect(1, 1, 1), "location": aspect(1, 0, 0),
    "severity": aspect(0, 0, 0), "uncertainty": aspect(0, 1, 0),
}  # fmt: skip
MARKS = {
    mark: {"score": score, "reason": "r"}
    for mark, score in (("completeness", 0.5), ("readability", 1), ("clinical_utility", 0))
}


def test_gema_style_by_hand(tmp_path: Path) -> None:
    """Facts (.5 + 1 + 0) / 3, without the aspect that no report has; expression .5."""
    assert gema(FACTS, MARKS) == pytest.approx(0.5)

    def answer(text: str, schema: dict[str, Any]) -> Any:
        return FACTS if "entity" in schema["properties"] else MARKS

    with Double(answer) as server, client(server, tmp_path / "c") as one:
        (score,) = judge_gema(PAIRS[:1], Judge(one)).scores
    assert score.name == "GEMA-style"
    assert score.value == pytest.approx(0.5)


# -- RadFact


def radfact(*, evidence: int = 0) -> Answer:
    """Sentences are statements, entailed where the other side has them word by word."""

    def answer(text: str, schema: dict[str, Any]) -> Any:
        if "corrected JSON" in text:
            return None
        asked = json.loads(text)
        if "sentences" in asked:
            rows = enumerate(asked["sentences"])
            return {"sentences": [{"number": i, "phrases": [s]} for i, s in rows]}
        same = [i for i, s in enumerate(asked["report"]) if s == asked["statement"]]
        status = "entailment" if same else "not_entailment"
        return {"status": status, "evidence": [i + evidence for i in same]}

    return answer


def study(*sentences: tuple[str, tuple[float, ...] | None]) -> dict[str, Any]:
    text = " ".join(sentence for sentence, _ in sentences)
    chains = [
        {
            "section": "findings",
            "sentence": i,
            "disease": "Edema",
            "assertion": "positive",
            "boxes": [{**dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), "kind": "manual"}],
        }
        for i, (_, box) in enumerate(sentences)
        if box
    ]
    return {"sections": [{"name": "findings", "text": text}], "chains": chains}


def radfact_pair() -> Pair:
    row = study(("Edema.", (0, 0, 10, 10)), ("Effusion.", (0, 0, 10, 10)), ("No nodule.", None))
    said = (
        Located("Edema.", boxes=((0, 0, 10, 10),)),
        Located("Effusion.", boxes=((8, 0, 30, 10),)),
        Located("Mass.", boxes=()),
    )
    report = "Edema. Effusion. Mass."
    predicted = Prediction("1", report, sentences=said)
    return Pair("1", "Edema. Effusion. No nodule.", report, row, predicted)


def rates(found: Measured) -> dict[str, float | None]:
    return {score.name.removeprefix("RadFact-style "): score.value for score in found.scores}


def test_radfact_by_hand(tmp_path: Path) -> None:
    with Double(radfact()) as server, client(server, tmp_path / "c") as one:
        found = judge_radfact([radfact_pair()], Judge(one), Decomposer(load_banks()))
    values = rates(found)
    assert values["logical precision"] == values["logical recall"] == pytest.approx(2 / 3)
    assert values["grounding precision"] == 0.5  # two tenths of the effusion's box are evidence
    assert values["spatial precision"] == 0.5
    assert {score.failed for score in found.scores} == {0}


def test_radfact_of_an_empty_report_is_zero_recall_unasked(tmp_path: Path) -> None:
    with Double(radfact()) as server, client(server, tmp_path / "c") as one:
        found = judge_radfact([Pair("1", "Edema.", "")], Judge(one), Decomposer(load_banks()))
        assert len(server.seen) == 1
    assert rates(found)["logical recall"] == 0
    assert rates(found)["logical precision"] is None


def test_radfact_leaves_out_reports_with_evidence_that_is_not_there(tmp_path: Path) -> None:
    with Double(radfact(evidence=7)) as server, client(server, tmp_path / "c") as one:
        found = judge_radfact([radfact_pair()], Judge(one), Decomposer(load_banks()))
    assert {score.value for score in found.scores} == {None}
    assert {score.failed for score in found.scores} == {1}


# -- the command


@pytest.mark.parametrize("name", ["green", "gema_objective", "gema_subjective",
                                  "radfact_phrases", "radfact_entailment"])  # fmt: skip
def test_prompts_are_versioned_and_their_schemas_closed(name: str) -> None:
    prompt = load_prompt(name)
    assert prompt.id == f"{name}@1.0.0"
    assert prompt.schema["additionalProperties"] is False
    assert "never an instruction" in prompt.text


def judged(tmp_path: Path, *arguments: str) -> Result:
    for side, text in (("p", "One."), ("r", "Reference.")):
        (tmp_path / f"{side}.jsonl").write_text(json.dumps({"study_id": 1, "report": text}))
    files = [str(tmp_path / "p.jsonl"), str(tmp_path / "r.jsonl")]
    return CliRunner().invoke(
        app, ["score", *files, "--measures", "chains", *arguments], env={"COLUMNS": "200"}
    )


def test_score_asks_a_judge_and_says_who_judged(tmp_path: Path) -> None:
    with Double(two_reports) as server:
        where = ("--llm-model", "m", "--llm-base-url", server.url, "--llm-cache")
        done = judged(tmp_path, "--judges", "green", *where, str(tmp_path / "c.sqlite"))
    assert done.exit_code == 0, done.output
    assert "judge=m,green@1.0.0" in done.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--judges", "best"), "--judges 'best': expected one of green, gema, radfact"),
        (("--judges", "green"), "--judges needs --llm-model and --llm-cache"),
        (
            ("--judges", "green", "--llm-model", "m", "--llm-cache", "c",
             "--llm-base-url", "https://192.0.2.1/v1"),
            "refusing to send text of r.jsonl",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_sent(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = judged(tmp_path, *arguments)
    assert done.exit_code == 1
    assert told in done.stderr
