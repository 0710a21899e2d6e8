"""DeepSpeed's ZeRO folders, written as its source writes them: cut over ranks, padded, settings among tensors."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run import open_run
from hnf_offline.run.formats import configuration, find, load_optimizer, load_weights
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


@pytest.mark.parametrize("kind", ["fp16", "bf16", "elastic"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 11])
def test_stages_1_and_2_give_the_fp32_weights_and_moments(
    tmp_path: Path, make: Any, ranks: int, kind: str
) -> None:
    masters = Masters(make)
    folder = save_2(tmp_path / "global_step3", masters, ranks, kind)
    (tmp_path / "latest").write_text("global_step3")
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, checkpoint.path, skipped) == (3, "deepspeed", folder, [])
    for mapped in (True, False):
        read = replace(checkpoint, memory_map=mapped)
        check_weights(load_weights(read), masters)
        check_state(read, masters, grouped=kind != "elastic")
    sections = configuration(checkpoint)
    if kind != "elastic":
        assert sections["optimizer"]["lr"] == 0.02 and "params" not in sections["optimizer"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_stage_3_gives_the_fp32_weights_and_moments(
    tmp_path: Path, make: Any, ranks: int, frozen: bool
) -> None:
    masters = Masters(make)
    save_3(tmp_path / "global_step3", masters, ranks, frozen)
    (checkpoint,), skipped = find(tmp_path)
    assert skipped == [] and checkpoint.step == 3
    weights = load_weights(checkpoint)
    check_weights(weights, masters)
    assert ("still" in weights) == frozen and (not frozen or weights["still"].tolist() == list(range(7)))
    check_state(checkpoint, masters)


def test_frozen_parameters_of_stage_2_are_whole(tmp_path: Path, make: Any) -> None:
    still = {"still": torch.arange(6.0).view(2, 3)}
    more = {"frozen_param_shapes": {"still": torch.Size([2, 3])}, "frozen_param_fragments": still}
    save_2(tmp_path / "global_step3", Masters(make), 2, **more)
    assert torch.equal(load_weights(find(tmp_path)[0][0])["still"], still["still"])


def test_without_the_optimizer_files_the_model_is_read_as_it_was_saved(tmp_path: Path, make: Any) -> None:
    masters = Masters(make)
    folder = save_2(tmp_path / "global_step3", masters, 2)
    for file in folder.glob("*optim*"):
        file.unlink()
    (checkpoint,), _ = find(tmp_path)
    weights = load_weights(checkpoint)
    assert weights["0.weight"].dtype == torch.bfloat16 and load_optimizer(checkpoint) is None
    assert torch.equal(weights["0.weight"], masters.module.state_dict()["0.weight"].bfloat16())


def test_without_zero_the_optimizer_is_in_the_model_file(tmp_path: Path, make: Any) -> None:
    masters = Masters(make)
    (tmp_path / "global_step3").mkdir()
    content = {**model_file(masters), "optimizer": masters.optimizer.state_dict()}
    torch.save(content, tmp_path / "global_step3" / "mp_rank_00_model_states.pt")
    (checkpoint,), _ = find(tmp_path)
    raw = load_optimizer(checkpoint)
    assert raw is not None and len(raw.state) == 6 and configuration(checkpoint)["optimizer"]["lr"] == 0.02


def in_deepspeed(monkeypatch: pytest.MonkeyPatch, path: str) -> Any:
    """A class that pickles under a name of DeepSpeed's, which is not installed."""
    module, _, name = path.rpartition(".")
    kind = type(name, (), {"__module__": module, "__qualname__": name})
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    setattr(sys.modules[module], name, kind)
    return kind


def test_the_settings_that_deepspeed_saves_are_passed_over(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = in_deepspeed(monkeypatch, "deepspeed.runtime.fp16.loss_scaler.LossScaler")()
    vars(scaler).update(cur_scale=65536.0, dynamic=False)
    masters = Masters(make)
    folder = save_2(tmp_path / "global_step3", masters, 2, args=Namespace(lr=0.1, name="x"))
    for file in folder.glob("*optim*"):
        content = torch.load(file, weights_only=True)
        content["optimizer_state_dict"]["loss_scaler"] = scaler
        torch.save(content, file)
    for name in [name for name in sys.modules if name.startswith("deepspeed")]:
        monkeypatch.delitem(sys.modules, name)
    before = set(torch.serialization.get_safe_globals())
    (checkpoint,), skipped = find(tmp_path)
    assert skipped == []
    check_weights(load_weights(checkpoint), masters)
    check_state(checkpoint, masters)
    assert set(torch.serialization.get_safe_globals()) == before


class Trap:
    """A pickle that would create a file if it were ever run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("where", ["model", "optimizer"])
def test_code_is_refused_with_the_converter_and_never_run(tmp_path: Path, make: Any, where: str) -> None:
    canary = tmp_path / "canary"
    folder = save_2(tmp_path / "run" / "global_step3", Masters(make), 2)
    file = sorted(folder.glob("*model*" if where == "model" else "*rank_1*optim*"))[0]
    torch.save({**torch.load(file, weights_only=True), "client": Trap(canary)}, file)
    checkpoints, (skipped,) = find(tmp_path / "run")
    assert checkpoints == [] and skipped.path == file and "zero_to_fp32.py" in skipped.remedy
    assert "only code" in skipped.reason and not canary.exists()
    with pytest.raises(InputError, match=r"python zero_to_fp32\.py"):
        open_run(tmp_path / "run")


def test_what_slips_past_the_look_is_refused_by_the_reader(tmp_path: Path, make: Any) -> None:
    folder = save_2(tmp_path / "global_step3", Masters(make), 2)
    (checkpoint,), _ = find(tmp_path)
    canary = tmp_path / "canary"
    file = folder / "mp_rank_00_model_states.pt"
    torch.save({"module": {}, "client": Trap(canary)}, file)
    with pytest.raises(UnsafeFileError, match="zero_to_fp32"):
        load_weights(checkpoint)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mp_rank_01_model_states.pt", "split over model"),
        ("layer_00-model_00-model_states.pt", "split over model"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "split over model"),
        ("bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt", "split over model"),
    ],
)
def test_models_split_otherwise_are_refused_with_what_to_run(
    tmp_path: Path, make: Any, name: str, hint: str
) -> None:
    folder = save_2(tmp_path / "global_step3", Masters(make), 2)
    torch.save({}, folder / name)
    checkpoints, (skipped,) = find(tmp_path)
    assert checkpoints == [] and hint in skipped.reason and "ds_to_universal" in skipped.remedy


@pytest.mark.parametrize("damage", ["missing rank", "truncated", "short group", "no model"])
def test_damaged_folders_are_skipped_and_named(tmp_path: Path, make: Any, damage: str) -> None:
    folder = save_2(tmp_path / "global_step3", Masters(make), 2)
    save_2(tmp_path / "global_step4", Masters(make), 2)
    file = folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    if damage == "missing rank":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "no model":
        (folder / "mp_rank_00_model_states.pt").rename(folder / "zero_pp_rank_1_mp_rank_00_model_states.pt")
        for optimizer in folder.glob("*optim*"):
            optimizer.unlink()
    else:
        content = torch.load(file, weights_only=True)
        content["optimizer_state_dict"]["single_partition_of_fp32_groups"][0] = torch.zeros(1)
        torch.save(content, file)
        with pytest.raises(InputError, match="do not fit together"):
            load_weights(find(tmp_path)[0][0])
        return
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [4]
    assert len(skipped) == 1 and skipped[0].checkpoint and skipped[0].remedy


@pytest.mark.parametrize("beside", ["nothing", "weights"])
def test_a_trainer_checkpoint_keeps_its_zero_folder_inside(tmp_path: Path, make: Any, beside: str) -> None:
    masters = Masters(make)
    entry = tmp_path / "checkpoint-3"
    save_2(entry / "global_step3", masters, 2)
    (entry / "latest").write_text("global_step3")
    (entry / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if beside == "weights":
        make.weights(entry)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, checkpoint.path, skipped) == (3, "deepspeed", entry, [])
    assert configuration(checkpoint)["model"] == {"model_type": "llama"}
    check_weights(load_weights(checkpoint), masters)
    check_state(checkpoint, masters)


def test_where_the_zero_folder_is_refused_the_trainers_own_weights_are_read(
    tmp_path: Path, make: Any
) -> None:
    entry = tmp_path / "checkpoint-3"
    folder = save_2(entry / "global_step3", Masters(make), 2)
    (entry / "latest").write_text("global_step3")
    make.weights(entry)
    torch.save({}, folder / "mp_rank_01_model_states.pt")
    (checkpoint,), _ = find(tmp_path)
    assert checkpoint.layout == "hf_trainer" and len(load_weights(checkpoint)) == 6


def test_a_latest_that_leads_outside_is_refused(tmp_path: Path, make: Any) -> None:
    save_2(tmp_path / "elsewhere", Masters(make), 2)
    entry = tmp_path / "run" / "checkpoint-3"
    entry.mkdir(parents=True)
    (entry / "latest").write_text("../../elsewhere")
    checkpoints, (skipped,) = find(tmp_path / "run")
    assert checkpoints == [] and "leads outside" in skipped.reason
