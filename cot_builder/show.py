"""What the terminal shows: a study (mentions in colour, chains as a tree) and tables of counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cot_builder.records import Row
from cot_builder.vocabulary import ASSERTIONS, LABELS

if TYPE_CHECKING:
    from cot_builder.checks import Checked
    from cot_builder.proposals import Verdict
    from cot_builder.replies import Reply, Request

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
    """Replace control characters one for one: no report steers the terminal, and offsets stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def build_summary(manifest: Mapping[str, Any]) -> Group:
    """Draw a manifest's counts: studies by split, chains by label, rejects by reason."""
    splits, chains, reasons = (
        manifest["splits"],
        manifest["chains"],
        manifest["rejects"]["by_reason"],
    )
    coverage = manifest["coverage"]
    tables = [
        cross_table(
            "Studies",
            tuple(splits),
            ("planned", "written", "rejected"),
            lambda split, name: splits[split][name],
        ),
        cross_table("Chains", LABELS, ASSERTIONS, lambda label, name: chains[label][name]),
    ]
    if reasons:
        tables.append(
            cross_table("Rejects", tuple(reasons), ("lines",), lambda reason, _: reasons[reason])
        )
    return Group(
        *tables,
        coverage_line(coverage["covered"], coverage["bearing"], coverage["sentences"]),
        Text(f"Unmapped findings: {sum(manifest['unmapped'].values()):,}"),
    )


def coverage_line(covered: int, bearing: int, sentences: int) -> Text:
    """Say which share of the finding-bearing sentences yielded something."""
    share = f"{100 * covered / bearing:.1f} %" if bearing else "undefined"
    return Text(
        f"Coverage: {share} ({covered:,} of {bearing:,} finding-bearing sentences gave a chain or "
        f"an unmapped finding; {sentences:,} sentences in all)"
    )


def llm_line(llm: Mapping[str, Any]) -> Text:
    """Say what became of the sentences that a model was asked, and of what it proposed."""
    sentences, mentions, tokens = llm["sentences"], llm["mentions"], llm["tokens"]
    usd = "" if tokens["usd"] is None else f", {tokens['usd']:,.2f} USD"
    return Text(
        "The model: {asked:,} sentences asked = {accepted:,} accepted + {empty:,} empty + "
        "{rejected:,} rejected + {refused:,} refused + {filtered:,} filtered + {failed:,} failed; "
        "{repaired:,} repaired, {withheld:,} withheld; ".format(**sentences)
        + "{proposed:,} mentions proposed = {taken:,} taken + {known:,} known + {rejected:,} "
        "rejected; ".format(**mentions)
        + f"{tokens['tokens_in'] + tokens['tokens_out']:,} tokens{usd}"
    )


def draft_view(request: Request, reply: Reply, verdicts: Sequence[Verdict]) -> Group:
    """Draw one round trip: what a model was asked and answered, and what each check says."""
    from cot_builder.proposals import CHECKS

    parts: list[RenderableType] = []
    for message in request.messages:
        parts.append(Text(f"{message['role']} ({request.prompt})", style="bold"))
        parts.append(Text(plain(message["content"]), style="dim"))
    parts.append(Text(f"answer: {reply.status}{', repaired' if reply.repaired else ''}", "bold"))
    parts.append(Text(plain(reply.raw or reply.detail)))
    for verdict in verdicts:
        told = verdict.told
        parts.append(Text(f"{plain(verdict.row['finding'])!r}", style="bold"))
        for name in CHECKS:
            fault = verdict.faults.get(name)
            line = f"  {name}: {fault or 'passes'}"
            parts.append(Text(plain(line), style="red" if fault else "green"))
        parts.append(
            Text(
                f"  → {told.disease or 'unmapped'}, {told.basis}, {told.assertion}, "
                f"{', '.join(told.regions)} [{told.start}:{told.end}]"
                if told
                else "  → rejected"
            )
        )
    parts.append(Text(f"{reply.tokens_in:,} tokens in, {reply.tokens_out:,} out", style="dim"))
    return Group(*parts)


def checked_view(checked: Checked, *, first: int) -> Group:
    """Draw what the checks found: overlaps of splits, counts by check, the first problems."""
    from cot_builder.checks import CHECKS, KINDS, SPLIT_PAIRS, WHOLE  # the readers of all releases

    pairs = {f"{a} and {b}": (a, b) for a, b in SPLIT_PAIRS}
    problems = sorted(checked.problems, key=lambda problem: problem.severity)
    found = Counter((problem.check, problem.severity) for problem in problems)
    parts: list[RenderableType] = [
        cross_table(
            "In two splits at once",
            KINDS,
            tuple(pairs),
            lambda kind, pair: checked.overlaps[kind, *pairs[pair]],
        )
    ]
    for dataset, counts in checked.splits.items():
        parts.append(
            Text(
                f"{dataset}: {counts.rows:,} studies, {counts.agree:,} in MIMIC-CXR's split, "
                f"{counts.differ.total():,} in another, {counts.not_listed:,} not in its table\n"
            )
        )
    parts.append(
        cross_table(
            f"Problems in {checked.studies:,} studies",
            (*WHOLE, *CHECKS),
            ("error", "warning"),
            lambda check, severity: found[check, severity],
        )
    )
    for problem in problems[:first]:
        where = " ".join(filter(None, (problem.dataset, problem.study_id)))
        line = f"{problem.severity} {problem.check} {where}: {problem.detail}"
        parts.append(Text(plain(line), style="red" if problem.severity == "error" else ""))
    if len(problems) > first:
        parts.append(Text(f"... and {len(problems) - first:,} more; --out writes all of them"))
    return Group(*parts)


def cross_table(
    title: str, rows: Sequence[str], columns: Sequence[str], count: Callable[[str, str], int]
) -> Table:
    """Draw counts of rows by columns, with the sums; a count of zero shows as a dot."""
    table = plain_table(title, show_footer=len(rows) > 1)
    counts = [[count(row, column) for column in columns] for row in rows]
    table.add_column(footer="all")
    for place, column in enumerate(columns):
        total = sum(line[place] for line in counts)
        table.add_column(column, footer=f"{total:,}", justify="right")
    for row, line in zip(rows, counts, strict=True):
        table.add_row(plain(row), *(f"{n:,}" if n else "·" for n in line))
    return table


def plain_table(title: str, *, show_footer: bool = False) -> Table:
    """Return an empty table in this tool's style."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        pad_edge=False,
        show_footer=show_footer,
    )


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
    return line.append(
        Text(", ", style="not bold").join(parts) if parts else Text("none mentioned")
    )
