"""What a release and a dataset in a bucket cost: requests, and wall time beside a local folder.

    python benchmarks/bench_remote.py --studies 200 --delay 20

Invented reports in MIMIC-CXR's layout, with an image each, lie on a moto server in a process of its
own. It sleeps before each answer, as a store that is not next door; without that, it shows what the
server itself takes. Commands run in this process, one worker, so that no start of Python is timed.
Ratios are of the quickest repeats.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from typer.testing import CliRunner

RESULT = Path(__file__).resolve().parent / "results" / "remote.json"
REPORT = "FINDINGS: The heart is enlarged. Small left pleural effusion {}. No pneumothorax.\n"
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--delay", type=float, default=20.0, metavar="MS")
    asked = parser.parse_args()
    spawned = get_context("spawn")
    address, delay, count = spawned.Queue(), spawned.Value("d", 0.0), spawned.Value("q", 0)
    server = spawned.Process(target=serve, args=(address, delay, count), daemon=True)
    server.start()
    os.environ |= {"AWS_ENDPOINT_URL": address.get(), "AWS_DEFAULT_REGION": "us-east-1",
                   "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}  # fmt: skip
    result: dict[str, Any] = {
        "studies": asked.studies,
        "repeats": REPEATS,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        **{name: version(name) for name in ("s3fs", "moto", "universal-pathlib")},
    }
    with tempfile.TemporaryDirectory() as scratch:
        write_release(Path(scratch, "release"), asked.studies)
        import s3fs

        store = s3fs.S3FileSystem()
        store.mkdir("bench")
        store.put(f"{scratch}/release/", "bench/release/", recursive=True)
        places = (
            ("local folder", scratch, 0.0),
            ("bucket", "s3://bench", 0.0),
            ("bucket", "s3://bench", asked.delay),
        )
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for repeat in range(REPEATS + 1):  # in turn, since others use the machine too
            for place, (name, root, ms) in enumerate(places):
                delay.value = ms / 1000
                for command, arguments in commands(root, asked.studies).items():
                    before, started = count.value, time.perf_counter()
                    run(arguments)
                    seconds = round(time.perf_counter() - started, 3)
                    row = rows.setdefault(
                        (command, place),
                        {"command": command, "place": name, "delay_ms": ms, "seconds": []},
                    )
                    row["requests"] = count.value - before
                    if repeat:  # before, libraries are loaded and connections made
                        row["seconds"].append(seconds)
        for (command, _), row in sorted(rows.items()):
            best = min(row["seconds"])
            row["ratio"] = round(best / min(rows[command, 0]["seconds"]), 1)
            print(f"{command:6} {row['place']:13} {row['delay_ms']:3.0f} ms {best:7.2f} s "
                  f"{row['ratio']:6.1f} x {row['requests']:6,} requests")  # fmt: skip
        result["runs"] = [rows[key] for key in sorted(rows)]
        result["load_average"] = os.getloadavg()[0]
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def commands(root: str, studies: int) -> dict[str, list[str]]:
    last = str(50000000 + studies - 1)
    build = ["build", "--source", "mimic", "--root", f"{root}/release", "--out", f"{root}/out"]
    return {
        "build": [*build, "--workers", "1", "--overwrite"],
        "show": ["show", last, "--dataset", f"{root}/out"],
        "stats": ["stats", f"{root}/out"],
    }


def run(arguments: list[str]) -> None:
    from cot_builder.cli import app

    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


def write_release(release: Path, studies: int) -> None:
    for number in range(studies):
        subject, study = 10000000 + number // 2, 50000000 + number
        report = release / f"mimic-cxr/files/p10/p{subject}/s{study}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(REPORT.format(number))
        image = release / f"mimic-cxr-jpg/files/p10/p{subject}/s{study}/i{number}.jpg"
        image.parent.mkdir(parents=True)
        Image.effect_noise((320, 256), 60).convert("L").save(image)


def serve(address: Any, delay: Any, count: Any) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = DomainDispatcherApplication(create_backend_app)

    def slow(environ: dict[str, Any], start: Any) -> Any:
        with count.get_lock():
            count.value += 1
        time.sleep(delay.value)
        return store(environ, start)

    server = make_server("127.0.0.1", 0, slow, threaded=True)
    address.put(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    main()
