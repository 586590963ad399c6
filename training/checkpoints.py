"""What a stage leaves for the next: a folder whose `manifest.json`, written last, says it is whole.

| key | says |
| --- | --- |
| `stage` | `base`, `mcl`, `svr`, `adapter` or `merged` |
| `base` | what was trained: a folder, told from this one, or a model's name on the Hub |
| `frame` | the frame in which it reads and writes boxes, with the pixel budget |
| `templates` | the version of the templates bank, and how often each template was used |
| `recipe`, `datasets`, `seed`, `steps`, `versions` | how it was made |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cot_builder.errors import UserError

MANIFEST: Final = "manifest.json"
_KEYS: Final = frozenset({"stage", "base", "frame"})


def write_checkpoint(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Declare a folder a whole checkpoint."""
    write_json(folder / MANIFEST, manifest)


def write_json(path: Path, row: Mapping[str, Any]) -> None:
    """Write a JSON object, the whole file or none of it."""
    replace_text(path, json.dumps(row, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file, which is as it was until all of it is written."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return a checkpoint's manifest, or None when the folder has none; UserError for another's."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = _KEYS - manifest.keys()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no manifest of a checkpoint: {error}") from None
    if missing:
        raise UserError(
            f"{path} is no manifest of a checkpoint: it has no {', '.join(sorted(missing))}"
        )
    return manifest


def base_of(folder: Path) -> str:
    """Return what an adapter was trained on; a run folder may have been moved since."""
    manifest = read_checkpoint(folder)
    if manifest:
        base = manifest["base"]
        return str((folder / base).resolve()) if (folder / base).is_dir() else str(base)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"])
