"""What the how-to pages show as output is what the commands say, but for the last digits of another machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HNF_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "sample_runs").symlink_to(ROOT / "sample_runs")


def quoted_and_said(page: str, verb: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a page shows under a command, and what the command prints."""
    from hnf_offline.cli import main

    (block,) = [
        one
        for one in blocks_of(f"docs/how-to/{page}.md", "console")
        if one.text.startswith(f"$ hnf {verb} sample_runs")
    ]
    line, _, quoted = block.text.partition("\n")
    assert main(shlex.split(line)[2:]) == 0
    return quoted, capsys.readouterr().out


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, pattern
    return [float(one) for one in found.groups()]


def both(pattern: str, texts: tuple[str, str]) -> None:
    quoted, said = (numbers(pattern, text) for text in texts)
    assert said == pytest.approx(quoted, rel=0.05), pattern


@pytest.mark.usefixtures("desk")
def test_zoom(capsys: pytest.CaptureFixture[str]) -> None:
    texts = quoted_and_said("zoom-and-what-if", "zoom", capsys)
    assert all("● Exact: " in text for text in texts)
    both(r"(\d+) losses equal the log", texts)
    both(r"S, highest: ([\d.]+) at (\d+)", texts)
    both(r"first alarm: at (\d+), (\d+) steps before the spike", texts)


@pytest.mark.usefixtures("desk")
def test_what_if(capsys: pytest.CaptureFixture[str]) -> None:
    texts = quoted_and_said("zoom-and-what-if", "whatif", capsys)
    assert all("● Exact: " in text for text in texts)
    both(r"as was +at (\d+) +([\d.]+) at (\d+)", texts)
    both(r"lr-scale=0.5:20 +at (\d+) +([\d.]+) at", texts)
    for policy in ("lr-cap=0.005", "lr-ratchet"):
        both(rf"{policy} +none +([\d.]+) at (\d+) +([\d.]+)", texts)
    assert all(text.count("outside the twins' band") == 3 for text in texts)


@pytest.mark.usefixtures("desk")
def test_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    texts = quoted_and_said("monitor", "monitor", capsys)
    both(r"\[WARNING\] Step (888): stability ratio is ([\d.]+) .* at about step (\d+)", texts)
    both(r"to at most ([\d.]+) \(it is ([\d.]+), lr/S is ([\d.]+)\)", texts)
    both(r"\[SPIKE\] Step (917): loss ([\d.]+) -> ([\d.]+)", texts)


@pytest.mark.usefixtures("desk")
def test_diff(capsys: pytest.CaptureFixture[str]) -> None:
    texts = quoted_and_said("compare-runs", "diff", capsys)
    assert all(
        "◆ Differ: A and B differ in optimizer.learning_rate (0.01 against 0.002)" in text for text in texts
    )
    both(r"First durable separation: step (\d+)", texts)
    both(r"Final loss, A against B: ([\d.]+) against ([\d.]+)", texts)
    both(r"Comparable: not in (\d+) respects", texts)
