"""Read and lint the banks; every error names file, table and key."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from cot_builder.errors import UserError

FOLDER = Path(__file__).parent


class Banks(NamedTuple):
    """All banks of one folder, parsed.  (TEMPORARY: fields will be added; these are final.)"""

    version: str
    sha256: str
    folder: Path
    headings: dict[str, Any]


def read_bank(path: Path) -> dict[str, Any]:
    """Parse one TOML bank; a missing or malformed file is a UserError that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"bank file {path} is missing; a bank folder needs it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"bank file {path} is not valid TOML: {error}") from None


def load_banks(folder: Path | None = None) -> Banks:
    """Load the banks of a folder, or the shipped ones."""
    folder = folder or FOLDER
    files = sorted(folder.glob("*.toml"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    headings = read_bank(folder / "headings.toml") if (folder / "headings.toml").exists() else {}
    return Banks(version="1.0.0", sha256=digest, folder=folder, headings=headings)
