"""A dataset folder to a version's folder: Parquet by config, card, Croissant, then manifest."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cot_builder import __version__
from cot_builder.boxes import Frame
from cot_builder.checks import Entry, entry
from cot_builder.conversations import EXAMPLES, with_phrasings
from cot_builder.dataset import (
    MANIFEST,
    REJECTS,
    json_lines,
    read_manifest,
    read_rejects,
    read_studies,
    without_folders,
)
from cot_builder.doctor import Files, image_files
from cot_builder.errors import UserError
from cot_builder.publish.card import Facts, write_pages
from cot_builder.publish.configs import (
    CHAINS,
    File,
    chain_features,
    config_sha256,
    content_sha256,
    example_features,
    row_sha256,
    stored_rows,
    with_image,
    write_files,
)
from cot_builder.publish.redistribution import (
    WITHHELD,
    bank_words,
    may_redistribute,
    text_free,
    withheld_reject,
)
from cot_builder.records import Row
from cot_builder.sources import demo
from knowledge_banks import Banks

Manifest = dict[str, Any]
Images = Literal["auto", "embed", "paths"]

_VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_UNFINISHED: Final = ".unfinished"
# Where a model was asked may name the inside of a network: it stays in the author's own manifest.
_ADDRESSES: Final = frozenset({"base_url", "zero_retention_host"})
_ADDRESSED: Final = re.compile(r"(--(?:llm-base-url|zero-retention-host))[= ](?:'[^']*'|\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOptions:
    """What to publish: a dataset folder as a version, written to `folder`.

    `place` is what readers will call it (`org/name`). `root` is where image paths start, for
    datasets without reduced copies. `draw` puts pictures for the card into a folder.
    """

    dataset: Path
    version: str
    folder: Path
    place: str
    banks: Banks
    root: Path | None = None
    images: Images = "auto"
    may_redistribute: bool = False
    draw: Callable[[Path], Iterable[Path]] = lambda _: ()

    def rehearsed(self) -> VersionOptions:
        """Return the same, for a folder that is thrown away."""
        return replace(self, folder=self.folder.with_name(f".{self.folder.name}.rehearsal"))


class Terms(NamedTuple):
    """How a dataset may be published: with its text, with pixels, to whom, and why no more."""

    text: bool
    pixels: bool
    private_only: bool
    why: str


def terms(options: VersionOptions) -> Terms:
    """Return how a dataset goes out: text-free unless its source, or its owner, lets it go."""
    manifest = read_manifest(options.dataset)
    declared, agreed = may_redistribute(manifest["source"]), options.may_redistribute
    text = declared.text or agreed
    pixels = text and (declared.images or agreed) and options.images != "paths"
    if options.images == "embed" and not pixels:
        raise UserError(
            f"--images embed: images of {manifest['source']['name']} may not go out, since "
            f"{declared.why}; --i-may-redistribute says that you may"
        )
    if options.images == "embed" and _image_files(options) is None:
        raise UserError("--images embed needs --root, the folder at which the image paths start")
    return Terms(
        text, pixels and _image_files(options) is not None,
        bool(manifest["source"]["credentialed"]) or not text, declared.why,
    )  # fmt: skip


def write_version(options: VersionOptions) -> Manifest:
    """Write a version into its folder, all or nothing, and return its manifest.

    A folder that has this version with the same content stays as it is. Raises UserError when it
    holds anything else.
    """
    check_version(options.version)
    how = terms(options)
    stage = options.folder.with_name(f".{options.folder.name}{_UNFINISHED}")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir(parents=True)
        manifest = _write(options, how, stage)
        if kept := version_in(options.folder, manifest):
            return kept
        if options.folder.is_dir():
            options.folder.rmdir()
        stage.rename(options.folder)
    except OSError as error:
        raise UserError(f"cannot write {options.folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return manifest


def check_version(version: str) -> None:
    """Refuse a version that is not MAJOR.MINOR.PATCH."""
    if not _VERSION.fullmatch(version):
        raise UserError(f"--version {version}: expected MAJOR.MINOR.PATCH, as 1.2.0")


def read_version(folder: Path) -> Manifest:
    """Return the manifest of a published version's folder; UserError when it is none."""
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["content_sha256"], manifest["dataset"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} holds no published version: expected a {MANIFEST} that `cot-builder "
            "publish` wrote"
        ) from None
    return manifest


def content_of(folder: Path) -> str:
    """Compute the content hash of a version from its Parquet files alone."""
    hashes: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*/*-*-of-*.parquet")):
        rows = ((path.name.split("-")[0], row_sha256(row)) for row in stored_rows(path))
        hashes.setdefault(path.parent.name, []).extend(rows)
    return content_sha256({config: config_sha256(rows) for config, rows in hashes.items()})


# -- writing


def _write(options: VersionOptions, how: Terms, stage: Path) -> Manifest:
    dataset = read_manifest(options.dataset)
    _check_shards(options.dataset, dataset)
    entries: list[Entry] = []
    files = {CHAINS: _write_chains(options, how, stage, dataset, entries)}
    if how.text:
        files |= _write_examples(options, how, stage, dataset)
    files = {config: written for config, written in files.items() if written}
    if not files:
        raise UserError(f"{options.dataset} has no study: there is nothing to publish")
    rejects = read_rejects(options.dataset)
    lines = json_lines(rejects if how.text else map(withheld_reject, rejects))
    (stage / REJECTS).write_bytes(lines)
    manifest: Manifest = {
        "version": options.version,
        "content_sha256": content_sha256({name: _hash(of) for name, of in files.items()}),
        "text_free": not how.text,
        "images": "embedded" if how.pixels else "paths",
        "configs": {config: _described(written) for config, written in files.items()},
        "made_with": {
            "cot-builder": __version__,
            **{name: installed(name) for name in ("datasets", "pyarrow")},
        },
        "dataset": _public(dataset),
        "dataset_files": {
            name: _sha256((options.dataset / name).read_bytes()) for name in (MANIFEST, REJECTS)
        },
    }
    write_pages(stage, Facts(options.place, manifest, entries, files), options.draw)
    manifest["files"] = {
        path.relative_to(stage).as_posix(): _sha256_of(path)
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    }
    (stage / MANIFEST).write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return manifest


def _check_shards(folder: Path, dataset: Manifest) -> None:
    for shard in dataset["shards"]:
        path = folder / shard["file"]
        if path.exists() and _sha256_of(path) != shard["sha256"]:
            raise UserError(
                f"{path} is not the file that {MANIFEST} lists, so that it could not be made "
                "again from a release: build the dataset again"
            )


def _write_chains(
    options: VersionOptions, how: Terms, stage: Path, dataset: Manifest, entries: list[Entry]
) -> list[File]:
    words = bank_words(options.banks)
    any_split = any(shard["split"] for shard in dataset["shards"])

    def rows(shard: str) -> Iterator[Row]:
        for row in read_studies(options.dataset, shard=shard):
            entries.append(entry("", row, any_split=any_split))
            yield row if how.text else text_free(row, words)

    shards = ((_split(shard["file"]), rows(shard["file"])) for shard in dataset["shards"])
    return write_files(stage, CHAINS, shards, chain_features(() if how.text else WITHHELD))


def _write_examples(
    options: VersionOptions, how: Terms, stage: Path, dataset: Manifest
) -> dict[str, list[File]]:
    frame = Frame.from_row(dataset["frame"])
    images = _image_files(options) if how.pixels else None
    banks = with_phrasings(options.banks, options.dataset)

    def rows(task: str, shard: str) -> Iterator[Row]:
        for study in read_studies(options.dataset, shard=shard):
            for row in EXAMPLES[task](study, banks, frame):
                yield with_image(row, images)

    return {
        task: write_files(
            stage,
            task,
            ((_split(shard["file"]), rows(task, shard["file"])) for shard in dataset["shards"]),
            example_features(task, images=images is not None),
        )
        for task in EXAMPLES
    }


def _image_files(options: VersionOptions) -> Files | None:
    """Return where images lie: reduced copies of the dataset before the originals at the root."""
    manifest = read_manifest(options.dataset)
    if manifest.get("images"):
        return image_files(options.dataset)
    root = options.root
    if root is None and manifest["source"]["name"] == demo.NAME:
        root = demo.CORPUS
    return image_files(options.dataset, root) if root else None


def _split(shard: str) -> str:
    return shard.partition("-")[0]


def _hash(files: Iterable[File]) -> str:
    return config_sha256((file.split, row) for file in files for row in file.row_hashes)


def _described(files: list[File]) -> Row:
    splits = dict.fromkeys(file.split for file in files)
    return {
        "sha256": _hash(files),
        "rows": {name: sum(f.rows for f in files if f.split == name) for name in splits},
        "bytes": sum(file.bytes for file in files),
    }


def _public(value: Any) -> Any:
    """Return a manifest without where files lie on somebody's disk and where a model was asked."""
    if isinstance(value, Mapping):
        return {name: _public(inner) for name, inner in value.items() if name not in _ADDRESSES}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    if isinstance(value, str):
        return without_folders(_ADDRESSED.sub(r"\1 ...", value))
    return value


def version_in(where: Path, new: Manifest) -> Manifest | None:
    """Return the version that a folder holds, the very same one; None for an empty folder.

    Raises UserError when it holds anything else.
    """
    if not (where.is_dir() and any(where.iterdir())):
        return None
    old = read_version(where)
    if old["version"] != new["version"]:
        raise UserError(f"{where} holds version {old['version']}; name another folder")
    if old["content_sha256"] != new["content_sha256"]:
        raise UserError(other_content(str(where), old, new))
    return old


def other_content(where: str, old: Manifest, new: Manifest) -> str:
    """Say that a version exists with other content, and in which configs it differs."""
    names = {*old["configs"], *new["configs"]}
    differ = sorted(
        name
        for name in names
        if old["configs"].get(name, {}).get("sha256") != new["configs"].get(name, {}).get("sha256")
    )
    return (
        f"{where} has version {old['version']} with other content "
        f"({old['content_sha256'][:12]}..., this is {new['content_sha256'][:12]}...; "
        f"{', '.join(differ)} differ): a version never changes, choose the next one"
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
