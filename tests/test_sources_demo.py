"""The form of the demo corpus, on one made here, and the shipped one when it is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cot_builder.errors import UserError
from cot_builder.sources import SOURCES, SourceOptions, get_source
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks

BANKS = load_banks()


def study(number: int, **change: object) -> str:
    row = {
        "study_id": f"demo-{number}", "subject_id": f"p{number}", "split": "validate",
        "report": " FINAL REPORT\n FINDINGS:  Clear.\n",
        "images": [{"path": "images/a.png", "view": "PA"}],
    }  # fmt: skip
    return json.dumps({**row, **change})


def test_corpus(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "images/a.png")
    lines = [
        study(1), study(2, split="test", images=[]), "{", "[]", study(1), study(3, split="odd"),
        study(4, images=[{"path": "../a.png"}]), study(5, report=""), study(6, report=7),
    ]  # fmt: skip
    (tmp_path / "studies.jsonl").write_text("\n".join(lines))
    options = SourceOptions(root=tmp_path, banks=BANKS)
    plan = get_source("demo").plan(options)
    answers = [get_source("demo").load(task, options) for task in plan.tasks]
    reports = [answer.report for answer in answers if answer.report]
    rejects = plan.rejects + [r for answer in answers for r in answer.rejects]
    assert [(r.study_id, r.subject_id, r.split) for r in reports] == [
        ("demo-1", "p1", "validation"),
        ("demo-2", "p2", "test"),
    ]
    assert reports[0].images[0][:] == ("images/a.png", "a", "PA", 30, 20)
    assert [(r.reason, r.file) for r in rejects] == [
        ("malformed_row", "studies.jsonl:3"),
        ("malformed_row", "studies.jsonl:4"),
        ("duplicate_id", "studies.jsonl:5"),
        ("malformed_row", "studies.jsonl:6"),
        ("path_outside_root", "studies.jsonl:7"),
        ("malformed_row", "studies.jsonl:9"),
        ("empty_report", "studies.jsonl:8"),
    ]


def test_a_box_that_fits_neither_words_nor_image_is_told_and_the_report_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "images/a.png")
    (tmp_path / "images/b.png").write_bytes(b"no image")
    boxes = [
        {"phrase": phrase, "label": "No Finding", "xyxy": corners}
        for phrase, corners in (("Clear", [1, 2, 9, 9]), ("gone", [1, 2, 9, 9]),
                                ("Clear", [40, 2, 50, 9]))
    ]  # fmt: skip
    images = [{"path": f"images/{name}.png", "boxes": boxes} for name in "ab"]
    (tmp_path / "studies.jsonl").write_text(study(1, images=images))
    options = SourceOptions(root=tmp_path, banks=BANKS, check_images=True)
    (task,) = get_source("demo").plan(options).tasks
    found = get_source("demo").load(task, options)
    assert found.report
    assert [box.xyxy for phrase in found.report.grounded for box in phrase.boxes] == [(1, 2, 9, 9)]
    assert sorted(reject.reason for reject in found.rejects) == [
        "box_outside", "box_without_image", "box_without_image", "image_unreadable",
        "phrase_not_in_report", "phrase_not_in_report",
    ]  # fmt: skip


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no studies\.jsonl"):
        get_source("demo").plan(SourceOptions(root=tmp_path, banks=BANKS))


@pytest.mark.skipif(not (CORPUS / "studies.jsonl").exists(), reason="the corpus is not made yet")
def test_shipped_corpus() -> None:
    options = SourceOptions(banks=BANKS, check_images=True)
    plan = get_source("demo").plan(options)
    answers = [get_source("demo").load(task, options) for task in plan.tasks]
    assert not plan.rejects
    assert all(answer.report and not answer.rejects for answer in answers)
    assert len(answers) >= 12


def test_every_source_says_what_it_is() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.licence
        assert source.plan.__doc__


def test_described_options_are_those_that_were_chosen() -> None:
    options = SourceOptions(
        root=Path("/x"), banks=BANKS, limit=3, text_column="report", splits=Path("/y/ids.json")
    )
    assert options.described() == {"limit": 3, "text_column": "report", "splits": "ids.json"}
