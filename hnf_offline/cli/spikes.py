"""`hnf spikes`: the loss spikes of a log and what else it shows, without checkpoints."""

from __future__ import annotations

import typer

from hnf_offline.cli.app import verb
from hnf_offline.errors import InputError, UsageError
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
)
from hnf_offline.origin import asked_by_run
from hnf_offline.output import output_folder, relative
from hnf_offline.pipeline import open_input
from hnf_offline.printing import emit, emit_json, terminal


@verb(
    "hnf spikes runs/gpt-small/trainer_state.json",
    "hnf spikes train.jsonl --out reports/train",
    "hnf spikes train.jsonl --target 2.5 --scaler 1024,1.5,200",
    "hnf spikes train.csv --column loss=train/lm_loss --rule olmo --json",
)
def spikes(
    context: typer.Context,
    path: LogPath,
    out: PictureFolder = None,
    force: Force = False,
    rule: Rule = RuleName.robust,
    manifest: Manifest = None,
    column: Column = None,
    target: Target = None,
    scaler: Scalers = None,
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
    rule = RuleName(asked_by_run(context, run.said).get("rule", rule))
    if run.log is None:
        raise InputError("has no training log that can be read", path=path, remedy="name the log file itself")
    folder, remark = (None, "") if out is None else output_folder(out, (run,), force=force)
    if remark and not force:
        raise UsageError(
            "holds the report of another run", path=out, remedy="choose another folder with --out, or --force"
        )
    from hnf_offline.relate.log_alone import log_findings

    findings = log_findings(run, run.log, rule=rule.value, target=target, scalings=scalings)
    written = []
    if folder is not None:
        from hnf_offline.report import write_log_findings

        written = [str(relative(file)) for file in write_log_findings(findings, run.log.rows, folder)]
    if as_json:
        return emit_json(findings.to_json())
    from hnf_offline.report import log_summary

    return emit("\n".join([log_summary(findings, **terminal()), *written]))


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
