"""What a bank edit does to a dataset: which chains come, go, or change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cot_builder.decompose import Decomposer
from cot_builder.decompose.lexicon import compile_lexicon
from cot_builder.records import Chain, Decomposition, Row, Section, Unmapped
from knowledge_banks import Banks


class Change(NamedTuple):
    """One mention of one study that the two banks read differently; None where a bank gives nothing."""

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
    first, second = Decomposer(old), Decomposer(new)
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
    return Group(table, Text(f"{len(changes)} changed chains in {studies} studies{shown}"))


def banks_table(banks: Banks) -> RenderableType:
    """Return the content of banks in figures: entries and written-out phrases of each."""
    table = Table(
        "bank",
        "version",
        "entries",
        "what it holds",
        title=f"banks {banks.version} ({banks.sha256[:12]}) of {banks.folder}",
    )
    entries: list[tuple[str, int, str]] = [
        ("diseases", len(banks.diseases["disease"]), ", ".join(d["name"] for d in banks.diseases["disease"])),
        ("devices", len(banks.devices["device"]), _ids(banks.devices["device"])),
        ("signs", len(banks.signs["sign"]), ", ".join(f"{s['id']} → {s['disease']}" for s in banks.signs["sign"])),
        ("unmapped", len(banks.unmapped["finding"]), _ids(banks.unmapped["finding"])),
        ("structures", len(banks.structures["structure"]), _ids(banks.structures["structure"])),
        ("states", len(banks.states["state"]), ", ".join(banks.states["state"])),
        ("regions", len(banks.regions["region"]), ", ".join(r["name"] for r in banks.regions["region"])),
        ("cues", len(banks.cues["cue"]), ", ".join(f"{c['id']} ({c['means']})" for c in banks.cues["cue"])),
    ]  # fmt: skip
    for name, count, content in entries:
        table.add_row(name, getattr(banks, name)["version"], str(count), content)
    phrases = len(compile_lexicon(banks).terms)
    return Group(table, Text(f"{phrases:,} phrases written out"))


def _ids(rows: list[dict[str, Any]]) -> str:
    return ", ".join(row["id"] for row in rows)
