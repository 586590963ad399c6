"""Edits that repeat, as proposals for the banks: a clinician takes them over, or not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from annotation.reviews import Edit
from cot_builder.records import Chain
from knowledge_banks import Banks

_EXAMPLES: Final = 3


class Pattern(NamedTuple):
    """What readers do alike: to which phrase of which rule, from what, to what."""

    kind: str
    phrase: str
    rule: str
    before: str
    after: str


def patterns(edit: Edit) -> Iterator[Pattern]:
    """Yield what an edit says about the banks, one pattern for each thing it changes.

    `phrase_disease`: the phrase means another disease; `cue_missed`: the assertion was read wrong;
    `region_wrong`: the place was; `phrase_unknown`: a reader added it; `phrase_false`: deleted it.
    """
    before, after = edit.before, edit.after
    if before is None and after is not None:
        yield Pattern("phrase_unknown", _phrase(after), "", "", _disease(after))
    elif after is None and before is not None:
        yield Pattern("phrase_false", _phrase(before), _rule(before), _disease(before), "")
    elif before is not None and after is not None:
        phrase, rule = _phrase(before), _rule(before)
        if before.disease != after.disease:
            yield Pattern("phrase_disease", phrase, rule, before.disease, after.disease)
        if before.assertion != after.assertion:
            yield Pattern("cue_missed", phrase, rule, before.assertion, after.assertion)
        if before.regions != after.regions:
            regions = ", ".join(before.regions), ", ".join(after.regions)
            yield Pattern("region_wrong", phrase, rule, *regions)


def proposals(found: Iterable[tuple[str, Edit]], banks: Banks, *, least: int = 2) -> str:
    """Return the patterns that at least `least` studies show, most frequent first, as TOML.

    `found` are edits with their studies. `kept` tells how many chains of the same phrase and rule
    the readers left as they were: evidence against the edit.
    """
    studies: dict[Pattern, list[str]] = {}
    kept: Counter[tuple[str, str]] = Counter()
    for study, edit in found:
        if edit.op == "kept" and edit.before:
            kept[_phrase(edit.before), _rule(edit.before)] += 1
        for pattern in patterns(edit):
            studies.setdefault(pattern, []).append(study)
    shown = [(p, sorted(set(of))) for p, of in studies.items()]
    shown = [(pattern, of) for pattern, of in shown if len(of) >= least]
    lines = [
        "# Edits that readers made alike, most frequent first. Nothing here is in force: take over",
        "# what is right into your bank folder, and see what changes: `cot-builder banks diff`.",
        f"banks = {_toml(banks.version)}",
        f"least = {least}",
    ]
    for pattern, of in sorted(shown, key=lambda item: (-len(item[1]), item[0])):
        lines += [
            "",
            "[[proposal]]",
            *(f"{name} = {_toml(value)}" for name, value in pattern._asdict().items() if value),
            f"studies = {len(of)}",
            f"kept = {kept[pattern.phrase, pattern.rule]}",
            f"examples = [{', '.join(map(_toml, of[:_EXAMPLES]))}]",
            f"suggestion = {_toml(_suggestion(pattern))}",
        ]
    return "\n".join(lines) + "\n"


def _suggestion(pattern: Pattern) -> str:
    bank, _, entry = pattern.rule.partition("+")[0].partition(".")
    where = f"{bank}.toml, {entry!r}" if entry else "the banks"
    return {
        "phrase_disease": f"{where}: move the phrase to {pattern.after} (diseases.toml, or a sign)",
        "cue_missed": f"cues.toml: a phrase that means {pattern.after} may be missing, or one that "
        f"means {pattern.before} reach too far",
        "region_wrong": f"regions.toml or the site of {where}: {pattern.after}",
        "phrase_unknown": f"diseases.toml: add the phrase to {pattern.after}",
        "phrase_false": f"{where}: take the phrase out, or list it under `ignore` in "
        "attributes.toml",
    }[pattern.kind]


def _phrase(chain: Chain) -> str:
    return " ".join(chain.finding.lower().split())


def _rule(chain: Chain) -> str:
    return chain.rule.partition("@")[0]


def _disease(chain: Chain) -> str:
    return f"{chain.disease}, {chain.assertion}"


def _toml(text: str) -> str:
    # A basic string of TOML escapes as JSON does, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
