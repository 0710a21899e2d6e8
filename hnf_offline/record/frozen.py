"""A frozen black box on disk: a run directory like any other, written under a hidden name and renamed whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hnf_offline.errors import InputError
from hnf_offline.record.files import (
    checkpoint_name,
    log_line,
    save_checkpoint,
    save_config,
    save_tensors,
    save_text,
)
from hnf_offline.record.ring import Ring, StepRecord, assemble
from hnf_offline.run.formats.safetensors_file import read_json
from hnf_offline.run.formats.safetensors_folder import is_recording

PREFIX = "frozen-"


def claim(directory: Path) -> None:
    """Take a directory for frozen boxes: a new or empty one, or one that holds nothing but such.

    Raises:
        InputError: if anything else is in it.
    """
    others = [entry for entry in directory.iterdir() if not _ours(entry)] if directory.exists() else []
    if others:
        raise InputError(
            f"already holds other files, such as {min(others).name}",
            path=directory,
            remedy="give the recorder a directory of its own",
        )
    directory.mkdir(parents=True, exist_ok=True)


def write(
    directory: Path,
    ring: Ring,
    rows: Iterable[Mapping[str, float]],
    *,
    why: str,
    at: int,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    training: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write what a ring holds as a run directory.

    While it writes, the batches of the ring are in memory once more, and at most one full state.

    Args:
        directory: where the folder goes.
        ring: batches, generator states and full states.
        rows: the log, oldest first.
        why: what froze it.
        at: the last step taken.
        model: section of config.json.
        optimizer: section of config.json; the last full state's settings are put under it.
        training: section of config.json.
        about: more for the section "frozen" of config.json.

    Returns:
        The folder.
    """
    name = f"{PREFIX}{at:06d}"
    temporary = directory / f".{name}.{os.getpid()}.part"
    temporary.mkdir()
    try:
        _fill(temporary, ring, rows, why, at, model, optimizer, training, about)
        return _place(temporary, directory, name)
    except BaseException:
        # Ours alone, made a moment ago: nothing half is left behind.
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(
    folder: Path,
    ring: Ring,
    rows: Iterable[Mapping[str, float]],
    why: str,
    at: int,
    model: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    training: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    records = list(ring.records)
    for state in ring.states:
        save_checkpoint(
            folder / "checkpoints" / checkpoint_name(state.step),
            state.weights,
            state.moments,
            state.described,
        )
    batches = assemble(records)
    if batches:
        save_tensors(folder / "batches.safetensors", batches)
    if records:
        save_tensors(folder / "random_states.safetensors", _random_states(records))
    save_text(folder / "log.jsonl", "".join(log_line(row) for row in rows))
    found: dict[str, Any] = {"accumulation": max((len(record.batches) for record in records), default=1)}
    if "attention_mask" in batches:
        found["attention_mask"] = True
    described = ring.states[-1].described if ring.states else {}
    settings = {key: value for group in described.get("param_groups", ())[:1] for key, value in group.items()}
    kind = {"kind": described["kind"]} if described else {}
    save_config(
        folder,
        model,
        {**kind, **{key: value for key, value in settings.items() if key != "params"}, **optimizer},
        {**found, **training},
        frozen={
            "why": why,
            "step": at,
            "first_step": records[0].step if records else None,
            "full_states": [state.step for state in ring.states],
            "torch": torch.__version__,
            **about,
        },
    )


def _random_states(records: Sequence[StepRecord]) -> dict[str, torch.Tensor]:
    tensors = {
        "steps": torch.tensor([record.step for record in records]),
        "cpu": torch.stack([record.cpu_state for record in records]),
    }
    on_device = [record.cuda_state for record in records if record.cuda_state is not None]
    if len(on_device) == len(records):
        tensors["cuda"] = torch.stack(on_device)
    return tensors


def _place(temporary: Path, directory: Path, name: str) -> Path:
    # A run that was resumed may freeze at a step where it froze before; neither is written over.
    for number in range(1, 1000):
        target = directory / (name if number == 1 else f"{name}-{number}")
        if not target.exists():
            return temporary.rename(target)
    raise InputError("holds a thousand frozen boxes of one step", path=directory)


def _ours(entry: Path) -> bool:
    unfinished = entry.name.startswith(f".{PREFIX}") and entry.name.endswith(".part")
    if not entry.is_dir():
        return False
    return unfinished or (entry.name.startswith(PREFIX) and is_recording(read_json(entry / "config.json")))
