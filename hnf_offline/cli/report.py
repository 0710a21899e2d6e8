"""`hnf report`: what went wrong in a run, and where."""

from __future__ import annotations

from dataclasses import replace

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.remarks import check_first, remarks, typed_command
from hnf_offline.cli.results import print_map, print_plans
from hnf_offline.errors import UsageError
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    Column,
    Density,
    Device,
    Every,
    Explain,
    FailOn,
    FailOnName,
    Force,
    Json,
    Layers,
    Manifest,
    Map,
    Model,
    NoMemoryMap,
    Out,
    Precision,
    PrecisionName,
    Prove,
    Quiet,
    Replay,
    Rows,
    Rule,
    RuleName,
    RunPath,
    ShowPlan,
    Steps,
    Tier,
    TierName,
    Traces,
    Zoom,
    ZoomName,
    profile_settings,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.output import output_folder, relative
from hnf_offline.pipeline import analyse, open_input
from hnf_offline.printing import emit, emit_json, terminal
from hnf_offline.progress import Reporter


@verb(
    "hnf report runs/gpt-small",
    "hnf report runs/gpt-small --steps 1000:2000 --every 2 --out why",
    "hnf report runs/gpt-small --prove",
    "hnf report runs/gpt-small --explain 2",
)
def report(
    context: typer.Context,
    run_path: RunPath,
    out: Out = None,
    tier: Tier = TierName.curvature,
    steps: Steps = None,
    every: Every = 1,
    layers: Layers = None,
    traces: Traces = 0,
    density: Density = False,
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
    zoom: Zoom = ZoomName.auto,
    prove: Prove = False,
    fail_on: FailOn = None,
    heat: Map = False,
    explain: Explain = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what went wrong in a run, and where.

    Profiles RUN at every checkpoint, finds its loss spikes, relates the two, and writes one page (index.html)
    with its pictures and tables: which layer went wrong first, how early that could have been known, whether
    that is more than chance, the last healthy checkpoint, and what to do.
    """
    if explain is not None and (quiet or as_json):
        raise UsageError("--explain tells a spike in words", remedy="leave out --quiet and --json")
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
        from_run=from_run,
    )
    folder, remark = output_folder(out, (run,), force=force)
    if plan:
        print_plans(
            (run,), settings, (folder,), model, as_json,
            zoom=zoom is ZoomName.auto, options=choices(context, run, from_run),
        )  # fmt: skip
        return
    remarks(run, remark, quiet)
    checked = check_first(run, quiet, model, settings.device)
    from hnf_offline.report import write_report, write_retraining

    with Reporter("profile", settings.tier, quiet=quiet) as tell:
        done = analyse(
            run, settings, folder, rule=from_run.get("rule", rule), command=typed_command(), model=model,
            zoom=zoom is ZoomName.auto, prove=prove, on_progress=tell,
        )  # fmt: skip
    done = replace(done, findings=checked.told(done.findings))
    for evidence, proof in done.evidence():
        write_retraining(proof, done.log, (folder / evidence).parent, command=typed_command())
    page = write_report(done.findings, done.log, done.profile, folder, command=typed_command())
    if as_json:
        emit_json(done.findings.to_json())
    else:
        if not quiet:
            from hnf_offline.report import explained, summary

            shown = terminal()
            told = done.findings
            emit(summary(told, **shown) if explain is None else explained(told, explain, **shown))
            if heat:
                print_map(done.profile, told)
        emit(str(relative(page)))
    if fail_on is FailOnName.spike and done.findings.spikes:
        raise typer.Exit(1)
