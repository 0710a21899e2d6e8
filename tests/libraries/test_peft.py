"""LoRA of the real peft, trained by the real Trainer, read back."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("accelerate")

from hnf_offline.check.replay import replay  # noqa: E402
from hnf_offline.errors import InputError  # noqa: E402
from hnf_offline.profile.metric import step_metric  # noqa: E402
from hnf_offline.profile.run import profile_run  # noqa: E402
from hnf_offline.profile.settings import ProfileSettings  # noqa: E402
from hnf_offline.run import load_optimizer, load_weights, match_optimizer, open_run  # noqa: E402
from hnf_offline.run.model.build import build_model, load_weights_into  # noqa: E402
from hnf_offline.run.optimizer import OptimizerState, ParameterState  # noqa: E402

from .reading_back import GPT2, LLAMA, check_optimizer  # noqa: E402
from .test_transformers import Rows, Watch, model_of, train  # noqa: E402

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


#: What PEFT puts before every name.
BEFORE = "base_model.model."
TOKENS = torch.stack([Rows()[k]["input_ids"] for k in range(5)])
#: Wide weights: with the usual ones a tiny model is all but linear.
UNTIED = {**LLAMA, "tie_word_embeddings": False, "initializer_range": 0.3}


@dataclass
class Trained:
    """A run of adapters beside the model they were trained on, and what was live when it was saved."""

    run: Path
    live: Any
    watch: Watch

    def exact(self) -> Any:
        """The live model in float64, without dropout."""
        return copy.deepcopy(self.live).double().eval()


def trained(
    folder: Path,
    *,
    config: dict[str, Any] = UNTIED,
    base_dtype: torch.dtype = torch.float32,
    added: int = 0,
    task: str = "CAUSAL_LM",
    **lora: Any,
) -> Trained:
    """Save a base, load it as a user would, train adapters on it for 4 steps, and save rows to replay."""
    model_of(config).to(base_dtype).save_pretrained(folder / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=base_dtype)
    if added:
        base.resize_token_embeddings(config["vocab_size"] + added)
    settings = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], **lora}
    torch.manual_seed(1)
    live = peft.get_peft_model(base, peft.LoraConfig(task_type=task, **settings))
    watch = train(
        folder / "run", live, max_steps=4, save_steps=4, learning_rate=0.02, lr_scheduler_type="constant"
    )
    save_file({"input_ids": TOKENS.int()}, folder / "run" / "batches.safetensors")
    return Trained(folder / "run", live, watch)


def live_state(watch: Watch, names: list[str]) -> OptimizerState:
    """AdamW's state of the live optimizer, by parameter name."""
    states = watch.states[4]
    return OptimizerState(
        "adamw",
        {
            name: ParameterState(
                learning_rate=0.02,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                step=4,
                exp_avg=states[name]["exp_avg"].double(),
                exp_avg_sq=states[name]["exp_avg_sq"].double(),
            )
            for name in names
        },
    )


def check_replay(of: Trained, folder: Path) -> Any:
    """Loss, gradients and S of the replay are those of the live model by dense derivatives in float64."""
    run = open_run(of.run)
    assert run.model is not None and run.model.kind == "adapter", run.missing
    settings = ProfileSettings(tier="curvature", dtype="float64", accuracy="certified")
    table = profile_run(run, settings, folder).table
    exact = of.exact()
    parameters = {name: value for name, value in exact.named_parameters() if value.requires_grad}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = exact(input_ids=TOKENS, labels=TOKENS).loss
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    gradient = torch.cat([one.flatten() for one in gradients])
    hessian = torch.cat([
        torch.cat([
            row.flatten(1)
            for row in torch.autograd.grad(
                gradient, list(parameters.values()), rows, is_grads_batched=True, retain_graph=True
            )
        ], dim=1)
        for rows in torch.eye(len(gradient), dtype=torch.float64).split(128)
    ])  # fmt: skip
    metric = step_metric(live_state(of.watch, list(parameters)), parameters)
    assert metric is not None
    root = torch.cat([metric[name].flatten() for name in parameters]).sqrt()

    def row(quantity: str, layer: str = "") -> dict[str, Any]:
        return table.filter((table["quantity"] == quantity) & (table["layer"] == layer)).row(0, named=True)

    def measured(quantity: str, layer: str = "") -> float:
        return float(row(quantity, layer)["value"])

    assert measured("replay.loss") == pytest.approx(float(loss.detach()), rel=1e-6)
    assert measured("gradient.norm") == pytest.approx(float(gradient.detach().norm()), rel=1e-5)
    for name, one in zip(parameters, gradients, strict=True):
        layer = name.removeprefix(BEFORE).rpartition(".")[0]
        assert measured("gradient.norm", layer) == pytest.approx(
            float(one.detach().norm()), rel=1e-4, abs=1e-9
        ), name
    for quantity, matrix in (
        ("hessian.lambda_max", hessian),
        ("hessian.stability_ratio", root[:, None] * hessian * root),
    ):
        highest = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
        assert measured(quantity) == pytest.approx(highest, rel=1e-3), quantity
        assert row(quantity)["low"] <= highest * (1 + 1e-6) and highest * (1 - 1e-6) <= row(quantity)["high"]
    return run, table


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"modules_to_save": ["lm_head"]},
        {"use_rslora": True},
        {"base_dtype": torch.bfloat16},
        {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"layers.1.self_attn.v_proj": 64}},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"config": LLAMA, "target_modules": ["o_proj", "gate_proj"]},
        {"added": 3},
        {"added": 3, "modules_to_save": ["embed_tokens", "lm_head"]},
        {"config": GPT2, "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ],
    ids=["plain", "head", "rslora", "bf16", "patterns", "embedding", "tied", "added", "added-saved", "gpt2"],
)
def test_an_adapter_is_replayed_on_its_base(tmp_path: Path, case: dict[str, Any]) -> None:
    of = trained(tmp_path, **case)
    run, table = check_replay(of, tmp_path / "out")
    assert [one.what for one in run.missing] == []
    # The frozen weights have no layer of their own; what was trained has all of its optimizer state.
    (checkpoint,) = run.checkpoints
    names = [name for name, value in of.live.named_parameters() if value.requires_grad]
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    load_weights_into(module, load_weights(checkpoint))
    own = dict(module.named_parameters())
    assert [f"{BEFORE}{name}" for name in own] == names
    assert all(torch.equal(own[name.removeprefix(BEFORE)], of.watch.weights[4][name]) for name in names)
    raw = load_optimizer(checkpoint)
    assert raw is not None
    shapes = [(name, tuple(value.shape)) for name, value in own.items()]
    state = match_optimizer(raw, shapes, run.optimizer, checkpoint.path)
    for name, one in state.parameters.items():
        assert torch.equal(one.exp_avg_sq, of.watch.states[4][f"{BEFORE}{name}"]["exp_avg_sq"]), name
    with_gradient = set(table.filter(table["quantity"] == "gradient.norm")["layer"]) - {""}
    assert with_gradient == {name.rpartition(".")[0] for name in own}


def test_another_base_is_another_measurement(tmp_path: Path) -> None:
    of = trained(tmp_path)
    losses = []
    for factor in (1.0, 1.0, 1.5):
        file = tmp_path / "base" / "model.safetensors"
        save_file({name: factor * value for name, value in load_file(file).items()}, file, {"format": "pt"})
        profile = profile_run(open_run(of.run), ProfileSettings(tier="forward"), tmp_path / "out")
        losses.append(float(profile.table.filter(profile.table["quantity"] == "replay.loss")["value"][0]))
    assert losses[0] == losses[1] != losses[2]


def test_adapters_of_another_base_are_told(tmp_path: Path) -> None:
    of = trained(tmp_path)
    for change in ({"hidden_size": 32}, {"num_hidden_layers": 1}):
        folder = tmp_path / "other" / next(iter(change))
        model_of({**UNTIED, **change}).save_pretrained(folder)
        manifest = tmp_path / "mine.toml"
        manifest.write_text(f'[model]\nbase = "{folder}"\n')
        with pytest.raises(InputError) as error:
            profile_run(open_run(of.run, manifest), ProfileSettings(tier="forward"), tmp_path / "out")
        assert "\n" not in str(error.value) and (
            "shape" in str(error.value) or "no such layer" in str(error.value)
        )


def test_a_new_head_comes_with_the_adapter(tmp_path: Path) -> None:
    """The base is a language model; the task puts a classifier of three classes on it."""
    model_of(UNTIED).save_pretrained(tmp_path / "base")
    live = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    live = peft.get_peft_model(live, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).eval()
    labels = torch.tensor([0, 2, 1, 1, 0])
    with torch.no_grad():
        live.base_model.model.score.modules_to_save.default.weight.normal_()
    live.save_pretrained(tmp_path / "run" / "checkpoint-4")
    save_file({"input_ids": TOKENS.int(), "labels": labels}, tmp_path / "run" / "batches.safetensors")
    run = open_run(tmp_path / "run")
    assert run.model is not None, run.missing
    table = profile_run(run, ProfileSettings(tier="gradient", dtype="float64"), tmp_path / "out").table
    exact = copy.deepcopy(live).double()
    loss = torch.nn.functional.cross_entropy(
        torch.stack([exact(input_ids=row[None]).logits[0] for row in TOKENS]), labels
    )
    loss.backward()
    rows = table.filter(table["quantity"] == "gradient.norm")
    measured = dict(zip(rows["layer"], rows["value"], strict=True))
    assert set(measured) - {""} == {
        name.removeprefix(BEFORE).rpartition(".")[0]
        for name, value in live.named_parameters()
        if value.requires_grad
    }
    for name, value in exact.named_parameters():
        if value.requires_grad:
            norm = float(value.grad.norm())
            assert measured[name.removeprefix(BEFORE).rpartition(".")[0]] == pytest.approx(
                norm, rel=1e-4, abs=1e-9
            ), name
    (head,) = set(rows.filter(rows["layer"].str.contains("score"))["kind"])
    assert head == "head"


class InOrder(transformers.Trainer):
    """The Trainer without shuffling, so that the batch of every step is known."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def test_replayed_losses_are_those_logged_and_training_is_repeated_to_the_last_digit(tmp_path: Path) -> None:
    from hnf_offline.cli import main

    model_of(UNTIED).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.manual_seed(1)
    live = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=16, save_steps=4, logging_steps=1, per_device_train_batch_size=4,
        learning_rate=0.02, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    InOrder(model=live, args=arguments, train_dataset=Rows()).train()
    rows = torch.stack([Rows()[k]["input_ids"] for k in range(64)])
    save_file({"input_ids": rows.int()}, tmp_path / "run" / "batches.safetensors")
    run = open_run(tmp_path / "run")
    table = profile_run(run, ProfileSettings(tier="forward"), tmp_path / "out").table
    assert run.log is not None
    logged = dict(zip(run.log.rows["step"], run.log.rows["loss"], strict=True))
    for step in (4, 8, 12):
        replayed = table.filter(
            (table["step"] == step)
            & (table["quantity"] == "replay.loss")
            & (table["batch"] == f"step {step + 1}")
        )
        assert float(replayed["value"][0]) == pytest.approx(logged[step + 1], rel=1e-5)
    losses = replay(run, None, "cpu").losses
    assert {(4, 5), (8, 9), (12, 13)} <= set(losses)
    assert all(losses[at] == pytest.approx(logged[at[1]], rel=1e-5) for at in losses if at[1] == at[0] + 1)
    zoom = [
        "zoom",
        str(tmp_path / "run"),
        "--from",
        "4",
        "--to",
        "8",
        "--out",
        str(tmp_path / "zoom"),
        "--quiet",
    ]
    assert main(zoom) == 0
    document = json.loads((tmp_path / "zoom" / "rerun.json").read_text())
    assert (document["verdict"], document["weight_difference_max"]) == ("exact", 0)
