"""DeepSpeed's ZeRO folders, written as its source writes them: cut over ranks, padded, settings among tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hnf_offline.run.formats import configuration, find, load_optimizer, load_weights

from .deepspeed_folders import Masters, check_state, check_weights, model_file, save_2, save_3


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
