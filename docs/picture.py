"""Photograph the first screen of a report: `python -m docs.picture [PAGE [PICTURE]]`, after `make report`.

Needs Chromium and playwright (extra `dev`), as the tests of the pages do.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "reports" / "spiky" / "index.html"
PICTURE = ROOT / "reports" / "readme.png"
WIDTH, HEIGHT = 1200, 850


def photograph(page: Path, picture: Path) -> None:
    """Open a page as a reader would and save its first screen.

    Args:
        page: an index.html that `hnf report` wrote.
        picture: the PNG.

    Raises:
        SystemExit: if there is no such page, or no browser.
    """
    from playwright.sync_api import sync_playwright

    if not page.is_file():
        raise SystemExit(f"{page}: no such page; run: make report")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium here; run: make browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light"
        ).new_page()
        shown.goto(page.resolve().as_uri())
        shown.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    named = [Path(one) for one in sys.argv[1:]]
    photograph(*named, *(PAGE, PICTURE)[len(named) :])
