"""The pages do what they say: the tutorial, block by block, and every command of the others."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from docs.woven import MOST_BYTES, PICTURE, ROOT, drawn, prepare, run, woven
from tests.hub_double import HubDouble
from tests.openai_double import Double
from tests.test_house import PAGES, told_commands

TUTORIAL = ROOT / "docs/tutorial.md"
# What a page has and a reader would not have, and what stands in for it.
STAND_INS = {
    "http://127.0.0.1:8000/v1": "LLM_URL",
    "/data/physionet": "physionet",
    "/data/iu_xray": "iu_xray",
    "50414267": "50900001",
    "org/": "ann/",
}
# Commands that are not run here, and why: none is without a test of the command line's syntax
# (tests/test_house.py).
NOT_RUN = {
    r"browse": "serves until it is stopped: tests/test_workbench.py and test_workbench_run.py",
    r"review": "needs a Label Studio, and readers: tests/test_label_studio.py",
    r"(build .*--shard|merge)": "needs all parts: tests/test_parts.py",
    r".*(s3|hf)://": "needs a store: tests/test_remote.py",
    r"build .*--engine": "needs ten seconds and a cluster's memory: tests/test_parts.py",
    r"train (?!all --recipe smoke|merge out/run)": "Qwen2-VL-2B from the Hub, and GPUs",
    r"diff": "needs a second version: tests/test_publish.py",
    r"reproduce plans/smoke.toml": "a quarter of an hour: benchmarks/results/smoke has a run",
}


@pytest.mark.parametrize(
    "path",
    [pytest.param(TUTORIAL, marks=pytest.mark.slow), ROOT / "knowledge_banks/README.md"],
    ids=lambda path: path.parent.name,
)
def test_a_woven_page_shows_what_its_commands_print_and_draw(path: Path, tmp_path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert woven(page, tmp_path, again=False) == page, "`make tutorial` writes the page anew"
    sources = [found["source"] for found in PICTURE.finditer(page) if found["kind"] == "drawn"]
    assert all(drawn(tmp_path, source).is_file() for source in sources)


def test_the_readme_prints_what_the_tutorial_does() -> None:
    (block,) = re.findall(r"```text\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block.strip() in TUTORIAL.read_text(encoding="utf-8")


def test_pictures_are_small() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TUTORIAL.read_text(encoding="utf-8"))
    assert len(shown) > 5
    sizes = {name: (TUTORIAL.parent / name).stat().st_size for name in shown}
    assert {name: size for name, size in sizes.items() if size > MOST_BYTES} == {}


def test_the_tutorial_shows_what_differs_from_machine_to_machine_as_dots() -> None:
    told = "echo 14 studies in 10.8 s '(1 studies/s)', 1,234 bytes of 1f3a8c6a49, study 50414267"
    assert run(told, TUTORIAL.parent) == (
        "14 studies in … s (… studies/s), … bytes of …, study 50414267\n"
    )


def commands() -> dict[str, Path]:
    """Each command of the pages and the first page that tells it, but for the tutorial's."""
    order = ("README.md", "cot_builder", "eval", "training")  # each stands on those before
    pages = sorted(
        (page for page in PAGES if page != TUTORIAL),
        key=lambda page: next(
            (n for n, name in enumerate(order) if str(page.relative_to(ROOT)).startswith(name)), 9
        ),
    )
    found: dict[str, Path] = {}
    for page in pages:
        for line in told_commands(page):
            found.setdefault(re.sub(r"\s+#.*", "", line).strip(), page)
    return found


def reason(line: str) -> str | None:
    return next((why for key, why in NOT_RUN.items() if re.match(f"cot-builder {key}", line)), None)


def test_no_reason_is_left_over() -> None:
    told = commands()
    unused = [key for key in NOT_RUN if not any(re.match(f"cot-builder {key}", c) for c in told)]
    assert unused == []
    assert sum(reason(line) is None for line in told) > len(told) / 2


@pytest.mark.slow
@pytest.mark.server
def test_the_commands_of_the_pages_run(shared: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    put_files(tmp_path, shared)
    failed = {}
    with Double(lambda text, schema: {"mentions": []}) as model, HubDouble() as hub:
        settings = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.add_user("ann"), "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "OPENAI_API_KEY": "none",
        }  # fmt: skip
        for line, page in commands().items():
            if reason(line):
                continue
            for theirs, ours in STAND_INS.items():
                line = line.replace(theirs, ours)
            out = re.search(r"--out (\S+)", line)
            if out and "--resume" not in line and "--check" not in line:
                shutil.rmtree(tmp_path / out[1], ignore_errors=True)
            try:
                run(line.replace("LLM_URL", model.url), tmp_path, **settings)
            except AssertionError as error:
                failed[f"{page.relative_to(ROOT)}: {line}"] = str(error)
    assert failed == {}


def put_files(folder: Path, shared: Path) -> None:
    """The files that the pages speak of: releases, tables, banks of one's own."""
    (folder / "physionet").symlink_to(shared / "data/mimic_synth")
    (folder / "iu_xray").symlink_to(shared / "data/iu_xray")
    shutil.copy(shared / "data/iu_xray/r2gen_annotation_subset.json", folder / "annotation.json")
    labels = shared / "data/mimic_synth/mimic-cxr-jpg/mimic-cxr-2.0.0-chexpert.csv"
    shutil.copy(labels, folder / "chexpert.csv")
    with labels.open() as lines:
        studies = [row["study_id"] for row in csv.DictReader(lines)]
    write(folder / "reports.csv", [["study", "report"], ["a", "FINDINGS: No pneumothorax."]])
    box = ["a.png", "Left effusion", "30", "40", "50", "60", "512", "512"]
    head = ["file", "text", "x", "y", "w", "h", "width", "height"]
    write(folder / "boxes.csv", [head, box])
    write(folder / "theirs.csv", [["study_id", "report"], *([s, "No edema."] for s in studies)])
    row = {"uid": "50900001", "findings": "No edema.", "chains": []}
    (folder / "gold.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "my_banks").mkdir()
    (folder / "my_banks/cues.toml").write_text('version = "1.0.1"\nextends = true\n')


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
