"""One tiny checkpoint of every layout, written as its trainer writes it."""

from __future__ import annotations

import json
import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from .specimen_logs import STEPS, csv, json_bytes, jsonl, nanogpt_log, rows, trainer_state

#: A model small enough that a whole report takes a second.
GPT = {
    "model_type": "gpt",
    "vocab_size": 8,
    "block_size": 4,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "mlp_width": 8,
    "norm": "none",
    "tied": False,
}
ROWS, LENGTH = 8, 4


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module of 47 parameters, and its optimizer after some steps."""
    made = module()
    decayed = [p for p in made.parameters() if p.ndim > 1]
    rest = [p for p in made.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=0.02)
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        made(torch.randn(7, 3)).square().mean().backward()
        optimizer.step()
    return made, optimizer


def torch_bytes(value: Any, *, legacy: bool = False) -> bytes:
    """What torch.save writes."""
    import io

    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    if not legacy:
        return file.getvalue()
    # The legacy format calls a storage by its address; of one storage this is one number, which is made the same.
    return re.sub(rb"X.\x00\x00\x00\d{10,20}", b"X\x05\x00\x00\x0012345", file.getvalue(), flags=re.DOTALL)


def flat_views(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as parts of one storage."""
    whole = torch.cat([value.reshape(-1) for value in state.values()])
    parts = whole.split([value.numel() for value in state.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(state.items(), parts, strict=True)}


def hf_trainer() -> Mapping[str, bytes]:
    made, optimizer = trained()
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
    }
    files: dict[str, bytes] = {}
    for step in (10, 20):
        folder = f"checkpoint-{step}"
        files |= {
            f"{folder}/model.safetensors": save(made.state_dict(), metadata={"format": "pt"}),
            f"{folder}/optimizer.pt": torch_bytes(optimizer.state_dict()),
            f"{folder}/scheduler.pt": torch_bytes({"last_epoch": step, "_last_lr": [0.02]}),
            f"{folder}/rng_state.pth": torch_bytes({
                "python": (3, (1, 2), None),
                "cpu": torch.get_rng_state(),
            }),
            f"{folder}/training_args.bin": torch_bytes(Namespace(learning_rate=0.02)),
            f"{folder}/config.json": json_bytes(config),
            f"{folder}/trainer_state.json": trainer_state(),
        }
    return files


def hf_binary() -> Mapping[str, bytes]:
    made, optimizer = trained()
    state = made.state_dict()
    names = list(state)
    shards = [names[:3], names[3:]]
    files = {
        f"checkpoint-20/pytorch_model-{n}-of-2.bin": torch_bytes(
            flat_views({k: state[k] for k in part}), legacy=n == 1
        )
        for n, part in enumerate(shards, 1)
    }
    index = {name: f"pytorch_model-{n}-of-2.bin" for n, part in enumerate(shards, 1) for name in part}
    return {
        **files,
        "checkpoint-20/pytorch_model.bin.index.json": json_bytes({
            "metadata": {"total_size": 1},
            "weight_map": index,
        }),
        "checkpoint-20/optimizer.pt": torch_bytes(optimizer.state_dict()),
        "checkpoint-20/config.json": json_bytes({"model_type": "bert"}),
        "trainer_state.json": trainer_state(),
    }


def sharded() -> Mapping[str, bytes]:
    state = trained()[0].state_dict()
    names = list(state)
    parts = {f"model-0000{n + 1}-of-00003.safetensors": names[2 * n : 2 * n + 2] for n in range(3)}
    index = {name: file for file, part in parts.items() for name in part}
    return {
        **{file: save({name: state[name] for name in part}) for file, part in parts.items()},
        "model.safetensors.index.json": json_bytes({"metadata": {"total_size": 188}, "weight_map": index}),
        "config.json": json_bytes({"model_type": "llama", "hidden_size": 8}),
        "trainer_state.json": trainer_state(),
    }


def safetensors_folder() -> Mapping[str, bytes]:
    made, _ = trained()
    state = made.state_dict()
    moments = {
        f"{kind}.{name}": tensor.clone()
        for name, tensor in state.items()
        for kind in ("exp_avg", "exp_avg_sq")
    }
    settings = {
        "kind": "AdamW",
        "step": dict.fromkeys(state, 3),
        "param_groups": [{"lr": 0.02, "params": list(state)}],
    }
    return {
        "step-000020/model.safetensors": save(state),
        "step-000020/optimizer.safetensors": save(moments, metadata={"optimizer": json.dumps(settings)}),
        "step_30.safetensors": save(state),
        "log.jsonl": jsonl(),
    }


def nanogpt() -> Mapping[str, bytes]:
    from hnf_offline.run.model import gpt

    sizes = {
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 8,
        "block_size": 4,
        "vocab_size": 8,
        "bias": True,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig.from_mapping({"model_type": "gpt", "norm": "pre", **sizes}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    content = {
        "model": {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": sizes,
        "iter_num": 20,
        "best_val_loss": torch.tensor(1.5),
        "config": {"learning_rate": 0.01, "dataset": "x"},
    }
    tokens = np.random.default_rng(0).integers(8, size=100, dtype=np.uint16)
    return {
        "ckpt.pt": torch_bytes(content),
        "train.bin": tokens.tobytes(),
        "meta.pkl": pickle.dumps({"vocab_size": 8, "itos": {0: "a"}}, protocol=4),
        "run.toml": b'[batches]\nfile = "train.bin"\nlength = 4\nsteps = 2\n',
        "nanogpt.log": nanogpt_log(),
    }


def lightning() -> Mapping[str, bytes]:
    made, optimizer = trained()
    content = {
        "epoch": 0,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": value for name, value in made.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"learning_rate": 0.02, "width": 5},
    }
    table = b"epoch,step,train_loss\n" + b"".join(
        f"0,{row['step']},{row['loss']}\n".encode() for row in rows()
    )
    base = "lightning_logs/version_0"
    return {
        f"{base}/checkpoints/epoch=0-step=20.ckpt": torch_bytes(content),
        f"{base}/metrics.csv": table,
        f"{base}/hparams.yaml": b"learning_rate: 0.02\n",
    }


def adapter() -> Mapping[str, bytes]:
    base = "base_model.model.model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{base}.lora_A.weight": torch.randn(2, 8, generator=generator),
        f"{base}.lora_B.weight": torch.randn(8, 2, generator=generator),
    }
    parameters = [nn.Parameter(value) for value in weights.values()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "/etc/passwd",
    }
    return {
        "checkpoint-20/adapter_model.safetensors": save(weights),
        "checkpoint-20/adapter_config.json": json_bytes(config),
        "checkpoint-20/optimizer.pt": torch_bytes(optimizer.state_dict()),
        "checkpoint-20/trainer_state.json": trainer_state(),
    }


def torch_state() -> Mapping[str, bytes]:
    made, _ = trained()
    return {"step-20.pt": torch_bytes(made.state_dict()), "log.csv": csv()}


def torch_legacy() -> Mapping[str, bytes]:
    made, _ = trained()
    return {"step-20/weights.bin": torch_bytes(flat_views(made.state_dict()), legacy=True), "log.csv": csv()}


def recorded() -> Mapping[str, bytes]:
    """A run of hnf_offline.record: everything a report can use, random states included."""
    from hnf_offline.run.model import gpt

    torch.manual_seed(0)
    model = gpt.GPT(gpt.GPTConfig.from_mapping(GPT))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    tokens = torch.randint(8, (ROWS, LENGTH))
    config = {
        "format": "hnf_offline.record/1",
        "model": GPT,
        "optimizer": {"kind": "Adam", "learning_rate": 0.003},
        "training": {"batch": "full", "seed": 0},
    }
    files: dict[str, bytes] = {"config.json": json_bytes(config)}
    lines = []
    for step in range(1, STEPS + 1):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lines.append(json.dumps({"step": step, "loss": float(loss.detach()), "learning_rate": 0.003}))
        if step % 6 == 0:
            state = model.state_dict()
            names = [name for name, _ in model.named_parameters()]
            moments = {
                f"{kind}.{name}": optimizer.state[p][kind].clone()
                for name, p in model.named_parameters()
                for kind in ("exp_avg", "exp_avg_sq")
            }
            settings = {
                "kind": "Adam",
                "step": dict.fromkeys(names, step),
                "param_groups": [{"lr": 0.003, "betas": [0.9, 0.999], "eps": 1e-8, "params": names}],
            }
            folder = f"step-{step:06d}"
            files[f"{folder}/model.safetensors"] = save({
                name: value.clone() for name, value in state.items()
            })
            files[f"{folder}/optimizer.safetensors"] = save(
                moments, metadata={"optimizer": json.dumps(settings)}
            )
    random = torch.Generator().manual_seed(0).get_state()
    states = {"steps": torch.arange(1, 3), "cpu": torch.stack([random, random])}
    return {
        **files,
        "log.jsonl": "\n".join(lines).encode() + b"\n",
        "batches.safetensors": save({"input_ids": tokens, "labels": tokens.clone()}),
        "random_states.safetensors": save(states),
    }
