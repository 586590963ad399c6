"""Significance against scipy, the paper's tables, figures and claims."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from cot_builder.cli import app
from cot_builder.errors import UserError
from eval.claims import check_claims
from eval.figures import write_figures
from eval.records import Score
from eval.score import Scored
from eval.significance import bootstrap, compare_runs, holm, wilcoxon
from eval.tables import FULL, PaperTable, latex, markdown, paper_tables, published
from eval.text import bleu
from tests.reports import report_pairs


def test_wilcoxon_is_scipy_s_with_ties_and_missing_values() -> None:
    draw = np.random.default_rng(1)
    one = draw.normal(size=200).round(1)
    other = (one + draw.normal(0.1, 0.3, size=200)).round(1)
    expected = stats.wilcoxon((one - other).round(12), alternative="less", zero_method="wilcox")
    found = wilcoxon(one.tolist(), other.tolist())
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.n == 200
    assert found.nonzero == np.count_nonzero((one - other).round(12))
    gaps = wilcoxon([*one.tolist(), None, float("nan"), 3], [*other.tolist(), 1, 1, None])
    assert gaps == found


@pytest.mark.parametrize(
    ("lower", "higher", "p"),
    [
        ([1, 2, 3, 4, 5], [2, 4, 6, 8, 10], 1 / 32),
        ([1, 2, 3, 4, 5, 6, 7, 9], [2, 4, 6, 8, 10, 12, 14, 8.5], 2 / 256),
        ([2, 4, 6, 8, 10], [1, 2, 3, 4, 5], 1),
        ([1, 2], [1, 2], None),
        ([0.1 + 0.2], [0.3], None),  # only rounding tells them apart
        ([], [], None),
    ],
)
def test_wilcoxon_by_hand(lower: list, higher: list, p: float | None) -> None:
    assert wilcoxon(lower, higher).p == (None if p is None else pytest.approx(p))


def test_holm_orders_and_caps() -> None:
    assert holm([0.04, 0.01, 0.03, None]) == pytest.approx([0.06, 0.03, 0.06, None])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def per_study(values: list[float], counts: list[list[int]] | None = None) -> pd.DataFrame:
    frame = pd.DataFrame({"study_id": [str(i) for i in range(len(values))], "ROUGE-L": values})
    return frame.assign(**{"counts/bleu": counts, "BLEU-4": values}) if counts else frame


def test_the_bootstrap_interval_holds_the_difference_and_is_the_same_each_time() -> None:
    draw = np.random.default_rng(2)
    one = draw.random(300)
    tables = per_study(one.tolist()), per_study((one + 0.1).tolist())
    found = bootstrap(*tables, "ROUGE-L")
    assert found.difference == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))  # paired: no spread at all
    assert found == bootstrap(*tables, "ROUGE-L")


def test_the_bootstrap_computes_bleu_anew_of_summed_counts() -> None:
    counts = np.random.default_rng(3).integers(1, 9, size=(50, 10))
    better = counts.copy()
    better[:, 6:] += 1
    zeros = [0.0] * 50
    found = bootstrap(
        per_study(zeros, counts.tolist()), per_study(zeros, better.tolist()), "BLEU-4"
    )
    expected = bleu(better.sum(axis=0))[3] - bleu(counts.sum(axis=0))[3]
    assert found.difference == pytest.approx(expected)
    assert found.low < expected < found.high


def test_runs_are_compared_on_shared_studies_with_holm_over_all_tests() -> None:
    runs = {"a": per_study([0.1] * 12), "full": per_study([0.1 + i / 100 for i in range(10)])}
    (found,) = compare_runs(runs, "full", ["ROUGE-L", "BLEU-4"])
    assert found.test.n == 10
    assert found.test.nonzero == 9
    assert found.corrected == found.test.p
    with pytest.raises(UserError, match="a and full share no study"):
        compare_runs(runs | {"full": runs["full"].head(0)}, "full", ["ROUGE-L"])


# -- tables, figures, claims


def run(name: str, value: float, *, green: bool = False) -> Scored:
    names = (
        *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CheXpert"),
        "GEMA-style",
    )
    labels = published()["table3"]["rows"]
    tables = {
        "chexpert_classes": [
            {
                "label": label,
                "accuracy": 0.9,
                "precision": value,
                "recall": value,
                "f1": value,
                "n": 3,
            }
            for label in labels
        ]
    }
    if green:
        tables["green_categories"] = [
            {"category": c, "mean": 1 - value + i, "lower_is_better": c != "matched findings"}
            for i, c in enumerate(("false finding", "missing finding", "matched findings"))
        ]
    scores = tuple(Score(n, None if n == "METEOR" else value, 40, "tokens=r2gen") for n in names)
    values = pd.DataFrame({"study_id": [str(i) for i in range(40)]})
    return Scored(name, {"pairs": 40}, scores, values.assign(**{"ROUGE-L": value}), tables)


RUNS = [run("w/o SVR", 0.3), run("projector + adapter", 0.35), run("mine & co_1", 0.4)]


def tables(corpus: str = "mimic") -> dict[str, PaperTable]:
    found = paper_tables(RUNS, corpus=corpus, full="mine & co_1")
    return {table.name: table for table in found}


def test_the_published_rows_average_to_the_paper_s_headline() -> None:
    rows = published()["table3"]["rows"].values()
    assert np.mean([row[3] for row in rows]) == pytest.approx(0.4121, abs=1e-4)
    assert published()["table1"]["rows"][FULL][7] == 0.412


def test_tables_have_the_paper_s_rows_marked_as_published_beside_ours() -> None:
    found = tables()
    assert list(found) == ["table1", "table3", "table4", "table5"]
    page = markdown(found["table1"])
    assert "| BoxMed-RL | published | 0.426 | 0.271 | 0.185 |" in page
    assert "| mine & co_1 | ours | 0.400 |" in page
    assert "**0.429**" in page, "the best of a column is bold"
    assert "tokens=r2gen" in page
    assert "n = 40" in page
    ablation = markdown(found["table4"])
    assert "| w/o SVR | ✓ | ✗ | ✓ | published | 0.393** |" in ablation
    assert "| w/o SVR | ✓ | ✗ | ✓ | ours | 0.300 |" in ablation
    assert "–**" not in ablation
    assert "| projector + adapter | ✗ | ✓ | ✓ | ours |" in markdown(found["table5"])
    assert "| Edema (n = 3) | ours | 0.900 | 0.400 |" in markdown(found["table3"])
    assert next(iter(tables("iu"))) == "table2"
    gema = found["table1"].values.loc["mine & co_1", ["GEMA-Score", "GEMA-style"]]
    assert gema.isna().tolist() == [True, False], "theirs and ours are two columns"


def test_runs_on_reports_of_elsewhere_are_table_2_beside_table_1() -> None:
    elsewhere = [run("mine & co_1 on demo", 0.2)]
    found = paper_tables(RUNS, corpus="mimic", full="mine & co_1", external=elsewhere)
    assert [table.name for table in found][:3] == ["table1", "table2", "table3"]
    page = markdown(found[1])
    assert "| mine & co_1 on demo | ours | 0.200 |" in page
    assert "| CMM | published | 0.494 |" in page
    assert "| w/o SVR | ours |" not in page
    assert "published rows are of IU X-Ray" in page
    with pytest.raises(UserError, match="--external is Table 2"):
        paper_tables(RUNS, corpus="iu", full="mine & co_1", external=elsewhere)


def test_table_3_has_a_dash_where_nobody_has_the_label() -> None:
    scored = run("mine", 0.4)
    rows = scored.tables["chexpert_classes"]
    rows[5] |= {"precision": None, "recall": None, "f1": None, "n": 0}
    scores = (Score("CheXpert", 0.4, 40, "F1,boxmed_table3,labeler=x"),)
    found = paper_tables([scored._replace(scores=scores)], corpus="mimic", full="mine")[1]
    page = markdown(found)
    assert f"| {rows[5]['label']} (n = 0) | ours | 0.900 | – | – | – |" in page
    assert "the mean over labels leaves it out" in page


def test_latex_is_escaped_and_has_a_row_for_each() -> None:
    text = latex(tables()["table4"])
    assert r"mine \& co\_1" in text
    assert r"w/o MCL \& SVR" in text
    assert text.count(r"\\") == 1 + len(tables()["table4"].values)
    assert "✓" not in text


def test_figures_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    files = write_figures([run("a", 0.3, green=True), run("b", 0.4, green=True)], tmp_path)
    assert [file.name for file in files] == ["fig5_green.png", "fig5_chexpert.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert write_figures([RUNS[0]._replace(tables={})], tmp_path) == []


def test_seven_percent_holds_for_mimic_only_and_bleu4_is_not_the_best_on_iu() -> None:
    found = {(c.table, c.metric): (round(c.gain, 1), c.holds) for c in check_claims()}
    assert found["table1", "METEOR"] == (7.1, True)
    assert found["table1", "ROUGE-L"] == (7.9, True)
    assert found["table2", "METEOR"] == (3.3, False)
    assert found["table2", "ROUGE-L"] == (1.5, False)
    assert found["table2", "BLEU-4"] == (-1.7, False)
    assert found["table4", "CheXpert"] == (4.8, False)


def test_claims_of_our_run_are_undecided_where_a_number_is_missing() -> None:
    found = [c for c in check_claims([run("mine", 0.4)]) if c.row == "mine"]
    verdicts = {c.metric: c.holds for c in found}
    assert verdicts["ROUGE-L"] is True
    assert verdicts["METEOR"] is None
    assert all(math.isnan(c.gain) for c in found if c.holds is None)


def test_compare_writes_everything_from_scores_folders(tmp_path: Path) -> None:
    pairs = report_pairs(30)
    sides = {"references": 0, "full": 0, "w/o SVR": 1}
    files = {}
    for name, side in sides.items():
        files[name] = tmp_path / f"{name.replace('/', '')}.jsonl"
        rows = [{"study_id": i, "report": pair[side]} for i, pair in enumerate(pairs)]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = []
    for name in ("w/o SVR", "full"):
        folders.append(str(tmp_path / f"scores {name.replace('/', '')}"))
        arguments = ["score", str(files[name]), str(files["references"]), "--name", name]
        done = CliRunner().invoke(app, [*arguments, "--out", folders[-1]], env={"PATH": ""})
        assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["compare", *folders, "--out", str(out), "--claims"], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    assert {f"table{n}.{s}" for n in (1, 3, 4) for s in ("md", "csv", "tex")} <= {
        file.name for file in out.iterdir()
    }
    with (out / "significance.csv").open(newline="") as stream:
        rows = {row["score"]: row for row in csv.DictReader(stream)}
    assert rows["ROUGE-L"]["stars"] == "**"
    assert rows["ROUGE-L"]["n"] == "30"
    assert float(rows["BLEU-4"]["bootstrap_low"]) > 0
    ours = [line for line in (out / "table4.md").read_text().splitlines() if "| ours |" in line]
    assert any("**" in cell.replace("**1.000**", "") for cell in ours[0].split("|"))

    same = CliRunner().invoke(app, ["compare", folders[0], folders[0], "--out", str(out)])
    assert "two runs are called 'w/o SVR'" in same.stderr
    lost = CliRunner().invoke(app, ["compare", *folders, "--full", "none", "--out", str(out)])
    assert "--full 'none' is none of the runs" in lost.stderr
