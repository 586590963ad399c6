"""A published version to its dataset folder again, with the words of the reader's own release."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from cot_builder.dataset import (
    MANIFEST,
    REJECTS,
    json_lines,
    read_rejects,
    write_shard,
    write_whole,
)
from cot_builder.errors import UserError
from cot_builder.images import BadImageError, Scaling, derivative, write_reduced
from cot_builder.publish.configs import CHAINS, decoded, features_of, stored_rows
from cot_builder.publish.redistribution import Release, source_options
from cot_builder.publish.version import Manifest, read_version
from cot_builder.records import Row
from cot_builder.sources import image_root
from knowledge_banks import Banks

_UNFINISHED: Final = ".unfinished"


class Rehydrated(NamedTuple):
    """What came of a version: how many studies, and the files that are not as their author's.

    `images_missing` counts the reduced images whose originals are not there.
    """

    studies: int
    differing: tuple[str, ...]
    images_missing: int


def rehydrate(
    folder: Path,
    out: Path,
    *,
    banks: Banks,
    root: Path | None = None,
    mimic_root: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Rehydrated:
    """Make the dataset folder of a published version again, its manifest last.

    A text-free version takes its words from the release at `root`. Raises UserError naming every
    study whose report there is not the one that was published, and files that are damaged.
    """
    version = read_version(folder)
    check_files(folder, version)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} holds something already; name a new or empty folder")
    dataset = version["dataset"]
    options = source_options(dataset, banks, root=root, mimic_root=mimic_root)
    if version["text_free"] and root is None:
        raise UserError(
            f"this version holds no text: --root names your copy of {dataset['source']['release']} "
            f"(source {dataset['source']['name']})"
        )
    release = Release(dataset["source"]["name"], options) if version["text_free"] else None
    scratch = out / _UNFINISHED
    scratch.mkdir(parents=True)
    studies = images_missing = 0

    def restored(rows: Iterator[Row]) -> Iterator[Row]:
        nonlocal studies
        for row in rows:
            studies += 1
            progress(studies)
            yield release.restored(row) if release else row

    streams = {
        split: restored(_chains(folder, split)) for split in version["configs"][CHAINS]["rows"]
    }
    for shard in dataset["shards"]:
        split = shard["file"].partition("-")[0]
        rows = list(islice(streams.get(split, iter(())), shard["studies"]))
        if release and release.changed:
            continue  # every changed report is to be named, and nothing more is to be written
        if dataset["images"] and not root:
            images_missing += sum(len(row["images"]) for row in rows)
        elif dataset["images"]:
            images_missing += _write_images(rows, dataset, image_root(options), out)
        shard["sha256"] = write_shard(out / shard["file"], rows, scratch=scratch)
    if release:
        if release.changed:
            shutil.rmtree(out)
        release.refuse_changes(dataset["banks"])
    rejects = map(release.detail, read_rejects(folder)) if release else read_rejects(folder)
    write_whole(out / REJECTS, json_lines(rejects), scratch=scratch)
    text = json.dumps(dataset, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / MANIFEST, text.encode("utf-8", "backslashreplace"), scratch=scratch)
    shutil.rmtree(scratch)
    return Rehydrated(studies, tuple(_differing(read_version(folder), out)), images_missing)


def check_files(folder: Path, version: Manifest) -> None:
    """Raise UserError when a file of a version is missing or not as it was published."""
    for name, expected in version["files"].items():
        if not (folder / name).exists() and not name.endswith((".parquet", REJECTS)):
            continue  # a download may leave out pages and pictures
        try:
            with (folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{folder / name}: {error.strerror}; download it again") from None
        if found != expected:
            raise UserError(
                f"{folder / name} is not the file that was published: its SHA-256 is "
                f"{found[:12]}..., {MANIFEST} says {expected[:12]}...; download it again"
            )


def _chains(folder: Path, split: str) -> Iterator[Row]:
    for path in sorted((folder / CHAINS).glob(f"{split}-*.parquet")):
        features = dict(features_of(path))
        yield from (decoded(features, row) for row in stored_rows(path))


def _write_images(rows: list[Row], dataset: Manifest, root: Path, out: Path) -> int:
    """Reduce the images again as the author's build did; return how many could not be."""
    scaling = Scaling(dataset["images"]["scale"], frozenset(dataset["images"]["inverted"]))
    missing = 0
    for image in (image for row in rows for image in row["images"]):
        try:
            write_reduced(
                root / image["path"], out / derivative(image["path"]), scratch=out / _UNFINISHED,
                scale=scaling.scale, invert=image["image_id"] in scaling.inverted,
            )  # fmt: skip
        except BadImageError:
            missing += 1
    return missing


def _differing(version: Manifest, out: Path) -> Iterator[str]:
    """Yield the files that do not have the bytes of the author's own."""
    expected = {shard["file"]: shard["sha256"] for shard in version["dataset"]["shards"]}
    for name, sha256 in {**expected, **version["dataset_files"]}.items():
        if hashlib.sha256((out / name).read_bytes()).hexdigest() != sha256:
            yield name
