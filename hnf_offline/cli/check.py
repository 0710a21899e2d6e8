"""`hnf check`: is this series of checkpoints sound?"""

from __future__ import annotations

from typing import Annotated

import typer

from hnf_offline.cli.app import verb
from hnf_offline.errors import InputError
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
from hnf_offline.origin import asked_by_run
from hnf_offline.pipeline import open_input
from hnf_offline.printing import emit, emit_json, terminal
from hnf_offline.progress import Reporter

Cheap = Annotated[
    bool,
    typer.Option("--cheap", help="Names, headers, JSON and the log only: read no tensor, replay nothing."),
]


@verb(
    "hnf check runs/gpt-small",
    "hnf check runs/gpt-small --cheap --json",
    "hnf check runs/gpt-small --steps 1000:",
)
def check(
    context: typer.Context,
    run_path: RunPath,
    cheap: Cheap = False,
    steps: Steps = None,
    every: Every = 1,
    manifest: Manifest = None,
    column: Column = None,
    no_mmap: NoMemoryMap = False,
    model: Model = None,
    device: Device = "auto",
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
    run = open_input(run_path, manifest, column, memory_map=not no_mmap)
    # A sound series is one that was looked at whole: of run.toml only the device counts.
    device = asked_by_run(context, run.said, without=("steps", "every")).get("device", device)
    if run.checkpoints and not any(
        (first is None or one.step >= first) and (last is None or one.step <= last) for one in run.checkpoints
    ):
        raise InputError(
            "no checkpoint lies in the steps asked for", path=run.path, remedy="widen --steps A:B"
        )
    from hnf_offline.check import check_run

    with Reporter("check", "weights", quiet=quiet) as tell:
        done = check_run(
            run, cheap=cheap, first=first, last=last, every=every, model=model, device=one_device(device),
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
