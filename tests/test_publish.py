"""Publishing: versions, text-free rows and their words put back, the Hub by its real clients."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cot_builder.cli import publishing
from cot_builder.dataset import read_studies
from tests.commands import refused, well
from tests.hub_double import DROPPED, HANGS, HubDouble
from tests.openai_double import Double

datasets = pytest.importorskip("datasets")
from datasets import load_dataset  # noqa: E402
from huggingface_hub import constants  # noqa: E402

from cot_builder.publish import configs, redistribution  # noqa: E402
from cot_builder.publish.version import content_of, read_version  # noqa: E402
from cot_builder.sources import SOURCES  # noqa: E402
from cot_builder.sources.contract import UNKNOWN  # noqa: E402
from knowledge_banks import load_banks  # noqa: E402
from knowledge_banks.loader import FOLDER, read_bank  # noqa: E402

REPO = "ann/chains"


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest: one test draws them."""
    if request.function is not test_the_card_says_it_all:
        monkeypatch.setattr(publishing, "_pictures", lambda _: lambda folder: ())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    well("build", "--source", "demo", "--out", out, "--workers", "1")
    return out


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MIMIC-CXR of three invented studies, with splits and tiny images."""
    root = tmp_path_factory.mktemp("physionet")
    reports = {
        "50000001": "FINDINGS: Small left effusion, bibasilar atelectasis.\n No pneumothorax.",
        "50000002": "IMPRESSION: Probable pneumonia of the lingula, worse than on the zebra film.",
        "50000003": "FINDINGS: The lungs are clear. Mild scoliosis is seen, quite unchanged.",
        "50000004": "INDICATION: Cough and fever of unknown cause.",
    }  # fmt: skip
    rows = []
    for study, text in reports.items():
        folder = f"files/p10/p1000000{study[-1]}"
        path = root / "mimic-cxr" / folder / f"s{study}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(f"                 FINAL REPORT\n {text}\n")
        split = "test" if study == "50000002" else "train"
        rows.append(f"{study}-aa,{study},1000000{study[-1]},{split}")
    (root / "mimic-cxr-jpg").mkdir()
    table = "dicom_id,study_id,subject_id,split\n" + "\n".join(rows) + "\n"
    (root / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-split.csv").write_text(table)
    return root


@pytest.fixture(scope="module")
def credentialed(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mimic") / "mimic"
    well("build", "--source", "mimic", "--root", release, "--out", out, "--workers", "1")
    return out


def stored(dataset: Any) -> list[str]:
    """The hashes of a loaded data set's rows, in the form in which they are stored."""
    table = dataset.with_format("arrow")[:]
    return [configs.row_sha256(row) for row in table.to_pylist()]


def put(dataset: Path, *more: str | Path, version: str = "1.0.0") -> str:
    return well("publish", dataset, "--version", version, "--repo", REPO, *more)


# -- a version on the Hub


@pytest.mark.server
def test_a_version_loads_back_by_its_tag_with_the_same_hash(demo: Path, hub: HubDouble) -> None:
    put(demo, "--public")
    repo = hub.repos[REPO]
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "Version 1.0.0"]
    assert repo.tags == {"v1.0.0": repo.head}
    manifest = json.loads(repo.commits[repo.head].tree["manifest.json"][0])
    hashes = {}
    for config in manifest["configs"]:
        loaded = load_dataset(REPO, config, revision="v1.0.0")
        pairs = [(split, row) for split, part in loaded.items() for row in stored(part)]
        hashes[config] = configs.config_sha256(pairs)
        assert hashes[config] == manifest["configs"][config]["sha256"]
        streamed = load_dataset(REPO, config, revision="v1.0.0", split="train", streaming=True)
        assert next(iter(streamed)) == loaded["train"][0]
    assert configs.content_sha256(hashes) == manifest["content_sha256"]


@pytest.mark.server
def test_the_rows_are_those_of_the_dataset(demo: Path, hub: HubDouble) -> None:
    put(demo)
    loaded = load_dataset(REPO, "chains", revision="v1.0.0")
    features = dict(loaded["train"].features)
    rows = [configs.decoded(features, row) for part in loaded.values() for row in part]
    assert rows == list(read_studies(demo))


@pytest.mark.server
def test_a_version_is_never_moved(demo: Path, credentialed: Path, hub: HubDouble) -> None:
    put(demo)
    head = hub.repos[REPO].head
    assert "was there already, with the same content" in put(demo)
    message = refused("publish", credentialed, "--version", "1.0.0", "--repo", REPO)
    assert "has version 1.0.0 with other content" in message
    assert hub.repos[REPO].head == head
    put(credentialed, version="1.1.0")
    tree = hub.repos[REPO].commits[hub.repos[REPO].head].tree
    assert "chains/validation-00000-of-00001.parquet" not in tree, "a file of the last version"
    listed = well("versions", "--repo", REPO)
    assert re.search(r"1\.0\.0.*\n.*1\.1\.0 .* 3 .*chains", listed)
    assert len(load_dataset(REPO, "chains", revision="v1.0.0", split="validation")) == 2


@pytest.mark.server
def test_a_rehearsal_sends_nothing_and_says_what_would_go_to_whom(
    demo: Path, hub: HubDouble
) -> None:
    said = put(demo, "--dry-run")
    assert "to ann/chains (new, private) as ann; it is seen by ann alone" in said
    assert "chains │ train      │ 9" in said
    assert not hub.repos
    assert {method for method, _, _ in hub.requests} == {"GET"}
    assert [path.name for path in demo.parent.iterdir()] == [demo.name]


@pytest.mark.server
@pytest.mark.parametrize("at", ["PUT /_s3", "POST .*/commit/", "POST .*/tag/"])
def test_an_upload_that_was_cut_off_goes_on(demo: Path, hub: HubDouble, at: str) -> None:
    hub.fail(at, DROPPED, times=99, after=1 if "PUT" in at else 0)
    message = refused("publish", demo, "--version", "1.0.0", "--repo", REPO)
    assert "run the command again" in message
    assert hub.repos[REPO].tags == {}
    arrived = hub.count("PUT /_s3")
    assert arrived
    hub.faults.clear()
    put(demo)
    assert hub.count("PUT /_s3") == len(hub.objects), "an object was sent twice"
    assert hub.count("POST .*/commit/") == 1
    assert hub.repos[REPO].tags == {"v1.0.0": hub.repos[REPO].head}
    assert stored(load_dataset(REPO, "chains", revision="v1.0.0", split="test"))


@pytest.mark.server
def test_a_killed_upload_goes_on(demo: Path, hub: HubDouble, tmp_path: Path) -> None:
    hub.fail("PUT /_s3", HANGS, times=99, after=2)
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    cli = [sys.executable, "-c", "from cot_builder.cli import main\nmain()"]
    killed = subprocess.Popen(
        [*cli, "publish", demo, "--version", "1.0.0", "--repo", REPO], env={**os.environ, **own},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert hub.hanging.wait(60), killed.poll()
    killed.kill()
    killed.wait()
    hub.go_on.set()
    hub.faults.clear()
    assert hub.repos[REPO].tags == {}
    arrived = hub.count("PUT /_s3")
    assert arrived
    put(demo)
    assert hub.repos[REPO].tags == {"v1.0.0": hub.repos[REPO].head}
    assert hub.count("POST .*/commit/") == 1
    assert not list(demo.parent.glob(".*")), "what the killed run left is gone"


@pytest.mark.server
@pytest.mark.parametrize(
    ("at", "status", "says"),
    [
        ("GET /api/whoami", 401, "hf auth login"),
        ("POST /api/repos/create", 403, "may not write to ann/chains"),
        ("POST .*/preupload/", 403, "may not write to ann/chains"),
        ("POST .*/commit/", 409, "changed while this was uploaded"),
        ("POST .*/commit/", 412, "changed while this was uploaded"),
        ("POST .*/commit/", 429, "slow down"),
        ("POST .*/commit/", 500, "the Hub failed (500)"),
        ("POST .*/tag/", 409, "changed while this was uploaded"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    demo: Path, hub: HubDouble, at: str, status: int, says: str
) -> None:
    hub.fail(at, status, times=99)
    message = refused("publish", demo, "--version", "1.0.0", "--repo", REPO)
    assert says in message
    assert message.count("cot-builder:") == 1
    assert message.splitlines()[-1].startswith("cot-builder: ")
    assert not hub.repos or hub.repos[REPO].tags == {}


@pytest.mark.server
def test_a_commit_in_between_is_no_obstacle(demo: Path, hub: HubDouble) -> None:
    hub.fail("POST .*/commit/", 412, times=1)
    put(demo)
    assert hub.repos[REPO].tags


@pytest.mark.server
def test_reading_what_one_may_not(
    demo: Path, hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(demo)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("bob"))
    assert "or it is private and not yours" in refused("versions", "--repo", REPO)
    hub.repos[REPO].private, hub.repos[REPO].gated = False, True
    assert "gated" in refused("rehydrate", REPO, "--version", "1.0.0", "--out", tmp_path / "x")
    hub.repos[REPO].gated = False
    missing = refused("rehydrate", REPO, "--version", "7.0.0", "--out", tmp_path / "x")
    assert "has no revision v7.0.0" in missing
    assert "may not write" in refused("publish", demo, "--version", "2.0.0", "--repo", REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in refused("publish", demo, "--version", "2.0.0", "--repo", REPO)


@pytest.mark.server
def test_where_a_model_was_asked_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "drafted", tmp_path / "free"
    with Double(lambda text, schema: {"mentions": []}) as server:
        address = server.url.replace("127.0.0.1", "localhost")
        command = ["build", "--source", "demo", "--out", out, "--workers", "1", "--llm-model", "m"]
        command += [f"--llm-base-url={address}", "--zero-retention-host", "localhost"]
        monkeypatch.setattr("sys.argv", ["cot-builder", *map(str, command)])
        well(*command)
    assert "localhost" in (out / "manifest.json").read_text()
    well("publish", out, "--version", "1.0.0", "--to", folder)
    assert "localhost" not in scan(folder)
    told = read_version(folder)["dataset"]
    assert told["decomposer"]["model"]["name"] == "m"
    assert "--llm-base-url ... --zero-retention-host ..." in told["command"]


@pytest.mark.server
def test_the_token_is_written_nowhere(demo: Path, hub: HubDouble, tmp_path: Path) -> None:
    (token,) = hub.users
    said = put(demo, "--to", tmp_path / "kept", "--public")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert token not in said
    assert token.encode() not in written + b"".join(hub.bodies)


def test_without_a_token_nothing_is_asked(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "needs a token" in refused("publish", demo, "--version", "1.0.0", "--repo", REPO)


@pytest.mark.server
def test_what_two_versions_read_differently(
    demo: Path, credentialed: Path, hub: HubDouble, tmp_path: Path
) -> None:
    put(demo)
    edited = shutil.copytree(demo, tmp_path / "edited")
    (shard,) = edited.glob("test-*")
    rows = pq.read_table(shard).to_pylist()
    chain = rows[0]["chains"][0]
    chain["assertion"] = "uncertain"
    del rows[0]["chains"][1]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(shard)), shard)
    damaged = refused("publish", edited, "--version", "1.1.0", "--repo", REPO)
    assert f"{shard} is not the file that" in damaged
    manifest = json.loads((edited / "manifest.json").read_text())
    for listed in manifest["shards"]:
        listed["sha256"] = hashlib.sha256((edited / listed["file"]).read_bytes()).hexdigest()
    (edited / "manifest.json").write_text(json.dumps(manifest))
    put(edited, version="1.1.0")
    out = tmp_path / "changes.jsonl"
    said = well("diff", "v1.0.0", "v1.1.0", "--repo", REPO, "--out", out)
    assert "chains changed: 2; studies: 1" in said
    first, second = map(json.loads, out.read_text().splitlines())
    assert "uncertain" in first["after"]
    assert second["after"] is None
    assert "chains changed: 0" in well("diff", "v1.1.0", "v1.1.0", "--repo", REPO)


# -- credentialed data


def test_credentialed_data_go_to_a_folder_without_their_words(
    credentialed: Path, release: Path
) -> None:
    well("publish", credentialed, "--version", "1.0.0")
    folder = credentialed.with_name("mimic-v1.0.0")
    published = [path for path in folder.rglob("*") if path.is_file()]
    assert {"README.md", "PHYSIONET.md", "LICENSE.txt"} <= {path.name for path in published}
    scanned = scan(folder)
    for row in read_studies(credentialed):
        for section in row["sections"]:
            words = section["text"].lower().split()
            for three in zip(words, words[1:], words[2:], strict=False):
                assert " ".join(three) not in scanned
    assert "zebra" not in scanned
    assert str(release) not in scanned
    assert content_of(folder) == read_version(folder)["content_sha256"]


def scan(folder: Path) -> str:
    """All that a published folder says, the values of its Parquet files included."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            parts += [json.dumps(row, default=str) for row in configs.stored_rows(path)]
            parts.append(str(pq.read_schema(path)))
        elif path.is_file() and path.suffix != ".png":
            parts.append(path.read_text(encoding="utf-8"))
    return "\n".join(parts).lower()


def test_the_words_are_put_back_byte_for_byte(
    credentialed: Path, release: Path, tmp_path: Path
) -> None:
    well("publish", credentialed, "--version", "1.0.0", "--to", tmp_path / "free")
    said = well("rehydrate", tmp_path / "free", "--root", release, "--out", tmp_path / "full")
    assert "every file has the bytes of its author's" in said
    assert contents(tmp_path / "full") == contents(credentialed)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_reduced_images_are_made_again(shared: Path, tmp_path: Path) -> None:
    root, built = shared / "data" / "mimic_synth", tmp_path / "built"
    flags = ("--image-scale", "0.25", "--workers", "1")
    well("build", "--source", "mimic", "--root", root, "--out", built, *flags)
    well("publish", built, "--version", "1.0.0", "--to", tmp_path / "free")
    assert not list((tmp_path / "free").rglob("*.jpg"))
    well("rehydrate", tmp_path / "free", "--root", root, "--out", tmp_path / "full")
    assert contents(tmp_path / "full") == contents(built)
    assert any(name.startswith("images/") for name in contents(built))
    own = tmp_path / "own"
    shutil.copytree(root, own, ignore=shutil.ignore_patterns("*.jpg"))
    said = well("rehydrate", tmp_path / "free", "--root", own, "--out", tmp_path / "texts")
    assert re.search(r"\d+ reduced images were not made again", said)
    assert (tmp_path / "texts" / "manifest.json").exists()


@pytest.mark.server
def test_the_shared_release_goes_to_the_hub_and_back(
    shared: Path, hub: HubDouble, tmp_path: Path
) -> None:
    root, built = shared / "data" / "mimic_synth", tmp_path / "built"
    well("build", "--source", "mimic", "--root", root, "--out", built, "--workers", "1")
    put(built)
    assert hub.repos[REPO].private
    sent = b"".join(data for data, _ in hub.repos[REPO].commits[hub.repos[REPO].head].tree.values())
    well("rehydrate", REPO, "--root", root, "--out", tmp_path / "full")
    assert contents(tmp_path / "full") == contents(built)
    for row in read_studies(built):
        for section in row["sections"]:
            assert len(section["text"]) < 20 or section["text"].encode() not in sent


@pytest.mark.parametrize("source", ["ms_cxr", "reflacx"])
def test_phrases_and_boxes_come_back_too(source: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "mimic_synth"
    built, free, full = (tmp_path / name for name in ("built", "free", "full"))
    well("build", "--source", source, "--root", root, "--out", built, "--workers", "1")
    well("publish", built, "--version", "1.0.0", "--to", free)
    well("rehydrate", free, "--root", root, "--out", full)
    assert contents(full) == contents(built)


def test_a_changed_report_is_named(credentialed: Path, release: Path, tmp_path: Path) -> None:
    well("publish", credentialed, "--version", "1.0.0", "--to", tmp_path / "free")
    own = shutil.copytree(release, tmp_path / "own")
    changed = own / "mimic-cxr/files/p10/p10000001/s50000001.txt"
    changed.write_text(changed.read_text().replace("Small", "Large"))
    (own / "mimic-cxr/files/p10/p10000003/s50000003.txt").unlink()
    message = refused("rehydrate", tmp_path / "free", "--root", own, "--out", tmp_path / "full")
    assert "2 reports of this copy are not those that were published" in message
    assert "study 50000001 (mimic-cxr/files/p10/p10000001/s50000001.txt): its text" in message
    assert "study 50000003: there is no such study" in message
    assert "its banks are" not in message
    assert not (tmp_path / "full").exists()
    banks = tmp_path / "banks"
    banks.mkdir()
    section = '[[section]]\nname = "findings"\nphrases = ["zebra findings"]\n'
    (banks / "headings.toml").write_text(f'extends = true\nversion = "9.0.0"\n\n{section}')
    flags = ("--root", own, "--out", tmp_path / "full", "--banks", banks)
    message = refused("rehydrate", tmp_path / "free", *flags)
    assert re.search(r"its banks are 1\.[\d.]+, \w+; these are 9\.0\.0", message)


def test_a_table_of_ones_own_goes_out_without_its_words(tmp_path: Path) -> None:
    table, built, free = tmp_path / "own.csv", tmp_path / "built", tmp_path / "free"
    table.write_text("id,split,text\na,train,Small zebra effusion.\nb,huh,x\nc,test,Clear lungs.\n")
    columns = ("--id-column", "id", "--split-column", "split", "--text-column", "text")
    well("build", "--source", "table", "--root", table, *columns, "--out", built)
    well("publish", built, "--version", "1.0.0", "--to", free)
    scanned = scan(free)
    assert "zebra" not in scanned
    assert "huh" not in scanned, "a reject's detail may quote the table"
    well("rehydrate", free, "--root", table, "--out", tmp_path / "full")
    assert contents(tmp_path / "full") == contents(built)


def test_a_damaged_file_is_named(credentialed: Path, release: Path, tmp_path: Path) -> None:
    well("publish", credentialed, "--version", "1.0.0", "--to", tmp_path / "free")
    (shard,) = (tmp_path / "free").glob("chains/test-*")
    shard.write_bytes(shard.read_bytes() + b"x")
    message = refused("rehydrate", tmp_path / "free", "--root", release, "--out", tmp_path / "full")
    assert f"{shard} is not the file that was published" in message


@pytest.mark.server
def test_credentialed_text_needs_a_promise_and_a_private_repository(
    credentialed: Path, demo: Path, hub: HubDouble
) -> None:
    flags = ("publish", credentialed, "--version", "1.0.0", "--repo", REPO)
    assert "private repository only" in refused(*flags, "--public")
    assert "private repository only" in refused(*flags, "--public", "--i-may-redistribute")
    put(demo, "--public", version="0.1.0")
    before = len(hub.objects)
    assert "exists and is public" in refused(*flags)
    assert "exists and is public" in refused(*flags, "--i-may-redistribute")
    assert len(hub.objects) == before, "a byte was sent"
    hub.repos[REPO].private = True
    put(credentialed, "--i-may-redistribute")
    (row, *_) = load_dataset(REPO, "chains", revision="v1.0.0", split="test")
    assert "zebra" in row["sections"][0]["text"]


def test_a_word_that_is_none_of_the_banks_is_not_published(credentialed: Path) -> None:
    words = redistribution.bank_words(load_banks())
    (row, *_) = read_studies(credentialed)
    edited = {**row["chains"][0], "rule": "review.edited+diseases.effusion~effusion+no@1.0.0"}
    assert redistribution.text_free({**row, "chains": [edited]}, words)
    for name, value in (
        ("concepts", ["zebra film"]),
        ("severity", "quite small"),
        ("rule", "llm: small left effusion"),
        ("section", "Mr Smith's film"),
    ):
        chain = {**row["chains"][0], name: value}
        with pytest.raises(redistribution.UserError, match=f"chains.{name}.*none of the banks"):
            redistribution.text_free({**row, "chains": [chain]}, words)


def test_what_is_stored_is_what_the_clients_would_store(demo: Path) -> None:
    features = configs.chain_features()
    for row in read_studies(demo):
        stored = configs.encoded(dict(features), row)
        assert stored == features.encode_example(row)
        assert configs.decoded(dict(features), stored) == row
    chain = row["chains"][0]
    for wrong in ({**chain, "disease": "Flu"}, {**chain, "more": 1}, {"disease": "Edema"}):
        with pytest.raises(ValueError, match=r"is not in|expected the fields"):
            configs.encoded(dict(features), {**row, "chains": [wrong]})


def test_every_text_of_the_schema_is_public_or_withheld() -> None:
    fields = set(redistribution.text_fields())
    assert fields == {*redistribution.WITHHELD, *redistribution.PUBLIC}


# -- images


def test_reduced_images_go_before_the_originals(tmp_path: Path) -> None:
    built, to = tmp_path / "built", tmp_path / "to"
    well("build", "--source", "demo", "--out", built, "--image-scale", "0.5", "--workers", "1")
    well("publish", built, "--version", "1.0.0", "--to", to)
    loaded = load_dataset(str(to), "report", split="train", cache_dir=str(tmp_path / "cache"))
    row = loaded[0]
    assert row["image"].size == (256, 256)
    stored = loaded.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["bytes"] == (built / "images" / f"{row['image_path']}.jpg").read_bytes()
    assert "reduced by 0.5" in (to / "README.md").read_text(encoding="utf-8")


def test_images_by_path(demo: Path, credentialed: Path, tmp_path: Path) -> None:
    to = tmp_path / "paths"
    well("publish", demo, "--version", "1.0.0", "--to", to, "--images", "paths")
    for path in to.glob("[mrs]*/*.parquet"):
        assert "image" not in configs.features_of(path)
        assert all(row["image_path"].startswith("images/") for row in configs.stored_rows(path))
    flags = ("--version", "1.0.0", "--images", "embed")
    message = refused("publish", credentialed, *flags)
    assert "images of mimic may not go out" in message
    message = refused("publish", credentialed, *flags, "--i-may-redistribute")
    assert "--images embed needs --root" in message
    wrong = ("--root", tmp_path, "--i-may-redistribute")
    assert "is --root the folder" in refused("publish", demo, *flags[:2], *wrong)


@pytest.mark.parametrize("path", ["/home/me/a.png", "../a.png", "C:\\a.png", "x/../../a.png"])
def test_an_image_path_that_leaves_the_release_is_refused(path: str) -> None:
    with pytest.raises(configs.UserError, match="expected one below the release's root"):
        configs.with_image({"image_path": path}, None)


# -- a folder


@pytest.mark.parametrize("version", ["1.2", "v1.2.0", "1.2.0-rc1", "01.2.0", "latest", ""])
def test_a_version_is_three_numbers(demo: Path, version: str) -> None:
    assert "MAJOR.MINOR.PATCH" in refused("publish", demo, "--version", version)


def test_a_folder_keeps_its_version(demo: Path, credentialed: Path, tmp_path: Path) -> None:
    to = tmp_path / "kept"
    well("publish", demo, "--version", "1.0.0", "--to", to)
    before = contents(to)
    well("publish", demo, "--version", "1.0.0", "--to", to)
    assert contents(to) == before
    rehearsal = refused("publish", credentialed, "--version", "1.0.0", "--to", to, "--dry-run")
    assert "with other content" in rehearsal
    message = refused("publish", credentialed, "--version", "1.0.0", "--to", to)
    assert "chains, mcl, report, svr differ" in message
    assert "holds version 1.0.0" in refused("publish", demo, "--version", "1.0.1", "--to", to)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    message = refused("publish", demo, "--version", "1.0.0", "--to", tmp_path / "mine")
    assert "holds no published version" in message


def test_the_hash_does_not_look_at_order_or_files(demo: Path, tmp_path: Path) -> None:
    to = tmp_path / "one"
    well("publish", demo, "--version", "1.0.0", "--to", to)
    (path,) = to.glob("chains/train-*")
    rows = pq.read_table(path)
    backwards = rows.take(list(reversed(range(len(rows)))))
    pq.write_table(backwards.slice(0, 4), to / "chains/train-00000-of-00002.parquet")
    pq.write_table(backwards.slice(4), to / "chains/train-00001-of-00002.parquet")
    path.unlink()
    assert content_of(to) == read_version(to)["content_sha256"]
    pq.write_table(backwards.slice(5), to / "chains/train-00001-of-00002.parquet")
    assert content_of(to) != read_version(to)["content_sha256"]


def test_the_card_says_it_all(demo: Path, tmp_path: Path) -> None:
    to = tmp_path / "card"
    well("publish", demo, "--version", "1.0.0", "--to", to)
    card = (to / "README.md").read_text(encoding="utf-8")
    manifest = read_version(to)
    assert manifest["content_sha256"] in card
    assert set(re.findall(r"\$\w+", card)) == set()
    assert not re.search(r"/home|/tmp|/work", card)
    for picture in re.findall(r"!\[.*\]\((.+)\)", card):
        assert (to / picture).is_file()
    for heading in ("Figures", "Splits and leakage", "Limitations", "Licence and citation"):
        assert f"## {heading}" in card
    loaded = load_dataset(str(to), "chains", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == manifest["configs"]["chains"]["rows"]["train"]


def test_the_hub_has_a_name_for_every_licence() -> None:
    words = read_bank(FOLDER / "card" / "card.toml")["licences"]
    known = {source.licence for source in SOURCES.values() if source.redistribution is not UNKNOWN}
    assert known == set(words)
    assert all(re.fullmatch(r"[a-z0-9.-]+", of.get("license_name", "x")) for of in words.values())


def test_review_and_drafts_stand_on_the_card(demo: Path, tmp_path: Path) -> None:
    edited = shutil.copytree(demo, tmp_path / "edited")
    manifest = json.loads((edited / "manifest.json").read_text())
    manifest["review"] = {"studies": 12, "agreement": {"disease": {"kappa": 0.81234, "n": 40}}}
    (edited / "manifest.json").write_text(json.dumps(manifest))
    well("publish", edited, "--version", "1.0.0", "--to", tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert "| agreement.disease.kappa | 0.8123 |" in card
    assert "No radiologist has reviewed" not in card


def test_croissant_is_valid(demo: Path, credentialed: Path, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    for number, dataset in enumerate((demo, credentialed)):
        to = tmp_path / str(number)
        well("publish", dataset, "--version", "1.0.0", "--to", to)
        described = mlcroissant.Dataset(jsonld=to / "croissant.json")
        assert not described.metadata.ctx.issues.errors
        assert {records.id for records in described.metadata.record_sets} == {
            *read_version(to)["configs"]
        }
