"""Our decomposer beside medspaCy (target matcher + ConText): the same reports, one process each.

    make bench-decompose                                    # makes medspaCy's environment first
    python benchmarks/bench_decompose.py --limit 300        # ours alone, quickly

Counts CPU seconds of the loop over reports, after loading, in a fresh process for each repeat; the
engines take turns, so that a busy machine slows all of them alike. medspaCy gets its default
pipeline (tokenizer, PyRuSH, target matcher, ConText with its own rules) and the finding phrases of
our banks as target rules; most of its time goes into PyRuSH's sentences, so a second row has
spaCy's sentencizer in its place. The work is not the same: ours also finds spans, regions, implied
diseases and unmapped findings, medspaCy marks targets and their modifiers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IU_REPORTS = HERE.parents[1] / "shared" / "data" / "iu_xray" / "ecgen-radiology"
OURS = ("cot-builder, no cache", "cot-builder, cache")
PEERS = ("medspaCy", "medspaCy, spaCy's sentencizer")


def main() -> None:
    options = _options()
    if options.engine:
        print(json.dumps(_measure(options.engine, options.inputs)))
        return
    reports, corpus = _reports(options.reports)
    reports = reports[: options.limit]
    engines = (*OURS, *PEERS) if options.peer_python else OURS
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.json"
        inputs.write_text(json.dumps({"reports": reports, "phrases": _target_phrases()}))
        runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for repeat in range(options.repeats):
            for engine in engines:
                python = options.peer_python if engine in PEERS else sys.executable
                runs[engine].append(_run(python, engine, inputs))
                print(f"{repeat + 1}/{options.repeats} {engine}: {runs[engine][-1]}", flush=True)
    result = _result(runs, corpus, len(reports))
    table = _table(result)
    print(table)
    if options.peer_python and not options.limit:
        folder = HERE / "results"
        (folder / "decompose.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "decompose.md").write_text(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reports", type=Path, default=IU_REPORTS, help="Open-i XML reports")
    parser.add_argument("--peer-python", help="python of an environment with medspaCy")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, help="only so many reports; nothing is written")
    parser.add_argument("--engine", choices=(*OURS, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _reports(folder: Path) -> tuple[list[dict[str, str]], str]:
    """Read findings and impression of every report; without Open-i, the demo corpus, repeated."""
    if folder.is_dir():
        found = [_open_i_sections(path) for path in sorted(folder.glob("*.xml"))]
        return [report for report in found if report], "Open-i (IU X-Ray), findings + impression"
    demo = HERE.parent / "cot_builder" / "sources" / "demo_corpus" / "studies.jsonl"
    texts = [json.loads(line)["report"] for line in demo.read_text().splitlines()]
    bodies = [{"findings": text.partition("FINDINGS:")[2] or text} for text in texts]
    return bodies * 200, "the demo corpus, 200 times over (Open-i's reports are not here)"


def _open_i_sections(path: Path) -> dict[str, str]:
    abstract = ET.parse(path).iter("AbstractText")
    texts = {(node.get("Label") or "").lower(): (node.text or "").strip() for node in abstract}
    return {name: texts[name] for name in ("findings", "impression") if texts.get(name)}


def _target_phrases() -> list[str]:
    from knowledge_banks import expand, load_banks

    banks = load_banks()
    entries = [
        *(group for disease in banks.diseases["disease"] for group in disease.get("group", ())),
        *banks.devices["device"],
        *banks.signs["sign"],
        *banks.unmapped["finding"],
    ]
    return sorted({text for e in entries for phrase in e["phrases"] for text in expand(phrase)})


def _run(python: str, engine: str, inputs: Path) -> dict[str, Any]:
    command = [python, __file__, "--engine", engine, "--inputs", str(inputs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(engine: str, path: Path) -> dict[str, Any]:
    inputs = json.loads(path.read_text())
    load = _medspacy if engine in PEERS else _ours
    decompose = load(engine, inputs["phrases"])
    cpu, wall = time.process_time(), time.perf_counter()
    mentions = sum(decompose(report) for report in inputs["reports"])
    return {
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "mentions": mentions,
        "version": version("medspacy") if engine in PEERS else _our_version(),
    }


def _our_version() -> str:
    from cot_builder import __version__  # from the tree, whatever is installed

    return __version__


def _ours(engine: str, _: list[str]) -> Any:
    from cot_builder.decompose import Decomposer
    from cot_builder.records import Section
    from knowledge_banks import load_banks

    decomposer = Decomposer(load_banks(), cache=engine == "cot-builder, cache")

    def decompose(report: dict[str, str]) -> int:
        found = decomposer.decompose([Section(name, text) for name, text in report.items()])
        return len(found.chains) + len(found.unmapped)

    return decompose


def _medspacy(engine: str, phrases: list[str]) -> Any:
    import medspacy
    from loguru import logger
    from medspacy.ner import TargetRule

    logger.remove()  # PyRuSH logs every sentence at debug level, which would be timed too
    if engine == "medspaCy":
        nlp = medspacy.load()
    else:
        nlp = medspacy.load(medspacy_enable={"medspacy_target_matcher", "medspacy_context"})
        nlp.add_pipe("sentencizer", first=True)
    nlp.get_pipe("medspacy_target_matcher").add([TargetRule(text, "FINDING") for text in phrases])

    def decompose(report: dict[str, str]) -> int:
        return sum(len(nlp(text).ents) for text in report.values())

    return decompose


def _result(runs: dict[str, list[dict[str, Any]]], corpus: str, reports: int) -> dict[str, Any]:
    medians = {
        engine: statistics.median(run["cpu_seconds"] for run in of_engine)
        for engine, of_engine in runs.items()
    }
    peer = medians.get("medspaCy")
    return {
        "corpus": corpus,
        "reports": reports,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "engines": {
            engine: {
                "version": runs[engine][0]["version"],
                "mentions": runs[engine][0]["mentions"],
                "cpu_seconds": [run["cpu_seconds"] for run in runs[engine]],
                "median_cpu_seconds": median,
                "reports_per_cpu_second": round(reports / median, 1),
                "times_medspacy": round(peer / median, 1) if peer else None,
            }
            for engine, median in medians.items()
        },
    }


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['reports']:,} reports: {result['corpus']}; {result['machine']}; "
        "median CPU seconds, one process each.",
        "",
        "| engine | version | CPU seconds (min–max) | reports per CPU second | × medspaCy |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, engine in result["engines"].items():
        spread = f"{min(engine['cpu_seconds']):.2f}–{max(engine['cpu_seconds']):.2f}"
        lines.append(
            f"| {name} | {engine['version']} | {engine['median_cpu_seconds']:.2f} ({spread}) "
            f"| {engine['reports_per_cpu_second']:,.0f} | {engine['times_medspacy'] or '–'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
