"""The facts about the run that the report prints: what was read, what was missing, what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.errors import spelled
from hnf_offline.relate.series import column, points
from hnf_offline.run.assumed import assumed_state
from hnf_offline.run.records import Log, Missing, ModelSource, Run

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def run_facts(run: Run, profile: pl.DataFrame, gap: int | None, made: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a run in plain JSON values.

    Args:
        run: the run directory as found on disk.
        profile: the long table; may be empty.
        gap: checkpoint gap.
        made: may hold "parameters", the model's number of parameters.

    Returns:
        Name, path, checkpoints read and found and their steps, model, optimizer, gap, what is missing and
        skipped, resumes, and what was odd in the log.
    """
    read = sorted({int(step) for step in profile["step"].unique()}) if profile.width else []
    found = sorted({checkpoint.step for checkpoint in run.checkpoints} | set(read))
    rows = None if run.log is None else run.log.rows
    logged, _ = column(rows, "loss")
    parameters = made.get("parameters")
    return {
        "name": run.name,
        "path": spelled(run.path),
        "checkpoints": len(read),
        "checkpoints_found": len(found) + sum(item.checkpoint for item in run.skipped),
        "checkpoint_steps": found,
        "steps": [found[0], found[-1]] if found else None,
        "logged_steps": [int(logged[0]), int(logged[-1])] if logged.size else None,
        "model": _model(run.model),
        "parameters": int(parameters) if isinstance(parameters, int | float) else None,
        "optimizer": _optimizer(run, profile),
        "gap": gap,
        "missing": [{"what": item.what, "cost": _cost(item, run, profile)} for item in run.missing],
        "skipped": [
            {"path": spelled(item.path), "reason": spelled(item.reason), "remedy": item.remedy}
            for item in run.skipped
        ],
        "resume_steps": list(run.resume_steps),
        "log": None if run.log is None else log_facts(run.log, run.path),
        "duplicates": None if run.log is None else run.log.duplicates,
        "skipped_lines": None if run.log is None else run.log.skipped_lines,
        "restarts": None if run.log is None else list(run.log.restarts),
    }


def log_facts(log: Log, run: Path) -> dict[str, Any]:
    """Say what the log was read from and what was odd in it.

    Returns:
        formats, files (relative to the run where they lie in it), columns (ours -> the file's), rows, segments,
        notes, shift, duplicates, skipped_lines, restarts.
    """

    def below_run(file: Path) -> str:
        return (file.relative_to(run) if file.is_relative_to(run) else file).as_posix()

    return {
        "formats": list(log.formats),
        "files": [below_run(file) for file in log.files],
        "columns": dict(log.columns),
        "rows": log.rows.height,
        "segments": [
            {
                "file": below_run(segment.file),
                "steps": [segment.first, segment.last],
                "rows": segment.rows,
                "replaced": segment.replaced,
            }
            for segment in log.segments
        ],
        "notes": list(log.notes),
        "shift": log.shift,
        "duplicates": log.duplicates,
        "skipped_lines": log.skipped_lines,
        "restarts": list(log.restarts),
    }


def _cost(item: Missing, run: Run, profile: pl.DataFrame) -> str:
    """Say what a missing part cost; without optimizer state, what stands in for S and what does not.

    Returns:
        Some words.
    """
    without = [checkpoint.step for checkpoint in run.checkpoints if not checkpoint.optimizer_files]
    if not item.what.startswith("no optimizer state") or not without or not profile.width:
        return item.cost
    steps, _ = points(profile, "hessian.stability_ratio")
    if set(without) & {int(step) for step in steps}:
        return "none to the stability ratio: that of SGD needs rates alone, and they are known"
    _, values = points(profile, "estimate.stability_ratio")
    values = values[np.isfinite(values)]
    if values.size:
        low, high = f"{values.min():.2g}", f"{values.max():.2g}"
        return (
            f"no stability ratio there; it is only estimated, at {low} to {high} (estimate.stability_ratio: "
            "mostly too high, by 1.4 to 2.4 times where it was tested; no alarm or advice uses it)"
        )
    if run.model is None or run.batches is None or "gradient.norm" not in set(profile["quantity"]):
        return item.cost
    reason = assumed_state(run, (), without[-1])[1]
    return f"{item.cost}; nor an estimate, since {reason}" if reason else item.cost


def _model(model: ModelSource | None) -> str:
    """Name the model in a few words.

    Returns:
        Such as "LlamaForCausalLM, 4 layers, width 64", or "unknown".
    """
    if model is None:
        return "unknown"
    config = model.config
    architectures = config.get("architectures")
    if isinstance(architectures, list | tuple) and architectures:
        name = str(architectures[0])
    else:
        name = model.factory or str(config.get("model_type") or {"gpt": "GPT"}.get(model.kind, model.kind))
    parts = [name if model.adapter is None else f"LoRA on {name}"]
    for words, keys in (
        ("{} layers", ("num_hidden_layers", "n_layer", "n_layers", "layers", "blocks")),
        ("width {}", ("hidden_size", "n_embd", "d_model", "width")),
    ):
        value = next((config[key] for key in keys if isinstance(config.get(key), int)), None)
        if value is not None:
            said = words.format(value)
            parts.append("1 layer" if said == "1 layers" else said)
    return ", ".join(parts)


def _optimizer(run: Run, profile: pl.DataFrame) -> str:
    """Name the optimizer in a few words: run.toml first, then the configuration, then the saved states.

    Returns:
        Such as "adamw, lr 0.005, betas (0.9, 0.999)" "Adam or AdamW, lr 0.005 to 0.05", or "unknown".
    """
    settings, found = run.optimizer, run.configuration
    kind = settings.kind or next(
        (found[key] for key in ("optimizer.kind", "optimizer.name", "optimizer", "optim") if found.get(key)),
        None,
    )
    if kind is None and profile.width and (profile["quantity"] == "adam.lag_rms").any():
        kind = "Adam or AdamW"  # the states have a second moment; the rest of the name is not saved
    parts = [] if kind is None else [str(kind)]
    rate = settings.learning_rate
    if rate is None:
        rate = next(
            (
                found[key]
                for key in ("optimizer.learning_rate", "optimizer.lr", "learning_rate", "lr")
                if isinstance(found.get(key), int | float)
            ),
            None,
        )
    rates = _saved_rates(profile) if rate is None else (rate, rate)
    if rates is not None:
        low, high = (f"{one:.3g}" for one in rates)
        parts.append(f"lr {low}" if low == high else f"lr {low} to {high}")
    betas = settings.betas or _pair(found, ("optimizer.betas", "betas"))
    if betas is not None:
        parts.append(f"betas ({betas[0]:g}, {betas[1]:g})")
    if settings.momentum is not None:
        parts.append(f"momentum {settings.momentum:g}")
    return ", ".join(parts) if parts else "unknown"


def _saved_rates(profile: pl.DataFrame) -> tuple[float, float] | None:
    """Lowest and highest learning rate of the saved optimizer states.

    Returns:
        Both, None where no state was read.
    """
    if not profile.width:
        return None
    _, rates = points(profile, "optimizer.learning_rate")
    rates = rates[np.isfinite(rates)]
    return (float(rates.min()), float(rates.max())) if rates.size else None


def _pair(found: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[float, float] | None:
    """First pair of numbers that the configuration holds under one of some keys.

    Returns:
        The pair, None where there is none.
    """
    for key in keys:
        value = found.get(key)
        if isinstance(value, list | tuple) and len(value) == 2:
            first, second = value
            if isinstance(first, int | float) and isinstance(second, int | float):
                return float(first), float(second)
    return None
