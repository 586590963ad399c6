"""Sources of boxes: good rows become grounded phrases, bad ones rejects that name the row."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from cot_builder.dataset import read_studies
from cot_builder.errors import UserError
from cot_builder.pipeline import build
from cot_builder.records import Rejected, Report
from cot_builder.shards import BuildOptions
from cot_builder.sources import Plan, SourceOptions, get_source
from cot_builder.sources.boxed import label_of
from knowledge_banks import load_banks

BANKS = load_banks()
DATA = Path("/work/shared/data")
WITH_DATA = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")

Phrases = list[tuple[str, str | None, list[tuple[float, float, float, float]]]]


def read(source: str, root: Path, **options: Any) -> tuple[list[Report], list[Rejected], Plan]:
    chosen = SourceOptions(root=root, banks=BANKS, **options)
    plan = get_source(source).plan(chosen)
    answers = [get_source(source).load(task, chosen) for task in plan.tasks]
    assert all(answer.report or answer.rejects for answer in answers)
    reports = [answer.report for answer in answers if answer.report]
    return reports, plan.rejects + [r for answer in answers for r in answer.rejects], plan


def phrases(report: Report) -> Phrases:
    """Each grounded phrase by its own words: offsets must fit the section."""
    text = report.section("phrases")
    return [
        (text[g.start : g.end], g.label, [box.xyxy for box in g.boxes]) for g in report.grounded
    ]


def reasons(rejects: list[Rejected]) -> dict[str, int]:
    return dict(Counter(record.reason for record in rejects))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def image(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), 90).save(path)
    return path


# -- MIMIC-CXR-JPG and what annotates it

SUBJECT, STUDY = "10900001", "50900001"


def mimic_path(dicom: str, study: str = STUDY, subject: str = SUBJECT) -> str:
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}"


def mimic(root: Path, splits: dict[str, str], images: dict[str, tuple[int, int]]) -> None:
    rows = [
        {"dicom_id": "x", "study_id": study, "subject_id": SUBJECT, "split": split}
        for study, split in splits.items()
    ]
    write_csv(root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-split.csv", rows)
    for path, (width, height) in images.items():
        image(root / "mimic-cxr-jpg" / f"{path}.jpg", width, height)


def ms_row(**changes: Any) -> dict[str, Any]:
    row = {
        "dicom_id": "aa-1", "category_name": "Edema", "label_text": "Moderate edema",
        "path": "", "x": 10, "y": 20, "w": 30, "h": 40, "image_width": 200, "image_height": 100,
        "split": "train", **changes,
    }  # fmt: skip
    row["path"] = row["path"] or f"{mimic_path(row['dicom_id'])}.jpg"
    return row


def ms_cxr(root: Path, rows: list[dict[str, Any]]) -> Path:
    return write_csv(root / "ms-cxr" / "MS_CXR_Local_Alignment_v1.1.0.csv", rows)


def test_ms_cxr_groups_the_rows_of_a_phrase(tmp_path: Path) -> None:
    ms_cxr(tmp_path, [
        ms_row(label_text="Small bilateral  effusions", category_name="Pleural Effusion"),
        ms_row(label_text="Moderate edema"),
        ms_row(label_text="Small bilateral effusions", category_name="Pleural Effusion", x=110),
        ms_row(label_text="Small bilateral effusions", category_name="Atelectasis"),
        ms_row(label_text="Moderate edema", dicom_id="aa-2"),
    ])  # fmt: skip
    mimic(tmp_path, {STUDY: "train"}, {mimic_path("aa-1"): (200, 100)})
    reports, rejects, plan = read("ms_cxr", tmp_path)
    (report,) = reports
    assert (report.study_id, report.subject_id, report.split) == (STUDY, SUBJECT, "train")
    assert report.section("phrases") == "Small bilateral effusions\nModerate edema"
    assert phrases(report) == [
        ("Small bilateral effusions", "Pleural Effusion", [(10, 20, 40, 60), (110, 20, 140, 60)]),
        ("Small bilateral effusions", "Atelectasis", [(10, 20, 40, 60)]),
        ("Moderate edema", "Edema", [(10, 20, 40, 60)]),
    ]
    (found,) = report.images
    assert found == (f"mimic-cxr-jpg/{mimic_path('aa-1')}.jpg", "aa-1", None, 200, 100)
    # The second image is not on the disk, so its box has nothing to lie on.
    assert [(r.file.split(":")[-1], r.reason) for r in rejects] == [
        (f"mimic-cxr-jpg/{mimic_path('aa-2')}.jpg", "image_missing"),
        ("6", "box_without_image"),
    ]
    assert plan.release == "MS_CXR_Local_Alignment_v1.1.0.csv"


def test_ms_cxr_json_gives_what_its_csv_gives(tmp_path: Path) -> None:
    rows = [ms_row(), ms_row(x=100), ms_row(dicom_id="aa-2", category_name="Pneumonia")]
    table = ms_cxr(tmp_path, rows)
    ids = {"aa-1": 7, "aa-2": 9}
    written = write_json(table.with_suffix(".json"), {
        "categories": [{"id": 1, "name": "Edema"}, {"id": 2, "name": "Pneumonia"}],
        "images": [
            {"id": ids[d], "file_name": f"{d}.jpg", "path": f"{mimic_path(d)}.jpg",
             "width": 200, "height": 100} for d in ids
        ],
        "annotations": [
            {"id": n, "image_id": ids[r["dicom_id"]], "split": r["split"],
             "category_id": 1 if r["category_name"] == "Edema" else 2,
             "bbox": [r["x"], r["y"], r["w"], r["h"]], "label_text": r["label_text"]}
            for n, r in enumerate(rows)
        ],
    })  # fmt: skip
    from_csv, from_json = (read("ms_cxr", path)[0][0] for path in (table, written))
    assert phrases(from_csv) == phrases(from_json)
    assert from_csv.images == from_json.images


def test_ms_cxr_split_against_mimic(tmp_path: Path) -> None:
    """The authors' filter: another split is dropped, `val` is MIMIC's `validate`."""
    said = {"1": "val", "2": "val", "3": "train", "4": "train", "5": "dev2", "6": "", "7": "test"}
    official = {"1": "validate", "2": "train", "3": "test", "5": "train", "6": "test", "7": "test"}
    paths = {study: f"{mimic_path('aa-1', study)}.jpg" for study in said}
    ms_cxr(tmp_path, [ms_row(path=paths[study], split=split) for study, split in said.items()])
    mimic(tmp_path, official, {})
    reports, rejects, plan = read("ms_cxr", tmp_path)
    kept = {report.study_id: report.split for report in reports}
    assert kept == {"1": "validation", "6": "test", "7": "test"}
    assert {r.study_id: r.reason for r in rejects} == {
        "2": "split_disagrees", "3": "split_disagrees", "4": "no_split", "5": "unknown_split",
    }  # fmt: skip
    assert rejects[0].detail == "the release says 'val', MIMIC-CXR says 'train'"
    (note,) = (note for note in plan.notes if "validate" in note)
    assert note.startswith(
        "2 of 7 rows say `val` where MIMIC-CXR says `validate`: read as the same"
    )


def test_mimic_root_is_where_splits_and_images_are(tmp_path: Path) -> None:
    table = ms_cxr(tmp_path / "boxes", [ms_row(split="test")])
    mimic(tmp_path / "physionet", {STUDY: "train"}, {mimic_path("aa-1"): (200, 100)})
    reports, _, plan = read("ms_cxr", table)
    assert reports[0].split == "test"
    assert any("--mimic-root" in note for note in plan.notes)
    reports, rejects, _ = read("ms_cxr", table, mimic_root=tmp_path / "physionet")
    assert not reports
    assert reasons(rejects) == {"split_disagrees": 1}
    with pytest.raises(UserError, match=r"--mimic-root .*nowhere: no such folder"):
        read("ms_cxr", table, mimic_root=tmp_path / "nowhere")
    with pytest.raises(UserError, match="--mimic-root is for releases that annotate MIMIC-CXR"):
        read("boxes", table, mimic_root=tmp_path / "physionet", **OWN)


MS_BAD = [
    ({"x": ""}, "malformed_row", "column 'x': expected a number, got ''"),
    ({"w": "wide"}, "malformed_row", "column 'w': expected a number, got 'wide'"),
    ({"image_width": "12.5"}, "malformed_row", "expected a number of pixels, got '12.5'"),
    ({"image_height": "-3"}, "malformed_row", "expected a number of pixels, got '-3'"),
    ({"path": "files/x.jpg"}, "malformed_row", "expected files/pNN"),
    ({"path": "files/p10/p1/s1/zz.jpg"}, "malformed_row", "dicom_id 'aa-1'"),
    ({"label_text": "  "}, "empty_phrase", "got"),
    ({"w": 0}, "box_empty", "200 x 100 pixels"),
    ({"h": -5}, "box_inverted", "200 x 100 pixels"),
    ({"x": "nan"}, "box_not_finite", "200 x 100 pixels"),
    ({"x": "inf"}, "box_not_finite", "200 x 100 pixels"),
    ({"x": 300}, "box_outside", "200 x 100 pixels"),
    ({}, "duplicate_box", "another row gives 'Moderate edema' this box"),
    ({"image_width": ""}, "image_conflict", "200"),
    ({"split": "test"}, "split_conflict", "'test'"),
    ({"x": 190}, "box_clipped", "the image ends at (200, 100)"),
    ({"y": -4}, "box_clipped", "the image ends at (200, 100)"),
]


@pytest.mark.parametrize(("changes", "reason", "detail"), MS_BAD)
def test_ms_cxr_bad_rows(tmp_path: Path, changes: dict[str, Any], reason: str, detail: str) -> None:
    root = ms_cxr(tmp_path, [ms_row(), ms_row(**changes)])
    reports, rejects, _ = read("ms_cxr", root)
    (record,) = rejects
    assert (record.file, record.reason) == ("MS_CXR_Local_Alignment_v1.1.0.csv:3", reason)
    assert detail in record.detail
    ((_, _, boxes),) = phrases(reports[0])
    assert boxes[0] == (10, 20, 40, 60)
    assert len(boxes) == (2 if reason == "box_clipped" else 1)
    if reason == "box_clipped":
        x1, y1, x2, y2 = boxes[1]
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100


def test_a_study_whose_every_box_is_bad_is_rejected(tmp_path: Path) -> None:
    reports, rejects, plan = read("ms_cxr", ms_cxr(tmp_path, [ms_row(w=0)]))
    assert len(plan.tasks) == 1
    assert not reports
    assert reasons(rejects) == {"box_empty": 1}


def test_an_image_of_another_size_has_its_boxes_elsewhere(tmp_path: Path) -> None:
    ms_cxr(tmp_path, [ms_row()])
    mimic(tmp_path, {STUDY: "train"}, {mimic_path("aa-1"): (100, 50)})
    reports, rejects, _ = read("ms_cxr", tmp_path)
    assert not reports
    assert reasons(rejects) == {"image_size_mismatch": 1, "box_without_image": 1}
    assert "boxes are for 200 x 100 pixels, the file has 100 x 50" in rejects[0].detail


# -- REFLACX and LATTE-CXR


def reading(**changes: Any) -> dict[str, Any]:
    return {
        "id": "R1", "split": "train", "image": f"physionet.org/{mimic_path('aa-1')}.dcm",
        "dicom_id": "aa-1", "subject_id": SUBJECT, "image_size_x": 200, "image_size_y": 100,
        **changes,
    }  # fmt: skip


def ellipse(*classes: str, **changes: Any) -> dict[str, Any]:
    names = ("Consolidation", "Enlarged cardiac silhouette", "Enlarged hilum", "Pulmonary edema")
    return {
        "xmin": 10, "ymin": 20, "xmax": 40, "ymax": 60, "certainty": 4, **changes,
        **{name: name in classes for name in names},
    }  # fmt: skip


def test_reflacx(tmp_path: Path) -> None:
    main = tmp_path / "reflacx" / "main_data"
    write_csv(main / "metadata_phase_2.csv", [
        reading(), reading(id="R2"), reading(id="R3"), reading(id="R4"), reading(id="R2"),
        reading(id="R5", subject_id="9"),
    ])  # fmt: skip
    rows = {
        "R1": [ellipse("Consolidation", "Enlarged cardiac silhouette"), ellipse("Enlarged hilum")],
        "R2": [ellipse("Consolidation", xmin=12), ellipse("Consolidation", xmin="left"), ellipse()],
        "R3": [],
    }
    for name, own in rows.items():
        path = write_csv(main / name / "anomaly_location_ellipses.csv", own or [ellipse()])
        if not own:
            path.write_text(path.read_text().splitlines()[0] + "\n")
    reports, rejects, plan = read("reflacx", tmp_path)
    (report,) = reports
    # Two readers' boxes of one class stay two phrases.
    assert phrases(report) == [
        ("Consolidation", "Consolidation", [(10, 20, 40, 60)]),
        ("Enlarged cardiac silhouette", "Cardiomegaly", [(10, 20, 40, 60)]),
        ("Enlarged hilum", None, [(10, 20, 40, 60)]),
        ("Consolidation", "Consolidation", [(12, 20, 40, 60)]),
    ]
    boxes = [box for grounded in report.grounded for box in grounded.boxes]
    assert {(box.kind, box.certainty, box.source) for box in boxes} == {("ellipse", 4, "reflacx")}
    assert sorted((r.file, r.reason) for r in rejects) == [
        ("R2/anomaly_location_ellipses.csv:3", "malformed_row"),
        ("R2/anomaly_location_ellipses.csv:4", "empty_phrase"),
        ("R3/anomaly_location_ellipses.csv", "no_boxes"),
        ("R4/anomaly_location_ellipses.csv", "report_missing"),
        ("metadata_phase_2.csv:6", "duplicate_id"),
        ("metadata_phase_2.csv:7", "malformed_row"),
    ]
    assert "classes that are none of the 14 labels: Enlarged hilum (1)" in plan.notes


def latte(root: Path, **tables: list[dict[str, Any]]) -> Path:
    rows = [reading(), reading(id="R2", image=f"{mimic_path('bb-1', '2')}.dcm", dicom_id="bb-1")]
    for row in rows:
        row["reading_id"], row["image_path"] = row.pop("id"), row.pop("image")
        row["REFLACX_split"] = "validate"
    write_csv(root / "latte-cxr" / "LATTE_Phase3.csv", rows)
    for name, content in tables.items():
        write_csv(root / "latte-cxr" / f"{name}.csv", content)
    return root


def test_latte_cxr(tmp_path: Path) -> None:
    corners = {"xmin": 10, "ymin": 20, "xmax": 40, "ymax": 60, "reading_id": "R1"}
    root = latte(
        tmp_path,
        bbox_statement=[
            {**ellipse("Consolidation"), **corners, "chosen": True, "statement": "dense base."},
            {**ellipse("Consolidation"), **corners, "xmin": 11, "chosen": False,
             "statement": "dense base."},
            {**ellipse(), **corners, "reading_id": "R9", "chosen": False, "statement": "edema"},
        ],
        etbox_sentence=[{**corners, "xmax": 900, "sentence": "heart is large."}],
    )  # fmt: skip
    reports, rejects, _ = read("latte_cxr", root)
    (report,) = reports
    assert phrases(report) == [
        ("dense base.", "Consolidation", [(10, 20, 40, 60), (11, 20, 40, 60)]),
        ("heart is large.", None, [(10, 20, 200, 60)]),
    ]
    kinds = [(g.boxes[0].kind, g.boxes[0].certainty) for g in report.grounded]
    assert kinds == [("ellipse", 4), ("gaze", None)]
    assert report.split == "train"
    assert [(r.file, r.reason) for r in rejects] == [
        ("bbox_statement.csv:4", "no_reading"),
        ("LATTE_Phase3.csv:3", "no_boxes"),
        ("etbox_sentence.csv:2", "box_clipped"),
    ]


def test_latte_cxr_columns_of_other_names(tmp_path: Path) -> None:
    row = {"x0": 1, "y0": 2, "x1": 30, "y1": 40, "reader": "R1", "text": "edema"}
    root = latte(tmp_path, bbox_statement=[row])
    with pytest.raises(UserError, match="has no column 'reading_id', 'statement', 'xmin'"):
        read("latte_cxr", root)
    with pytest.raises(UserError, match=r"--columns stmt=.*has no such column; it reads id"):
        read("latte_cxr", root, columns=(("stmt", "text"),))
    named = {"xmin": "x0", "ymin": "y0", "xmax": "x1", "ymax": "y1", "statement": "text"}
    named |= {"id": "reading_id", "reading_id": "reader", "split": "REFLACX_split"}
    (report,), _, _ = read("latte_cxr", root, columns=tuple(named.items()))
    assert phrases(report) == [("edema", None, [(1, 2, 30, 40)])]
    assert report.split == "validation"


# -- Chest ImaGenome


def region(name: str, *corners: Any, width: int = 200) -> dict[str, Any]:
    keys = ("original_x1", "original_y1", "original_x2", "original_y2")
    size = {"original_width": width, "original_height": 100}
    return {"bbox_name": name, **dict(zip(keys, corners, strict=True)), **size}


def imagenome(root: Path, graphs: dict[str, Any], listed: list[str]) -> Path:
    silver = root / "silver_dataset"
    rows = [{"": 0, "subject_id": SUBJECT, "study_id": STUDY, "dicom_id": d} for d in listed]
    write_csv(silver / "splits" / "valid.csv", rows)
    write_csv(silver / "splits" / "images_to_avoid.csv", [{"image": "x"}])
    for dicom, graph in graphs.items():
        write_json(silver / "scene_graph" / f"{dicom}_SceneGraph.json", graph)
    return root


def test_imagenome(tmp_path: Path) -> None:
    graph = {
        "objects": [
            region("right lung", 10, 10, 90, 90), region("left lung", 110, 10, 210, 90),
            region("right lower lung zone", 10, 60, 90, 90), region("svc", 95, 5, 105, 30),
            region("aortic arch", 100, 10, 120, 20), region("spine", 5, 5, 5, 90),
            region("abdomen", None, 5, 8, 90), region("left clavicle", 1, 1, 9, 9),
        ],
        "attributes": [
            {"bbox_name": "right lung", "phrases": ["Right  lower\n opacity."]},
            {"bbox_name": "right lower lung zone", "phrases": ["Right  lower\n opacity."]},
            {"bbox_name": "left lung", "phrases": ["No effusion."]},
            {"bbox_name": "right lung", "phrases": ["No effusion."]},
            {"bbox_name": "spine", "phrases": ["Degenerative spine."]},
        ],
    }  # fmt: skip
    root = imagenome(tmp_path, {"aa-1": graph, "cc-1": graph}, ["aa-1", "bb-1"])
    (report,), rejects, _ = read("imagenome", root)
    right, left = (10, 10, 90, 90), (110, 10, 200, 90)
    assert phrases(report) == [
        ("left lung", None, [left]),
        ("mediastinum", None, [(95, 5, 120, 30)]),  # around its parts
        ("right lung", None, [right]),
        ("whole lung", None, [right, left]),
        ("Right lower opacity.", None, [right]),
        ("No effusion.", None, [left, right]),
    ]
    assert {box.kind for g in report.grounded for box in g.boxes} == {"prior"}
    assert (report.study_id, report.subject_id, report.split) == (STUDY, SUBJECT, "validation")
    assert report.images[0].path == f"{mimic_path('aa-1')}.jpg"
    graph_file = "aa-1_SceneGraph.json"
    assert [(r.file.split("/")[-1], r.reason) for r in rejects] == [
        ("valid.csv:3", "report_missing"),
        ("cc-1_SceneGraph.json", "file_not_in_list"),
        (f"{graph_file}:left lung", "box_clipped"),
        (f"{graph_file}:spine", "box_empty"),
        (f"{graph_file}:abdomen", "malformed_row"),
        (graph_file, "no_region_box"),
    ]


@pytest.mark.parametrize(
    ("graph", "detail"),
    [
        ([], "expected a scene graph, got TypeError"),
        ({}, "expected a scene graph, got KeyError: 'objects'"),
        ({"objects": []}, "expected objects with one original size"),
        ({"objects": [region("spine", 1, 1, 9, 9), region("svc", 1, 1, 9, 9, width=300)]},
         "expected objects with one original size"),
        ({"objects": [{"bbox_name": "spine"}]}, "expected objects with one original size"),
    ],
)  # fmt: skip
def test_imagenome_bad_graphs(tmp_path: Path, graph: Any, detail: str) -> None:
    reports, rejects, _ = read("imagenome", imagenome(tmp_path, {"aa-1": graph}, ["aa-1"]))
    assert not reports
    assert next(r.reason for r in rejects) == "malformed_file"
    assert detail in rejects[0].detail
    assert rejects[0].study_id == STUDY


# -- NIH ChestX-ray14

NIH_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h]"


@pytest.mark.parametrize("tail", ["", ",,,"])
def test_nih(tmp_path: Path, tail: str) -> None:
    lines = [
        "00000012_001.png,Infiltrate,100.5,200,50,60", "00000012_001.png,Mass,1,2,3,4",
        "00000012_001.png,Nodule,1,2,3", "12.png,Mass,1,2,3,4", "00000012_001.png,Mass,a,2,3,4",
        "00000345_000.png,Effusion,1000,200,50,60",
    ]  # fmt: skip
    text = "\r\n".join(line + tail for line in [NIH_HEADER, *lines])
    (tmp_path / "BBox_List_2017.csv").write_text(text + "\r\n")
    image(tmp_path / "images_003" / "images" / "00000012_001.png", 1024, 1024)
    image(tmp_path / "images_001" / "images" / "00000345_000.png", 1024, 1024)
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Patient ID,View Position,OriginalImage[Width,Height]\n"
        "00000012_001.png,12,AP,2500,2048\n"
    )
    (tmp_path / "test_list.txt").write_text("00000345_000.png\n")
    reports, rejects, _ = read("nih", tmp_path)
    by_id = {report.study_id: report for report in reports}
    assert phrases(by_id["00000012_001"]) == [
        ("Infiltrate", "Lung Opacity", [(100.5, 200, 150.5, 260)]),
        ("Mass", "Lung Lesion", [(1, 2, 4, 6)]),
    ]
    assert phrases(by_id["00000345_000"])[0][2] == [(1000, 200, 1024, 260)]
    found = [(r.subject_id, r.split, r.images[0].view, r.images[0].path) for r in reports]
    assert found == [
        ("12", None, "AP", "images_003/images/00000012_001.png"),
        ("345", "test", None, "images_001/images/00000345_000.png"),
    ]
    assert [(r.file[-1], r.reason) for r in rejects] == [
        *((line, "malformed_row") for line in "456"),
        ("7", "box_clipped"),
    ]


def test_nih_of_another_header_or_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no BBox_List_2017\.csv"):
        read("nih", tmp_path)
    table = tmp_path / "BBox_List_2017.csv"
    table.write_text("Image Index,Finding Label,x,y,w,h\n")
    with pytest.raises(UserError, match="expected the header Image Index"):
        read("nih", tmp_path)
    table.write_text(f"{NIH_HEADER}\n00000012_001.png,Mass,1,2,3,4\n")
    image(tmp_path / "images" / "00000012_001.png", 256, 256)
    _, rejects, _ = read("nih", tmp_path)
    assert reasons(rejects) == {"image_size_mismatch": 1, "box_without_image": 1}


# -- COCO, ChestX-Det, VinDr-CXR


def test_coco(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.png", 200, 100)
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "patient_id": 5, "split": "val"},
            {"id": "2", "file_name": "../b.png", "width": 9, "height": 9},
            {"id": 3, "file_name": "c.png", "width": 200, "height": 100},
            {"id": None, "file_name": "d.png"},
        ],
        "categories": [{"id": 4, "name": "Right Lung"}, {"id": 5, "name": "nodule"}, "pleura"],
        "annotations": [
            {"image_id": 1, "category_id": 4, "bbox": [10, 20, 30, 40]},
            {"image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], "caption": "Tiny nodule"},
            {"image_id": 2, "category_id": 4, "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]},
            {"image_id": 8, "category_id": 4, "bbox": [1, 2, 3, 4]},
            {"image_id": 1, "category_id": 4, "bbox": [1, 2, 3]},
            {"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, None]},
            {"category_id": 4, "bbox": [1, 2, 3, 4]},
            "x",
        ],
    }
    (report,), rejects, plan = read("coco", write_json(tmp_path / "boxes.json", content))
    assert phrases(report) == [
        ("Right Lung", None, [(10, 20, 40, 60)]),
        ("Tiny nodule", "Lung Lesion", [(1, 2, 4, 6)]),
    ]
    assert (report.study_id, report.subject_id, report.split) == ("a", "5", "validation")
    assert report.images == (("images/a.png", "a", None, 200, 100),)
    assert reasons(rejects) == {"malformed_row": 9, "no_boxes": 1}
    assert "classes that are none of the 14 labels: Right Lung (1)" in plan.notes


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"annotations": [], "images": 3}'])
def test_coco_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"boxes\.json"):
        read("coco", path)


def test_chestx_det(tmp_path: Path) -> None:
    path = write_json(tmp_path / "ChestX_Det_test.json", [
        {"file_name": "1.png", "syms": ["Mass", "Mass", "Calcification"],
         "boxes": [[1, 2, 30, 40], [5, 6, 70, 80], [1, 1, 9, 9]]},
        {"file_name": "2.png", "syms": [], "boxes": []},
        {"file_name": "1.png", "syms": ["Mass"], "boxes": [[1, 2, 3, 4]]},
        {"file_name": "3.png", "syms": ["Mass"], "boxes": []},
        {"file_name": "4.png", "syms": ["Mass"], "boxes": [[1, 2, 3]]},
        {"file_name": 5, "syms": [], "boxes": []}, None,
    ])  # fmt: skip
    (report,), rejects, _ = read("chestx_det", path)
    assert phrases(report) == [
        ("Mass", "Lung Lesion", [(1, 2, 30, 40), (5, 6, 70, 80)]),
        ("Calcification", None, [(1, 1, 9, 9)]),
    ]
    assert report.split == "test"
    assert report.images[0].width == 1024
    assert reasons(rejects) == {"no_boxes": 1, "duplicate_id": 1, "malformed_row": 4}
    with pytest.raises(UserError, match="expected a list of objects"):
        read("chestx_det", write_json(tmp_path / "x.json", {}))


def test_vindr(tmp_path: Path) -> None:
    def row(name: str, reader: str, *box: Any, image_id: str = "aa") -> dict[str, Any]:
        corners = dict(zip(("x_min", "y_min", "x_max", "y_max"), box or [""] * 4, strict=True))
        return {"image_id": image_id, "class_name": name, "rad_id": reader, **corners}

    write_csv(tmp_path / "annotations" / "annotations_train.csv", [
        row("Cardiomegaly", "R8", 10, 20, 40, 60), row("Cardiomegaly", "R9", 11, 20, 40, 60),
        row("Nodule/Mass", "R8", 1, 2, 30, 40), row("Nodule/Mass", "R8"),
        row("No finding", "R8", image_id="bb"), row("No finding", "R9", image_id="bb"),
        row("Cardiomegaly", "R8", 1, 2, 3, 4, image_id="../x"),
        row("Cardiomegaly", "R8", 1, 2, 3, 4, image_id="cc"),
    ])  # fmt: skip
    write_csv(tmp_path / "train_meta.csv", [{"image_id": "bb", "dim0": 100, "dim1": 200}])
    for name in ("aa", "bb"):
        image(tmp_path / "train" / f"{name}.png", 200, 100)
    reports, rejects, _ = read("vindr", tmp_path)
    assert [report.study_id for report in reports] == ["aa", "bb"]
    assert phrases(reports[0]) == [
        ("Cardiomegaly", "Cardiomegaly", [(10, 20, 40, 60)]),
        ("Cardiomegaly", "Cardiomegaly", [(11, 20, 40, 60)]),
        ("Nodule/Mass", "Lung Lesion", [(1, 2, 30, 40)]),
    ]
    assert reports[1].section("phrases") == "No finding"
    assert not reports[1].grounded
    assert {report.split for report in reports} == {"train"}
    assert reasons(rejects) == {"malformed_row": 2, "image_missing": 1, "box_without_image": 1}


# -- boxes of one's own

OWN = {"box_columns": ("x", "y", "w", "h"), "box_format": "xywh"}


def own(**changes: Any) -> dict[str, Any]:
    row = {"image": "a.png", "phrase": "right lung", "x": 10, "y": 20, "w": 30, "h": 40}
    return {**row, **changes}


@pytest.mark.parametrize("form", ["t.csv", "t.jsonl", "t.parquet"])
def test_boxes_of_ones_own(tmp_path: Path, form: str) -> None:
    image(tmp_path / "images" / "a.png", 200, 100)
    rows = [own(label="Infiltrate", who=7.0), own(phrase="left lung", label="", who=7.0)]
    path = tmp_path / form
    if form.endswith(".csv"):
        write_csv(path, rows)
    elif form.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pl.DataFrame(rows).write_parquet(path)
    (report,), rejects, _ = read("boxes", path, **OWN)
    assert not rejects
    assert phrases(report) == [
        ("right lung", "Lung Opacity", [(10, 20, 40, 60)]),
        ("left lung", None, [(10, 20, 40, 60)]),
    ]
    assert (report.study_id, report.subject_id, report.split) == ("a", None, None)
    assert report.images[0].path == "images/a.png"


def test_a_box_in_one_column(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [own(box=[1, 2, 30, 40], width=200, height=100), own(box="1,2"), own(box=[1, 2])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (report,), rejects, _ = read("boxes", path, box_columns=("box",), box_format="xyxy")
    assert phrases(report) == [("right lung", None, [(1, 2, 30, 40)])]
    assert [(r.file, r.reason) for r in rejects] == [
        ("t.jsonl:2", "malformed_row"),
        ("t.jsonl:3", "malformed_row"),
    ]


OWN_BAD = [
    ({"image": ""}, "malformed_row"),
    ({"image": "../a.png"}, "path_outside_root"),
    ({"phrase": ""}, "empty_phrase"),
    ({"x": ""}, "malformed_row"),
    ({"w": 0}, "box_empty"),
    ({"certainty": "high"}, "malformed_row"),
    ({"width": "0"}, "malformed_row"),
    ({"split": "holdout"}, "unknown_split"),
]


@pytest.mark.parametrize(("changes", "reason"), OWN_BAD)
def test_bad_rows_of_ones_own(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    image(tmp_path / "a.png", 200, 100)
    first = {**own(), "certainty": "", "width": "", "height": "", "split": ""}
    path = write_csv(tmp_path / "t.csv", [first, {**first, **changes}])
    (report,), rejects, _ = read("boxes", path, **OWN)
    assert [(r.file, r.reason) for r in rejects] == [("t.csv:3", reason)]
    assert phrases(report) == [("right lung", None, [(10, 20, 40, 60)])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs --box-columns"),
        ({"box_columns": ("x", "y"), "box_format": "xywh"}, "needs --box-columns"),
        ({"box_columns": ("x", "y", "w", "h")}, "--box-format xyxy or xywh"),
        ({**OWN, "box_columns": ("x", "y", "w", "z")}, "has no column 'z'"),
        ({**OWN, "columns": (("label", "class"),)}, "has no column 'class'"),
        ({**OWN, "columns": (("picture", "image"),)}, "has no such column; it reads image"),
    ],
)
def test_options_of_ones_own_boxes(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read("boxes", write_csv(tmp_path / "t.csv", [own()]), **options)


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("ms_cxr", "MS_CXR_Local"), ("latte_cxr", "LATTE_"), ("reflacx", "metadata_phase"),
        ("imagenome", "silver_dataset"), ("vindr", "annotations_train"), ("nih", "BBox_List"),
        ("boxes", "a folder"), ("coco", "cannot read"), ("chestx_det", "cannot read"),
    ],
)  # fmt: skip
def test_wrong_root(tmp_path: Path, source: str, holds: str) -> None:
    with pytest.raises(UserError, match=holds):
        read(source, tmp_path, **OWN)
    with pytest.raises(UserError, match="needs --root"):
        read(source, None)  # type: ignore[arg-type]


# -- classes, and real files


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Infiltrate", "Lung Opacity"), ("infiltration", "Lung Opacity"), ("MASS", "Lung Lesion"),
        ("Pleural Effusion", "Pleural Effusion"), ("Airspace Opacity", "Lung Opacity"),
        ("enlarged cardiomegaly", "Enlarged Cardiomediastinum"), ("Other", None), ("liver", None),
    ],
)  # fmt: skip
def test_label_of(name: str, label: str | None) -> None:
    assert label_of(name, BANKS) == label


def test_a_build_of_boxes_adds_up(tmp_path: Path) -> None:
    """Two boxes of a phrase reach one chain; a phrase without words of ours its release's label."""
    rows = [
        ms_row(), ms_row(x=100), ms_row(label_text="Odd blur", category_name="Pneumonia"),
        ms_row(x=190, label_text="No effusion", category_name=""), ms_row(w=0),
    ]  # fmt: skip
    options = BuildOptions(
        source="ms_cxr",
        release=SourceOptions(root=ms_cxr(tmp_path, rows), banks=BANKS),
        out=tmp_path / "out",
    )
    manifest = build(options)
    assert manifest["boxes"]["by_kind"]["manual"] == 4
    assert (manifest["boxes"]["clipped"], manifest["boxes"]["rejected"]) == (1, 1)
    assert manifest["rejects"]["by_reason"] == {"box_clipped": 1, "box_empty": 1}
    (study,) = read_studies(tmp_path / "out")
    found = {(c["finding"], c["disease"]): len(c["boxes"]) for c in study["chains"]}
    assert found == {
        ("Moderate edema", "Edema"): 2,
        ("Odd blur", "Pneumonia"): 1,
        ("effusion", "Pleural Effusion"): 0,
    }


@WITH_DATA
@pytest.mark.parametrize(
    ("source", "root", "options", "studies", "boxes", "rejected"),
    [
        ("ms_cxr", "mimic_synth", {}, 4, 7, {}),
        ("latte_cxr", "mimic_synth", {}, 2, 5, {"no_boxes": 1, "box_clipped": 2}),
        ("reflacx", "mimic_synth", {}, 2, 5, {"no_boxes": 1, "box_clipped": 2}),
        ("nih", "nih_chestxray14", {}, 18, 25, {}),
        ("chestx_det", "chestx_det/ChestX_Det_test.json", {}, 489, 1734, {"no_boxes": 64}),
        ("boxes", "grounding_triples.jsonl",
         {"box_columns": ("box_xyxy",), "box_format": "xyxy"}, 33, 69, {}),
        ("boxes", "hmm_lungs/lung_boxes_xywh.csv", {**OWN, "columns": (("image", "file"),)},
         12, 24, {}),
        ("boxes", "covid_gb_anatomy/boxes_xywh.csv", {**OWN, "columns": (("image", "file"),)},
         3, 20, {}),
    ],
)  # fmt: skip
def test_real_files(
    source: str, root: str, options: dict[str, Any], studies: int, boxes: int,
    rejected: dict[str, int],
) -> None:  # fmt: skip
    reports, rejects, _ = read(source, DATA / root, **options)
    assert len(reports) == studies
    assert sum(len(g.boxes) for report in reports for g in report.grounded) == boxes
    assert reasons(rejects) == rejected
