"""Dataset folders, or published versions, to the columns that TRL's trainers take.

Every stage has `images` (one, read when it is needed), `prompt` and `completion`, and who they are
of. SVR has also what its rewards need: `boxes` (xyxy in original pixels), `size` of the original
image and its `extent` in the frame of the answers; its `completion` is the answer looked for, empty
where a phrase has no chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from datasets import Dataset, Features, Image, List, Value
from huggingface_hub import cached_assets_path

from cot_builder.boxes import Frame, Size
from cot_builder.conversations import EXAMPLES, with_phrasings
from cot_builder.dataset import MANIFEST, read_manifest, read_studies
from cot_builder.errors import UserError
from cot_builder.images import derivative
from cot_builder.paths import fetched, is_address, where
from cot_builder.publish.configs import read_examples, write_images
from cot_builder.publish.hub import fetch
from cot_builder.publish.version import Manifest, read_version
from cot_builder.records import Row
from knowledge_banks import Banks
from training.rewards import NEED_BOXES

TASKS: Final = {"mcl": "mcl", "svr": "svr", "adapter": "report"}
# Frames in which boxes have the same numbers whatever the pixel budget.
_FIXED: Final = ("norm1000", "percent")

_TURNS: Final = List({"role": Value("string"), "content": Value("string")})
_SHARED: Final = {
    "images": List(Image()),
    "prompt": _TURNS,
    "study_id": Value("string"),
    "image_id": Value("string"),
    "template": Value("string"),
}
_SUPERVISED: Final = Features({**_SHARED, "completion": _TURNS})
_REWARDED: Final = Features(
    {
        **_SHARED,
        "phrase": Value("string"),
        "boxes": List(List(Value("float64"))),
        "size": List(Value("float64")),
        "extent": List(Value("float64")),
        "solution": Value("string"),
    }
)


class Source(NamedTuple):
    """A dataset to train on: its folder, where its images are, and what its manifest says.

    Of a `published` version the examples are taken as they were published.
    """

    folder: Path
    root: Path
    reduced: bool
    frame: Frame
    sha256: str
    name: str
    published: bool = False

    def image(self, path: str) -> Path:
        """Return the file of an image of the dataset."""
        return self.root / (derivative(path) if self.reduced else path)

    def to_row(self) -> Row:
        """Return what a checkpoint keeps of the dataset that it learnt from."""
        return {"name": self.name, "manifest_sha256": self.sha256, "frame": self.frame.to_row()}


def open_source(name: str, image_root: Path | None = None) -> Source:
    """Open a dataset folder, a published one, or one at an address or on the Hub, fetched first.

    Images are the dataset's own or those of the version's examples, or those below `image_root`.
    UserError when there are none, since a dataset does not tell where its release was.
    """
    folder = Path(name) if Path(name).is_dir() else _fetched(name)
    version = _version(folder)
    manifest = version["dataset"] if version else read_manifest(folder)
    if version and version["text_free"]:
        raise UserError(
            f"{name} was published without its text: `cot-builder rehydrate` makes a dataset of it "
            "by your own copy of the release; train on that"
        )
    own = version["images"] == "embedded" if version else manifest.get("images")
    if not (own or image_root):
        raise UserError(
            f"{name} has no images of its own: build it with --image-scale, or say where its "
            "release's images lie with --image-root"
        )
    frame = Frame.from_row(manifest.get("frame", {}))
    reduced = bool(manifest.get("images")) and image_root is None
    sha256 = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    # Images embedded in a version become files beside the Hub's cache.
    home = cached_assets_path("cot-builder", "images", sha256) if version else folder
    source = Source(
        folder,
        image_root or home,
        reduced,
        # Original images are not reduced, whatever else the dataset has.
        frame if reduced else frame._replace(scale=1.0),
        sha256,
        name,
        version is not None,
    )
    if version and not image_root:
        write_images(folder, source.image, scratch=home)
    return source


def _version(folder: Path) -> Manifest | None:
    with suppress(UserError):
        return read_version(folder)
    return None


def _fetched(name: str) -> Path:
    if is_address(name):
        return fetched(where(name))
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or name.startswith(("/", ".")):
        raise UserError(
            f"no dataset at {name}: expected a folder that `build` wrote, its s3:// or hf:// "
            "address, or OWNER/NAME@REVISION of the Hub"
        )
    return fetch(repository, revision or None)


def examples(
    sources: Sequence[Source], stage: str, *, split: str, frame: Frame, banks: Banks
) -> Iterator[Row]:
    """Yield the examples of a stage with the `images` that the model sees; SVR's with `extent`."""
    for source in sources:
        own = frame._replace(scale=source.frame.scale)
        if source.published:
            found = _published(source, stage, split, own)
        else:
            found = _made(source, stage, split, own, banks)
        for example in found:
            row = example | {"images": [str(source.image(example["image_path"]))]}
            yield _rewarded(row, own) if stage == "svr" else row


def _made(source: Source, stage: str, split: str, frame: Frame, banks: Banks) -> Iterator[Row]:
    worded = with_phrasings(banks, source.folder)
    for study in read_studies(source.folder):
        if (study["split"] or "train") == split:
            yield from EXAMPLES[TASKS[stage]](study, worded, frame)


def _published(source: Source, stage: str, split: str, frame: Frame) -> Iterator[Row]:
    """Yield examples as they were published; UserError where their boxes are in another frame."""
    written = source.frame
    same = frame == written or frame.name == written.name in _FIXED
    if stage != "adapter" and not same:
        raise UserError(
            f"{source.name} was published with boxes in {written.name}, {written.pixels}; the run "
            f"has {frame.name}, {frame.pixels}: leave [model] frame and pixels as they are, or "
            "`cot-builder rehydrate` it and train on the folder"
        )
    yield from read_examples(source.folder, TASKS[stage], split)


def columns(
    sources: Sequence[Source],
    stage: str,
    *,
    split: str = "train",
    frame: Frame,
    banks: Banks,
    reward: str = "set",
    limit: int | None = None,
) -> Dataset:
    """Return a stage's examples as TRL takes them; UserError when there are none.

    For rewards that know only boxes, examples with nothing to find are left out.
    """
    found = examples(sources, stage, split=split, frame=frame, banks=banks)
    told = (row for row in found if stage != "svr" or row["boxes"] or reward not in NEED_BOXES)
    rows = list(islice(told, limit))
    features = _REWARDED if stage == "svr" else _SUPERVISED
    if not rows:
        listed = ", ".join(source.name for source in sources)
        lacks = {
            "mcl": "no study with chains and an image",
            "svr": "no phrase with boxes",
            "adapter": "no study with findings and an image",
        }
        raise UserError(f"{stage}: {lacks[stage]} in the {split} split of {listed}")
    return Dataset.from_list(
        [{key: row[key] for key in features} for row in rows], features=features
    )


def _rewarded(row: Row, frame: Frame) -> Row:
    size = Size(row["width"], row["height"])
    return row | {
        "size": list(map(float, size)),
        "extent": list(map(float, frame.extent(size))),
        "solution": row["completion"][0]["content"] if row["completion"] else "",
    }


def texts(rows: Dataset) -> Iterator[str]:
    """Yield every prompt and completion, for a tokenizer to learn from."""
    for row in rows.remove_columns("images"):
        yield row["prompt"][0]["content"]
        answer: Any = row["completion"][0]["content"] if "completion" in row else row["solution"]
        if answer:
            yield answer
