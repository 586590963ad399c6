"""Shared by all tests: where the reference data lies, and the line that skips what needs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library starts its threads

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; not for copying into it (licences)."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data are not on this machine: {SHARED}")
    return SHARED
