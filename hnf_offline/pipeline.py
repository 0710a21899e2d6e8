"""The way from a run directory to its findings. Shared by the verbs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hnf_offline.errors import InputError, UsageError, spelled
from hnf_offline.output import relative

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.findings import Findings
    from hnf_offline.profile.settings import ProfileSettings, Progress
    from hnf_offline.retraining import Retraining
    from hnf_offline.run.records import Run


class InterruptedRunError(Exception):
    """The user stopped a profile or a retraining; what was finished is kept.

    Attributes:
        done: checkpoints or steps finished.
        total: checkpoints or steps asked for.
    """

    def __init__(self, done: int, total: int, kept: str = "kept; run again to go on") -> None:
        self.done = done
        self.total = total
        at = f" at {done}/{total}" if total else ""
        super().__init__(f"stopped{at}, {kept}")


@dataclass(frozen=True, slots=True)
class Measured:
    """A run and its profile.

    Attributes:
        run: the run; what could not be profiled is among its `skipped`.
        table: the long table, empty where the run has no checkpoints.
        device: where it was measured, "" where nothing was.
        parameters: parameters of the model, None where it is not known.
        forwards: forward passes of all replayed rows that a checkpoint was worth; 0 where none was measured now.
        peak_bytes: memory at the peak of those, weights included.
    """

    run: Run
    table: pl.DataFrame
    device: str = ""
    parameters: int | None = None
    forwards: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Analysis:
    """A run, its profile, and what was found in them.

    Attributes:
        run: the run.
        profile: the long table.
        findings: what was found.
        proofs: the retrainings that tested advice, in the order in which the advice's `evidence` first names them.
    """

    run: Run
    profile: pl.DataFrame
    findings: Findings
    proofs: tuple[Retraining, ...] = ()

    def evidence(self) -> Iterator[tuple[str, Retraining]]:
        """Pair every retraining with the page that the advice names as its evidence.

        Yields:
            Path relative to the report's folder, and the retraining with versions, time and device.
        """
        pages = dict.fromkeys(one.evidence for one in self.findings.advice if one.evidence)
        for page, proof in zip(pages, self.proofs, strict=True):
            seconds = round(sum(arm.seconds for arm in proof.arms), 1)
            yield page, replace(proof, made={**self.findings.made, "seconds": seconds, **proof.made})

    @property
    def log(self) -> pl.DataFrame | None:
        """Rows of the training log, None where the run has none."""
        return None if self.run.log is None else self.run.log.rows


def analyse(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    rule: str,
    command: str = "",
    model: str | None = None,
    zoom: bool = False,
    prove: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Analysis:
    """Profile a run and find what went wrong in it.

    Args:
        run: the run as found on disk.
        settings: what to measure.
        out: folder for the profile.
        rule: name of the spike rule.
        command: what the user typed, for the record.
        model: `package.module:function` that builds the model, None where the run says.
        zoom: retrain and measure step by step before spikes, where that is affordable.
        prove: retrain with the advice that is given, to say whether it helps.
        on_progress: called after every checkpoint.

    Returns:
        The run, its profile and the findings.
    """
    from hnf_offline.relate.whole import find

    began = time.monotonic()
    measured = measure(run, settings, out, model=model, on_progress=on_progress)
    described = {"parameters": measured.parameters}
    findings = find(measured.run, measured.table, rule=rule, made=described)
    if zoom and findings.spikes:
        import polars as pl

        from hnf_offline.proof import zoom_before_spikes
        from hnf_offline.table import sort

        zooms = _stoppable(
            lambda: zoom_before_spikes(
                measured.run, measured.table, findings, settings, out, model=model, on_progress=on_progress
            )
        )
        measured = replace(measured, table=sort(pl.concat([measured.table, zooms.table])))
        findings = find(measured.run, measured.table, rule=rule, made=described, zooms=zooms.told)
    proofs: tuple[Retraining, ...] = ()
    if prove:
        from hnf_offline.proof import can_replay, prove_advice, untestable

        if can_replay(measured.run, model):
            advice, proofs = _stoppable(
                lambda: prove_advice(measured.run, findings, settings, model=model, on_progress=on_progress)
            )
        else:
            advice = untestable(findings.advice)
        findings = replace(findings, advice=advice)
    made = {**findings.made, **made_by(command, measured.device, time.monotonic() - began, rule)}
    return Analysis(measured.run, measured.table, replace(findings, made=made), proofs)


_Result = TypeVar("_Result")


def _stoppable(work: Callable[[], _Result]) -> _Result:
    """Turn the user's interruption of a retraining into what the command line tells; the profile is kept."""
    try:
        return work()
    except KeyboardInterrupt as stop:
        raise InterruptedRunError(0, 0) from stop


def supplied(run: Run, settings: ProfileSettings, model: str | None) -> Run:
    """Take what the command line supplies off the list of what the run lacks.

    Returns:
        The run, its model being the named factory where one is named.
    """
    from hnf_offline.run.records import ModelSource

    given = {"no model"} if model is not None else set()
    given |= {"no batches"} if settings.replay is not None else set()
    source = run.model
    if model is not None:
        source = ModelSource("factory", {} if source is None else source.config, factory=model)
    return replace(run, model=source, missing=tuple(one for one in run.missing if one.what not in given))


def measure(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    model: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Measured:
    """Profile a run, or give an empty table where it has no checkpoints.

    Returns:
        The run, its long table, and where it was measured.

    Raises:
        InputError: if the run has neither checkpoints nor a log.
        UsageError: if no checkpoint lies in the steps asked for.
        InterruptedRunError: if the user stopped it; finished checkpoints are kept.
    """
    from hnf_offline.run.records import Skipped
    from hnf_offline.table import table

    run = supplied(run, settings, model)
    if not run.checkpoints:
        if run.log is None:
            raise InputError(
                "holds neither checkpoints nor a training log that can be read",
                path=run.path,
                remedy="see docs/formats.md, or describe the run with --manifest FILE",
            )
        return Measured(run, table())
    from hnf_offline.check.counting import counted_in_updates
    from hnf_offline.profile import profile_run
    from hnf_offline.profile.joined import with_the_rest

    run = counted_in_updates(run, model, settings.device)

    last: list[Progress] = []

    def remember(progress: Progress) -> None:
        last[:] = [progress]
        if on_progress is not None:
            on_progress(progress)

    try:
        if settings.tier == "weights":
            return _weights_alone(run, settings, out, model, remember)
        profile = profile_run(run, settings, out, model_factory=model, on_progress=remember)
        profile = with_the_rest(profile, run, settings, out, model_factory=model, on_progress=remember)
    except KeyboardInterrupt as stop:
        done, total = (last[0].done, last[0].total) if last else (0, len(run.checkpoints))
        raise InterruptedRunError(done, total) from stop
    if not profile.table.height:
        raise UsageError(
            "no checkpoint lies in the steps asked for", path=run.path, remedy="widen --steps A:B"
        )
    passed_over = tuple(Skipped(path, reason, remedy) for path, reason, remedy in profile.skipped)
    return Measured(
        replace(run, skipped=run.skipped + passed_over),
        profile.table,
        profile.device,
        profile.parameters,
        profile.forwards,
        profile.peak_bytes,
    )


def _weights_alone(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    model: str | None,
    on_progress: Callable[[Progress], None],
) -> Measured:
    """Look at the weights alone: nothing is replayed."""
    from hnf_offline.profile.shards import write_parquet
    from hnf_offline.profile.weights import measure_weights
    from hnf_offline.run.records import Skipped

    found = measure_weights(run, settings, out, model_factory=model, on_progress=on_progress)
    if not found.table.height:
        if found.skipped:
            path, reason, remedy = found.skipped[0]
            raise InputError(f"no checkpoint could be read: {reason}", path=path, remedy=remedy)
        raise UsageError(
            "no checkpoint lies in the steps asked for", path=run.path, remedy="widen --steps A:B"
        )
    write_parquet(out / "profile.parquet", found.table)
    passed_over = tuple(Skipped(path, reason, remedy) for path, reason, remedy in found.skipped)
    return Measured(replace(run, skipped=run.skipped + passed_over), found.table, parameters=found.parameters)


def plans(
    runs: tuple[Run, ...],
    settings: ProfileSettings,
    folders: tuple[Path, ...],
    *,
    model: str | None = None,
    zoom: bool = False,
) -> list[dict[str, Any]]:
    """Say what profiling some runs would cost. Computes and writes nothing.

    Args:
        runs: the runs.
        settings: what would be measured.
        folders: where results would go.
        model: `package.module:function` that builds the model, None where the run says.
        zoom: also say what zooming before spikes would cost.

    Returns:
        Per run: name, path, output folder, the fields of `Plan`, and those of `proof.planned_zooms`.
    """
    told = []
    for run, folder in zip(runs, folders, strict=True):
        one: dict[str, Any] = {
            "run": run.name,
            "path": spelled(relative(run.path)),
            "out": str(relative(folder)),
        }
        if run.checkpoints:
            from hnf_offline.profile import plan

            one |= asdict(plan(supplied(run, settings, model), settings, folder, model_factory=model))
            if zoom:
                from hnf_offline.proof import planned_zooms

                one |= planned_zooms(supplied(run, settings, model), settings, model)
        else:
            one |= {"checkpoints": 0, "missing": [f"{gone.what}: {gone.cost}" for gone in run.missing]}
        told.append(one)
    return told


def open_input(
    path: Path | str,
    manifest: Path | None = None,
    columns: Sequence[str] | None = None,
    *,
    memory_map: bool = True,
    log_only: bool = False,
) -> Run:
    """Find out what a run directory, a checkpoint, a log file or an address such as s3://... holds.

    Args:
        path: the folder, file or address.
        manifest: a run.toml to read instead of the run's own.
        columns: "loss=train/lm_loss" and the like: which column of the log is what.
        memory_map: whether weight files may be mapped into memory.
        log_only: look for nothing but the log, which loads no torch.

    Returns:
        The run.

    Raises:
        InputError: if there is nothing at that path.
        UsageError: if a column is not spelled NAME=COLUMN.
    """
    from hnf_offline.run import open_run
    from hnf_offline.run.logs.columns import named_columns
    from hnf_offline.run.remote import address_of, local_path

    named = named_columns(columns)
    if address_of(path) is None and not local_path(path).exists():
        raise InputError("no such file or folder", path=path, remedy="name the folder of a run or a log file")
    if log_only and address_of(path) is None:
        from hnf_offline.run.open_log import open_log

        return open_log(local_path(path), manifest, columns=named)
    return open_run(path, manifest, columns=named, memory_map=memory_map)


def made_by(command: str, device: str, seconds: float, rule: str) -> dict[str, Any]:
    """Say what made a result: the only part that differs between two identical runs.

    Returns:
        Command, versions, device, time and seconds.
    """
    import platform
    from datetime import UTC, datetime
    from importlib.metadata import version

    names = ("hnf_offline", "torch", "polars", "numpy", "scipy", "ruptures")
    return {
        "command": command,
        "spike_rule": rule,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "device": device,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
