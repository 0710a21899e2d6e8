"""The README's picture is made by a script, of the first screen of a page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread

from docs.picture import HEIGHT, PICTURE, WIDTH, photograph
from hnf_offline.report import write_report
from tests.report import made


def test_the_picture_is_the_first_screen_of_a_report(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("needs Chromium: make browser")
    run = made.spike_run()
    photograph(write_report(run.findings, run.log, run.profile, tmp_path / "out"), tmp_path / "picture.png")
    drawn = imread(tmp_path / "picture.png")
    assert drawn.shape[:2] == (HEIGHT, WIDTH) == imread(PICTURE).shape[:2]
    assert drawn[..., :3].std() > 0.05, "there is something on it"
    with pytest.raises(SystemExit, match="make report"):
        photograph(tmp_path / "nothing.html", tmp_path / "picture.png")
