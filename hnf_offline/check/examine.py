"""Run the checks on a run: the cheap ones, or all; then let one cause be told once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hnf_offline.check.registry import Check, Outcome, checks
from hnf_offline.check.series import Portrait, Replays, Series
from hnf_offline.errors import UserError
from hnf_offline.findings import SCHEMA, Fault, Findings
from hnf_offline.run import formats
from hnf_offline.run.formats.safetensors_file import read_json
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.run.remote import check_room
from hnf_offline.strict_json import plain

if TYPE_CHECKING:
    from hnf_offline.profile.settings import Progress

#: Why a check was not made.
CHEAP_ALONE = "only cheap checks were asked for"
SEVERITIES = ("danger", "warning", "info")

#: A fault of the first kind makes those of the others at the same checkpoint mere consequences.
EXPLAINS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "identical-weights",
        frozenset({"optimizer-state", "step-count", "discontinuity", "learning-rate", "replayed-loss"}),
    ),
    ("optimizer-state", frozenset({"step-count", "learning-rate"})),
    ("step-count", frozenset({"discontinuity", "learning-rate", "replayed-loss"})),
    ("mixed-runs", frozenset({"other-shapes", "discontinuity", "replayed-loss", "learning-rate"})),
    ("nonfinite-weights", frozenset({"discontinuity", "replayed-loss", "initialisation"})),
    ("other-shapes", frozenset({"discontinuity", "replayed-loss"})),
    ("other-dtype", frozenset({"discontinuity", "replayed-loss"})),
    ("tied-weights", frozenset({"discontinuity", "replayed-loss"})),
    ("discontinuity", frozenset({"replayed-loss"})),
    ("damaged", frozenset({"replayed-loss", "spacing"})),
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What one check gave.

    Attributes:
        name: the check.
        cost: its cost class.
        looked_at: what it looked at, "" where it could look at nothing.
        skipped_because: what it did not look at and why, "" for nothing.
    """

    name: str
    cost: str
    looked_at: str
    skipped_because: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What `hnf check` says of a run.

    Attributes:
        run: name of the run.
        path: where it is.
        checkpoints: how many were looked at.
        checks: every check, whether it could look at anything or not.
        faults: what is wrong, in order of severity, then of steps.
    """

    run: str
    path: str
    checkpoints: int
    checks: tuple[Checked, ...]
    faults: tuple[Fault, ...]

    @property
    def sound(self) -> bool:
        """Whether something was looked at and nothing is wrong with it; what was not looked at is in `checks`."""
        return any(one.looked_at for one in self.checks) and not self.wrong

    @property
    def wrong(self) -> tuple[Fault, ...]:
        """The faults that make the exit code 1: dangers and warnings."""
        return tuple(one for one in self.faults if one.severity != "info")

    def told(self, findings: Findings) -> Findings:
        """Add what is wrong to a run's findings, and the names of the checks that looked.

        Returns:
            The findings.
        """
        names = [one.name for one in self.checks if one.looked_at]
        begun = next((one for one in self.checks if one.cost == "first"), None)
        initial = "" if begun is None else begun.looked_at or begun.skipped_because
        described = {**findings.run, "checked": names, "initialisation": initial}
        return replace(findings, faults=self.faults, run=described)

    def to_json(self) -> dict[str, Any]:
        """Give it as one JSON value.

        Returns:
            {schema, run, path, checkpoints, sound, checks, faults}.
        """
        whole = plain({"schema": SCHEMA, **asdict(self), "sound": self.sound})
        assert isinstance(whole, dict)
        return whole


def cheap_checks(run: Run) -> tuple[Fault, ...]:
    """Run the cheap checks: names, headers, JSON and the log; no tensor is read.

    Returns:
        What is wrong, in order of severity, then of steps.
    """
    return check_run(run, cheap=True).faults


def check_run(
    run: Run,
    *,
    cheap: bool = False,
    initial: bool = False,
    first: int | None = None,
    last: int | None = None,
    every: int = 1,
    model: str | None = None,
    device: str = "auto",
    forward: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> Examination:
    """Run the checks.

    Args:
        run: the run as found on disk.
        cheap: leave out those that read tensors or run the model.
        initial: look at how the model was initialised all the same.
        first: first checkpoint step, None for all.
        last: last checkpoint step, None for all.
        every: look at every n-th checkpoint.
        model: `package.module:function` that builds the model, None where the run says.
        device: where to replay.
        forward: whether the model is run at all.
        on_progress: called after every checkpoint that was read.

    Returns:
        What was looked at, and what is wrong.
    """
    run = chosen(run, first, last, every)
    series = Series(run, settings=_settings(run, cheap=cheap), model=model, device=device, forward=forward)
    if not cheap:
        series = _read(series, on_progress)
        series = replace(series, replays=_replays(series, on_progress) if run.checkpoints else Replays())
    told: list[Checked] = []
    faults: list[Fault] = []
    covered: dict[Fault, tuple[int, ...]] = {}
    for check in checks():
        if cheap and check.cost != "cheap" and not (initial and check.cost == "first"):
            outcome = Outcome(skipped_because=CHEAP_ALONE)
        elif check.cost == "replay" and series.replays is None:
            outcome = Outcome(skipped_because="nothing was replayed")
        else:
            outcome = _look(check, series)
        told.append(Checked(check.name, check.cost, outcome.looked_at, outcome.skipped_because))
        faults += outcome.faults
        covered |= outcome.covered
    return Examination(
        run.name, str(run.path), len(run.checkpoints), tuple(told), ordered(told_once(faults, covered))
    )


def chosen(run: Run, first: int | None, last: int | None, every: int) -> Run:
    """Leave only the checkpoints that are looked at.

    Returns:
        The run with every n-th of its checkpoints within the steps.
    """
    inside = [
        one
        for one in run.checkpoints
        if (first is None or one.step >= first) and (last is None or one.step <= last)
    ]
    return replace(run, checkpoints=tuple(inside[::every]))


def told_once(faults: Iterable[Fault], covered: Mapping[Fault, tuple[int, ...]]) -> list[Fault]:
    """Leave out what is only a consequence of another fault at the same checkpoint, and name it there.

    Args:
        faults: what all checks found.
        covered: the steps that a fault is about, where it is about more than its own.

    Returns:
        The faults that are left.
    """
    left = list(faults)
    about = [covered.get(one, () if one.step is None else (one.step,)) for one in left]
    also: dict[int, list[str]] = {}
    gone: set[int] = set()
    for kind, consequences in EXPLAINS:
        causes = [
            place
            for place, one in enumerate(left)
            if one.kind == kind and one.severity != "info" and place not in gone
        ]
        steps = {step for place in causes for step in about[place]}
        for other, one in enumerate(left):
            if one.kind in consequences and about[other] and steps.issuperset(about[other]):
                gone.add(other)
                cause = next(place for place in causes if set(about[place]) & set(about[other]))
                also.setdefault(cause, []).append(one.kind)
    return [
        replace(one, evidence=f"{one.evidence} (also off there: {', '.join(dict.fromkeys(also[place]))})")
        if place in also
        else one
        for place, one in enumerate(left)
        if place not in gone
    ]


def ordered(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Sort faults: dangers first, then by step; those of the whole run first within their severity.

    Returns:
        The faults.
    """
    return tuple(
        sorted(faults, key=lambda one: (SEVERITIES.index(one.severity), -1 if one.step is None else one.step))
    )


def _replays(series: Series, on_progress: Callable[[Progress], None] | None) -> Replays:
    from hnf_offline.check.replay import WEIGHTS_ALONE, replay

    if not series.forward:
        return Replays(skipped_because=WEIGHTS_ALONE)
    return replay(series.run, series.model, series.device, on_progress)


def _look(check: Check, series: Series) -> Outcome:
    # One file that goes away meanwhile must not take the other checks with it.
    try:
        return check.look(series)
    except (UserError, OSError) as error:
        return Outcome(skipped_because=f"it could not be finished: {error}")


def _settings(run: Run, *, cheap: bool) -> dict[int, Any]:
    # The model's settings of each checkpoint. Only a config.json beside the weights is cheap to read.
    found: dict[int, Any] = {}
    for checkpoint in run.checkpoints:
        if checkpoint.config_file is not None:
            settings = read_json(checkpoint.config_file)
            found[checkpoint.step] = settings.get("model", settings)
        elif not cheap:
            try:
                found[checkpoint.step] = formats.configuration(checkpoint).get("model") or {}
            except UserError:
                continue
    return {step: one for step, one in found.items() if isinstance(one, dict) and one}


def _read(series: Series, on_progress: Callable[[Progress], None] | None) -> Series:
    from hnf_offline.check.portrait import draw
    from hnf_offline.profile.settings import Progress

    checkpoints = series.run.checkpoints
    check_room(series.run.path, checkpoints)
    portraits: list[Portrait] = []
    unreadable = {}
    for done, checkpoint in enumerate(checkpoints, start=1):
        began = time.monotonic()
        event = ""
        try:
            portraits.append(draw(checkpoint, len(checkpoints)))
        except UserError as error:
            path = error.path or checkpoint.path
            unreadable[checkpoint.step] = (path, error.reason, error.remedy or "")
            event = f"step {checkpoint.step}: {series.relative(path)}: {error.reason}"
        if on_progress is not None:
            seconds = time.monotonic() - began
            on_progress(Progress(checkpoint.step, done, len(checkpoints), 0, seconds, event))
    kept: tuple[Checkpoint, ...] = tuple(one for one in checkpoints if one.step not in unreadable)
    return replace(
        series,
        run=replace(series.run, checkpoints=kept),
        portraits=tuple(portraits),
        unreadable=unreadable,
    )
