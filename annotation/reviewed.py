"""Reviews applied: a new dataset with the readers' chains, and what changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from annotation.readers import Decision, latest
from annotation.reviews import OUTCOMES, Edit, Review
from annotation.tasks import Task
from cot_builder.counts import count_study, tallies
from cot_builder.dataset import (
    MANIFEST,
    REJECTS,
    json_lines,
    read_manifest,
    read_rejects,
    read_studies,
    take_file,
    write_shard,
    write_whole,
)
from cot_builder.errors import UserError
from cot_builder.images import derivative
from cot_builder.labels import report_labels
from cot_builder.records import Chain, Rejected, Row

OPS: Final = ("kept", "changed", "deleted", "added")
STUDIES: Final = "reviewed.jsonl"


def apply_reviews(
    dataset: Path,
    decisions: Mapping[str, Decision],
    out: Path,
    *,
    agreement: Row | None = None,
) -> Row:
    """Write a dataset to the new folder `out` with the reviewed chains; return its manifest.

    Accepted and edited studies take the reader's chains, rejected ones go to `rejects.jsonl`; all
    others stay as they were. `reviewed.jsonl` tells the studies, the manifest's `review` the counts
    and the `agreement`. UserError where a study is not as it was when it was sent.
    """
    manifest = read_manifest(dataset)
    if out.exists():
        raise UserError(f"--out {out} exists: a reviewed dataset is a new folder, never an edit")
    out.mkdir(parents=True)
    try:
        return _write(dataset, decisions, out, manifest, agreement)
    except BaseException:
        shutil.rmtree(out)  # a folder that this run made
        raise


def _write(
    dataset: Path,
    decisions: Mapping[str, Decision],
    out: Path,
    manifest: dict[str, Any],
    agreement: Row | None,
) -> Row:
    missing = set(decisions)
    rejects = [*read_rejects(dataset)] if (dataset / REJECTS).is_file() else []
    rejected: list[Row] = []
    total: Counter[str] = Counter()
    for shard in manifest["shards"]:
        kept: list[Row] = []
        for row in read_studies(dataset, shard=shard["file"]):
            decision = decisions.get(row["study_id"])
            missing.discard(row["study_id"])
            if decision and decision.outcome == "rejected":
                rejected.append(_rejected(row, decision).to_row())
                continue
            kept.append(_applied(row, decision) if decision and decision.settled else row)
            total.update(count_study(kept[-1]))
        lost = shard["studies"] - len(kept)
        split = manifest["splits"][shard["split"] or "unsplit"]
        split["written"] -= lost
        split["rejected"] += lost
        shard |= {
            "studies": len(kept),
            "sha256": write_shard(out / shard["file"], kept, scratch=out),
        }
        if manifest.get("images"):
            _take_images(dataset, out, kept)
    if missing:
        raise UserError(
            f"{len(missing)} reviewed studies are not in {dataset}, first {min(missing)}: the "
            "reviews are of another dataset"
        )
    rejects += rejected
    manifest["counts"]["written"] -= len(rejected)
    manifest["counts"]["rejected"] += len(rejected)
    by_reason = dict(sorted(Counter(row["reason"] for row in rejects).items()))
    manifest["rejects"] |= {"lines": len(rejects), "by_reason": by_reason}
    manifest["rejects"]["of_rejected_studies"] += len(rejected)
    manifest |= tallies(total, rejects)
    manifest["review"] = review_table(decisions, agreement)
    before = hashlib.sha256((dataset / MANIFEST).read_bytes()).hexdigest()
    manifest["review"]["of"] = {"dataset": dataset.resolve().name, "manifest_sha256": before}
    write_whole(out / STUDIES, json_lines(map(_study_line, decisions.values())), scratch=out)
    write_whole(out / REJECTS, json_lines(rejects), scratch=out)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / MANIFEST, text.encode("utf-8", "backslashreplace"), scratch=out)
    return manifest


def _take_images(dataset: Path, out: Path, rows: Iterable[Row]) -> None:
    """Link the reduced images of the studies that stay: those of rejected ones must not follow."""
    for path in (derivative(image["path"]) for row in rows for image in row["images"]):
        try:
            take_file(dataset / path, out / path, scratch=out)
        except FileNotFoundError:
            raise UserError(
                f"{dataset / path} is missing: copy it back, or build the dataset again"
            ) from None


def _applied(row: Row, decision: Decision) -> Row:
    """Return a study with the reader's chains; unmapped findings that they named are chains now."""
    base = [chain.to_row() for chain in decision.review.task.base.values()]
    if row["chains"] != base:
        raise UserError(
            f"study {row['study_id']} has other chains than those that were reviewed: the dataset "
            "was built anew; apply the reviews to the dataset that was pushed, or push again"
        )
    chains = tuple(decision.review.chains.values())
    added = {(c.section, c.start, c.end) for c in chains if c.rule == "review.added"}
    return {
        **row,
        "chains": [chain.to_row() for chain in chains],
        "unmapped": [
            u for u in row["unmapped"] if (u["section"], u["start"], u["end"]) not in added
        ],
        "labels": report_labels(chains, whole=not row["grounded"]),
    }


def _rejected(row: Row, decision: Decision) -> Rejected:
    review = decision.review
    detail = "; ".join(filter(None, (", ".join(review.reasons), review.comment)))
    return Rejected(
        row["source"], row["provenance"]["file"], "review_rejected", detail, row["study_id"]
    )


def _study_line(decision: Decision) -> Row:
    ops = Counter(edit.op for edit in decision.review.edits) if decision.settled else Counter()
    return {
        "study_id": decision.study_id,
        "outcome": decision.outcome,
        "readers": decision.readers,
        "adjudicated": decision.adjudicated,
        **{op: ops[op] for op in OPS},
    }


def review_table(decisions: Mapping[str, Decision], agreement: Row | None = None) -> Row:
    """Return the manifest's `review`: studies by outcome, chains by what was done, readers.

    Readers are counted, not named. Without a second reader, `agreement` is None.
    """
    settled = [decision for decision in decisions.values() if decision.settled]
    outcomes = Counter(decision.outcome for decision in decisions.values())
    ops = Counter(edit.op for decision in settled for edit in decision.review.edits)
    readers = {reader for decision in decisions.values() for reader in decision.names}
    return {
        "studies": len(decisions),
        "settled": len(settled),
        "by_outcome": dict(sorted(outcomes.items())),
        "chains": {op: ops[op] for op in OPS},
        "annotators": len(readers),
        "read_twice": sum(decision.readers > 1 for decision in decisions.values()),
        "adjudicated": sum(decision.adjudicated for decision in decisions.values()),
        "agreement": agreement,
    }


# -- what changed


def edits(decisions: Iterable[Decision]) -> Iterator[tuple[str, Edit]]:
    """Yield every edit of the accepted and edited studies, with its study."""
    for decision in decisions:
        if decision.outcome in ("accepted", "edited"):
            for edit in decision.review.edits:
                yield decision.study_id, edit


def diff_tables(decisions: Iterable[Decision], *, first: int = 20) -> Group:
    """Return what the reviews change: by label, by rule, and the first edits one by one."""
    found = list(edits(decisions))
    changes = [(study, edit) for study, edit in found if edit.op != "kept"]
    listed = Table("study", "done", "before", "after", title="Edits")
    for study, edit in changes[:first]:
        done = edit.op + (f": {', '.join(edit.fields)}" if edit.fields else "")
        listed.add_row(
            study,
            done,
            Text(_line(edit.before), style="red"),
            Text(_line(edit.after), style="green"),
        )
    more = f"; the first {first} are listed" if len(changes) > first else ""
    return Group(
        _counts("label", ((_chain(edit).disease, edit) for _, edit in found)),
        _counts("rule", ((_chain(edit).rule.partition("@")[0], edit) for _, edit in found)),
        listed,
        Text(f"{len(changes)} of {len(found)} chains differ{more}"),
    )


def edit_rows(decisions: Iterable[Decision]) -> Iterator[Row]:
    """Yield every edit that is not `kept` as a row: study, what was done, before and after."""
    for study, edit in edits(decisions):
        if edit.op != "kept":
            yield {
                "study_id": study, "op": edit.op, "fields": list(edit.fields),
                "before": edit.before and edit.before.to_row(),
                "after": edit.after and edit.after.to_row(),
            }  # fmt: skip


def _chain(edit: Edit) -> Chain:
    """The machine's chain where there is one: a change counts with the label that was wrong."""
    chain = edit.before or edit.after
    assert chain
    return chain


def _counts(what: str, found: Iterable[tuple[str, Edit]]) -> Table:
    counts: dict[str, Counter[str]] = {}
    for name, edit in found:
        counts.setdefault(name, Counter())[edit.op] += 1
    table = Table(what, *OPS, "kept of machine's", title=f"Chains by {what}")
    for name, ops in sorted(
        counts.items(), key=lambda item: (item[1]["kept"] - item[1].total(), item[0])
    ):
        machine = ops.total() - ops["added"]
        share = f"{ops['kept'] / machine:.1%} (n={machine})" if machine else "—"
        table.add_row(name, *(str(ops[op] or "·") for op in OPS), share)
    return table


def _line(chain: Chain | None) -> str:
    if chain is None:
        return "—"
    boxes = f" · {len(chain.boxes)} boxes" if chain.boxes else ""
    return (
        f"{chain.finding} · {chain.disease} · {chain.assertion} · {', '.join(chain.regions)}{boxes}"
    )


# -- how far it is


def progress_tables(
    tasks: Iterable[Task], reviews: Iterable[Review], decisions: Mapping[str, Decision]
) -> Group:
    """Return how many studies were sent, answered by whom, and what that comes to."""
    answered: dict[str, Counter[str]] = {}
    for review in latest(reviews):
        answered.setdefault(review.reader, Counter())[review.outcome] += 1
    readers = Table("reader", *OUTCOMES, title="Answers")
    for reader, outcomes in sorted(answered.items()):
        readers.add_row(reader, *(str(outcomes[name] or "·") for name in OUTCOMES))
    sent = {task.study_id for task in tasks}
    settled = sum(decision.settled for decision in decisions.values())
    outcomes = Counter(decision.outcome for decision in decisions.values())
    told = ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items()))
    line = f"{len(sent)} studies pushed, {len(decisions)} answered ({told}), {settled} settled"
    return Group(readers, Text(line))


def review_view(review: Row) -> Table:
    """Return a manifest's `review` as a table."""
    table = Table("", "n", title="Review")
    for name, value in review.items():
        if isinstance(value, dict):
            for part, number in value.items():
                table.add_row(f"{name}: {part}", str(number))
        else:
            table.add_row(name, str(value))
    return table
