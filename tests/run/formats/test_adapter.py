"""Adapters by hand: what is read of them, and in which order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hnf_offline.run import open_run
from hnf_offline.run.formats import find, load_weights
from hnf_offline.run.formats.adapter_order import in_order_of_modules, is_order_known

BASE = "base_model.model.model.layers"


def written(folder: Path, names: list[str], **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file(
        {name: torch.full((2, 2), float(i)) for i, name in enumerate(names)},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **config}))
    torch.save({"state": {}, "param_groups": [{"params": list(range(len(names)))}]}, folder / "optimizer.pt")
    return folder


def test_an_adapter_is_a_checkpoint_without_a_model(tmp_path: Path) -> None:
    names = [
        f"{BASE}.0.self_attn.{part}.lora_{side}.weight" for part in ("q_proj", "v_proj") for side in "AB"
    ]
    written(tmp_path / "checkpoint-9", names)
    # The model it was trained on is described, but its weights are not here.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    run = open_run(tmp_path)
    (checkpoint,) = run.checkpoints
    assert (checkpoint.step, checkpoint.adapter, len(checkpoint.optimizer_files)) == (9, True, 1)
    assert run.model is None and [missing.what for missing in run.missing][:1] == ["only an adapter"]
    assert list(load_weights(checkpoint)) == names


def test_a_whole_model_beside_an_adapter_is_a_whole_model(tmp_path: Path) -> None:
    folder = written(tmp_path / "checkpoint-9", ["a.lora_A.weight"])
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (checkpoint,), _ = find(tmp_path)
    assert checkpoint.layout == "hf_trainer" and not checkpoint.adapter


def test_layers_are_in_the_order_of_their_numbers_and_parts() -> None:
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    names = [f"{BASE}.{i}.{part}.lora_{side}.weight" for i in range(12) for part in parts for side in "AB"]
    assert in_order_of_modules(sorted(names)) == names and is_order_known(names)


def test_some_models_define_keys_first() -> None:
    names = [
        f"model.decoder.layers.3.self_attn.{part}.lora_A.weight" for part in ("k_proj", "v_proj", "q_proj")
    ]
    assert in_order_of_modules(sorted(names)) == names and is_order_known(names)


def test_the_state_of_modules_in_no_known_order_is_left_out(tmp_path: Path) -> None:
    written(tmp_path / "checkpoint-9", ["net.zeta.lora_A.weight", "net.alpha.lora_A.weight"])
    (checkpoint,), _ = find(tmp_path)
    assert checkpoint.adapter and checkpoint.optimizer_files == ()


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_adapter_is_told(tmp_path: Path, content: bytes) -> None:
    folder = written(tmp_path / "checkpoint-9", ["a.lora_A.weight"])
    (folder / "adapter_model.safetensors").write_bytes(content)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and len(skipped) == 1 and skipped[0].remedy


def test_two_adapters_in_one_checkpoint_are_not_mixed(tmp_path: Path) -> None:
    for name in ("first", "second"):
        written(tmp_path / "checkpoint-9" / name, ["a.lora_A.weight"])
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "2 adapters: first, second" in skipped[0].reason


def test_the_order_of_target_modules_is_no_setting(tmp_path: Path) -> None:
    # PEFT keeps them as a set: each process writes them in another order.
    names = [f"{BASE}.0.self_attn.q_proj.lora_A.weight"]
    orders = ["v_proj", "q_proj", "down_proj"], ["down_proj", "v_proj", "q_proj"]
    written(tmp_path / "one" / "checkpoint-9", names, target_modules=orders[0], layers_to_transform=[2, 1])
    written(tmp_path / "other" / "checkpoint-9", names, target_modules=orders[1], layers_to_transform=[1, 2])
    one, other = (open_run(tmp_path / name).configuration for name in ("one", "other"))
    assert one["training.adapter.target_modules"] == other["training.adapter.target_modules"]
    assert one["training.adapter.layers_to_transform"] != other["training.adapter.layers_to_transform"]
