"""Find the studies of a dataset folder by words, label, assertion, region and disagreement.

The shards are read once, into columns in memory: the texts, and a row for each mention with its
label, assertion and regions as small numbers, so that a search is a scan of a few arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import polars as pl

from cot_builder.dataset import read_manifest
from cot_builder.errors import UserError
from cot_builder.paths import is_remote, opened
from cot_builder.records import Row
from cot_builder.vocabulary import ASSERTIONS, LABELS, REGIONS

UNMAPPED: Final = "unmapped"
ANY: Final = "any"
# What the mentions of a study may be of: a label, or none of them.
SUBJECTS: Final = (*LABELS, UNMAPPED)
_WORDS: Final = re.compile(r'"([^"]+)"?|(\S+)')
_COLUMNS: Final = ("study_id", "split", "sections", "labels", "chains", "unmapped", "grounded")


class Query(NamedTuple):
    """What to look for; an empty string asks for nothing.

    `label`, `assertion` and `region` are of one and the same mention. `text` holds words that must
    all occur, or "phrases in quotes", in a section or the study's id. `differs` names a label on
    which another labeller disagrees, or `any`. `only` is one of `boxes`, `predicted`, `changed`.
    """

    text: str = ""
    label: str = ""
    assertion: str = ""
    region: str = ""
    split: str = ""
    differs: str = ""
    only: str = ""

    def words(self) -> list[str]:
        """Return the words and quoted phrases of `text`, the first 16 of them."""
        found = (match[1] or match[2] for match in islice(_WORDS.finditer(self.text), 16))
        return [*dict.fromkeys(found)]

    def pattern(self) -> re.Pattern[str]:
        """Return what finds any of the words in a text."""
        return re.compile("|".join(map(re.escape, self.words())) or r"\Z", re.IGNORECASE)


class Hit(NamedTuple):
    """One study of a result list; `place` is its number in the dataset."""

    place: int
    study_id: str
    split: str
    text: str
    labels: tuple[tuple[str, str], ...]


class Index:
    """A dataset's studies in memory, in its own order; a study's place there is its address."""

    def __init__(self, folder: Path) -> None:
        self.manifest = read_manifest(folder)
        self.folder = folder
        self._shards: list[tuple[int, Path]] = []
        studies, mentions = [], []
        start = 0
        for shard in self.manifest["shards"]:
            frame = _read(folder / shard["file"])
            studies.append(_studies(frame))
            mentions += [_mentions(frame, name, start) for name in ("chains", "unmapped")]
            self._shards.append((start, folder / shard["file"]))
            start += frame.height
        if not start:
            raise UserError(f"{folder} holds no study to look at")
        self.studies = pl.concat(studies, rechunk=True).with_row_index("place")
        self.mentions = pl.concat(mentions, rechunk=True)
        self.splits = sorted(set(self.studies["split"].unique()) - {""})
        self.places: dict[str, int] = dict(zip(self.studies["study_id"], range(start), strict=True))
        self._only = {"boxes": self.studies.filter("boxed")["place"]}
        self._differs: dict[str, pl.Series] = {}
        self._searched = self.studies.select(
            "place", "study_id", "split", pl.col("text").str.to_lowercase()
        )
        self.find = lru_cache(maxsize=32)(self._find)

    def __len__(self) -> int:
        return self.studies.height

    def mark(self, only: str, studies: Iterable[str]) -> None:
        """Let a query ask for these studies alone; ids that the dataset lacks are left out."""
        self._only[only] = self._places(studies)
        self.find.cache_clear()

    def mark_differing(self, disagreements: Iterable[tuple[str, str]]) -> None:
        """Let a query ask for studies on which another labeller differs: study id and label."""
        by_label: dict[str, list[str]] = {ANY: []}
        for study_id, label in disagreements:
            by_label.setdefault(label, []).append(study_id)
            by_label[ANY].append(study_id)
        self._differs = {label: self._places(ids) for label, ids in by_label.items()}
        self.find.cache_clear()

    @property
    def marks(self) -> dict[str, int]:
        """Return what `only` may ask for, and of how many studies it holds."""
        return {name: len(places) for name, places in self._only.items()}

    @property
    def differing(self) -> dict[str, int]:
        """Return the labels on which another labeller differs, and in how many studies."""
        return {
            label: len(self._differs[label]) for label in (ANY, *LABELS) if label in self._differs
        }

    def hits(self, places: pl.Series) -> list[Hit]:
        """Return what a list shows of these studies."""
        return [
            Hit(row["place"], row["study_id"], row["split"], row["text"], _labels(row))
            for row in self.studies[places.to_list()].iter_rows(named=True)
        ]

    def row(self, place: int) -> Row:
        """Read one study's row from its shard; KeyError when there is no such place."""
        if not 0 <= place < len(self):
            raise KeyError(place)
        start, path = max(shard for shard in self._shards if shard[0] <= place)
        row = pl.scan_parquet(_file(path)).slice(place - start, 1).collect().row(0, named=True)
        return dict(row)

    def _find(self, query: Query) -> pl.Series:
        """Return the places of the studies that a query asks for, in the dataset's order.

        An unknown label, assertion or region is a UserError that lists the known ones.
        """
        for name, known in (
            ("label", SUBJECTS), ("assertion", ASSERTIONS), ("region", REGIONS),
            ("split", self.splits), ("differs", [*self._differs]), ("only", [*self._only]),
        ):  # fmt: skip
            value = getattr(query, name)
            if value and value not in known:
                raise UserError(f"unknown {name} {value!r}; known: {', '.join(known) or 'none'}")
        found = self._searched
        if query.split:
            found = found.filter(pl.col("split") == query.split)
        for wanted in (self._differs.get(query.differs), self._only.get(query.only)):
            if wanted is not None:
                found = found.filter(pl.col("place").is_in(wanted.implode()))
        if (of_mention := _of_mention(query)) is not None:
            places = self.mentions.filter(of_mention)["place"].unique()
            found = found.filter(pl.col("place").is_in(places.implode()))
        # Long words are rare ones: what they leave is soon looked through for the others.
        for word in sorted(query.words(), key=len, reverse=True):
            in_text = pl.col("text").str.contains(word.lower(), literal=True)
            in_id = pl.col("study_id").str.contains(word, literal=True)
            found = found.filter(in_text | in_id)
        return found["place"]

    def _places(self, studies: Iterable[str]) -> pl.Series:
        places = {self.places[study] for study in studies if study in self.places}
        return pl.Series(sorted(places), dtype=pl.UInt32)


def _of_mention(query: Query) -> pl.Expr | None:
    wanted = []
    if query.label:
        wanted.append(pl.col("label") == SUBJECTS.index(query.label))
    if query.assertion:
        wanted.append(pl.col("assertion") == ASSERTIONS.index(query.assertion))
    if query.region:
        wanted.append(pl.col("regions") & (1 << REGIONS.index(query.region)) != 0)
    return pl.all_horizontal(wanted) if wanted else None


def _file(path: Path) -> Path | BinaryIO:
    return opened(path) if is_remote(path) else path  # which polars reads in place


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(_file(path), columns=list(_COLUMNS))
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though the manifest lists it; build again") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is not a shard of a dataset: {error}") from None


def _studies(frame: pl.DataFrame) -> pl.DataFrame:
    texts = pl.col("sections").list.eval(pl.element().struct.field("text")).list.join("\n")
    boxes = pl.col("chains").list.eval(pl.element().struct.field("boxes").list.len()).list.sum()
    return frame.select(
        "study_id",
        pl.col("split").fill_null(""),
        texts.alias("text"),
        "labels",
        (boxes + pl.col("grounded").list.len() > 0).alias("boxed"),
    )


def _mentions(frame: pl.DataFrame, column: str, start: int) -> pl.DataFrame:
    """Return a row a mention: study, label and assertion as numbers, regions as bits."""
    field = pl.col(column).struct.field
    bits = {region: 1 << number for number, region in enumerate(REGIONS)}
    of = field("disease") if column == "chains" else pl.lit(UNMAPPED)
    return (
        frame.select(column)
        .with_row_index("place", start)
        .explode(column)
        .drop_nulls(column)
        .select(
            "place",
            _numbered(of, SUBJECTS).alias("label"),
            _numbered(field("assertion"), ASSERTIONS).alias("assertion"),
            field("regions")
            .list.eval(pl.element().replace_strict(bits, return_dtype=pl.UInt16))
            .list.sum()
            .cast(pl.UInt16)
            .alias("regions"),
        )
    )


def _numbered(column: pl.Expr, names: tuple[str, ...]) -> pl.Expr:
    numbers = {name: number for number, name in enumerate(names)}
    return column.replace_strict(numbers, return_dtype=pl.UInt8)


def _labels(row: Row) -> tuple[tuple[str, str], ...]:
    """Return the labels that are there or may be, with their assertion."""
    words = {1: "positive", -1: "uncertain"}
    return tuple((label, words[value]) for label, value in row["labels"].items() if value in words)
