"""`hnf check`: is this series of checkpoints sound?"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.results import options_text, told_options
from hnf_offline.errors import InputError, UsageError, spelled
from hnf_offline.options import (
    Column,
    Device,
    Every,
    Json,
    Manifest,
    Model,
    NoMemoryMap,
    RunPath,
    Silent,
    Steps,
    one_device,
    step_range,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.output import relative
from hnf_offline.pipeline import open_input
from hnf_offline.printing import check_plan_text, emit, emit_json, terminal
from hnf_offline.progress import Reporter

Cheap = Annotated[
    bool,
    typer.Option("--cheap", help="Names, headers, JSON and the log only: read no tensor, replay nothing."),
]


class CheckTier(StrEnum):
    """How much `hnf check` does, in the words of the tiers of a profile."""

    weights = "weights"
    forward = "forward"


Tier = Annotated[
    CheckTier,
    typer.Option(
        "--tier", help="weights: read every tensor, run no model; forward: also replay a few checkpoints."
    ),
]
Replay = Annotated[
    Path | None,
    typer.Option(
        "--replay",
        metavar="FILE",
        help="Replay these rows against the log; its array steps says of which step each is (.safetensors, .npz).",
    ),
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Print what would be checked; read no tensor, replay nothing.")
]


@verb(
    "hnf check runs/gpt-small",
    "hnf check runs/gpt-small --plan",
    "hnf check runs/gpt-small --cheap --json",
    "hnf check runs/gpt-small --steps 1000:",
)
def check(
    context: typer.Context,
    run_path: RunPath,
    cheap: Cheap = False,
    tier: Tier = CheckTier.forward,
    steps: Steps = None,
    every: Every = 1,
    manifest: Manifest = None,
    column: Column = None,
    no_mmap: NoMemoryMap = False,
    model: Model = None,
    device: Device = "auto",
    replay: Replay = None,
    plan: Plan = False,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Say whether the checkpoints of a run are a sound series.

    Looks for the same weights under different steps, steps that do not descend from the one before, several runs
    in one folder, missing shards, NaN weights, lost ties, optimizer state, learning rates and step counts that do
    not fit, how the model was initialised, and replays a few checkpoints against the log. Says what could not be
    looked at, and why.
    Exit code 1 where something is wrong.
    """
    first, last = step_range(steps)
    if replay is not None and (cheap or tier is CheckTier.weights):
        raise UsageError(
            f"--replay is not read by {'--cheap' if cheap else '--tier weights'}",
            remedy="leave out one of them",
        )
    if replay is not None and not replay.is_file():
        raise InputError(
            "no such file", path=replay, remedy="--replay takes a .safetensors or .npz of tokens or images"
        )
    run = open_input(run_path, manifest, column, memory_map=not no_mmap)
    # A sound series is one that was looked at whole: of run.toml only the device counts.
    from_run = asked_by_run(context, run.said, without=("steps", "every", "tier", "replay"))
    device = one_device(from_run.get("device", device))
    if run.checkpoints and not any(
        (first is None or one.step >= first) and (last is None or one.step <= last) for one in run.checkpoints
    ):
        raise InputError(
            "no checkpoint lies in the steps asked for", path=run.path, remedy="widen --steps A:B"
        )
    from hnf_offline.check import check_run, plan_check, with_rows

    run = run if replay is None else with_rows(run, replay)
    forward = tier is CheckTier.forward
    if plan:
        planned = plan_check(
            run, cheap=cheap, forward=forward, first=first, last=last, every=every, model=model
        )
        described = {"run": run.name, "path": spelled(relative(run.path)), **asdict(planned)}
        options = choices(context, run, from_run)
        if as_json:
            emit_json({"schema": 1, "plans": [described], "options": told_options(options)})
        else:
            emit("\n\n".join([check_plan_text(described), *options_text(options)]))
        return
    with Reporter("check", "weights", quiet=quiet) as tell:
        done = check_run(
            run, cheap=cheap, first=first, last=last, every=every, model=model, device=device, forward=forward,
            on_progress=tell,
        )  # fmt: skip
    if not any(one.looked_at for one in done.checks):
        raise InputError(
            "nothing in it could be checked", path=run.path, remedy="see docs/formats.md for layouts and logs"
        )
    if as_json:
        emit_json(done.to_json())
    else:
        from hnf_offline.report import check_summary, faults_table

        table = faults_table(done.faults, **terminal())
        told = [(one.name, one.looked_at, one.skipped_because) for one in done.checks]
        emit(
            "\n".join(
                part
                for part in (table, check_summary(done.faults, told, done.checkpoints, **terminal()))
                if part
            )
        )
    if done.wrong:
        raise typer.Exit(1)
