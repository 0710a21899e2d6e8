"""How a run is to be followed, and where it lies."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run.records import Run

if TYPE_CHECKING:
    from hnf_offline.profile.settings import ProfileSettings, Progress


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is known while nothing is new.

    Attributes:
        step: last step of the log, None before its first row.
        measured: checkpoints measured so far.
        pending: checkpoints that are there and not measured yet.
        seconds: since anything changed.
    """

    step: int | None
    measured: int
    pending: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Following:
    """How to follow a run.

    Attributes:
        path: a folder on this disk, or one log file.
        settings: what to measure at each checkpoint.
        out: folder of the profile, which is also the cache.
        interval: seconds between two looks.
        until_idle: stop once nothing has changed for so many seconds; None to go on until interrupted.
        rule: the spike rule.
        manifest: a run.toml to read instead of the run's own.
        columns: our column name -> name in the log.
        memory_map: whether weight files may be mapped into memory.
        model: `package.module:function` that builds the model, None where the run says.
        on_progress: called while checkpoints are measured.
        on_wait: called before every wait.
        note: told, once each, what cannot be read.
        sleep: waits so many seconds.
        clock: seconds that only go forward.
        now: the time of day in seconds, as files are dated.
    """

    path: Path
    settings: ProfileSettings
    out: Path
    interval: float = 10.0
    until_idle: float | None = None
    rule: str = "robust"
    manifest: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    memory_map: bool = True
    model: str | None = None
    on_progress: Callable[[Progress], None] | None = None
    on_wait: Callable[[Waiting], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time


def place(path: Path, manifest: Path | None = None) -> Run:
    """Look where a run that is to be followed lies, before anything in it can be read.

    Args:
        path: a folder on this disk, or one log file.
        manifest: a run.toml to read instead of the run's own.

    Returns:
        A run that holds nothing yet but what its run.toml says.

    Raises:
        InputError: when there is nothing at that path.
        UsageError: when it is not on this disk, or run.toml is wrong.
    """
    from hnf_offline.run.manifest import read_manifest
    from hnf_offline.run.remote import address_of, local_path

    if address_of(path) is not None:
        raise UsageError(
            "--follow reads a folder on this disk",
            path=path,
            remedy="leave out --follow, or follow the folder that the trainer writes",
        )
    path = local_path(path)
    if not path.exists():
        raise InputError(
            "no such file or folder", path=path, remedy="name the folder that the trainer writes"
        )
    folder = path if path.is_dir() else path.parent
    said = read_manifest(folder, manifest).said if path.is_dir() or manifest else None
    return Run(path, path.name or path.resolve().name, (), None, None, None, said=said)
