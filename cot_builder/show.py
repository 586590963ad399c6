"""A study on the terminal: the report with its mentions in colour, and its chains as a tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from cot_builder.records import Row

STYLES: Final = {"positive": "bold red", "negative": "green", "uncertain": "yellow"}
_UNMAPPED: Final = "magenta"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def study_view(row: Row) -> Group:
    """Draw one row of the dataset: its report, then its chains and unmapped findings by section."""
    tree = Tree(Text("chains", style="bold"), guide_style="dim")
    for section in row["sections"]:
        lines = list(_section_lines(row, section["name"]))
        if lines:
            branch = tree.add(Text(section["name"].upper()))
            for line in lines:
                branch.add(line)
    if not tree.children:
        tree.add(Text("none", style="dim"))
    return Group(_title(row), *_report(row), Text(), tree, Text(), _labels(row))


def legend() -> Text:
    """Return the key to the colours."""
    styles = {**STYLES, "unmapped": _UNMAPPED}
    return Text("  ").join(Text(name, style=style) for name, style in styles.items())


def plain(text: str) -> str:
    """Replace control characters one for one: a report must not steer the terminal, and offsets stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _title(row: Row) -> Text:
    views = [
        f"{image['view'] or 'view unknown'} {image['width'] or '?'}×{image['height'] or '?'}"
        for image in row["images"]
    ]
    facts = [row["source"], row["split"] or "no split", row["provenance"]["file"], *views]
    title = Text(f"study {plain(row['study_id'])}", style="bold")
    return title.append(plain(" · " + " · ".join(facts)), style="dim")


def _report(row: Row) -> Iterator[Text]:
    for section in row["sections"]:
        text = Text(plain(section["text"]))
        for mention in (*row["unmapped"], *row["chains"]):
            if mention["section"] == section["name"]:
                style = STYLES[mention["assertion"]] if "disease" in mention else _UNMAPPED
                text.stylize(style, mention["start"], mention["end"])
        yield Text(f"\n{section['name'].upper()}", style="bold")
        yield text


def _section_lines(row: Row, section: str) -> Iterator[Text]:
    mentions = [m for m in (*row["chains"], *row["unmapped"]) if m["section"] == section]
    for mention in sorted(mentions, key=lambda m: (m["start"], m["end"])):
        style = STYLES[mention["assertion"]]
        line = Text(plain(mention["finding"]), style=style if "disease" in mention else _UNMAPPED)
        for concept in mention.get("concepts", ()):
            line.append(" → ", style="dim").append(concept, style="italic not bold default")
        line.append(" → ", style="not bold dim default")
        if "disease" in mention:
            line.append(mention["disease"], style="bold default")
        else:
            line.append("unmapped", style="italic default")
        line.append(" → ", style="not bold dim default")
        line.append(", ".join(mention["regions"]), style="not bold default")
        notes = [mention["assertion"], mention.get("severity"), mention.get("temporal")]
        if mention.get("basis") == "implied":
            notes.insert(0, "implied")
        yield line.append(f"  ({', '.join(filter(None, notes))})", style="not bold dim default")


def _labels(row: Row) -> Text:
    words = {1: "positive", 0: "negative", -1: "uncertain"}
    line = Text("labels  ", style="bold")
    named = [(label, words[value]) for label, value in row["labels"].items() if value is not None]
    parts = [Text(f"{label}: {word}", style=f"not bold {STYLES[word]}") for label, word in named]
    return line.append(Text(", ", style="not bold").join(parts) if parts else Text("none mentioned"))
