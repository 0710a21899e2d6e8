"""torch.distributed.checkpoint folders: written by torch itself, or by hand where they are hostile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

from hnf_offline.run import open_run
from hnf_offline.run.batches import load_rows
from hnf_offline.run.formats import configuration, dcp, find, load_optimizer, load_weights
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.optimizer import match_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

#: What the real run needs to be replayed whole; the model is in its RUN.json.
MANIFEST = """\
[batches]
file = "{data}/text/shakespeare_char_bin/train.bin"
starts = "batch_starts.npy"
length = 64
"""


def saved(folder: Path, content: Mapping[str, Any]) -> Path:
    distributed.save(dict(content), checkpoint_id=folder, no_dist=True)
    return folder


def trained(make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = make.module()
    decayed = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95))
    make.train(module, optimizer)
    return module, optimizer


def same_weights(checkpoint: Any, module: nn.Module) -> bool:
    weights, state = load_weights(checkpoint), module.state_dict()
    return set(weights) == set(state) and all(torch.equal(weights[name], state[name]) for name in state)


def check_state(checkpoint: Any, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.names and len(raw.groups) == 2
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    state = match_optimizer(raw, shapes, open_run(checkpoint.path).optimizer, checkpoint.path)
    assert state.kind == "adamw"
    for name, parameter in module.named_parameters():
        own, theirs = state.parameters[name], optimizer.state[parameter]
        assert torch.equal(own.exp_avg, theirs["exp_avg"]), name
        assert torch.equal(own.exp_avg_sq, theirs["exp_avg_sq"]), name
        assert (own.step, own.learning_rate, own.beta1) == (3, 0.02, 0.8)
        assert own.weight_decay == (0.3 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("flattened", [False, True], ids=["groups", "groups by parameter"])
def test_what_torch_writes_is_read_back_equal(tmp_path: Path, make: Any, flattened: bool) -> None:
    module, optimizer = trained(make)
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    state = get_optimizer_state_dict(module, optimizer, options=options)
    content = {"model": get_model_state_dict(module), "optimizer": state, "train_state": {"step": 7}}
    folder = saved(tmp_path / "step-7", content)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, skipped) == (7, "dcp", [])
    assert checkpoint.weight_files == (folder / ".metadata", folder / "__0_0.distcp")
    assert checkpoint.optimizer_files == checkpoint.weight_files
    assert same_weights(checkpoint, module)
    check_state(checkpoint, module, optimizer)
    settings = configuration(checkpoint)["optimizer"]
    assert (settings["lr"], settings["betas"], settings["weight_decay"]) == (0.02, (0.8, 0.95), 0.3)
    assert "params" not in settings


@pytest.mark.parametrize("kind", ["torchtitan", "tutorial", "accelerate", "weights only"])
def test_other_trainers_arrange_it_otherwise(tmp_path: Path, make: Any, kind: str) -> None:
    module, optimizer = trained(make)
    options = StateDictOptions(flatten_optimizer_state_dict=kind == "torchtitan")
    state = get_optimizer_state_dict(module, optimizer, options=options)
    weights = get_model_state_dict(module)
    folder = tmp_path / "checkpoint-12"
    if kind == "torchtitan":
        saved(folder, {**weights, "optimizer": state, "lr_scheduler": {"last": torch.tensor(3)}})
    elif kind == "tutorial":
        saved(folder, {"app": {"model": weights, "optim": state}})
    elif kind == "accelerate":
        saved(folder / "pytorch_model_fsdp_0", {"model": weights})
        saved(folder / "optimizer_0", {"optimizer": state})
    else:
        saved(folder, weights)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.path, skipped) == (12, folder, [])
    assert same_weights(checkpoint, module)
    if kind == "weights only":
        assert checkpoint.optimizer_files == () and load_optimizer(checkpoint) is None
    else:
        check_state(checkpoint, module, optimizer)


def test_numbered_optimizer_state_stays_numbered(tmp_path: Path, make: Any) -> None:
    module, optimizer = trained(make)
    saved(tmp_path / "step-1", {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    raw = load_optimizer(find(tmp_path)[0][0])
    assert (
        raw is not None
        and not raw.names
        and [group["params"] for group in raw.groups]
        == [
            [0, 1],
            [2, 3, 4, 5],
        ]
    )
    assert raw.state[0]["exp_avg"].shape == (5, 3)


@pytest.mark.parametrize("step", [31, torch.tensor(31)], ids=["number", "tensor"])
def test_the_step_is_saved_where_the_name_has_none(tmp_path: Path, make: Any, step: Any) -> None:
    saved(tmp_path / "last", {"model": make.module().state_dict(), "train_state": {"step": step}})
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [31]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    saved(tmp_path / "step-1", {"model": {"w": tensor, "scalar": torch.tensor(2).to(dtype)}})
    weights = load_weights(find(tmp_path)[0][0])
    assert weights["w"].dtype == dtype and torch.equal(weights["w"], tensor)
    assert weights["scalar"].shape == ()


def test_other_hidden_metadata_files_are_no_checkpoints(tmp_path: Path, make: Any) -> None:
    (tmp_path / "notes-3").mkdir()
    (tmp_path / "notes-3" / ".metadata").write_text("{}")
    make.weights(tmp_path / "step-4")
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [4] and skipped == []


@pytest.mark.real
def test_the_real_run_is_read_whole(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(MANIFEST.format(data=data.resolve()))
    run = open_run(data / "runs" / "dcp_fsdp2_nanogpt", tmp_path / "run.toml")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [20, 40, 60, 80, 100, 120]
    assert run.missing == () and run.skipped == ()
    assert run.model is not None and run.model.kind == "gpt" and run.model.config["n_embd"] == 32
    assert run.configuration["optimizer.betas"] == [0.9, 0.95]
    assert run.batches is not None and (run.batches.rows, run.batches.rows_per_step) == (1920, 16)
    assert run.log is not None
    logged = dict(run.log.rows.select("step", "loss").iter_rows())
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    for checkpoint in run.checkpoints:
        weights = load_weights(checkpoint)
        assert all(tensor.isfinite().all() for tensor in weights.values())
        load_weights_into(module, weights)
        raw = load_optimizer(checkpoint)
        assert raw is not None
        state = match_optimizer(raw, shapes, run.optimizer, checkpoint.path)
        assert state.kind == "adamw" and list(state.parameters) == [name for name, _ in shapes]
        assert {one.step for one in state.parameters.values()} == {checkpoint.step}
        if checkpoint.step == 120:
            continue
        # The proof: these weights on the next step's batch give the loss that the trainer logged.
        tokens, labels = load_rows(run.batches, run.batches.rows_of_step(checkpoint.step + 1))
        with torch.no_grad():
            loss = evaluate(module, tokens, labels).loss.item()
        assert loss == pytest.approx(logged[checkpoint.step + 1], abs=1e-4)


@pytest.mark.real
def test_real_weights_and_moments_equal_what_torch_reads(data: Path) -> None:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    for checkpoint in find(data / "runs" / "dcp_fsdp2_nanogpt")[0][::3]:
        theirs: dict[str, Any] = {}
        _load_state_dict(
            theirs,
            storage_reader=distributed.FileSystemReader(checkpoint.path),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
        weights = load_weights(checkpoint)
        assert set(weights) == set(theirs["model"])
        assert all(torch.equal(weights[name], theirs["model"][name]) for name in weights)
        raw = load_optimizer(checkpoint)
        assert raw is not None
        for name, state in theirs["optimizer"]["state"].items():
            assert all(torch.equal(raw.state[name][key], value) for key, value in state.items())


def test_opening_needs_no_torch(tmp_path: Path, make: Any) -> None:
    import subprocess
    import sys

    module, optimizer = trained(make)
    saved(
        tmp_path / "step-7",
        {"model": module.state_dict(), "optimizer": get_optimizer_state_dict(module, optimizer)},
    )
    code = (
        "import sys; from hnf_offline.run.open import open_run\n"
        f"run = open_run({str(tmp_path)!r})\n"
        "assert run.configuration['optimizer.learning_rate'] == 0.02, run.configuration\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_a_layout() -> None:
    from hnf_offline.run.formats import FORMATS

    assert FORMATS[dcp.LAYOUT] is dcp
