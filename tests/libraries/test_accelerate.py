"""Checkpoints of the real accelerate, read back; and the whole state dicts of FSDP under the names it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

accelerate = pytest.importorskip("accelerate")

from hnf_offline.run.formats import find  # noqa: E402
from hnf_offline.run.model.gpt import GPT, GPTConfig  # noqa: E402

from .reading_back import check_optimizer, check_weights, snapshot, state_of  # noqa: E402

pytestmark = pytest.mark.libraries
SIZES = {"vocab_size": 32, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}


def model() -> GPT:
    return GPT(GPTConfig.from_mapping(SIZES)).initialise(torch.Generator().manual_seed(0))


def trained() -> tuple[Any, GPT, torch.optim.Optimizer]:
    accelerator = accelerate.Accelerator(cpu=True)
    module = model()
    decayed = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    prepared, optimizer = accelerator.prepare(module, torch.optim.AdamW(groups, lr=0.01))
    for _ in range(3):
        optimizer.zero_grad()
        accelerator.backward(prepared(torch.randint(0, 32, (2, 8))).square().mean())
        optimizer.step()
    return accelerator, module, optimizer.optimizer


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_save_state_is_read_back_equal(tmp_path: Path, safe: bool) -> None:
    accelerator, module, optimizer = trained()
    live, state = snapshot(module), state_of(module, optimizer)
    accelerator.save_state(str(tmp_path / "step_3"), safe_serialization=safe)
    checkpoints, skipped = find(tmp_path)
    assert [(one.step, one.layout) for one in checkpoints] == [(3, "hf_trainer")] and skipped == []
    check_weights(checkpoints[0], model(), live)
    check_optimizer(checkpoints[0], live, state, "adamw")


def test_folders_that_count_saves_have_the_optimizers_step(tmp_path: Path) -> None:
    project = accelerate.utils.ProjectConfiguration(
        project_dir=str(tmp_path), automatic_checkpoint_naming=True
    )
    accelerator = accelerate.Accelerator(cpu=True, project_config=project)
    module = model()
    prepared, optimizer = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=0.01))
    for step in range(1, 7):
        optimizer.zero_grad()
        accelerator.backward(prepared(torch.randint(0, 32, (2, 8))).square().mean())
        optimizer.step()
        if step % 3 == 0:
            accelerator.save_state()
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint_0",
        "checkpoint_1",
    ]
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [3, 6]


def test_fsdp_of_one_process_saves_whole_state_dicts(tmp_path: Path) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import save_fsdp_model, save_fsdp_optimizer
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module = model()
        fully_shard(module, mesh=distributed.init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            module(torch.randint(0, 32, (2, 8))).square().mean().backward()
            optimizer.step()
        live = {name: value.detach().full_tensor().clone() for name, value in module.named_parameters()}
        state = {
            name: {
                key: getattr(one, "full_tensor", lambda one=one: one)()
                for key, one in optimizer.state[value].items()
            }
            for name, value in module.named_parameters()
        }
        folder = tmp_path / "run" / "checkpoint-2"
        folder.mkdir(parents=True)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, state_dict_type="FULL_STATE_DICT", cpu_offload=False
        )

        class Process:
            process_index, num_processes, is_main_process = 0, 1, True

            def wait_for_everyone(self) -> None:
                pass

        save_fsdp_model(plugin, Process(), module, str(folder))
        save_fsdp_optimizer(plugin, Process(), optimizer, module, str(folder))
    finally:
        distributed.destroy_process_group()
    assert sorted(file.name for file in folder.iterdir()) == ["optimizer.bin", "pytorch_model_fsdp.bin"]
    (checkpoint,), skipped = find(tmp_path / "run")
    assert (checkpoint.step, checkpoint.layout, skipped) == (2, "hf_trainer", [])
    check_weights(checkpoint, model(), live)
    check_optimizer(checkpoint, live, state, "adamw")


def test_shards_of_single_ranks_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    for rank in range(2):
        torch.save({"w": torch.ones(2)}, folder / f"pytorch_model_fsdp_rank{rank}.bin")
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and len(skipped) == 1
    assert "single FSDP ranks" in skipped[0].reason and "FULL_STATE_DICT" in skipped[0].remedy
