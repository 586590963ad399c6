"""A real HTTP server on 127.0.0.1 that speaks the OpenAI protocol, and misbehaves as it is told.

    with Double(answer=lambda text, schema: {"mentions": []}) as server:
        Endpoint(model=Model("m"), base_url=server.url)

`fault` is asked for every call, with the text of the user and how often this call came before, what
goes wrong this time: one of `FAULTS`, or None. A success that is asked for again with the same
Idempotency-Key is given again and not charged.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

Answer = Callable[[str, dict[str, Any]], Any]
Fault = Callable[[str, int], str | None]
FAULTS = (
    *("429", "429 soon", "429 tomorrow", "500", "503", "hang", "disconnect", "html"),
    *("not json", "fenced", "wrong schema", "refusal", "filter", "cut", "empty"),
    *("quota", "bad key", "no model", "no schema", "old name", "no temperature", "redirect"),
)


class Seen(NamedTuple):
    """A call that came: the user's last text, the fault it met, its body."""

    text: str
    fault: str | None
    body: dict[str, Any]
    key: str


class Double:
    """The server, in a thread of its own; `seen` holds the calls, `charged` the paid ones."""

    def __init__(
        self,
        answer: Answer = lambda text, schema: {},
        *,
        fault: Fault = lambda text, before: None,
        latency: float = 0.0,
    ) -> None:
        self.answer, self.fault, self.latency = answer, fault, latency
        self.seen: list[Seen] = []
        self.came: Counter[str] = Counter()
        self.charged: dict[str, dict[str, Any]] = {}
        self.under_way = self.most_under_way = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.url = ""

    def __enter__(self) -> Double:
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),))
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.closing.set)
        self.thread.join(10)

    @property
    def texts(self) -> Counter[str]:
        """How often each text was asked about."""
        return Counter(call.text for call in self.seen)

    async def _serve(self) -> None:
        self.closing = asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self.ready.set()
        await self.closing.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                pairs = (line.partition(": ") for line in lines)
                headers = {name.lower(): value for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split()
                reply = await self._route(method, path, body, headers)
                if reply is None:
                    break
                status, payload, more = reply
                content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                fields = {"content-type": "application/json", "content-length": len(content)}
                fields.update(more)
                start = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{start}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _route(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]] | None:
        if path == "/v1/chat/completions":
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                return await self._chat(json.loads(body), headers)
            finally:
                self.under_way -= 1
        if path == "/v1/files":
            boundary = b"--" + headers["content-type"].partition("boundary=")[2].strip('"').encode()
            part = next(part for part in body.split(boundary) if b'name="file"' in part)
            name = f"file-{len(self.files)}"
            self.files[name] = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            return 200, {"id": name, "object": "file", "purpose": "batch"}, {}
        if path == "/v1/batches":
            return 200, self._submit(json.loads(body)), {}
        if path.startswith("/v1/batches/"):
            return 200, self._poll(path.rpartition("/")[2]), {}
        if path.startswith("/v1/files/"):
            return 200, self.files[path.split("/")[3]], {}
        return 404, _error("not_found", path), {}

    async def _chat(
        self, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]] | None:
        text = body["messages"][-1]["content"]
        key = headers.get("idempotency-key", "")
        fault = self.fault(text, self.came[key])
        self.came[key] += 1
        self.seen.append(Seen(text, fault, body, key))
        if self.latency:
            await asyncio.sleep(self.latency)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault in ("disconnect",):
            return None
        secret = headers.get("authorization", "")
        options = set(body)
        refused: dict[str, tuple[int, Any, dict[str, str]]] = {
            "429": (429, _error("rate_limit_exceeded", "slow down"), {}),
            "429 soon": (429, _error("rate_limit_exceeded", "slow down"), {"Retry-After": "0.3"}),
            "429 tomorrow": (429, _error("rate_limit_exceeded", "no"), {"Retry-After": "86400"}),
            "500": (500, _error("server_error", "boom"), {}),
            "503": (503, _error("overloaded", "busy"), {}),
            "html": (200, b"<html>a proxy of the hospital</html>", {"content-type": "text/html"}),
            "empty": (200, {"error": "no choices here"}, {}),
            "quota": (429, _error("insufficient_quota", "pay first"), {}),
            "bad key": (401, _error("invalid_api_key", f"wrong key: {secret}"), {}),
            "no model": (404, _error("model_not_found", "no such model"), {}),
            "redirect": (307, b"", {"Location": "http://192.0.2.1/v1/chat/completions"}),
        }
        unsupported = {
            "no schema": "response_format",
            "old name": "max_completion_tokens",
            "no temperature": "temperature",
        }
        if fault in refused:
            return refused[fault]
        if (name := unsupported.get(fault or "")) in options:
            return 400, _error("unsupported_parameter", f"Unsupported parameter: {name}"), {}
        if key not in self.charged:
            self.charged[key] = self.complete(body, fault)
        return 200, self.charged[key], {}

    def complete(self, body: dict[str, Any], fault: str | None = None) -> dict[str, Any]:
        """Answer one call, as the fault has it."""
        text = body["messages"][-1]["content"]
        wanted = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
        said = self.answer(text, wanted)
        content: Any = said if isinstance(said, str) else json.dumps(said)
        finish, refusal = "stop", None
        if fault == "refusal":
            content, refusal = None, "I cannot help with that."
        elif fault == "filter":
            content, finish = "", "content_filter"
        elif fault == "cut":
            content, finish = content[: len(content) // 2], "length"
        elif fault == "fenced":
            content = f"Sure! Here it is:\n```json\n{content}\n```\nAnything else?"
        elif fault == "not json":
            content = "Looks like an effusion to me."
        elif fault == "wrong schema":
            content = '{"answer": 42}'
        sizes = len(json.dumps(body["messages"])) // 4, len(content or "") // 4 + 1
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": content, "refusal": refusal},
                }
            ],
            "usage": {
                "prompt_tokens": sizes[0],
                "completion_tokens": sizes[1],
                "total_tokens": sum(sizes),
            },
        }

    def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "created_at": 0,
            "status": "in_progress",
        }
        return self.batches[name]

    def _poll(self, name: str) -> dict[str, Any]:
        """Tell that a batch is under way at the first look, and that it is done at the second."""
        batch = self.batches[name]
        if batch["status"] == "in_progress" and batch.setdefault("polls", 0):
            answers, errors = [], []
            for line in self.files[batch["input_file_id"]].splitlines():
                one = json.loads(line)
                text = one["body"]["messages"][-1]["content"]
                fault = self.fault(text, self.came[one["custom_id"]])
                self.came[one["custom_id"]] += 1
                self.seen.append(Seen(text, fault, one["body"], one["custom_id"]))
                row = {"id": "r", "custom_id": one["custom_id"], "error": None}
                if fault == "500":
                    response = {"status_code": 500, "body": _error("server_error", "boom")}
                    errors.append({**row, "response": response})
                else:
                    done = self.complete(one["body"], fault)
                    self.charged[one["custom_id"]] = done
                    answers.append({**row, "response": {"status_code": 200, "body": done}})
            for kind, rows in (("output", answers), ("error", errors)):
                if rows:
                    self.files[f"{name}-{kind}"] = "\n".join(map(json.dumps, rows)).encode()
                    batch[f"{kind}_file_id"] = f"{name}-{kind}"
            batch["status"] = "completed"
        batch["polls"] = batch.get("polls", 0) + 1
        return batch


def in_turn(*faults: str | None) -> Fault:
    """Meet calls with these faults in the order in which they come, then with none."""
    left = list(faults)
    return lambda text, before: left.pop(0) if left else None


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "param": None, "code": code}}
