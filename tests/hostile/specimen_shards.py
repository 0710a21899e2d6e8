"""One tiny checkpoint of every layout of many ranks or of its own names: DCP, Megatron, DeepSpeed, OLMo."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from .specimen_checkpoints import torch_bytes, trained
from .specimen_logs import csv, json_bytes, megatron_log, trainer_state


def dcp(prefix: str = "step-20") -> Mapping[str, bytes]:
    import warnings

    import torch.distributed.checkpoint as distributed
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    made, optimizer = trained()
    content = {
        "model": get_model_state_dict(made),
        "optimizer": get_optimizer_state_dict(made, optimizer),
        "train_state": {"step": 20},
    }
    given = filesystem._generate_uuid
    filesystem._generate_uuid = lambda: "0" * 36  # the same bytes every time
    folder = Path(tempfile.mkdtemp(prefix="hostile-dcp-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # One shared name however the folder is called: it is written into the description.
            distributed.save(content, checkpoint_id=folder / "x", no_dist=True)
        read = {f"{prefix}/{file.name}": file.read_bytes() for file in sorted((folder / "x").iterdir())}
        name = folder.name.encode()
        return {path: data.replace(name, b"x" * len(name)) for path, data in read.items()}
    finally:
        filesystem._generate_uuid = given
        shutil.rmtree(folder)


def dcp_safetensors() -> Mapping[str, bytes]:
    """Two ranks' blocks, as torch 2.13 distributed/checkpoint/_hf_utils.py, l. 17-75, names and describes them."""
    state = trained()[0].state_dict()
    files = {}
    for rank in (0, 1):
        blocks, places = {}, {}
        for name, value in state.items():
            half = (len(value) + 1) // 2
            blocks[name] = value[:half].clone() if rank == 0 else value[half:].clone()
            places[name] = {"saved_offsets": [rank * half, *[0] * (value.ndim - 1)]}
        files[f"step-20/shard-{rank + 1:05d}-model-00001-of-00001.safetensors"] = save(
            blocks, metadata={"DCP_SHARDING_INFO": json.dumps(places)}
        )
    return {**files, "log.csv": csv()}


def accelerate() -> Mapping[str, bytes]:
    files = dcp("checkpoint-20/pytorch_model_fsdp_0")
    return {
        **files,
        **{path.replace("pytorch_model_fsdp_0", "optimizer_0"): data for path, data in files.items()},
        "checkpoint-20/config.json": json_bytes({"model_type": "llama"}),
        "checkpoint-20/trainer_state.json": trainer_state(),
    }


def megatron() -> Mapping[str, bytes]:
    return {
        **dcp("iter_0000020"),
        "iter_0000020/metadata.json": json_bytes({
            "sharded_backend": "torch_dist",
            "sharded_backend_version": 1,
        }),
        "iter_0000020/common.pt": torch_bytes({
            "iteration": 20,
            "args": Namespace(hidden_size=8, num_layers=2),
        }),
        "latest_checkpointed_iteration.txt": b"20",
        "train.log": megatron_log(),
    }


def megatron_legacy() -> Mapping[str, bytes]:
    made, _ = trained()
    content = {
        "args": Namespace(hidden_size=8),
        "iteration": 20,
        "model": made.state_dict(),
        "checkpoint_version": 3.0,
    }
    return {
        "iter_0000020/mp_rank_00/model_optim_rng.pt": torch_bytes(content),
        "latest_checkpointed_iteration.txt": b"20",
        "train.log": megatron_log(),
    }


def deepspeed() -> Mapping[str, bytes]:
    made, _ = trained()
    state = made.state_dict()
    flat = torch.cat([value.reshape(-1) for value in state.values()]).float()
    model_states = {
        "module": state,
        "buffer_names": [],
        "param_shapes": [{name: value.shape for name, value in state.items()}],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "ds_version": "0.16.0",
        "global_steps": 20,
        "dp_world_size": 1,
        "mp_world_size": 1,
    }
    base = {"state": {0: {"step": 3, "exp_avg": flat.clone(), "exp_avg_sq": flat.square()}},
            "param_groups": [{"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0]}]}  # fmt: skip
    optimizer = {
        "optimizer_state_dict": {
            "zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": [flat],
            "base_optimizer_state": base, "ds_version": "0.16.0", "loss_scaler": None,
        },
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.16.0",
    }  # fmt: skip
    return {
        "global_step20/mp_rank_00_model_states.pt": torch_bytes(model_states),
        "global_step20/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": torch_bytes(optimizer),
        "latest": b"global_step20",
        "zero_to_fp32.py": b"import os\nos.system('touch ran')\n",
    }


def olmo() -> Mapping[str, bytes]:
    made, optimizer = trained()
    state = optimizer.state_dict()
    names = [name for name, p in made.named_parameters() if p.ndim > 1]
    names += [name for name, p in made.named_parameters() if p.ndim < 2]
    optim = {
        "state": {name: state["state"][place] for place, name in enumerate(names)},
        "param_groups": [
            {**group, "param_names": [names[place] for place in group["params"]],
             "params": [names[place] for place in group["params"]]}
            for group in state["param_groups"]
        ],
    }  # fmt: skip
    return {
        "step20-unsharded/config.yaml": b"model:\n  d_model: 8\n  n_layers: 1\noptimizer:\n  learning_rate: 0.02\n",
        "step20-unsharded/model.pt": torch_bytes(made.state_dict()),
        "step20-unsharded/optim.pt": torch_bytes(optim),
        "step20-unsharded/train.pt": torch_bytes({"global_step": 20, "epoch": 0}),
    }


def olmo_name(*keys: str, pickled: bool = False) -> str:
    """A tensor's name as OLMo writes it (allenai/OLMo@59a53e3 olmo/safetensors_util.py, l. 23-32)."""
    return base64.b64encode(pickle.dumps((keys, pickled))).decode("ascii")


def olmo_safetensors() -> Mapping[str, bytes]:
    made, _ = trained()
    weights = {olmo_name(name): value for name, value in made.state_dict().items()}
    optim = {
        olmo_name("state", name, kind): value.clone()
        for name, value in made.state_dict().items()
        for kind in ("exp_avg", "exp_avg_sq")
    }
    groups = np.frombuffer(
        pickle.dumps([{"lr": 0.02, "params": list(made.state_dict())}]), dtype=np.uint8
    ).copy()
    optim[olmo_name("param_groups", pickled=True)] = torch.from_numpy(groups)
    return {
        "step20-unsharded/config.yaml": b"model:\n  d_model: 8\n",
        "step20-unsharded/model.safetensors": save(weights),
        "step20-unsharded/optim.safetensors": save(optim),
        "step20-unsharded/train.pt": torch_bytes({"global_step": 20}),
    }
