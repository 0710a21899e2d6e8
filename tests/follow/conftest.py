"""A run that grows while it is followed: its trainer works in the pauses of the monitor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from hnf_offline.follow import Following, follow
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.report.monitor import Remark, spelled_remarks

ROOT = Path(__file__).resolve().parents[2]


class Grown:
    """Follows a run; in every pause the trainer does what comes next in its script."""

    def __init__(self, run: Path, out: Path) -> None:
        self.run, self.out = run, out
        self.time = 1_000.0
        self.told: list[list[Remark]] = []
        self.notes: list[str] = []
        self.measured: list[int] = []
        self.pauses = 0

    def follow(
        self,
        script: Iterable[Callable[[], None]],
        *,
        tier: str = "stability",
        interval: float = 10.0,
        idle: float = 100.0,
        after_pause: Callable[[], None] = lambda: None,
        **more: object,
    ) -> list[str]:
        work: Iterator[Callable[[], None]] = iter(script)

        def sleep(seconds: float) -> None:
            after_pause()
            self.pauses += 1
            self.time += seconds
            if (step := next(work, None)) is not None:
                step()

        following = Following(
            self.run, ProfileSettings(tier=tier), self.out, interval=interval, until_idle=idle,
            on_progress=lambda one: self.measured.append(one.step) if one.seconds and not one.part else None,
            note=self.notes.append, sleep=sleep, clock=lambda: self.time, now=lambda: self.time, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        for new in follow(following):
            self.told.append(new)
        return self.lines

    @property
    def remarks(self) -> list[Remark]:
        return [one for new in self.told for one in new]

    @property
    def lines(self) -> list[str]:
        return [line for new in self.told for line in spelled_remarks(new)]


@pytest.fixture
def grown(tmp_path: Path) -> Grown:
    (tmp_path / "runs" / "live").mkdir(parents=True)
    return Grown(tmp_path / "runs" / "live", tmp_path / "out")


def append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text)


def save(source: Path, target: Path, only: Callable[[str], bool] = lambda _: True) -> None:
    """Copy the files of a checkpoint as a trainer would write them now."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if only(file.name):
            shutil.copyfile(file, target / file.name)
            os.utime(target / file.name)
