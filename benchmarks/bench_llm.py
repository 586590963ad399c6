"""The client of a language model: throughput at 50 ms latency, and its memory over many sentences.

    make bench-llm                                  # 50,000 sentences, 64 at a time
    python benchmarks/bench_llm.py --sentences 3000 # quickly; nothing is written to results/

The server is the tests' double in a process of its own, on the same cores; it answers every call
after 50 ms. Each sentence is a request of the `chains` prompt; its answer is read, verified against
the banks and kept in SQLite, as in a build. Then all is asked again, from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
FULL = 50_000
LATENCY, CONCURRENCY = 0.05, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sentences", type=int, default=FULL)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve()
        return
    with (
        subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        try:
            assert server.stdout
            result = _measured(
                server.stdout.readline().decode().strip(), Path(folder), options.sentences
            )
        finally:
            server.kill()
    print(json.dumps(result, indent=1))
    if options.sentences == FULL:
        (HERE / "results" / "llm.json").write_text(json.dumps(result, indent=1) + "\n")


def _serve() -> None:
    sys.path.insert(0, str(HERE.parent))
    from tests.openai_double import Double

    with Double(_answer, latency=LATENCY) as server:
        server.seen = deque(maxlen=1)  # type: ignore[assignment]  # no room for 50,000 bodies
        print(server.url, flush=True)
        time.sleep(86_400)


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    finding = " ".join(json.loads(text)["sentence"].split()[:3])
    mention = {"finding": finding, "disease": "unmapped", "concepts": []}
    return {"mentions": [{**mention, "assertion": "positive", "regions": ["whole lung"]}]}


def _measured(url: str, folder: Path, count: int) -> dict[str, Any]:
    from cot_builder.decompose import Decomposer
    from cot_builder.drafting import Drafter, Drafting
    from cot_builder.llm import Client, Endpoint, Tally
    from cot_builder.replies import Model
    from knowledge_banks import load_banks

    endpoint = Endpoint(model=Model("double"), base_url=url, concurrency=CONCURRENCY)
    cache = folder / "replies.sqlite"
    drafting = Drafting(kind="hybrid", endpoint=endpoint, cache=cache)
    drafter = Drafter(drafting, Decomposer(load_banks()))
    process = psutil.Process()
    memory: dict[int, int] = {}

    def sample(tally: Tally) -> None:
        if tally.done % (count // 10) == 0:
            memory[tally.done] = round(process.memory_info().rss / 2**20)

    with Client(endpoint, cache, credentialed=None) as client:
        client.fill(map(drafter.request, _sentences(CONCURRENCY)))  # connections and imports
        started, cpu = time.perf_counter(), time.process_time()
        client.tally.done, client.tally.statuses = 0, Counter()
        tally = client.fill(map(drafter.request, _sentences(count)), progress=sample)
        wall, used = time.perf_counter() - started, time.process_time() - cpu
        calls, statuses = tally.calls, dict(tally.statuses)
        started = time.perf_counter()
        client.fill(map(drafter.request, _sentences(count)))
        again = time.perf_counter() - started
        assert tally.calls == calls, "a kept answer was asked for again"
    return {
        "sentences": count,
        "latency_ms": round(LATENCY * 1000),
        "concurrency": CONCURRENCY,
        "calls_per_second": round((count - CONCURRENCY) / wall),
        "wall_seconds": round(wall, 1),
        "client_cpu_ms_a_call": round(1000 * used / count, 2),
        "statuses": statuses,
        "rss_mib_by_sentences": memory,
        "again_from_the_file_per_second": round(count / again),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": [round(each, 1) for each in os.getloadavg()],
    }


def _sentences(count: int) -> Iterator[str]:
    return (f"Peculiar shadow number {n} at the right base, as before." for n in range(count))


if __name__ == "__main__":
    main()
