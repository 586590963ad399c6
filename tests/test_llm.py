"""The client against a real HTTP server that misbehaves: every fault has its outcome."""

from __future__ import annotations

import json
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cot_builder import llm
from cot_builder.errors import UserError
from cot_builder.llm import Client, Endpoint, is_own
from cot_builder.replies import Model, Replies, Reply, Request
from knowledge_banks import Prompt
from tests.openai_double import Double, in_turn

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": ["echo", "other"]}},
    "required": ["word"],
    "additionalProperties": False,
}
PROMPT = Prompt("echo@1.0.0", "Say echo.", SCHEMA, "Wrong: {problem}")
ECHO = {"word": "echo"}
SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are short, and no key of the developer's is used."""
    monkeypatch.setattr(llm, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(llm, "_LAST_WAIT", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:9")  # nothing may go through it


def client(server: Double, cache: Path, **settings: Any) -> Client:
    chosen = {"model": Model("m"), "base_url": server.url, "concurrency": 4, **settings}
    return Client(Endpoint(**chosen), cache, credentialed=None)


def asked(server: Double, cache: Path, *texts: str, **settings: Any) -> list[Reply]:
    with client(server, cache, **settings) as one:
        return list(one.ask([Request.of(PROMPT, text) for text in texts]))


@pytest.mark.parametrize(
    ("faults", "status", "calls", "detail"),
    [
        (("429",), "ok", 2, ""),
        (("429 soon", "429 soon"), "ok", 3, ""),
        (("500", "503", "500"), "ok", 4, ""),
        (("disconnect", "disconnect"), "ok", 3, ""),
        (("html",), "ok", 2, ""),
        (("empty",), "ok", 2, ""),
        (("hang",), "ok", 2, ""),
        (("fenced",), "ok", 1, ""),
        (("no schema",), "ok", 2, ""),
        (("old name", "no temperature"), "ok", 3, ""),
        (("not json",), "ok", 2, ""),
        (("wrong schema",), "ok", 2, ""),
        (("cut",), "ok", 2, ""),
        (("not json", "not json"), "failed", 2, "not JSON"),
        (("wrong schema", "wrong schema"), "failed", 2, "is a required property"),
        (("cut", "cut"), "failed", 2, "cut off"),
        (("refusal",), "refused", 1, "cannot help"),
        (("filter",), "filtered", 1, "content filter"),
        (("not json", "refusal"), "refused", 2, "cannot help"),
        (("500",) * 3, "failed", 3, "HTTP 500: "),
        (("hang",) * 3, "failed", 3, "no answer within 0.3 s"),
        (("disconnect",) * 3, "failed", 3, "no connection"),
        (("html",) * 3, "failed", 3, "not the OpenAI protocol"),
    ],
)
def test_every_fault_has_its_outcome(
    tmp_path: Path, faults: tuple[str, ...], status: str, calls: int, detail: str
) -> None:
    attempts = 3 if status == "failed" else 6
    with Double(lambda text, schema: ECHO, fault=in_turn(*faults)) as server:
        settings: dict[str, Any] = {"attempts": attempts, "timeout": 0.3}
        (reply,) = asked(server, tmp_path / "c", "hello", **settings)
        assert (reply.status, len(server.seen)) == (status, calls)
        assert detail in reply.detail
        assert reply.parsed == (ECHO if status == "ok" else None)
        again = asked(server, tmp_path / "c", "hello", **settings)
        if not detail.startswith(("HTTP", "no ", "not the")):  # an answer of any kind is paid for
            assert again == [reply]
            assert len(server.seen) == calls
        else:  # nothing came, so that it is asked again
            assert (again[0].status, len(server.seen)) == ("ok", calls + 1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("quota", "quota is used up"),
        ("bad key", "HTTP 401"),
        ("no model", "HTTP 404"),
        ("redirect", "HTTP 307"),
        ("429 tomorrow", "asks to wait 86,400 s"),
    ],
)
def test_what_no_attempt_can_mend_stops_the_run(tmp_path: Path, fault: str, message: str) -> None:
    texts = [str(number) for number in range(40)]

    def met(text: str, before: int) -> str | None:
        return fault if text == "20" else None

    with Double(lambda text, schema: ECHO, fault=met) as server:
        with pytest.raises(UserError, match=message) as raised:
            asked(server, tmp_path / "c", *texts)
        assert SECRET not in str(raised.value)
        assert 20 <= len(server.seen) < 40
        kept = sqlite3.connect(tmp_path / "c").execute("SELECT count(*) FROM completion")
        assert kept.fetchone()[0] == len(server.seen) - 1  # what came is kept, all of it


def test_a_server_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    with Double() as server:
        pass
    with pytest.raises(UserError, match=r"2\d requests in a row got nothing"):
        asked(server, tmp_path / "c", *map(str, range(100)), attempts=2)


def test_equal_requests_are_made_once_now_and_later(tmp_path: Path) -> None:
    with Double(lambda text, schema: ECHO, latency=0.02) as server:
        texts = ["a", "b", "a", "a", "c"] * 5
        assert [reply.parsed for reply in asked(server, tmp_path / "c", *texts)] == [ECHO] * 25
        wanted = server.seen[0].body["response_format"]["json_schema"]
        assert (wanted["schema"], wanted["strict"]) == (SCHEMA, True)
        assert "stream" not in server.seen[0].body
        assert server.texts == {"a": 1, "b": 1, "c": 1}
        asked(server, tmp_path / "c", "c", "d")
        assert server.texts["c"] == server.texts["d"] == 1
        asked(server, tmp_path / "c", "d", model=Model("another"))
        asked(server, tmp_path / "c", "d", model=Model("m", temperature=0.5))
        assert server.texts["d"] == 3  # another model or setting is another question


def test_the_model_is_told_what_the_check_found(tmp_path: Path) -> None:
    def answer(text: str, schema: dict[str, Any]) -> Any:
        return {"word": "other"} if text == "hello" else ECHO

    def check(parsed: Any) -> str | None:
        return "say echo" if parsed["word"] != "echo" else None

    with Double(answer) as server, client(server, tmp_path / "c") as one:
        (reply,) = one.ask([Request.of(PROMPT, "hello", check)])
        assert (reply.status, reply.repaired, reply.parsed) == ("ok", True, ECHO)
        assert server.seen[1].text == "Wrong: say echo"
        assert server.seen[1].body["messages"][2] == {
            "role": "assistant",
            "content": '{"word": "other"}',
        }
    with Double(lambda text, schema: {"word": "other"}) as server:
        with client(server, tmp_path / "d") as one:
            (reply,) = one.ask([Request.of(PROMPT, "hello", check)])
        # It stands, and says what is wrong with it: the caller decides.
        assert (reply.status, reply.detail) == ("ok", "say echo")


def test_the_gate_backs_off_for_all_and_grows_again(tmp_path: Path) -> None:
    faults = in_turn(*[None] * 20, "429 soon")
    with Double(lambda text, schema: ECHO, fault=faults, latency=0.01) as server:
        started = time.monotonic()
        with client(server, tmp_path / "c", concurrency=16) as one:
            tally = one.fill(Request.of(PROMPT, str(n)) for n in range(200))
            assert one._gate.limit == 16  # halved, then grown by the successes
        assert time.monotonic() - started > 0.3  # as Retry-After had it
        assert (tally.done, tally.calls, tally.statuses) == (200, 201, {"ok": 200})
        assert server.most_under_way <= 16


def test_a_budget_is_never_overstepped(tmp_path: Path) -> None:
    prices = {"price_in": 1.0, "price_out": 10.0}
    with Double(lambda text, schema: ECHO, latency=0.005) as server:
        settings: dict[str, Any] = {**prices, "budget": 0.02, "concurrency": 8}
        cache = tmp_path / "c"
        endpoint = Endpoint(model=Model("m", max_tokens=100), base_url=server.url, **settings)
        requests = [Request.of(PROMPT, str(n)) for n in range(1000)]
        for budget in (0.02, 0.02, 0.03):  # a killed run's spending counts, as of the same run
            with (
                Client(
                    Endpoint(
                        model=endpoint.model,
                        base_url=server.url,
                        **{**settings, "budget": budget},
                    ),
                    cache,
                    credentialed=None,
                    run="r",
                ) as one,
                pytest.raises(UserError, match="is used up"),
            ):
                one.fill(requests)
            usage = [each["usage"] for each in server.charged.values()]
            spent = sum(u["prompt_tokens"] + 10 * u["completion_tokens"] for u in usage) / 1e6
            assert 0.9 * budget < spent <= budget


def test_a_batch_that_may_cost_more_than_the_budget_is_not_sent(tmp_path: Path) -> None:
    prices = {"price_in": 1.0, "price_out": 10.0, "budget": 0.001}
    with Double(lambda text, schema: ECHO) as server:
        with (
            client(server, tmp_path / "c", **prices) as one,
            pytest.raises(UserError, match=r"--llm-budget 0.001 USD: 0.0000 are spent, .* cost"),
        ):
            one.fill([Request.of(PROMPT, str(n)) for n in range(100)], batch=True)
        assert not server.batches


def test_the_estimate_comes_before_the_first_call(tmp_path: Path) -> None:
    with Double(lambda text, schema: ECHO) as server:
        requests = [Request.of(PROMPT, str(n)) for n in range(100)]
        with client(server, tmp_path / "c", price_in=1.0, price_out=2.0) as one:
            guess = one.estimate([*requests, *requests])
            assert (guess.requests, guess.kept, guess.measured) == (200, 100, False)
            assert not server.seen
            one.fill(requests[:50])
            measured = one.estimate(requests)
            assert (measured.requests, measured.kept, measured.measured) == (100, 50, True)
            before = one.tally.tokens_in, one.tally.tokens_out
            one.fill(requests)
            paid = one.tally.tokens_in - before[0], one.tally.tokens_out - before[1]
            assert paid == pytest.approx((measured.tokens_in, measured.tokens_out), rel=0.05)
            assert measured.cost == pytest.approx((paid[0] + 2 * paid[1]) / 1e6, rel=0.05)
            assert one.estimate(requests).cost == 0


def test_a_batch_is_submitted_polled_and_collected(tmp_path: Path) -> None:
    faults = {"1": "500", "2": "refusal", "3": "not json", "4": "cut"}
    requests = [Request.of(PROMPT, str(n)) for n in range(6)] * 2

    def fault(text: str, before: int) -> str | None:
        return None if server.texts[text] else faults.get(text)  # only the first time

    with Double(lambda text, schema: ECHO, fault=fault) as server:
        with client(server, tmp_path / "c", poll=0.01) as one:
            assert one.fill(requests, batch=True).statuses == {"ok": 8, "failed": 2, "refused": 2}
            assert len(server.batches) == 2  # the answers, and a repair turn with a longer answer
            assert one.replies.batches("") == []
        with client(server, tmp_path / "c", poll=0.01) as one:  # only what failed is asked again
            assert one.fill(requests, batch=True).statuses == {"ok": 10, "refused": 2}
            assert len(server.files[server.batches["batch-2"]["input_file_id"]].splitlines()) == 1


def test_a_batch_is_not_submitted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request.of(PROMPT, str(n)) for n in range(6)]

    async def cut_off(*_: object) -> None:
        raise OSError("cut off")

    with Double(lambda text, schema: ECHO) as server:
        with client(server, tmp_path / "c") as one, monkeypatch.context() as patch:
            patch.setattr(Client, "_collect", cut_off)
            with pytest.raises(OSError, match="cut off"):
                one.fill(requests, batch=True)
        with client(server, tmp_path / "c", poll=0.01) as one:
            assert one.fill(requests, batch=True).statuses == {"ok": 6}
        assert len(server.batches) == 1
        assert len(server.charged) == 6


def test_no_batch_of_credentialed_text_lies_on_another_host(tmp_path: Path) -> None:
    vouched = Endpoint(
        model=Model("m"), base_url="https://8.8.8.8/v1", zero_retention_host="8.8.8.8"
    )
    one = Client(vouched, tmp_path / "c", credentialed="mimic")
    with pytest.raises(UserError, match="which no promise of zero retention covers"):
        one.fill([], batch=True)


# -- what leaves, and where to


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True), ("localhost", True), ("10.1.2.3", True), ("192.168.7.7", True),
        ("172.16.0.1", True), ("::1", True), ("fd00::5", True), ("::ffff:10.0.0.1", True),
        ("8.8.8.8", False), ("172.32.0.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("::ffff:8.8.8.8", False), ("2001:4860:4860::8888", False),
        ("no-such-host.invalid", False),
    ],
)  # fmt: skip
def test_own_addresses(host: str, own: bool) -> None:
    assert is_own(host) is own


def test_credentialed_text_stays_at_home(tmp_path: Path) -> None:
    far = Endpoint(model=Model("m"), base_url="https://8.8.8.8/v1")
    with pytest.raises(UserError, match="24 Sep 2025") as raised:
        Client(far, tmp_path / "c", credentialed="mimic")
    assert "--zero-retention-host 8.8.8.8" in str(raised.value)
    assert "mimic" in str(raised.value)
    Client(far, tmp_path / "c", credentialed=None)
    vouched = Endpoint(
        model=Model("m"), base_url="https://8.8.8.8/v1", zero_retention_host="8.8.8.8"
    )
    Client(vouched, tmp_path / "c", credentialed="mimic")
    assert vouched.described()["zero_retention_host"] == "8.8.8.8"
    with pytest.raises(UserError, match=r"type exactly that"):
        Endpoint(model=Model("m"), base_url="https://8.8.8.8/v1", zero_retention_host="8.8.4.4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "expected an address"),
        ({"base_url": f"https://user:{SECRET}@host/v1"}, "holds a user"),
        ({"base_url": "https://host/v1?key=1"}, "holds a user, password or query"),
        ({"budget": 1.0}, "needs --llm-price-in"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Endpoint(model=Model("m"), **settings)
    assert SECRET not in str(raised.value)


def test_a_far_server_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        Client(Endpoint(model=Model("m")), tmp_path / "c", credentialed=None)


def test_the_key_is_nowhere_on_the_disk_and_the_file_is_private(tmp_path: Path) -> None:
    (tmp_path / "c").touch(mode=0o644)
    with Double(fault=lambda text, before: "bad key") as server, pytest.raises(UserError):
        asked(server, tmp_path / "c", "hello")
    with Double(fault=lambda text, before: "500") as server:
        asked(server, tmp_path / "c", "hello", attempts=1)
        with client(server, tmp_path / "c") as one:
            for file in tmp_path.iterdir():  # journals too
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                assert SECRET.encode() not in file.read_bytes()
            assert SECRET not in json.dumps(one.endpoint.described())


def test_a_file_that_is_no_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("my thesis" * 1000)
    with pytest.raises(UserError, match="answers: file is not a database"):
        Replies(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "my thesis" * 1000


# -- stopping

RUN = """
import sys
from pathlib import Path
from cot_builder.llm import Client, Endpoint
from cot_builder.replies import Model, Request
from knowledge_banks import Prompt
import json
prompt = Prompt("echo@1.0.0", "Say echo.", json.loads(sys.argv[3]), "Wrong: {problem}")
endpoint = Endpoint(model=Model("m"), base_url=sys.argv[1], concurrency=8)
with Client(endpoint, Path(sys.argv[2]), credentialed=None) as client:
    client.fill(Request.of(prompt, str(number)) for number in range(300))
"""


def started(server: Double, cache: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", RUN, server.url, str(cache), json.dumps(SCHEMA)]
    return subprocess.Popen(arguments, stderr=subprocess.DEVNULL)


def kept(cache: Path) -> set[str]:
    return {key for (key,) in sqlite3.connect(cache).execute("SELECT key FROM completion")}


def test_after_ctrl_c_what_is_under_way_is_kept(tmp_path: Path) -> None:
    with Double(lambda text, schema: ECHO, latency=0.2) as server:
        process = started(server, tmp_path / "c")
        while len(server.seen) < 20:
            assert process.poll() is None, "it ended before it was stopped"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert len(server.seen) < 40
        assert kept(tmp_path / "c") == {call.key for call in server.seen}
