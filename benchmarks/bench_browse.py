"""How quick the page of `cot-builder browse` is on a dataset of MIMIC-CXR's size.

    make bench-build bench-browse                     # the dataset that bench-build left
    python benchmarks/bench_browse.py --dataset DIR

Searches go to the index, uncached, as a list of results needs them: places and the first 25 hits.
Pages go over HTTP to the real server, as a browser asks, on one connection after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
REPEATS = 7
QUERIES: tuple[dict[str, str], ...] = (
    {},
    {"text": "pneumothorax"},
    {"text": "no such word"},
    {"text": '"small left"'},
    {"text": "small left effusion"},
    {"label": "Edema", "assertion": "positive"},
    {"label": "Pneumothorax", "assertion": "positive", "region": "right apical zone"},
    {"label": "Cardiomegaly", "assertion": "uncertain", "text": "borderline", "split": "train"},
    {"region": "spine"},
    {"label": "unmapped"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    scratch = Path(tempfile.gettempdir()) / "cot-builder-bench"
    parser.add_argument("--dataset", type=Path, default=scratch / "out-227835")
    dataset = parser.parse_args().dataset

    from eval.workbench.index import Index, Query

    started = time.perf_counter()
    index = Index(dataset)
    result: dict[str, Any] = {"studies": len(index), "open_seconds": time.perf_counter() - started}
    result["queries"] = []
    for wanted in QUERIES:
        query = Query(**wanted)

        def search(query: Query = query) -> int:
            index.find.cache_clear()
            found = index.find(query)
            index.hits(found[:25])
            return len(found)

        result["queries"].append({"query": wanted, **_timed(search), "found": search()})
    result["pages"] = _pages(dataset, len(index))
    result["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps(result, indent=1))
    (HERE / "results" / "browse.json").write_text(json.dumps(result, indent=1) + "\n")


def _timed(work: Callable[[], object]) -> dict[str, float]:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return {"ms": round(statistics.median(times), 1), "worst_ms": round(max(times), 1)}


def _pages(dataset: Path, studies: int) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("cot-builder")), "browse", str(dataset)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            told = next(line for line in process.stdout if "http" in line)
            found = re.search(r"(http://[^/]+)/\?key=\S+", told)
            assert found, told
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            browser.open(found[0]).read()
            places = iter(range(0, studies, studies // (2 * REPEATS)))
            return {
                "a list, by label": _timed(lambda: browser.open(f"{found[1]}/?label=Edema").read()),
                "a study": _timed(lambda: browser.open(f"{found[1]}/study/{next(places)}").read()),
                "server_mib": round(psutil.Process(process.pid).memory_info().rss / 2**20),
            }
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
