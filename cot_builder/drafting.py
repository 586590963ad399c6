"""A model proposes mentions for sentences that the rules leave open; what can be verified is taken.

`proposals.verify` holds every proposal against the sentence and the banks, and the mentions of a
study must not contradict each other. What falls is kept with its reason and the raw answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from cot_builder.checks import (
    Given,
    Study,
    check_contradictions,
    check_offsets,
    compile_pairs,
    regions_around,
)
from cot_builder.decompose import Decomposer, SentenceResult, Told, assemble
from cot_builder.llm import Endpoint
from cot_builder.proposals import Verdict, grounds, overlap, verify
from cot_builder.records import Decomposition, Row, Section, Sentence
from cot_builder.replies import Replies, Reply, Request
from knowledge_banks import Banks, load_prompt, load_withheld

PROMPT: Final = "chains"
# Of sentences and of mentions; a test and the build hold the counts against them.
SENTENCES: Final = ("accepted", "empty", "rejected", "refused", "filtered", "failed")
MENTIONS: Final = ("taken", "known", "rejected")
CACHED: Final = 5_000  # sentences; each with its answer and verdicts
_NEVER: Final = Reply("failed", None, "", "it was never asked", False, 0, 0)

Read = list[tuple[Sentence, SentenceResult | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """How a build drafts: `hybrid` asks what the rules leave open, `llm` asks every finding."""

    kind: Literal["hybrid", "llm"]
    endpoint: Endpoint
    cache: Path
    batch: bool = False

    def described(self, banks: Banks) -> Row:
        """Return what decides a dataset's content, for its manifest."""
        prompt = load_prompt(PROMPT, banks.folder)
        return {
            "kind": self.kind,
            "model": self.endpoint.model._asdict(),
            "prompt": prompt.id,
            "prompt_sha256": hashlib.sha256(json.dumps(prompt).encode()).hexdigest(),
        }

    def account(self, counts: Mapping[str, int], tokens: Tokens) -> Row:
        """Return what became of the sentences asked and the mentions proposed; it has to add up."""
        sentences = {name: counts.get(name, 0) for name in SENTENCES}
        mentions = {name: counts.get(f"mentions/{name}", 0) for name in MENTIONS}
        asked, proposed = counts.get("asked", 0), counts.get("proposed", 0)
        if asked != sum(sentences.values()) or proposed != sum(mentions.values()):
            raise AssertionError(f"a model's answers do not add up: {counts}")
        return {
            "base_url": self.endpoint.base_url,
            "zero_retention_host": self.endpoint.zero_retention_host,
            "sentences": {
                "equation": f"asked = {' + '.join(SENTENCES)}",
                "asked": asked,
                **sentences,
                "repaired": counts.get("repaired", 0),
                "withheld": counts.get("withheld", 0),
            },
            "mentions": {
                "equation": f"proposed = {' + '.join(MENTIONS)}",
                "proposed": proposed,
                **mentions,
            },
            "tokens": {
                **tokens._asdict(),
                "usd": self.endpoint.cost(tokens.tokens_in, tokens.tokens_out),
            },
        }


class Tokens(NamedTuple):
    """What all answers of a dataset took, whoever paid for them; equal sentences count once."""

    distinct_sentences: int
    tokens_in: int
    tokens_out: int


# -- asking


def leaves_open(result: SentenceResult) -> bool:
    """Tell whether rules leave a sentence open: no chain, one unmapped, or a doubtful one."""
    return result.bearing and (not result.told or any(map(_is_doubtful, result.told)))


def _is_doubtful(told: Told) -> bool:
    """Tell whether a mention has no label, was found by its spelling, or hangs on a masked word."""
    entry, _, _ = told.rule.partition("@")
    return told.disease is None or "~" in entry or entry.endswith("+mask")


class Drafted(NamedTuple):
    """A study's decomposition, and what was rejected on the way, as (reason, detail)."""

    decomposition: Decomposition
    rejects: tuple[tuple[str, str], ...]


class _Answer(NamedTuple):
    reply: Reply
    verdicts: tuple[Verdict, ...]


class Drafter:
    """Decomposes studies by rules and by what a model answered; reads answers from the file alone.

    So the same file gives the same chains, in any process. `counts` adds up what became of
    sentences and mentions: `asked` is the sum of `SENTENCES`, `proposed` that of `MENTIONS`.
    """

    def __init__(self, drafting: Drafting, decomposer: Decomposer) -> None:
        banks = decomposer.banks
        self.drafting, self.decomposer = drafting, decomposer
        self.prompt = load_prompt(PROMPT, banks.folder)
        self.withheld = load_withheld(banks.folder)
        self.by = grounds(banks, decomposer.lexicon, self.prompt.id)
        self.given = Given(compile_pairs(banks), regions_around(banks))
        self.counts: Counter[str] = Counter()
        self._replies: Replies | None = None
        self._answers: dict[str, _Answer] = {}

    def request(self, sentence: str) -> Request:
        """Return the request for one sentence; verification speaks in its repair turn."""

        def check(answer: Row) -> str | None:
            for verdict in verify(sentence, answer, self.by):
                if verdict.faults:
                    fault = next(iter(verdict.faults.values()))
                    return f"finding {verdict.row['finding']!r}: {fault}."
            return None

        text = json.dumps({"sentence": sentence}, ensure_ascii=False)
        sound = text.encode("utf-8", "backslashreplace").decode()  # a damaged file's bytes
        return Request.of(self.prompt, sound, check)

    def to_ask(self, sections: Sequence[Section]) -> list[str]:
        """Return the sentences of a study that are to be asked."""
        read = self.decomposer.read(sections)
        asked = [read[place][0].text for place in self._open(read)]
        return [] if asked and self.holds(sentence.text for sentence, _ in read) else asked

    def decompose(self, sections: Sequence[Section]) -> Drafted:
        """Decompose a study; with `hybrid`, a sentence without an answer stays as it was."""
        read = self.decomposer.read(sections)
        places = self._open(read)
        if places and (why := self.holds(sentence.text for sentence, _ in read)):
            self.counts["withheld"] += len(places)
            detail = f"no sentence of this study was sent: it seems to hold {why}"
            return Drafted(assemble(read), (("llm_withheld", detail),))
        rejects: list[tuple[str, str]] = []
        counts: Counter[str] = Counter()
        for place in places:
            sentence, result = read[place]
            answer = self._answer(sentence.text)
            reply, verdicts = answer
            if self.drafting.kind == "llm" and result is not None:
                read[place] = (sentence, result._replace(told=()))
            outcomes = [self._take(read, place, sections, verdict) for verdict in verdicts]
            rejects += (
                _reject(reason, sentence, answer, f"{verdict.row['finding']!r}: {detail}")
                for verdict, (kind, reason, detail) in zip(verdicts, outcomes, strict=True)
                if kind == "rejected"
            )
            counts.update(f"mentions/{kind}" for kind, _, _ in outcomes)
            counts.update(asked=1, repaired=reply.repaired, proposed=len(verdicts))
            if reply.status != "ok":
                rejects.append(_reject(reply.status, sentence, answer, reply.detail))
                counts[reply.status] += 1
            elif not verdicts:
                counts["empty"] += 1
            else:
                stood = any(kind != "rejected" for kind, _, _ in outcomes)
                counts["accepted" if stood else "rejected"] += 1
        self.counts.update(counts)
        return Drafted(assemble(read), tuple(rejects))

    def tokens(self, sentences: Iterable[str]) -> Tokens:
        """Add up what the answers to sentences took."""
        total = Tokens(0, 0, 0)
        for reply in map(self._reply, sentences):
            total = Tokens(*(a + b for a, b in zip(total, (1, *reply[-2:]), strict=True)))
        return total

    def _open(self, read: Read) -> list[int]:
        every = self.drafting.kind == "llm"
        return [
            place
            for place, (_, result) in enumerate(read)
            if result is not None and (result.bearing if every else leaves_open(result))
        ]

    def holds(self, sentences: Iterable[str]) -> str:
        """Name what sentences hold that must not be sent, if anything."""
        for sentence in sentences:
            for name, pattern in self.withheld.items():
                if pattern.search(sentence):
                    return name
        return ""

    def _answer(self, sentence: str) -> _Answer:
        found = self._answers.get(sentence)
        if found is None:
            reply = self._reply(sentence)
            verdicts = verify(sentence, reply.parsed, self.by) if reply.status == "ok" else ()
            if len(self._answers) >= CACHED:
                self._answers.clear()
            found = self._answers[sentence] = _Answer(reply, tuple(verdicts))
        return found

    def _reply(self, sentence: str) -> Reply:
        if self._replies is None:
            self._replies = Replies(self.drafting.cache)
        model = self.drafting.endpoint.model
        return self._replies.reply(self.request(sentence), model) or _NEVER

    def _take(
        self, read: Read, place: int, sections: Sequence[Section], verdict: Verdict
    ) -> tuple[str, str, str]:
        """Take a proposal into `read` if it stands; return which of `MENTIONS` it is, and why."""
        sentence, before = read[place]
        if verdict.told is None or before is None:
            return "rejected", *next(iter(verdict.faults.items()))
        after = _laid_over(before, verdict.told)
        if after is before:
            return "known", "", ""
        faults = self._faults(read, sections)
        read[place] = (sentence, after)
        for fault in self._faults(read, sections):
            if fault not in faults:
                read[place] = (sentence, before)
                return "rejected", "contradiction", fault
        return "taken", "", ""

    def _faults(self, read: Read, sections: Sequence[Section]) -> list[str]:
        found = assemble(read)
        row = {"sections": [section._asdict() for section in sections]}
        study = Study(row, found.chains, found.unmapped)
        return [
            fault.detail
            for check in (check_offsets, check_contradictions)
            for fault in check(study, self.given)
        ]


def _laid_over(result: SentenceResult, told: Told) -> SentenceResult:
    """Return what a sentence tells with one mention more, or itself when it tells that already.

    The rules' doubtful mentions of other labels give way where they overlap the new one.
    """
    span = (told.start, told.end)
    overlapping = [one for one in result.told if overlap((one.start, one.end), span)]
    if any(one.disease == told.disease for one in overlapping):
        return result
    kept = [one for one in result.told if not (one in overlapping and _is_doubtful(one))]
    ordered = sorted([*kept, told], key=lambda one: (one.start, one.end))
    return result._replace(told=tuple(ordered))


def _reject(name: str, sentence: Sentence, answer: _Answer, detail: str) -> tuple[str, str]:
    where = f"{sentence.section}, sentence {sentence.index}: {sentence.text!r}"
    said = f"; answer: {answer.reply.raw}" if answer.reply.raw else ""
    return f"llm_{name}", f"{where}: {detail}{said}"


# -- a build's sentences


def distinct(sentences: Iterable[str]) -> Iterator[str]:
    """Yield each sentence once, at its first place; only hashes are kept in memory."""
    seen: set[bytes] = set()
    for sentence in sentences:
        mark = hashlib.blake2b(repr(sentence).encode(), digest_size=12).digest()
        if mark not in seen:
            seen.add(mark)
            yield sentence


def read_asks(path: Path, key: str) -> list[str] | None:
    """Return the sentences to ask of a shard, if its file is there and of this key."""
    try:
        found: Row = json.loads(path.read_bytes())
        return list(found["sentences"]) if found["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
