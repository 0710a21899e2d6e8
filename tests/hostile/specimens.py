"""One tiny valid specimen of every layout, log format and side file, as bytes: what the mutations start from.

Nothing here needs a trainer's library; the same bytes come out every time, so that a case number says which bytes
a case had.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from .specimen_checkpoints import (
    LENGTH,
    ROWS,
    adapter,
    hf_binary,
    hf_trainer,
    lightning,
    nanogpt,
    recorded,
    safetensors_folder,
    sharded,
    torch_bytes,
    torch_legacy,
    torch_state,
    trained,
)
from .specimen_logs import (
    build_nanogpt,
    console_rows,
    csv,
    fairseq,
    field,
    json_bytes,
    jsonl,
    key_value,
    llm_c,
    masked,
    megatron_log,
    mlflow,
    modded_nanogpt,
    nanogpt_log,
    record,
    rows,
    tensorboard,
    trainer_state,
    tsv,
    wandb,
)
from .specimen_shards import (
    accelerate,
    dcp,
    dcp_safetensors,
    deepspeed,
    megatron,
    megatron_legacy,
    olmo,
    olmo_name,
    olmo_safetensors,
)


@dataclass(frozen=True)
class Specimen:
    """A run or a file in a run.

    Attributes:
        name: what the case report calls it.
        files: path in the run -> content.
        layout: the checkpoint layout it is of, None for none.
        log_format: the log format it is of, None for none.
        target: what a user would name, relative to the folder of the run.
        weights: whether its weights can be read; some layouts are only refused, in one line.
    """

    name: str
    files: Mapping[str, bytes]
    layout: str | None = None
    log_format: str | None = None
    target: str = "."
    weights: bool = True


def archive(**arrays: bytes) -> bytes:
    """A compressed .npz of arrays that are given as bytes, whatever they are."""
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in arrays.items():
            written.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npz() -> bytes:
    import io

    file = io.BytesIO()
    tokens = np.random.default_rng(0).integers(8, size=(ROWS, LENGTH), dtype=np.uint8)
    np.savez_compressed(file, tokens=tokens, steps=np.arange(1, ROWS + 1))
    return file.getvalue()


def npy(array: Any) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _flat_tokens() -> Mapping[str, bytes]:
    tokens = np.random.default_rng(0).integers(8, size=200, dtype=np.uint16)
    return {
        "run.toml": b'[batches]\nfile = "train.bin"\nlength = 4\nstarts = "starts.npy"\n',
        "train.bin": tokens.tobytes(),
        "starts.npy": npy(np.arange(48).reshape(24, 2)),
        "step-20/model.safetensors": save(trained()[0].state_dict()),
        "log.jsonl": jsonl(),
    }


MANIFEST = b"""\
[model]
kind = "gpt"
settings = { model_type = "gpt", vocab_size = 8, block_size = 4, n_layer = 1, n_head = 2, n_embd = 8, norm = "none" }
[checkpoints]
glob = "step*"
[log]
files = ["log.jsonl"]
columns = { loss = "loss", step = "step" }
[batches]
file = "batches.npz"
tokens = "tokens"
steps = 2
[optimizer]
kind = "adam"
lr = 0.01
betas = [0.9, 0.999]
eps = 1e-8
momentum = 0.9
nesterov = false
weight_decay = 0.1
max_grad_norm = 1.0
accumulation = 1
precision = "float32"
[resume]
steps = [12]
"""


def _manifest() -> Mapping[str, bytes]:
    return {
        "run.toml": MANIFEST,
        "log.jsonl": jsonl(),
        "batches.npz": npz(),
        "RUN.json": json_bytes({"seed": 1, "notes": ["a", {"b": 2}]}),
        "step-20/model.safetensors": save(trained()[0].state_dict()),
    }


def _random_states() -> Mapping[str, bytes]:
    whole = recorded()
    return {
        path: data for path, data in whole.items()
        if path.startswith("step-000006") or path in {"random_states.safetensors", "config.json", "log.jsonl"}
    }  # fmt: skip


def _batches() -> Mapping[str, bytes]:
    return {
        "batches.npz": npz(),
        "log.jsonl": jsonl(),
        "step-20/model.safetensors": save(trained()[0].state_dict()),
    }


#: Name -> (layout, log format, what a user names, how the files are made).
_MAKERS: Mapping[str, tuple[str | None, str | None, str, Callable[[], Mapping[str, bytes]]]] = {
    "hf_trainer": ("hf_trainer", "trainer_state", ".", hf_trainer),
    "hf_binary": ("hf_trainer", "trainer_state", ".", hf_binary),
    "sharded": ("safetensors_folder", "trainer_state", ".", sharded),
    "safetensors_folder": ("safetensors_folder", "jsonl", ".", safetensors_folder),
    "nanogpt": ("nanogpt", "nanogpt", ".", nanogpt),
    "lightning": ("lightning", "delimited", ".", lightning),
    "adapter": ("adapter", "trainer_state", ".", adapter),
    "dcp": ("dcp", None, ".", dcp),
    "dcp_safetensors": ("dcp_safetensors", "delimited", ".", dcp_safetensors),
    "accelerate": ("dcp", "trainer_state", ".", accelerate),
    "megatron": ("megatron", "megatron", ".", megatron),
    "megatron_legacy": (None, "megatron", ".", megatron_legacy),
    "deepspeed": ("deepspeed", None, ".", deepspeed),
    "olmo": ("olmo", None, ".", olmo),
    "olmo_safetensors": ("olmo", None, ".", olmo_safetensors),
    "torch_state": ("torch_state", "delimited", ".", torch_state),
    "torch_legacy": ("torch_state", "delimited", ".", torch_legacy),
    "recorded": ("safetensors_folder", "jsonl", ".", recorded),
    "log_jsonl": (None, "jsonl", "log.jsonl", lambda: {"log.jsonl": jsonl()}),
    "log_trainer_state": (None, "trainer_state", "trainer_state.json", lambda: {"trainer_state.json": trainer_state()}),
    "log_csv": (None, "delimited", "log.csv", lambda: {"log.csv": csv()}),
    "log_tsv": (None, "delimited", "log.tsv", lambda: {"log.tsv": tsv()}),
    "log_console": (None, "console_rows", "console.log", lambda: {"console.log": console_rows()}),
    "log_fairseq": (None, "fairseq", "fairseq.log", lambda: {"fairseq.log": fairseq()}),
    "log_megatron": (None, "megatron", "megatron.log", lambda: {"megatron.log": megatron_log()}),
    "log_modded": (None, "modded_nanogpt", "modded.txt", lambda: {"modded.txt": modded_nanogpt()}),
    "log_build_nanogpt": (None, "build_nanogpt", "out.log", lambda: {"out.log": build_nanogpt()}),
    "log_llm_c": (None, "llm_c", "main.log", lambda: {"main.log": llm_c()}),
    "log_nanogpt": (None, "nanogpt", "nanogpt.log", lambda: {"nanogpt.log": nanogpt_log()}),
    "log_key_value": (None, "key_value", "train.txt", lambda: {"train.txt": key_value()}),
    "log_tensorboard": (
        None, "tensorboard", "events.out.tfevents.1700000000.host.1.0",
        lambda: {"events.out.tfevents.1700000000.host.1.0": tensorboard()},
    ),
    "log_wandb": (
        None, "wandb", ".",
        lambda: {"wandb/offline-run-20260101_000000-abcdefgh/run-abcdefgh.wandb": wandb(),
                 "wandb/offline-run-20260101_000000-abcdefgh/files/wandb-summary.json": b"{}"},
    ),
    "log_mlflow": (None, "mlflow", ".", mlflow),
    "batches": ("safetensors_folder", "jsonl", ".", _batches),
    "flat_tokens": ("safetensors_folder", "jsonl", ".", _flat_tokens),
    "manifest": ("safetensors_folder", "jsonl", ".", _manifest),
    "random_states": ("safetensors_folder", "jsonl", ".", _random_states),
}  # fmt: skip


@cache
def specimen(name: str) -> Specimen:
    """Make one specimen."""
    layout, log_format, target, make = _MAKERS[name]
    return Specimen(name, make(), layout, log_format, target)


def names() -> tuple[str, ...]:
    return tuple(_MAKERS)


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a run's files."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


__all__ = [
    "MANIFEST",
    "Specimen",
    "archive",
    "field",
    "json_bytes",
    "jsonl",
    "masked",
    "names",
    "npz",
    "olmo_name",
    "record",
    "rows",
    "specimen",
    "torch_bytes",
    "trained",
    "trainer_state",
    "write",
]
