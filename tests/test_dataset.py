"""The dataset folder: shards that other libraries read, and that are whole or not there."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from cot_builder.dataset import (
    MANIFEST,
    SCHEMA,
    json_lines,
    read_manifest,
    read_studies,
    shard_name,
    study_row,
    write_shard,
    write_whole,
)
from cot_builder.errors import UserError
from cot_builder.records import Chain, Decomposition, Image, Report, Row, Section, Unmapped
from cot_builder.vocabulary import LABELS

TEXT = "Small left effusion. Degenerative changes of the spine."


def a_row(study_id: str = "50", split: str | None = "train") -> Row:
    report = Report(
        study_id=study_id,
        subject_id="10",
        source="table",
        split=split,
        sections=(Section("findings", TEXT), Section("technique", "AP view.")),
        images=(Image("files/a.jpg", "a", "PA", 512, 624), Image("files/b.jpg", "b")),
        file="reports.csv:2",
    )
    chain = Chain(
        section="findings",
        sentence=0,
        finding="Small left effusion",
        start=0,
        end=19,
        disease="Pleural Effusion",
        basis="stated",
        assertion="positive",
        regions=("left lung",),
        severity="small",
    )
    unmapped = Unmapped(
        section="findings",
        sentence=1,
        finding="Degenerative changes of the spine",
        start=21,
        end=54,
        assertion="positive",
        regions=("spine",),
    )
    labels = {label: 1 if label == "Pleural Effusion" else None for label in LABELS}
    decomposition = Decomposition((chain,), (unmapped,), 2, 2, 2)
    return study_row(report, decomposition, labels, bank_version="1.0.0")


def a_dataset(folder: Path, rows_of_shards: dict[str, list[Row]]) -> Path:
    folder.mkdir()
    shards = []
    for name, rows in rows_of_shards.items():
        sha256 = write_shard(folder / name, rows, scratch=folder)
        shards.append({"file": name, "split": None, "studies": len(rows), "sha256": sha256})
    (folder / MANIFEST).write_text(json.dumps({"splits": {}, "shards": shards}))
    return folder


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    first, second, third = a_row("1"), a_row("2"), a_row("3", split=None)
    folder = a_dataset(tmp_path / "d", {"b.parquet": [first, second], "a.parquet": [third]})
    rows = list(read_studies(folder))
    assert rows == [first, second, third]
    chain = Chain.from_row(rows[0]["chains"][0])
    assert rows[0]["sections"][0]["text"][chain.start : chain.end] == chain.finding
    assert Unmapped.from_row(rows[0]["unmapped"][0]).regions == ("spine",)


def test_one_study_and_some_columns_can_be_read_alone(tmp_path: Path) -> None:
    folder = a_dataset(tmp_path / "d", {"a.parquet": [a_row("1"), a_row("2")]})
    assert [row["study_id"] for row in read_studies(folder, study_id="2")] == ["2"]
    assert (
        list(read_studies(folder, columns=["provenance.covered"]))
        == [{"provenance": {"covered": 2}}] * 2
    )


def test_the_columns_have_the_names_and_the_order_of_the_format() -> None:
    assert SCHEMA.names == [
        *("study_id", "subject_id", "source", "split", "sections", "images"),
        *("chains", "unmapped", "grounded", "labels", "provenance"),
    ]
    chain = SCHEMA.field("chains").type.value_type
    assert [field.name for field in chain] == list(a_row()["chains"][0])
    assert [field.name for field in SCHEMA.field("labels").type] == list(LABELS)


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "s.parquet", [a_row()], scratch=tmp_path)
    assert (tmp_path / "a/s.parquet").read_bytes() == (tmp_path / "b/s.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_polars_and_datasets_read_the_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    splits = ("train", "validation", "test")
    folder = a_dataset(
        tmp_path / "d",
        {shard_name(split, 0, 1): [a_row(split, split), a_row("x", split)] for split in splits},
    )
    frame = pl.read_parquet(folder / "*.parquet")
    assert frame.height == 6
    assert frame["labels"].struct.field("Pleural Effusion").to_list() == [1] * 6
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(folder), cache_dir=str(tmp_path / "cache")
    )
    assert {name: part.num_rows for name, part in loaded.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    assert loaded["validation"][0]["chains"][0]["regions"] == ["left lung"]
    assert loaded["test"][0]["labels"]["Edema"] is None


@pytest.mark.parametrize(
    ("split", "any_split", "name"),
    [
        ("train", True, "train-00002-of-00003.parquet"),
        ("validation", True, "validation-00002-of-00003.parquet"),
        ("test", True, "test-00002-of-00003.parquet"),
        (None, True, "unsplit-00002-of-00003.parquet"),
        (None, False, "train-00002-of-00003.parquet"),
    ],
)
def test_shard_names(split: str | None, any_split: bool, name: str) -> None:
    assert shard_name(split, 2, 3, any_split=any_split) == name


def test_an_empty_shard_has_the_schema(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.parquet", [], scratch=tmp_path)
    assert pq.read_schema(tmp_path / "s.parquet").equals(SCHEMA)


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    target = tmp_path / "s.parquet"
    code = (
        "import sys; from pathlib import Path; from cot_builder.dataset import write_whole; "
        "p = Path(sys.argv[1]); write_whole(p, b'x' * 9999, scratch=p.parent)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
        capture_output=True,
        text=True,
    )
    assert "OSError" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "f"
    write_whole(target, b"old", scratch=tmp_path)
    with pytest.raises(TypeError):
        write_whole(target, "no bytes", scratch=tmp_path)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "not complete; run the build again with --resume"),
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"splits": {}}', "not a manifest"),
    ],
)
def test_a_folder_without_a_good_manifest_is_refused(
    tmp_path: Path, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=says):
        read_manifest(tmp_path)


def test_a_missing_folder_a_lost_shard_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset folder at .*nowhere"):
        read_manifest(tmp_path / "nowhere")
    folder = a_dataset(tmp_path / "d", {"a.parquet": [a_row()], "b.parquet": [a_row()]})
    (folder / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"a\.parquet is not the Parquet file"):
        list(read_studies(folder))
    (folder / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"a\.parquet is missing"):
        list(read_studies(folder))


def test_json_lines_hold_names_that_are_not_utf8() -> None:
    undecodable = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    (line,) = json_lines([{"file": undecodable, "detail": "é"}]).splitlines()
    assert json.loads(line) == {"file": undecodable, "detail": "é"}
