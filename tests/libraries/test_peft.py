"""LoRA of the real peft, trained by the real Trainer, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")

from hnf_offline.run import load_weights, open_run  # noqa: E402

from .reading_back import GPT2, LLAMA, check_optimizer  # noqa: E402
from .test_transformers import model_of, train  # noqa: E402

pytestmark = pytest.mark.libraries
#: Twelve layers: by alphabet the eleventh comes before the third.
DEEP = {**LLAMA, "num_hidden_layers": 12}


def of_the_adapter(live: dict[str, Any]) -> dict[str, Any]:
    return {name.replace(".default", ""): value for name, value in live.items() if "lora_" in name}


@pytest.mark.parametrize(
    ("config", "targets", "binary"),
    [
        (DEEP, ["q_proj", "k_proj", "v_proj", "o_proj"], False),
        (LLAMA, ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], True),
        (GPT2, ["c_attn", "c_proj", "c_fc"], False),
    ],
    ids=["deep", "bin", "gpt2"],
)
def test_an_adapter_is_read_back_equal(
    tmp_path: Path, config: dict[str, Any], targets: list[str], binary: bool
) -> None:
    lora = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=config is GPT2)
    wrapped = peft.get_peft_model(model_of(config), lora)
    watch = train(tmp_path, wrapped, max_steps=2)
    if binary:
        (tmp_path / "checkpoint-2" / "adapter_model.safetensors").unlink()
        state = peft.get_peft_model_state_dict(wrapped)
        torch.save(state, tmp_path / "checkpoint-2" / "adapter_model.bin")
    run = open_run(tmp_path)
    (checkpoint,) = run.checkpoints
    assert (checkpoint.step, checkpoint.layout, checkpoint.adapter) == (2, "adapter", True)
    assert run.model is None and run.missing[0].what == "only an adapter"
    assert run.configuration["training.adapter.r"] == 2
    live = of_the_adapter(watch.weights[2])
    read = load_weights(checkpoint)
    assert list(read) == list(live)
    assert all(torch.equal(read[name], live[name]) for name in live)
    check_optimizer(checkpoint, live, of_the_adapter(watch.states[2]), "adamw")


def test_a_report_on_adapters_reads_the_log_and_the_weights(tmp_path: Path) -> None:
    from hnf_offline.cli import main

    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    train(tmp_path / "run", peft.get_peft_model(model_of(LLAMA), lora), max_steps=8, save_steps=4)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "only an adapter" in (tmp_path / "out" / "findings.json").read_text()


def test_an_adapter_of_another_name_lies_a_folder_deeper(tmp_path: Path) -> None:
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model_of(LLAMA), lora, adapter_name="mine").save_pretrained(tmp_path / "checkpoint-3")
    (checkpoint,) = open_run(tmp_path).checkpoints
    assert checkpoint.adapter and checkpoint.step == 3
    assert all("lora_" in name for name in load_weights(checkpoint))
