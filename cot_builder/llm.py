"""Ask a model on any OpenAI-compatible server: many requests at once, none paid for twice.

    prompt = load_prompt("chains")
    requests = [Request.of(prompt, sentence) for sentence in sentences]
    endpoint = Endpoint(model=Model("qwen3-8b"), base_url="http://127.0.0.1:8000/v1")
    with Client(endpoint, Path("out/replies.sqlite"), credentialed=None) as client:
        print(client.estimate(requests))
        for reply in client.ask(requests):
            if reply.status == "ok":
                print(reply.parsed)

`fill` asks without keeping anything in memory; `Replies.reply` then reads each reply from the file.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from cot_builder.errors import UserError
from cot_builder.replies import Call, Completion, Model, Replies, Reply, Request, converse

if TYPE_CHECKING:
    from types import TracebackType

    import openai

OPENAI: Final = "https://api.openai.com/v1"
# Retry-After beyond this many seconds is a quota, not a queue: the run stops and says so.
LONGEST_WAIT: Final = 900.0
# So many requests in a row with all their attempts in vain: the server is gone.
IN_VAIN: Final = 20
_BATCHED: Final = "/v1/chat/completions"
_ENDED: Final = ("completed", "expired", "cancelled", "failed")
_BATCH_CALLS: Final = 50_000
_BATCH_BYTES: Final = 50_000_000
_FIRST_WAIT: Final = 0.5
_LAST_WAIT: Final = 60.0
_GROWTH: Final = 16  # successes after which one more call may be under way
_GUESSED: Final = (0.25, 150.0)  # tokens in a byte, tokens out a call, before any was measured
_OWN: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "fc00::/7"),
    )
)
# What some servers refuse; a call is then made without it, for the rest of the run.
_REFUSED: Final = (
    ("response_format", ("response_format", "json_schema")),
    ("temperature", ("temperature",)),
    ("max_completion_tokens", ("max_completion_tokens", "max_tokens")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model on a server, how hard to ask it, and what it may cost.

    Prices are USD a million tokens; `poll` is the seconds between two looks at a batch.
    `key_variable` names the environment variable of the API key.
    `zero_retention_host` is a host that the user vouches for by name.
    """

    model: Model
    base_url: str = OPENAI
    key_variable: str = "OPENAI_API_KEY"
    zero_retention_host: str | None = None
    concurrency: int = 32
    timeout: float = 120.0
    attempts: int = 6
    poll: float = 60.0
    price_in: float | None = None
    price_out: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(
                f"--llm-base-url {self.base_url!r}: expected an address such as "
                "http://127.0.0.1:8000/v1"
            )
        if url.username or url.password or url.query:
            raise UserError(
                "--llm-base-url holds a user, password or query: keys come from the environment "
                f"variable {self.key_variable} alone, since the address is written to the manifest"
            )
        if self.budget is not None and None in (self.price_in, self.price_out):
            raise UserError("--llm-budget needs --llm-price-in and --llm-price-out")
        if self.zero_retention_host not in (None, self.host):
            raise UserError(
                f"--zero-retention-host {self.zero_retention_host}: the host of --llm-base-url is "
                f"{self.host}; type exactly that"
            )

    @property
    def host(self) -> str:
        """The server's name or address."""
        return urlsplit(self.base_url).hostname or ""

    def cost(self, tokens_in: float, tokens_out: float) -> float | None:
        """Return the price of tokens in USD, or None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def described(self) -> dict[str, Any]:
        """Return what decides the answers, for a manifest."""
        return {
            **self.model._asdict(),
            "base_url": self.base_url,
            "zero_retention_host": self.zero_retention_host,
        }


class Estimate(NamedTuple):
    """What requests will take: those answered already cost nothing; cost is None without prices.

    `measured` tells that tokens are reckoned from answers to this prompt, not from a guess.
    """

    requests: int
    kept: int
    tokens_in: int
    tokens_out: int
    cost: float | None
    measured: bool


@dataclass(slots=True)
class Tally:
    """What a run of the client did: calls made, completions that were there before, tokens paid."""

    done: int = 0
    calls: int = 0
    kept: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None

    def __str__(self) -> str:
        tokens = f"{self.tokens_in + self.tokens_out:,} tokens"
        return tokens if self.cost is None else f"{tokens}, {self.cost:,.2f} USD"


Progress = Callable[[Tally], None]


# -- the guard


def is_own(host: str) -> bool:
    """Tell whether all addresses of a host are of this machine or a private network."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(map(_is_own_address, found))


def _is_own_address(text: str | int) -> bool:
    address = ipaddress.ip_address(str(text).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in _OWN if network.version == mapped.version)


def refuse_sending(endpoint: Endpoint, credentialed: str | None) -> None:
    """Raise UserError where text of a credentialed source would leave the user's own network.

    `credentialed` names the source, or is None for open data. PhysioNet, 24 September 2025
    (physionet.org/news/post/llm-responsible-use): its data use agreement forbids sending data, and
    what derives from them, to third parties through APIs; only with zero data retention may a
    service be used, and local models are strongly recommended.
    """
    if credentialed is None or endpoint.zero_retention_host or is_own(endpoint.host):
        return
    raise UserError(
        f"refusing to send text of {credentialed} to {endpoint.host}: PhysioNet's rule of 24 Sep "
        "2025 (physionet.org/news/post/llm-responsible-use) forbids sharing credentialed data with "
        "third parties through APIs. Use a server on this machine or a private network, or, if "
        "that host keeps nothing, trains on nothing and lets nobody read along, type "
        f"--zero-retention-host {endpoint.host}"
    )


# -- how much at a time


class _Gate:
    """How many calls may be under way, and what they may cost.

    The number is halved when the server pushes back, at most once a second, and grows by one with
    every few successes. A budget is hard: a call enters with the most that it can cost.
    """

    def __init__(self, endpoint: Endpoint, spent: float) -> None:
        self.endpoint = endpoint
        self.limit = endpoint.concurrency
        self.used = self.successes = 0
        self.spent, self.reserved = spent, 0.0
        self.opens = self.last_cut = 0.0
        self.changed = asyncio.Condition()

    async def enter(self, worst: float) -> None:
        budget = self.endpoint.budget
        async with self.changed:
            while self.used >= self.limit or (
                budget is not None and self.used and self.spent + self.reserved + worst > budget
            ):
                await self.changed.wait()
            if budget is not None and self.spent + worst > budget:
                raise UserError(
                    f"--llm-budget {budget:g} USD is used up: {self.spent:.4f} are spent, and the "
                    f"next call may cost {worst:.4f}. What was paid for is kept: the same command "
                    "with a higher budget and --resume goes on"
                )
            self.used += 1
            self.reserved += worst

    async def leave(self, worst: float, cost: float) -> None:
        async with self.changed:
            self.used -= 1
            self.reserved -= worst
            self.spent += cost
            self.changed.notify_all()

    def succeeded(self) -> None:
        self.successes += 1
        if self.successes % _GROWTH == 0:
            self.limit = min(self.limit + 1, self.endpoint.concurrency)

    def cut(self, wait: float | None) -> None:
        now = time.monotonic()
        if now - self.last_cut > 1:
            self.limit, self.last_cut = max(1, self.limit // 2), now
        if wait is not None:
            self.opens = max(self.opens, now + wait)


class _Fault(NamedTuple):
    """Why a call gave no answer; `wait` is what the server asked for, in seconds."""

    detail: str
    again: bool = False
    pushed_back: bool = False
    wait: float | None = None
    stop: bool = False


# -- the client


class Client:
    """Asks one endpoint and keeps every answer; `run` is who pays, for a budget over restarts.

    `cache` is the file of `Replies`. `credentialed` names the credentialed source that the texts
    come from, or is None for open data: see `refuse_sending`. The key comes from the environment,
    and stands in no message.
    """

    def __init__(
        self, endpoint: Endpoint, cache: Path, *, credentialed: str | None, run: str = ""
    ) -> None:
        refuse_sending(endpoint, credentialed)
        self.endpoint, self.run = endpoint, run
        self.credentialed = credentialed
        self.tally = Tally()
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        if not self._key and not is_own(endpoint.host):
            raise UserError(
                f"no API key for {endpoint.host}: set the environment variable "
                f"{endpoint.key_variable}"
            )
        self.replies = Replies(cache)
        self._left_out: set[str] = set()
        self._failed: set[str] = set()
        self._in_vain = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.replies.close()

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Reckon what requests will take, without asking; equal ones count once.

        Repair turns are not foreseen.
        """
        model = self.endpoint.model
        count = kept = size = 0
        rates: tuple[float, float] | None = None
        seen: set[str] = set()
        for request in requests:
            count += 1
            call = self.replies.missing(request, model)
            if call is None or (key := call.key[:16]) in seen:
                kept += 1
                continue
            seen.add(key)
            size += call.size
            rates = rates or self.replies.rates(request.prompt, model.name)
        per_byte, per_call = rates or _GUESSED
        tokens_in, tokens_out = round(size * per_byte), round((count - kept) * per_call)
        cost = self.endpoint.cost(tokens_in, tokens_out)
        return Estimate(count, kept, tokens_in, tokens_out, cost, rates is not None)

    def afford(self, estimate: Estimate) -> None:
        """Raise UserError when what is reckoned is more than the budget has left."""
        budget = self.endpoint.budget
        paid = self.endpoint.cost(*self.replies.paid(self.run)) or 0.0 if self.run else 0.0
        if budget is not None and paid + (estimate.cost or 0.0) > budget:
            raise UserError(
                f"--llm-budget {budget:g} USD: {paid:.4f} are spent, and about "
                f"{estimate.cost:.4f} more are reckoned for {estimate.requests - estimate.kept:,} "
                "requests. Nothing was asked: raise the budget, or ask less (--limit)"
            )

    def ask(
        self,
        requests: Iterable[Request],
        *,
        batch: bool = False,
        progress: Progress = lambda _: None,
    ) -> Iterator[Reply]:
        """Ask what was not asked before, then yield all replies in order."""
        listed = list(requests)
        self.fill(listed, batch=batch, progress=progress)
        for request in listed:
            reply = self.replies.reply(request, self.endpoint.model)
            assert reply is not None, "a filled request has its calls"
            yield reply

    def fill(
        self,
        requests: Iterable[Request],
        *,
        batch: bool = False,
        progress: Progress = lambda _: None,
    ) -> Tally:
        """Ask until every request has its reply in the file; those that are there cost nothing.

        A request that failed in an earlier run is asked again. Raises UserError when there is no
        point in going on: key, quota, budget, a server that is gone. After Ctrl-C, answers that are
        under way are waited for and kept. With `batch`, the requests are handed in as files, and
        fetched when the server has answered them; a run that was cut off fetches them too.
        """
        if batch and self.credentialed and not is_own(self.endpoint.host):
            raise UserError(
                f"--llm-batch leaves text of {self.credentialed} lying on {self.endpoint.host}, "
                "which no promise of zero retention covers: leave it out"
            )
        work = self._fill_batches if batch else self._fill
        asyncio.run(work(iter(requests), progress))
        return self.tally

    async def _fill(self, requests: Iterator[Request], progress: Progress) -> None:
        self._halt = asyncio.Event()
        self._flying: dict[str, asyncio.Future[None]] = {}
        paid = self.endpoint.cost(*self.replies.paid(self.run)) if self.run else 0.0
        self._gate = _Gate(self.endpoint, paid or 0.0)
        async with self._connect() as self._server:
            work = self._work(requests, progress)
            workers = [asyncio.create_task(work()) for _ in range(self.endpoint.concurrency)]
            try:
                await asyncio.wait(workers)
            except asyncio.CancelledError:
                self._halt.set()
                await asyncio.wait(workers, timeout=self.endpoint.timeout)
                raise
        errors = [error for worker in workers if (error := worker.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, UserError)):
            raise error

    def _work(self, requests: Iterator[Request], progress: Progress) -> Callable[[], Any]:
        async def work() -> None:
            try:
                for request in requests:  # one iterator for all: none is read before its turn
                    if self._halt.is_set():
                        return
                    reply = await self._converse(request)
                    if reply is None:
                        return
                    self.tally.done += 1
                    self.tally.statuses[reply.status] += 1
                    progress(self.tally)
            except BaseException:
                self._halt.set()
                raise

        return work

    async def _converse(self, request: Request) -> Reply | None:
        """Have one conversation; None when the run was stopped within it."""
        talk = converse(request, self.endpoint.model)
        call = next(talk)
        while (completion := await self._complete(call)) is not None:
            try:
                call = talk.send(completion)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
        return None

    async def _complete(self, call: Call) -> Completion | None:
        """Return what came of a call, now or earlier; equal calls at one time are made once."""
        key = call.key
        while flying := self._flying.get(key):
            await flying
        kept = self.replies.get(key)
        if kept and (kept.status != "failed" or key in self._failed):
            self.tally.kept += 1
            await asyncio.sleep(0)
            return kept
        self._flying[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await self._fetch(call, key)
            if completion is not None:
                self._keep(call, key, completion)
            return completion
        finally:
            self._flying.pop(key).set_result(None)

    def _record(self, call: Call, key: str, completion: Completion) -> None:
        self.replies.put(call, completion, run=self.run)
        self.tally.tokens_in += completion.tokens_in
        self.tally.tokens_out += completion.tokens_out
        self.tally.cost = self.endpoint.cost(self.tally.tokens_in, self.tally.tokens_out)
        if completion.status == "failed":
            self._failed.add(key)

    def _keep(self, call: Call, key: str, completion: Completion) -> None:
        self._record(call, key, completion)
        self._in_vain = self._in_vain + 1 if completion.status == "failed" else 0
        if self._in_vain >= IN_VAIN:
            raise UserError(
                f"{self._in_vain} requests in a row got nothing from {self.endpoint.base_url}, "
                f"the last with: {completion.text}. What was answered is kept: see to the server, "
                "then go on with --resume"
            )

    async def _fetch(self, call: Call, key: str) -> Completion | None:
        """Make a call until it is answered, is refused for good, or has used up its attempts."""
        worst = self.endpoint.cost(call.size, call.model.max_tokens) or 0.0
        attempt = 0
        while True:
            await self._pause(self._gate.opens - time.monotonic())
            await self._gate.enter(worst)
            cost = 0.0
            try:
                if self._halt.is_set():
                    return None
                if self._gate.opens > time.monotonic():
                    continue
                came = await self._post(call, key)
                if isinstance(came, Completion):
                    cost = self.endpoint.cost(came.tokens_in, came.tokens_out) or 0.0
                    self._gate.succeeded()
                    return came
            finally:
                await self._gate.leave(worst, cost)
            if came.stop:
                raise UserError(f"{self.endpoint.base_url}: {came.detail}")
            if came.wait is not None and came.wait > LONGEST_WAIT:
                raise UserError(
                    f"{self.endpoint.base_url} asks to wait {came.wait:,.0f} s ({came.detail}); "
                    "what was answered is kept: go on then, with --resume"
                )
            if came.pushed_back:
                self._gate.cut(came.wait)
            if self._adapted(came):
                continue
            attempt += 1
            if not came.again or attempt >= self.endpoint.attempts:
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                return Completion("failed", f"{came.detail}{tried}")
            self.tally.retries[came.detail.partition(":")[0]] += 1
            if came.wait is None:
                longest = min(_LAST_WAIT, _FIRST_WAIT * 2**attempt)
                await self._pause(longest * random.uniform(0.5, 1))

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not past the end of the run."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._halt.wait(), seconds)

    # -- batches: submit, poll, collect

    async def _fill_batches(self, requests: Iterator[Request], progress: Progress) -> None:
        """Submit what is missing and collect it, until repair turns too have their answers."""
        import openai

        listed = list(requests)
        try:
            async with self._connect(retries=5) as self._server:
                while calls := self._missing(listed):
                    submitted = {key for _, keys in self.replies.batches(self.run) for key in keys}
                    left = [call for key, call in calls.items() if key not in submitted]
                    for chunk in _chunks(left):
                        await self._submit(chunk)
                    for id_, keys in self.replies.batches(self.run):
                        await self._collect(id_, [calls[key] for key in keys if key in calls])
                        progress(self.tally)
        except openai.OpenAIError as error:
            raise UserError(
                f"{self.endpoint.base_url}: {self._clean(error)}; batches that are submitted are "
                "remembered: --resume fetches them"
            ) from None
        for request in listed:
            if reply := self.replies.reply(request, self.endpoint.model):
                self.tally.statuses[reply.status] += 1

    def _missing(self, requests: Iterable[Request]) -> dict[str, Call]:
        found = (self.replies.missing(request, self.endpoint.model) for request in requests)
        calls = {call.key: call for call in found if call}
        return {key: call for key, call in calls.items() if key not in self._failed}

    async def _submit(self, calls: Sequence[Call]) -> None:
        worst = sum(self.endpoint.cost(c.size, c.model.max_tokens) or 0.0 for c in calls)
        spent = self.endpoint.cost(*self.replies.paid(self.run)) or 0.0
        if self.endpoint.budget is not None and spent + worst > self.endpoint.budget:
            raise UserError(
                f"--llm-budget {self.endpoint.budget:g} USD: {spent:.4f} are spent, and a batch of "
                f"{len(calls):,} calls may cost {worst:.4f} if every answer has its full length"
            )
        lines = (
            {"custom_id": c.key, "method": "POST", "url": _BATCHED, "body": self._body(c)}
            for c in calls
        )
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = await self._server.files.create(file=("calls.jsonl", content), purpose="batch")
        batch = await self._server.batches.create(
            input_file_id=file.id, endpoint=_BATCHED, completion_window="24h"
        )
        self.replies.submitted(batch.id, self.run, [call.key for call in calls])
        self.tally.calls += len(calls)

    async def _collect(self, id_: str, calls: Sequence[Call]) -> None:
        """Wait for a batch and keep its answers; what it does not answer has failed."""
        while (batch := await self._server.batches.retrieve(id_)).status not in _ENDED:
            await asyncio.sleep(self.endpoint.poll)
        came: dict[str, Completion] = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in (await self._server.files.content(file)).content.splitlines():
                row = json.loads(line)
                came[row["custom_id"]] = _batched(row)
        for call in calls:
            missing = Completion("failed", f"batch {id_} ended as {batch.status} without it")
            self._record(call, call.key, came.get(call.key, missing))
            self.tally.done += 1
        self.replies.collected(id_)

    # -- one HTTP request

    def _connect(self, retries: int = 0) -> openai.AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self._key or "none",
            max_retries=retries,  # none of its own: the gate has to see that the server pushes back
            timeout=self.endpoint.timeout,
            # Neither a proxy of the environment nor a redirect may carry the text elsewhere.
            http_client=openai.DefaultAsyncHttpx2Client(
                follow_redirects=False, trust_env=not is_own(self.endpoint.host)
            ),
        )

    async def _post(self, call: Call, key: str) -> Completion | _Fault:
        import openai

        self.tally.calls += 1
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                raw = await self._server.chat.completions.with_raw_response.create(
                    **self._body(call), extra_headers={"Idempotency-Key": key}
                )
            return _completion(raw.http_response.json())
        except (TimeoutError, openai.APITimeoutError):
            return _Fault(
                f"no answer within {self.endpoint.timeout:g} s", again=True, pushed_back=True
            )
        except openai.APIStatusError as error:
            return self._status_fault(error)
        except openai.APIConnectionError as error:
            return _Fault(f"no connection: {self._clean(error.__cause__ or error)}", again=True)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return _Fault(f"not the OpenAI protocol: {self._clean(error)}", again=True)

    def _body(self, call: Call) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": call.model.name,
            "messages": list(call.messages),
            "max_completion_tokens": call.model.max_tokens,
            "temperature": call.model.temperature,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": call.prompt.partition("@")[0],
                    "schema": call.schema,
                    "strict": True,
                },
            },
        }
        if "max_completion_tokens" in self._left_out:
            body["max_tokens"] = call.model.max_tokens
        return {
            name: value
            for name, value in body.items()
            if name not in self._left_out and value is not None
        }

    def _status_fault(self, error: openai.APIStatusError) -> _Fault | Completion:
        status, code = error.status_code, str(error.code or "")
        detail = f"HTTP {status}: {self._clean(error)}"
        if code == "content_filter":  # Azure's way
            return Completion("filtered", detail)
        if status == 429:
            if "insufficient_quota" in (code, error.type):
                return _Fault(f"the quota is used up ({detail}); --resume goes on", stop=True)
            return _Fault(detail, True, True, _retry_after(error.response.headers))
        if status in (408, 409, 425) or status >= 500:
            pushed_back = status in (503, 529)
            return _Fault(detail, True, pushed_back, _retry_after(error.response.headers))
        # A redirect, a key that is not taken, a model that is not there: the same for every call.
        return _Fault(detail, stop=status < 400 or status in (401, 403, 404, 405))

    def _adapted(self, fault: _Fault) -> bool:
        """Leave out what the server refuses by name; tell whether a call can now be made."""
        if not fault.detail.startswith(("HTTP 400", "HTTP 422")):
            return False
        for name, words in _REFUSED:
            if name not in self._left_out and any(word in fault.detail for word in words):
                self._left_out.add(name)
                return True
        return False

    def _clean(self, error: object) -> str:
        """Say what happened in one line, without the key should a server repeat it."""
        text = " ".join(str(error).split())[:300]
        return text.replace(self._key, "***") if self._key else text


def _completion(body: Mapping[str, Any]) -> Completion:
    """Read the body of an answer; KeyError and the like where it is none."""
    choice = body["choices"][0]
    message, usage = choice["message"], body.get("usage") or {}
    tokens = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
    if refusal := message.get("refusal"):
        return Completion("refused", str(refusal), *tokens)
    if choice.get("finish_reason") == "content_filter":
        return Completion("filtered", "the server's content filter", *tokens)
    status: Any = "cut" if choice.get("finish_reason") == "length" else "answered"
    return Completion(status, str(message["content"] or ""), *tokens)


def _chunks(calls: Iterable[Call]) -> Iterator[list[Call]]:
    chunk: list[Call] = []
    size = 0
    for call in calls:
        if chunk and (len(chunk) >= _BATCH_CALLS or size + call.size > _BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(call)
        size += call.size
    if chunk:
        yield chunk


def _batched(row: Mapping[str, Any]) -> Completion:
    """Read one line of a batch's output or errors."""
    response = row.get("response") or {}
    try:
        if response["status_code"] == 200:
            return _completion(response["body"])
    except (KeyError, TypeError, IndexError):
        pass
    why = row.get("error") or response.get("body") or "no answer"
    return Completion("failed", f"batch: HTTP {response.get('status_code')}: {why}"[:300])


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long a server asks to wait, in seconds: milliseconds, seconds, or a date.

    >>> _retry_after({"retry-after": "2.5"}), _retry_after({"retry-after-ms": "80"})
    (2.5, 0.08)
    >>> _retry_after({"retry-after": "soon"}) is None
    True
    """
    try:
        if ms := headers.get("retry-after-ms"):
            return max(0.0, float(ms) / 1000)
        value = headers.get("retry-after", "")
        with suppress(ValueError):
            return max(0.0, float(value))
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
