"""Scoring chains against annotated ones: cases worked by hand, bad gold, and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cot_builder.cli import app
from cot_builder.errors import UserError
from cot_builder.records import Row
from eval.chains import Counts, compare, most_common, read_gold, score, score_chains, triples

TEXT = "Small left effusion. No edema. Scoliosis."


def chain(disease: str, assertion: str, *regions: str) -> Row:
    return {"disease": disease, "assertion": assertion, "regions": list(regions)}


def found(disease: str, assertion: str, *regions: str, finding: str = "effusion") -> Row:
    start = TEXT.find(finding)
    offsets = {"section": "findings", "finding": finding, "start": start}
    return chain(disease, assertion, *regions) | offsets | {"end": start + len(finding)}


def report(*chains: Row, unmapped: tuple[Row, ...] = ()) -> Row:
    sections = [{"name": "findings", "text": TEXT}]
    return {"chains": list(chains), "unmapped": list(unmapped), "sections": sections}


# -- counts


def test_triples_are_a_set_of_one_for_each_region() -> None:
    chains = [
        chain("Edema", "positive", "left lung", "right lung"),
        chain("Edema", "positive", "left lung"),
    ]
    assert triples(chains) == {
        ("Edema", "positive", "left lung"),
        ("Edema", "positive", "right lung"),
    }
    assert triples([]) == set()


@pytest.mark.parametrize(
    ("gold", "predicted", "counts", "f1"),
    [
        ("ab", "ab", Counts(2, 0, 0), 1.0),
        ("ab", "bc", Counts(1, 1, 1), 0.5),
        ("abc", "a", Counts(1, 0, 2), 0.5),
        ("a", "b", Counts(0, 1, 1), 0.0),
        ("", "a", Counts(0, 1, 0), 0.0),
        ("", "", Counts(0, 0, 0), math.nan),
    ],
)
def test_compare(gold: str, predicted: str, counts: Counts, f1: float) -> None:
    assert compare(set(gold), set(predicted)) == counts
    assert counts.f1 == pytest.approx(f1, nan_ok=True)


def test_a_share_of_nothing_is_nan() -> None:
    assert math.isnan(Counts(0, 0, 3).precision)
    assert Counts(0, 0, 3).recall == 0
    assert math.isnan(Counts(0, 3, 0).recall)
    assert Counts(0, 3, 0).precision == 0


# -- scores, worked by hand


def test_score_of_two_reports() -> None:
    scores = score(
        [
            (  # two of three found, one region wrong
                "1",
                report(
                    chain("Pleural Effusion", "positive", "left lung"),
                    chain("Edema", "negative", "whole lung"),
                    chain("Pneumonia", "uncertain", "left lung"),
                ),
                report(
                    found("Pleural Effusion", "positive", "right lung"),
                    found("Edema", "negative", "whole lung"),
                    found("Pneumonia", "uncertain", "left lung"),
                    found("Pneumonia", "uncertain", "left lung"),  # said twice, counts once
                ),
            ),
            (  # the same label in another report is another triple; a wrong assertion is two errors
                "2",
                report(chain("Edema", "negative", "whole lung")),
                report(found("Edema", "positive", "whole lung")),
            ),
        ]
    )
    assert scores.reports == 2
    assert scores.triples == Counts(hit=2, extra=2, missed=2)
    assert scores.triples.f1 == 0.5
    assert scores.by_assertion == {
        "positive": Counts(0, 2, 1),
        "negative": Counts(1, 0, 1),
        "uncertain": Counts(1, 0, 0),
    }
    assert scores.by_label["Pleural Effusion"] == Counts(0, 1, 1)
    assert scores.by_label["Edema"] == Counts(1, 1, 1)
    assert scores.by_label["Pneumonia"] == Counts(1, 0, 0)
    assert scores.macro_f1 == pytest.approx((0 + 0.5 + 1) / 3)  # labels that occur, no others
    assert scores.label_assertion == Counts(3, 1, 1)
    assert (scores.region_right, scores.region_pairs) == (2, 3)
    assert scores.region_accuracy == pytest.approx(2 / 3)
    assert scores.differences == (
        ("1", "extra", ("Pleural Effusion", "positive", "right lung")),
        ("1", "missed", ("Pleural Effusion", "positive", "left lung")),
        ("2", "extra", ("Edema", "positive", "whole lung")),
        ("2", "missed", ("Edema", "negative", "whole lung")),
    )


def test_regions_of_a_pair_agree_only_as_a_whole() -> None:
    gold = report(chain("Edema", "positive", "left lung", "right lung"))
    scores = score([("1", gold, report(found("Edema", "positive", "left lung")))])
    assert scores.triples == Counts(1, 0, 1)
    assert scores.region_accuracy == 0
    parts = [found("Edema", "positive", "left lung"), found("Edema", "positive", "right lung")]
    assert score([("1", gold, report(*parts))]).region_accuracy == 1


def test_unmapped_findings_are_scored_apart() -> None:
    gold = report(unmapped=({"assertion": "positive", "regions": ["spine"]},))
    row = found("", "positive", "spine", finding="Scoliosis")
    scores = score([("1", gold, report(unmapped=(row,)))])
    assert scores.unmapped == Counts(1, 0, 0)
    assert math.isnan(scores.triples.f1)
    assert math.isnan(scores.macro_f1)
    assert math.isnan(scores.region_accuracy)


def test_offsets_count_where_the_text_says_the_finding() -> None:
    right = found("Edema", "negative", "whole lung", finding="edema")
    moved = right | {"start": right["start"] + 1, "end": right["end"] + 1}
    elsewhere = right | {"section": "impression"}
    scores = score([("1", report(), report(right, moved, unmapped=(right, elsewhere)))])
    assert (scores.offsets_exact, scores.offsets) == (2, 4)


def test_nothing_to_score_is_nan_and_prints() -> None:
    scores = score([])
    assert scores.reports == scores.offsets == 0
    assert math.isnan(scores.triples.f1)
    assert most_common(scores) == []


def test_most_common_counts_over_reports() -> None:
    wrong = report(found("Edema", "positive", "spine"))
    scores = score([(uid, report(), wrong) for uid in "123"])
    assert most_common(scores) == [(("extra", ("Edema", "positive", "spine")), 3)]


# -- the gold file

GOOD: Mapping[str, Any] = {
    "uid": "74",
    "findings": "No edema.",
    "chains": [chain("Edema", "negative", "whole lung")],
}


def write_gold(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    )
    return path


def test_gold_is_read(tmp_path: Path) -> None:
    rows = read_gold(write_gold(tmp_path / "gold.jsonl", GOOD, "", {**GOOD, "uid": 75}))
    assert [row["uid"] for row in rows] == ["74", "75"]
    assert rows[0] == {**GOOD, "unmapped": []}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a gold record: Expecting property name"),
        ("7", "not a gold record: expected an object, got 7"),
        ("[]", r"expected an object, got \[\]"),
        ({"uid": "1", "findings": "x"}, "key 'chains' is missing"),
        ({"findings": "x", "chains": []}, "key 'uid' is missing"),
        ({"uid": "1", "chains": []}, "expected the text of a section"),
        ({**GOOD, "uid": "1", "chains": [{"disease": "Edema"}]}, "key 'assertion' is missing"),
        ({**GOOD, "uid": "1", "chains": ["Edema"]}, "indices"),
        ({**GOOD, "uid": "1", "chains": [chain("Flu", "positive", "spine")]}, "disease 'Flu'"),
        ({**GOOD, "uid": "1", "chains": [chain("Edema", "yes", "spine")]}, "assertion 'yes'"),
        ({**GOOD, "uid": "1", "chains": [chain("Edema", "positive", "lung")]}, "region 'lung'"),
        (
            {**GOOD, "uid": "1", "chains": [chain("Edema", "positive")]},
            r"list of regions, got \[\]",
        ),
        (
            {**GOOD, "uid": "1", "unmapped": [{"assertion": "positive", "regions": "spine"}]},
            "list of regions, got 'spine'",
        ),
        (dict(GOOD), "study '74' stands in line 1 already"),
        ({**GOOD, "uid": "CXR74"}, "study 'CXR74' stands in line 1 already"),
    ],
)
def test_bad_gold_is_named_by_line(tmp_path: Path, line: object, message: str) -> None:
    path = write_gold(tmp_path / "gold.jsonl", GOOD, line)
    with pytest.raises(UserError, match=rf"gold\.jsonl:2: .*{message}"):
        read_gold(path)


def test_a_gold_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: No such file"):
        read_gold(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no record"):
        read_gold(write_gold(tmp_path / "empty.jsonl", ""))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_gold(tmp_path / "bytes.jsonl")


# -- a dataset, built and scored

REPORTS = (
    {"id": "CXR74", "findings": "Small left effusion. No edema.", "impression": "Pneumonia."},
    {"id": "s75", "findings": "Scoliosis. Possible pneumonia.", "impression": ""},
    {"id": "76", "findings": "Lungs are clear.", "impression": ""},
)
GOLD = (
    {
        "uid": "74",
        "findings": REPORTS[0]["findings"],
        "chains": [
            chain("Pleural Effusion", "positive", "left lung"),
            chain("Edema", "negative", "whole lung"),
        ],
    },
    {
        "uid": "75",
        "findings": REPORTS[1]["findings"],
        "chains": [chain("Pneumonia", "uncertain", "right lung")],
        "unmapped": [{"assertion": "positive", "regions": ["spine"]}],
    },
    {"uid": "99", "findings": "Edema.", "chains": []},
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    build(folder, REPORTS)
    return folder / "out"


def build(folder: Path, reports: tuple[Mapping[str, str], ...]) -> None:
    table = write_gold(folder / "reports.jsonl", *reports)
    flags = ("--source", "table", "--root", str(table), "--out", str(folder / "out"))
    columns = ("findings", "impression", "id")
    named = [part for name in columns for part in (f"--{name}-column", name)]
    result = CliRunner().invoke(app, ["build", *flags, *named, "--workers", "1"])
    assert result.exit_code == 0, result.output


def test_a_dataset_is_scored(dataset: Path, tmp_path: Path) -> None:
    scores = score_chains(write_gold(tmp_path / "gold.jsonl", *GOLD), dataset)
    assert scores.reports == 2
    assert scores.missing == ("99",)
    # Pneumonia of the impression, which is not annotated, is no error.
    assert scores.triples == Counts(hit=2, extra=1, missed=1)
    assert (scores.region_right, scores.region_pairs) == (2, 3)
    assert scores.unmapped == Counts(1, 0, 0)
    assert scores.offsets_exact == scores.offsets == 4


def test_an_annotated_section_is_compared(dataset: Path, tmp_path: Path) -> None:
    gold = {**GOLD[0], "impression": "Pneumonia."}
    scores = score_chains(write_gold(tmp_path / "gold.jsonl", gold), dataset)
    assert scores.differences == (("74", "extra", ("Pneumonia", "positive", "whole lung")),)


def test_ids_that_share_nothing_are_named(dataset: Path, tmp_path: Path) -> None:
    gold = write_gold(tmp_path / "gold.jsonl", {**GOLD[0], "uid": "9999"})
    with pytest.raises(UserError, match=r"no study of .* is in .*gold\.jsonl.*'9999'"):
        score_chains(gold, dataset)


def test_two_studies_of_one_id_are_named(tmp_path: Path) -> None:
    build(tmp_path, ({**REPORTS[0], "id": "74"}, REPORTS[0]))
    with pytest.raises(UserError, match=r"studies '.*74' and '.*74' both are '74'"):
        score_chains(write_gold(tmp_path / "gold.jsonl", *GOLD), tmp_path / "out")


def test_the_command_prints_every_measure(dataset: Path, tmp_path: Path) -> None:
    gold = write_gold(tmp_path / "gold.jsonl", *GOLD)
    arguments = ["score-chains", str(gold), str(dataset)]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for part in (
        *("triple micro-F1", "macro-F1 over labels", "F1 of uncertain", "region accuracy"),
        *("exact offsets", "0.6667", "missed: Pneumonia · uncertain · right lung"),
        "2 reports; 1 gold reports are not in the dataset: 99",
    ):
        assert part in result.output
    gold.write_text("{}\n")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"cot-builder: {gold}:1: ")
