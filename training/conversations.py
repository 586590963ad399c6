"""Dataset folders, or their revisions on the Hub, to the columns that TRL's trainers take.

Every stage has `images` (one, read when it is needed), `prompt` and `completion`, and who they are
of. SVR has also what its rewards need: `boxes` (xyxy in original pixels), `size` of the original
image and its `extent` in the frame of the answers; its `completion` is the answer looked for, empty
where a phrase has no chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from datasets import Dataset, Features, Image, List, Value
from huggingface_hub import snapshot_download

from cot_builder.boxes import Frame, Size
from cot_builder.conversations import EXAMPLES, with_phrasings
from cot_builder.dataset import MANIFEST, read_manifest, read_studies
from cot_builder.errors import UserError
from cot_builder.images import derivative
from cot_builder.records import Row
from knowledge_banks import Banks
from training.rewards import NEED_BOXES

TASKS: Final = {"mcl": "mcl", "svr": "svr", "adapter": "report"}

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
    """A dataset to train on: its folder, where its images are, and what its manifest says."""

    folder: Path
    root: Path
    reduced: bool
    frame: Frame
    sha256: str
    name: str

    def image(self, path: str) -> Path:
        """Return the file of an image of the dataset."""
        return self.root / (derivative(path) if self.reduced else path)

    def to_row(self) -> Row:
        """Return what a checkpoint keeps of the dataset that it learnt from."""
        return {"name": self.name, "manifest_sha256": self.sha256, "frame": self.frame.to_row()}


def open_source(name: str, image_root: Path | None = None) -> Source:
    """Open a dataset folder, or `owner/name@revision` of the Hub, which is fetched first.

    Images are the dataset's own reduced ones, or those below `image_root`. UserError when there are
    none, since a dataset does not tell where its release was.
    """
    folder = Path(name) if Path(name).is_dir() else _fetched(name)
    manifest = read_manifest(folder)
    if not (manifest.get("images") or image_root):
        raise UserError(
            f"{name} has no images of its own: build it with --image-scale, or say where its "
            "release's images lie with --image-root"
        )
    frame = Frame.from_row(manifest.get("frame", {}))
    reduced = bool(manifest.get("images")) and image_root is None
    return Source(
        folder,
        folder if reduced or image_root is None else image_root,
        reduced,
        # Original images are not reduced, whatever else the dataset has.
        frame if reduced else frame._replace(scale=1.0),
        hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        name,
    )


def _fetched(name: str) -> Path:
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or name.startswith(("/", ".")):
        raise UserError(
            f"no dataset at {name}: expected a folder that `build` wrote, or OWNER/NAME@REVISION "
            "of the Hub"
        )
    try:
        return Path(snapshot_download(repository, repo_type="dataset", revision=revision or None))
    except (OSError, ValueError) as error:
        raise UserError(f"dataset {name} cannot be fetched: {error}") from None


def examples(
    sources: Sequence[Source], stage: str, *, split: str, frame: Frame, banks: Banks
) -> Iterator[Row]:
    """Yield the examples of a stage with the `images` that the model sees; SVR's with `extent`."""
    make = EXAMPLES[TASKS[stage]]
    for source in sources:
        own = frame._replace(scale=source.frame.scale)
        worded = with_phrasings(banks, source.folder)
        for study in read_studies(source.folder):
            if (study["split"] or "train") == split:
                for example in make(study, worded, own):
                    row = example | {"images": [str(source.image(example["image_path"]))]}
                    yield _rewarded(row, own) if stage == "svr" else row


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
    rows = [row for row in found if stage != "svr" or row["boxes"] or reward not in NEED_BOXES][
        :limit
    ]
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
    """Yield every prompt and completion, for a tokenizer to learn from or a check to measure."""
    for row in rows.remove_columns("images"):
        yield row["prompt"][0]["content"]
        answer: Any = row["completion"][0]["content"] if "completion" in row else row["solution"]
        if answer:
            yield answer
