"""Prompts for language models: a text and the JSON schema of its answer, side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from cot_builder.errors import UserError
from knowledge_banks.loader import read_bank

PROMPTS: Final = Path(__file__).parent / "prompts"
_VERSION: Final = re.compile(r"# version (\d+(?:\.\d+)*)\n+")


class Prompt(NamedTuple):
    """What a model is told, and the JSON schema of what it answers; `id` is name@version.

    `repair` is what it is told when its answer is not that: `{problem}` stands for why.
    """

    id: str
    text: str
    schema: dict[str, Any]
    repair: str


def load_prompt(name: str, folder: Path | None = None) -> Prompt:
    """Read `NAME.txt` and `NAME.schema.json` of the shipped prompts.

    A user's bank folder may hold files of these names in `prompts/`, which then stand instead. A
    text begins with a line `# version 1.0.0`. Raises UserError where a file is missing or broken.
    """
    version, text = _text(_path(f"{name}.txt", folder))
    file = _path(f"{name}.schema.json", folder)
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"prompt schema {file} is not valid JSON: {error}") from None
    return Prompt(f"{name}@{version}", text, schema, _text(_path("repair.txt", folder))[1])


def load_withheld(folder: Path | None = None) -> dict[str, re.Pattern[str]]:
    """Read `withheld.toml`: by name, what no text may hold that is sent to a model."""
    file = _path("withheld.toml", folder)
    try:
        return {
            pattern["name"]: re.compile("|".join(pattern["any"]), re.IGNORECASE)
            for pattern in read_bank(file)["pattern"]
        }
    except (KeyError, TypeError, re.error) as error:
        raise UserError(
            f"{file}: expected [[pattern]] tables of a name and a list `any` of regular "
            f"expressions ({error})"
        ) from None


def _path(name: str, folder: Path | None) -> Path:
    own = folder / "prompts" / name if folder else PROMPTS / name
    path = own if own.exists() else PROMPTS / name
    if not path.exists():
        known = ", ".join(sorted(path.name for path in PROMPTS.iterdir()))
        raise UserError(f"prompt file {path} is missing; there are {known}")
    return path


def _text(file: Path) -> tuple[str, str]:
    text = file.read_text(encoding="utf-8")
    head = _VERSION.match(text)
    if head is None:
        raise UserError(f'prompt file {file}: expected "# version 1.0.0" as its first line')
    return head[1], text[head.end() :].strip()
