"""Training from a version on the Hub, or in its folder: the same as from the dataset itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("trl")

from datasets import Image, List

from cot_builder.cli import publishing
from cot_builder.errors import UserError
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks
from tests.commands import refused, well
from tests.hub_double import HubDouble
from training.conversations import columns, open_source

BANKS = load_banks()
REPO = "ann/chains"
SHORT = [
    "mcl.max_steps=2", "svr.max_steps=2", "svr.generations=2", "svr.completion=96",
    "adapter.max_steps=2", "run.samples=0", "run.report_to=[]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_pictures", lambda _: lambda folder: ())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    well("build", "--source", "demo", "--image-scale", "0.25", "--out", out, "--workers", "1")
    return out


def examples(name: str | Path, stage: str, image_root: Path | None = None) -> str:
    """Hash what a stage learns from a dataset: every column, the bytes of the images for paths."""
    source = open_source(str(name), image_root)
    rows = columns([source], stage, frame=source.frame, banks=BANKS)
    found = hashlib.sha256()
    for row in rows.cast_column("images", List(Image(decode=False))):
        (image,) = row.pop("images")
        found.update(repr(row).encode() + Path(image["path"]).read_bytes())
    return found.hexdigest()


@pytest.mark.server
@pytest.mark.slow
def test_a_version_trains_to_the_same_weights_as_its_folder(
    demo: Path, hub: HubDouble, tmp_path: Path
) -> None:
    well("publish", demo, "--version", "1.0.0", "--repo", REPO)
    changes = [word for change in SHORT for word in ("--set", change)]
    for out, dataset in (("folder", demo), ("hub", f"{REPO}@v1.0.0")):
        flags = ("--recipe", "smoke", "--dataset", dataset, *changes)
        well("train", "all", *flags, "--out", tmp_path / out)
    for stage in ("mcl", "svr", "adapter"):
        assert examples(f"{REPO}@v1.0.0", stage) == examples(demo, stage)
        name = "adapter_model" if stage == "adapter" else "model"
        one, other = (
            (tmp_path / out / stage / f"{name}.safetensors").read_bytes()
            for out in ("folder", "hub")
        )
        assert one == other
    fetched = hub.count("GET .*/resolve/")
    examples(f"{REPO}@v1.0.0", "svr")
    assert hub.count("GET .*/resolve/") == fetched, "what is here is not fetched again"


@pytest.mark.server
def test_what_cannot_be_fetched_is_told_in_one_line(
    demo: Path, hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well("publish", demo, "--version", "1.0.0", "--repo", REPO)
    train = ("train", "mcl", "--recipe", "smoke", "--out", tmp_path / "run", "--dataset")

    def told(dataset: str) -> str:
        *_, last = refused(*train, dataset).splitlines()
        assert last.startswith("cot-builder: ")
        return last

    assert f"{REPO} has no revision v1.1.0; `cot-builder versions" in told(f"{REPO}@v1.1.0")
    assert "the Hub has no data set ann/nothing, or it is private" in told("ann/nothing")
    assert "expected a folder that `build` wrote, its s3:// or hf://" in told("nothing")
    monkeypatch.setenv("HF_TOKEN", "")
    assert "it is private and not yours: set HF_TOKEN" in told(f"{REPO}@v1.0.0")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hub refuses the token (401)" in told(f"{REPO}@v1.0.0")
    monkeypatch.setenv("HF_TOKEN", hub.add_user("bob"))
    hub.repos[REPO].private, hub.repos[REPO].gated = False, True
    assert "is gated and this account has no access" in told(f"{REPO}@v1.0.0")
    hub.repos[REPO].gated = False
    hub.fail("GET .*/resolve/", 500, times=99)
    assert "the Hub failed (500)" in told(f"{REPO}@v1.0.0")
    assert not (tmp_path / "run").exists()


@pytest.mark.server
def test_the_folder_of_a_version(demo: Path, hub: HubDouble, tmp_path: Path) -> None:
    well("publish", demo, "--version", "1.0.0", "--to", tmp_path / "own")
    well("publish", demo, "--version", "1.0.0", "--to", tmp_path / "paths", "--images", "paths")
    for stage in ("mcl", "svr", "adapter"):
        assert examples(tmp_path / "own", stage) == examples(demo, stage)
    with pytest.raises(UserError, match="--image-root"):
        open_source(str(tmp_path / "paths"))
    source = open_source(str(tmp_path / "own"))
    other = source.frame._replace(name="percent")
    with pytest.raises(UserError, match="published with boxes in norm1000"):
        columns([source], "svr", frame=other, banks=BANKS)
    assert columns([source], "adapter", frame=other, banks=BANKS)


@pytest.mark.server
def test_original_images_of_a_version(hub: HubDouble, tmp_path: Path) -> None:
    """A dataset without reduced images, published with the originals."""
    well("build", "--source", "demo", "--out", tmp_path / "plain", "--workers", "1")
    well("publish", tmp_path / "plain", "--version", "1.0.0", "--to", tmp_path / "own")
    for stage in ("mcl", "svr", "adapter"):
        assert examples(tmp_path / "own", stage) == examples(tmp_path / "plain", stage, CORPUS)


def test_a_version_without_its_text_is_to_be_rehydrated(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("id,text\na,FINDINGS: Small effusion.\n")
    columns = ("--id-column", "id", "--text-column", "text")
    well("build", "--source", "table", "--root", table, *columns, "--out", tmp_path / "built")
    well("publish", tmp_path / "built", "--version", "1.0.0", "--to", tmp_path / "free")
    with pytest.raises(UserError, match="cot-builder rehydrate"):
        open_source(str(tmp_path / "free"))
