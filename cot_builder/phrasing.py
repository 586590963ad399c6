"""A model words the steps of reasoning; a line is taken only if it reads back as its step.

Equal steps of a dataset are asked for once. What was said stands in `phrasings.jsonl` of the
dataset, a line a step: the step, the model's `line`, or null and `why` it fell. Whoever makes
conversations of the dataset takes it by `conversations.with_phrasings`; a step without a line is
worded by template.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from cot_builder.answers import Step
from cot_builder.conversations import PHRASINGS, read_step, spoken
from cot_builder.dataset import MANIFEST, json_lines, read_manifest, read_studies, write_whole
from cot_builder.llm import Client, Estimate, Progress
from cot_builder.records import Row
from cot_builder.replies import Reply, Request
from knowledge_banks import Banks, Prompt, load_prompt, load_withheld

PROMPT: Final = "phrasing"
OUTCOMES: Final = ("accepted", "rejected", "refused", "filtered", "failed", "withheld")


def phrase(
    folder: Path,
    banks: Banks,
    client: Client,
    *,
    batch: bool = False,
    progress: Progress = lambda _: None,
    estimated: Callable[[Estimate], None] = lambda _: None,
) -> Row:
    """Word all steps of a dataset; write `phrasings.jsonl`, and the counts into its manifest."""
    prompt, withheld = load_prompt(PROMPT, banks.folder), load_withheld(banks.folder)
    steps = list(_steps(folder))
    sent = [step for step in steps if not any(rx.search(step.finding) for rx in withheld.values())]
    requests = [_request(step, prompt, banks) for step in sent]
    estimate = client.estimate(requests)
    estimated(estimate)
    client.afford(estimate)
    said = dict(zip(sent, client.ask(requests, batch=batch, progress=progress), strict=True))
    rows = [_row(step, said.get(step), banks) for step in steps]
    return _write(folder, rows, prompt.id, client.endpoint.described())


def _row(step: Step, reply: Reply | None, banks: Banks) -> Row:
    """Return what came of a step as a line of the file; without a reply it was not sent."""
    row: Row = {"step": list(step), "line": None, "outcome": "withheld", "why": "", "raw": ""}
    if reply is None:
        return row
    if reply.status != "ok":
        return row | {"outcome": reply.status, "why": reply.detail, "raw": reply.raw}
    if why := _fault(reply.parsed, step, banks):
        return row | {"outcome": "rejected", "why": why, "raw": reply.raw}
    return row | {"outcome": "accepted", "line": reply.parsed["line"].strip()}


def _steps(folder: Path) -> Iterator[Step]:
    seen: dict[Step, None] = {}
    for row in read_studies(folder, columns=["chains"]):
        seen.update(dict.fromkeys(map(Step.of, row["chains"])))
    yield from seen


def _request(step: Step, prompt: Prompt, banks: Banks) -> Request:
    told = {**step._asdict(), "assertion": spoken(step.assertion)}
    text = json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return Request.of(prompt, text, lambda answer: _fault(answer, step, banks) or None)


def _fault(answer: Any, step: Step, banks: Banks) -> str:
    """Say what is wrong with a line, if anything."""
    line = answer["line"].strip()
    if "\n" in line:
        return "it is more than one line"
    read = read_step(line, banks)
    if read == step:
        return ""
    return f"it reads back as {list(read)}" if read else "it does not read back as a step"


def _write(folder: Path, rows: list[Row], prompt: str, endpoint: Row) -> Row:
    counts = Counter(row["outcome"] for row in rows)
    table = {
        "prompt": prompt,
        **endpoint,
        "equation": f"steps = {' + '.join(OUTCOMES)}",
        "steps": len(rows),
        **{name: counts[name] for name in OUTCOMES},
    }
    write_whole(folder / PHRASINGS, json_lines(rows), scratch=folder)
    manifest = {**read_manifest(folder), "phrasing": table}
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, text.encode("utf-8", "backslashreplace"), scratch=folder)
    return table
