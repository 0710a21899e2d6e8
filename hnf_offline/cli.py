"""The command line: one short function a verb, that parses, calls the library and prints.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 2 bad usage or input, 130
interrupted.
Imports of torch, polars and matplotlib stay inside the verbs, so that help and completion are instant.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnf_offline.errors import InputError, UserError
from hnf_offline.exit import exit_code
from hnf_offline.options import (
    Device,
    DeviceName,
    Every,
    Force,
    Json,
    Layers,
    LogPath,
    Manifest,
    Map,
    Model,
    Out,
    Precision,
    PrecisionName,
    Quiet,
    Replay,
    Rows,
    Rule,
    RuleName,
    RunPath,
    ShowPlan,
    Silent,
    Steps,
    Tier,
    TierName,
    profile_settings,
)
from hnf_offline.pipeline import (
    analyse,
    borrow_shards,
    made_by,
    measure,
    open_input,
    output_folder,
    plans,
    relative,
)
from hnf_offline.printing import emit, emit_json, entries, explanation, listing, plan_text, terminal
from hnf_offline.progress import Reporter, note

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.findings import Findings
    from hnf_offline.profile.settings import ProfileSettings
    from hnf_offline.run.records import Run

app = typer.Typer(
    name="hnf",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a verb with runnable examples at the end of its help.

    Returns:
        A decorator that leaves the function as it is.
    """
    return app.command(epilog="\b\nExample:\n" + "\n".join(f"  {example}" for example in examples))


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hnf {version('hnf_offline')}")
        raise typer.Exit


@app.callback(epilog="\b\nExample:\n  hnf report runs/gpt-small\n  hnf quantities hessian.stability_ratio")
def hnf(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """A training run spiked or died: what went wrong, where, how early could it be known, what to do?

    RUN is the folder a trainer left behind: checkpoints, a log, perhaps the batches. It is only ever read.
    """


@verb("hnf report runs/gpt-small", "hnf report runs/gpt-small --steps 1000:2000 --every 2 --out why")
def report(
    run_path: RunPath,
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    device: Device = DeviceName.auto,
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    manifest: Manifest = None,
    model: Model = None,
    rule: Rule = RuleName.robust,
    force: Force = False,
    plan: ShowPlan = False,
    heat: Map = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what went wrong in a run, and where.

    Profiles RUN at every checkpoint, finds its loss spikes, relates the two, and writes one page (index.html)
    with its pictures and tables: which layer went wrong first, how early that could have been known, whether
    that is more than chance, the last healthy checkpoint, and what to do.
    """
    run = open_input(run_path, manifest)
    settings = profile_settings(tier, steps, every, layers, device, dtype, rows, replay)
    folder, remark = output_folder(out, (run,), force=force)
    if plan:
        return _print_plans((run,), settings, (folder,), model, as_json)
    _remark(run, remark, quiet)
    from hnf_offline.report import write_report

    with Reporter("profile", tier, quiet=quiet) as tell:
        done = analyse(run, settings, folder, rule=rule, command=_command(), model=model, on_progress=tell)
    page = write_report(done.findings, done.log, done.profile, folder, command=_command())
    if as_json:
        return emit_json(done.findings.to_json())
    if not quiet:
        from hnf_offline.report import summary

        emit(summary(done.findings, **terminal()))
        if heat:
            _print_map(done.profile, done.findings)
    return emit(str(relative(page)))


@verb("hnf profile runs/gpt-small --tier gradient", "hnf profile runs/gpt-small --plan")
def profile(
    run_path: RunPath,
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    device: Device = DeviceName.auto,
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    manifest: Manifest = None,
    model: Model = None,
    force: Force = False,
    plan: ShowPlan = False,
    heat: Map = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure every checkpoint of a run.

    Writes one long table, profile.parquet. What was measured before is not measured again.
    """
    run = open_input(run_path, manifest)
    settings = profile_settings(tier, steps, every, layers, device, dtype, rows, replay)
    folder, remark = output_folder(out, (run,), force=force)
    if not run.checkpoints:
        raise _no_checkpoints(run)
    if plan:
        return _print_plans((run,), settings, (folder,), model, as_json)
    _remark(run, remark, quiet)
    with Reporter("profile", tier, quiet=quiet) as tell:
        measured = measure(run, settings, folder, model=model, on_progress=tell)
    table = measured.table
    file = relative(folder / "profile.parquet")
    names = sorted(table["quantity"].unique().to_list())
    told: dict[str, Any] = {
        "schema": 1,
        "profile": str(file),
        "rows": len(table),
        "checkpoints": table["step"].n_unique(),
        "layers": table["layer"].n_unique(),
        "quantities": names,
    }
    if as_json:
        return emit_json(told)
    if not quiet:
        if heat:
            _print_map(table)
        emit(
            f"{told['rows']} values: {told['checkpoints']} checkpoints, {told['layers']} layers, "
            f"{len(names)} quantities"
        )
    return emit(str(file))


@verb("hnf diff runs/spiky runs/steady", "hnf diff runs/a runs/b --replay validation.npz --json")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of the first run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of the second run.")],
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    device: Device = DeviceName.auto,
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    model: Model = None,
    rule: Rule = RuleName.robust,
    force: Force = False,
    plan: ShowPlan = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say where, and in what, two runs part.

    Aligns A and B by step: configuration, loss, every measured quantity of every layer, and weights; and
    lists what cannot be compared. Results go to reports/<A>-vs-<B> unless --out says otherwise.
    """
    runs = open_input(a, None), open_input(b, None)
    settings = profile_settings(tier, steps, every, layers, device, dtype, rows, replay)
    folder, _ = output_folder(out, runs, force=force)
    rooms = folder / "a", folder / "b"
    if plan:
        return _print_plans(runs, settings, rooms, model, as_json)
    from hnf_offline.diff import compare
    from hnf_offline.report import write_comparison

    began = time.monotonic()
    done = []
    for label, run, room in zip("AB", runs, rooms, strict=True):
        _remark(run, "", quiet)
        borrow_shards(run, room)
        with Reporter(f"profile {label}", tier, quiet=quiet) as tell:
            done.append(
                analyse(run, settings, room, rule=rule, command=_command(), model=model, on_progress=tell)
            )
    of_a, of_b = done
    comparison = compare(
        of_a.findings, of_b.findings, of_a.run, of_b.run, of_a.profile, of_b.profile,
        replay=replay, made=made_by(_command(), device, time.monotonic() - began, rule),
    )  # fmt: skip
    page = write_comparison(
        comparison, of_a.log, of_b.log, of_a.profile, of_b.profile, folder, command=_command()
    )
    if as_json:
        return emit_json(comparison.to_json())
    if not quiet:
        from hnf_offline.report import comparison_summary

        emit(comparison_summary(comparison, **terminal()))
    return emit(str(relative(page)))


@verb("hnf monitor runs/gpt-small", "hnf monitor runs/gpt-small --tier gradient --json")
def monitor(
    run_path: RunPath,
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    device: Device = DeviceName.auto,
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    manifest: Manifest = None,
    model: Model = None,
    rule: Rule = RuleName.robust,
    force: Force = False,
    plan: ShowPlan = False,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Print what a live monitor would have said.

    Line by line in order of time: no line uses anything that was not known at its step.
    """
    run = open_input(run_path, manifest)
    settings = profile_settings(tier, steps, every, layers, device, dtype, rows, replay)
    folder, remark = output_folder(out, (run,), force=force)
    if plan:
        return _print_plans((run,), settings, (folder,), model, as_json)
    _remark(run, remark, quiet)
    with Reporter("profile", tier, quiet=quiet) as tell:
        done = analyse(run, settings, folder, rule=rule, command=_command(), model=model, on_progress=tell)
    if as_json:
        whole = done.findings.to_json()
        return emit_json({key: whole[key] for key in ("schema", "run", "alarms", "spikes")})
    from hnf_offline.report import monitor_lines

    return emit("\n".join(monitor_lines(done.findings)))


@verb("hnf spikes runs/gpt-small/trainer_state.json", "hnf spikes train.jsonl --rule olmo --json")
def spikes(
    path: LogPath,
    rule: Rule = RuleName.robust,
    manifest: Manifest = None,
    as_json: Json = False,
) -> None:
    """Find the loss spikes of a training log.

    Each with its onset, peak and end. Needs no checkpoints.
    """
    run = open_input(path, manifest)
    if run.log is None:
        raise InputError("has no training log that can be read", path=path, remedy="name the log file itself")
    from hnf_offline.detect.spikes import find_spikes
    from hnf_offline.findings import SCHEMA, plain

    found = find_spikes(run.log.rows, rule=rule, resume_steps=run.resume_steps)
    if as_json:
        from dataclasses import asdict

        return emit_json(
            plain({"schema": SCHEMA, "rule": rule.value, "spikes": [asdict(spike) for spike in found]})
        )
    from hnf_offline.report import spikes_table

    return emit(spikes_table(found, **terminal()))


@verb("hnf quantities --tier curvature", "hnf quantities hessian.stability_ratio")
def quantities(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Explain this quantity.")] = None,
    tier: Annotated[TierName | None, typer.Option("--tier", help="Only this tier.")] = None,
    as_json: Json = False,
) -> None:
    """List what can be measured, or explain it.

    With NAME: formula, unit, how to read it, what it cannot show, and its source.
    """
    width = terminal()["width"]
    chosen = entries(name, None if tier is None else tier.value)
    if as_json:
        return emit_json({"schema": 1, "quantities": chosen})
    return emit(explanation(chosen[0], width) if name else listing(chosen, width))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error a user can meet becomes one line on stderr.

    Returns:
        The exit code: 0 done, 2 bad usage or input, 130 interrupted, 141 nobody reads the output.
    """
    return exit_code(typer.main.get_command(app), arguments)


def _no_checkpoints(run: Run) -> UserError:
    return InputError(
        "holds no checkpoint that can be read",
        path=run.path,
        remedy="hnf spikes reads logs alone; see the layouts in README.md, or use --manifest FILE",
    )


def _remark(run: Run, remark: str, quiet: bool) -> None:
    """Tell on stderr what was passed over and what is missing, unless asked to be quiet."""
    if quiet:
        return
    if remark:
        note(remark)
    for skipped in run.skipped[:5]:
        note(
            f"skipped {relative(skipped.path)}: {skipped.reason}"
            + (f"; {skipped.remedy}" if skipped.remedy else "")
        )
    if len(run.skipped) > 5:
        note(f"skipped {len(run.skipped) - 5} more; the report lists them all")


def _print_plans(
    runs: tuple[Run, ...],
    settings: ProfileSettings,
    folders: tuple[Path, ...],
    model: str | None,
    as_json: bool,
) -> None:
    told = plans(runs, settings, folders, model=model)
    if as_json:
        from hnf_offline.findings import plain

        return emit_json(plain({"schema": 1, "plans": told}))
    return emit("\n\n".join(plan_text(one) for one in told))


def _print_map(table: pl.DataFrame, findings: Findings | None = None) -> None:
    from hnf_offline.report import heat_map

    emit(heat_map(table, findings=findings, **terminal()))


def _command() -> str:
    return shlex.join(["hnf", *sys.argv[1:]])
