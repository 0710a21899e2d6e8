"""A real browser: Debian's Chromium, driven by Playwright. Where either is missing these tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.report import write_comparison, write_report
from tests.report import made

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra dev")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

RUNS = {
    "spike": made.spike_run,
    "healthy": made.healthy_run,
    "nan": made.nan_run,
    "log only": made.log_only_run,
}


@dataclass
class Opened:
    """A page in the browser, and what it did that it should not."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or make browser")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open a file as a reader would; keywords are those of a browser context (viewport, color_scheme, ...)."""
    contexts = []

    def open_file(path: Path, **settings: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **settings})
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on(
            "console",
            lambda said: found.complaints.append(said.text) if said.type in {"error", "warning"} else None,
        )
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(path.as_uri())
        return found

    yield open_file
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of every kind of run, and a comparison of two."""
    found = {}
    for name, make in RUNS.items():
        run = make()
        out = tmp_path_factory.mktemp("pages")
        found[name] = write_report(run.findings, run.log, run.profile, out, command="hnf report run")
    one, other = made.spike_run(), made.healthy_run()
    found["diff"] = write_comparison(
        made.comparison(), one.log, other.log, one.profile, other.profile, tmp_path_factory.mktemp("pages")
    )
    return found
