"""A whole build at the size of MIMIC-CXR: 227,835 generated studies, to Parquet, on two workers.

    make bench-build                                  # all of them
    python benchmarks/bench_build.py --studies 5000   # quickly; nothing is written to results/

The tree has MIMIC's layout (report files, study and record lists, splits, metadata; no images) and
lies in --scratch, where later runs find it again. The reports are invented: sentences recombined
from templates with many fillers, so that half of nearly two million are distinct, which gives the
sentence cache less than real reports do (38 % of IU X-Ray's are distinct). Peak memory is the
resident set summed over all processes of the build, sampled; pages that processes share count once
for each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil

HERE = Path(__file__).resolve().parent
FULL = 227_835
TEMPLATES = """
There is a {size} {side} pleural effusion{since}.
There is {degree} {side} {place} atelectasis{since}.
{Degree} cardiomegaly is {course}.
A {mm} mm nodule in the {side} {place} is {course}{since}.
{Pattern} opacity in the {side} {place} {hedge} {disease}.
{Pattern} opacities at the {side} {place}, {degree} in extent, {hedge} {disease} or {disease2}.
{Degree} pulmonary edema {has} {trend}{since}.
The {device} ends {cm} cm {where}.
The {device} has been {moved} and now terminates {cm} cm {where}.
There is a {size} {side} apical pneumothorax measuring {mm} mm{since}.
No {side} {finding} or {finding2} is identified{since}.
No evidence of {finding}, {finding2}, or {finding3}.
There is no {size} {finding}, but {degree} {pattern} opacity persists at the {side} {place}.
{Degree} degenerative changes of the {spine} spine are {course}.
The {side} hemidiaphragm is elevated by {cm} cm{since}.
{Degree} compression deformity of {vertebra} is {course}.
A {size} hiatal hernia is {course}{since}.
Healed fracture of the {side} {ordinal} rib is {course}.
Blunting of the {side} costophrenic angle {hedge} a {size} effusion{since}.
Lung volumes are {volume}, accentuating the {contour}.
The {contour} is {state}{since}.
Calcified granuloma in the {side} {place}, {mm} mm, is {course}.
{Side} {place} consolidation has {trend}, with {degree} air bronchograms.
The patient is status post {surgery} with {degree} {side} {place} scarring.
""".strip().splitlines()
STOCK = """
The lungs are clear.
There is no pleural effusion or pneumothorax.
The cardiomediastinal silhouette is within normal limits.
Heart size is normal.
No acute cardiopulmonary process.
The osseous structures are intact.
No focal consolidation.
The pulmonary vasculature is normal.
The mediastinal and hilar contours are unremarkable.
No free air below the right hemidiaphragm.
""".strip().splitlines()
FILLERS = {
    "size": "tiny|small|small to moderate|moderate|moderate to large|large|trace|loculated",
    "side": "right|left|bilateral",
    "degree": "minimal|mild|mild to moderate|moderate|moderately severe|severe|subtle|extensive",
    "place": "lower lobe|upper lobe|base|apex|mid lung|perihilar region|lung base|upper lung zone",
    "course": "unchanged|stable|slightly increased|decreased|new|more conspicuous|again noted",
    "pattern": "patchy|hazy|linear|streaky|ill-defined|confluent|reticular|nodular|heterogeneous",
    "hedge": "may represent|is concerning for|likely reflects|could be due to|is consistent with",
    "disease": "pneumonia|atelectasis|aspiration|edema|infection|consolidation|scarring|malignancy",
    "has": "has|appears to have|has slightly|has substantially",
    "trend": "improved|worsened|increased|decreased|resolved|progressed|cleared",
    "device": "endotracheal tube|right PICC|left PICC|nasogastric tube|Swan-Ganz catheter|"
    "right internal jugular catheter|left subclavian line|tracheostomy tube|left chest tube",
    "where": "above the carina|below the carina|beyond the cavoatrial junction|into the SVC|"
    "below the diaphragm|from the right atrium",
    "moved": "advanced|withdrawn|repositioned|replaced|exchanged",
    "finding": "pneumothorax|pleural effusion|focal consolidation|pulmonary edema|pneumonia|"
    "lung nodule|acute fracture|pleural thickening|adenopathy|pneumomediastinum",
    "spine": "thoracic|lower thoracic|mid thoracic|upper lumbar|visualized",
    "vertebra": "T4|T5|T6|T7|T8|T9|T10|T11|T12|L1|L2",
    "ordinal": "second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth",
    "volume": "low|very low|lower than before|slightly low|adequate|normal",
    "contour": "cardiac silhouette|mediastinal contour|cardiomediastinal silhouette|hilar contour",
    "state": "normal|enlarged|stable|mildly enlarged|within normal limits|widened|unremarkable",
    "surgery": "median sternotomy|CABG|right upper lobectomy|valve replacement|thoracotomy",
    "since": "| since ___| compared to ___| from the prior study| as compared to the CT of ___|"
    " since the earlier examination| compared to the study obtained at ___",
    "tail": "|, best seen on the lateral view|, accounting for technique|, although rotated|"
    ", measuring {mm} by {mm2} mm|, {cm} cm from the carina|, now {mm} mm and formerly {mm2} mm|"
    ", on image {mm}|, {cm} cm in depth|, without change over {mm} days",
}


def main() -> None:
    options = _options()
    root = options.scratch / f"mimic-{options.studies}"
    tree = _tree(root, options.studies)
    out = options.scratch / f"out-{options.studies}"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("cot-builder")), "build", "--source", "mimic"]
    command += ["--root", str(root), "--out", str(out), "--workers", str(options.workers)]
    result = {**tree, **_watched(command), "workers": options.workers}
    result["reports_per_second"] = round(options.studies / result["wall_seconds"])
    result["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    result["out_mib"] = round(sum(path.stat().st_size for path in out.iterdir()) / 2**20)
    result["counts"] = json.loads((out / "manifest.json").read_text())["counts"]
    print(json.dumps(result, indent=1))
    if options.studies == FULL:
        (HERE / "results" / "build.json").write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=FULL)
    parser.add_argument("--workers", type=int, default=2)
    scratch = Path(tempfile.gettempdir()) / "cot-builder-bench"
    parser.add_argument("--scratch", type=Path, default=scratch)
    return parser.parse_args()


def _tree(root: Path, studies: int) -> dict[str, Any]:
    """Generate the release once; `generated.json`, written last, says that it is whole."""
    done = root / "generated.json"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        done.parent.mkdir(parents=True)
        print(f"generating {studies:,} studies in {root}", flush=True)
        done.write_text(json.dumps(_generate(root, studies)))
    return dict(json.loads(done.read_text()))


def _generate(root: Path, studies: int) -> dict[str, Any]:
    random_ = random.Random(227835)
    (root / "mimic-cxr").mkdir()
    (root / "mimic-cxr-jpg").mkdir()
    study_list = ["subject_id,study_id,path"]
    record_list = ["subject_id,study_id,dicom_id,path"]
    split_list = ["dicom_id,study_id,subject_id,split"]
    metadata = ["dicom_id,subject_id,study_id,ViewPosition,Rows,Columns"]
    sentences: set[int] = set()
    count = size = 0
    subject, folder = 10_000_000, root
    for number in range(studies):
        if number % 4 == 0:  # four studies a patient
            subject += random_.randrange(1, 300)
            patient = f"files/p{str(subject)[:2]}/p{subject}"
            folder = root / "mimic-cxr" / patient
            folder.mkdir(parents=True)
            split = random_.choices(("train", "validate", "test"), (97, 1, 2))[0]
        study = 50_000_000 + number * 37
        findings = list(_sentences(random_, random_.randrange(4, 10)))
        impression = list(_sentences(random_, random_.randrange(1, 4)))
        sentences.update(map(hash, (*findings, *impression)))
        count += len(findings) + len(impression)
        text = _layout(findings, impression)
        size += len(text)
        (folder / f"s{study}.txt").write_text(text)
        study_list.append(f"{subject},{study},{patient}/s{study}.txt")
        for view in ("PA", "LATERAL") if random_.random() < 0.65 else ("AP",):
            dicom = "-".join(f"{random_.getrandbits(32):08x}" for _ in range(5))
            record_list.append(f"{subject},{study},{dicom},{patient}/s{study}/{dicom}.dcm")
            split_list.append(f"{dicom},{study},{subject},{split}")
            metadata.append(f"{dicom},{subject},{study},{view},2544,3056")
    tables = {
        "mimic-cxr/cxr-study-list.csv": study_list,
        "mimic-cxr/cxr-record-list.csv": record_list,
        "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv": split_list,
        "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv": metadata,
    }
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return {
        "studies": studies,
        "sentences": count,
        "distinct_sentences": round(len(sentences) / count, 3),
        "mean_characters": round(size / studies),
    }


def _sentences(random_: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        if random_.random() < 0.25:
            yield random_.choice(STOCK)
        else:
            sentence = random_.choice(TEMPLATES).removesuffix(".") + "{tail}."
            for _ in range(2):  # a tail has slots of its own
                sentence = sentence.format_map(_Filled(random_))
            yield sentence


class _Filled:
    """Fills a template's slots at random, each `{slot}` anew; a capital asks for a capital."""

    options: ClassVar = {name: words.split("|") for name, words in FILLERS.items()}

    def __init__(self, random_: random.Random) -> None:
        self.random = random_

    def __getitem__(self, slot: str) -> str:
        if slot.startswith("mm"):
            return str(self.random.randrange(3, 40))
        if slot == "cm":
            return f"{self.random.randrange(5, 80) / 10}"
        word = self.random.choice(self.options[slot.lower().rstrip("23")])
        return word.capitalize() if slot[0].isupper() else word


def _layout(findings: list[str], impression: list[str]) -> str:
    parts = [
        "EXAMINATION:  CHEST (PA AND LAT)",
        "INDICATION:  ___ year old woman with shortness of breath  // pneumonia, effusion?",
        "COMPARISON:  Chest radiograph from ___.",
        "FINDINGS:  " + " ".join(findings),
        "IMPRESSION:  " + " ".join(impression),
    ]
    body = "\n\n".join(textwrap.fill(part, 78) for part in parts)
    return f"{'FINAL REPORT':>44}\n{body}".replace("\n", "\n ") + "\n"


def _watched(command: list[str]) -> dict[str, Any]:
    """Run a build; return its wall and CPU seconds and the highest sum of its processes' memory."""
    started = time.perf_counter()
    process = psutil.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"the build failed with status {process.returncode}")
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(peak / 2**20),
    }


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:  # one that has just ended
        pass
    return total


if __name__ == "__main__":
    main()
