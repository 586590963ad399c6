"""The model card of a checkpoint: what it is, how it was made, and what it is not for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from training.watching import read_metrics

_DOES: Final = {
    "mcl": "reasons from finding to disease to anatomy (BoxMed-RL's medical concept learning)",
    "svr": "reasons and boxes what a phrase names (BoxMed-RL's spatially verifiable reinforcement)",
    "adapter": "writes the findings section of a report (BoxMed-RL's downstream adapter)",
}
_LAST: Final = ("loss", "mean_token_accuracy", "reward", "kl", "entropy")


def write_card(folder: Path, manifest: dict[str, Any], run: Path) -> None:
    """Write a checkpoint's README.md, with the front matter that the Hub reads."""
    stage = manifest["stage"]
    frame = manifest["frame"]
    logged = [row for row in read_metrics(run) if row["stage"] == stage]
    last = {key: r[key] for r in logged for key in _LAST if r.get(key) is not None}
    numbers = "\n".join(f"| {key} | {value:.4g} |" for key, value in last.items())
    datasets = "\n".join(
        f"- {row['name']} (manifest {row['manifest_sha256'][:12]})" for row in manifest["datasets"]
    )
    settings = json.dumps(manifest["recipe"][stage], indent=2)
    versions = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    library = "peft" if manifest["adapter"] else "transformers"
    text = f"""---
library_name: {library}
pipeline_tag: image-text-to-text
tags: [chest-x-ray, radiology, cot-builder, {stage}]
---

# {stage} on {manifest["base"]}

A model that {_DOES[stage]}, trained by cot-builder for {manifest["steps"]:,} steps on
{manifest["examples"]:,} examples. It is for research: no medical device, and no advice.

Boxes are in the frame `{frame["name"]}`; images are reduced by {frame["scale"]:g} and seen with
{frame["min_pixels"]:,} to {frame["max_pixels"]:,} pixels. Another frame or pixel budget misplaces
them.

## Data

{datasets}

Seed {manifest["seed"]}; banks {manifest["banks"]["version"]}. A model may repeat what it was
trained on: weights from credentialed reports (MIMIC-CXR) stay under their data use agreement.

## Last logged

| number | value |
| --- | --- |
{numbers or "| nothing logged | |"}

## Settings

```json
{settings}
```

{versions}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
