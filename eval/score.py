"""Predictions and references to scores: the whole story on one screen.

    paired = read_pairs(predictions, references)
    scored = score(paired, Settings())
    write_scores(scored, Path("out/scores"))

A scores folder holds `per_study.parquet`, a row a study, and last `scores.json`: every number with
its signature and n.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cot_builder import __version__
from cot_builder.dataset import read_manifest, write_whole
from cot_builder.decompose import Decomposer
from cot_builder.errors import UserError
from cot_builder.show import plain, plain_table
from eval.bertscore import measure_bertscore
from eval.chexpert import HEADLINE, both_sides, measure_chexpert
from eval.grounding import measure_grounding
from eval.judges import JUDGES, Judge
from eval.predicted_chains import measure_chains
from eval.records import Measured, Pair, Paired, Score
from eval.text import measure_text
from knowledge_banks import load_banks

SCORES: Final = "scores.json"
PER_STUDY: Final = "per_study.parquet"


class Settings(NamedTuple):
    """What a run of scoring chooses; each value's signature tells what it went by."""

    tokens: str = "r2gen"
    max_seq_length: int | None = None
    convention: str = HEADLINE
    reference_labels: Path | None = None
    prediction_labels: Path | None = None
    banks: Path | None = None
    bertscore: str | None = None
    bertscore_layer: int | None = None


class Scored(NamedTuple):
    """All scores of one set of predictions: `counts` of studies, scores, values a study, tables."""

    name: str
    counts: Mapping[str, int]
    scores: tuple[Score, ...]
    per_study: pd.DataFrame
    tables: Mapping[str, Any]

    def value(self, name: str) -> float | None:
        """Return a score by its name; None when it was not computed."""
        return next((score.value for score in self.scores if score.name == name), None)

    def __rich__(self) -> Group:
        """Return the scores as a table, and what did not pair below it."""
        table = plain_table(f"Scores of {plain(self.name)}")
        for column in ("score", "value", "n", "recipe"):
            number = column in ("value", "n")
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for score in self.scores:
            value = "–" if score.value is None else f"{score.value:.4f}"
            note = f"{score.signature}; {score.failed} failed" if score.failed else score.signature
            told = note if score.value is not None else score.note
            table.add_row(Text(score.name), value, f"{score.n:,}", Text(told))
        told = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in self.counts.items())
        return Group(table, Text(f"studies: {told}"))


def _text(pairs: Sequence[Pair], settings: Settings, decomposer: Decomposer) -> Measured:
    return measure_text(pairs, tokens=settings.tokens, max_seq_length=settings.max_seq_length)


def _bertscore(pairs: Sequence[Pair], settings: Settings, decomposer: Decomposer) -> Measured:
    if settings.bertscore is None:
        return Measured(())
    return measure_bertscore(pairs, settings.bertscore, layer=settings.bertscore_layer)


def _chexpert(pairs: Sequence[Pair], settings: Settings, decomposer: Decomposer) -> Measured:
    sides = both_sides(
        pairs,
        decomposer,
        reference_labels=settings.reference_labels,
        prediction_labels=settings.prediction_labels,
    )
    return measure_chexpert(sides, convention=settings.convention)


# To add one: a function of the pairs, the settings and the decomposer, and its name here.
MEASURES: Final[dict[str, Callable[[Sequence[Pair], Settings, Decomposer], Measured]]] = {
    "text": _text,
    "bertscore": _bertscore,
    "chexpert": _chexpert,
    "chains": lambda pairs, settings, decomposer: measure_chains(pairs, decomposer),
    "grounding": lambda pairs, settings, decomposer: measure_grounding(pairs, decomposer),
}


def score(
    paired: Paired,
    settings: Settings,
    *,
    name: str = "predictions",
    measures: Sequence[str] = tuple(MEASURES),
    judges: Sequence[str] = (),
    judge: Judge | None = None,
) -> Scored:
    """Take the named measures over the pairs, then have them judged in each of the named ways."""
    if unknown := [m for m in measures if m not in MEASURES]:
        raise UserError(f"unknown measure {unknown[0]!r}; the measures are {', '.join(MEASURES)}")
    decomposer = Decomposer(load_banks(settings.banks))
    found = [MEASURES[m](paired.pairs, settings, decomposer) for m in measures]
    if judge:
        found += [JUDGES[name](paired.pairs, judge, decomposer) for name in judges]
    columns: dict[str, Any] = {"study_id": [pair.study_id for pair in paired.pairs]}
    tables: dict[str, Any] = {}
    for measured in found:
        columns |= measured.per_study
        columns |= {f"counts/{key}": list(map(list, rows)) for key, rows in measured.counts.items()}
        tables |= measured.tables
    scores = tuple(score for measured in found for score in measured.scores)
    return Scored(name, paired.counts, scores, pd.DataFrame(columns), tables)


def write_scores(scored: Scored, folder: Path, *, described: Mapping[str, Any]) -> None:
    """Write a scores folder; `described` tells what was scored against what, for its reader."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORES).unlink(missing_ok=True)
    scored.per_study.to_parquet(folder / PER_STUDY, index=False)
    content = {
        "tool": f"cot-builder {__version__}",
        "name": scored.name,
        **described,
        "studies": scored.counts,
        "scores": [score._asdict() for score in scored.scores],
        "tables": scored.tables,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    write_whole(folder / SCORES, text.encode(), scratch=folder)


def read_scores(folder: Path) -> Scored:
    """Read a scores folder back; UserError when it is none."""
    try:
        content = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        scores = tuple(Score(**row) for row in content["scores"])
        per_study = pd.read_parquet(folder / PER_STUDY)
        return Scored(content["name"], content["studies"], scores, per_study, content["tables"])
    except OSError as error:
        raise UserError(
            f"{folder} is no scores folder ({error}); "
            f"`cot-builder score PREDICTIONS REFERENCES --out {folder}` makes one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / SCORES} was not written by cot-builder score: {error}"
        ) from None


def credentialed_source(references: Path, *, open_data: bool) -> str | None:
    """Name the credentialed source that the references come from, or None for open data.

    A dataset's manifest says it; a file does not, and counts as credentialed unless `open_data`.
    """
    if not references.is_dir():
        return None if open_data else f"{references.name} (--open-data says that it is open)"
    source = read_manifest(references).get("source", {})
    return str(source.get("name")) if source.get("credentialed", True) else None


def spread_table(rows: Mapping[str, Any], *, n: int) -> Table:
    """Draw the rates by convention: how far one set of predictions moves between them."""
    table = plain_table(f"CheXpert efficacy by convention, n = {n:,} studies")
    for column in ("convention", "accuracy", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "convention" else "right")
    for name, found in rows.items():
        table.add_row(name, *("–" if v != v else f"{v:.4f}" for v in found))
    return table
