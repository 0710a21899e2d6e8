"""Runs that torch.distributed.checkpoint writes, sharded over processes, read back bit for bit without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
distributed = pytest.importorskip("torch.distributed.checkpoint")
from hnf_offline.run import open_run  # noqa: E402
from hnf_offline.run.formats import find, load_optimizer, load_weights  # noqa: E402
from hnf_offline.run.optimizer import match_optimizer  # noqa: E402

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
REAL = DATA / "runs" / "dcp_fsdp2_nanogpt"

#: Two gloo processes train a model with FSDP2 whose sizes two does not divide, and save it in several ways.
TRAINER = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

folder, rank = sys.argv[1], int(sys.argv[2])
os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.set_num_threads(1)
torch.manual_seed(0)
module = torch.nn.Sequential(
    torch.nn.Linear(3, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 1), torch.nn.Linear(1, 5, bias=False)
)
module.register_buffer("scale", torch.tensor(2.5))
mesh = init_device_mesh("cpu", (2,))
for layer in module:
    fully_shard(layer, mesh=mesh)
fully_shard(module, mesh=mesh)
optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, betas=(0.8, 0.95))
for step in range(1, 4):
    torch.manual_seed(10 * step + rank)
    module(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def content(flattened):
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    return {
        "model": get_model_state_dict(module),
        "optimizer": get_optimizer_state_dict(module, optimizer, options=options),
        "train_state": {"step": torch.tensor(3), "name": "x"},
    }


dcp.save(content(False), checkpoint_id=f"{folder}/run/step-3")
group = dist.new_group(backend="gloo")
waiting = dcp.async_save(content(False), checkpoint_id=f"{folder}/later/step-3", process_group=group)
waiting.result()
titan = content(True)
weights = titan.pop("model")
dcp.save({**weights, **titan}, checkpoint_id=f"{folder}/titan/step-3")
dcp.save(
    weights,
    storage_writer=dcp.HuggingFaceStorageWriter(f"{folder}/shards/step-3", save_distributed=True),
)
dcp.save(
    weights,
    storage_writer=dcp.HuggingFaceStorageWriter(
        f"{folder}/whole/step-3", save_distributed=True, enable_consolidation=True
    ),
)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "trainer.py").write_text(TRAINER)
    processes = [
        subprocess.Popen(
            [sys.executable, "trainer.py", str(folder), str(rank)],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, told = process.communicate(timeout=240)
        assert process.returncode == 0, told[-3000:]
    return folder


def converted(folder: Path, target: Path) -> dict[str, Any]:
    """What torch's own converter makes of it."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(folder, target)
    return dict(torch.load(target, weights_only=True))


def same(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return bool(one == other)


def check_against(theirs: dict[str, Any], checkpoint: Any) -> int:
    """Every weight and every optimizer value equal; how many values were compared."""
    weights, raw = load_weights(checkpoint), load_optimizer(checkpoint)
    assert set(weights) == set(theirs["model"])
    assert all(same(weights[name], value) for name, value in theirs["model"].items())
    assert raw is not None and set(raw.state) == set(theirs["optimizer"]["state"])
    values = 0
    for name, state in theirs["optimizer"]["state"].items():
        assert set(raw.state[name]) == set(state)
        assert all(same(raw.state[name][key], value) for key, value in state.items())
        values += len(state)
    for own, group in zip(raw.groups, theirs["optimizer"]["param_groups"], strict=True):
        assert {key: own[key] for key in group} == group
    return values + len(weights)


@pytest.mark.parametrize("name", ["run", "later"])
def test_uneven_shards_of_two_processes_equal_torchs_converter(
    trained: Path, tmp_path: Path, name: str
) -> None:
    (checkpoint,), skipped = find(trained / name)
    assert (checkpoint.step, checkpoint.layout, skipped) == (3, "dcp", [])
    assert len([file for file in checkpoint.weight_files if file.suffix == ".distcp"]) == 2
    theirs = converted(trained / name / "step-3", tmp_path / "whole.pt")
    assert check_against(theirs, checkpoint) == 8 + 7 * 3
    shapes = [(key, tuple(value.shape)) for key, value in theirs["model"].items() if key != "scale"]
    raw = load_optimizer(checkpoint)
    assert raw is not None
    state = match_optimizer(raw, shapes, open_run(trained / name).optimizer, checkpoint.path)
    assert state.parameters["0.weight"].step == 3 and state.parameters["3.weight"].learning_rate == 0.01


def test_torchtitans_arrangement_equals_torchs_converter(trained: Path, tmp_path: Path) -> None:
    (checkpoint,), _ = find(trained / "titan")
    theirs = converted(trained / "titan" / "step-3", tmp_path / "whole.pt")
    weights, raw = load_weights(checkpoint), load_optimizer(checkpoint)
    assert len(weights) == 8 and all(same(value, theirs[name]) for name, value in weights.items())
    assert raw is not None and len(raw.state) == 7
    flat = {key: value for key, value in theirs["optimizer"].items() if key.startswith("state.")}
    assert len(flat) == 7 * 3
    for key, value in flat.items():
        _, _, rest = key.partition(".")
        name, _, kind = rest.rpartition(".")
        assert same(raw.state[name][kind], value)


@pytest.mark.parametrize("name", ["shards", "whole"])
def test_safetensors_that_it_writes_equal_its_own_format(trained: Path, name: str) -> None:
    (checkpoint,), skipped = find(trained / name)
    assert checkpoint.step == 3 and skipped == []
    ours, theirs = load_weights(checkpoint), load_weights(find(trained / "run")[0][0])
    if name == "whole":
        # torch 2.13 writes zero for a tensor without axes when it puts shards together; in the shards it is right.
        assert ours.pop("scale").item() in {0.0, theirs.pop("scale").item()}
    assert set(ours) == set(theirs) and all(same(ours[key], theirs[key]) for key in theirs)


def test_safetensors_shards_that_are_not_all_there_are_named(trained: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained / "shards", tmp_path / "run")
    next((tmp_path / "run" / "step-3").glob("shard-00001-*")).unlink()
    checkpoints, (skipped,) = find(tmp_path / "run")
    assert checkpoints == [] and "some ranks are missing" in skipped.reason and skipped.remedy


def test_an_unfinished_save_is_named(trained: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "step-3" / ".metadata").rename(tmp_path / "run" / "step-3" / ".metadata.tmp")
    checkpoints, (skipped,) = find(tmp_path / "run")
    assert checkpoints == [] and "not finished" in skipped.reason


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the real runs are not here")
@pytest.mark.parametrize("step", range(20, 121, 20))
def test_every_real_checkpoint_equals_torchs_converter(tmp_path: Path, step: int) -> None:
    run = open_run(REAL)
    (checkpoint,) = (point for point in run.checkpoints if point.step == step)
    theirs = converted(REAL / f"step-{step}", tmp_path / "whole.pt")
    assert check_against(theirs, checkpoint) > 50
