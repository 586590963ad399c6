"""Tokens and keys are in nothing that is said or written, whatever a server answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cot_builder.pipeline import build
from cot_builder.shards import BuildOptions
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks

pytestmark = pytest.mark.server

SECRET = "hf_0123456789SecretOfATest"
# Whatever the libraries have to make them say more, and one that lays asyncio open.
LOUD = {
    "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "OPENAI_LOG": "debug", "HTTPX_LOG_LEVEL": "trace",
    "PYTHONASYNCIODEBUG": "1", "TRANSFORMERS_VERBOSITY": "debug", "COLUMNS": "300",
}  # fmt: skip


@contextmanager
def echoing(status: int) -> Iterator[str]:
    """A server that answers everything with one status, and repeats the secret that it was sent."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = self.headers.get("Authorization") or ""
            seen.append(told)
            words = dict.fromkeys(("detail", "message", "error", "name", "id", "status"), told)
            body = json.dumps({**words, "validation_errors": {"key": [told]}}).encode()
            self.send_response(status)
            self.send_header("X-Error-Message", told)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_PUT = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
    assert any(SECRET in told for told in seen), "the server was never told the secret"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("secrets") / "demo"
    build(BuildOptions(source="demo", release=SourceOptions(banks=load_banks()), out=out))
    return out


COMMANDS = {
    "publish": ("publish {demo} --version 1.0.0 --repo ann/chains", "HF_TOKEN"),
    "versions": ("versions --repo ann/chains", "HF_TOKEN"),
    "rehydrate": ("rehydrate ann/chains --version 1.0.0 --out {out}", "HF_TOKEN"),
    "review push": ("review push {demo} --url {url} --reviews {out}", "LABEL_STUDIO_API_KEY"),
    "build": (
        "build --source demo --out {out} --workers 1 --llm-model m --llm-base-url {url}/v1 "
        "--llm-timeout 5 --llm-key-variable OPENAI_API_KEY",
        "OPENAI_API_KEY",
    ),
    "draft": (
        "draft Curious.shadow. --llm-model m --llm-base-url {url}/v1 --llm-cache {out}",
        "OPENAI_API_KEY",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_secret_is_said_and_written_nowhere(
    name: str, status: int, demo: Path, tmp_path: Path
) -> None:
    command, variable = COMMANDS[name]
    with echoing(status) as url:
        words = command.format(demo=demo, out=tmp_path / "out", url=url).split()
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", "from cot_builder.cli import main; main()", *words],
            env={**os.environ, **LOUD, variable: SECRET, "HF_ENDPOINT": url,
                 "HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert SECRET not in done.stdout + done.stderr
    files = [path for path in (*tmp_path.rglob("*"), *demo.parent.rglob("*")) if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
