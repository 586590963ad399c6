"""What a release in a bucket costs: requests, and seconds at a latency, beside the same on a disk.

    python benchmarks/bench_remote.py --studies 400 --latency 0.05

Invented reports in MIMIC-CXR's layout, with an image each, lie on a moto server that sleeps before
each answer, as a store does that is not next door. One worker; seconds of `build` alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from cot_builder import pipeline
from cot_builder.paths import where
from cot_builder.sources import SourceOptions
from knowledge_banks import load_banks

REPORT = "FINDINGS: The heart is enlarged. Small left pleural effusion {}. No pneumothorax.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--latency", type=float, default=0.05, metavar="S")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        release, log = Path(scratch) / "release", Path(scratch) / "requests"
        write_release(release, asked.studies)
        ready = multiprocessing.get_context("spawn").Queue()
        server = multiprocessing.get_context("spawn").Process(
            target=serve, args=(ready, log, asked.latency), daemon=True
        )
        server.start()
        os.environ |= {"AWS_ENDPOINT_URL": ready.get(), "AWS_DEFAULT_REGION": "us-east-1",
                       "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}  # fmt: skip
        import s3fs

        store = s3fs.S3FileSystem()
        store.mkdir("bench")
        store.put(f"{release}/", "bench/release/", recursive=True)
        result: dict[str, Any] = {
            "studies": asked.studies, "latency": asked.latency, "python": platform.python_version(),
            **{name: version(name) for name in ("s3fs", "moto", "universal-pathlib")}, "runs": [],
        }  # fmt: skip
        for name, root, out, at_once in (
            ("disk to disk", release, f"{scratch}/local", 32),
            ("bucket to bucket, one study at a time", "s3://bench/release", "s3://bench/one", 1),
            ("bucket to bucket", "s3://bench/release", "s3://bench/many", pipeline.AT_ONCE),
        ):
            log.write_text("")
            pipeline.AT_ONCE = at_once
            started = time.perf_counter()
            pipeline.build(
                pipeline.BuildOptions(
                    source="mimic",
                    release=SourceOptions(banks=load_banks(), root=where(str(root))),
                    out=where(out),
                )
            )
            seconds = time.perf_counter() - started
            requests = Counter(log.read_text().split())
            result["runs"].append({"run": name, "seconds": seconds, "requests": requests})
        server.terminate()
    print(json.dumps(result, indent=1))


def write_release(release: Path, studies: int) -> None:
    for number in range(studies):
        subject, study = 10000000 + number // 2, 50000000 + number
        report = release / f"mimic-cxr/files/p10/p{subject}/s{study}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(REPORT.format(number))
        image = release / f"mimic-cxr-jpg/files/p10/p{subject}/s{study}/i{number}.jpg"
        image.parent.mkdir(parents=True)
        Image.effect_noise((320, 256), 60).convert("L").save(image)


def serve(ready: Any, log: Path, latency: float) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = DomainDispatcherApplication(create_backend_app)

    def slow(environ: dict[str, Any], start: Any) -> Any:
        kind = "LIST" if "list-type" in environ["QUERY_STRING"] else environ["REQUEST_METHOD"]
        what = re.search(r"\.(txt|jpg)$", environ["PATH_INFO"])
        with log.open("a") as lines:
            lines.write(f"{kind}{what[0] if what else ''}\n")
        time.sleep(latency)
        return store(environ, start)

    server = make_server("127.0.0.1", 0, slow, threaded=True)
    ready.put(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    main()
