"""State dicts as loops of anyone's own save them, nanoGPT's and Lightning's files among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hnf_offline.run import open_run
from hnf_offline.run.formats import configuration, find, load_optimizer, load_weights
from hnf_offline.run.formats.names import epoch_in_name, number_in_name
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.optimizer import match_optimizer
from hnf_offline.run.records import OptimizerSettings

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 4, "vocab_size": 9, "bias": False}


def trained(make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = make.module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    make.train(module, optimizer)
    return module, optimizer


def same(checkpoint: Any, module: nn.Module) -> bool:
    weights, state = load_weights(checkpoint), module.state_dict()
    return set(weights) == set(state) and all(torch.equal(weights[name], state[name]) for name in state)


def check_state(checkpoint: Any, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    raw = load_optimizer(checkpoint)
    assert raw is not None
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    state = match_optimizer(raw, named, OptimizerSettings(), checkpoint.path)
    for name, parameter in module.named_parameters():
        assert torch.equal(state.parameters[name].exp_avg, optimizer.state[parameter]["exp_avg"]), name
        assert torch.equal(state.parameters[name].exp_avg_sq, optimizer.state[parameter]["exp_avg_sq"]), name


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model_500.pt", 500),
        ("step_100.pth", 100),
        ("ckpt_0010.bin", 10),
        ("checkpoint-30.pth.tar", 30),
        ("model010000.pt", 10_000),
        ("epoch=2-step=40.ckpt", 40),
        ("0700.pt", 700),
        ("step-5/model.pt", 5),
        ("best.pt", 0),
    ],
)
def test_the_name_says_the_step(tmp_path: Path, make: Any, name: str, step: int) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    module = make.module()
    torch.save(module.state_dict(), tmp_path / name)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, skipped) == (step, "torch_state", [])
    assert same(checkpoint, module) and load_optimizer(checkpoint) is None


@pytest.mark.parametrize("model", ["model_state_dict", "model", "state_dict", "model_state", "net", "module"])
@pytest.mark.parametrize("optimizer", ["optimizer_state_dict", "optimizer", "optim", "opt"])
def test_usual_spellings(tmp_path: Path, make: Any, model: str, optimizer: str) -> None:
    module, live = trained(make)
    content = {
        model: module.state_dict(),
        optimizer: live.state_dict(),
        "loss": 1.5,
        "scheduler": {"last": 3},
    }
    torch.save({**content, "global_step": 70, "epoch": 2}, tmp_path / "latest.pt")
    (checkpoint,), _ = find(tmp_path)
    assert checkpoint.step == 70 and same(checkpoint, module)
    check_state(checkpoint, module, live)
    assert configuration(checkpoint)["optimizer"]["lr"] == 0.02


@pytest.mark.parametrize("key", ["step", "global_step", "iteration", "iter", "iter_num", "epoch"])
def test_the_step_inside(tmp_path: Path, make: Any, key: str) -> None:
    torch.save({"model": make.module().state_dict(), key: 30, "args": {"epochs": 9}}, tmp_path / "last.pth")
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [30]


def test_an_epoch_is_a_step_only_where_nothing_else_is(tmp_path: Path, make: Any) -> None:
    state = make.module().state_dict()
    torch.save(state, tmp_path / "model_epoch3.pt")
    torch.save({"model": state, "epoch": 4, "step": 800}, tmp_path / "model_epoch4.pt")
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [3, 800]


@pytest.mark.parametrize(
    ("stem", "number", "epoch"),
    [
        ("model_500", 500, None), ("weights.7", 7, None), ("my-net-12", 12, None), ("model010", 10, None),
        ("llama-7b", None, None), ("resnet-50", None, None), ("epoch_3", None, 3), ("vit_ep12", None, 12),
        ("recipe3", None, None), ("model_" + "9" * 40, None, None),
    ],
)  # fmt: skip
def test_numbers_in_names(stem: str, number: int | None, epoch: int | None) -> None:
    assert (number_in_name(stem), epoch_in_name(stem)) == (number, epoch)


def test_the_optimizer_in_a_file_beside(tmp_path: Path, make: Any) -> None:
    module, live = trained(make)
    torch.save(module.state_dict(), tmp_path / "model_500.pt")
    torch.save(live.state_dict(), tmp_path / "optimizer_500.pt")
    torch.save(module.state_dict(), tmp_path / "model_600.pt")
    torch.save({"optimizer": live.state_dict()}, tmp_path / "model_600_optim.pt")
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [500, 600] and skipped == []
    for checkpoint in checkpoints:
        check_state(checkpoint, module, live)


def test_what_is_no_checkpoint_is_not_taken_for_one(tmp_path: Path, make: Any) -> None:
    module, live = trained(make)
    state = module.state_dict()
    torch.save(live.state_dict(), tmp_path / "optimizer.pt")
    torch.save(live.state_dict(), tmp_path / "step_100.pt")
    torch.save({"rng": torch.get_rng_state()}, tmp_path / "rng_state.pth")
    torch.save({"last_epoch": 3, "_step_count": 4}, tmp_path / "scheduler.pt")
    torch.save({"scale": 65536.0}, tmp_path / "scaler.pt")
    torch.save({"input_ids": torch.ones(3, 4)}, tmp_path / "batches_100.pt")
    torch.save({"input_ids": torch.ones(3, 4)}, tmp_path / "samples.pt")
    torch.save({"a": 1}, tmp_path / "training_args.bin")
    torch.save(torch.ones(3), tmp_path / "model_7.pt")
    torch.save(state, tmp_path / "ema_100.pt")
    (tmp_path / "train.bin").write_bytes(b"\x80\x02" * 500)
    (tmp_path / "val.bin").write_bytes(b"PK\x03\x04" * 500)
    (tmp_path / "tokens.bin").write_bytes(bytes(100))
    assert find(tmp_path) == ([], [])


def test_parts_of_a_model_are_not_taken_for_the_whole(tmp_path: Path, make: Any) -> None:
    for rank in range(2):
        torch.save(make.module().state_dict(), tmp_path / f"model_step100_rank{rank}.pt")
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and len(skipped) == 2
    assert "one part of a model" in skipped[0].reason and "join the parts" in skipped[0].remedy


def test_wrapped_names_are_bare(tmp_path: Path, make: Any) -> None:
    module = make.module()
    for step, prefix in enumerate(("module.", "_orig_mod.", "module._orig_mod.")):
        torch.save({f"{prefix}{n}": v for n, v in module.state_dict().items()}, tmp_path / f"step_{step}.pt")
    checkpoints, _ = find(tmp_path)
    assert len(checkpoints) == 3 and all(same(checkpoint, module) for checkpoint in checkpoints)


def test_several_optimizers_of_one_model(tmp_path: Path, make: Any) -> None:
    # modded-nanogpt saves a list: Muon for matrices, Adam for the rest.
    module = make.module()
    matrices = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    first, second = torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(rest, lr=0.2)
    make.train(module, first)
    make.train(module, second)
    content = {
        "step": 9,
        "model": module.state_dict(),
        "optimizers": [first.state_dict(), second.state_dict()],
    }
    torch.save(content, tmp_path / "state_step000009.pt")
    (checkpoint,), _ = find(tmp_path)
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.kind == "other"
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    state = match_optimizer(raw, named, OptimizerSettings(), checkpoint.path).parameters
    for name, value in module.named_parameters():
        if value.ndim > 1:
            assert torch.equal(state[name].momentum_buffer, first.state[value]["momentum_buffer"])
        else:
            assert torch.equal(state[name].exp_avg, second.state[value]["exp_avg"])


@pytest.mark.parametrize("state", ["8-bit", "factored", "nothing usable"])
def test_optimizers_of_other_kinds_do_not_break_anything(tmp_path: Path, make: Any, state: str) -> None:
    module, live = trained(make)
    saved = live.state_dict()
    for one in saved["state"].values():
        if state == "8-bit":
            one.update(
                state1=one.pop("exp_avg").to(torch.uint8), absmax1=torch.ones(1), qmap1=torch.ones(256)
            )
            del one["exp_avg_sq"]
        elif state == "factored":
            one.clear()
            one.update(exp_avg_sq_row=torch.ones(2), exp_avg_sq_col=torch.ones(2), RMS=0.3, step=3)
        else:
            one.update(exp_avg="text", exp_avg_sq=[1, 2], step=float("nan"))
    saved["param_groups"][0].update(lr="fast", betas=None)
    torch.save({"model": module.state_dict(), "optimizer": saved}, tmp_path / "step_5.pt")
    (checkpoint,), _ = find(tmp_path)
    raw = load_optimizer(checkpoint)
    assert raw is not None
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    matched = match_optimizer(raw, named, OptimizerSettings(), checkpoint.path)
    assert matched.kind == "other"
    assert all(one.exp_avg is None and one.learning_rate is None for one in matched.parameters.values())


def nanogpt(
    folder: Path, *, compiled: bool = False, iteration: int = 250
) -> tuple[GPT, torch.optim.Optimizer]:
    # As train.py saves it: two groups by dimension, tied head stored twice, settings of the script.
    model = GPT(GPTConfig.from_mapping(SIZES)).initialise(torch.Generator().manual_seed(iteration))
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
    for step in range(2):
        optimizer.zero_grad()
        tokens = torch.randint(0, 9, (2, 4), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    prefix = "_orig_mod." if compiled else ""
    content = {
        "model": {f"{prefix}{name}": value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": SIZES | {"dropout": 0.0},
        "iter_num": iteration,
        "best_val_loss": torch.tensor(1.5),
        "config": {"learning_rate": 6e-4, "dataset": "chars"},
    }
    torch.save(content, folder)
    return model, optimizer


@pytest.mark.parametrize("compiled", [False, True])
def test_nanogpt_is_the_built_in_model(tmp_path: Path, compiled: bool) -> None:
    model, optimizer = nanogpt(tmp_path / "ckpt.pt", compiled=compiled)
    run = open_run(tmp_path)
    (checkpoint,) = run.checkpoints
    assert (checkpoint.step, checkpoint.layout) == (250, "nanogpt")
    assert run.model is not None and run.configuration["training.dataset"] == "chars"
    built = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    load_weights_into(built, load_weights(checkpoint))
    tokens = torch.arange(4)[None]
    assert torch.equal(built(tokens), model.eval()(tokens))
    check_state(checkpoint, model, optimizer)


def test_sizes_alone_do_not_make_it_the_built_in_model(tmp_path: Path, make: Any) -> None:
    torch.save({"model": make.module().state_dict(), "config": SIZES, "step": 3}, tmp_path / "last.pt")
    run = open_run(tmp_path)
    assert run.model is None and run.configuration["training.n_embd"] == 8


@pytest.mark.parametrize("key", ["config", "args", "model_args"])
def test_the_built_in_model_in_anyones_file(tmp_path: Path, key: str) -> None:
    model = GPT(GPTConfig.from_mapping(SIZES)).initialise(torch.Generator().manual_seed(1))
    torch.save(
        {"net": model.state_dict(), key: {"model": SIZES} if key == "config" else SIZES},
        tmp_path / "step_3.pt",
    )
    run = open_run(tmp_path)
    assert run.model is not None and run.model.kind == "gpt"
    built = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    load_weights_into(built, load_weights(run.checkpoints[0]))
    assert torch.equal(built(torch.arange(4)[None]), model(torch.arange(4)[None]))


def test_a_hundred_checkpoints_are_recognised_without_reading_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nanogpt(tmp_path / "ckpt.pt")
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    (tmp_path / "ckpt.pt").unlink()
    for step in range(20):
        torch.save({**saved, "iter_num": step * 10}, tmp_path / f"ckpt_{step}.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("tensors were read"))
    checkpoints, _ = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [step * 10 for step in range(20)]
    assert configuration(checkpoints[3])["model"]["n_embd"] == 8


def lightning(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, **changes: Any) -> None:
    content = {
        "epoch": 0,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": value for name, value in module.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{...}": {"best_model_score": torch.tensor(1.0), "dirpath": "/x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 5, "name": "small", "deep": {"er": [1, 2]}},
    }
    torch.save({**content, **changes}, path)


@pytest.mark.parametrize("name", ["epoch=0-step=20.ckpt", "last.ckpt", "best-v1.ckpt"])
def test_lightning(tmp_path: Path, make: Any, name: str) -> None:
    module, optimizer = trained(make)
    lightning(tmp_path / name, module, optimizer)
    run = open_run(tmp_path)
    (checkpoint,) = run.checkpoints
    assert (checkpoint.step, checkpoint.layout) == (20, "lightning")
    load_weights_into(module, load_weights(checkpoint))
    check_state(checkpoint, module, optimizer)
    assert run.configuration["training.width"] == 5 and run.configuration["training.deep.er"] == [1, 2]


def test_the_last_link_of_lightning_is_no_second_checkpoint(tmp_path: Path, make: Any) -> None:
    module, optimizer = trained(make)
    lightning(tmp_path / "epoch=0-step=20.ckpt", module, optimizer)
    (tmp_path / "last.ckpt").symlink_to("epoch=0-step=20.ckpt")
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.path.name for checkpoint in checkpoints] == ["epoch=0-step=20.ckpt"] and skipped == []


class OmegaConf:
    """Stands for a container of another package."""


def test_settings_that_are_objects_are_refused_by_name(tmp_path: Path, make: Any) -> None:
    module, optimizer = trained(make)
    lightning(tmp_path / "last.ckpt", module, optimizer, hyper_parameters={"config": OmegaConf()})
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "OmegaConf" in skipped[0].reason and "safetensors" in skipped[0].remedy


def test_a_module_among_others_finds_its_prefix(make: Any) -> None:
    # A LightningModule with a metric beside the model.
    module, other = make.module(), make.module()
    torch.nn.init.ones_(other[0].weight)
    weights = {f"net.{name}": value for name, value in other.state_dict().items()}
    load_weights_into(module, {**weights, "metric.total": torch.ones(1)})
    assert torch.equal(module[0].weight, other[0].weight)
