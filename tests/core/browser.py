"""A page of ours in headless Chromium, as its tests need it."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PHONE, DESKTOP = (360, 740, True), (1280, 900, False)
PATIENCE = 120  # seconds, on a busy machine

PROBABILITY = """
const done = arguments[0];
ask("file", { kind: "probability", threshold: 0.5, least: 0, pixel: null }).then((file) => file.arrayBuffer()).then(
  (buffer) => done(btoa(new Uint8Array(buffer).reduce((text, byte) => text + String.fromCharCode(byte), ""))))
"""


@contextmanager
def chromium(downloads: Path) -> Iterator[Any]:
    """The browser; a test is skipped where there is none, but not in CI."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        assert not os.environ.get("CI"), "CI has to have Chromium and its driver"
        pytest.skip("Chromium and its driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        started.set_script_timeout(PATIENCE)
        started.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield started
    finally:
        started.quit()


class Page:
    """What somebody does with the page."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def visit(self, path: Path, size: tuple[int, int, bool] = DESKTOP, scheme: str = "light") -> None:
        width, height, mobile = size
        metrics = {"width": width, "height": height, "mobile": mobile, "deviceScaleFactor": 1 + mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(path.as_uri())

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, name: str) -> str:
        return str(self.run("return at(arguments[0]).textContent", name))

    def open(self, path: Path) -> str:
        """Choose a file; what the page says of it, or what is wrong."""
        self.run("at('summary').textContent = ''; at('wrong').textContent = ''")
        self.find("file").send_keys(str(path))
        return self.said()

    def said(self) -> str:
        """What the page says once it has computed."""
        return str(self.until("return at('wrong').textContent || (state.ready && at('summary').textContent)"))

    def set_pixel_size(self, size: float | None) -> None:
        self.run("state.ready = false; at('pixel').value = arguments[0]", size or "")
        self.run("at('pixel').dispatchEvent(new Event('change'))")
        self.said()

    def until(self, condition: str) -> Any:
        end = time.monotonic() + PATIENCE
        while not (value := self.run(condition)):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.05)
        return value

    def probability(self) -> np.ndarray:
        content = base64.b64decode(self.driver.execute_async_script(PROBABILITY))
        height, width = self.run("return [state.height, state.width]")
        return np.frombuffer(content[-4 * height * width :], "<f4").reshape(height, width)

    def save(self, kind: str) -> Path:
        """Press a button of *Save*, and wait for the file."""
        for old in self.downloads.iterdir():
            old.unlink()
        self.driver.find_element("css selector", f"[data-kind='{kind}']").click()
        end = time.monotonic() + PATIENCE
        while True:
            new = [each for each in self.downloads.iterdir() if each.suffix != ".crdownload"]
            if new and new[0].stat().st_size:
                return new[0]
            assert time.monotonic() < end, f"{kind} was never saved"
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """What the browser's console has of errors and warnings since it was asked last."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]
