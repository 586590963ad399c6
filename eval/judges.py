"""Language models as judges: GREEN, a GEMA-style score, and RadFact's entailment.

Any OpenAI-compatible server will do, through the client that drafting uses: one cache, one budget,
one guard of credentialed text. An answer that does not fit the schema is asked for again once, and
then counted as failed: a failed report is in no mean, neither as 0 nor as 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.decompose import Decomposer
from cot_builder.llm import Client
from cot_builder.records import Section
from cot_builder.replies import Reply, Request
from cot_builder.sentences import split_sentences
from eval.grounding import Boxes, Claim, Entailment, entailment, entailment_scores
from eval.records import Measured, Pair, Score
from knowledge_banks import load_prompt

# GREEN's six, by its letters a to f (Ostmeier et al., 2024), as its Fig. 5 panel calls them.
CATEGORIES: Final = {
    "false_finding": "false finding",
    "missing_finding": "missing finding",
    "wrong_location": "wrong location",
    "wrong_severity": "wrong severity",
    "false_comparison": "comparison not in reference",
    "omitted_comparison": "omitted comparison",
}
ASPECTS: Final = ("entity", "location", "severity", "uncertainty")
EXPRESSION: Final = ("completeness", "readability", "clinical_utility")
LONGEST: Final = 300  # words of a report that GREEN reads


class Green(NamedTuple):
    """Counts of significant errors, a to f, and of matched findings."""

    errors: tuple[int, ...]
    matched: int

    @property
    def score(self) -> float:
        """Matched over matched and significant errors; 0 without a match, as GREEN has it.

        >>> Green((2, 1, 2, 0, 0, 0), 1).score
        0.16666666666666666
        """
        return self.matched / (self.matched + sum(self.errors)) if self.matched else 0.0


class Judge(NamedTuple):
    """A client, and a user's own bank folder whose prompts stand instead of ours."""

    client: Client
    banks: Path | None = None

    def ask(self, prompt: str, texts: Sequence[Any], check: Check | None = None) -> list[Reply]:
        """Ask a prompt about each text, and return the replies in order."""
        loaded = load_prompt(prompt, self.banks)
        return list(
            self.client.ask(
                Request.of(loaded, json.dumps(text, ensure_ascii=False), check and check(text))
                for text in texts
            )
        )

    def recipe(self, *prompts: str) -> str:
        """Say who judged by which prompts."""
        ids = ",".join(load_prompt(prompt, self.banks).id for prompt in prompts)
        return f"judge={self.client.endpoint.model.name},{ids}"


Check = Callable[[Any], Callable[[Any], str | None]]


def _both(pair: Pair) -> dict[str, str]:
    return {
        "reference": " ".join(pair.reference.split()[:LONGEST]),
        "candidate": " ".join(pair.prediction.split()[:LONGEST]),
    }


def judge_green(pairs: Sequence[Pair], judge: Judge) -> Measured:
    """Measure GREEN: a score a report and their mean, and the mean count of each category."""
    replies = judge.ask("green", [_both(pair) for pair in pairs])
    found = [_green(reply.parsed) if reply.status == "ok" else None for reply in replies]
    good = [green for green in found if green]
    rows: list[Mapping[str, Any]] = [
        {"category": name, "mean": _average([g.errors[i] for g in good]), "lower_is_better": True}
        for i, name in enumerate(CATEGORIES.values())
    ]
    matched = _average([g.matched for g in good])
    rows.append({"category": "matched findings", "mean": matched, "lower_is_better": False})
    values = [green and green.score for green in found]
    return Measured(
        (_scored("GREEN", values, f"M/(M+significant errors),mean,{judge.recipe('green')}"),),
        {"GREEN": values},
        tables={"green_categories": rows},
    )


def _green(answer: Mapping[str, Any]) -> Green:
    errors = answer["significant_errors"]
    return Green(tuple(len(errors[c]) for c in CATEGORIES), len(answer["matched_findings"]))


def judge_gema(pairs: Sequence[Pair], judge: Judge) -> Measured:
    """Measure the GEMA-style score of two agents: facts by F1 an aspect, expression by marks.

    It is not GEMA-Score: the agents and weights of Zhang et al., 2025, are not published. Facts are
    the mean F1 of the aspects that either report has, expression the mean of the marks, and the
    score the mean of the two.
    """
    texts = [_both(pair) for pair in pairs]
    facts = judge.ask("gema_objective", texts)
    expression = judge.ask("gema_subjective", texts)
    values = [
        gema(one.parsed, other.parsed) if one.status == other.status == "ok" else None
        for one, other in zip(facts, expression, strict=True)
    ]
    recipe = f"unweighted mean,{judge.recipe('gema_objective', 'gema_subjective')}"
    return Measured((_scored("GEMA-style", values, recipe),), {"GEMA-style": values})


def gema(facts: Mapping[str, Any], expression: Mapping[str, Any]) -> float:
    """Return the GEMA-style score of two agents' answers."""
    rates = []
    for aspect in ASPECTS:
        hit, extra, missed = (
            len(facts[aspect][key]) for key in ("matched", "false_prediction", "omission")
        )
        if hit + extra + missed:
            rates.append(2 * hit / (2 * hit + extra + missed))
    marks = [expression[mark]["score"] for mark in EXPRESSION]
    objective = sum(rates) / len(rates) if rates else 1.0  # two reports without a finding agree
    return float((objective + sum(marks) / len(marks)) / 2)


# -- RadFact


class Side(NamedTuple):
    """One report of a pair: its sentences, with their boxes."""

    sentences: tuple[str, ...]
    boxes: tuple[Boxes, ...]


class Phrase(NamedTuple):
    """A statement of a report, with the boxes of its sentence."""

    text: str
    boxes: Boxes


def judge_radfact(pairs: Sequence[Pair], judge: Judge, decomposer: Decomposer) -> Measured:
    """Measure RadFact's rates (Bannur et al., 2024): statements that the other report entails.

    A statement has the boxes of its sentence. A report that could not be split, or with a statement
    that got no verdict, is in no mean.
    """
    sides = [(_predicted(pair), _true(pair)) for pair in pairs]
    phrases = [_split([side[i] for side in sides], judge) for i in (0, 1)]
    precision = _entailed(phrases[0], phrases[1], judge)
    recall = _entailed(phrases[1], phrases[0], judge)
    good = [[e for e in side if e is not None] for side in (precision, recall)]
    failed = sum(a is None or b is None for a, b in zip(precision, recall, strict=True))
    recipe = judge.recipe("radfact_phrases", "radfact_entailment")
    return Measured(
        entailment_scores(good[0], good[1], recipe, failed=failed),
        {
            "RadFact-style logical precision": [e and e.logical for e in precision],
            "RadFact-style logical recall": [e and e.logical for e in recall],
        },
    )


def _predicted(pair: Pair) -> Side:
    if pair.predicted and pair.predicted.sentences:
        said = pair.predicted.sentences
        return Side(tuple(s.text for s in said), tuple(s.boxes or () for s in said))
    return _plain(pair.prediction)


def _true(pair: Pair) -> Side:
    if pair.row is None:
        return _plain(pair.reference)
    texts = [s["text"] for s in pair.row["sections"] if s["name"] == pair.section]
    sentences = [s for text in texts for s in split_sentences(Section(pair.section, text))]
    boxes: dict[int, list[Any]] = {}
    for chain in pair.row["chains"]:
        if chain["section"] == pair.section:
            boxes.setdefault(chain["sentence"], []).extend(
                (b["x1"], b["y1"], b["x2"], b["y2"]) for b in chain["boxes"] if b["kind"] != "prior"
            )
    return Side(
        tuple(s.text for s in sentences), tuple(tuple(boxes.get(s.index, ())) for s in sentences)
    )


def _plain(text: str) -> Side:
    sentences = tuple(s.text for s in split_sentences(Section("findings", text)))
    return Side(sentences, ((),) * len(sentences))


def _split(sides: Sequence[Side], judge: Judge) -> list[list[Phrase] | None]:
    """Ask for the statements of each report; an empty report has none, unasked."""

    def check(text: Any) -> Callable[[Any], str | None]:
        count = len(text["sentences"])

        def fault(answer: Any) -> str | None:
            numbers = [row["number"] for row in answer["sentences"]]
            if any(number >= count for number in numbers):
                return f"sentence numbers go from 0 to {count - 1}, got {max(numbers)}."
            return None

        return fault

    asked = [side for side in sides if side.sentences]
    texts = [{"sentences": list(side.sentences)} for side in asked]
    replies = iter(judge.ask("radfact_phrases", texts, check))
    found: list[list[Phrase] | None] = []
    for side in sides:
        reply = next(replies) if side.sentences else None
        if reply is None:
            found.append([])
        elif reply.status != "ok" or reply.detail:
            found.append(None)
        else:
            found.append(
                [
                    Phrase(text, side.boxes[row["number"]])
                    for row in reply.parsed["sentences"]
                    for text in row["phrases"]
                ]
            )
    return found


def _entailed(
    ones: Sequence[list[Phrase] | None], others: Sequence[list[Phrase] | None], judge: Judge
) -> list[Entailment | None]:
    """Ask whether each statement of one side follows from the other side's."""

    def check(text: Any) -> Callable[[Any], str | None]:
        count = len(text["report"])

        def fault(answer: Any) -> str | None:
            wrong = [n for n in answer["evidence"] if n >= count]
            return f"there are {count} phrases, numbered from 0; got {wrong[0]}." if wrong else None

        return fault

    texts = [
        {"statement": phrase.text, "report": [p.text for p in other]}
        for one, other in zip(ones, others, strict=True)
        if one is not None and other
        for phrase in one
    ]
    replies = iter(judge.ask("radfact_entailment", texts, check))
    found: list[Entailment | None] = []
    for one, other in zip(ones, others, strict=True):
        if one is None or other is None:
            found.append(None)
            continue
        # Nothing follows from an empty report: no need to ask.
        verdicts = [next(replies) for _ in one] if other else [None] * len(one)
        claims = [_claim(p, other, v) for p, v in zip(one, verdicts, strict=True)]
        whole = [claim for claim in claims if claim is not None]
        found.append(entailment(whole) if len(whole) == len(claims) else None)
    return found


def _claim(phrase: Phrase, other: Sequence[Phrase], reply: Reply | None) -> Claim | None:
    if reply is None:
        return Claim(False, phrase.boxes)
    if reply.status != "ok" or reply.detail:
        return None
    evidence = [box for n in reply.parsed["evidence"] for box in other[n].boxes]
    return Claim(reply.parsed["status"] == "entailment", phrase.boxes, evidence)


# To add one: a function of pairs, judge and decomposer, and its name here.
JUDGES: Final[dict[str, Callable[[Sequence[Pair], Judge, Decomposer], Measured]]] = {
    "green": lambda pairs, judge, decomposer: judge_green(pairs, judge),
    "gema": lambda pairs, judge, decomposer: judge_gema(pairs, judge),
    "radfact": judge_radfact,
}


def _scored(name: str, values: Sequence[float | None], recipe: str) -> Score:
    good = [value for value in values if value is not None]
    failed = len(values) - len(good)
    note = "" if good else f"the judge gave no answer that could be read ({failed} failed)"
    return Score(name, _average(good), len(good), recipe, note, failed)


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
