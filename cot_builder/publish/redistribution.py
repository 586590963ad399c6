"""What of a dataset may go on to others; rows without a report's words, and their words put back.

Text-free, a row keeps ids, offsets, closed labels, boxes, counts and the one hash of its texts.
What could quote the report goes: the texts, every `finding`, and the names of its files. What is
left is held against closed sets, study by study, before it is written: a rule's name and the words
of `concepts`, `severity` and `temporal` are the banks' own. Hashes of single phrases are not
published either: anyone could try the usual phrases until one fits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.dataset import SCHEMA, text_sha256
from cot_builder.errors import UserError
from cot_builder.publish.configs import check_relative
from cot_builder.records import Rejected, Report, Row
from cot_builder.sources import SOURCES, SourceOptions, Task, get_source
from cot_builder.sources.contract import UNKNOWN, Redistribution
from knowledge_banks import Banks

# Fields that may hold a report's words, and those that say where it lies on somebody's disk.
WITHHELD: Final = (
    ("sections", "text"),
    ("chains", "finding"),
    ("unmapped", "finding"),
    ("provenance", "file"),
)
# All other fields of text. One that is new to the schema stands in neither list, and is refused.
PUBLIC: Final = (
    *((name,) for name in ("study_id", "subject_id", "source", "split")),
    ("sections", "name"),
    *(("images", name) for name in ("path", "image_id", "view")),
    *(
        ("chains", name)
        for name in (
            "section", "concepts", "disease", "basis", "assertion", "regions", "severity",
            "temporal", "rule", "concept_ids",
        )
    ),
    *(("unmapped", name) for name in ("section", "assertion", "regions", "rule", "concept_ids")),
    *(("grounded", name) for name in ("section", "label")),
    *(
        (column, "boxes", name)
        for column in ("chains", "grounded")
        for name in ("image_id", "source", "kind")
    ),
    *(("provenance", name) for name in ("text_sha256", "bank_version")),
)  # fmt: skip
# Rejects whose detail is the build's own words; any other may quote the release, and is told again
# by reading the reader's copy.
_OWN_WORDS: Final = frozenset(
    {
        "no_findings_or_impression", "image_missing", "image_unreadable", "image_truncated",
        "needs_pydicom",
    }
)  # fmt: skip
_SECTION: Final = re.compile(r"[a-z]+(?:_[a-z]+)*")
_CONCEPT_ID: Final = re.compile(r"[\w.:/-]{1,40}")
# `diseases.effusion~effusion+no@1.0.0`, `review.edited+signs.blunted@1.0.0`: names without blanks.
_RULE: Final = re.compile(r"[\w.:/+~@-]*")
_NAMED: Final = 10


def may_redistribute(named: Mapping[str, Any]) -> Redistribution:
    """Return what the source that a manifest names declares; one that is not known gives nothing.

    A manifest that calls its source credentialed is believed, whatever the source says.
    """
    source = SOURCES.get(named["name"])
    declared = source.redistribution if source else UNKNOWN
    if named["credentialed"] and (declared.text or declared.images):
        return UNKNOWN
    return declared


# -- taking the text out


def text_free(row: Row, words: frozenset[str]) -> Row:
    """Return a row without its report's words; UserError where a word is none of the banks'.

    `words` are the banks' own, as `bank_words` returns them.
    """
    for path, text in _texts(row, ()):
        if path in WITHHELD:
            continue
        if path not in PUBLIC:
            raise AssertionError(f"{'.'.join(path)} is neither withheld nor public")
        if not _is_closed(path, text, words):
            raise UserError(
                f"study {row['study_id']}: {'.'.join(path)} is {text!r:.80}, which is none of the "
                "banks' words and may be the report's: add it to a bank folder (--banks), or "
                "publish in full, if you may (--i-may-redistribute)"
            )
    for image in row["images"]:
        check_relative(image["path"])
    return {name: _without(value, (name,)) for name, value in row.items()}


def bank_words(banks: Banks) -> frozenset[str]:
    """Return all concepts, severities and temporal words that the banks can give a chain."""

    def concepts(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            yield from value.get("concepts", ())
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from concepts(inner)

    attributes = (*banks.attributes["severity"], *banks.attributes["temporal"])
    return frozenset((*concepts(banks._asdict()), *attributes))


def text_fields() -> Iterator[tuple[str, ...]]:
    """Yield the path of every field of the dataset's schema that holds text."""

    def below(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        while hasattr(kind, "value_type"):
            kind = kind.value_type
        if kind.num_fields:
            for field in kind:
                yield from below(field.type, (*path, field.name))
        elif str(kind) == "string":
            yield path

    for field in SCHEMA:
        yield from below(field.type, (field.name,))


def withheld_reject(reject: Row) -> Row:
    """Return a line of `rejects.jsonl` without a detail that may quote the release."""
    return reject if reject["reason"] in _OWN_WORDS else {**reject, "detail": None}


def _is_closed(path: tuple[str, ...], text: str, words: frozenset[str]) -> bool:
    if path[-1] in ("concepts", "severity", "temporal"):
        return text in words
    if path[-1] == "section" or path == ("sections", "name"):
        return bool(_SECTION.fullmatch(text))
    if path[-1] == "concept_ids":
        return bool(_CONCEPT_ID.fullmatch(text))
    return path[-1] != "rule" or bool(_RULE.fullmatch(text))


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, str):
        yield path, value


def _without(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_without(inner, path) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without(inner, (*path, name))
        for name, inner in value.items()
        if (*path, name) not in WITHHELD
    }


# -- putting it back


class Changed(NamedTuple):
    """A study whose report on the reader's disk is not the one that was published."""

    study_id: str
    file: str
    why: str


class Release:
    """The reader's own copy of a release, read a study at a time."""

    def __init__(self, source: str, options: SourceOptions) -> None:
        self._source = get_source(source)
        self._options = options
        plan = self._source.plan(options)
        self._tasks: dict[str, Task] = {task.study_id: task for task in plan.tasks}
        self._details: dict[tuple[str, str, str | None], list[str]] = defaultdict(list)
        self._add(plan.rejects)
        self.changed: list[Changed] = []

    def restored(self, row: Row) -> Row:
        """Return a text-free row with its words; a row of a changed report stays as it came."""
        study_id = row["study_id"]
        task = self._tasks.pop(study_id, None)
        if task is None:
            self._change(study_id, "", "there is no such study in this copy")
            return row
        report = self._load(task)
        if report is None:
            reasons = ", ".join(k[1] for k in self._details if k[2] == study_id)
            self._change(study_id, task.file, f"it cannot be read ({reasons})")
        elif text_sha256(report) != row["provenance"]["text_sha256"]:
            self._change(study_id, task.file, "its text is not the one that was published")
        else:
            return with_text(row, report)
        return row

    def detail(self, reject: Row) -> Row:
        """Return a line of `rejects.jsonl` with its detail, as this copy gives it."""
        if reject["detail"] is not None:
            return reject
        for study_id in [reject["study_id"]] if reject["study_id"] in self._tasks else []:
            self._load(self._tasks.pop(study_id))
        found = self._details[reject["file"], reject["reason"], reject["study_id"]]
        return {**reject, "detail": found.pop(0) if found else None}

    def refuse_changes(self, banks: Mapping[str, str]) -> None:
        """Raise UserError naming the studies whose reports have changed, if there are any.

        `banks` are version and hash of those that the dataset was made with.
        """
        if not self.changed:
            return
        named = "; ".join(
            f"study {study_id}{f' ({file})' if file else ''}: {why}"
            for study_id, file, why in self.changed[:_NAMED]
        )
        more = len(self.changed) - _NAMED
        own = self._options.banks
        other = (
            f" (its banks are {banks['version']}, {banks['sha256'][:12]}; these are {own.version}, "
            f"{own.sha256[:12]})"
            if banks["sha256"] != own.sha256
            else ""
        )
        raise UserError(
            f"{len(self.changed):,} reports of this copy are not those that were published: "
            f"{named}{f'; and {more:,} more' if more > 0 else ''}. Get the release that the card "
            f"names, and read it with the same version of cot-builder and of the banks{other}"
        )

    def _load(self, task: Task) -> Report | None:
        report, rejects = self._source.load(task, self._options)
        self._add(rejects)
        return report

    def _add(self, rejects: Iterable[Rejected]) -> None:
        for reject in rejects:
            key = reject.file, reject.reason, reject.study_id
            self._details[key].append(reject.detail)

    def _change(self, study_id: str, file: str, why: str) -> None:
        self.changed.append(Changed(study_id, file, why))


def with_text(row: Row, report: Report) -> Row:
    """Return a text-free row with the words of its report."""
    texts = {section.name: section.text for section in report.sections}

    def found(mention: Row) -> Row:
        return {**mention, "finding": texts[mention["section"]][mention["start"] : mention["end"]]}

    return {
        **row,
        "sections": [section._asdict() for section in report.sections],
        "chains": list(map(found, row["chains"])),
        "unmapped": list(map(found, row["unmapped"])),
        "provenance": {**row["provenance"], "file": report.file},
    }


def source_options(
    manifest: Mapping[str, Any], banks: Banks, *, root: Path | None, mimic_root: Path | None
) -> SourceOptions:
    """Return the options with which the source of a published dataset is read again."""
    read: Row = {
        name: tuple(tuple(one) if isinstance(one, list) else one for one in value)
        if isinstance(value, list)
        else value
        for name, value in manifest["options"].items()
        if name in _READING
    }
    return replace(SourceOptions(banks=banks, root=root, mimic_root=mimic_root), **read)


# Options of the build that decide what is read; paths are the reader's own.
_READING: Final = frozenset(SourceOptions.__dataclass_fields__) - {
    "banks", "root", "mimic_root", "splits",
}  # fmt: skip
