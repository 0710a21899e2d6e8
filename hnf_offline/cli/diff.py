"""`hnf diff`: where, and in what, two runs part."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.remarks import remarks, typed_command
from hnf_offline.cli.results import print_plans
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    BetweenRuns,
    Device,
    Every,
    Force,
    Json,
    Layers,
    Model,
    Out,
    Precision,
    PrecisionName,
    Quiet,
    Replay,
    Rows,
    Rule,
    RuleName,
    ShowPlan,
    Steps,
    Tier,
    TierName,
    profile_settings,
)
from hnf_offline.origin import asked_by_both, asked_by_run, choices
from hnf_offline.output import borrow_shards, output_folder, relative
from hnf_offline.pipeline import analyse, made_by, open_input
from hnf_offline.printing import emit, emit_json, terminal
from hnf_offline.progress import Reporter

if TYPE_CHECKING:
    from hnf_offline.comparison import LinearBarrier


@verb("hnf diff runs/spiky runs/steady", "hnf diff runs/a runs/b --replay validation.npz --json")
def diff(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of the first run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of the second run.")],
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
    model: Model = None,
    barrier: BetweenRuns = False,
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
    from_run = asked_by_run(context, asked_by_both(runs[0].said, runs[1].said))
    settings = profile_settings(
        tier, steps, every, layers, device, dtype, rows, replay, accuracy=accuracy, from_run=from_run
    )
    rule = RuleName(from_run.get("rule", rule))
    folder, _ = output_folder(out, runs, force=force)
    rooms = folder / "a", folder / "b"
    if plan:
        options = choices(context, runs[0], from_run)
        return print_plans(runs, settings, rooms, model, as_json, barrier=barrier, options=options)
    from hnf_offline.diff import compare
    from hnf_offline.report import write_comparison

    began = time.monotonic()
    done = []
    for label, run, room in zip("AB", runs, rooms, strict=True):
        remarks(run, "", quiet)
        borrow_shards(run, room)
        with Reporter(f"profile {label}", settings.tier, quiet=quiet) as tell:
            done.append(
                analyse(
                    run, settings, room, rule=rule, command=typed_command(), model=model, on_progress=tell
                )
            )
    of_a, of_b = done
    barriers: tuple[LinearBarrier, ...] = ()
    without: tuple[str, ...] = ()
    if barrier:
        from hnf_offline.profile.barrier import barriers_between

        barriers, without = barriers_between(of_a.run, of_b.run, settings, model_factory=model)
    comparison = compare(
        of_a.findings, of_b.findings, of_a.run, of_b.run, of_a.profile, of_b.profile,
        replay=settings.replay, made=made_by(typed_command(), settings.device, time.monotonic() - began, rule),
        barriers=barriers, no_barriers=without,
    )  # fmt: skip
    page = write_comparison(
        comparison, of_a.log, of_b.log, of_a.profile, of_b.profile, folder, command=typed_command()
    )
    if as_json:
        return emit_json(comparison.to_json())
    if not quiet:
        from hnf_offline.report import comparison_summary

        emit(comparison_summary(comparison, **terminal()))
    return emit(str(relative(page)))
