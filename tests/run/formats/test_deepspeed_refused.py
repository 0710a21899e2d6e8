"""DeepSpeed folders that hold settings, code or damage, or models split otherwise."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run import open_run
from hnf_offline.run.formats import configuration, find, load_weights

from .deepspeed_folders import Masters, check_state, check_weights, save_2


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
