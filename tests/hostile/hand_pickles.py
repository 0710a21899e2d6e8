"""A canary in every place of every layout where a pickle can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from . import pickles, specimens
from .by_hand import special


def _canary_special(name: str, files: Callable[[bytes], Mapping[str, bytes]]) -> None:
    for route in (
        "REDUCE os.system",
        "STACK_GLOBAL os.system",
        "BUILD __setstate__",
        "torch _load_from_bytes",
    ):

        @special(f"canary in {name}: {route}")
        def make(marker: str, route: str = route) -> Any:
            return files(pickles.canaries(marker)[route])


def _in(name: str, path: str) -> Callable[[bytes], Mapping[str, bytes]]:
    def files(canary: bytes) -> Mapping[str, bytes]:
        from .damage_pickles import with_canary

        whole = dict(specimens.specimen(name).files)
        return {**whole, path: with_canary(whole, path, canary)}

    return files


for _specimen, _path in (
    ("hf_trainer", "checkpoint-20/optimizer.pt"),
    ("hf_trainer", "checkpoint-20/scheduler.pt"),
    ("hf_trainer", "checkpoint-20/rng_state.pth"),
    ("hf_trainer", "checkpoint-20/training_args.bin"),
    ("hf_binary", "checkpoint-20/pytorch_model-1-of-2.bin"),
    ("hf_binary", "checkpoint-20/pytorch_model-2-of-2.bin"),
    ("nanogpt", "ckpt.pt"),
    ("nanogpt", "meta.pkl"),
    ("lightning", "lightning_logs/version_0/checkpoints/epoch=0-step=20.ckpt"),
    ("adapter", "checkpoint-20/optimizer.pt"),
    ("dcp", "step-20/.metadata"),
    ("dcp", "step-20/__0_0.distcp"),
    ("accelerate", "checkpoint-20/pytorch_model_fsdp_0/.metadata"),
    ("accelerate", "checkpoint-20/optimizer_0/.metadata"),
    ("accelerate", "checkpoint-20/optimizer_0/__0_0.distcp"),
    ("megatron", "iter_0000020/.metadata"),
    ("megatron", "iter_0000020/common.pt"),
    ("megatron_legacy", "iter_0000020/mp_rank_00/model_optim_rng.pt"),
    ("deepspeed", "global_step20/mp_rank_00_model_states.pt"),
    ("deepspeed", "global_step20/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ("olmo", "step20-unsharded/model.pt"),
    ("olmo", "step20-unsharded/optim.pt"),
    ("olmo", "step20-unsharded/train.pt"),
    ("olmo_safetensors", "step20-unsharded/model.safetensors"),
    ("olmo_safetensors", "step20-unsharded/optim.safetensors"),
    ("torch_state", "step-20.pt"),
    ("torch_legacy", "step-20/weights.bin"),
    ("batches", "batches.npz"),
):
    _canary_special(f"{_specimen}/{_path}", _in(_specimen, _path))


@special("canary in the values of OLMo's optimizer")
def _olmo_value(marker: str) -> Any:
    files = dict(specimens.specimen("olmo_safetensors").files)
    canary = pickles.alone(pickles.canaries(marker)["REDUCE os.system"])
    optim = {
        specimens.olmo_name("param_groups", pickled=True): torch.from_numpy(
            np.frombuffer(canary, dtype=np.uint8).copy()
        ),
        specimens.olmo_name("state", "0.weight", "exp_avg"): torch.zeros(5, 3),
    }
    return {**files, "step20-unsharded/optim.safetensors": save(optim)}
