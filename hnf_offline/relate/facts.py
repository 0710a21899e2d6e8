"""The facts about the run that the report prints: what was read, what was missing, what that cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hnf_offline.relate.series import column
from hnf_offline.run.records import ModelSource, Run

if TYPE_CHECKING:
    import polars as pl


def run_facts(run: Run, profile: pl.DataFrame, gap: int | None, made: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a run in plain JSON values.

    Args:
        run: the run directory as found on disk.
        profile: the long table; may be empty.
        gap: checkpoint gap.
        made: may hold "parameters", the model's number of parameters.

    Returns:
        Name, path, checkpoints read and found, steps, model, optimizer, gap, missing, skipped and so on.
    """
    read = sorted({int(step) for step in profile["step"].unique()}) if profile.width else []
    found = sorted({checkpoint.step for checkpoint in run.checkpoints} | set(read))
    rows = None if run.log is None else run.log.rows
    logged, _ = column(rows, "loss")
    parameters = made.get("parameters")
    return {
        "name": run.name,
        "path": run.path.as_posix(),
        "checkpoints": len(read),
        "checkpoints_found": len(found),
        "steps": [found[0], found[-1]] if found else None,
        "logged_steps": [int(logged[0]), int(logged[-1])] if logged.size else None,
        "model": _model(run.model),
        "parameters": int(parameters) if isinstance(parameters, int | float) else None,
        "optimizer": _optimizer(run),
        "gap": gap,
        "missing": [{"what": item.what, "cost": item.cost} for item in run.missing],
        "skipped": [
            {"path": item.path.as_posix(), "reason": item.reason, "remedy": item.remedy}
            for item in run.skipped
        ],
        "duplicates": 0 if run.log is None else run.log.duplicates,
        "restarts": [] if run.log is None else list(run.log.restarts),
    }


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
    parts = [name]
    for words, keys in (
        ("{} layers", ("num_hidden_layers", "n_layer", "n_layers", "layers", "blocks")),
        ("width {}", ("hidden_size", "n_embd", "d_model", "width")),
    ):
        value = next((config[key] for key in keys if isinstance(config.get(key), int)), None)
        if value is not None:
            parts.append(words.format(value))
    return ", ".join(parts)


def _optimizer(run: Run) -> str:
    """Name the optimizer in a few words: run.toml first, then the configuration found.

    Returns:
        Such as "adamw, lr 0.005, betas (0.9, 0.999)", or "unknown".
    """
    settings, found = run.optimizer, run.configuration
    kind = settings.kind or next(
        (found[key] for key in ("optimizer.kind", "optimizer.name", "optimizer", "optim") if found.get(key)),
        None,
    )
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
    parts = [] if kind is None else [str(kind)]
    if rate is not None:
        parts.append(f"lr {rate:g}")
    if settings.betas is not None:
        parts.append(f"betas ({settings.betas[0]:g}, {settings.betas[1]:g})")
    if settings.momentum is not None:
        parts.append(f"momentum {settings.momentum:g}")
    return ", ".join(parts) if parts else "unknown"
