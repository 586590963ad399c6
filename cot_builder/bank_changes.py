"""What a bank edit does to a dataset: which chains come, go, or change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cot_builder.dataset import json_lines
from cot_builder.decompose import Decomposer
from cot_builder.decompose.lexicon import compile_lexicon
from cot_builder.errors import UserError
from cot_builder.records import Chain, Decomposition, Row, Section, Unmapped
from knowledge_banks import Banks

# The table of each bank that `banks show` lists.
_ENTRIES: Final = (
    ("diseases", "disease"),
    ("devices", "device"),
    ("signs", "sign"),
    ("unmapped", "finding"),
    ("structures", "structure"),
    ("states", "state"),
    ("regions", "region"),
    ("cues", "cue"),
    ("attributes", "severity"),
    ("attributes", "temporal"),
    ("contradictions", "pair"),
    ("releases", "category"),
    ("headings", "section"),
)


class Change(NamedTuple):
    """One mention that two banks read differently; None where a bank gives nothing."""

    study_id: str
    section: str
    start: int
    before: str | None
    after: str | None


def changed_chains(
    studies: Iterable[Row], old: Banks, new: Banks, *, sections: Sequence[str]
) -> Iterator[Change]:
    """Decompose the studies of a dataset with both banks and yield every difference, in its order.

    `sections` are those that the dataset was built from; the bank version in a rule's name is no
    difference.
    """
    return differences(studies, Decomposer(old), Decomposer(new), sections=sections)


def differences(
    studies: Iterable[Row], first: Decomposer, second: Decomposer, *, sections: Sequence[str]
) -> Iterator[Change]:
    """Yield the changes as `changed_chains`, by decomposers that are ready."""
    for study in studies:
        texts = [Section(**s) for s in study["sections"] if s["name"] in sections]
        before, after = _described(first.decompose(texts)), _described(second.decompose(texts))
        for place in sorted(before.keys() | after.keys()):
            if before.get(place) != after.get(place):
                section, start, _ = place
                yield Change(study["study_id"], section, start, before.get(place), after.get(place))


def _described(found: Decomposition) -> dict[tuple[str, int, str], str]:
    """Say in words what stands at each place, by section, offset and label."""
    described: dict[tuple[str, int, str], str] = {}
    mentions: list[Chain | Unmapped] = [*found.chains, *found.unmapped]
    for mention in mentions:
        label = mention.disease if isinstance(mention, Chain) else "unmapped"
        place = (mention.section, mention.start, label)
        # Two phrases may begin at one word; neither may hide the other.
        described[place] = "; ".join(filter(None, (described.get(place), _line(mention, label))))
    return described


def _line(mention: Chain | Unmapped, label: str) -> str:
    rule = mention.rule.partition("@")[0]
    return (
        f"{mention.finding} · {label} · {mention.assertion} · {', '.join(mention.regions)} [{rule}]"
    )


def changes_table(changes: list[Change], *, limit: int = 50) -> RenderableType:
    """Return the first changes as a table, and how many there are in how many studies."""
    table = Table("study", "section", "before", "after")
    for change in changes[:limit]:
        table.add_row(
            change.study_id, change.section,
            Text(change.before or "—", style="red"), Text(change.after or "—", style="green"),
        )  # fmt: skip
    studies = len({change.study_id for change in changes})
    shown = f"; the first {limit} are shown" if len(changes) > limit else ""
    return Group(table, Text(f"chains changed: {len(changes)}; studies: {studies}{shown}"))


def write_changes(path: Path, changes: Iterable[Change]) -> None:
    """Write every change as a line of JSON: study_id, section, start, before, after."""
    try:
        path.write_bytes(json_lines(change._asdict() for change in changes))
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror}") from None


def banks_table(banks: Banks) -> RenderableType:
    """Return the content of banks in figures and names."""
    table = Table("bank", "version", "entries", "what it holds")
    table.title = f"banks {banks.version} ({banks.sha256[:12]}) of {banks.folder}"
    for bank, key in _ENTRIES:
        held = getattr(banks, bank)
        names = [_entry(row) for row in held[key]]
        table.add_row(bank, held["version"], str(len(names)), ", ".join(names))
    phrases = len(compile_lexicon(banks).terms)
    return Group(table, Text(f"{phrases:,} phrases written out"))


def _entry(row: str | dict[str, Any]) -> str:
    """Name an entry, and what it leads to: a sign's disease, what a cue means."""
    if isinstance(row, str):
        return row
    name: str = row.get("id") or row["name"]
    leads = row.get("disease") or (row.get("reach") and row["means"])
    return f"{name} → {leads}" if leads else name
