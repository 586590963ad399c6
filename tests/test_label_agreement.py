"""`stats --against`: a dataset's labels beside a release's own."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import pytest

from cot_builder.dataset import MANIFEST, study_row, write_shard
from cot_builder.errors import UserError
from cot_builder.records import Decomposition, Report, Section
from cot_builder.vocabulary import LABELS
from eval.label_agreement import (
    State,
    compare_labels,
    label_agreement,
    read_label_table,
    write_disagreements,
)


def a_dataset(folder: Path, labels: dict[str, dict[str, State]]) -> Path:
    folder.mkdir()
    rows = [
        study_row(
            Report(study_id, None, "table", None, (Section("findings", "x"),)),
            Decomposition((), (), 1, 0, 0),
            {label: states.get(label) for label in LABELS},
            bank_version="1.0.0",
        )
        for study_id, states in labels.items()
    ]
    write_shard(folder / "s.parquet", rows, scratch=folder)
    (folder / MANIFEST).write_text(json.dumps({"splits": {}, "shards": [{"file": "s.parquet"}]}))
    return folder


def a_table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_labels_are_matched_by_name_whatever_the_order(tmp_path: Path) -> None:
    dataset = a_dataset(
        tmp_path / "d",
        {"1": {"Edema": 1, "Fracture": 0}, "2": {"Edema": -1}, "3": {"Edema": 1}, "9": {}},
    )
    table = a_table(
        tmp_path / "chexpert.csv",
        "Fracture,subject_id,study_id,Edema",
        "0.0,10,1,1.0",
        ",10,2,",
        ",10,s3,1.0",
        "1.0,10,77,1.0",
    )
    comparison = compare_labels(dataset, table)
    edema, fracture = comparison.labels
    assert (edema.label, edema.n) == ("Edema", 3)
    assert edema.agreement == pytest.approx(2 / 3)
    assert edema.confusion == {(1, 1): 2, (-1, None): 1}
    # Cohen's kappa by hand: observed 2/3, by chance (2/3 · 2/3 + 1/3 · 0 + 0 · 1/3) = 4/9
    assert edema.kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert (fracture.kappa, fracture.agreement) == (1.0, 1.0)
    assert (comparison.compared, comparison.dataset_only, comparison.table_only) == (3, 1, 1)
    assert [d[:2] for d in comparison.disagreements] == [("2", "Edema")]
    assert set(comparison.missing) == set(LABELS) - {"Edema", "Fracture"}


def test_kappa_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    confusion = {(1, 1): 30, (1, 0): 4, (0, 0): 50, (None, None): 90, (-1, 1): 7, (None, -1): 3}
    own, other = zip(*(pair for pair, n in confusion.items() for _ in range(n)), strict=True)
    expected = metrics.cohen_kappa_score(list(map(str, own)), list(map(str, other)))
    assert label_agreement("Edema", confusion).kappa == pytest.approx(expected)


def test_an_undefined_kappa_is_nan_and_never_zero(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path / "d", {"1": {}})
    nobody = compare_labels(dataset, a_table(tmp_path / "t.csv", "study_id,Edema", "2,1.0"))
    assert nobody.labels[0].n == 0
    assert math.isnan(nobody.labels[0].kappa)
    assert math.isnan(nobody.labels[0].agreement)
    always_blank = label_agreement("Edema", {(None, None): 3})
    assert math.isnan(always_blank.kappa)
    assert always_blank.agreement == 1.0


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("Airspace Opacity", "Lung Opacity"),
        ("enlarged cardiomegaly", "Enlarged Cardiomediastinum"),
        ("Enlarged Cardiom.", "Enlarged Cardiomediastinum"),
        (" pleural effusion ", "Pleural Effusion"),
    ],
)
def test_other_names_of_labels_are_known(tmp_path: Path, column: str, label: str) -> None:
    table = a_table(tmp_path / "t.csv", f"study_id,{column}", "1,-1")
    assert read_label_table(table) == {"1": {label: -1}}


def test_a_gzipped_table_reads_the_same(tmp_path: Path) -> None:
    plain = a_table(tmp_path / "t.csv", "study_id,Edema,Pneumonia", "1,1.0,", "2,-1.0,0.0")
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_label_table(packed) == read_label_table(plain)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no study_id column.*: none"),
        (b"Report Impression,Edema\nx,1\n", "no study_id column.*Report Impression"),
        (b"study_id,Oedema\n1,1\n", "none of the 14 label columns.*Oedema"),
        (b"study_id,Edema,edema\n1,1,1\n", "names a label twice"),
        (b"study_id,Edema\n1,1\n1,0\n", "line 3: study 1 occurs a second time"),
        (b"study_id,Edema\n1,maybe\n", "line 2, column 'Edema': expected 1, 0, -1 or blank"),
        (b"study_id,Edema\n1,2.0\n", "found '2.0'"),
        (b"study_id,Edema\n1\n", "line 2: expected 2 cells, found 1"),
        (b"study_id,Edema\n1,\xff\n", "not a CSV table in UTF-8"),
        (b'study_id,Edema\n1,"1\n', "not a CSV table"),
        (gzip.compress(b"study_id,Edema\n" + b"1,1\n" * 99, mtime=0)[:-9], "cut off or damaged"),
        (b"\x1f\x8b garbage", "cannot read|cut off or damaged"),
    ],
)
def test_a_bad_table_stops_with_its_place(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_label_table(path)
    assert "bad.csv" in str(error.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv: No such file"):
        read_label_table(tmp_path / "nowhere.csv")


def test_written_disagreements_cannot_run_as_formulas(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path / "d", {"=HYPERLINK(1)": {"Edema": -1}})
    table = a_table(tmp_path / "t.csv", "study_id,Edema", "=HYPERLINK(1),1")
    write_disagreements(tmp_path / "out.csv", compare_labels(dataset, table))
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["study_id", "label", "dataset", "table"],
        ["'=HYPERLINK(1)", "Edema", "uncertain", "positive"],
    ]
