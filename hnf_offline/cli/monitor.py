"""`hnf monitor`: what a live monitor would have said."""

from __future__ import annotations

from hnf_offline.cli.app import verb
from hnf_offline.cli.remarks import remarks, typed_command
from hnf_offline.cli.results import print_plans
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    Column,
    Device,
    Every,
    Force,
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
    profile_settings,
)
from hnf_offline.output import output_folder
from hnf_offline.pipeline import analyse, open_input
from hnf_offline.printing import emit, emit_json
from hnf_offline.progress import Reporter


@verb("hnf monitor runs/gpt-small", "hnf monitor runs/gpt-small --tier gradient --json")
def monitor(
    run_path: RunPath,
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
    """
    run = open_input(run_path, manifest, column, memory_map=not no_mmap)
    settings = profile_settings(tier, steps, every, layers, device, dtype, rows, replay, accuracy=accuracy)
    folder, remark = output_folder(out, (run,), force=force)
    if plan:
        return print_plans((run,), settings, (folder,), model, as_json)
    remarks(run, remark, quiet)
    with Reporter("profile", tier, quiet=quiet) as tell:
        done = analyse(
            run, settings, folder, rule=rule, command=typed_command(), model=model, on_progress=tell
        )
    if as_json:
        whole = done.findings.to_json()
        return emit_json({key: whole[key] for key in ("schema", "run", "alarms", "spikes")})
    from hnf_offline.report import monitor_lines

    return emit("\n".join(monitor_lines(done.findings)))
