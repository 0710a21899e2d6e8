"""`hnf spikes`: the loss spikes of a log and what else it shows, without checkpoints."""

from __future__ import annotations

from hnf_offline.cli.app import verb
from hnf_offline.errors import InputError, UsageError
from hnf_offline.options import Column, Force, Json, LogPath, Manifest, PictureFolder, Rule, RuleName
from hnf_offline.output import output_folder, relative
from hnf_offline.pipeline import open_input
from hnf_offline.printing import emit, emit_json, terminal


@verb(
    "hnf spikes runs/gpt-small/trainer_state.json",
    "hnf spikes train.jsonl --out reports/train",
    "hnf spikes train.csv --column loss=train/lm_loss --rule olmo --json",
)
def spikes(
    path: LogPath,
    out: PictureFolder = None,
    force: Force = False,
    rule: Rule = RuleName.robust,
    manifest: Manifest = None,
    column: Column = None,
    as_json: Json = False,
) -> None:
    """Find the loss spikes of a training log, and what else is wrong in it.

    Spikes with onset, peak and end; divergences, plateaus, losses that are not finite, a collapsed loss scale, skipped
    steps, slower training, repeated rows and restarts. Needs no checkpoints. Writes nothing without --out.
    """
    run = open_input(path, manifest, column, log_only=True)
    if run.log is None:
        raise InputError("has no training log that can be read", path=path, remedy="name the log file itself")
    folder, remark = (None, "") if out is None else output_folder(out, (run,), force=force)
    if remark and not force:
        raise UsageError(
            "holds the report of another run", path=out, remedy="choose another folder with --out, or --force"
        )
    from hnf_offline.relate.log_alone import log_findings

    findings = log_findings(run, run.log, rule=rule.value)
    written = []
    if folder is not None:
        from hnf_offline.report import write_log_findings

        written = [str(relative(file)) for file in write_log_findings(findings, run.log.rows, folder)]
    if as_json:
        return emit_json(findings.to_json())
    from hnf_offline.report import log_summary

    return emit("\n".join([log_summary(findings, **terminal()), *written]))
