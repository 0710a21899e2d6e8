"""Megatron-LM's checkpoints: torch_dist folders as its strategies write them, and legacy files."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.formats import configuration, find, load_optimizer, load_weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ARGUMENTS = {
    "lr": 0.003,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "weight_decay": 0.1,
    "num_layers": 2,
}


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "embedding.word_embeddings.weight": torch.randn(10, 4).bfloat16(),
        "decoder.layers.self_attention.linear_proj.weight": torch.randn(2, 4, 4).bfloat16(),
        "decoder.final_layernorm.weight": torch.randn(4).bfloat16(),
    }


def save_torch_dist(folder: Path, *, common: Any = None, optimizer: bool = True) -> dict[str, Tensor]:
    """Flat names; moments under `optimizer.state.<kind>.<parameter>`; settings in common.pt."""
    content: dict[str, Any] = dict(weights())
    if optimizer:
        for name, tensor in weights().items():
            content[f"optimizer.state.exp_avg.{name}"] = tensor.float() + 1
            content[f"optimizer.state.exp_avg_sq.{name}"] = tensor.float() ** 2
            content[f"optimizer.state.fp32_param.{name}"] = tensor.float()
    content["decoder.layers.self_attention.core_attention._extra_state/shard_0_2"] = torch.zeros(3)
    content["rng_state/shard_0_1"] = torch.zeros(3)
    distributed.save(content, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"})
    )
    group = {"lr": 0.002, "betas": (0.9, 0.95), "eps": 1e-8, "step": 1000, "params": [], "max_lr": 0.003}
    plain = {
        "iteration": 1000,
        "args": Namespace(**ARGUMENTS),
        "optimizer": {"optimizer": {"param_groups": [group]}},
    }
    torch.save(plain if common is None else common, folder / "common.pt")
    return weights()


def test_torch_dist_weights_are_read_as_stored_and_moments_by_name(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1000")
    saved = save_torch_dist(tmp_path / "iter_0001000")
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, skipped) == (1000, "megatron", [])
    read = load_weights(checkpoint)
    assert set(read) == set(saved) and all(torch.equal(read[name], saved[name]) for name in saved)
    assert read["decoder.final_layernorm.weight"].dtype == torch.bfloat16
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.names and set(raw.state) == set(saved)
    for name, tensor in saved.items():
        assert torch.equal(raw.state[name]["exp_avg"], tensor.float() + 1)
        assert torch.equal(raw.state[name]["exp_avg_sq"], tensor.float() ** 2)
        assert raw.state[name]["step"] == 1000
    assert raw.groups[0]["lr"] == 0.002 and raw.groups[0]["weight_decay"] == 0.1
    sections = configuration(checkpoint)
    assert sections["optimizer"] == {"lr": 0.003, "eps": 1e-8, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    assert sections["training"]["num_layers"] == 2
    run = open_run(tmp_path)
    assert run.configuration["optimizer.learning_rate"] == 0.003 and run.model is None


def test_flat_pieces_of_moments_belong_to_no_parameter(tmp_path: Path) -> None:
    save_torch_dist(tmp_path / "iter_0000001", optimizer=False)
    (checkpoint,), _ = find(tmp_path)
    assert checkpoint.optimizer_files == () and load_optimizer(checkpoint) is None


def test_settings_that_need_code_are_left_out(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    save_torch_dist(tmp_path / "run" / "iter_0000001", common={"args": Trap(canary)})
    (checkpoint,), skipped = find(tmp_path / "run")
    assert skipped == [] and configuration(checkpoint) == {} and len(load_weights(checkpoint)) == 3
    raw = load_optimizer(checkpoint)
    assert raw is not None and "lr" not in raw.groups[0] and not canary.exists()


def test_without_common_the_weights_are_read(tmp_path: Path) -> None:
    save_torch_dist(tmp_path / "iter_0000001")
    (tmp_path / "iter_0000001" / "common.pt").unlink()
    (checkpoint,), _ = find(tmp_path)
    assert len(load_weights(checkpoint)) == 3 and configuration(checkpoint) == {}


def named(monkeypatch: pytest.MonkeyPatch, module: str, name: str, *bases: type) -> Any:
    """A class that pickles under a name of Megatron's, which is not installed."""
    kind = type(name, bases, {"__module__": module, "__qualname__": name})
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    setattr(sys.modules[module], name, kind)
    return kind


def test_megatrons_own_description_with_the_plans_of_its_ranks_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_torch_dist(tmp_path / "iter_0000005")
    file = tmp_path / "iter_0000005" / ".metadata"
    metadata: Metadata = pickle.loads(file.read_bytes())
    place = "megatron.core.dist_checkpointing.strategies.torch"
    own = named(monkeypatch, place, "MCoreMetadata", Metadata)
    vars(metadata)["mcore_data"] = {"x": {"nd_reformulated_orig_global_shape": (1, 2)}}
    index = next(iter(metadata.storage_data))
    vars(metadata)["all_local_plans"] = [SavePlan([WriteItem(index, WriteItemType.TENSOR)])]
    described = own.__new__(own)
    vars(described).update(vars(metadata))
    file.write_bytes(pickle.dumps(described))
    for name in [name for name in sys.modules if name.startswith("megatron")]:
        monkeypatch.delitem(sys.modules, name)
    (checkpoint,), skipped = find(tmp_path)
    read = load_weights(checkpoint)
    assert skipped == [] and all(torch.equal(read[name], saved[name]) for name in saved)


@pytest.mark.parametrize("damage", ["no description", "zarr", "truncated", "no weights"])
def test_what_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "iter_0001000"
    save_torch_dist(folder)
    save_torch_dist(tmp_path / "iter_0002000")
    if damage == "no description":
        (folder / ".metadata").unlink()
    elif damage == "zarr":
        (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    elif damage == "truncated":
        shard = next(folder.glob("*.distcp"))
        shard.write_bytes(shard.read_bytes()[:200])
    else:
        shutil.rmtree(folder)
        distributed.save({"rng_state/shard_0_1": torch.zeros(3)}, checkpoint_id=folder, no_dist=True)
        (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [2000]
    assert len(skipped) == 1 and skipped[0].remedy and skipped[0].checkpoint


def save_legacy(folder: Path, rank: str = "mp_rank_00", **more: Any) -> Path:
    file = folder / rank / "model_optim_rng.pt"
    file.parent.mkdir(parents=True)
    model = {"language_model": {"embedding": {"word_embeddings": {"weight": torch.arange(6.0).view(2, 3)}}}}
    torch.save({"args": Namespace(**ARGUMENTS), "iteration": 7, "model": model, **more}, file)
    return file


def test_a_legacy_file_of_one_part_is_read_where_it_holds_no_more_than_arguments(tmp_path: Path) -> None:
    save_legacy(tmp_path / "iter_0000007")
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, skipped) == (7, "megatron", [])
    (name,) = read = load_weights(checkpoint)
    assert name == "language_model.embedding.word_embeddings.weight" and read[name][1, 2] == 5
    assert configuration(checkpoint)["optimizer"]["betas"] == (0.9, 0.95)
    assert load_optimizer(checkpoint) is None


class Trap:
    """A pickle that would create a file if it were ever run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


def test_legacy_files_with_code_are_refused_with_the_converter(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = save_legacy(tmp_path / "run" / "iter_0000007", client=Trap(canary))
    with pytest.raises(InputError, match=r"tools/checkpoint/convert\.py") as caught:
        open_run(tmp_path / "run")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and not canary.exists()


def test_legacy_models_in_parts_are_refused_with_the_converter(tmp_path: Path) -> None:
    save_legacy(tmp_path / "iter_0000007")
    save_legacy(tmp_path / "iter_0000007", "mp_rank_01")
    checkpoints, (skipped,) = find(tmp_path)
    assert checkpoints == [] and "2 tensor or pipeline parts" in skipped.reason
    assert "convert.py" in skipped.remedy


def test_a_model_that_contains_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"weight": torch.ones(2)}
    loop["again"] = loop
    save_legacy(tmp_path / "iter_0000007", model=loop)
    checkpoints, skipped = find(tmp_path)
    assert len(checkpoints) + len(skipped) == 1
    for checkpoint in checkpoints:
        assert list(load_weights(checkpoint)) == ["weight"]
