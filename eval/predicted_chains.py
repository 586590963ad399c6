"""The chains of predicted reports: right ones, well-formed ones, and those that are made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cot_builder.conversations import read_steps
from cot_builder.decompose import Decomposer
from cot_builder.predictions import Located
from cot_builder.records import Row, Section
from cot_builder.vocabulary import LABELS
from eval.chains import compare, score, triples
from eval.records import Measured, Pair, Score
from knowledge_banks import Banks

_FINDINGS = frozenset(LABELS) - {"No Finding"}


def measure_chains(pairs: Sequence[Pair], decomposer: Decomposer) -> Measured:
    """Score chains of predicted reports (by the rules), and of the model's own reasoning.

    Gold are the dataset's chains of the compared section, or the rules' of a reference text.
    Scores are those of the chain specification, section 8.
    """
    gold = [_gold(pair, decomposer) for pair in pairs]
    told = [_decomposed(pair.prediction, decomposer) for pair in pairs]
    recipe = f"triples,micro,rules@{decomposer.banks.version}"
    scores = _scored("chains", pairs, gold, told, f"{recipe},of the report")
    answers = [
        a for p in pairs if p.predicted for a in (*p.predicted.sentences, *p.predicted.phrases)
    ]
    if any(answer.raw or answer.think for answer in answers):
        thought = [_thought(pair, decomposer.banks) for pair in pairs]
        scores += _scored("reasoned chains", pairs, gold, thought, "triples,micro,of <think>")
        good = [well_formed(answer, decomposer.banks) for answer in answers]
        rate = sum(good) / len(good)
        scores.append(Score("format rate", rate, len(good), "think, answer, every line read back"))
    invented = [_invented(g, t) for g, t in zip(gold, told, strict=True)]
    said, made_up = (sum(counts) for counts in zip(*invented, strict=True))
    scores.append(
        Score(
            "hallucinated findings",
            made_up / said if said else None,
            said,
            "share of positive labels that the reference has neither positive nor uncertain",
            "" if said else "no positive finding was predicted",
        )
    )
    per_study = [
        _number(compare(triples(g["chains"]), triples(t["chains"])).f1)
        for g, t in zip(gold, told, strict=True)
    ]
    return Measured(tuple(scores), {"chains F1": per_study})


def well_formed(answer: Located, banks: Banks) -> bool:
    """Tell whether an answer could be read, and each line of its reasoning as a chain."""
    if answer.problem is not None or not answer.think:
        return False
    try:
        return bool(read_steps(answer.think, banks))
    except ValueError:
        return False


def _scored(
    name: str, pairs: Sequence[Pair], gold: Iterable[Row], found: Iterable[Row], recipe: str
) -> list[Score]:
    ids = [pair.study_id for pair in pairs]
    total = score(zip(ids, gold, found, strict=True))
    rows = (
        (f"{name} precision", total.triples.precision, total.triples.hit + total.triples.extra),
        (f"{name} recall", total.triples.recall, total.triples.hit + total.triples.missed),
        (f"{name} F1", total.triples.f1, len(ids)),
        (f"{name} label-and-assertion F1", total.label_assertion.f1, len(ids)),
        (f"{name} region accuracy", total.region_accuracy, total.region_pairs),
    )
    return [Score(what, _number(value), n, recipe, _why(value)) for what, value, n in rows]


def _gold(pair: Pair, decomposer: Decomposer) -> Row:
    if pair.row is None:
        return _decomposed(pair.reference, decomposer)
    return {
        "unmapped": [],
        "chains": [c for c in pair.row["chains"] if c["section"] == pair.section],
    }


def _decomposed(text: str, decomposer: Decomposer) -> Row:
    chains = decomposer.decompose([Section("findings", text)]).chains
    return _row(chain.to_row() for chain in chains)


def _thought(pair: Pair, banks: Banks) -> Row:
    steps: list[Mapping[str, Any]] = []
    for answer in pair.predicted.sentences if pair.predicted else ():
        try:
            steps += [step._asdict() for step in read_steps(answer.think or "", banks)]
        except ValueError:
            continue  # the format rate tells of it
    return _row(steps)


def _row(chains: Iterable[Mapping[str, Any]]) -> Row:
    return {"chains": list(chains), "unmapped": [], "sections": []}


def _invented(gold: Row, told: Row) -> tuple[int, int]:
    """Count positive labels of a report, and those of them that the reference does not have."""
    known = {c["disease"] for c in gold["chains"] if c["assertion"] != "negative"}
    said = {c["disease"] for c in told["chains"] if c["assertion"] == "positive"} & _FINDINGS
    return len(said), len(said - known)


def _number(value: float) -> float | None:
    return None if value != value else value


def _why(value: float) -> str:
    return "nothing to divide by" if value != value else ""
