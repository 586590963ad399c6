"""Check datasets: leakage between splits, sides against boxes, contradictions, and the records.

Within a dataset or across several, no subject, study or image of a test or validation split may
stand in another split. What is found is a `Problem`: errors make `cot-builder check` fail, warnings
are for a reader to look at.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.boxes import XYXY, Box
from cot_builder.decompose.units import fold
from cot_builder.errors import UserError
from cot_builder.images import derivative
from cot_builder.labels import report_labels
from cot_builder.records import Chain, Row, Section, Unmapped
from cot_builder.sentences import split_sentences
from cot_builder.sources import Task, mimic
from cot_builder.sources.contract import SPLITS
from cot_builder.sources.reading import Rejects
from cot_builder.vocabulary import ASSERTIONS, LABELS
from knowledge_banks import Banks, expand

SPLIT_PAIRS: Final = (("train", "validation"), ("train", "test"), ("validation", "test"))
KINDS: Final = ("subject", "study", "image")
# Part of the image's width by which a box's centre may lie beyond the middle, on the wrong side. In
# 15 radiographs with both lungs boxed, the middle between the lungs is off by up to 0.06.
SIDE_TOLERANCE: Final = 0.1

# Their patients and studies are numbered 1, 2, 3: an id of another release that is the same is not
# the same person. All other releases annotate MIMIC-CXR, or are a user's own and may do so.
_OWN_NUMBERS: Final = frozenset({"demo", "iu_xray", "nih", "vindr", "chestx_det"})
# A shorter image id ("0", "frontal") names an image within its study only.
_WHOLE_ID: Final = 8
_FRONTAL: Final = re.compile("ap|pa|frontal|antero|postero", re.IGNORECASE)
_SIDES: Final = ("left", "right")
_NAMED: Final = 3


Mention = Chain | Unmapped


class Problem(NamedTuple):
    """Something wrong with a study, or with a whole dataset; `severity` is error or warning."""

    check: str
    study_id: str | None
    detail: str
    severity: str = "error"
    dataset: str = ""


# -- leakage


class Entry(NamedTuple):
    """What the leakage gate knows of a study; `split` None is left out of training and tests."""

    dataset: str
    source: str
    study_id: str
    subject_id: str | None
    split: str | None
    images: tuple[str, ...]


class Leak(NamedTuple):
    """A subject, study or image that stands in more than one split: where, by split."""

    kind: str
    name: str
    places: dict[str, Entry]

    def __str__(self) -> str:
        where = ", ".join(
            f"{split} ({place.dataset}, study {place.study_id})"
            for split, place in self.places.items()
        )
        return f"{self.kind} {self.name} is in {where}"


def entry(dataset: str, row: Row, *, any_split: bool) -> Entry:
    """Return a dataset's row as the gate sees it: a dataset with no splits at all is all train."""
    split = row["split"] if any_split else "train"
    images = (_image_key(image["image_id"], image["path"]) for image in row["images"])
    return Entry(
        dataset, row["source"], row["study_id"], row["subject_id"], split, tuple(images)
    )  # fmt: skip


def find_leaks(entries: Sequence[Entry]) -> list[Leak]:
    """Return every subject, study and image that two splits share, in the order of the entries."""
    splits: dict[tuple[str, str, str], frozenset[str]] = {}
    for place in entries:
        if place.split:
            own = frozenset((place.split,))
            for key in _keys(place):
                before = splits.setdefault(key, own)
                if place.split not in before:
                    splits[key] = before | own
    shared = {key: Leak(key[0], key[2], {}) for key, found in splits.items() if len(found) > 1}
    for place in entries if shared else ():
        for key in _keys(place):
            if place.split and key in shared:
                shared[key].places.setdefault(place.split, place)
    return list(shared.values())


def refuse_leaks(source: str, tasks: Iterable[Task]) -> None:
    """Raise UserError when the studies of a plan leak between its splits, naming the first ones."""
    entries = [
        Entry(task.file, source, task.study_id, task.subject_id, task.split, tuple(
            _image_key(image.image_id, image.path) for image in task.images
        ))
        for task in tasks
    ]  # fmt: skip
    if leaks := find_leaks(entries):
        named = "; ".join(map(str, leaks[:_NAMED]))
        more = f"; and {len(leaks) - _NAMED:,} more" if len(leaks) > _NAMED else ""
        raise UserError(
            f"the splits of this release leak: {named}{more}. A patient belongs to one split: "
            "correct the table that gives the splits, or leave the splits out"
        )


def overlaps(leaks: Iterable[Leak]) -> Counter[tuple[str, str, str]]:
    """Count leaks by kind and pair of splits."""
    return Counter(
        (leak.kind, *pair)
        for leak in leaks
        for pair in SPLIT_PAIRS
        if all(split in leak.places for split in pair)
    )


def _keys(place: Entry) -> Iterator[tuple[str, str, str]]:
    family = place.source if place.source in _OWN_NUMBERS else ""
    if place.subject_id:
        yield "subject", family, place.subject_id
    yield "study", family, place.study_id
    for image in place.images:
        yield "image", "", image


def _image_key(image_id: str, path: str) -> str:
    return image_id if len(image_id) >= _WHOLE_ID else path


# -- splits against MIMIC-CXR's


class SplitCounts(NamedTuple):
    """Rows whose split agrees with MIMIC-CXR's own, and those that a filter by it drops.

    `same_words` are the rows that a comparison of the bare words keeps. `spelt` counts the words
    that mean the same and are spelt otherwise, `differ` those that do not, as (release, MIMIC).
    """

    rows: int
    agree: int
    same_words: int
    spelt: Counter[tuple[str, str]]
    differ: Counter[tuple[str, str]]
    not_listed: int


def compare_splits(pairs: Iterable[tuple[str | None, str | None]]) -> SplitCounts:
    """Count rows (the release's split, MIMIC-CXR's or None where it lists no such study).

    The authors of BoxMed-RL dropped rows by comparing words, and so lost all validation rows of
    MS-CXR, which says `val` where MIMIC-CXR says `validate`.

    >>> counts = compare_splits([("train", "train"), ("val", "validate"), ("train", "test")])
    >>> counts.rows, counts.agree, counts.same_words
    (3, 2, 1)
    """
    spelt: Counter[tuple[str, str]] = Counter()
    differ: Counter[tuple[str, str]] = Counter()
    rows = same_words = not_listed = 0
    for release, official in pairs:
        rows += 1
        own, theirs = release or "", official or ""
        if not theirs:
            not_listed += 1
        elif own == theirs:
            same_words += 1
        elif SPLITS.get(own.lower(), own) == SPLITS.get(theirs, theirs):
            spelt[own, theirs] += 1
        else:
            differ[own, theirs] += 1
    return SplitCounts(rows, same_words + spelt.total(), same_words, spelt, differ, not_listed)


def official_splits(mimic_root: Path) -> dict[str, str]:
    """Return MIMIC-CXR's split of each study; UserError where its table is missing or broken."""
    rejects = Rejects(mimic.NAME)
    splits = mimic.official(mimic_root, rejects).splits
    if splits is None:
        raise UserError(
            f"--mimic-root {mimic_root}: found no mimic-cxr-2.*-split.csv in or below it; it is "
            "one of MIMIC-CXR-JPG's tables"
        )
    if rejects.records:
        first = rejects.records[0]
        raise UserError(
            f"MIMIC-CXR's split table is broken: {first.file}: {first.reason}, {first.detail} "
            f"({len(rejects.records):,} such lines); download it again"
        )
    return splits


def _official(
    entries: Iterable[Entry], official: Mapping[str, str]
) -> Iterator[tuple[Entry, str | None]]:
    for place in entries:
        if place.source not in _OWN_NUMBERS and place.split:
            yield place, official.get(place.study_id)


# -- contradictions


class Kind(NamedTuple):
    """A kind of mention, as a table of `contradictions.toml` says; None fits everything."""

    labels: frozenset[str] | None
    unmapped: bool
    concepts: tuple[str, ...] | None
    basis: frozenset[str] | None
    assertions: frozenset[str] | None
    finding: re.Pattern[str] | None
    sentence: re.Pattern[str] | None
    unless: re.Pattern[str] | None

    def fits(self, mention: Mention, sentence: Callable[[], str]) -> bool:
        """Tell whether a mention is of this kind; its sentence is asked for last."""
        if isinstance(mention, Unmapped):
            plain = self.unmapped
        else:
            plain = (
                not self.unmapped
                and (self.labels is None or mention.disease in self.labels)
                and (self.concepts is None or mention.concepts == self.concepts)
                and (self.basis is None or mention.basis in self.basis)
            )
        return (
            plain
            and (self.assertions is None or mention.assertion in self.assertions)
            and (self.finding is None or bool(self.finding.search(fold(mention.finding))))
            and (self.sentence is None or bool(self.sentence.search(sentence())))
            and not (self.unless and self.unless.search(sentence()))
        )


class Pair(NamedTuple):
    """Two kinds of mention that do not go together when they share all that `same` names."""

    name: str
    why: str
    severity: str
    same: frozenset[str]
    one: Kind
    other: Kind


def compile_pairs(banks: Banks) -> tuple[Pair, ...]:
    """Make the pairs of `contradictions.toml` ready to look for."""
    signs = {sign["id"]: sign for sign in banks.signs["sign"]}
    return tuple(
        Pair(
            pair["id"], pair["why"], pair["severity"], frozenset(pair.get("same", ())),
            _kind(pair["one"], signs), _kind(pair["other"], signs),
        )
        for pair in banks.contradictions["pair"]
    )  # fmt: skip


def _kind(table: Mapping[str, Any], signs: Mapping[str, Row]) -> Kind:
    def names(key: str) -> frozenset[str] | None:
        return frozenset(table[key]) if key in table else None

    def phrases(key: str) -> re.Pattern[str] | None:
        forms = sorted({form for phrase in table.get(key, ()) for form in expand(phrase)})
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b") if forms else None

    sign = signs.get(table.get("sign", ""))
    return Kind(
        labels=frozenset((sign["disease"],)) if sign else names("labels"),
        unmapped=table.get("unmapped", False),
        concepts=tuple(sign.get("concepts", ())) if sign else None,
        basis=names("basis"),
        assertions=names("assertions"),
        finding=phrases("finding"),
        sentence=phrases("sentence"),
        unless=phrases("unless"),
    )


def regions_around(banks: Banks) -> dict[str, frozenset[str]]:
    """Return each region with all the regions that hold it."""
    holder = {region["name"]: region.get("within") for region in banks.regions["region"]}

    def outward(region: str | None) -> Iterator[str]:
        while region:
            yield region
            region = holder[region]

    return {region: frozenset(outward(region)) for region in holder}


# -- one study


class Study(NamedTuple):
    """A row with its mentions read: what a check of one study looks at."""

    row: Row
    chains: tuple[Chain, ...]
    unmapped: tuple[Unmapped, ...]

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """All chains and unmapped findings."""
        return (*self.chains, *self.unmapped)


class Given(NamedTuple):
    """What checks go by: pairs that contradict, which regions hold which, where images lie."""

    pairs: tuple[Pair, ...]
    inside: Mapping[str, frozenset[str]]
    images: Path | None = None


class Fault(NamedTuple):
    """What a check finds in a study."""

    detail: str
    severity: str = "error"


def check_offsets(study: Study, given: Given) -> Iterator[Fault]:
    """`section_text[start:end] == finding`, for every mention."""
    texts = {section["name"]: section["text"] for section in study.row["sections"]}
    for mention in study.mentions:
        found = texts.get(mention.section, "")[mention.start : mention.end]
        if found != mention.finding:
            yield Fault(
                f"{_said(mention)}: characters {mention.start} to {mention.end} of "
                f"{mention.section} are {found!r}"
            )


def check_labels(study: Study, given: Given) -> Iterator[Fault]:
    """The 14 labels are those of the stated chains."""
    expected = report_labels(study.chains, whole=not study.row["grounded"])
    for label in LABELS:
        if (has := study.row["labels"][label]) != expected[label]:
            yield Fault(f"label {label} is {has}; its chains make it {expected[label]}")


def check_boxes(study: Study, given: Given) -> Iterator[Fault]:
    """A box lies on an image of its study, and was drawn on one of that size."""
    sizes = {i["image_id"]: (i["width"], i["height"]) for i in study.row["images"]}
    for chain in study.chains:
        for box in chain.boxes:
            size = sizes.get(box.image_id)
            if size is None:
                yield Fault(f"{_said(chain)}: {_at(box)} is on no image of the study")
            elif all(size) and size != (box.width, box.height):
                yield Fault(
                    f"{_said(chain)}: {_at(box)} is for {box.width} x {box.height} pixels; the "
                    f"image has {size[0]} x {size[1]}"
                )


def check_sides(study: Study, given: Given) -> Iterator[Fault]:
    """A chain of one side has a box there: the patient's left is the right half of the image.

    In frontal views, and where the view is not known: box releases annotate frontal ones. A box
    whose centre is beyond the middle by no more than SIDE_TOLERANCE of the width passes.
    """
    views = {image["image_id"]: image["view"] or "" for image in study.row["images"]}
    for chain in study.chains:
        side = one_side(chain.regions)
        boxes = [b for b in chain.boxes if _is_frontal(views.get(b.image_id, ""))]
        if (
            side
            and boxes
            and all(beyond(box.xyxy, box.width, side) > SIDE_TOLERANCE for box in boxes)
        ):
            other = _SIDES[side == "left"]
            yield Fault(
                f"{_said(chain)} is {side} ({', '.join(chain.regions)}), but {_at(boxes[0])} lies "
                f"in the {side} half of the image, which is the patient's {other}"
            )


def check_contradictions(study: Study, given: Given) -> Iterator[Fault]:
    """No two mentions are a pair of `contradictions.toml`."""
    mentions = study.mentions
    sentences: dict[tuple[str, int], str] = {}

    def sentence(mention: Mention) -> str:
        if not sentences:
            for section in study.row["sections"]:
                for found in split_sentences(Section(section["name"], section["text"])):
                    sentences[found.section, found.index] = fold(found.text)
        return sentences.get((mention.section, mention.sentence), "")

    for pair in given.pairs:
        ones = [m for m in mentions if pair.one.fits(m, partial(sentence, m))]
        others = [m for m in mentions if pair.other.fits(m, partial(sentence, m))] if ones else ()
        meeting = ((a, b) for a in ones for b in others if _meet(a, b, pair.same, given.inside))
        if first := next(meeting, None):
            yield Fault(
                f"{pair.name}: {_said(first[0])} and {_said(first[1])}: {pair.why}", pair.severity
            )


def check_derivatives(study: Study, given: Given) -> Iterator[Fault]:
    """Every image of a dataset with reduced images is there."""
    for image in study.row["images"] if given.images else ():
        assert given.images
        if not (path := given.images / derivative(image["path"])).exists():
            yield Fault(f"image {image['image_id']}: {path} is missing")


# To add one: write a function of a study that yields what is wrong with it, and name it here.
CHECKS: Final[dict[str, Callable[[Study, Given], Iterator[Fault]]]] = {
    "offsets": check_offsets,
    "labels": check_labels,
    "boxes": check_boxes,
    "sides": check_sides,
    "contradictions": check_contradictions,
    "derivatives": check_derivatives,
}
# These look at more than one study, or come before its mentions can be read.
WHOLE: Final = ("leakage", "official_split", "manifest", "records")


def check_study(row: Row, given: Given) -> Iterator[Problem]:
    """Run all checks of one study on a row of a dataset."""
    study_id = row["study_id"]
    read: list[Mention] = []
    readers: dict[str, Callable[[Row], Mention]] = {
        "chains": Chain.from_row, "unmapped": Unmapped.from_row,
    }  # fmt: skip
    for column, from_row in readers.items():
        for number, mention in enumerate(row[column], 1):
            try:
                read.append(from_row(mention))
            except (ValueError, TypeError, KeyError) as error:
                yield Problem("records", study_id, f"{column} {number}: {error}")
    chains = tuple(mention for mention in read if isinstance(mention, Chain))
    study = Study(row, chains, tuple(m for m in read if isinstance(m, Unmapped)))
    for name, check in CHECKS.items():
        for found in check(study, given):
            yield Problem(name, study_id, *found)


def _said(mention: Mention) -> str:
    label = mention.disease if isinstance(mention, Chain) else "unmapped"
    return f"{mention.finding!r} ({mention.section}, {label} {mention.assertion})"


def _at(box: Box) -> str:
    return f"box {', '.join(f'{number:g}' for number in box.xyxy)} of {box.image_id}"


def _is_frontal(view: str) -> bool:
    return not view or bool(_FRONTAL.match(view))


def one_side(regions: Iterable[str]) -> str | None:
    """Return the side that all regions lie on, left or right of the patient, if there is one."""
    return next((side for side in _SIDES if all(r.startswith(side) for r in regions)), None)


def beyond(xyxy: XYXY, width: float, side: str) -> float:
    """Return how far a box's centre lies beyond the middle, on the other side, in image widths."""
    off = (xyxy[0] + xyxy[2]) / 2 / width - 0.5
    return -off if side == "left" else off


def _meet(
    a: Mention,
    b: Mention,
    same: frozenset[str],
    inside: Mapping[str, frozenset[str]],
) -> bool:
    if a is b:
        return False
    if "label" in same and getattr(a, "disease", None) != getattr(b, "disease", None):
        return False
    if "sentence" in same and (a.section, a.sentence) != (b.section, b.sentence):
        return False
    if "region" in same and not set(a.regions) & set(b.regions):
        return False
    return "place" not in same or any(
        one in inside[other] for one in a.regions for other in b.regions
    )


# -- a dataset


class Dataset(NamedTuple):
    """A dataset folder, opened: its manifest, and its rows to go through once."""

    folder: Path
    manifest: Mapping[str, Any]
    rows: Iterable[Row]


class Checked(NamedTuple):
    """What checks found: problems, the overlaps of splits, and splits against MIMIC-CXR's."""

    studies: int
    problems: list[Problem]
    overlaps: Counter[tuple[str, str, str]]
    splits: dict[str, SplitCounts]


def check_datasets(
    datasets: Iterable[Dataset], banks: Banks, *, official: Mapping[str, str] | None = None
) -> Checked:
    """Run all checks on datasets, the leakage gate across all of them.

    `official` is MIMIC-CXR's split of each study; a study that it has in another split is an error.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    splits: dict[str, SplitCounts] = {}
    for dataset in datasets:
        name, first = str(dataset.folder), len(entries)
        for problem in _check_dataset(dataset, banks, entries):
            problems.append(problem._replace(dataset=name))
        if official is not None:
            pairs = list(_official(entries[first:], official))
            splits[name] = compare_splits((place.split, theirs) for place, theirs in pairs)
            problems += _wrong_splits(pairs)
    leaks = find_leaks(entries)
    for leak in leaks:
        held_out = leak.places.get("test") or leak.places["validation"]
        problems.append(Problem("leakage", held_out.study_id, str(leak), dataset=held_out.dataset))
    return Checked(len(entries), problems, overlaps(leaks), splits)


def _check_dataset(dataset: Dataset, banks: Banks, entries: list[Entry]) -> Iterator[Problem]:
    manifest = dataset.manifest
    images = dataset.folder if manifest.get("images") else None
    given = Given(compile_pairs(banks), regions_around(banks), images)
    any_split = any(shard["split"] for shard in manifest["shards"])
    yield from _check_shards(dataset)
    studies: Counter[str] = Counter()
    chains: Counter[tuple[str, str]] = Counter()
    for row in dataset.rows:
        entries.append(entry(str(dataset.folder), row, any_split=any_split))
        studies[row["split"] or "unsplit"] += 1
        chains.update((chain["disease"], chain["assertion"]) for chain in row["chains"])
        yield from check_study(row, given)
    written = manifest["counts"]["written"]
    yield from _check_count("studies", studies.total(), written)
    for split in sorted({*studies, *manifest["splits"]}):
        said = manifest["splits"].get(split, {}).get("written", 0)
        yield from _check_count(f"studies of split {split}", studies[split], said)
    for label in LABELS:
        for assertion in ASSERTIONS:
            said = manifest["chains"][label][assertion]
            yield from _check_count(f"chains {label} {assertion}", chains[label, assertion], said)


def _check_count(what: str, found: int, said: int) -> Iterator[Problem]:
    if found != said:
        yield Problem("manifest", None, f"{what}: the rows have {found:,}, the manifest {said:,}")


def _check_shards(dataset: Dataset) -> Iterator[Problem]:
    for shard in dataset.manifest["shards"]:
        path = dataset.folder / shard["file"]
        if not path.exists():
            continue  # reading its rows says so
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard["sha256"]:
            yield Problem(
                "manifest",
                None,
                f"{shard['file']} is not the file that the build wrote: its SHA-256 is "
                f"{found[:12]}..., the manifest says {shard['sha256'][:12]}...",
            )


def _wrong_splits(pairs: Iterable[tuple[Entry, str | None]]) -> Iterator[Problem]:
    for place, theirs in pairs:
        if theirs and theirs != place.split:
            detail = f"study {place.study_id} is in {place.split}; MIMIC-CXR has it in {theirs}"
            yield Problem("official_split", place.study_id, detail, dataset=place.dataset)
