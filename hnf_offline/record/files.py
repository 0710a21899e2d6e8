"""The files of a recording: written under a hidden name and renamed, so that none is ever half there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

#: What `format` in config.json says.
FORMAT = "hnf_offline.record/1"


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors that already lie on the CPU, each in memory of its own."""
    temporary = _temporary(path)
    save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)
    temporary.replace(path)


def save_text(path: Path, text: str) -> None:
    """Write a text file."""
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def save_config(
    folder: Path,
    model: Mapping[str, Any] | None,
    optimizer: Mapping[str, Any] | None,
    training: Mapping[str, Any] | None,
    **others: Any,
) -> None:
    """Write config.json with its sections."""
    config = {
        "format": FORMAT,
        "model": dict(model or {}),
        "optimizer": dict(optimizer or {}),
        "training": dict(training or {}),
    } | others
    save_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def save_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], described: Mapping[str, Any]
) -> None:
    """Write model.safetensors and optimizer.safetensors.

    Args:
        folder: where; made if it is not there.
        weights: by parameter name, on the CPU.
        moments: called `<state>.<parameter>`, on the CPU.
        described: kind, param_groups and steps of the optimizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", weights)
    save_tensors(folder / "optimizer.safetensors", moments, {"optimizer": json.dumps(described)})


def checkpoint_name(step: int) -> str:
    """Give the folder's name of a checkpoint."""
    return f"step-{step:06d}"


def log_line(row: Mapping[str, float]) -> str:
    """Spell one line of log.jsonl; NaN and Infinity stand bare, as trainers write them.

    Returns:
        The line with its end; numbers have the nine significant digits that a float32 holds.
    """
    return json.dumps({name: _short(value) for name, value in row.items()}) + "\n"


def _short(value: float) -> float:
    return float(f"{value:.9g}") if not isinstance(value, int) and math.isfinite(value) else value


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
