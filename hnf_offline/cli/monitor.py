"""`hnf monitor`: what a live monitor would have said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.remarks import remarks, typed_command
from hnf_offline.cli.results import print_plans
from hnf_offline.errors import UsageError
from hnf_offline.follow import Following, place
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    Column,
    Device,
    Every,
    Follow,
    Force,
    Interval,
    Json,
    Layers,
    Manifest,
    Model,
    NoMemoryMap,
    Out,
    Precision,
    PrecisionName,
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
    UntilIdle,
    profile_settings,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.output import output_folder
from hnf_offline.pipeline import InterruptedRunError, analyse, open_input
from hnf_offline.printing import emit, emit_json, emit_now, json_line
from hnf_offline.progress import Reporter, StatusLine, note
from hnf_offline.run.logs.columns import named_columns

if TYPE_CHECKING:
    from hnf_offline.follow import Waiting
    from hnf_offline.profile.settings import Progress


@verb(
    "hnf monitor runs/gpt-small",
    "hnf monitor runs/gpt-small --tier gradient --json",
    "hnf monitor runs/gpt-small --follow --tier stability --interval 30",
)
def monitor(
    context: typer.Context,
    run_path: RunPath,
    follow: Follow = False,
    interval: Interval = 10.0,
    until_idle: UntilIdle = None,
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    accuracy: Accuracy = AccuracyName.standard,
    device: Device = "auto",
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    manifest: Manifest = None,
    column: Column = None,
    no_mmap: NoMemoryMap = False,
    model: Model = None,
    rule: Rule = RuleName.robust,
    force: Force = False,
    plan: ShowPlan = False,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Print what a live monitor would have said.

    Line by line in order of time: no line uses anything that was not known at its step.

    With --follow the lines so far are printed, and each new one as log rows and checkpoints appear; with --json
    each is one JSON document on one line (JSON lines), else --json is one document. A checkpoint is measured once, when
    it is whole and the log has passed it, and holds back the lines of later steps until then; where nothing changes for
    five looks, what is there is taken as it is. Nothing is said twice or taken back. So the lines are those that
    hnf monitor prints afterwards, except: a checkpoint that appears late, after the log was told for its step,
    is told late; after a restart the lines of the abandoned attempt stay; checkpoints and log files that the trainer
    deletes meanwhile are still known.
    """
    if not follow and until_idle is not None:
        raise UsageError("--until-idle stops following", remedy="add --follow")
    live = follow and not plan
    run = (
        place(run_path, manifest) if live else open_input(run_path, manifest, column, memory_map=not no_mmap)
    )
    from_run = asked_by_run(context, run.said)
    settings = profile_settings(
        tier, steps, every, layers, device, dtype, rows, replay, accuracy=accuracy, from_run=from_run
    )
    rule = RuleName(from_run.get("rule", rule))
    folder, remark = output_folder(out, (run,), force=force)
    if plan:
        options = choices(context, run, from_run)
        return print_plans((run,), settings, (folder,), model, as_json, options=options)
    if live:
        return _follow(
            Following(
                run.path, settings, folder, interval=interval, until_idle=until_idle, rule=rule.value,
                manifest=manifest, columns=named_columns(column), memory_map=not no_mmap, model=model,
            ),
            quiet,
            as_json,
        )  # fmt: skip
    remarks(run, remark, quiet)
    with Reporter("profile", settings.tier, quiet=quiet) as tell:
        done = analyse(
            run, settings, folder, rule=rule, command=typed_command(), model=model, on_progress=tell
        )
    if as_json:
        whole = done.findings.to_json()
        return emit_json({key: whole[key] for key in ("schema", "run", "alarms", "spikes")})
    from hnf_offline.detect.live import certain_ends, onset_losses
    from hnf_offline.report import monitor_lines

    spikes, log = done.findings.spikes, done.log
    losses = {} if log is None else onset_losses(log, spikes)
    ends = {} if log is None else certain_ends(log, spikes)
    lines = monitor_lines(done.findings, losses=losses, ends=ends, restarts=done.run.resume_steps)
    nothing = (
        "no alarm; there is no log in which a spike would show" if log is None else "no alarm and no spike"
    )
    return emit("\n".join(lines) or nothing)


def _follow(following: Following, quiet: bool, as_json: bool) -> None:
    """Print what is new until the user stops, or the run is idle.

    Raises:
        InterruptedRunError: when the user stops it.
    """
    from hnf_offline.follow import follow
    from hnf_offline.report import spelled_remarks

    status = StatusLine(quiet=quiet)

    def tell(text: str) -> None:
        status.clear()
        if not quiet:
            note(text)

    def wait(waiting: Waiting) -> None:
        status.show(_waiting(waiting))

    with Reporter("profile", following.settings.tier, quiet=quiet) as reporter:

        def progress(one: Progress) -> None:
            status.clear()
            reporter(one)

        followed = replace(following, on_progress=progress, on_wait=wait, note=tell)
        try:
            for new in follow(followed):
                status.clear()
                lines = [json_line(one.to_json()) for one in new] if as_json else spelled_remarks(new)
                emit_now("\n".join(lines))
        except KeyboardInterrupt as stop:
            raise InterruptedRunError(0, 0, "what was measured is kept; run again to go on") from stop
        finally:
            status.clear()


def _waiting(waiting: Waiting) -> str:
    log = "no log row yet" if waiting.step is None else f"log at step {waiting.step}"
    pending = f", {waiting.pending} being written" if waiting.pending else ""
    return f"{log}, {waiting.measured} checkpoints measured{pending}; nothing new for {waiting.seconds:.0f} s"
