"""The README's picture is made by a script, of the first screen of a page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from docs.picture import HEIGHT, PICTURE, ROOT, WIDTH
from hnf_offline.report import write_report
from tests.report import made


def test_the_picture_is_the_first_screen_of_a_report(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("needs Chromium: make browser")
    run = made.spike_run()

    def photographed(page: Path) -> subprocess.CompletedProcess[str]:
        # In a process of its own: the other tests' browser is open in this one.
        command = [sys.executable, "-m", "docs.picture", str(page), str(tmp_path / "picture.png")]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    done = photographed(write_report(run.findings, run.log, run.profile, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    drawn = imread(tmp_path / "picture.png")
    assert drawn.shape[:2] == (HEIGHT, WIDTH) == imread(PICTURE).shape[:2]
    assert drawn[..., :3].std() > 0.05, "there is something on it"
    missing = photographed(tmp_path / "nothing.html")
    assert missing.returncode == 1 and "make report" in missing.stderr
