"""The paper's Tables 1 to 5: our runs beside its published rows, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd
from rich.table import Table
from rich.text import Text

from cot_builder.errors import UserError
from cot_builder.show import plain_table
from eval.chexpert import HEADLINE, Rates
from eval.score import Scored
from eval.significance import Compared, stars

PUBLISHED: Final = Path(__file__).with_name("published.toml")
FULL: Final = "BoxMed-RL"
# The judge that stands where the paper has GEMA-Score is not GEMA-Score: a column of its own.
_ASIDE: Final = {"GEMA-Score": "GEMA-style"}
_ELSEWHERE: Final = (
    "The published rows are of IU X-Ray, ours of the reports that their names say: only where "
    "these are the same can the two be compared"
)
_MARKS: Final = {True: "✓", False: "✗"}
_LATEX: Final = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "✓": r"\checkmark", "✗": r"$\times$", "†": r"\dag", "–": "--",
}  # fmt: skip


class PaperTable(NamedTuple):
    """One table: `values` and `stars` by row and column, where each row comes from, and a note."""

    name: str
    title: str
    values: pd.DataFrame
    marks: pd.DataFrame
    sources: list[str]
    parts: pd.DataFrame
    note: str


def published() -> dict[str, Any]:
    """Return what the paper prints, as `published.toml` has it."""
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))


def paper_tables(
    runs: Sequence[Scored],
    *,
    corpus: str,
    full: str,
    compared: Sequence[Compared] = (),
    external: Sequence[Scored] = (),
) -> list[PaperTable]:
    """Lay our runs out as the paper's tables, with its rows beside them.

    `corpus` says which comparison the runs belong to: `mimic` is Table 1, `iu` Table 2. Runs of
    `external`, on reports of elsewhere, are Table 2 beside the Table 1 of the others. A run
    named as a row of Table 4 or 5 ("w/o SVR", "projector + adapter") is an ablation of that table,
    and stars tell that it is lower than the full run, `full`.
    """
    if corpus not in ("mimic", "iu"):
        raise UserError(f"--corpus {corpus!r}: expected mimic (Table 1) or iu (Table 2)")
    paper = published()
    by_name = {run.name: run for run in runs}
    if full not in by_name:
        raise UserError(f"--full {full!r} is none of the runs: {', '.join(by_name)}")
    rows = {run.name: run for run in runs}
    found = [_comparison("table1" if corpus == "mimic" else "table2", paper, rows, compared)]
    if external:
        if corpus == "iu":
            raise UserError("--external is Table 2, and so is --corpus iu: give one of them")
        table = _comparison("table2", paper, {run.name: run for run in external}, ())
        found.append(table._replace(note=f"{table.note}. {_ELSEWHERE}"))
    found.append(_by_category(paper, by_name[full]))
    for name in ("table4", "table5"):
        chosen = {n: r for n, r in rows.items() if n in paper[name]["has"] or n == full}
        if len(chosen) > 1:
            found.append(_comparison(name, paper, chosen, compared, full=full))
    return found


def _comparison(
    name: str,
    paper: Mapping[str, Any],
    runs: Mapping[str, Scored],
    compared: Sequence[Compared],
    *,
    full: str = FULL,
) -> PaperTable:
    table = paper[name]
    columns: list[str] = []
    for column in table["columns"]:
        columns += [column, _ASIDE[column]] if column in _ASIDE else [column]
    lines: list[list[float]] = []
    marks: list[list[str]] = []
    sources, index, has = [], [], []
    for row, numbers in table["rows"].items():
        said = dict(zip(table["columns"], numbers, strict=True))
        lines.append([said.get(column, math.nan) for column in columns])
        marks.append([table.get("stars", "") if row != FULL else "" for _ in columns])
        has.append(table.get("has", {}).get(row, []))
        sources.append("published")
        index.append(row)
    tests = {(c.run, c.score): stars(c.test.p) for c in compared}
    for run, scored in runs.items():
        values = [scored.value(c) for c in columns]
        lines.append([math.nan if v is None else v for v in values])
        marks.append([tests.get((run, c), "") for c in columns])
        has.append(table.get("has", {}).get(FULL if run == full else run, []))
        sources.append("ours")
        index.append(run)
    parts = pd.DataFrame(
        [[_MARKS[part in row] for part in table.get("parts", ())] for row in has],
        columns=table.get("parts", ()),
    )
    recipes = {
        s.name: s.signature for run in runs.values() for s in run.scores if s.name in columns
    }
    counts = ", ".join(f"{name}: n = {run.counts['pairs']:,}" for name, run in runs.items())
    note = f"Ours: {counts}. " + "; ".join(f"{n}: {recipe}" for n, recipe in recipes.items())
    if any(any(line) for line in marks):
        note += (
            f". Stars: one-tailed Wilcoxon signed-rank test on studies, lower than {full}, "
            "* p < .05, ** p < .01, before Holm's correction (significance.csv has it after)"
        )
    return PaperTable(
        name,
        table["title"],
        pd.DataFrame(lines, columns=columns, index=index),
        pd.DataFrame(marks, columns=columns, index=index),
        sources,
        parts,
        note,
    )


def _by_category(paper: Mapping[str, Any], run: Scored) -> PaperTable:
    table = paper["table3"]
    ours = {row["label"]: row for row in run.tables.get("chexpert_classes", ())}
    index, lines, sources = [], [], []
    for label, numbers in table["rows"].items():
        index.append(label)
        lines.append(numbers)
        sources.append("published")
        if label in ours:
            index.append(f"{label} (n = {ours[label]['n']})")
            rates = [ours[label][rate] for rate in Rates._fields]
            lines.append([math.nan if rate is None else rate for rate in rates])
            sources.append("ours")
    recipe = next((s.signature for s in run.scores if s.name == "CheXpert"), "not computed")
    note = f"Ours: {run.name}, {run.counts['pairs']:,} studies, n positive references, {recipe}"
    if HEADLINE in recipe and any(row["f1"] is None for row in ours.values()):
        note += (
            ". –: neither the references nor the predictions have the label positive or uncertain; "
            "the mean over labels leaves it out"
        )
    values = pd.DataFrame(lines, columns=table["columns"], index=index)
    return PaperTable(
        "table3",
        table["title"],
        values,
        values.map(lambda _: ""),
        sources,
        pd.DataFrame(index=range(len(index))),
        note,
    )


# -- writing


def cells(table: PaperTable) -> pd.DataFrame:
    """Return a table's texts: three decimals, stars, a dash where there is no number."""
    marks = table.marks.where(table.values.notna(), "")
    body = table.values.map(lambda v: "–" if math.isnan(v) else f"{v:.3f}") + marks
    body = body.reset_index(names="Method")
    left = pd.concat(
        [body[["Method"]], table.parts, pd.Series(table.sources, name="Source")], axis=1
    )
    return pd.concat([left, body.drop(columns="Method")], axis=1)


def markdown(table: PaperTable) -> str:
    """Return a table as Markdown, the best value of a column in bold."""
    frame = _bold(table, "**{}**")
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.values.tolist()]
    escaped = ("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)
    number = table.name.removeprefix("table")
    return f"## Table {number}. {table.title}\n\n" + "\n".join(escaped) + f"\n\n{table.note}\n"


def latex(table: PaperTable) -> str:
    """Return a table as LaTeX (amssymb and booktabs), the best value of a column in bold."""
    frame = cells(table).map(_escaped)
    best = _best(table)
    for place, column in best:
        frame.loc[place, column] = f"\\textbf{{{frame.loc[place, column]}}}"
    rows = [" & ".join(map(_escaped, frame.columns)), *map(" & ".join, frame.values.tolist())]
    head, body = rows[0], " \\\\\n".join(rows[1:])
    left = "l" * (2 + table.parts.shape[1])
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}\n"
        f"\\begin{{tabular}}{{{left}{'r' * table.values.shape[1]}}}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def write_tables(tables: Sequence[PaperTable], folder: Path) -> list[Path]:
    """Write every table as Markdown, CSV and LaTeX into a folder, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for table in tables:
        for suffix, text in (
            ("md", markdown(table)),
            ("csv", cells(table).to_csv(index=False)),
            ("tex", latex(table)),
        ):
            files.append(folder / f"{table.name}.{suffix}")
            files[-1].write_text(text, encoding="utf-8")
    return files


def significance_frame(compared: Sequence[Compared]) -> pd.DataFrame:
    """Return every test as a row: n, statistic, p, p after Holm, difference and its interval."""
    return pd.DataFrame(
        [
            {
                "run": c.run,
                "score": c.score,
                **c.test._asdict(),
                "p_holm": c.corrected,
                "stars": stars(c.test.p),
                **{f"bootstrap_{k}": v for k, v in c.interval._asdict().items()},
            }
            for c in compared
        ]
    )


def significance_table(compared: Sequence[Compared], full: str) -> Table:
    """Draw the tests of runs against the full one."""
    table = plain_table(f"Lower than {full}? One-tailed Wilcoxon on studies, 95 % intervals")
    for column in ("run", "score", "n", "differ", "p", "p (Holm)", "", "difference"):
        table.add_column(column, justify="left" if column in ("run", "score") else "right")
    for run, score, test, corrected, (difference, low, high, _) in compared:
        table.add_row(
            Text(run), Text(score), f"{test.n:,}", f"{test.nonzero:,}", _p(test.p), _p(corrected),
            stars(test.p), f"{difference:+.4f} ({low:+.4f} to {high:+.4f})",
        )  # fmt: skip
    return table


def _p(p: float | None) -> str:
    return "–" if p is None else "<.0001" if p < 0.0001 else f"{p:.4f}"


def write_rows(rows: Sequence[NamedTuple], file: Path) -> None:
    """Write records as CSV, a column a field."""
    pd.DataFrame([row._asdict() for row in rows]).to_csv(file, index=False)


def _best(table: PaperTable) -> list[tuple[int, str]]:
    if table.name == "table3":
        return []
    best = table.values.max()
    return [
        (place, str(column))
        for column in table.values.columns
        for place, value in enumerate(table.values[column])
        if not math.isnan(value) and round(value, 3) == round(best[column], 3)
    ]


def _bold(table: PaperTable, form: str) -> pd.DataFrame:
    frame = cells(table)
    for place, column in _best(table):
        frame.loc[place, column] = form.format(frame.loc[place, column])
    return frame


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in str(text))
