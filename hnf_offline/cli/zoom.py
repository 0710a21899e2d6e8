"""`hnf zoom`: the steps between two checkpoints, retrained and measured one by one."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.remarks import remarks
from hnf_offline.cli.retraining import check_start, interrupted, print_plan, retraining_folder, tell
from hnf_offline.errors import UsageError
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    Column,
    Device,
    Force,
    Json,
    Layers,
    Manifest,
    Model,
    NoMemoryMap,
    Out,
    Precision,
    PrecisionName,
    Quiet,
    Replay,
    Rows,
    RunPath,
    ShowPlan,
    Tier,
    TierName,
    Twins,
    one_device,
    profile_settings,
    step_range,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.pipeline import open_input
from hnf_offline.progress import Reporter

From = Annotated[
    int | None,
    typer.Option("--from", metavar="STEP", min=0, help="Checkpoint to retrain from (required, or --steps)."),
]
To = Annotated[
    int | None,
    typer.Option("--to", metavar="STEP", min=1, help="Last step to retrain (required, or --steps)."),
]
Steps = Annotated[str | None, typer.Option("--steps", metavar="A:B", help="The same as --from A --to B.")]
EveryStep = Annotated[int, typer.Option("--every", metavar="N", min=1, help="Measure every N-th step.")]


@verb("hnf zoom runs/gpt-small --from 140 --to 160", "hnf zoom runs/gpt-small --steps 140:160 --plan")
def zoom(
    context: typer.Context,
    run_path: RunPath,
    start: From = None,
    stop: To = None,
    stretch: Steps = None,
    every: EveryStep = 1,
    tier: Tier = TierName.stability,
    layers: Layers = None,
    twins: Twins = 0,
    out: Out = None,
    accuracy: Accuracy = AccuracyName.standard,
    device: Device = "auto",
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    manifest: Manifest = None,
    column: Column = None,
    no_mmap: NoMemoryMap = False,
    model: Model = None,
    force: Force = False,
    plan: ShowPlan = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Retrain between two checkpoints and measure every step.

    Rebuilds model, optimizer, learning rates and batches from what RUN left behind, trains again from the
    checkpoint of --from to the step of --to, and first of all says whether that is the run: exact, close, or
    not, and why. Results go to reports/<RUN>-zoom-<FROM>-<TO> unless --out says otherwise.
    """
    start, stop = _between(start, stop, stretch)
    run = open_input(run_path, manifest, column, memory_map=not no_mmap)
    check_start(run, start)
    from_run = asked_by_run(context, run.said, without=("steps", "every"))
    settings = profile_settings(
        tier, None, 1, layers, device, dtype, rows, replay, accuracy=accuracy, from_run=from_run
    )
    one_device(settings.device)
    folder, remark = retraining_folder(out, run, f"zoom-{start}-{stop}", force=force)
    if plan:
        from hnf_offline.rerun.planning import plan_zoom

        planned = plan_zoom(
            run, start=start, stop=stop, settings=settings, out=folder, every=every, model=model
        )
        return print_plan(planned, run, folder, as_json=as_json, options=choices(context, run, from_run))
    remarks(run, remark, quiet)
    began = time.monotonic()
    from hnf_offline.rerun.zoom import zoom as retrain

    with Reporter("zoom", settings.tier, unit="step", quiet=quiet) as progress:
        try:
            done = retrain(
                run, start=start, stop=stop, settings=settings, out=folder, every=every, model=model,
                twins=twins, on_progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt as stopped:
            raise interrupted(progress, "kept; run again to go on") from stopped
    return tell(
        done.retraining, run, folder, device=settings.device, seconds=time.monotonic() - began,
        quiet=quiet, as_json=as_json,
    )  # fmt: skip


def _between(start: int | None, stop: int | None, steps: str | None) -> tuple[int, int]:
    """Read the checkpoint to begin at and the last step, from two options or from one.

    Returns:
        Both.

    Raises:
        UsageError: if one of them is not said, or both are said twice, or the end does not come after the start.
    """
    if steps is not None:
        if start is not None or stop is not None:
            raise UsageError("--steps A:B says both --from and --to", remedy="leave out one or the other")
        start, stop = step_range(steps)
        if start is None or stop is None:
            raise UsageError(
                f"--steps {steps} has no {'start' if start is None else 'end'}, and steps are retrained from a "
                "checkpoint to a step",
                remedy="write it as 140:160",
            )
    for option, value in (("--from", start), ("--to", stop)):
        if value is None:
            raise UsageError(
                f"Missing option '{option}'",
                remedy="give --from and --to, or --steps A:B; see: hnf zoom --help",
            )
    assert start is not None and stop is not None
    if stop <= start:
        raise UsageError(
            f"--to {stop} does not come after --from {start}", remedy=f"write --to {start + 1} or later"
        )
    return start, stop
