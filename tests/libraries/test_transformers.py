"""Runs of the real transformers.Trainer, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from hnf_offline.run import load_weights, open_run  # noqa: E402
from hnf_offline.run.formats import find  # noqa: E402
from hnf_offline.run.model.build import build_model  # noqa: E402

from .reading_back import (  # noqa: E402
    GPT2,
    LLAMA,
    check_optimizer,
    check_weights,
    snapshot,
    state_of,
)

pytestmark = pytest.mark.libraries


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def model_of(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    rest = {key: value for key, value in config.items() if key != "model_type"}
    settings = transformers.AutoConfig.for_model(config["model_type"], **rest)
    return transformers.AutoModelForCausalLM.from_config(settings)


class Watch(transformers.TrainerCallback):
    """Keeps what the live objects hold whenever the Trainer saves."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.states: dict[int, dict[str, dict[str, torch.Tensor]]] = {}

    def on_save(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        optimizer = getattr(live["optimizer"], "optimizer", live["optimizer"])
        self.weights[state.global_step] = snapshot(live["model"])
        self.states[state.global_step] = state_of(live["model"], optimizer)


def train(folder: Path, model: Any, **changes: Any) -> Watch:
    watch = Watch()
    settings = {
        "max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "seed": 3,
        "learning_rate": 0.01, "weight_decay": 0.1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(output_dir=str(folder), **(settings | changes))
    transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[watch]).train()
    return watch


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_what_the_trainer_saves_by_default_is_read_back_equal(tmp_path: Path, config: dict[str, Any]) -> None:
    watch = train(tmp_path, model_of(config))
    run = open_run(tmp_path)
    assert [(checkpoint.step, checkpoint.layout) for checkpoint in run.checkpoints] == [
        (2, "hf_trainer"),
        (4, "hf_trainer"),
    ]
    assert run.model is not None and run.model.kind == "hf" and run.skipped == ()
    assert run.log is not None and run.log.rows["step"].to_list()[:4] == [1, 2, 3, 4]
    for checkpoint in run.checkpoints:
        module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
        live = watch.weights[checkpoint.step]
        assert [name for name, _ in module.named_parameters()] == list(live)
        check_weights(checkpoint, module, live)
        # Two groups, as the Trainer makes them: decay for matrices, none for biases and norms.
        state = check_optimizer(checkpoint, live, watch.states[checkpoint.step], "adamw")
        decays = {name: own.weight_decay for name, own in state.parameters.items()}
        assert set(decays.values()) == {0.1, 0.0}
        assert all((decay == 0.1) == (live[name].ndim > 1) for name, decay in decays.items())


def test_a_trainer_that_saves_only_the_model(tmp_path: Path) -> None:
    watch = train(tmp_path, model_of(LLAMA), save_only_model=True)
    run = open_run(tmp_path)
    assert [checkpoint.optimizer_files for checkpoint in run.checkpoints] == [(), ()]
    assert any(missing.what == "no optimizer state in 2 of 2 checkpoints" for missing in run.missing)
    assert run.model is not None
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    check_weights(run.checkpoints[0], module, watch.weights[2])


@pytest.mark.parametrize("name", ["sgd", "adafactor"])
def test_other_optimizers(tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {"optim_args": "momentum=0.9"} if name == "sgd" else {}
    watch = train(tmp_path, model_of(GPT2), optim=name, max_steps=2, **changes)
    (checkpoint,) = find(tmp_path)[0]
    kind = "sgd" if name == "sgd" else "other"
    live = {
        parameter: {key: value for key, value in state.items() if key != "RMS"}
        for parameter, state in watch.states[2].items()
    }
    state = check_optimizer(checkpoint, watch.weights[2], live, kind)
    if name == "sgd":
        assert {own.momentum for own in state.parameters.values()} == {0.9}


def test_the_final_model_beside_the_checkpoints(tmp_path: Path) -> None:
    model = model_of(LLAMA)
    train(tmp_path, model)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "final")
    run = open_run(tmp_path)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [2, 4]
    assert sorted(one.path.name for one in run.skipped) == ["final", tmp_path.name]
    assert all("no step" in one.reason for one in run.skipped)


def test_revisions_of_a_repository_one_folder_each(tmp_path: Path) -> None:
    # As downloaded for Pythia: step0, step1, step2, ... and main, each with the model's files.
    for step in (0, 1, 2, 1000):
        model = model_of(GPT2)
        for parameter in model.parameters():
            parameter.data.add_(step)
        model.save_pretrained(tmp_path / f"step{step}")
    model_of(GPT2).save_pretrained(tmp_path / "main")
    run = open_run(tmp_path)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 1, 2, 1000]
    assert run.model is not None and [one.path.name for one in run.skipped] == ["main"]
    first, second = (load_weights(checkpoint) for checkpoint in run.checkpoints[:2])
    assert torch.equal(first["transformer.wte.weight"] + 1, second["transformer.wte.weight"])


def test_shards_of_the_library(tmp_path: Path) -> None:
    model = model_of(LLAMA)
    model.save_pretrained(tmp_path / "checkpoint-7", max_shard_size="4KB")
    (checkpoint,), skipped = find(tmp_path)
    assert checkpoint.step == 7 and len(checkpoint.weight_files) > 2 and skipped == []
    check_weights(checkpoint, model_of(LLAMA), snapshot(model))


def test_older_files_of_the_library(tmp_path: Path) -> None:
    # pytorch_model.bin and its shards: transformers 5 reads them and writes them no more.
    model = model_of(LLAMA)
    state = model.state_dict()
    whole = tmp_path / "checkpoint-5"
    whole.mkdir()
    torch.save(state, whole / "pytorch_model.bin")
    parts = tmp_path / "checkpoint-6"
    parts.mkdir()
    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:7], "pytorch_model-00002-of-00002.bin": names[7:]}
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, parts / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {n: f for f, held in shards.items() for n in held}}
    (parts / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [5, 6] and skipped == []
    for checkpoint in checkpoints:
        check_weights(checkpoint, model_of(LLAMA), snapshot(model))
