"""`hnf spikes`: the loss spikes of a log and what else it shows, without checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.results import options_text, told_options
from hnf_offline.errors import InputError, UsageError, spelled
from hnf_offline.options import (
    Column,
    Force,
    Json,
    LogPath,
    Manifest,
    PictureFolder,
    Rule,
    RuleName,
    Scalers,
    Target,
    step_range,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.output import output_folder, relative
from hnf_offline.pipeline import open_input
from hnf_offline.printing import emit, emit_json, fields_text, terminal

if TYPE_CHECKING:
    from hnf_offline.run.records import Log, Run

Steps = Annotated[
    str | None,
    typer.Option("--steps", metavar="A:B", help="Only rows from step A to B; either may be left out."),
]
EveryRow = Annotated[
    int,
    typer.Option(
        "--every", metavar="N", min=1, help="Only every N-th row: what a coarser log would have shown."
    ),
]
PlanOfLog = Annotated[
    bool,
    typer.Option("--plan", help="Print which rows and columns would be looked at; find and write nothing."),
]
OnlyPaths = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only what --out has written; without --out nothing.")
]


@verb(
    "hnf spikes runs/gpt-small/trainer_state.json",
    "hnf spikes train.jsonl --out reports/train",
    "hnf spikes train.jsonl --steps 1000: --target 2.5 --scaler 1024,1.5,200",
    "hnf spikes train.csv --column loss=train/lm_loss --rule olmo --json",
)
def spikes(
    context: typer.Context,
    path: LogPath,
    out: PictureFolder = None,
    force: Force = False,
    steps: Steps = None,
    every: EveryRow = 1,
    rule: Rule = RuleName.robust,
    manifest: Manifest = None,
    column: Column = None,
    target: Target = None,
    scaler: Scalers = None,
    plan: PlanOfLog = False,
    quiet: OnlyPaths = False,
    as_json: Json = False,
) -> None:
    """Find the loss spikes of a training log, and what else is wrong in it.

    Spikes with onset, peak and end; divergences, plateaus, losses that are not finite, a collapsed loss scale, skipped
    steps, slower training, repeated rows and restarts. Then the learning curve (power law, plateau, overfitting,
    steps to a target, jumps of the learning rate), gradient norms, and what other loss scalers would have skipped.
    Needs no checkpoints. Writes nothing without --out.
    """
    scalings = [_scaling(text) for text in scaler or ()]
    run = open_input(path, manifest, column, log_only=True)
    # What run.toml asks for of checkpoints is not meant for the rows of a log.
    from_run = asked_by_run(context, run.said, without=("steps", "every"))
    rule = RuleName(from_run.get("rule", rule))
    if run.log is None:
        raise InputError("has no training log that can be read", path=path, remedy="name the log file itself")
    folder, remark = (None, "") if out is None else output_folder(out, (run,), force=force)
    if remark and not force:
        raise UsageError(
            "holds the report of another run", path=out, remedy="choose another folder with --out, or --force"
        )
    from hnf_offline.relate.log_alone import log_findings, part_of

    log = part_of(run.log, *step_range(steps), every)
    if plan:
        told = _planned(run, log, folder, rule)
        if as_json:
            return emit_json({
                "schema": 1,
                "plans": [told],
                "options": told_options(choices(context, run, from_run)),
            })
        shown = {**told, "out": told["out"] or "nothing is written without --out"}
        return emit("\n\n".join([fields_text(shown), *options_text(choices(context, run, from_run))]))
    findings = log_findings(run, log, rule=rule.value, target=target, scalings=scalings)
    written = []
    if folder is not None:
        from hnf_offline.report import write_log_findings

        written = [str(relative(file)) for file in write_log_findings(findings, log.rows, folder)]
    if as_json:
        return emit_json(findings.to_json())
    if quiet:
        return emit("\n".join(written)) if written else None
    from hnf_offline.report import log_summary

    return emit("\n".join([log_summary(findings, **terminal()), *written]))


def _planned(run: Run, log: Log, folder: Path | None, rule: str) -> dict[str, Any]:
    """Say what would be looked at.

    Returns:
        The fields of a plan; `out` is None where nothing would be written.
    """
    rows = log.rows
    absent = [name for name in ("grad_norm", "learning_rate") if rows[name].null_count() == rows.height]
    return {
        "run": run.name,
        "path": spelled(relative(run.path)),
        "out": None if folder is None else str(relative(folder)),
        "files": [spelled(relative(file)) for file in log.files],
        "formats": list(log.formats),
        "rows": rows.height,
        "losses": rows.height - rows["loss"].null_count(),
        "steps": f"{rows['step'][0]} to {rows['step'][-1]}",
        "columns": [f"{ours} = {theirs}" for ours, theirs in log.columns.items()],
        "rule": str(rule),
        "missing": [f"no {name} in the log" for name in absent],
        "notes": list(log.notes),
    }


def _scaling(text: str) -> tuple[float, float, int]:
    from hnf_offline.rerun.policies.arguments import fields, number, whole

    try:
        initial, growth, interval = fields(text, ["INIT", "GROWTH", "INTERVAL"], required=3)
        return (
            number(str(initial), "INIT", above=0, most=2.0**127),
            number(str(growth), "GROWTH", above=1, most=2.0**127),
            whole(str(interval), "INTERVAL"),
        )
    except ValueError as error:
        raise UsageError(f"--scaler {text}: {error}", remedy="write it as 1024,1.5,200") from error
