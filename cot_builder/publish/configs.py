"""Rows to the Parquet files of a published version: typed features, shards, and content hashes.

`chains` holds a dataset's own rows, a file for each of its shards, in their order. The other
configs hold training examples, with the image or its path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, List, Value

from cot_builder.boxes import KINDS
from cot_builder.dataset import SCHEMA, write_whole
from cot_builder.errors import UserError
from cot_builder.records import BASES, Row
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS

CHAINS: Final = "chains"
# Rows of a row group: what a reader that streams has to fetch before its first row.
_ROWS: Final = 1000
_ROWS_WITH_IMAGES: Final = 100

# Fields of `SCHEMA` whose values are a closed set, wherever they stand.
_CLOSED: Final[Mapping[str, tuple[str, ...]]] = {
    "disease": LABELS,
    "label": LABELS,
    "basis": BASES,
    "assertion": ASSERTIONS,
    "regions": REGIONS,
    "kind": KINDS,
}


class File(NamedTuple):
    """A Parquet file that was written: its rows, size and SHA-256, and a hash of each row."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str
    row_hashes: tuple[str, ...]


# -- features


def chain_features(withheld: Iterable[tuple[str, ...]] = ()) -> Features:
    """Return the features of `chains`: those of the dataset, closed sets as ClassLabel.

    `withheld` names fields to leave out, as ("chains", "finding").
    """
    gone = set(withheld)

    def typed(feature: Any, path: tuple[str, ...]) -> Any:
        if isinstance(feature, dict):
            inner = {name: typed(value, (*path, name)) for name, value in feature.items()}
            return {name: value for name, value in inner.items() if (*path, name) not in gone}
        if isinstance(feature, List):
            return List(typed(feature.feature, path), length=feature.length)
        names = _CLOSED.get(path[-1])
        return ClassLabel(names=list(names)) if names else feature

    return Features(typed(dict(Features.from_arrow_schema(SCHEMA)), ()))


def example_features(task: str, *, images: bool) -> Features:
    """Return the features of a config of training examples, with an `image` column or without."""
    texts = (
        "study_id", "subject_id", "source", "split", "image_id", "image_path", "template",
    )  # fmt: skip
    messages = List({"role": Value("string"), "content": Value("string")})
    own: dict[str, dict[str, Any]] = {
        "svr": {
            "phrase": Value("string"),
            "boxes": List(List(Value("float64"), length=4)),
            "width": Value("int32"),
            "height": Value("int32"),
            "frame": Value("string"),
        },
        "report": {"findings": Value("string")},
    }
    return Features(
        {
            **({"image": Image()} if images else {}),
            **{name: Value("string") for name in texts},
            "prompt": messages,
            "completion": messages,
            **own.get(task, {}),
        }
    )


def encoded(feature: Any, value: Any) -> Any:
    """Return a value as it is stored: a ClassLabel's name as its number.

    `Features.encode_example` would do the same in four times the time, and take a missing field for
    None. Raises ValueError for a missing or an unknown field, and for a name of no class.
    """
    if value is None:
        return None
    if isinstance(feature, dict):
        if value.keys() != feature.keys():
            raise ValueError(f"expected the fields {', '.join(feature)}; got {', '.join(value)}")
        return {name: encoded(inner, value[name]) for name, inner in feature.items()}
    if isinstance(feature, List):
        return [encoded(feature.feature, one) for one in value]
    return feature.names.index(value) if isinstance(feature, ClassLabel) else value


def decoded(feature: Any, value: Any) -> Any:
    """Return a stored value as it was; the inverse of `encoded`."""
    if value is None:
        return None
    if isinstance(feature, dict):
        return {name: decoded(inner, value[name]) for name, inner in feature.items()}
    if isinstance(feature, List):
        return [decoded(feature.feature, one) for one in value]
    return feature.names[value] if isinstance(feature, ClassLabel) else value


# -- files


def write_files(
    folder: Path,
    config: str,
    shards: Iterable[tuple[str, Iterable[Row]]],
    features: Features,
) -> list[File]:
    """Write (split, rows) shards of a config below a folder, leaving out those without a row.

    Equal rows give equal bytes, so that an upload which was cut off finds its files again.
    """
    (folder / config).mkdir(parents=True, exist_ok=True)
    written: list[File] = []
    for number, (split, rows) in enumerate(shards):
        path = folder / config / f"{number}.unfinished"
        row_hashes = _write(path, rows, features)
        if row_hashes:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            size = path.stat().st_size
            written.append(File(str(path), split, len(row_hashes), size, sha256, row_hashes))
        else:
            path.unlink()
    return [_named(folder, config, file, written) for file in written]


def _write(path: Path, rows: Iterable[Row], features: Features) -> tuple[str, ...]:
    size = _ROWS_WITH_IMAGES if "image" in features else _ROWS
    schema = features.arrow_schema
    row_hashes: list[str] = []
    # Content-defined chunks let the Hub store what two versions share once.
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_content_defined_chunking=True,
        write_page_index=True,
    ) as writer:
        waiting, columns = iter(rows), dict(features)
        while batch := [_stored(columns, row) for row in islice(waiting, size)]:
            table = pa.Table.from_pylist(batch, schema=schema)
            row_hashes += map(row_sha256, table.to_pylist())
            writer.write_table(table)
    return tuple(row_hashes)


def _stored(columns: dict[str, Any], row: Row) -> Row:
    try:
        stored: Row = encoded(columns, row)
    except ValueError as error:
        raise UserError(
            f"study {row.get('study_id')}: {error}; a dataset of another version of cot-builder is "
            "to be built again"
        ) from None
    return stored


def _named(folder: Path, config: str, file: File, of: list[File]) -> File:
    same = [other.path for other in of if other.split == file.split]
    name = f"{config}/{file.split}-{same.index(file.path):05d}-of-{len(same):05d}.parquet"
    Path(file.path).replace(folder / name)
    return file._replace(path=name)


def stored_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file as they are stored."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_WITH_IMAGES):
            yield from batch.to_pylist()


def features_of(path: Path) -> Features:
    """Return the features that a published Parquet file says it has."""
    return Features.from_arrow_schema(pq.read_schema(path))


# -- images


def read_image(path: Path) -> dict[str, Any]:
    """Return an image file as the Image feature stores it."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        raise UserError(
            f"{path} is a DICOM file, which no Image column can hold: build the dataset with "
            "--image-scale, or publish with --images paths"
        )
    try:
        return {"bytes": path.read_bytes(), "path": path.name}
    except OSError as error:
        raise UserError(
            f"image {path} cannot be read: {error.strerror}; is --root the folder at which the "
            "dataset's image paths start? --images paths publishes without pixels"
        ) from None


def check_relative(path: str) -> None:
    """Refuse an image path that is not below a release's root: it would load nowhere else."""
    pure = PurePosixPath(path.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or path[1:2] == ":":
        raise UserError(
            f"image path {path!r}: expected one below the release's root; build the dataset again"
        )


def with_image(row: Row, files: Callable[[str], Path] | None) -> Row:
    """Return an example with its image, or with its relative path alone."""
    check_relative(row["image_path"])
    return {**row, "image": read_image(files(row["image_path"]))} if files else row


def read_examples(folder: Path, task: str, split: str) -> Iterator[Row]:
    """Yield the training examples of a published version, without their images.

    Studies of no split count as training data.
    """
    for path in sorted((folder / task).glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name != "image"]
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                yield from (row for row in batch.to_pylist() if (row["split"] or "train") == split)


def write_images(folder: Path, place: Callable[[str], Path], *, scratch: Path) -> None:
    """Write the images that a version's training examples embed to where `place` puts their paths.

    Those that are there already are not read again.
    """
    for path in sorted(folder.glob("*/*.parquet")):
        with pq.ParquetFile(path) as file:
            if "image" not in file.schema_arrow.names:
                continue
            for group in range(file.num_row_groups):
                paths = file.read_row_group(group, ["image_path"])["image_path"].to_pylist()
                for named in paths:
                    check_relative(named)
                if all(place(named).is_file() for named in paths):
                    continue
                images = file.read_row_group(group, ["image"])["image"].to_pylist()
                for named, image in zip(paths, images, strict=True):
                    place(named).parent.mkdir(parents=True, exist_ok=True)
                    write_whole(place(named), image["bytes"], scratch=scratch)


# -- hashes


def row_sha256(row: Row) -> str:
    """Hash a row as stored; bytes count by their own hash, so that a row is small.

    >>> row_sha256({"a": 1, "b": None}) == row_sha256({"b": None, "a": 1})
    True
    """
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=_hashed)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def config_sha256(hashes: Iterable[tuple[str, str]]) -> str:
    """Hash a config by (split, hash of a row), whatever the order and the files they stand in."""
    return _digest(f"{split} {row}" for split, row in hashes)


def content_sha256(configs: Mapping[str, str]) -> str:
    """Hash a version by the hashes of its configs."""
    return _digest(f"{name} {sha256}" for name, sha256 in configs.items())


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _hashed(value: Any) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"a row holds {type(value).__name__}")
    return hashlib.sha256(value).hexdigest()
