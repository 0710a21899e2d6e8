"""docs/gallery.py runs from its first cell to its last, says what its text says, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.docs.pages import ROOT

GALLERY = ROOT / "docs" / "gallery.py"


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every name of the script after it ran elsewhere, with what it printed, and what it may not touch."""
    room = tmp_path_factory.mktemp("gallery")
    before = files_of(ROOT / "sample_runs")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(room)
        patch.setattr("tempfile.tempdir", str(room))
        names = runpy.run_path(str(GALLERY))
    # Torch and matplotlib may keep folders of their own among the temporary ones.
    left = [path for path in room.iterdir() if not path.name.startswith(("torch", "matplotlib", "mpl"))]
    touched = before != files_of(ROOT / "sample_runs")
    return {**names, "printed": printed.getvalue(), "touched": touched, "left": left}


def test_a_reader_sees_the_climb_before_the_spike(ran: dict[str, Any]) -> None:
    ratio = dict(zip(ran["ratio"]["step"], ran["ratio"]["value"], strict=True))
    assert len(ratio) == 15 and set(ratio) == set(range(780, 960, 12))
    climb = [ratio[step] for step in range(840, 913, 12)]
    assert climb == sorted(climb) and climb[0] < 0.85 < 1 < climb[-1]
    assert ran["share"]["value"].sum() == pytest.approx(1, abs=0.01)


def test_a_reader_sees_spikes_alarm_and_verdict(ran: dict[str, Any]) -> None:
    report = ran["report"]
    assert report.spikes["onset"].to_list() == [210, 392, 566, 759, 917]
    stability = ran["warnings"].filter(ran["warnings"]["quantity"] == "hessian.stability_ratio")
    assert stability["known_at"].to_list() == [888] and stability["rule"].to_list() == ["forecast"]
    assert "29 steps before the loss left its band" in ran["printed"]
    assert "1 spike is too few to test" in ran["printed"]
    assert "67 checkpoints, steps 156 to 948" in ran["printed"]


def test_pictures_page_and_export_are_there_and_gone_again(ran: dict[str, Any]) -> None:
    assert isinstance(ran["figure"], Figure)
    assert "key_picture" in ran["figures"] and all(isinstance(one, Figure) for one in ran["figures"].values())
    assert int(re.search(r"index\.html (\d+) kB", ran["printed"])[1]) > 50
    assert ran["exported"].scalars.height > 15 and ran["exported"].texts
    assert not ran["touched"] and ran["left"] == []


def test_it_is_a_notebook_in_cells_of_text_and_code() -> None:
    text = GALLERY.read_text(encoding="utf-8")
    head, *cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    assert "format_name: percent" in head and len(cells) > 20
    for cell in cells:
        kind, _, body = cell.partition("\n")
        words = [line for line in body.splitlines() if line.strip()]
        assert kind in {"", " [markdown]"} and words
        if kind:
            assert all(line.startswith("#") for line in words), "text of a cell is a comment"
        else:
            compile(body, str(GALLERY), "exec")
