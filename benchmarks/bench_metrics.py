"""Text and clinical metrics of a whole test split, beside pycocoevalcap on the same pairs.

    make bench-metrics
    python benchmarks/bench_metrics.py --pairs 300    # quickly; nothing is written to results/

3,858 pairs, the size of MIMIC-CXR's test split as R2Gen has it, of invented reports: sentences as
in bench_build, half of them distinct, a prediction keeping half of its reference's. METEOR is left
out: it is the same jar on both sides. Counts CPU seconds, the engines in turns, and holds ours
against pycocoevalcap's values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_build import _sentences
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from cot_builder.decompose import Decomposer
from eval.chexpert import both_sides, measure_chexpert, spread
from eval.records import Pair
from eval.text import TOKENS, bleu, bleu_counts, rouge_l
from knowledge_banks import load_banks

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    options = _options()
    pairs = _pairs(options.pairs)
    engines: dict[str, Callable[[list[Pair]], dict[str, float]]] = {
        "cot-builder, BLEU and ROUGE-L": _ours,
        "pycocoevalcap, BLEU and ROUGE-L": _theirs,
        "cot-builder, CheXpert by all conventions": _clinical,
    }
    runs: dict[str, list[float]] = {name: [] for name in engines}
    values: dict[str, dict[str, float]] = {}
    for _ in range(options.repeats):
        for name, engine in engines.items():
            began = time.process_time()
            values[name] = engine(pairs)
            runs[name].append(round(time.process_time() - began, 3))
            print(f"{name}: {runs[name][-1]} CPU s", flush=True)
    ours, theirs = list(values.values())[:2]
    result = {
        "pairs": len(pairs),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "pycocoevalcap": version("pycocoevalcap"),
        "cpu_seconds": runs,
        "median_cpu_seconds": {name: statistics.median(times) for name, times in runs.items()},
        "largest_difference": max(abs(ours[key] - theirs[key]) for key in theirs),
        "values": values,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "cpu_seconds"}, indent=1))
    if options.pairs == 3858:
        (RESULTS / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3858)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _pairs(count: int) -> list[Pair]:
    draw = random.Random(20261124)
    pairs = []
    for number in range(count):
        reference = list(_sentences(draw, draw.randint(4, 12)))
        others = list(_sentences(draw, len(reference)))
        said = [r if draw.random() < 0.5 else o for r, o in zip(reference, others, strict=True)]
        pairs.append(Pair(str(number), " ".join(reference), " ".join(said)))
    return pairs


def _cleaned(pairs: list[Pair]) -> tuple[list[str], list[str]]:
    clean = TOKENS["r2gen"]
    return clean([p.reference for p in pairs]), clean([p.prediction for p in pairs])


def _ours(pairs: list[Pair]) -> dict[str, float]:
    sides = list(zip(*_cleaned(pairs), strict=True))
    counts = [bleu_counts(r.split(), p.split()) for r, p in sides]
    rouge = [rouge_l(r.split(" "), p.split(" ")) for r, p in sides]
    sums: Any = [sum(column) for column in zip(*counts, strict=True)]
    return _named(bleu(sums), statistics.fmean(rouge))


def _theirs(pairs: list[Pair]) -> dict[str, float]:
    references, predictions = _cleaned(pairs)
    gold = {i: [text] for i, text in enumerate(references)}
    found = {i: [text] for i, text in enumerate(predictions)}
    return _named(
        Bleu(4).compute_score(gold, found, verbose=0)[0], Rouge().compute_score(gold, found)[0]
    )


def _clinical(pairs: list[Pair]) -> dict[str, float]:
    sides = both_sides(pairs, Decomposer(load_banks()))
    measure_chexpert(sides)
    rows = spread(sides.reference, sides.prediction)
    return {name: found.f1 for name, found in rows.items() if found.f1 == found.f1}


def _named(blues: Any, rouge: float) -> dict[str, float]:
    return {f"BLEU-{n}": float(v) for n, v in enumerate(blues, 1)} | {"ROUGE-L": float(rouge)}


if __name__ == "__main__":
    main()
