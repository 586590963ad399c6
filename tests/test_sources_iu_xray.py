"""Open-i's XML files and Kaggle's tables, invented, and the real ones where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cot_builder.errors import UserError
from cot_builder.records import Rejected, Report
from cot_builder.sources import Plan, SourceOptions, get_source
from knowledge_banks import load_banks

BANKS = load_banks()
REAL = Path("/work/shared/data/iu_xray")


def xml(
    number: int, findings: str = "Lungs are XXXX clear.", *, images: tuple[str, ...] = ()
) -> str:
    parents = "".join(f'<parentImage id="{image}"><panel/></parentImage>' for image in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><uId id="CXR{number}"/><Abstract>'
        '<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">Cough</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        '<AbstractText Label="IMPRESSION">Normal  chest.</AbstractText></Abstract>'
        f"{parents}</eCitation>"
    )


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def png(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (30, 20)).save(path)


def read(root: Path, **options: object) -> tuple[Plan, list[Report], list[Rejected]]:
    chosen = SourceOptions(root=root, banks=BANKS, **options)  # type: ignore[arg-type]
    source = get_source("iu_xray")
    plan = source.plan(chosen)
    answers = [source.load(task, chosen) for task in plan.tasks]
    reports = [answer.report for answer in answers if answer.report]
    return plan, reports, plan.rejects + [r for answer in answers for r in answer.rejects]


def make_openi(root: Path, folder: str = "ecgen-radiology") -> Path:
    images = ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001")
    write(root / folder / "1.xml", xml(1, images=images))
    write(root / folder / "2.xml", xml(2, images=("CXR2_IM-0652-1001",)))
    write(root / folder / "10.xml", xml(10))
    return root


def make_kaggle(root: Path) -> Path:
    write(
        root / "indiana_reports.csv",
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        '1,normal,normal,Chest,"Cough, fever",,Lungs are XXXX clear.,Normal chest.\n'
        "10,normal,normal,Chest,,,,Normal.\n"
        "2,normal,normal,Chest,,,,\n",
    )
    write(
        root / "indiana_projections.csv",
        "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n"
        "1,1_IM-0001-3001.dcm.png,Lateral\n10,10_IM-0002-1001.dcm.png,Frontal\n",
    )
    return root


@pytest.mark.parametrize("folder", ["ecgen-radiology", ".", "NLMCXR_reports/ecgen-radiology"])
def test_openi(tmp_path: Path, folder: str) -> None:
    plan, reports, rejects = read(make_openi(tmp_path, folder))
    assert not rejects
    assert (
        [r.study_id for r in reports]
        == [r.subject_id for r in reports]
        == ["CXR1", "CXR2", "CXR10"]
    )
    assert dict(reports[0].sections) == {
        "indication": "Cough", "findings": "Lungs are XXXX clear.", "impression": "Normal chest.",
    }  # fmt: skip
    assert {r.split for r in reports} == {None}
    assert "0 of 3 images" in plan.notes[1]


IMAGES = {  # folder, file -> the name of the image
    ("images", "CXR1_1_IM-0001-3001.png"): "CXR1_1_IM-0001-3001",
    ("NLMCXR_png", "CXR1_1_IM-0001-3001.png"): "CXR1_1_IM-0001-3001",
    ("images/images_normalized", "1_IM-0001-3001.dcm.png"): "1_IM-0001-3001",
    (".", "CXR1_1_IM-0001-3001.jpg"): "CXR1_1_IM-0001-3001",
}


@pytest.mark.parametrize("place", IMAGES)
@pytest.mark.parametrize("form", ["openi", "kaggle"])
def test_images_on_the_disk(tmp_path: Path, place: tuple[str, str], form: str) -> None:
    make_kaggle(make_openi(tmp_path))
    png(tmp_path / Path(*place))
    _, reports, _ = read(tmp_path, iu_format=form)
    (image,) = reports[0].images
    assert image.path == Path(*place).as_posix()
    assert image[1:] == (IMAGES[place], "Lateral", 30, 20)


def test_kaggle(tmp_path: Path) -> None:
    plan, reports, rejects = read(make_kaggle(tmp_path))
    assert [r.study_id for r in reports] == ["CXR1", "CXR10"]
    assert dict(reports[0].sections) == {
        "indication": "Cough, fever", "findings": "Lungs are XXXX clear.",
        "impression": "Normal chest.",
    }  # fmt: skip
    assert [(r.reason, r.study_id, r.file) for r in rejects] == [
        ("empty_report", "CXR2", "indiana_reports.csv:4")
    ]
    assert "0 of 3 images" in plan.notes[1]


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
BAD = {  # content of ecgen-radiology/3.xml -> reason, word
    "empty": (b"", "empty_report", ""),
    "no text": (b'<e><uId id="CXR3"/><AbstractText Label="FINDINGS"/></e>', "empty_report", ""),
    "entities": (f"{LAUGHS}<e>&b;</e>".encode(), "malformed_xml", "document type"),
    "entities in UTF-16": (f"{LAUGHS}<e>&b;</e>".encode("utf-16"), "not_utf8", "byte 0"),
    "cut": (xml(3).encode()[:200], "malformed_xml", "line"),
    "latin-1": (xml(3, "caf\xe9").encode("latin-1"), "not_utf8", "byte"),
    "another study": (xml(4).encode(), "id_mismatch", "'CXR4'"),
    "too large": (xml(3, "Clear. " * 750_000).encode(), "report_too_large", "5,2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_xml(tmp_path: Path, case: str) -> None:
    content, reason, word = BAD[case]
    write(make_openi(tmp_path) / "ecgen-radiology/3.xml", content)
    _, reports, rejects = read(tmp_path)
    assert [(r.reason, r.study_id, r.file) for r in rejects] == [
        (reason, "CXR3", "ecgen-radiology/3.xml")
    ]
    assert word in rejects[0].detail
    assert len(reports) == 3


def test_odd_and_double_files(tmp_path: Path) -> None:
    make_openi(tmp_path)
    write(tmp_path / "ecgen-radiology/CXR1.xml", xml(1))
    write(tmp_path / "ecgen-radiology/notes.xml", xml(1))
    _, reports, rejects = read(tmp_path)
    assert [r.reason for r in rejects] == ["duplicate_id", "file_not_in_list"]
    assert len(reports) == 3


def test_bad_rows(tmp_path: Path) -> None:
    make_kaggle(tmp_path)
    with (tmp_path / "indiana_reports.csv").open("a") as file:
        file.write("x,,,,,,,\n1,,,,,,Again.,\n7,short\n")
    with (tmp_path / "indiana_projections.csv").open("a") as file:
        file.write("1,../../secret.png,Frontal\n")
    _, reports, rejects = read(tmp_path)
    assert [(r.reason, r.file) for r in rejects] == [
        ("malformed_row", "indiana_projections.csv:5"),
        ("malformed_row", "indiana_reports.csv:5"),
        ("duplicate_id", "indiana_reports.csv:6"),
        ("malformed_row", "indiana_reports.csv:7"),
        ("empty_report", "indiana_reports.csv:4"),
    ]
    assert len(reports) == 2


SPLITS = {
    "ids": {"train": ["CXR1_IM-0001"], "val": ["CXR2_IM-0652-0001"], "test": ["CXR10"]},
    "R2Gen": {
        "train": [{"id": "CXR1_IM-0001", "split": "train"}],
        "val": [{"id": "CXR2_IM-0652", "split": "val"}],
        "test": [{"id": "CXR10_IM-0002", "split": "test"}],
    },
    "blank key": {"train": ["1"], "val ": ["2"], "    ": ["10"]},
}


@pytest.mark.parametrize("form", SPLITS)
def test_splits(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "splits.json", json.dumps(SPLITS[form]))
    _, reports, rejects = read(make_openi(tmp_path), splits=path)
    assert not rejects
    assert [r.split for r in reports] == ["train", "validation", "test"]


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    table = {"train": ["CXR1", "CXR99", 5.5], "test": ["CXR1"], "odd": ["CXR2"]}
    path = write(tmp_path / "splits.json", json.dumps(table))
    _, reports, rejects = read(make_openi(tmp_path), splits=path)
    assert sorted((r.reason, r.study_id or "") for r in rejects) == [
        ("malformed_row", ""),
        ("no_split", "CXR10"),
        ("report_missing", "CXR99"),
        ("split_conflict", "CXR1"),
        ("unknown_split", "CXR2"),
    ]
    assert not reports


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"train": 1}', "{'train': []}", b"\xff"])
def test_broken_split_file(tmp_path: Path, content: str | bytes) -> None:
    path = write(tmp_path / "splits.json", content)
    with pytest.raises(UserError, match=r"splits\.json"):
        read(make_openi(tmp_path), splits=path)


def test_wrong_roots(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither N\.xml nor indiana_reports\.csv"):
        read(tmp_path)
    make_openi(tmp_path)
    with pytest.raises(UserError, match=r"no indiana_reports\.csv"):
        read(tmp_path, iu_format="kaggle")
    with pytest.raises(UserError, match="no such"):
        read(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path, splits=tmp_path / "none.json")


@pytest.mark.skipif(not REAL.is_dir(), reason="the IU X-Ray sample is not on this machine")
def test_real_files_agree() -> None:
    _, openi, rejects = read(REAL)
    assert {r.reason for r in rejects} == {"empty_report"}
    assert len(openi) + len(rejects) == 459
    _, kaggle, _ = read(REAL, iu_format="kaggle")
    by_id = {report.study_id: report for report in openi}
    for report in kaggle:
        assert (report.sections, report.images) == (
            tuple(s for s in report.sections if s.text), by_id[report.study_id].images,
        )  # fmt: skip
        assert report.section("findings") == by_id[report.study_id].section("findings")
    assert sum(len(report.images) for report in openi) == 13
    _, split, _ = read(REAL, splits=REAL / "r2gen_split_ids.json")
    assert {r.split for r in split} <= {"train", "validation", "test"}
