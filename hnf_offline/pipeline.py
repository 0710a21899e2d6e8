"""The way from a run directory to its findings, and where results may be written. Shared by the verbs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hnf_offline.errors import InputError, UsageError, spelled

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.findings import Findings
    from hnf_offline.profile.settings import ProfileSettings, Progress
    from hnf_offline.retraining import Retraining
    from hnf_offline.run.records import Run

#: Everything the verbs write into an output folder.
WRITTEN = frozenset({
    "index.html",
    "figures",
    "profile",
    "profile.parquet",
    "findings.json",
    "diff.json",
    "rerun.json",
    "spikes.json",
    "spikes.png",
    "zoom",
    "proof",
    "a",
    "b",
})


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
    """

    run: Run
    table: pl.DataFrame
    device: str = ""
    parameters: int | None = None


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


def output_folder(out: Path | None, runs: tuple[Run, ...], *, force: bool = False) -> tuple[Path, str]:
    """Choose the folder for results and make sure nothing of the user's can be lost there. Creates nothing.

    Args:
        out: the folder asked for; None for `reports/<name>`, or `reports/<A>-vs-<B>` for two runs.
        runs: the runs that are read.
        force: write into a folder that holds files of other origin (they are left alone).

    Returns:
        The folder, and a remark worth telling ("" for none).

    Raises:
        UsageError: if the folder lies inside a run, is a file, or holds files not made by this program.
        InputError: if it cannot be read.
    """
    folder = out if out is not None else Path("reports") / "-vs-".join(run.name for run in runs)
    resolved = folder.resolve()
    for run in runs:
        room = run.path.resolve()
        if room.is_dir() and (resolved == room or room in resolved.parents):
            raise UsageError(
                "results are never written inside a run",
                path=folder,
                remedy="choose another folder with --out",
            )
    if not folder.exists():
        return folder, ""
    if not folder.is_dir():
        raise UsageError("is a file, not a folder", path=folder, remedy="choose another folder with --out")
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=folder, remedy="choose --out") from error
    foreign = sorted(names - WRITTEN)
    ours = names & {"findings.json", "diff.json", "rerun.json", "profile", "profile.parquet"}
    if not foreign and "index.html" in names and not ours:
        foreign = ["index.html"]
    if foreign and not force:
        raise UsageError(
            f"holds files this program did not write ({foreign[0]}{', ...' if len(foreign) > 1 else ''})",
            path=folder,
            remedy="choose another folder with --out, or --force to write beside them",
        )
    return folder, _other_run(folder, runs)


def _other_run(folder: Path, runs: tuple[Run, ...]) -> str:
    """Notice a report of another run in the folder.

    Returns:
        A remark, "" where there is none to make.
    """
    if len(runs) != 1:
        return ""
    try:
        held = json.loads((folder / "findings.json").read_text(encoding="utf-8"))["run"]["path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    here = spelled(runs[0].path)
    if not isinstance(held, str) or held == here or Path(held).resolve() == runs[0].path.resolve():
        return ""
    return f"{folder}: held the report of another run ({held}); it is replaced"


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
                remedy="see the layouts in README.md, or describe the run with --manifest FILE",
            )
        return Measured(run, table())
    from hnf_offline.check.counting import counted_in_updates
    from hnf_offline.profile import profile_run

    run = counted_in_updates(run, model, settings.device)

    last: list[Progress] = []

    def remember(progress: Progress) -> None:
        last[:] = [progress]
        if on_progress is not None:
            on_progress(progress)

    try:
        profile = profile_run(run, settings, out, model_factory=model, on_progress=remember)
    except KeyboardInterrupt as stop:
        done, total = (last[0].done, last[0].total) if last else (0, len(run.checkpoints))
        raise InterruptedRunError(done, total) from stop
    if not profile.table.height:
        raise UsageError(
            "no checkpoint lies in the steps asked for", path=run.path, remedy="widen --steps A:B"
        )
    passed_over = tuple(Skipped(path, reason, remedy) for path, reason, remedy in profile.skipped)
    return Measured(
        replace(run, skipped=run.skipped + passed_over), profile.table, profile.device, profile.parameters
    )


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


def borrow_shards(run: Run, room: Path) -> None:
    """Copy what `hnf report` already measured of a run, so that a comparison does not measure it again.

    Shards name what they measured by content; one that does not fit is measured afresh and replaced.
    """
    measured = Path("reports") / run.name / "profile"
    if not measured.is_dir():
        return
    (room / "profile").mkdir(parents=True, exist_ok=True)
    for shard in sorted(measured.glob("*.parquet")):
        target = room / "profile" / shard.name
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.copyfile(shard, partial)
            partial.replace(target)


def relative(path: Path) -> Path:
    """Spell a path relative to the current folder where it lies below it.

    Returns:
        The shorter path.
    """
    if spelled(path) != path.as_posix():
        return path  # it stands for an address
    try:
        return path.absolute().relative_to(Path.cwd())
    except ValueError:
        return path


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
    from hnf_offline.run.remote import address_of, local_path

    named: dict[str, str] = {}
    for typed in columns or ():
        ours, equals, column = typed.partition("=")
        if not (ours and equals and column):
            raise UsageError(
                f"--column {typed} is not NAME=COLUMN", remedy="write it as --column loss=train/lm_loss"
            )
        named[ours] = column
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
