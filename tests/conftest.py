"""Shared by all tests: where the reference data lies, and a Hub for the real clients."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub_double import HubDouble

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library starts its threads

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; not for copying into it (licences)."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data are not on this machine: {SHARED}")
    return SHARED


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """The double, with both clients pointed at it (they read HF_ENDPOINT once, at import)."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import HfFileSystem, constants
    from huggingface_hub.utils import _cache_assets, _http

    with HubDouble() as double:
        monkeypatch.setenv("HF_TOKEN", double.add_user("ann"))
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        template = double.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", double.url)
        urls = double.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
        monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", urls)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        # The clients wait between their tries, longer and longer.
        monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _: 0}))
        HfFileSystem.clear_instance_cache()
        yield double
        HfFileSystem.clear_instance_cache()
