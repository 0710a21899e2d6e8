"""The Hugging Face callback sees every micro-batch, changes nothing, and what it froze is the run.

The Trainer itself needs accelerate; where that is absent a loop with the Trainer's own callback handler, in the order
of transformers 5.23's `_run_epoch`, takes its place.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import UsageError
from hnf_offline.run import load_optimizer, load_rows, load_weights, open_run
from hnf_offline.run.random_states import load_random_state

transformers = pytest.importorskip("transformers")
from transformers import GPT2Config, GPT2LMHeadModel, TrainerControl, TrainerState  # noqa: E402
from transformers.trainer_callback import CallbackHandler  # noqa: E402

from hnf_offline.record.transformers_callback import FlightRecorderCallback  # noqa: E402

KEEP = {"keep": 24, "state_every": 8, "after": 4}
PARTS, ROWS, LENGTH, STEPS = 2, 2, 8, 40


def make() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation="eager",
        embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def rows(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randint(0, 32, (ROWS, LENGTH), generator=generator) for _ in range(PARTS)]


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Tensor], count: float = 28.0
) -> tuple[Tensor, Tensor]:
    """One step as the Trainer takes it: losses summed over all micro-batches and divided by one count."""
    total = torch.zeros(())
    for part in parts:
        mask = torch.ones_like(part)
        loss = model(input_ids=part, labels=part, attention_mask=mask, num_items_in_batch=count).loss
        loss.backward()
        total = total + loss.detach()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total, norm


def drive(callback: FlightRecorderCallback | None, spike_at: int = 28) -> tuple[list[Tensor], nn.Module]:
    model = make()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapped = SimpleNamespace(optimizer=optimizer)  # as accelerate does
    args: Any = SimpleNamespace(
        max_grad_norm=1.0, gradient_accumulation_steps=PARTS, bf16=False, fp16=False, seed=42, world_size=1
    )
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    handler = CallbackHandler([] if callback is None else [callback], model, None, wrapped, None)
    handler.on_train_begin(args, state, control)
    losses = []
    for step in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = 5.0 if step == spike_at else 1e-3
        handler.on_step_begin(args, state, control)
        loss, norm = update(model, optimizer, rows(step))
        losses.append(loss)
        state.global_step += 1
        handler.on_step_end(args, state, control)
        handler.on_log(args, state, control, {"grad_norm": float(norm), "loss": float(loss)})
        model.eval()  # an evaluation between steps is not recorded
        with torch.no_grad():
            model(input_ids=rows(step)[0])
        model.train()
    handler.on_train_end(args, state, control)
    return losses, model


def check_frozen(folder: Path, losses: list[Tensor]) -> None:
    """Retrain from the oldest state, bit by bit."""
    run = open_run(folder)
    assert run.skipped == () and run.log is not None and run.batches is not None
    assert run.random_states is not None and run.model is not None and run.model.kind == "hf"
    first = run.checkpoints[0]
    model = make()
    model.load_state_dict(load_weights(first), strict=False)
    raw = load_optimizer(first)
    assert raw is not None
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.param_groups[0] |= {key: value for key, value in raw.groups[0].items() if key != "params"}
    for name, parameter in model.named_parameters():
        state = raw.state.get(name, {})
        if state:
            optimizer.state[parameter] = {**state, "step": torch.tensor(float(state["step"]))}
    logged = {row["step"]: row for row in run.log.rows.iter_rows(named=True)}
    model.train()
    for step in range(first.step + 1, run.random_states.steps[-1] + 1):
        tokens, _ = load_rows(run.batches, tuple(run.batches.rows_of_step(step)))
        state = load_random_state(run.random_states, step)
        assert state is not None
        torch.set_rng_state(state["cpu"])
        optimizer.param_groups[0]["lr"] = logged[step]["learning_rate"]
        loss, norm = update(model, optimizer, list(tokens.split(ROWS)), logged[step]["num_items_in_batch"])
        assert float(loss) == pytest.approx(logged[step]["loss"], rel=1e-8)
        assert torch.equal(loss, losses[step - 1])
        assert logged[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-6)


def test_what_it_froze_retrains_bitwise_with_dropout_and_accumulation(tmp_path: Path) -> None:
    callback = FlightRecorderCallback(tmp_path / "box", **KEEP, training={"note": "mine"})
    losses, _ = drive(callback)
    assert callback.box is not None and len(callback.box.frozen) == 1
    run = open_run(callback.box.frozen[0])
    settings = run.configuration
    assert settings["training.accumulation"] == settings["training.gradient_accumulation_steps"] == PARTS
    assert settings["training.max_grad_norm"] == 1.0 and settings["training.precision"] == "float32"
    assert settings["training.dropout"] is True and settings["training.note"] == "mine"
    assert settings["model.model_type"] == "gpt2"
    assert run.batches is not None and len(run.batches.rows_of_step(28)) == PARTS * ROWS
    check_frozen(callback.box.frozen[0], losses)


def test_training_is_bitwise_the_same_with_and_without(tmp_path: Path) -> None:
    with_box, one = drive(FlightRecorderCallback(tmp_path / "box", **KEEP))
    without, other = drive(None)
    assert torch.equal(torch.stack(with_box), torch.stack(without))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_only_the_first_process_records_and_compiled_models_are_refused(tmp_path: Path) -> None:
    model = make()
    given = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    callback = FlightRecorderCallback(tmp_path / "box")
    callback.on_train_begin(SimpleNamespace(), TrainerState(is_world_process_zero=False), None, **given)
    assert callback.box is None and not (tmp_path / "box").exists()
    with pytest.raises(UsageError, match="compiled model"):
        callback.on_train_begin(
            SimpleNamespace(torch_compile=True), TrainerState(is_world_process_zero=True), None, **given
        )


def test_an_exception_in_training_freezes(tmp_path: Path) -> None:
    model = make()
    model.train()
    given = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    state = TrainerState(is_world_process_zero=True)
    with pytest.raises(IndexError), FlightRecorderCallback(tmp_path / "box", **KEEP) as callback:
        callback.on_train_begin(SimpleNamespace(), state, None, **given)
        callback.on_step_begin(None, state, None)
        model(input_ids=torch.full((1, 4), 99))
    assert [path.name for path in (tmp_path / "box").iterdir()] == ["frozen-000000"]
    run = open_run(tmp_path / "box" / "frozen-000000")
    assert run.batches is not None and len(run.batches.rows_of_step(1)) == 1


@pytest.mark.libraries
def test_in_the_trainer_itself(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    data = [
        {"input_ids": row, "labels": row}
        for step in range(1, STEPS + 1)
        for part in rows(step)
        for row in part
    ]

    def fit(callbacks: list[Any]) -> tuple[Any, nn.Module]:
        model = make()
        args = TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=ROWS, gradient_accumulation_steps=PARTS,
            max_steps=STEPS, learning_rate=1e-3, max_grad_norm=1.0, logging_steps=1, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, lr_scheduler_type="linear", optim="adamw_torch",
        )  # fmt: skip
        trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=callbacks)
        trainer.train()
        return trainer.state.log_history, model

    callback = FlightRecorderCallback(tmp_path / "box", **KEEP)
    plain, one = fit([])
    history, other = fit([callback])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert [row["loss"] for row in plain if "loss" in row] == [
        row["loss"] for row in history if "loss" in row
    ]
    assert callback.box is not None
    folder = callback.box.freeze("look")
    run = open_run(folder)
    assert run.log is not None
    told = [row for row in history if "grad_norm" in row]
    recorded = run.log.rows
    assert recorded["loss"].to_list() == pytest.approx([row["loss"] for row in told], abs=2e-4)
    assert recorded["grad_norm"].to_list() == pytest.approx([row["grad_norm"] for row in told], rel=1e-6)
    assert recorded["learning_rate"].to_list() == pytest.approx([row["learning_rate"] for row in told])
    check_frozen(folder, [torch.tensor(loss) for loss in recorded["loss"].to_list()])


WITHOUT = """
import sys
sys.modules["transformers"] = None
try:
    import hnf_offline.record.transformers_callback
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_transformers_the_extra_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError") and "hnf_offline[hf]" in done.stdout
