"""Human MeSH codes of Indiana University's reports, read in place, against our report labels."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cot_builder.decompose import Decomposer
from cot_builder.labels import report_labels
from cot_builder.records import Section
from cot_builder.vocabulary import LABELS
from eval.chains import Counts
from knowledge_banks import load_banks

IU = Path("/work/shared/data/iu_xray")
CODED = [label for label in LABELS if label not in ("No Finding", "Enlarged Cardiomediastinum")]


def sections(path: Path) -> list[Section]:
    texts = {node.get("Label"): node.text or "" for node in ET.parse(path).iter("AbstractText")}
    names = ("FINDINGS", "IMPRESSION")
    return [Section(name.lower(), " ".join(texts.get(name, "").split())) for name in names]


@pytest.mark.skipif(not IU.exists(), reason="the Indiana University reports are not here")
def test_human_mesh_codes() -> None:
    decomposer = Decomposer(load_banks())
    total, normal, found_normal = Counts(), 0, 0
    for line in (IU / "mesh_labels.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not row["usable"]:
            continue
        path = IU / "ecgen-radiology" / f"{row['uid'].removeprefix('CXR')}.xml"
        labels = report_labels(decomposer.decompose(sections(path)).chains)
        if row["positive"] == ["No Finding"]:
            normal += 1
            found_normal += labels["No Finding"] == 1
        for label in set(CODED) - set(row["maybe"]):
            coded, ours = label in row["positive"], labels[label]
            # An uncertain mention counts where the coder counted it, and is ignored elsewhere.
            if ours == -1 and not coded:
                continue
            said = ours in (1, -1)
            hit, extra, missed = total
            total = Counts(
                hit + (coded and said), extra + (said and not coded), missed + (coded and not said)
            )
    assert total.f1 >= 0.95
    assert found_normal / normal >= 0.98
