"""`hnf spikes`: the loss spikes of a log, without checkpoints."""

from __future__ import annotations

from hnf_offline.cli.app import verb
from hnf_offline.errors import InputError
from hnf_offline.options import Column, Json, LogPath, Manifest, Rule, RuleName
from hnf_offline.pipeline import open_input
from hnf_offline.printing import emit, emit_json, terminal


@verb("hnf spikes runs/gpt-small/trainer_state.json", "hnf spikes train.jsonl --rule olmo --json")
def spikes(
    path: LogPath,
    rule: Rule = RuleName.robust,
    manifest: Manifest = None,
    column: Column = None,
    as_json: Json = False,
) -> None:
    """Find the loss spikes of a training log.

    Each with its onset, peak and end. Needs no checkpoints.
    """
    run = open_input(path, manifest, column)
    if run.log is None:
        raise InputError("has no training log that can be read", path=path, remedy="name the log file itself")
    from hnf_offline.detect.spikes import find_spikes
    from hnf_offline.findings import SCHEMA, plain

    found = find_spikes(run.log.rows, rule=rule, resume_steps=run.resume_steps)
    if as_json:
        from dataclasses import asdict

        return emit_json(
            plain({"schema": SCHEMA, "rule": rule.value, "spikes": [asdict(spike) for spike in found]})
        )
    from hnf_offline.report import spikes_table

    return emit(spikes_table(found, **terminal()))
