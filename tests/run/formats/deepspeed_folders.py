"""DeepSpeed's ZeRO folders, written as its source writes them."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.run.formats import load_optimizer
from hnf_offline.run.optimizer import match_optimizer
from hnf_offline.run.records import OptimizerSettings


class Masters:
    """A model trained in fp32 whose weights the ranks hold in bf16: groups, moments, and what to expect."""

    def __init__(self, make: Any) -> None:
        self.module: nn.Module = make.module()
        self.module.register_buffer("scale", torch.tensor([3.0]))
        named = dict(self.module.named_parameters())
        self.groups = [
            {name: p for name, p in named.items() if p.ndim > 1},
            {name: p for name, p in named.items() if p.ndim < 2},
        ]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.groups[0].values()), "weight_decay": 0.3},
                {"params": list(self.groups[1].values()), "weight_decay": 0.0},
            ],
            lr=0.02,
            betas=(0.8, 0.95),
        )
        make.train(self.module, self.optimizer)

    @property
    def shapes(self) -> list[OrderedDict[str, torch.Size]]:
        return [OrderedDict((name, p.shape) for name, p in group.items()) for group in self.groups]

    def vector(self, group: dict[str, Any], key: str = "") -> Tensor:
        return torch.cat([self.of(p, key).reshape(-1) for p in group.values()])

    def of(self, parameter: Any, key: str) -> Tensor:
        return parameter.detach() if not key else self.optimizer.state[parameter][key]

    def settings(self, group: int) -> dict[str, Any]:
        whole = self.optimizer.state_dict()["param_groups"][group]
        return {key: value for key, value in whole.items() if key != "params"}


def model_file(masters: Masters, **more: Any) -> dict[str, Any]:
    module = {name: tensor.bfloat16() for name, tensor in masters.module.state_dict().items()}
    return {
        "module": module,
        "buffer_names": ["scale"],
        "param_shapes": masters.shapes,
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {"again.weight": "0.weight"},
        "global_steps": 3,
        "ds_version": "0.16.0",
        "ds_config": {"train_micro_batch_size_per_gpu": 7},
        **more,
    }


def save_2(folder: Path, masters: Masters, ranks: int, kind: str = "bf16", **more: Any) -> Path:
    """Stage 2: each group one vector, padded to a multiple of 2 * ranks, cut into equal slices."""
    folder.mkdir(parents=True)
    torch.save(model_file(masters, **more), folder / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        slices: list[dict[str, Tensor]] = []
        paddings = []
        for group in masters.groups:
            size = masters.vector(group).numel()
            part = 2 * math.ceil(size / (2 * ranks))
            own = {}
            for key in ("", "exp_avg", "exp_avg_sq"):
                padded = torch.cat([masters.vector(group, key), torch.full((part * ranks - size,), 9.0)])
                own[key] = padded[rank * part : (rank + 1) * part].clone()
            slices.append(own)
            paddings.append(max(0, min(part, (rank + 1) * part - size)))
        lean = [slice_[""][: slice_[""].numel() - pad] for slice_, pad in zip(slices, paddings, strict=True)]
        state: Any = {
            "state": {
                at: {"step": torch.tensor(3.0), "exp_avg": s["exp_avg"], "exp_avg_sq": s["exp_avg_sq"]}
                for at, s in enumerate(slices)
            },
            "param_groups": [{**masters.settings(at), "params": [at]} for at in range(2)],
        }
        if kind == "elastic":
            state = [
                {
                    key: tensor[: tensor.numel() - pad] if tensor.ndim else tensor
                    for key, tensor in one.items()
                }
                for one, pad in zip(state["state"].values(), paddings, strict=True)
            ]
        content = {
            "optimizer_state_dict": {
                "zero_stage": 2,
                "partition_count": [ranks, ranks],
                "single_partition_of_fp32_groups": lean,
                "base_optimizer_state": state,
                "group_paddings": paddings,
                "overflow": False,
            },
            "ds_config": {},
        }
        prefix = "bf16_" if kind == "bf16" else ""
        torch.save(content, folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def save_3(folder: Path, masters: Masters, ranks: int, frozen: bool = False) -> Path:
    """Stage 3: every parameter cut by itself, padded to equal parts; the groups are cut into sub-groups."""
    folder.mkdir(parents=True)
    first, second = masters.groups
    names = list(second)
    sub_groups: list[dict[str, Any]] = [
        first,
        {n: second[n] for n in names[:2]},
        {n: second[n] for n in names[2:]},
    ]
    shapes = [OrderedDict((name, p.shape) for name, p in group.items()) for group in sub_groups]

    def part(tensor: Tensor, rank: int) -> Tensor:
        size = math.ceil(tensor.numel() / ranks)
        padded = torch.cat([tensor.reshape(-1), torch.full((size * ranks - tensor.numel(),), 9.0)])
        return padded[rank * size : (rank + 1) * size].clone()

    still = torch.arange(7.0)
    for rank in range(ranks):
        more: dict[str, Any] = {"param_shapes": shapes}
        if frozen:
            more |= {
                "frozen_param_shapes": OrderedDict(still=still.shape),
                "frozen_param_fragments": OrderedDict(still=part(still, rank)),
            }
        torch.save(model_file(masters, **more), folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flat = [
            {
                key: torch.cat([part(masters.of(p, key), rank) for p in group.values()])
                for key in ("", "exp_avg", "exp_avg_sq")
            }
            for group in sub_groups
        ]
        inner = {
            "state": {
                at: {"step": 3, "exp_avg": one["exp_avg"], "exp_avg_sq": one["exp_avg_sq"]}
                for at, one in enumerate(flat)
            },
            "param_groups": [
                {**masters.settings(0), "params": [0]},
                {**masters.settings(1), "params": [1, 2]},
            ],
        }
        content = {
            "optimizer_state_dict": {
                "zero_stage": 3,
                "partition_count": ranks,
                "optimizer_state_dict": inner,
                "fp32_flat_groups": [one[""] for one in flat],
            }
        }
        torch.save(content, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def check_weights(weights: dict[str, Tensor], masters: Masters) -> None:
    for name, parameter in masters.module.named_parameters():
        assert weights[name].dtype == torch.float32 and torch.equal(weights[name], parameter.detach()), name
    assert torch.equal(weights["scale"].float(), torch.tensor([3.0]))
    assert torch.equal(weights["again.weight"], weights["0.weight"])


def check_state(checkpoint: Any, masters: Masters, *, grouped: bool = True) -> None:
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.names
    shapes = [(name, tuple(p.shape)) for name, p in masters.module.named_parameters()]
    state = match_optimizer(raw, shapes, OptimizerSettings(), checkpoint.path)
    for name, parameter in masters.module.named_parameters():
        own, theirs = state.parameters[name], masters.optimizer.state[parameter]
        assert own.exp_avg is not None and torch.equal(own.exp_avg, theirs["exp_avg"]), name
        assert own.exp_avg_sq is not None and torch.equal(own.exp_avg_sq, theirs["exp_avg_sq"]), name
        assert own.step == 3
        if grouped:
            assert (own.learning_rate, own.beta1) == (0.02, 0.8)
            assert own.weight_decay == (0.3 if parameter.ndim > 1 else 0.0)
