"""A real browser on the MLflow UI."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import Workspace
from tests.tracking_server import TrackingServer

_DRIVER = "/usr/bin/chromedriver"
_ARGUMENTS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
_PATIENCE = 120  # seconds; a page takes two on an idle machine


def require_chromium() -> None:
    """Skip where there is no browser, but not in continuous integration."""
    if shutil.which("chromium") and Path(_DRIVER).exists():
        return
    if os.environ.get("CI") == "true":
        pytest.fail("CI=true and no browser: install Debian's chromium and chromium-driver")
    pytest.skip("no chromium and chromedriver: apt install chromium chromium-driver")


class Browser:
    """Headless Chromium on one MLflow server."""

    def __init__(self, address: str, *, width: int = 1400, height: int = 1000) -> None:
        self.address = address
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = webdriver.ChromeOptions()
        for argument in _ARGUMENTS:
            options.add_argument(f"--{argument}")
        options.add_argument(f"--user-data-dir={self._profile.name}")
        options.add_argument(f"--window-size={width},{height}")
        self.driver = webdriver.Chrome(options=options, service=Service(_DRIVER))

    def close(self) -> None:
        self.driver.quit()
        self._profile.cleanup()

    def open(self, page: str, *texts: str) -> str:
        """Open a page of the UI, wait until it shows all texts, and return what it shows."""
        self.driver.get("about:blank")  # else a change of the fragment loads nothing
        self.driver.get(f"{self.address}#/{page}")
        return self.wait_for(*texts)

    def wait_for(self, *texts: str) -> str:
        try:
            WebDriverWait(self.driver, _PATIENCE, 0.3).until(
                lambda _: all(text in self.text() for text in texts)
            )
        except TimeoutException:
            shown = self.text()
            missing = [text for text in texts if text not in shown]
            raise AssertionError(f"the page does not show {missing}:\n{shown}") from None
        return self.text()

    def wait_without(self, text: str) -> None:
        """Wait until a text is no longer shown."""
        WebDriverWait(self.driver, _PATIENCE, 0.3).until(lambda _: text not in self.text())

    def click(self, label: str) -> None:
        """Click on what carries a label."""
        self.driver.find_element(By.XPATH, f"//*[text()='{label}']").click()

    def text(self) -> str:
        try:
            return self.driver.find_element(By.TAG_NAME, "body").text
        except StaleElementReferenceException:
            return ""

    def wait_for_picture(self) -> tuple[int, int]:
        """The size in pixels of the greatest picture that the page shows, once it is there."""
        script = (
            "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight])"
            ".sort((a, b) => b[0] - a[0])[0]"
        )
        wait = WebDriverWait(self.driver, _PATIENCE, 0.3)
        return tuple(wait.until(lambda d: (s := d.execute_script(script)) and s[0] >= 300 and s))


@contextlib.contextmanager
def browser_on(workspace: Workspace) -> Iterator[Browser]:
    """A browser on a server of the workspace's store; both end with the block."""
    require_chromium()
    server = TrackingServer(workspace)
    server.up()
    try:
        browser = Browser(f"{server.uri}/")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        server.down()
