"""Progress: a bar on a terminal, plain lines elsewhere, and no escape where none is wanted."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from hnf_offline.profile.parts import heard_by, tell_part
from hnf_offline.profile.settings import Progress
from hnf_offline.progress import Reporter

ANSI = "\x1b"


def on_a_terminal(arguments: list[str], cwd: Path, **environment: str) -> tuple[int, str]:
    """Run `hnf` with stdout and stderr on one pseudo-terminal."""
    ours, theirs = pty.openpty()
    base = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "TERM", "FORCE_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "hnf_offline", *arguments],
        stdout=theirs, stderr=theirs, cwd=cwd, env=base | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(), shown.decode()


def test_a_terminal_gets_one_bar(tiny_run: Path, tmp_path: Path) -> None:
    code, shown = on_a_terminal(["profile", str(tiny_run), "--tier", "forward"], tmp_path)
    assert code == 0
    assert ANSI in shown
    assert "profile 4/4 step 24 forward" in shown
    assert "s/ckpt ETA 0:00" in shown


@pytest.mark.parametrize(
    "environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}]
)
def test_a_terminal_that_wants_no_escapes_gets_none(
    environment: dict[str, str], tiny_run: Path, tmp_path: Path
) -> None:
    for arguments in (["profile", str(tiny_run), "--tier", "forward"], ["--help"], ["nope"], []):
        _, shown = on_a_terminal(arguments, tmp_path, **environment)
        assert ANSI not in shown


def test_elsewhere_a_line_at_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("profile", "forward") as tell:
        for done in range(1, 101):
            tell(Progress(10 * done, done, 100, 0, 2.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "profile 10/100 step 100 forward 2.0 s/ckpt ETA 3:00"
    assert lines[-1] == "profile 100/100 step 1000 forward 2.0 s/ckpt ETA 0:00"


def test_a_slow_step_is_told_after_half_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("hnf_offline.progress.time.monotonic", lambda: float(next(clock)))
    with Reporter("profile", "forward") as tell:
        for done in range(1, 4):
            tell(Progress(done, done, 1000, 0, 40.0))
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_events_and_the_cache_are_told_and_quiet_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(140, 29, 30, 28, 1.0, "step 140: S = 1.20\x1b[31m, beyond the edge [of] stability")
    with Reporter("profile", "curvature") as tell:
        tell(progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["28 of 30 from cache", "step 140: S = 1.20\\x1b[31m, beyond the edge [of] stability"]
    with Reporter("profile", "curvature", quiet=True) as tell:
        tell(progress)
    assert capsys.readouterr().err == ""
    assert tell.last is progress


def test_work_within_other_work_is_told_by_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("profile", "curvature") as tell:
        tell(Progress(290, 1, 2, 0, 3.0))
        tell(Progress(300, 2, 2, 0, 3.0))
        tell(Progress(150, 1, 2, 0, 1.0, work="zoom"))
        tell(Progress(151, 2, 2, 0, 2.0, work="zoom"))
    assert capsys.readouterr().err.splitlines() == [
        "profile 1/2 step 290 curvature 3.0 s/ckpt ETA 0:03",
        "profile 2/2 step 300 curvature 3.0 s/ckpt ETA 0:00",
        "zoom 1/2 step 150 1.0 s each ETA 0:01",
        "zoom 2/2 step 151 1.5 s each ETA 0:00",
    ]
    with Reporter("zoom", "stability", unit="step") as tell:
        tell(Progress(150, 1, 1, 0, 1.0, work="zoom"))
    assert capsys.readouterr().err == "zoom 1/1 step 150 stability 1.0 s/step ETA 0:00\n"


def test_another_piece_of_work_is_told_from_its_own_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("zoom", "stability", unit="step") as tell:
        tell(Progress(10, 1, 1, 0, 100.0))
        for done in (1, 2):
            tell(Progress(140 + done, done, 10, 0, 2.0))
    assert capsys.readouterr().err.splitlines() == [
        "zoom 1/1 step 10 stability 100.0 s/step ETA 0:00",
        "zoom 1/10 step 141 stability 2.0 s/step ETA 0:18",
        "zoom 2/10 step 142 stability 2.0 s/step ETA 0:16",
    ]


def test_within_a_long_checkpoint_its_layers_and_an_honest_time_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("hnf_offline.progress.time.monotonic", lambda: now[0])
    with Reporter("profile", "screen") as tell:
        for layer in range(149):
            # 0.5 s a layer; the first 49 of them are two thirds of the work, as those of the last blocks are not.
            now[0] = 0.5 * layer
            share = layer / 49 * 2 / 3 if layer < 49 else 2 / 3 + (layer - 49) / 99 / 3
            tell(Progress(0, 0, 2, 0, now[0], part=f"layers {layer} of 148", share=share))
        tell(Progress(0, 1, 2, 0, 74.0))
        now[0] = 74.0 + 37.0
        tell(Progress(10, 1, 2, 0, 37.0, part="layers 20 of 148", share=0.5))
    assert capsys.readouterr().err.splitlines() == [
        # 30 s for .704 of one of two checkpoints: 42.6 s each, 55.3 s are left; then 60 s for .906: 72.5 s
        "profile 0/2 step 0 screen layers 60 of 148 ETA 0:55",
        "profile 0/2 step 0 screen layers 120 of 148 ETA 1:12",
        "profile 1/2 step 0 screen 74.0 s/ckpt ETA 1:14",
        "profile 1/2 step 10 screen layers 20 of 148 74.0 s/ckpt ETA 0:37",
    ]


def test_quick_checkpoints_say_nothing_of_their_layers(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter("profile", "curvature") as tell:
        for done in range(2):
            for layer in range(15):
                tell(Progress(done, done, 2, 0, 0.1, part=f"layers {layer} of 14", share=layer / 14))
            tell(Progress(done, done + 1, 2, 0, 1.0))
    assert capsys.readouterr().err.splitlines() == [
        "profile 1/2 step 0 curvature 1.0 s/ckpt ETA 0:01",
        "profile 2/2 step 1 curvature 1.0 s/ckpt ETA 0:00",
    ]


def test_no_time_is_foretold_before_anything_was_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("hnf_offline.progress.time.monotonic", lambda: float(next(clock)))
    with Reporter("profile", "screen") as tell:
        tell(Progress(5, 0, 1, 0, 40.0, part="layers 0 of 148", share=0.0))
    assert capsys.readouterr().err == "profile 0/1 step 5 screen layers 0 of 148\n"


def test_whoever_listens_hears_of_the_parts() -> None:
    heard: list[tuple[int, int, int, float]] = []
    tell_part(1, 2, 3, 0.5)  # nobody listens
    with heard_by(lambda *told: heard.append(told)):
        tell_part(140, 31, 148, 0.4)
        with heard_by(None):
            tell_part(140, 32, 148, 0.5)
        tell_part(140, 148, 148, 1.3)  # more work than was foreseen
    tell_part(150, 1, 148, 0.1)
    assert heard == [(140, 31, 148, 0.4), (140, 148, 148, 1.0)]
