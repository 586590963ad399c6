"""Tables of every form, and their bad rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from cot_builder.errors import UserError
from cot_builder.records import Rejected, Report
from cot_builder.sources import SourceOptions, get_source
from knowledge_banks import load_banks

BANKS = load_banks()
ROWS: list[dict[str, Any]] = [
    {"id": "b", "who": "1", "part": "val", "report": "HISTORY: Cough.\n\nLungs clear.",
     "image": "a.png"},
    {"id": "a", "who": "", "part": "train", "report": "FINDINGS: Heart, normal.", "image": ""},
]  # fmt: skip


def read(path: Path, **columns: str) -> tuple[list[Report], list[Rejected]]:
    options = SourceOptions(root=path, banks=BANKS, **columns)  # type: ignore[arg-type]
    source = get_source("table")
    plan = source.plan(options)
    answers = [source.load(task, options) for task in plan.tasks]
    reports = [answer.report for answer in answers if answer.report]
    return reports, plan.rejects + [r for answer in answers for r in answer.rejects]


def make(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = path.name.removesuffix(".gz")
    if names.endswith(".parquet"):
        pl.DataFrame(rows).write_parquet(path)
        return path
    if names.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        file = io.StringIO()
        delimiter = "\t" if names.endswith(".tsv") else ","
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
        text = file.getvalue()
    raw = text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


FORMS = ["t.csv", "t.tsv", "t.jsonl", "t.csv.gz", "t.jsonl.gz", "t.parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path: Path, form: str) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    reports, rejects = read(
        make(tmp_path / form, ROWS), text_column="report", id_column="id", subject_column="who",
        split_column="part", image_column="image",
    )  # fmt: skip
    assert not rejects
    assert [(r.study_id, r.subject_id, r.split) for r in reports] == [
        ("a", None, "train"),
        ("b", "1", "validation"),
    ]
    assert dict(reports[1].sections) == {"history": "Cough.", "findings": "Lungs clear."}
    assert [(i.path, i.image_id, i.width, i.height) for i in reports[1].images] == [
        ("a.png", "a", 30, 20)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_sections_by_column_and_no_ids(tmp_path: Path, form: str) -> None:
    rows = [{"f": " Lungs  clear. ", "i": "Normal."}, {"f": "Nodule.", "i": ""}]
    reports, rejects = read(make(tmp_path / form, rows), findings_column="f", impression_column="i")
    assert not rejects
    assert [dict(r.sections) for r in reports] == [
        {"findings": "Lungs clear.", "impression": "Normal."},
        {"findings": "Nodule."},
    ]
    assert len({r.study_id for r in reports}) == 2
    assert {r.split for r in reports} == {None}


@pytest.mark.parametrize("form", FORMS)
def test_missing_column(tmp_path: Path, form: str) -> None:
    path = make(tmp_path / form, ROWS)
    with pytest.raises(UserError, match="'text'; its columns are id, who, part, report, image"):
        read(path, text_column="text")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"report": ""}, "empty_report"),
    "blank text": ({"report": " \n "}, "empty_report"),
    "headings only": ({"report": "FINDINGS:"}, "empty_report"),
    "5 MB": ({"report": "Clear. " * 750_000}, "report_too_large"),
    "no id": ({"id": ""}, "malformed_row"),
    "same id": ({"id": "a"}, "duplicate_id"),
    "no split": ({"part": ""}, "no_split"),
    "unknown split": ({"part": "holdout"}, "unknown_split"),
    "path outside": ({"image": "../../etc/passwd"}, "path_outside_root"),
    "absolute path": ({"image": "/etc/passwd"}, "path_outside_root"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", ["t.csv", "t.jsonl", "t.parquet"])
def test_bad_row(tmp_path: Path, case: str, form: str) -> None:
    change, reason = BAD[case]
    good = {"id": "a", "part": "test", "report": "FINDINGS: Clear.", "image": ""}
    bad = {"id": "z", "part": "test", "report": "FINDINGS: Clear.", "image": "", **change}
    reports, rejects = read(
        make(tmp_path / form, [good, bad]), text_column="report", id_column="id",
        split_column="part", image_column="image",
    )  # fmt: skip
    assert [r.reason for r in rejects] == [reason]
    assert rejects[0].file.startswith(f"{form}:")
    assert [r.study_id for r in reports] == ["a"]


def test_missing_image_leaves_the_study(tmp_path: Path) -> None:
    rows = [{"report": "Clear.", "image": ["none.png"]}]
    reports, rejects = read(
        make(tmp_path / "t.jsonl", rows), text_column="report", image_column="image"
    )
    assert [r.reason for r in rejects] == ["image_missing"]
    assert reports[0].images == ()


LINES: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    "short row": ("t.csv", b"id,report\n1\n2,Clear.\n", [("malformed_row", "t.csv:2")]),
    "quotes": ("t.csv", b'id,report\n1,"a"b\n2,Clear.\n', [("malformed_row", "t.csv:2")]),
    "open quote": ("t.csv", b'id,report\n2,Clear.\n3,"x\ny\n', [("malformed_row", "t.csv:3-4")]),
    "not UTF-8": ("t.csv", b"id,report\n1,caf\xe9\n2,Clear.\n", [("not_utf8", "t.csv:2")]),
    "no JSON": (
        "t.jsonl", b'{"id":1\n{"id":2,"report":"Clear."}\n', [("malformed_row", "t.jsonl:1")]),
    "no object": (
        "t.jsonl", b'[1]\n{"id":2,"report":"Clear."}\n\n', [("malformed_row", "t.jsonl:1")]),
    "no text": (
        "t.jsonl", b'{"id":1,"report":5}\n{"id":2,"report":"Clear."}',
        [("malformed_row", "t.jsonl:1")],
    ),
    "byte order mark": ("t.csv", b"\xef\xbb\xbfid,report\r\n2,Clear.\r\n", []),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_bad_line(tmp_path: Path, case: str) -> None:
    name, content, expected = LINES[case]
    (tmp_path / name).write_bytes(content)
    reports, rejects = read(tmp_path / name, text_column="report", id_column="id")
    assert [(r.reason, r.file) for r in rejects] == expected
    assert [(r.study_id, r.section("findings")) for r in reports] == [("2", "Clear.")]


def test_truncated_gz(tmp_path: Path) -> None:
    rows = [{"id": f"{n:04}", "report": f"Nodule of {n * n % 9973} mm."} for n in range(5000)]
    path = make(tmp_path / "t.csv.gz", rows)
    path.write_bytes(path.read_bytes()[:-5000])
    reports, rejects = read(path, text_column="report", id_column="id")
    assert [(r.reason, r.file) for r in rejects] == [("table_truncated", "t.csv.gz")]
    assert 1000 < len(reports) < 5000
    assert all(r.section("findings").endswith(" mm.") for r in reports)


@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("none.csv", {"text_column": "x"}, "no such file"),
        ("t.xlsx", {"text_column": "x"}, "unknown kind of table '.xlsx'"),
        ("t.csv", {}, "--text-column"),
        ("folder", {"text_column": "x"}, "is a folder"),
        ("t.parquet", {"text_column": "x"}, "cannot read"),
        ("empty.csv", {"text_column": "x"}, "its columns are none"),
    ],
)
def test_stops_at_once(tmp_path: Path, name: str, columns: dict[str, str], words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.csv").touch()
    for file in ("t.csv", "t.xlsx", "t.parquet"):
        (tmp_path / file).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=words):
        read(tmp_path / name, **columns)
