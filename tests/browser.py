"""`cot-builder browse` and a headless Chromium, for the tests of pages.

`COT_BUILDER_SHOTS=FOLDER` keeps what the browser saw.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1280, 390)  # of a desk and of a telephone


@contextmanager
def started(*arguments: str | Path) -> Iterator[str]:
    """Serve `cot-builder browse ARGUMENTS`, and give its address."""
    command = [sys.executable, "-c", "from cot_builder.cli import main; main()", "browse"]
    with subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            told = next(line for line in process.stdout if "http" in line)
            address = re.search(r"http://127\.0\.0\.1:\d+/\?key=\S+", told)
            assert address, told
            yield address[0]
        finally:
            process.terminate()


@contextmanager
def chromium(address: str) -> Iterator[Any]:
    """Open an address; skips the test where there is no browser."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed (apt install chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "force-device-scale-factor=1",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        chrome.get(address)
        yield chrome
    finally:
        chrome.quit()


def go(browser: Any, path: str) -> None:
    browser.get(re.sub(r"(:\d+)/.*", rf"\1{path}", browser.current_url))


def look(browser: Any, path: str, width: int, *, name: str) -> None:
    """Open a page; it must fit the window, be accessible, and have nothing wrong to log."""
    from axe_core_python.selenium import Axe

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    go(browser, path)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    found = [
        (rule["id"], node["html"])
        for rule in Axe().run(browser)["violations"]
        for node in rule["nodes"]
    ]
    assert found == []
    # What was wrong on the page, but for the images that are not there.
    said = [e for e in browser.get_log("browser") if "/image/0" not in e["message"]]
    assert said == []
    if folder := os.environ.get("COT_BUILDER_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (Path(folder) / f"{name}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
