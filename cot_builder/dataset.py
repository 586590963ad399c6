"""The dataset folder: Parquet shards of studies, `rejects.jsonl`, and last `manifest.json`.

A folder without a manifest is not complete. `studies` holds one row a study:

| column | holds |
| --- | --- |
| `study_id`, `subject_id`, `source`, `split` | split: train, validation, test or null |
| `sections` | list of (name, text), every section; all offsets point into these texts |
| `images` | list of (path, image_id, view, width, height); the path starts at the release's root |
| `chains`, `unmapped` | mentions, as in `cot_builder.records`; boxes: xyxy, original pixels |
| `…concept_ids` | in both: of a build with `--link`, [] where nothing was found; null without it |
| `grounded` | phrases that a release gives with boxes: (section, start, end, label, boxes) |
| `labels` | CheXpert's 14, of stated chains: 1, 0, -1 (uncertain), null (not mentioned) |
| `provenance` | report file, SHA-256 of the section texts, bank version, counts of sentences |
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cot_builder.errors import UserError
from cot_builder.paths import is_remote, make_folder, opened, put, told
from cot_builder.records import Decomposition, Report, Row
from cot_builder.vocabulary import LABELS

MANIFEST: Final = "manifest.json"
REJECTS: Final = "rejects.jsonl"

# The folders of an absolute path; the slashes of an address are none.
_FOLDERS: Final = re.compile(r"(?<![\w:/.])(?:/|[A-Za-z]:\\)(?=[^\s/])(?:[^\s/\\'\"]+[/\\])*")

_BUCKETS: Final = re.compile(r"s3://(?:[^\s/'\"]+/+)*(?=[^\s/'\"])")

_TEXT: Final = pa.string()
_TEXTS: Final = pa.list_(pa.string())
_INT: Final = pa.int32()
_BOX: Final = pa.struct(
    [
        ("x1", pa.float64()),
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("image_id", _TEXT),
        ("width", _INT),
        ("height", _INT),
        ("source", _TEXT),
        ("kind", _TEXT),
        ("certainty", pa.float64()),
    ]
)
_CHAIN: Final = pa.struct(
    [
        ("section", _TEXT),
        ("sentence", _INT),
        ("finding", _TEXT),
        ("start", _INT),
        ("end", _INT),
        ("concepts", _TEXTS),
        ("disease", _TEXT),
        ("basis", _TEXT),
        ("assertion", _TEXT),
        ("regions", _TEXTS),
        ("severity", _TEXT),
        ("temporal", _TEXT),
        ("boxes", pa.list_(_BOX)),
        ("rule", _TEXT),
        ("concept_ids", _TEXTS),
    ]
)
_UNMAPPED: Final = pa.struct(
    [
        ("section", _TEXT),
        ("sentence", _INT),
        ("finding", _TEXT),
        ("start", _INT),
        ("end", _INT),
        ("assertion", _TEXT),
        ("regions", _TEXTS),
        ("rule", _TEXT),
        ("concept_ids", _TEXTS),
    ]
)
_GROUNDED: Final = pa.struct(
    [
        ("section", _TEXT),
        ("start", _INT),
        ("end", _INT),
        ("label", _TEXT),
        ("boxes", pa.list_(_BOX)),
    ]
)
_SECTION: Final = pa.struct([("name", _TEXT), ("text", _TEXT)])
_IMAGE: Final = pa.struct(
    [("path", _TEXT), ("image_id", _TEXT), ("view", _TEXT), ("width", _INT), ("height", _INT)]
)
_PROVENANCE: Final = pa.struct(
    [
        ("file", _TEXT),
        ("text_sha256", _TEXT),
        ("bank_version", _TEXT),
        ("sentences", _INT),
        ("bearing", _INT),
        ("covered", _INT),
    ]
)
SCHEMA: Final = pa.schema(
    [
        ("study_id", _TEXT),
        ("subject_id", _TEXT),
        ("source", _TEXT),
        ("split", _TEXT),
        ("sections", pa.list_(_SECTION)),
        ("images", pa.list_(_IMAGE)),
        ("chains", pa.list_(_CHAIN)),
        ("unmapped", pa.list_(_UNMAPPED)),
        ("grounded", pa.list_(_GROUNDED)),
        ("labels", pa.struct([(label, pa.int8()) for label in LABELS])),
        ("provenance", _PROVENANCE),
    ]
)


def study_row(
    report: Report,
    decomposition: Decomposition,
    labels: dict[str, int | None],
    *,
    bank_version: str,
) -> Row:
    """Return one study as a row of the dataset, by the columns of `SCHEMA`."""
    return {
        "study_id": report.study_id,
        "subject_id": report.subject_id,
        "source": report.source,
        "split": report.split,
        "sections": [section._asdict() for section in report.sections],
        "images": [image._asdict() for image in report.images],
        "chains": [chain.to_row() for chain in decomposition.chains],
        "unmapped": [finding.to_row() for finding in decomposition.unmapped],
        "grounded": [phrase.to_row() for phrase in report.grounded],
        "labels": labels,
        "provenance": {
            "file": report.file,
            "text_sha256": text_sha256(report),
            "bank_version": bank_version,
            "sentences": decomposition.sentences,
            "bearing": decomposition.bearing,
            "covered": decomposition.covered,
        },
    }


def text_sha256(report: Report) -> str:
    """Hash the texts of a report's sections, by which a changed report is told."""
    texts = "\n".join(section.text for section in report.sections)
    return hashlib.sha256(texts.encode()).hexdigest()


def shard_name(split: str | None, place: int, of: int, *, any_split: bool = True) -> str:
    """Return a shard's file name, from which `datasets` tells the split.

    Studies without a split go to `unsplit`, which `datasets` leaves out beside real splits; a
    release with no splits at all (`any_split=False`) goes to `train`, as it calls an only split.

    >>> shard_name("validation", 0, 2)
    'validation-00000-of-00002.parquet'
    """
    stem = split or ("unsplit" if any_split else "train")
    return f"{stem}-{place:05d}-of-{of:05d}.parquet"


def write_shard(path: Path, rows: Sequence[Row], *, scratch: Path) -> str:
    """Write rows as one Parquet file and return its SHA-256; equal rows give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
    content = sink.getvalue()
    write_whole(path, content, scratch=scratch)
    return hashlib.sha256(content).hexdigest()


def write_whole(path: Path, content: bytes | pa.Buffer, *, scratch: Path) -> None:
    """Write a file so that it has its name only once all its bytes are on the disk.

    `scratch` is a folder on the same disk for the bytes until then; a store needs none.
    """
    if is_remote(path):
        put(path, bytes(content))
        return
    temporary = scratch / f"{path.name}.{os.getpid()}"
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def take_file(source: Path, target: Path, *, scratch: Path) -> None:
    """Link a file, or copy it, so that it has its name only when whole.

    `scratch` is as for `write_whole`. FileNotFoundError for a source that is missing.
    """
    make_folder(target.parent)
    if is_remote(source) or is_remote(target):
        with told(source):
            content = source.read_bytes()
        write_whole(target, content, scratch=scratch)
        return
    temporary = scratch / f"{os.getpid()}.part"
    try:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or one without links
            shutil.copy2(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a dataset folder; UserError when it is no complete dataset."""
    path = folder / MANIFEST
    with told(folder):
        there = folder.is_dir()
    if not there:
        if is_remote(folder):
            raise UserError(f"no dataset folder at {folder}, or none that you may read")
        raise UserError(
            f"no dataset folder at {folder}; `cot-builder build --out {folder}` makes one"
        )
    try:
        with opened(path) as file:
            manifest: dict[str, Any] = json.loads(file.read().decode())
        manifest["splits"], manifest["shards"]
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: it is not complete; run the build again with --resume"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a manifest of cot-builder ({error}); build the dataset again"
        ) from None
    return manifest


def read_studies(
    folder: Path,
    *,
    columns: Sequence[str] | None = None,
    study_id: str | None = None,
    shard: str | None = None,
) -> Iterator[Row]:
    """Yield the rows of a dataset in its own order.

    `columns` may name nested fields (`provenance.covered`); `study_id` reads that study alone,
    `shard` that file.
    """
    for listed in read_manifest(folder)["shards"]:
        if shard in (None, listed["file"]):
            yield from _read_shard(folder / listed["file"], columns, study_id)


def read_rejects(folder: Path) -> Iterator[Row]:
    """Yield the lines of `rejects.jsonl`: source, file, reason, detail, study_id."""
    with opened(folder / REJECTS) as lines:
        yield from map(json.loads, lines)


def without_folders(text: str) -> str:
    """Return a text whose absolute paths are their last names: no manifest tells of a disk.

    Nor does it tell of a bucket.

    >>> without_folders("cot-builder build --root /home/me/data --out out/mine")
    'cot-builder build --root data --out out/mine'
    >>> without_folders("cot-builder build --root s3://ours/mimic-cxr --out s3://ours/out/")
    'cot-builder build --root mimic-cxr --out out/'
    """
    return _FOLDERS.sub("", _BUCKETS.sub("", text))


def json_lines(rows: Iterable[Row]) -> bytes:
    """Return rows as JSON Lines in UTF-8; what UTF-8 cannot hold is written as escapes of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "backslashreplace"
    )


def _read_shard(path: Path, columns: Sequence[str] | None, study_id: str | None) -> Iterator[Row]:
    only = None if study_id is None else [("study_id", "=", study_id)]
    try:
        if only:
            with opened(path) as file:
                found = pq.read_table(file, columns=columns, filters=only).to_pylist()
            yield from found
            return
        with opened(path) as file, pq.ParquetFile(file) as shard:
            for batch in shard.iter_batches(batch_size=500, columns=columns):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though {MANIFEST} lists it; build again") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not the Parquet file that {MANIFEST} lists: {error}") from None
