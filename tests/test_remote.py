"""Builds from and into an S3 store, and datasets read from it and from the Hub, by real clients."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import polars as pl
import pytest
from PIL import Image

from annotation.batch import review_batch
from annotation.reviewed import apply_reviews
from cot_builder.dataset import read_manifest, read_rejects, read_studies
from cot_builder.errors import UserError
from cot_builder.images import Scaling
from cot_builder.parts import Portion, build_part, merge
from cot_builder.paths import is_remote, where
from cot_builder.pipeline import build, make_outline
from cot_builder.shards import BuildOptions, Job, Worker
from cot_builder.sources import SourceOptions
from cot_builder.sources.demo import CORPUS
from knowledge_banks import load_banks
from tests.browser import started
from tests.commands import refused, well
from tests.hub_double import HubDouble, Repo
from tests.test_workbench import getter
from training.conversations import open_source

pytestmark = pytest.mark.server
s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

BUCKET = "s3://bucket"
SECRET = "not-to-be-seen"
COT = [sys.executable, "-c", "from cot_builder.cli import main; main()"]


class Store:
    """A moto server: `files` below an address, `requests` by method and path."""

    def __init__(self, url: str, requests: list[str]) -> None:
        self.url, self.requests = url, requests
        urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()  # it is one a process
        self.fs = s3fs.S3FileSystem(use_listings_cache=False)
        self.fs.mkdir("bucket")

    def files(self, address: str) -> dict[str, bytes]:
        start = address.removeprefix("s3://")
        return {name[len(start) + 1 :]: self.fs.cat_file(name) for name in self.fs.find(start)}

    def upload(self, folder: Path, address: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{address.removeprefix('s3://')}/{path.relative_to(folder).as_posix()}"
                self.fs.pipe_file(key, path.read_bytes())


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    requests: list[str] = []

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            requests.append(record.getMessage())

    logger, handler = logging.getLogger("werkzeug"), Log()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()  # they remember the server before
    try:
        yield Store(f"http://{host}:{port}", requests)
    finally:
        server.stop()
        logger.removeHandler(handler)
        s3fs.S3FileSystem.clear_instance_cache()


def options(out: Path | str, root: Path | str | None = None, **changes: Any) -> BuildOptions:
    source = changes.pop("source", "demo")
    release = SourceOptions(banks=load_banks(), root=None if root is None else where(root))
    return BuildOptions(source=source, release=release, out=where(out), shard_size=4, **changes)


def local_files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# -- addresses


@pytest.mark.parametrize("text", ["out/demo", "/data/s3:/x", "C:/data", "."])
def test_a_local_path_stays_one(text: str) -> None:
    assert where(text) == Path(text)
    assert not is_remote(where(text))


@pytest.mark.parametrize("text", ["s3://bucket/a/b", "hf://datasets/me/data@v1.0.0/out"])
def test_an_address_answers_as_a_path_does(text: str) -> None:
    path = where(text)
    assert is_remote(path)
    assert str(path / "c") == f"{text}/c"
    assert (path / "c").relative_to(path).as_posix() == "c"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("gs://bucket/x", "unknown kind of address; expected a local path, or s3://, hf://"),
        (f"s3://me:{SECRET}@bucket/x", "address with a key in it"),
        ("hf://datasets/me/data", "the Hub takes whole versions only"),
        ("s3://nowhere/out", "there is no bucket 'nowhere'; make it first"),
    ],
)
def test_an_output_that_cannot_be_is_told(address: str, told: str, store: Store) -> None:
    with pytest.raises(UserError) as error:
        build(options(address))
    assert told in str(error.value)
    assert SECRET not in str(error.value)
    assert "nowhere" not in store.fs.ls("")


def test_an_extra_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3:// needs s3fs: pip install 'cot-builder\[remote\]'"):
        where("s3://bucket/x")


# -- builds


@pytest.mark.slow
def test_a_build_from_and_into_a_bucket_has_the_bytes_of_a_local_one(
    store: Store, tmp_path: Path
) -> None:
    store.upload(CORPUS, f"{BUCKET}/release/{CORPUS.name}")
    build(options(tmp_path / "local", CORPUS, scaling=Scaling(0.5)))
    far = f"{BUCKET}/release/{CORPUS.name}"
    there = options(f"{BUCKET}/mine/out", far, scaling=Scaling(0.5), workers=2)
    manifest = build(there)
    assert store.files(f"{BUCKET}/mine/out") == local_files(tmp_path / "local")
    assert build(replace(there, resume=True)) == manifest
    assert SECRET.encode() not in b"".join(store.files(f"{BUCKET}/mine/out").values())


def test_the_manifest_names_no_bucket(store: Store) -> None:
    store.upload(CORPUS, f"{BUCKET}/secret/corpus")
    command = ("build", "--source", "demo", "--root", f"{BUCKET}/secret/corpus", "--workers", "1")
    subprocess.run([*COT, *command, "--out", f"{BUCKET}/out"], check=True, capture_output=True)
    manifest = store.files(f"{BUCKET}/out")["manifest.json"]
    assert json.loads(manifest)["command"].endswith("--root corpus --workers 1 --out out")
    assert b"secret" not in manifest
    assert b"bucket" not in manifest


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_where_it_stopped(store: Store, tmp_path: Path) -> None:
    out = f"{BUCKET}/out"
    command = (*COT, "build", "--source", "demo", "--shard-size", "1", "--workers", "2")
    with subprocess.Popen([*command, "--out", out]) as process:
        while len(done := records(store)) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert "manifest.json" not in store.files(out)
    time.sleep(1)  # its workers notice
    written = len(shards_put(store))
    refused = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert "--resume continues it" in refused.stderr
    subprocess.run([*command, "--out", out, "--resume"], check=True, capture_output=True)
    again = shards_put(store)[written:]
    assert len(again) <= 14 - len(done), "what was finished is not written again"
    build(replace(options(tmp_path / "local"), shard_size=1))
    found, expected = store.files(out), local_files(tmp_path / "local")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == ["manifest.json"]
    manifests = [json.loads(files["manifest.json"]) for files in (found, expected)]
    assert manifests[0] | {"command": ""} == manifests[1]


def shards_put(store: Store) -> list[str]:
    return [line for line in store.requests if re.search(r"PUT \S+\.parquet ", line)]


def records(store: Store) -> list[str]:
    return [n for n in store.fs.find("bucket/out/.unfinished") if n.endswith(".json")]


def test_parts_in_a_bucket_merge_there(store: Store, tmp_path: Path) -> None:
    parts = [where(f"{BUCKET}/parts/{n}") for n in range(2)]
    for number, part in enumerate(parts):
        build_part(options(part), Portion(number, 2))
    merge(where(f"{BUCKET}/whole"), parts)
    build(options(tmp_path / "local"))
    assert store.files(f"{BUCKET}/whole") == local_files(tmp_path / "local")


def test_overwriting_leaves_nothing_of_the_dataset_before(store: Store, tmp_path: Path) -> None:
    build(options(f"{BUCKET}/out"))
    fewer = replace(options(f"{BUCKET}/out"), shard_size=100, overwrite=True)
    build(fewer)
    build(replace(fewer, out=tmp_path / "local"))
    assert store.files(f"{BUCKET}/out") == local_files(tmp_path / "local")
    with pytest.raises(UserError, match="holds a complete dataset: --overwrite replaces it"):
        build(options(f"{BUCKET}/out"))


@pytest.mark.parametrize("name", ["reports.csv", "reports.csv.gz", "reports.parquet"])
def test_a_table_in_a_bucket_is_read_as_on_a_disk(name: str, store: Store, tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "report": f"FINDINGS: Pneumothorax {n} cm."} for n in range(9)]
    table = tmp_path / "tables" / name
    table.parent.mkdir()
    if name.endswith("parquet"):
        pl.DataFrame(rows).write_parquet(table)
    else:
        text = "\n".join(
            ["id,report", *(f'{row["id"]},"{row["report"]}"' for row in rows)]
        ).encode()
        table.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    store.upload(table.parent, f"{BUCKET}/tables")
    columns = {"text_column": "report", "id_column": "id"}
    for out, root in (("local", table), ("far", f"{BUCKET}/tables/{name}")):
        given = options(tmp_path / out, root, source="table")
        build(replace(given, release=replace(given.release, **columns)))
    assert local_files(tmp_path / "far") == local_files(tmp_path / "local")
    assert len(list(read_studies(tmp_path / "far"))) == 9


# -- MIMIC-CXR's layout


@pytest.fixture(params=["listed", "walked"])
def mimic(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two patients: a report without its file, one that is not UTF-8, images whole and cut."""
    root = tmp_path / "release"
    lines = ["subject_id,study_id,path"]
    for subject, study in ((10000001, 50000001), (10000001, 50000002), (10000002, 50000003),
                           (10000002, 50000004)):  # fmt: skip
        file = root / f"mimic-cxr/files/p10/p{subject}/s{study}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines.append(f"{subject},{study},{file.relative_to(root / 'mimic-cxr').as_posix()}")
        if study != 50000004:
            text = b"FINDINGS: No edema. Small left effusion.\n"
            file.write_bytes(text + (b"\xff" if study == 50000003 else b""))
        image = root / f"mimic-cxr-jpg/files/p10/p{subject}/s{study}/{study:x}-a.jpg"
        image.parent.mkdir(parents=True)
        Image.effect_noise((900, 700), 90).convert("L").save(image)
        if study == 50000002:
            image.write_bytes(image.read_bytes()[:100_000])
    if request.param == "listed":
        (root / "mimic-cxr/cxr-study-list.csv").write_text("\n".join(lines) + "\n")
    return root


def test_mimic_on_a_bucket_is_mimic_on_a_disk(store: Store, mimic: Path, tmp_path: Path) -> None:
    store.upload(mimic, f"{BUCKET}/release")
    local = build(options(tmp_path / "local", mimic, source="mimic"))
    build(options(tmp_path / "far", f"{BUCKET}/release", source="mimic"))
    assert local_files(tmp_path / "far") == local_files(tmp_path / "local")
    assert local["rejects"]["by_reason"].keys() >= {"not_utf8", "image_truncated"}
    images = [image for row in read_studies(tmp_path / "far") for image in row["images"]]
    assert [(image["width"], image["height"]) for image in images] == [(900, 700)]


def test_a_plan_lists_a_tree_once_and_reads_a_table_in_one_request(
    store: Store, mimic: Path
) -> None:
    # More than the 8 KiB that text is read by.
    if (table := mimic / "mimic-cxr/cxr-study-list.csv").exists():
        table.write_text(table.read_text() + "1,1,files/none.txt\n" * 1000)
    store.upload(mimic, f"{BUCKET}/release")
    store.requests.clear()
    make_outline(options("out", f"{BUCKET}/release", source="mimic"))
    asked = "\n".join(store.requests)
    whole = re.findall(r"prefix=release/([\w-]+)/files/&delimiter=&", asked)
    assert "mimic-cxr" in whole
    assert len(whole) == len(set(whole))
    assert asked.count("GET /bucket/release/mimic-cxr/cxr-study-list.csv") == table.exists()
    assert "none.txt" not in asked


def test_a_store_that_fails_stops_the_build_and_sets_no_study_aside(
    store: Store, mimic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(mimic, f"{BUCKET}/release")
    given = options(tmp_path / "out", f"{BUCKET}/release", source="mimic")
    build_shard = Worker.build_shard

    def unplugged(worker: Worker, job: Job) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        root = where(f"{BUCKET}/release")
        far = SourceOptions(banks=given.release.banks, root=root)
        build_shard(Worker(replace(given, release=far)), job)

    monkeypatch.setattr(Worker, "build_shard", unplugged)
    with pytest.raises(UserError, match=r"cannot reach s3://bucket/release.*AWS_PROFILE"):
        build(given)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not [*(tmp_path / "out").glob("*.parquet")]


def test_without_credentials_it_says_which_are_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.upload(CORPUS, f"{BUCKET}/corpus")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"Unable to locate credentials.*AWS_PROFILE"):
        build(options(tmp_path / "out", f"{BUCKET}/corpus"))
    with pytest.raises(UserError, match="Unable to locate credentials"):
        read_manifest(where(f"{BUCKET}/out"))


# -- datasets


def test_datasets_are_read_in_a_bucket(store: Store, tmp_path: Path) -> None:
    build(options(f"{BUCKET}/out"))
    build(options(tmp_path / "local"))
    far = where(f"{BUCKET}/out")
    assert list(read_studies(far)) == list(read_studies(tmp_path / "local"))
    assert list(read_rejects(far)) == list(read_rejects(tmp_path / "local"))
    study = next(read_studies(far))["study_id"]
    for command in (
        ["stats", f"{BUCKET}/out"],
        ["check", f"{BUCKET}/out"],
        ["show", study, "--dataset", f"{BUCKET}/out"],
    ):
        local = [word.replace(f"{BUCKET}/out", str(tmp_path / "local")) for word in command]
        assert well(*command).splitlines()[3:] == well(*local).splitlines()[3:]


@pytest.fixture
def both(store: Store, tmp_path: Path) -> tuple[str, Path]:
    """The same dataset with reduced images in the bucket and on the disk."""
    build(options(f"{BUCKET}/mine/out", scaling=Scaling(0.5)))
    build(options(tmp_path / "out", scaling=Scaling(0.5)))
    return f"{BUCKET}/mine/out", tmp_path / "out"


@pytest.mark.slow
def test_commands_say_of_a_bucket_what_they_say_of_a_disk(
    both: tuple[str, Path], tmp_path: Path
) -> None:
    rows = list(read_studies(both[1]))
    gold = {"uid": rows[0]["study_id"], "chains": [], "unmapped": []}
    said = [{"study_id": row["study_id"], "report": row["sections"][0]["text"]} for row in rows]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    (tmp_path / "gold.jsonl").write_text(
        json.dumps(gold | {s["name"]: s["text"] for s in rows[0]["sections"]})
    )
    written, told = [], []
    for number, dataset in enumerate(both):
        (folder := tmp_path / f"written-{number}").mkdir()
        told.append(
            [
                well("doctor", dataset, "--overlays", folder),
                well("score-chains", tmp_path / "gold.jsonl", dataset),
                well("banks", "diff", dataset),
                well("score", tmp_path / "said.jsonl", dataset, "--measures", "chexpert"),
                well("cases", tmp_path / "said.jsonl", dataset, "--out", folder / "cases.html"),
                well("publish", dataset, "--version", "1.0.0", "--to", folder / "version"),
            ]
        )
        written.append(local_files(folder))
    assert [text.replace("written-0", "written-1") for text in told[0]] == told[1]
    assert written[0] == written[1]


@pytest.mark.slow
def test_a_page_shows_a_bucket(both: tuple[str, Path]) -> None:
    answers = []
    for dataset in both:
        with started(dataset) as address:
            found = re.search(r":(\d+)/\?key=(\S+)", address)
            assert found
            get = getter(int(found[1]), found[2])
            pages = [get(path) for path in ("/", "/study/1", "/study/1/image/0")]
            answers.append([(status, page) for status, page, _ in pages])
    assert answers[0] == answers[1]
    assert {status for status, _ in answers[0]} == {200}


@pytest.mark.slow
def test_reviews_are_of_a_bucket_and_lie_here(
    both: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, local = map(where, both)
    drawn = [review_batch(dataset, strategy="random", sample=3, seed=1) for dataset in (far, local)]
    assert drawn[0] == drawn[1]
    for out, dataset in (("far", far), ("near", local)):
        apply_reviews(dataset, {}, tmp_path / out)
    assert local_files(tmp_path / "far") == local_files(tmp_path / "near")
    monkeypatch.chdir(tmp_path)
    assert "no reviews in out-reviews" in refused("review", "diff", both[0])


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("stats DATASET", "no dataset folder at s3://bucket/none, or none that you may read"),
        ("browse DATASET", "no dataset folder at s3://bucket/none"),
        ("score said.csv DATASET", "no dataset folder at s3://bucket/none"),
        ("doctor DATASET --overlays DATASET", "--overlays s3://bucket/none: expected a path of"),
        ("compare a DATASET --out b", "runs s3://bucket/none: expected a path of this machine"),
        ("review apply DATASET --out DATASET", "--out s3://bucket/none: expected a path of"),
    ],
)
def test_an_address_that_will_not_do_is_told(
    command: str, told: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "said.csv").write_text("study_id,report\n1,No edema.\n")
    assert told in refused(*command.replace("DATASET", f"{BUCKET}/none").split())
    assert [path.name for path in tmp_path.iterdir()] == ["said.csv"]


def test_training_reads_a_copy_that_is_fetched_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build(options(f"{BUCKET}/out", scaling=Scaling(0.5)))
    source = open_source(f"{BUCKET}/out")
    assert local_files(source.folder) == store.files(f"{BUCKET}/out")
    before = len(store.requests)
    assert open_source(f"{BUCKET}/out").folder == source.folder
    assert len(store.requests) - before <= 3
    with pytest.raises(UserError, match=r"has no manifest\.json, or none that you may read"):
        open_source(f"{BUCKET}/none")


@pytest.mark.slow
def test_the_hub_is_read_by_its_own_addresses(tmp_path: Path) -> None:
    build(options(tmp_path / "local"))
    with HubDouble() as hub:
        token = hub.add_user("me")
        repo = hub.repos["me/data"] = Repo("me/data", True)
        files = {f"corpus/{name}": blob for name, blob in local_files(CORPUS).items()}
        files |= {f"out/{name}": blob for name, blob in local_files(tmp_path / "local").items()}
        repo.add({n: (b, n.endswith((".parquet", ".png"))) for n, b in files.items()}, "one")
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **settings, "HF_HOME": str(tmp_path / "hf")}

        def cot(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*COT, *command], env=environment, capture_output=True, text=True, check=False
            )

        root = "hf://datasets/me/data@main/corpus"
        built = cot("build", "--source", "demo", "--root", root, "--shard-size", "4",
                    "--workers", "1", "--out", str(tmp_path / "far"))  # fmt: skip
        assert built.returncode == 0, built.stderr
        far, local = local_files(tmp_path / "far"), local_files(tmp_path / "local")
        assert [name for name in local if far[name] != local[name]] == ["manifest.json"]
        assert cot("check", "hf://datasets/me/data/out").returncode == 0
        environment["HF_TOKEN"] = hub.add_user("stranger")
        refused = cot("check", "hf://datasets/me/data/out")
        assert "or none that you may read" in refused.stderr
        assert token not in built.stdout + built.stderr + refused.stderr
