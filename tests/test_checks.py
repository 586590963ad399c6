"""Checks: a planted leak, a flipped box, a wrong split and broken records are each named by row."""

from __future__ import annotations

import copy
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cot_builder.boxes import Box
from cot_builder.checks import (
    CHECKS,
    WHOLE,
    Entry,
    Given,
    check_study,
    compare_splits,
    compile_pairs,
    find_leaks,
    overlaps,
    regions_around,
)
from cot_builder.cli import app
from cot_builder.dataset import read_studies, study_row
from cot_builder.decompose import Decomposer
from cot_builder.decompose.grounded import attach_boxes
from cot_builder.labels import report_labels
from cot_builder.records import Grounded, Image, Report, Row, Section
from knowledge_banks import load_banks

BANKS = load_banks()
DECOMPOSER = Decomposer(BANKS)
GIVEN = Given(compile_pairs(BANKS), regions_around(BANKS))


def a_row(text: str, *, box: Box | None = None, view: str | None = "PA") -> Row:
    """A study with one image of 1000 x 800 pixels; the whole text is the phrase of the box."""
    grounded = (Grounded("findings", 0, len(text), None, (box,)),) if box else ()
    image = Image("a.png", "a", view, 1000, 800)
    report = Report(
        "s1", "p1", "table", "train", (Section("findings", text),), (image,), "t.csv:2", grounded
    )
    found = attach_boxes(DECOMPOSER.decompose(report.sections), report, DECOMPOSER)
    return study_row(report, found, report_labels(found.chains), bank_version=BANKS.version)


def a_box(x1: float, x2: float, **changes: Any) -> Box:
    image = {"width": 1000, "height": 800, "image_id": "a", "source": "x", "kind": "manual"}
    return Box(x1, 100, x2, 300, **{**image, **changes})


def problems(row: Row) -> list[tuple[str, str]]:
    found = list(check_study(row, GIVEN))
    assert all(problem.study_id == "s1" for problem in found)
    return [(problem.check, problem.detail) for problem in found]


# -- leakage


def entry(study: str, split: str | None, subject: str = "", *images: str, **more: str) -> Entry:
    dataset, source = more.get("dataset", "d"), more.get("source", "mimic")
    return Entry(dataset, source, study, subject or None, split, images)


LEAKS: dict[str, tuple[list[Entry], list[str]]] = {
    "a patient in train and test": (
        [entry("s1", "train", "p1"), entry("s2", "test", "p1")],
        ["subject p1 is in train (d, study s1), test (d, study s2)"],
    ),
    "a study in two datasets": (
        [entry("s1", "train", dataset="a"), entry("s1", "validation", dataset="b")],
        ["study s1 is in train (a, study s1), validation (b, study s1)"],
    ),
    "an image under another patient's name": (
        [entry("s1", "validation", "p1", "dicom-0001"), entry("s2", "test", "p2", "dicom-0001")],
        ["image dicom-0001 is in validation (d, study s1), test (d, study s2)"],
    ),
    "MIMIC's ids in a release that annotates it": (
        [entry("s1", "train", "p1"), entry("s2", "test", "p1", source="ms_cxr")],
        ["subject p1 is in train (d, study s1), test (d, study s2)"],
    ),
    "an NIH image, whatever its release calls the patient": (
        [
            entry("1", "train", "7", "00000007_001", source="nih"),
            entry("x", "test", "8", "00000007_001", source="boxes"),
        ],
        ["image 00000007_001 is in train (d, study 1), test (d, study x)"],
    ),
    "two studies of one patient in one split": (
        [entry("s1", "test", "p1"), entry("s2", "test", "p1")],
        [],
    ),
    "patients without an id": ([entry("s1", "train"), entry("s2", "test")], []),
    "patients numbered alike in releases that number their own": (
        [entry("x", "train", "7", source="nih"), entry("y", "test", "7", source="mimic")],
        [],
    ),
    "a study that is left out of all splits": (
        [entry("s1", None, "p1"), entry("s2", "test", "p1")],
        [],
    ),
}


@pytest.mark.parametrize("case", LEAKS)
def test_leaks_between_splits(case: str) -> None:
    entries, expected = LEAKS[case]
    assert [str(leak) for leak in find_leaks(entries)] == expected


def test_a_leak_over_three_splits_counts_in_each_pair() -> None:
    entries = [
        entry(f"s{n}", split, "p") for n, split in enumerate(("train", "validation", "test"))
    ]
    assert overlaps(find_leaks(entries)) == {
        ("subject", "train", "validation"): 1,
        ("subject", "train", "test"): 1,
        ("subject", "validation", "test"): 1,
    }


def a_table(path: Path, *rows: tuple[str, str, str]) -> Path:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["study", "patient", "split", "findings"])
        table.writerows((*row, f"The lungs are clear. Study {row[0]}.") for row in rows)
    return path


def run(*args: str | Path) -> tuple[int, str]:
    answer = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "300"})
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, answer.output


def build(table: Path, out: Path, *more: str) -> tuple[int, str]:
    columns = (
        "--id-column",
        "study",
        "--subject-column",
        "patient",
        "--findings-column",
        "findings",
    )
    where = ("--source", "table", "--root", table, "--out", out, "--workers", "1")
    return run("build", *where, *columns, *more)


def test_a_build_whose_splits_leak_stops_before_it_reads_a_report(tmp_path: Path) -> None:
    table = a_table(tmp_path / "t.csv", ("s1", "p1", "train"), ("s2", "p1", "test"))
    status, said = build(table, tmp_path / "out", "--split-column", "split")
    assert status == 1
    assert "subject p1 is in train (t.csv:2, study s1), test (t.csv:3, study s2)" in said
    assert not (tmp_path / "out").exists()


def test_a_leak_between_two_datasets_fails_the_check_and_is_named(tmp_path: Path) -> None:
    first = a_table(tmp_path / "a.csv", ("s1", "p1", "train"), ("s2", "p2", "validate"))
    second = a_table(tmp_path / "b.csv", ("s3", "p1", "test"), ("s4", "p3", "train"))
    a, b = tmp_path / "a", tmp_path / "b"
    for table, out in ((first, a), (second, b)):
        assert build(table, out, "--split-column", "split")[0] == 0
        assert run("check", out)[0] == 0
    listed = tmp_path / "problems.jsonl"
    status, said = run("check", a, b, "--out", listed)
    assert status == 1
    assert f"subject p1 is in train ({a}, study s1), test ({b}, study s3)" in said
    assert [json.loads(line) for line in listed.read_text().splitlines()] == [
        {
            "check": "leakage",
            "study_id": "s3",
            "detail": f"subject p1 is in train ({a}, study s1), test ({b}, study s3)",
            "severity": "error",
            "dataset": str(b),
        }
    ]


def test_a_dataset_without_splits_is_training_data(tmp_path: Path) -> None:
    plain = a_table(tmp_path / "a.csv", ("s1", "p1", ""))
    test = a_table(tmp_path / "b.csv", ("s2", "p1", "test"))
    assert build(plain, tmp_path / "a")[0] == 0
    assert build(test, tmp_path / "b", "--split-column", "split")[0] == 0
    status, said = run("check", tmp_path / "a", tmp_path / "b")
    assert status == 1
    assert f"subject p1 is in train ({tmp_path / 'a'}, study s1), test" in said


# -- MIMIC-CXR's own split


def mimic_splits(folder: Path, *rows: tuple[str, str]) -> Path:
    (folder / "mimic-cxr-jpg").mkdir(parents=True)
    lines = [f"dicom{study},{study},1{study},{split}" for study, split in rows]
    path = folder / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-split.csv"
    path.write_text("\n".join(["dicom_id,study_id,subject_id,split", *lines]) + "\n")
    return folder


def test_a_split_that_is_not_mimics_fails_the_check(tmp_path: Path) -> None:
    root = mimic_splits(tmp_path / "mimic", ("501", "train"), ("502", "test"), ("503", "validate"))
    rows = (
        ("501", "p1", "train"),
        ("502", "p2", "train"),
        ("503", "p3", "val"),
        ("9", "p4", "test"),
    )
    assert (
        build(a_table(tmp_path / "t.csv", *rows), tmp_path / "out", "--split-column", "split")[0]
        == 0
    )
    assert run("check", tmp_path / "out")[0] == 0
    status, said = run("check", tmp_path / "out", "--mimic-root", root)
    assert status == 1
    assert f"error official_split {tmp_path / 'out'} 502" in said
    assert "study 502 is in train; MIMIC-CXR has it in test" in said
    assert "4 studies, 2 in MIMIC-CXR's split, 1 in another, 1 not in its table" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "found no mimic-cxr-2.*-split.csv"),
        ("dicom_id,study_id,subject_id,split\nd,501,1,tset\n", "split table is broken"),
        ("dicom_id,study_id,subject_id,split\nd,501,1\n", "split table is broken"),
        ("dicom_id,study_id\nd,501\n", "has no column 'split'"),
    ],
)
def test_a_split_table_that_cannot_be_trusted_stops_the_check(
    tmp_path: Path, content: str | None, says: str
) -> None:
    build(a_table(tmp_path / "t.csv", ("501", "p1", "train")), tmp_path / "out")
    root = tmp_path / "mimic"
    root.mkdir()
    if content:
        (root / "mimic-cxr-2.0.0-split.csv").write_text(content)
    status, said = run("check", tmp_path / "out", "--mimic-root", root)
    assert (status, says in said) == (1, True), said


def test_the_authors_filter_on_rows_of_their_shape() -> None:
    """MS-CXR says `val` where MIMIC-CXR says `validate`: comparing the words loses all of those."""
    mscxr = [
        *[("train", "train")] * 850, *[("test", "test")] * 28,
        *[("val", "validate")] * 200, *[("train", "validate")] * 60, *[("train", "test")] * 40,
        *[("test", "train")] * 45, *[("test", "validate")] * 4,
    ]  # fmt: skip
    counts = compare_splits(mscxr)
    assert (counts.rows, counts.same_words, counts.agree) == (1227, 878, 1078)
    assert counts.spelt == {("val", "validate"): 200}
    assert counts.differ.total() == 149
    assert counts.rows == counts.agree + counts.differ.total() + counts.not_listed
    phase_2 = compare_splits([("train", "train")] * 240)
    assert (phase_2.rows, phase_2.same_words, phase_2.differ) == (240, 240, Counter())
    phase_3 = compare_splits(
        [*[("train", "train")] * 1601, *[("validate", "validate")] * 506, *[("test", "test")] * 8,
         *[("validate", "train")] * 300, *[("train", "validate")] * 92]
    )  # fmt: skip
    assert (phase_3.rows, phase_3.same_words) == (2507, 2115)
    assert phase_3.differ == {("validate", "train"): 300, ("train", "validate"): 92}
    unlisted = compare_splits([("train", None), ("", "train"), (None, "test")])
    assert (unlisted.not_listed, unlisted.agree, unlisted.differ.total()) == (1, 0, 2)


# -- sides

LEFT, RIGHT, BOTH = "Small left effusion.", "Opacity in the right lower lobe.", "Edema."
SIDES: list[tuple[str, tuple[float, float], str | None, bool]] = [
    (LEFT, (600, 900), "PA", True),
    (LEFT, (100, 400), "PA", False),
    (LEFT, (100, 400), "AP", False),
    (LEFT, (100, 400), None, False),
    (LEFT, (100, 400), "Frontal", False),
    (LEFT, (100, 400), "LATERAL", True),
    (LEFT, (100, 400), "LL", True),
    (LEFT, (300, 520), "PA", True),  # centre at 0.41: within the tolerance
    (LEFT, (300, 480), "PA", False),
    (RIGHT, (100, 400), "PA", True),
    (RIGHT, (600, 900), "PA", False),
    (BOTH, (100, 400), "PA", True),
    ("Small left apical pneumothorax.", (100, 400), "PA", False),
    ("Mild cardiomegaly.", (100, 400), "PA", True),
]


@pytest.mark.parametrize(("text", "x", "view", "fine"), SIDES)
def test_a_chains_side_against_its_box(
    text: str, x: tuple[float, float], view: str | None, fine: bool
) -> None:
    found = problems(a_row(text, box=a_box(*x), view=view))
    assert [check for check, _ in found] == ([] if fine else ["sides"])


def test_a_flipped_box_is_named() -> None:
    ((_, said),) = problems(a_row(LEFT, box=a_box(100, 400)))
    assert "'Small left effusion' (findings, Pleural Effusion positive) is left (left lung)" in said
    assert "box 100, 100, 400, 300 of a lies in the left half of the image" in said
    assert "patient's right" in said


def test_one_box_on_its_side_is_enough() -> None:
    """A phrase of two findings lends each of its chains the boxes of both."""
    row = a_row(LEFT, box=a_box(600, 900))
    row["chains"][0]["boxes"].append(a_box(100, 400).to_row())
    assert problems(row) == []


def test_a_flipped_box_fails_the_command(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(
        "image,phrase,width,height,x1,y1,x2,y2\n"
        "one.png,small left effusion,1000,800,600,100,900,300\n"
        "two.png,small left effusion,1000,800,100,100,400,300\n"
    )
    where = ("--source", "boxes", "--root", tmp_path / "b.csv", "--out", tmp_path / "out")
    how = ("--box-columns", "x1,y1,x2,y2", "--box-format", "xyxy", "--workers", "1")
    status, said = run("build", *where, *how)
    assert status == 0, said
    status, said = run("check", tmp_path / "out")
    assert status == 1
    assert f"error sides {tmp_path / 'out'} two: 'small left effusion'" in said
    assert "out one" not in said


# -- contradictions

CONTRADICTIONS: list[tuple[str, list[str]]] = [
    ("The lungs are clear. Small left lower lobe consolidation.", ["clear_lungs"]),
    ("The lungs are clear. No focal consolidation.", []),
    ("The lungs are clear. Small left effusion.", []),
    ("Lungs are otherwise clear. Stable right upper lobe nodule.", []),
    ("The lungs are clear except for mild bibasilar atelectasis.", []),
    ("Calcified granuloma. The lungs are clear.", []),
    ("Lungs are hypoinflated but clear.", []),
    ("The right lung is clear. Left lower lobe consolidation.", []),
    ("The left lung is clear. Left lower lobe consolidation.", ["clear_lungs"]),
    ("The upper lungs are clear. Left lower lobe consolidation.", []),
    ("The lungs are clear. Possible pneumonia.", []),
    ("Low lung volumes. Left tension pneumothorax.", ["low_volume_with_tension"]),
    ("Low left lung volume. Right tension pneumothorax.", []),
    ("Low lung volumes. Left pneumothorax.", []),
    ("Low lung volumes. Left pneumothorax without evidence of tension.", []),
    ("Low lung volumes. No tension pneumothorax.", []),
    ("Lung volumes are low. The lungs are hyperinflated.", ["low_volume_with_hyper"]),
    ("No acute cardiopulmonary abnormality. Right lower lobe pneumonia.", ["nothing_acute"]),
    ("No acute cardiopulmonary abnormality. No pneumonia.", []),
    ("Heart size is normal. Moderate cardiomegaly.", ["both_ways_in_a_report"]),
    ("Heart size is normal. No cardiomegaly.", []),
    ("No pneumothorax. Small right pneumothorax.", []),  # the one speaks of both lungs
    ("No large left effusion. Small left effusion.", []),
    (
        "No left pleural effusion, small left pleural effusion.",
        ["both_ways_in_a_report", "both_ways_in_a_sentence"],
    ),
    ("No right effusion and small left effusion.", []),
]


@pytest.mark.parametrize(("text", "expected"), CONTRADICTIONS)
def test_pairs_that_do_not_go_together(text: str, expected: list[str]) -> None:
    found = problems(a_row(text))
    assert {check for check, _ in found} <= {"contradictions"}
    assert len(found) == len(expected), found
    assert all(said.startswith(name) for (_, said), name in zip(found, expected, strict=True))


def test_a_contradiction_names_both_mentions_and_says_why() -> None:
    (found,) = check_study(a_row("Low lung volumes. Left tension pneumothorax."), GIVEN)
    assert found.severity == "error"
    assert "'Low lung volumes' (findings, Atelectasis positive)" in found.detail
    assert "'Left tension pneumothorax' (findings, Pneumothorax positive)" in found.detail
    assert "its volume cannot be low" in found.detail


def test_a_bank_of_ones_own_adds_a_pair(tmp_path: Path) -> None:
    (tmp_path / "contradictions.toml").write_text(
        'version = "1.0.1"\nextends = true\n[[pair]]\nid = "mine"\nwhy = "because"\n'
        'severity = "error"\none = { labels = ["Fracture"] }\nother = { labels = ["Edema"] }\n'
    )
    given = GIVEN._replace(pairs=compile_pairs(load_banks(tmp_path)))
    (found,) = check_study(a_row("Rib fracture. Pulmonary edema."), given)
    assert found.detail.startswith("mine: 'Rib fracture'")


# -- records

BAD_ROWS: dict[str, tuple[Any, str, str]] = {
    "an offset that is off by one": (
        lambda row: row["chains"][0].update(start=1, end=1 + len(row["chains"][0]["finding"])),
        "offsets", "characters 1 to 20 of findings are 'mall left effusion.'",
    ),
    "an unmapped finding of another section": (
        lambda row: row["unmapped"][0].update(section="impression"),
        "offsets", "of impression are ''",
    ),
    "a label that no chain states": (
        lambda row: row["labels"].update(Edema=1), "labels", "label Edema is 1",
    ),
    "a label that was lost": (
        lambda row: row["labels"].update({"Pleural Effusion": None}),
        "labels", "label Pleural Effusion is None; its chains make it 1",
    ),
    "regions out of order": (
        lambda row: row["unmapped"][0].update(regions=["trachea", "spine"]),
        "records", "in bank order",
    ),
    "a region of one's own": (
        lambda row: row["unmapped"][0].update(regions=["lingula"]), "records", "'lingula'",
    ),
    "a disease of one's own": (
        lambda row: row["chains"][0].update(disease="Effusion"), "records", "'Effusion'",
    ),
    "an empty box": (
        lambda row: row["chains"][0]["boxes"][0].update(x2=600.0), "records", "box_empty",
    ),
    "a box on another image": (
        lambda row: row["chains"][0]["boxes"][0].update(image_id="b"),
        "boxes", "is on no image of the study",
    ),
    "a box of another size of the image": (
        lambda row: row["chains"][0]["boxes"][0].update(width=2000, x1=1200.0, x2=1800.0),
        "boxes", "is for 2000 x 800 pixels; the image has 1000 x 800",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_records_that_are_not_sound(case: str) -> None:
    row = a_row("Small left effusion. Scoliosis.", box=a_box(600, 900))
    assert problems(row) == []
    assert [len(row["chains"]), len(row["unmapped"])] == [1, 1]
    spoil, check, says = BAD_ROWS[case]
    bad = copy.deepcopy(row)
    spoil(bad)
    found = problems(bad)
    assert check in {name for name, _ in found}
    assert any(says in said for name, said in found if name == check), found


def test_a_dataset_that_was_changed_after_its_build(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(a_table(tmp_path / "t.csv", ("s1", "p1", ""), ("s2", "p2", "")), out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["counts"]["written"] = 3
    manifest["splits"]["unsplit"]["written"] = 3
    manifest["chains"]["No Finding"]["positive"] = 1
    manifest["shards"][0]["sha256"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    status, said = run("check", out)
    assert status == 1
    assert "train-00000-of-00001.parquet is not the file that the build wrote" in said
    assert "studies: the rows have 2, the manifest 3" in said
    assert "studies of split unsplit: the rows have 2, the manifest 3" in said
    assert "chains No Finding positive: the rows have 2, the manifest 1" in said


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    build(a_table(tmp_path / "t.csv", ("s1", "p1", "")), tmp_path / "out")
    (tmp_path / "out" / "train-00000-of-00001.parquet").unlink()
    status, said = run("check", tmp_path / "out")
    assert status == 1
    assert "train-00000-of-00001.parquet is missing" in said


# -- the command


def test_the_demo_has_no_errors_and_every_check_has_its_line(tmp_path: Path) -> None:
    run("build", "--source", "demo", "--out", tmp_path / "demo", "--workers", "1")
    status, said = run("check", tmp_path / "demo")
    assert status == 0
    assert len(list(read_studies(tmp_path / "demo"))) > 10
    assert all(f" {name} " in said for name in (*WHOLE, *CHECKS))


def test_a_broken_out_path_is_one_line(tmp_path: Path) -> None:
    build(a_table(tmp_path / "t.csv", ("s1", "p1", "")), tmp_path / "out")
    status, said = run("check", tmp_path / "out", "--out", tmp_path / "no" / "p.jsonl")
    assert status == 1
    assert "--out" in said
    assert "cannot be written" in said
