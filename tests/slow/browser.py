"""A real Chromium for tests: Playwright's own, or one on the PATH; the test skips where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextmanager
def chromium() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome", "chrome")
        browser = own if Path(own).exists() else next(filter(None, map(shutil.which, names)), None)
        if browser is None:
            pytest.skip("no Chromium found: `playwright install chromium`, or put one on the PATH")
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        opened = driver.chromium.launch(executable_path=browser, args=flags)
        yield opened
        opened.close()
