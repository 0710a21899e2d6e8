"""`hnf profile`: measure every checkpoint of a run."""

from __future__ import annotations

from typing import Any

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.remarks import no_checkpoints, remarks
from hnf_offline.cli.results import print_map, print_plans
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    Column,
    Density,
    Device,
    Every,
    Force,
    GradientCheck,
    Json,
    Koopman,
    Landscape,
    Layers,
    Manifest,
    Map,
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
    Steps,
    Tier,
    TierName,
    Traces,
    profile_settings,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.output import output_folder, relative
from hnf_offline.pipeline import measure, open_input
from hnf_offline.printing import emit, emit_json
from hnf_offline.progress import Reporter


@verb("hnf profile runs/gpt-small --tier gradient", "hnf profile runs/gpt-small --plan")
def profile(
    context: typer.Context,
    run_path: RunPath,
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    traces: Traces = 0,
    density: Density = False,
    gradient_check: GradientCheck = False,
    koopman: Koopman = False,
    landscape: Landscape = False,
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
    heat: Map = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure every checkpoint of a run.

    Writes one long table, profile.parquet. What was measured before is not measured again.
    """
    run = open_input(run_path, manifest, column, memory_map=not no_mmap)
    from_run = asked_by_run(context, run.said)
    settings = profile_settings(
        tier,
        steps,
        every,
        layers,
        device,
        dtype,
        rows,
        replay,
        accuracy=accuracy,
        traces=traces,
        density=density,
        gradient_check=gradient_check,
        koopman=koopman,
        landscape=landscape,
        from_run=from_run,
    )
    folder, remark = output_folder(out, (run,), force=force)
    if not run.checkpoints:
        raise no_checkpoints(run)
    if plan:
        options = choices(context, run, from_run)
        return print_plans((run,), settings, (folder,), model, as_json, options=options)
    remarks(run, remark, quiet)
    with Reporter("profile", settings.tier, quiet=quiet) as tell:
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
        "forwards": measured.forwards,
        "peak_bytes": measured.peak_bytes,
    }
    if as_json:
        return emit_json(told)
    if not quiet:
        if heat:
            print_map(table)
        emit(
            f"{told['rows']} values: {told['checkpoints']} checkpoints, {told['layers']} layers, "
            f"{len(names)} quantities"
        )
        if measured.forwards:
            emit(
                f"{measured.forwards:,.0f} forward passes a checkpoint, "
                f"{measured.peak_bytes / 2**20:,.0f} MiB at the peak"
            )
    return emit(str(file))
