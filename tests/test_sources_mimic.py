"""MIMIC-CXR trees, whole and broken, invented in a temporary folder."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cot_builder.errors import UserError
from cot_builder.records import Rejected, Report
from cot_builder.sources import Plan, SourceOptions, get_source
from knowledge_banks import load_banks

BANKS = load_banks()
SYNTH = Path("/work/shared/data/mimic_synth")
TEXT = " FINAL REPORT\n FINDINGS:  The lungs are clear.\n"
STUDIES = {  # study -> subject, split, views
    "50000001": ("10000001", "train", ("PA", "LATERAL")),
    "50000002": ("10000001", "train", ("",)),
    "50000003": ("11000002", "validate", ("AP",)),
    "50000004": ("12000003", "test", ("AP",)),
}


def jpg(size: tuple[int, int] = (30, 20)) -> bytes:
    file = BytesIO()
    Image.effect_noise(size, 64).save(file, "JPEG")
    return file.getvalue()


def folder(study: str) -> str:
    subject = STUDIES[study][0]
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def dicom_id(study: str, number: int) -> str:
    return f"{study}-aaaaaaaa-bbbbbbbb-cccccccc-0000000{number}"


def make_tree(
    root: Path,
    *,
    reports: str = "mimic-cxr",
    images: str | None = "mimic-cxr-jpg",
    gz: str = "",
    study_list: bool = True,
    jpgs: bool = True,
) -> Path:
    listed, metadata, split = (
        ["subject_id,study_id,path"],
        ["dicom_id,subject_id,study_id,ViewPosition,Rows,Columns"],
        ["dicom_id,study_id,subject_id,split"],
    )
    for study, (subject, part, views) in STUDIES.items():
        write(root / reports / f"{folder(study)}.txt", TEXT)
        listed.append(f"{subject},{study},{folder(study)}.txt")
        for number, view in enumerate(views):
            image = dicom_id(study, number)
            metadata.append(f"{image},{subject},{study},{view},20,30")
            split.append(f"{image},{study},{subject},{part}")
            if images and jpgs:
                write(root / images / folder(study) / f"{image}.jpg", jpg())
    if study_list:
        write(root / reports / f"cxr-study-list.csv{gz}", "\n".join(listed))
    if images:
        write(root / images / f"mimic-cxr-2.0.0-metadata.csv{gz}", "\n".join(metadata))
        write(root / images / f"mimic-cxr-2.0.0-split.csv{gz}", "\n".join(split))
    return root


def read(root: Path, **options: object) -> tuple[Plan, list[Report], list[Rejected]]:
    chosen = SourceOptions(root=root, banks=BANKS, **options)  # type: ignore[arg-type]
    source = get_source("mimic")
    plan = source.plan(chosen)
    answers = [source.load(task, chosen) for task in plan.tasks]
    reports = [answer.report for answer in answers if answer.report]
    assert all(answer.report or answer.rejects for answer in answers)
    return plan, reports, plan.rejects + [r for answer in answers for r in answer.rejects]


LAYOUTS: dict[str, dict[str, object]] = {
    "side by side": {},
    "gzipped tables": {"gz": ".gz"},
    "folder walk": {"study_list": False},
    "reports folder": {"reports": "mimic-cxr-reports"},
    "versions": {"reports": "mimic-cxr/2.1.0", "images": "mimic-cxr-jpg/2.1.0"},
    "wget": {
        "reports": "physionet.org/files/mimic-cxr/2.1.0",
        "images": "physionet.org/files/mimic-cxr-jpg/2.1.0",
    },
    "one folder for all": {"reports": ".", "images": "."},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    make_tree(tmp_path, **LAYOUTS[layout])  # type: ignore[arg-type]
    _, reports, rejects = read(tmp_path)
    assert rejects == []
    assert [(r.study_id, r.subject_id, r.split) for r in reports] == [
        (study, subject, {"validate": "validation"}.get(split, split))
        for study, (subject, split, _) in STUDIES.items()
    ]
    assert [image.view for image in reports[0].images] == ["PA", "LATERAL"]
    assert reports[1].images[0].view is None
    assert {(i.width, i.height) for r in reports for i in r.images} == {(30, 20)}
    assert all((tmp_path / image.path).is_file() for r in reports for image in r.images)
    assert all((tmp_path / r.file).is_file() for r in reports)
    assert reports[0].section("findings") == "The lungs are clear."


def test_the_folder_itself_as_root(tmp_path: Path) -> None:
    make_tree(tmp_path)
    plan, reports, rejects = read(tmp_path / "mimic-cxr")
    assert len(reports) == 4
    assert not rejects
    assert {r.split for r in reports} == {None}
    assert any("no split table" in note for note in plan.notes)


def test_images_from_other_lists(tmp_path: Path) -> None:
    make_tree(tmp_path)
    jpgs = tmp_path / "mimic-cxr-jpg"
    names = [path.relative_to(jpgs).as_posix() for path in sorted(jpgs.rglob("*.jpg"))]
    (jpgs / "mimic-cxr-2.0.0-metadata.csv").unlink()
    expected = {study: len(views) for study, (_, _, views) in STUDIES.items()}

    def found() -> dict[str, int]:
        _, reports, rejects = read(tmp_path)
        assert not rejects
        assert {(i.width, i.height) for r in reports for i in r.images} == {(30, 20)}
        return {report.study_id: len(report.images) for report in reports}

    assert found() == expected  # the folders
    records = [
        f"{STUDIES[s][0]},{s},{dicom_id(s, n)},{folder(s)}/{dicom_id(s, n)}.dcm"
        for s, (_, _, views) in STUDIES.items()
        for n in range(len(views))
    ]
    header = "subject_id,study_id,dicom_id,path"
    write(tmp_path / "mimic-cxr/cxr-record-list.csv.gz", "\n".join([header, *records]))
    assert found() == expected
    write(jpgs / "IMAGE_FILENAMES", "\n".join(names))
    assert found() == expected
    shutil.rmtree(jpgs)
    _, reports, rejects = read(tmp_path)
    assert not rejects
    assert (
        reports[0].images[0].path == f"mimic-cxr/{folder('50000001')}/{dicom_id('50000001', 0)}.dcm"
    )


@pytest.mark.parametrize("layout", ["versions", "wget"])
def test_images_without_tables_below_a_version(tmp_path: Path, layout: str) -> None:
    make_tree(tmp_path, **LAYOUTS[layout])  # type: ignore[arg-type]
    for table in tmp_path.rglob("mimic-cxr-2.0.0-*.csv*"):
        table.unlink()
    _, reports, rejects = read(tmp_path)
    assert not rejects
    assert [len(r.images) for r in reports] == [len(views) for _, _, views in STUDIES.values()]


def test_tables_without_image_files(tmp_path: Path) -> None:
    make_tree(tmp_path, jpgs=False)
    plan, reports, rejects = read(tmp_path)
    assert not rejects
    assert [len(report.images) for report in reports] == [2, 1, 1, 1]
    assert any("no image files" in note for note in plan.notes)


Damage = Callable[[Path], object]


def append(path: str, text: str | bytes) -> Damage:
    def damage(root: Path) -> None:
        with (root / path).open("ab") as file:
            file.write(b"\n" + (text if isinstance(text, bytes) else text.encode()))

    return damage


def put(path: str, content: str | bytes) -> Damage:
    return lambda root: write(root / path, content)


def replace(path: str, old: str, new: str) -> Damage:
    return lambda root: write(root / path, (root / path).read_text().replace(old, new))


def cut(path: str) -> Damage:
    def damage(root: Path) -> None:
        rows = "\n".join(f"id{n},{n % 7}{n:07},1,train" for n in range(50_000))
        whole = gzip.compress(f"{(root / path).read_text()}\n{rows}".encode())
        (root / path).unlink()
        (root / f"{path}.gz").write_bytes(whole[: len(whole) // 2])

    return damage


REPORT = f"mimic-cxr/{folder('50000002')}.txt"
IMAGE = f"mimic-cxr-jpg/{folder('50000002')}/{dicom_id('50000002', 0)}.jpg"
LIST, SPLIT = "mimic-cxr/cxr-study-list.csv", "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv"
METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv"
# what is done -> the damage, the reject's reason, its file, a word of its detail, reports left
BAD: dict[str, tuple[Damage, str, str, str, int]] = {
    "empty": (put(REPORT, ""), "empty_report", REPORT, "", 3),
    "blank": (put(REPORT, " \n \n"), "empty_report", REPORT, "", 3),
    "headings only": (put(REPORT, " FINAL REPORT\n FINDINGS:\n"), "empty_report", REPORT, "", 3),
    "latin-1": (put(REPORT, b"FINDINGS: caf\xe9."), "not_utf8", REPORT, "byte 13 is 0xe9", 3),
    "too large": (put(REPORT, "Clear. " * 750_000), "report_too_large", REPORT, "5,250,000", 3),
    "missing": (lambda root: (root / REPORT).unlink(), "report_missing", REPORT, "", 3),
    "a folder": (
        lambda root: ((root / REPORT).unlink(), (root / REPORT).mkdir()),
        "unreadable", REPORT, "directory", 3,
    ),
    "stray": (
        put("mimic-cxr/files/p10/p10000001/s59999999.txt", TEXT),
        "file_not_in_list", "mimic-cxr/files/p10/p10000001/s59999999.txt", "study-list", 4,
    ),
    "twice": (
        append(LIST, f"10000001,50000002,{folder('50000001')}.txt"), "duplicate_id", "", "", 4),
    "outside": (append(LIST, "10000001,50000009,../../../etc/passwd"), "path_outside_root",
                f"{LIST}:6", "passwd", 4),
    "absolute": (append(LIST, "10000001,50000009,/etc/passwd"), "path_outside_root", f"{LIST}:6",
                 "passwd", 4),
    "short row": (append(LIST, "10000001"), "malformed_row", f"{LIST}:6", "1 fields", 4),
    "no id": (append(LIST, "p1,s2,files/x.txt"), "malformed_row", f"{LIST}:6", "'p1'", 4),
    "open quote": (append(LIST, '10000001,"50000009,files'), "malformed_row", f"{LIST}:6", "quotes",
                   4),
    "row not UTF-8": (append(LIST, b"10000001,\xff,files"), "not_utf8", f"{LIST}:6", "byte 9", 4),
    "unknown split": (replace(SPLIT, "validate", "dev"), "unknown_split", f"{SPLIT}:5", "'dev'", 3),
    "two splits": (
        append(SPLIT, "x,50000001,10000001,test"), "split_conflict", f"{SPLIT}:7", "'train'", 3),
    "no split": (replace(SPLIT, "50000004,", "50000009,"), "no_split", "", SPLIT, 3),
    "metadata row": (append(METADATA, "../x,10000001,50000001,PA,1,1"), "malformed_row",
                     f"{METADATA}:7", "'../x'", 4),
    "image missing": (lambda root: (root / IMAGE).unlink(), "image_missing", IMAGE, "", 4),
    "image cut": (put(IMAGE, jpg()[:-40]), "image_truncated", IMAGE, "", 4),
    "image of text": (put(IMAGE, "no image"), "image_unreadable", IMAGE, "", 4),
    "split table cut": (cut(SPLIT), "table_truncated", f"{SPLIT}.gz", "lines could be read", 4),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_becomes_a_reject(tmp_path: Path, case: str) -> None:
    damage, reason, file, words, left = BAD[case]
    damage(make_tree(tmp_path))
    _, reports, rejects = read(tmp_path)
    assert [r.reason for r in rejects] == [reason]
    (reject,) = rejects
    assert reject.source == "mimic"
    assert file in (reject.file, "")
    assert words in reject.detail
    assert reject.detail
    assert len(reports) == left


def test_a_list_that_ends_too_early_loses_nothing_silently(tmp_path: Path) -> None:
    make_tree(tmp_path, gz=".gz")
    path = tmp_path / f"{LIST}.gz"
    path.write_bytes(path.read_bytes()[:-30])
    _, reports, rejects = read(tmp_path)
    assert rejects[0].reason == "table_truncated"
    assert rejects[0].file == f"{LIST}.gz"
    assert len(reports) + sum(r.reason == "file_not_in_list" for r in rejects) == 4


def test_a_broken_image_leaves_the_study(tmp_path: Path) -> None:
    make_tree(tmp_path)
    image = dicom_id("50000001", 0)
    write(tmp_path / f"mimic-cxr-jpg/{folder('50000001')}/{image}.jpg", jpg()[:-40])
    _, reports, _ = read(tmp_path)
    assert [i.image_id for i in reports[0].images] == [dicom_id("50000001", 1)]


def test_check_images_decodes(tmp_path: Path) -> None:
    make_tree(tmp_path)
    _, reports, rejects = read(tmp_path, check_images=True)
    assert not rejects
    assert len(reports) == 4


def test_walk_without_a_list_sets_odd_files_aside(tmp_path: Path) -> None:
    make_tree(tmp_path, study_list=False)
    write(tmp_path / "mimic-cxr/files/p10/p10000001/notes.txt", "x")
    write(tmp_path / "mimic-cxr/files/p11/p11000002/s50000001.txt", TEXT)
    _, reports, rejects = read(tmp_path)
    assert sorted(r.reason for r in rejects) == ["duplicate_id", "file_not_in_list"]
    assert len(reports) == 4


def test_limit_and_order(tmp_path: Path) -> None:
    make_tree(tmp_path)
    plan, _, _ = read(tmp_path, limit=2)
    assert [task.study_id for task in plan.tasks] == ["50000001", "50000002"]


def test_wrong_roots(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = write(tmp_path / "file", "x")
    for root, words in (
        (tmp_path / "none", "no such"),
        (tmp_path / "empty", "sNNN"),
        (file, "file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read(root)
        assert str(root) in str(caught.value)
    with pytest.raises(UserError, match="needs --root"):
        get_source("mimic").plan(SourceOptions(banks=BANKS))


def test_missing_column(tmp_path: Path) -> None:
    make_tree(tmp_path)
    write(tmp_path / SPLIT, "dicom_id,study_id\nx,50000001")
    with pytest.raises(UserError, match="no column 'split'; its columns are dicom_id, study_id"):
        read(tmp_path)


def test_unknown_source() -> None:
    with pytest.raises(UserError, match="'mimik'; the sources are demo, mimic, iu_xray, table"):
        get_source("mimik")


@pytest.mark.skipif(not SYNTH.is_dir(), reason="the synthetic MIMIC tree is not on this machine")
def test_synthetic_tree() -> None:
    _, reports, rejects = read(SYNTH)
    assert not rejects
    assert [r.split for r in reports] == ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    assert sum(len(r.images) for r in reports) == 15
