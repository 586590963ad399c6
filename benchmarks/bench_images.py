"""Quarter-size copies of 2,544 x 3,056 JPEGs: ours beside a plain Pillow open-and-resize.

    make bench-images
    python benchmarks/bench_images.py --images 4 --repeats 1     # quickly

The JPEGs are the demo corpus's radiographs (NIH ChestX-ray14), enlarged to the size of MIMIC-CXR's
commonest, with noise until they are as large in bytes as MIMIC-CXR-JPG's (557.6 GB / 377,110 is
1.5 MB): how long a JPEG takes to decode depends on its bytes. All ways read and write the same
files in one process and take turns, so that a busy machine slows them alike; CPU and wall seconds
are counted. The last row has two processes, as a build with `--workers 2`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageChops, ImageStat, features

from cot_builder.images import QUALITY, reduced, write_reduced
from cot_builder.sources.demo import CORPUS

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT, SCALE = 2544, 3056, 0.25
QUARTER: Final = (WIDTH // 4, HEIGHT // 4)
BYTES = 1_500_000
PLAIN = "Pillow, open and resize (bicubic, its default)"
OURS = "cot-builder"
TWO = "cot-builder, two processes"

Resize = Callable[[Path], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=BYTES, help="of an original")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        originals = make_originals(Path(folder) / "in", options.images, options.bytes)
        result = measure(originals, Path(folder), options.repeats)
    table = as_table(result)
    print(table)
    if (options.repeats, options.bytes) == (5, BYTES):
        (HERE / "results" / "images.json").write_text(json.dumps(result, indent=1) + "\n")
        (HERE / "results" / "images.md").write_text(table)


def make_originals(folder: Path, count: int, size: int) -> list[Path]:
    folder.mkdir()
    pictures = sorted((CORPUS / "images").glob("*.png"))
    paths = []
    for number in range(count):
        with Image.open(pictures[number % len(pictures)]) as picture:
            large = picture.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        path = folder / f"{number:03}.jpg"
        low, high = 0.0, 16.0
        for _ in range(7):
            sigma = (low + high) / 2
            noise = Image.effect_noise(large.size, sigma)
            ImageChops.add(large, noise, offset=-128).save(path, quality=QUALITY)
            low, high = (low, sigma) if path.stat().st_size > size else (sigma, high)
        paths.append(path)
    return paths


def plainly(filter_: Image.Resampling) -> Resize:
    def resize(path: Path) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("L").resize(QUARTER, filter_)

    return resize


WAYS: Final[dict[str, Resize]] = {
    PLAIN: plainly(Image.Resampling.BICUBIC),
    "Pillow, open and resize (Lanczos)": plainly(Image.Resampling.LANCZOS),
    "Pillow, open and resize (box)": plainly(Image.Resampling.BOX),
    OURS: lambda path: reduced(path, scale=SCALE),
}


def measure(originals: list[Path], folder: Path, repeats: int) -> dict[str, Any]:
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    wall: dict[str, list[float]] = {way: [] for way in (*WAYS, TWO)}
    for repeat in range(repeats):
        for way, resize in WAYS.items():
            out = folder / f"{repeat}-{len(way)}"
            started = time.process_time(), time.perf_counter()
            run(way, resize, originals, out)
            cpu[way].append(time.process_time() - started[0])
            wall[way].append(time.perf_counter() - started[1])
        wall[TWO].append(wall_of_two(originals, folder / f"{repeat}-two"))
        print({way: round(times[-1], 2) for way, times in wall.items()}, flush=True)
    return {
        "images": len(originals),
        "size": [WIDTH, HEIGHT],
        "mean_bytes": statistics.mean(path.stat().st_size for path in originals),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "mean_pixel_difference": {
            way: statistics.mean(difference(WAYS[way](p), WAYS[OURS](p)) for p in originals)
            for way in WAYS
            if way != OURS
        },
        "difference_by_encoding": statistics.mean(encoding(path, folder) for path in originals),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "pillow": f"{Image.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}",
    }


def run(way: str, resize: Resize, originals: list[Path], out: Path) -> None:
    """Read, reduce and write all; ours as the build does it, whole files only."""
    out.mkdir()
    for path in originals:
        if way == OURS:
            write_reduced(path, out / path.name, scratch=out.parent, scale=SCALE)
        else:
            resize(path).save(out / path.name, "JPEG", quality=QUALITY)


def _write(path: Path, out: Path) -> None:
    write_reduced(path, out / path.name, scratch=out.parent, scale=SCALE)


def wall_of_two(originals: list[Path], out: Path) -> float:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_write, originals[:2], [out.with_name("warm")] * 2))
        started = time.perf_counter()
        list(pool.map(_write, originals, [out] * len(originals)))
        return time.perf_counter() - started


def difference(a: Image.Image, b: Image.Image) -> float:
    return ImageStat.Stat(ImageChops.difference(a, b)).mean[0]


def encoding(path: Path, folder: Path) -> float:
    written = folder / "encoded.jpg"
    image = reduced(path, scale=SCALE)
    image.save(written, "JPEG", quality=QUALITY)
    with Image.open(written) as back:
        return difference(image, back)


def as_table(result: dict[str, Any]) -> str:
    cpu, wall, count = result["cpu_seconds"], result["wall_seconds"], result["images"]
    plain_cpu, plain_wall = statistics.median(cpu[PLAIN]), statistics.median(wall[PLAIN])
    lines = [
        f"{count} JPEGs of {WIDTH:,} x {HEIGHT:,}, {result['mean_bytes'] / 1e6:.2f} MB each, to a "
        f"quarter of both sides, written as JPEG of quality {QUALITY}; {result['machine']}, Pillow "
        f"{result['pillow']}; medians of {len(wall[OURS])} runs, ms an image.",
        "",
        "| way | CPU | wall (min–max) | times faster, CPU | wall | mean pixel difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, walls in wall.items():
        each = [1000 * seconds / count for seconds in walls]
        cells = [
            way,
            f"{1000 * statistics.median(cpu[way]) / count:.1f}" if way in cpu else "",
            f"{statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f})",
            f"{plain_cpu / statistics.median(cpu[way]):.2f}" if way in cpu else "",
            f"{plain_wall / statistics.median(walls):.2f}",
            f"{differs:.2f}" if (differs := result["mean_pixel_difference"].get(way)) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Pixel differences are from cot-builder's, between 8-bit greys (0–255), before the "
        f"writing, which changes a pixel by {result['difference_by_encoding']:.2f} on average.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
