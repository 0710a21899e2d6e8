"""OLMo's unsharded checkpoints, written as its own code does (olmo/safetensors_util.py, train.py)."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.run.formats import configuration, find, load_optimizer, load_weights
from hnf_offline.run.optimizer import match_optimizer
from hnf_offline.run.records import OptimizerSettings

CONFIG = "model: {d_model: 8, n_layers: 2}\noptimizer: {name: adamw, learning_rate: 0.02}\nseed: 6\n"


def named(keys: tuple[Any, ...], pickled: bool, protocol: int) -> str:
    return base64.urlsafe_b64encode(pickle.dumps((keys, pickled), protocol=protocol)).decode()


def flat(content: Mapping[Any, Any], protocol: int = 4, above: tuple[Any, ...] = ()) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        keys = (*above, key)
        if isinstance(value, Tensor):
            found[named(keys, False, protocol)] = value.contiguous()
        elif isinstance(value, dict):
            found |= flat(value, protocol, keys)
        else:
            data = bytearray(pickle.dumps(value, protocol=protocol))
            found[named(keys, True, protocol)] = torch.frombuffer(data, dtype=torch.uint8)
    return found


def trained(make: Any, *, by_name: bool) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    module = make.module()
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    make.train(module, optimizer)
    state = optimizer.state_dict()
    name_of = {id(value): name for name, value in module.named_parameters()}
    names = [[name_of[id(p)] for p in group["params"]] for group in groups]
    for group, own in zip(state["param_groups"], names, strict=True):
        group["param_names"] = own
        if by_name:
            group["params"] = own
    if by_name:
        state["state"] = dict(
            zip([*names[0], *names[1]], (dict(s) for s in state["state"].values()), strict=True)
        )
    return module, optimizer, state


def written(
    folder: Path, weights: Mapping[str, Any], state: Mapping[str, Any], *, safe: bool, protocol: int = 4
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    for name, content in (("model", weights), ("optim", state)):
        if safe:
            save_file(flat(content, protocol), folder / f"{name}.safetensors")
        else:
            torch.save(dict(content), folder / f"{name}.pt")
    torch.save({"global_step": 7, "rng": {"python": (3, (1, 2), None)}}, folder / "train.pt")
    return folder


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pt"])
@pytest.mark.parametrize("by_name", [True, False], ids=["fsdp", "one process"])
def test_weights_and_state_are_read_back_equal(tmp_path: Path, make: Any, safe: bool, by_name: bool) -> None:
    module, optimizer, state = trained(make, by_name=by_name)
    folder = written(tmp_path / "step1000-unsharded", module.state_dict(), state, safe=safe)
    (tmp_path / "latest-unsharded").symlink_to(folder.name)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, checkpoint.path, skipped) == (1000, "olmo", folder, [])
    weights = load_weights(checkpoint)
    assert set(weights) == set(module.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.names
    shapes = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    matched = match_optimizer(raw, shapes, OptimizerSettings(), checkpoint.path)
    for name, value in module.named_parameters():
        own, theirs = matched.parameters[name], optimizer.state[value]
        assert torch.equal(own.exp_avg, theirs["exp_avg"]) and torch.equal(
            own.exp_avg_sq, theirs["exp_avg_sq"]
        )
        assert (own.step, own.learning_rate) == (3, 0.02)
        assert own.weight_decay == (0.1 if value.ndim > 1 else 0.0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_of_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    written(tmp_path / "step5-unsharded", {"a.b": torch.ones(2)}, {"state": {}}, safe=True, protocol=protocol)
    assert load_weights(find(tmp_path)[0][0])["a.b"].tolist() == [1, 1]


def test_one_checkpoint_named_by_its_link(tmp_path: Path, make: Any) -> None:
    module, _, state = trained(make, by_name=True)
    folder = written(tmp_path / "step40-unsharded", module.state_dict(), state, safe=True)
    (tmp_path / "latest-unsharded").symlink_to(folder.name)
    assert [checkpoint.step for checkpoint in find(tmp_path / "latest-unsharded")[0]] == [40]


def test_settings_come_from_the_yaml(tmp_path: Path, make: Any) -> None:
    pytest.importorskip("yaml")
    module, _, state = trained(make, by_name=True)
    folder = written(tmp_path / "step40-unsharded", module.state_dict(), state, safe=True)
    sections = configuration(find(tmp_path)[0][0])
    assert sections["model"]["d_model"] == 8 and sections["training"] == {"seed": 6}
    assert sections["optimizer"]["learning_rate"] == 0.02
    # One thing named by many anchors stays small; what is no YAML, or makes objects, is nothing.
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    for text in (bomb, "a: [", "!!python/object/apply:os.system ['true']", "- 1", "[" * 5000, "x" * 300_000):
        (folder / "config.yaml").write_text(text)
        assert len(str(configuration(find(tmp_path)[0][0]))) < 10_000


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize(
    "keys", [("a", Trap(Path("canary"))), Trap(Path("canary")), "text", (), (1.5,), ("a",) * 50, None]
)
def test_names_that_are_no_places_are_refused_and_never_run(
    tmp_path: Path, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "step5-unsharded", {}, {"state": {}}, safe=True)
    save_file({named(keys, False, 4): torch.ones(2)}, folder / "model.safetensors")
    (checkpoint,), _ = find(tmp_path)
    with pytest.raises(InputError) as caught:
        load_weights(checkpoint)
    assert caught.value.path == folder / "model.safetensors" and not (tmp_path / "canary").exists()


def test_a_pickled_value_that_names_anything_is_left_out_and_never_run(tmp_path: Path, make: Any) -> None:
    module, optimizer, state = trained(make, by_name=True)
    state["param_groups"] = [{"params": [], "x": Trap(tmp_path / "canary")}]
    written(tmp_path / "step5-unsharded", module.state_dict(), state, safe=True)
    (checkpoint,), _ = find(tmp_path)
    raw = load_optimizer(checkpoint)
    assert raw is not None and set(raw.state) == {name for name, _ in module.named_parameters()}
    assert torch.equal(raw.state["0.weight"]["exp_avg"], optimizer.state[module[0].weight]["exp_avg"])
    assert not (tmp_path / "canary").exists()


def test_shards_of_ranks_name_the_converter(tmp_path: Path) -> None:
    for name in ("rank0.pt", "model/rank0.pt"):
        folder = tmp_path / name.replace("/", "-") / "step7"
        (folder / name).parent.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG)
        torch.save({"model": {"w": torch.ones(2)}}, folder / name)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and len(skipped) == 2
    assert all("unshard.py" in one.remedy for one in skipped)


def test_an_unsharded_checkpoint_without_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "step7-unsharded").mkdir()
    (tmp_path / "step7-unsharded" / "config.yaml").write_text(CONFIG)
    assert "no model weights" in find(tmp_path)[1][0].reason
