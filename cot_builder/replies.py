"""What a model is asked, what it answered, and the file that keeps every paid answer.

An answer may take several calls: more room when it was cut off, and a repair turn when it cannot be
read. `converse` says which calls, whoever makes them; each is kept under the hash of its content.
So answers are read from the cache alone, by any process, and the same cache gives the same answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from cot_builder.errors import UserError
from knowledge_banks import Prompt

TURNS: Final = 2  # the answer, and one repair
Message = dict[str, str]

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS completion(
    key TEXT PRIMARY KEY, status TEXT NOT NULL, text TEXT NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
    prompt TEXT NOT NULL, model TEXT NOT NULL, size INTEGER NOT NULL, run TEXT NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch(
    id TEXT PRIMARY KEY, run TEXT NOT NULL, calls TEXT NOT NULL
) WITHOUT ROWID;
"""
_FENCED: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_QUOTED: Final = 4_000  # characters of a bad answer that its repair turn quotes


class Model(NamedTuple):
    """Who answers, and how: all of it is part of a call's key."""

    name: str
    temperature: float | None = 0.0
    max_tokens: int = 1024


class Request(NamedTuple):
    """One answer to ask for: messages, the JSON schema of the answer, the prompt's name@version.

    `check` may tell what is wrong with an answer that fits the schema. The model is then told so,
    once; what it answers to that stands, and the caller still has to look.
    """

    messages: tuple[Message, ...]
    schema: dict[str, Any]
    prompt: str
    repair: str
    check: Callable[[Any], str | None] | None = None

    @classmethod
    def of(
        cls, prompt: Prompt, text: str, check: Callable[[Any], str | None] | None = None
    ) -> Request:
        """Ask a prompt about a text."""
        messages = (
            {"role": "system", "content": prompt.text},
            {"role": "user", "content": text},
        )
        return cls(messages, prompt.schema, prompt.id, prompt.repair, check)


class Call(NamedTuple):
    """One HTTP request to a model."""

    messages: tuple[Message, ...]
    schema: dict[str, Any]
    prompt: str
    model: Model

    @property
    def key(self) -> str:
        """Hash all that the answer depends on."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Count the bytes that are sent: no tokenizer makes more tokens of them."""
        return len(json.dumps((self.messages, self.schema)).encode())


class Completion(NamedTuple):
    """What came of a call; `text` is the answer, or the reason why there is none.

    `cut` means that the answer did not fit; `failed` that none came, so that it may be asked again.
    """

    status: Literal["answered", "cut", "refused", "filtered", "failed"]
    text: str
    tokens_in: int = 0
    tokens_out: int = 0


class Reply(NamedTuple):
    """What came of a request: with status `ok`, `parsed` fits the schema.

    `raw` is the last answer as it came, `detail` why there is none, or what `check` still finds.
    """

    status: Literal["ok", "refused", "filtered", "failed"]
    parsed: Any
    raw: str
    detail: str
    repaired: bool
    tokens_in: int
    tokens_out: int


def converse(request: Request, model: Model) -> Generator[Call, Completion, Reply]:
    """Yield the calls that a request takes, take their completions, and return the reply."""
    messages = request.messages
    tokens_in = tokens_out = 0
    parsed: Any = None
    raw = problem = ""
    for turn in range(TURNS):
        repaired = turn > 0
        for room in (1, 2):
            done = yield Call(
                messages, request.schema, request.prompt,
                model._replace(max_tokens=room * model.max_tokens),
            )  # fmt: skip
            tokens_in += done.tokens_in
            tokens_out += done.tokens_out
            if done.status != "cut":
                break
        if done.status != "answered":
            break
        found, problem = _read(done.text, request.schema)
        if not problem:
            parsed, raw = found, done.text
            problem = (request.check and request.check(found)) or ""
        if not problem:
            break
        messages = (
            *messages,
            {"role": "assistant", "content": done.text[:_QUOTED]},
            {"role": "user", "content": request.repair.replace("{problem}", problem)},
        )
    tokens = (tokens_in, tokens_out)
    if parsed is not None:
        return Reply("ok", parsed, raw, problem, repaired, *tokens)
    if done.status == "answered":
        return Reply("failed", None, done.text, problem, repaired, *tokens)
    if done.status == "cut":
        problem = f"cut off at {done.tokens_out} tokens"
        return Reply("failed", None, done.text, problem, repaired, *tokens)
    return Reply(done.status, None, "", done.text, repaired, *tokens)


def _read(text: str, schema: dict[str, Any]) -> tuple[Any, str]:
    """Parse an answer, in a fence or among words too; return it, or what is wrong with it."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    fenced = _FENCED.search(text)
    bare = fenced[1] if fenced else text[text.find("{") : text.rfind("}") + 1]
    try:
        found = json.loads(bare or text)
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({error})"
    fault = best_match(Draft202012Validator(schema).iter_errors(found))
    return found, f"{fault.json_path}: {fault.message[:500]}" if fault else ""


class Replies:
    """The file of completions: SQLite, one transaction each, readable by its owner alone.

    It holds text derived from reports, so the licence of those holds for it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.chmod(0o600)  # SQLite gives its journals the mode of the file
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            # A process that is killed loses nothing: only a power cut can take the last ones.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
        except (sqlite3.DatabaseError, OSError) as error:
            raise UserError(
                f"cannot use {path} to keep a model's answers: {error}; name another file"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, key: str) -> Completion | None:
        """Return what came of a call, if it was made."""
        row = self._db.execute(
            "SELECT status, text, tokens_in, tokens_out FROM completion WHERE key = ?", (key,)
        ).fetchone()
        return Completion(*row) if row else None

    def put(self, call: Call, completion: Completion, *, run: str = "") -> None:
        """Keep what came of a call, at once; `run` is who paid for it."""
        self._db.execute(
            "INSERT OR REPLACE INTO completion VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (call.key, *completion, call.prompt, call.model.name, call.size, run, time.time()),
        )

    def reply(self, request: Request, model: Model) -> Reply | None:
        """Return the reply to a request, or None when a call that it takes was never made."""
        talk = converse(request, model)
        call = next(talk)
        while (completion := self.get(call.key)) is not None:
            try:
                call = talk.send(completion)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
        return None

    def missing(self, request: Request, model: Model) -> Call | None:
        """Return the call that a request has to make next, if any; failed ones are made again."""
        talk = converse(request, model)
        call = next(talk)
        while (completion := self.get(call.key)) is not None and completion.status != "failed":
            try:
                call = talk.send(completion)
            except StopIteration:
                return None
        return call

    def paid(self, run: str) -> tuple[int, int]:
        """Return the tokens in and out that a run has paid for."""
        row = self._db.execute(
            "SELECT total(tokens_in), total(tokens_out) FROM completion WHERE run = ?", (run,)
        ).fetchone()
        return int(row[0]), int(row[1])

    def rates(self, prompt: str, model: str) -> tuple[float, float] | None:
        """Return tokens in a byte sent, and tokens out a call, as measured so far."""
        size, tokens_in, tokens_out = self._db.execute(
            "SELECT total(size), total(tokens_in), avg(tokens_out) FROM completion "
            "WHERE prompt = ? AND model = ? AND tokens_in > 0",
            (prompt, model),
        ).fetchone()
        return (tokens_in / size, tokens_out) if size else None

    def batches(self, run: str) -> list[tuple[str, list[str]]]:
        """Return the batches that a run has submitted and not collected, with their calls' keys."""
        rows = self._db.execute("SELECT id, calls FROM batch WHERE run = ?", (run,))
        return [(id_, json.loads(calls)) for id_, calls in rows]

    def submitted(self, id_: str, run: str, calls: Iterable[str]) -> None:
        """Remember a batch, so that no killed run submits it twice."""
        self._db.execute("INSERT INTO batch VALUES (?, ?, ?)", (id_, run, json.dumps(list(calls))))

    def collected(self, id_: str) -> None:
        """Forget a batch whose answers are kept."""
        self._db.execute("DELETE FROM batch WHERE id = ?", (id_,))
