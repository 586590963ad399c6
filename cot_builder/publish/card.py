"""The pages of a version: its card (README.md with YAML), and what PhysioNet asks of a submission.

The words are those of `knowledge_banks/card/`; the figures come from the version's manifest and
its rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from cot_builder.checks import KINDS, SPLIT_PAIRS, Entry, find_leaks, overlaps
from cot_builder.publish.configs import CHAINS, File, decoded, features_of, stored_rows
from cot_builder.publish.croissant import croissant
from cot_builder.publish.redistribution import may_redistribute
from cot_builder.records import Row
from cot_builder.show import coverage_line
from cot_builder.vocabulary import ASSERTIONS, LABELS
from knowledge_banks.loader import FOLDER, read_bank

CARD: Final = "README.md"
CROISSANT: Final = "croissant.json"
PICTURES: Final = "pictures"
SUBMISSION: Final = "PHYSIONET.md"
LICENCE: Final = "LICENSE.txt"
_WORDS: Final = FOLDER / "card"
_SIZES: Final = (
    (1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
)  # fmt: skip
_OPENING: Final = 400  # characters of a section that the row on the card shows
_CHAINS_SHOWN: Final = 3


class Facts(NamedTuple):
    """What a card tells of: how readers call the place, the version, its studies and its files."""

    place: str
    manifest: Mapping[str, Any]
    entries: Sequence[Entry]
    files: Mapping[str, Sequence[File]]


def write_pages(folder: Path, facts: Facts, draw: Callable[[Path], Iterable[Path]]) -> None:
    """Write card, Croissant metadata and pictures; for credentialed data, a submission's parts."""
    words = read_bank(_WORDS / "card.toml")
    pictures = [path.relative_to(folder).as_posix() for path in draw(folder / PICTURES)]
    fields = _fields(folder, facts, words, pictures)
    features = {name: features_of(folder / of[0].path) for name, of in facts.files.items()}
    head = _metadata(facts, words, features, fields["title"])
    page = _filled("card.md", fields)
    (folder / CARD).write_text(f"---\n{head.to_yaml()}\n---\n\n{page}", encoding="utf-8")
    described = croissant(
        facts.place, facts.manifest, features,
        title=fields["title"], summary=fields["summary"], citation=fields["citations"],
        licence=head.get("license_link") or str(head.license),
    )  # fmt: skip
    (folder / CROISSANT).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if facts.manifest["dataset"]["source"]["credentialed"]:
        (folder / SUBMISSION).write_text(_filled("physionet.md", fields), encoding="utf-8")
        (folder / LICENCE).write_text(f"{fields['licence_text']}\n", encoding="utf-8")


# -- the YAML


def _metadata(
    facts: Facts, words: Row, features: Mapping[str, Features], title: str
) -> DatasetCardData:
    source = facts.manifest["dataset"]["source"]
    studies = sum(facts.manifest["configs"][CHAINS]["rows"].values())
    reviewed = "_reviewed" if facts.manifest["dataset"].get("review") else ""
    gated = {
        "extra_gated_prompt": words["gated"]["prompt"],
        "extra_gated_fields": {
            name: "checkbox" if name.startswith("I ") else "text"
            for name in words["gated"]["fields"]
        },
        "viewer": False,
    }
    head = DatasetCardData(
        pretty_name=title,
        language=["en"],
        **words["licences"].get(source["licence"], {"license": "unknown"}),
        annotations_creators=[words[f"annotations_creators{reviewed}"]],
        language_creators=["expert-generated"],
        multilinguality=["monolingual"],
        size_categories=[next((name for most, name in _SIZES if studies < most), "n>10M")],
        source_datasets=["extended"],
        task_categories=words["task_categories"],
        task_ids=words["task_ids"],
        tags=[*words["tags"], source["name"]],
        version=facts.manifest["version"],
        content_sha256=facts.manifest["content_sha256"],
        **gated if source["credentialed"] else {},
    )
    infos = {
        name: DatasetInfo(
            features=features[name],
            config_name=name,
            splits=SplitDict({
                split: SplitInfo(split, sum(f.bytes for f in files if f.split == split), rows)
                for split, rows in facts.manifest["configs"][name]["rows"].items()
            }),
            download_size=sum(file.bytes for file in files),
            dataset_size=sum(file.bytes for file in files),
        )
        for name, files in facts.files.items()
    }  # fmt: skip
    DatasetInfosDict(infos).to_dataset_card_data(head)
    MetadataConfigs(
        {
            name: {
                "data_files": [
                    {"split": split, "path": f"{name}/{split}-*"}
                    for split in facts.manifest["configs"][name]["rows"]
                ],
                **({"default": True} if name == CHAINS else {}),
            }
            for name in facts.files
        }
    ).to_dataset_card_data(head)
    return head


# -- the page


def _fields(folder: Path, facts: Facts, words: Row, pictures: Sequence[str]) -> dict[str, str]:
    version, dataset = facts.manifest, facts.manifest["dataset"]
    source, kind = dataset["source"], "text_free" if version["text_free"] else "full"
    splits = version["configs"][CHAINS]["rows"]
    release = source["release"] or source["name"]
    plain = {
        "place": facts.place,
        "version": version["version"],
        "content": version["content_sha256"],
        "source": release,
        "licence": source["licence"] or "not stated",
        "banks": f"{dataset['banks']['version']} (`{dataset['banks']['sha256'][:12]}`)",
        "tool": ", ".join(f"{name} {number}" for name, number in version["made_with"].items()),
        "studies": f"{sum(splits.values()):,}",
        "chains": f"{sum(sum(of.values()) for of in dataset['chains'].values()):,}",
        "split": next(iter(splits)),
        "command": dataset.get("command") or "cot-builder build ...",
        "scale": str((dataset["images"] or {}).get("scale", 1)),
        "restriction": "its data use agreement applies to these data too",
        "revision": f', revision="v{version["version"]}"' if "/" in facts.place else "",
    }

    def said(text: str) -> str:
        return Template(text).safe_substitute(plain).strip()

    flow, plots = [p for p in pictures if "flow" in p], [p for p in pictures if "flow" not in p]
    return plain | {
        "title": said(words["title"]),
        "summary": said(words["summary"][kind]),
        "flow": flow[0] if flow else "",
        "how_to": said(words["how_to"][kind]),
        "configs": _table(
            ("config", "rows", "holds"),
            (
                (f"`{name}`", _by_split(of["rows"]), words["configs"].get(name, ""))
                for name, of in version["configs"].items()
            ),
        ),
        "row": _one_row(folder, facts),
        "statistics": _statistics(dataset),
        "plots": "\n\n".join(f"![{Path(path).stem}]({path})" for path in plots),
        "provenance": _provenance(dataset),
        "leakage": _leakage(facts.entries),
        "review": _nested("Review", dataset.get("review"))
        + _nested("Drafts of a language model", dataset.get("llm")),
        "limitations": "\n".join(f"- {said(line)}" for line in _limitations(version, words)),
        "rebuild": f"{said(words['rebuild']['build'])}\n\n{words['rebuild']['verify']}",
        "licence_text": _licence(source, words),
        "citations": "\n".join(
            f"- {one}"
            for one in (*words["citations"].values(), *source["citation"].split("; "))
            if one
        ),
    }


def _filled(name: str, fields: Mapping[str, str]) -> str:
    page = Template((_WORDS / name).read_text(encoding="utf-8")).substitute(fields)
    # What a version does not have leaves a gap.
    paragraphs = (part for part in page.replace("![From reports to chains]()", "").split("\n\n"))
    return "\n\n".join(part.strip("\n") for part in paragraphs if part.strip()) + "\n"


def _limitations(version: Mapping[str, Any], words: Row) -> Iterator[str]:
    said, dataset = words["limitations"], version["dataset"]
    yield from said["all"]
    if dataset["images"]:
        yield said["reduced"]
    if dataset.get("llm"):
        yield said["drafted"]
    if not dataset.get("review"):
        yield said["unreviewed"]
    if version["text_free"]:
        yield said["text_free"]


def _one_row(folder: Path, facts: Facts) -> str:
    file = facts.files[CHAINS][0]
    features = dict(features_of(folder / file.path))
    rows = (decoded(features, row) for row in islice(stored_rows(folder / file.path), 50))
    row = max(rows, key=lambda row: (bool(row["images"]), min(len(row["chains"]), _CHAINS_SHOWN)))
    shown = {
        **{name: row[name] for name in ("study_id", "split")},
        "sections": [_shortened(section) for section in row["sections"]],
        "images": row["images"][:1],
        "chains": [
            {name: value for name, value in chain.items() if value not in (None, [])}
            for chain in row["chains"][:_CHAINS_SHOWN]
        ],
        "labels": {name: value for name, value in row["labels"].items() if value is not None},
    }
    lines = (f'"{name}": {_in_lines(value)}' for name, value in shown.items())
    text = ",\n".join(lines)
    return f"A row of `chains`, abridged:\n\n```json\n{{\n{text}\n}}\n```"


def _in_lines(value: Any) -> str:
    """Write a value as JSON, a line for each item of a list."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    items = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value)
    return f"[\n{items}\n]"


def _shortened(section: Row) -> Row:
    text = section.get("text") or ""
    return {**section, "text": f"{text[:_OPENING]}…"} if len(text) > _OPENING else section


def _statistics(dataset: Mapping[str, Any]) -> str:
    coverage = dataset["coverage"]
    splits = _table(
        ("split", "planned", "written", "rejected"),
        (
            (name, *(f"{of[key]:,}" for key in ("planned", "written", "rejected")))
            for name, of in dataset["splits"].items()
        ),
    )
    chains = _table(
        ("chains", *ASSERTIONS),
        (
            (label, *(f"{dataset['chains'][label][name]:,}" for name in ASSERTIONS))
            for label in LABELS
        ),
    )
    unmapped = sum(dataset["unmapped"].values())
    covered = coverage_line(*(coverage[name] for name in ("covered", "bearing", "sentences")))
    return f"{splits}\n\n{chains}\n\n{covered.plain}. Unmapped findings: {unmapped:,}."


def _provenance(dataset: Mapping[str, Any]) -> str:
    source, frame = dataset["source"], dataset["frame"]
    reasons = dataset["rejects"]["by_reason"]
    lines = [
        f"Source: `{source['name']}`, {source['release'] or 'release not named'}.",
        *(f"{note[0].upper()}{note[1:]}." for note in source["notes"]),
        f"Sections decomposed: {', '.join(dataset['options']['sections'])}.",
        f"Made by {dataset['tool']['name']} {dataset['tool']['version']} with banks "
        f"{dataset['banks']['version']} (`{dataset['banks']['sha256']}`), seed {dataset['seed']}.",
        "Boxes are xyxy in pixels of the original images. A model writes them in the frame "
        f"`{frame['name']}` (image sides a multiple of {frame['factor']}, {frame['min_pixels']:,} "
        f"to {frame['max_pixels']:,} pixels).",
        "Set aside, each with its reason in `rejects.jsonl`: "
        + (", ".join(f"{name} {n:,}" for name, n in reasons.items()) or "nothing")
        + ".",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _leakage(entries: Sequence[Entry]) -> str:
    found = overlaps(find_leaks(entries))
    return _table(
        ("shared by", *(f"{kind}s" if kind != "study" else "studies" for kind in KINDS)),
        (
            (f"{one} and {other}", *(f"{found[kind, one, other]:,}" for kind in KINDS))
            for one, other in SPLIT_PAIRS
        ),
    )


def _nested(title: str, table: Mapping[str, Any] | None) -> str:
    """Return a table of a manifest in two columns, a dot between the names of nested ones."""
    if not table:
        return ""

    def lines(value: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from lines(inner, f"{name}.{key}" if name else str(key))
        else:
            yield name, _number(value)

    return f"## {title}\n\n{_table(('', ''), lines(table, ''))}\n\n"


def _licence(source: Mapping[str, Any], words: Row) -> str:
    link = words["licences"].get(source["licence"], {}).get("license_link", "")
    why = may_redistribute(source).why
    return (
        f"The data are under the licence of their source: {source['licence']}"
        f"{f' ({link})' if link else ''}.{f' {why[0].upper()}{why[1:]}.' if why else ''}"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _by_split(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {n:,}" for split, n in rows.items())


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
