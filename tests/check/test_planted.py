"""Faults planted into healthy runs: each is found, at its step, and nothing else is claimed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hnf_offline.check.examine import Examination
from tests.check.conftest import SAMPLES, STEPS, folder_of

Examined = Callable[..., Examination]
EMBEDDING, HEAD, MLP = "transformer.wte.weight", "lm_head.weight", "transformer.h.0.mlp.c_fc.weight"


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder_of(run, step) / "model.safetensors")


def put_weights(run: Path, step: int, weights: dict[str, torch.Tensor]) -> None:
    kept = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(kept, folder_of(run, step) / "model.safetensors")


def edit_optimizer(run: Path, step: int, edit: Callable[[dict], None]) -> None:
    file = folder_of(run, step) / "optimizer.safetensors"
    with safe_open(file, framework="pt") as opened:
        settings = json.loads(opened.metadata()["optimizer"])
    edit(settings)
    save_file(load_file(file), file, metadata={"optimizer": json.dumps(settings)})


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def put_rows(run: Path, rows: list[dict]) -> None:
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_batches(run: Path) -> None:
    (run / "batches.safetensors").unlink()


# -- the faults ---------------------------------------------------------------------------------------------------


def folder_copied(run: Path) -> None:
    shutil.rmtree(folder_of(run, 336))
    shutil.copytree(folder_of(run, 300), folder_of(run, 336))


def final_weights_in_an_early_step(run: Path) -> None:
    put_weights(run, 264, weights_of(run, 444))


def tensors_of_another_step(run: Path) -> None:
    other = weights_of(run, 300)
    put_weights(run, 336, weights_of(run, 336) | {name: other[name] for name in (EMBEDDING, MLP)})


def weights_exchanged(run: Path) -> None:
    one, other = weights_of(run, 264), weights_of(run, 372)
    put_weights(run, 264, other)
    put_weights(run, 372, one)


def weights_of_another_run(run: Path) -> None:
    put_weights(run, 300, load_file(SAMPLES / "spiky/checkpoints/step-000300/model.safetensors"))


def tensors_of_another_run(run: Path) -> None:
    other = load_file(SAMPLES / "spiky/checkpoints/step-000948/model.safetensors")
    put_weights(run, 336, weights_of(run, 336) | {name: other[name] for name in (EMBEDDING, MLP)})
    without_batches(run)


def pushed_off(run: Path, step: int, names: list[str], legs: float) -> None:
    """Move some tensors of one checkpoint sideways, by so many of their own legs to the checkpoint before."""
    before, here = weights_of(run, step - 36), weights_of(run, step)
    generator = torch.Generator().manual_seed(5)
    for name in names:
        sideways = torch.randn(here[name].shape, generator=generator)
        leg = (here[name] - before[name]).norm()
        here[name] = here[name] + legs * leg * sideways / sideways.norm()
    put_weights(run, step, here)
    without_batches(run)


def weights_off_the_way(run: Path) -> None:
    pushed_off(run, 336, list(weights_of(run, 336)), 3.0)


def one_tensor_off_the_way(run: Path) -> None:
    pushed_off(run, 336, [MLP], 4.0)


def another_run_from_a_step_on(run: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    first = weights_of(run, 372)
    for step in (372, 408, 444):
        drift = weights_of(run, step)
        turned = {}
        for name, tensor in drift.items():
            order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(len(tensor)))
            noise = first[name].std() * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7))
            turned[name] = noise + (tensor - first[name])[order]
        put_weights(run, step, turned)
    del generator
    without_batches(run)


def another_shape(run: Path) -> None:
    weights = weights_of(run, 408)
    put_weights(run, 408, weights | {EMBEDDING: weights[EMBEDDING][:-1], HEAD: weights[HEAD][:-1]})
    (folder_of(run, 408) / "optimizer.safetensors").unlink()


def another_name(run: Path) -> None:
    weights = weights_of(run, 228)
    weights["transformer.h.0.mlp.gate.weight"] = weights.pop(MLP)
    put_weights(run, 228, weights)
    without_batches(run)


def another_type(run: Path) -> None:
    put_weights(run, 300, {name: tensor.bfloat16() for name, tensor in weights_of(run, 300).items()})


def another_configuration(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"]["n_head"] = 7
    (folder_of(run, 336) / "config.json").write_text(json.dumps(config))


def two_runs_in_one_folder(run: Path) -> None:
    for step in (204, 240, 276, 312):
        shutil.copytree(
            SAMPLES / f"spiky/checkpoints/step-{step:06d}", run / "checkpoints" / f"step-{step:06d}"
        )


def file_cut_short(run: Path) -> None:
    file = folder_of(run, 264) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def shard_missing(run: Path) -> None:
    folder = folder_of(run, 372)
    weights = weights_of(run, 372)
    halves = dict(list(weights.items())[:3]), dict(list(weights.items())[3:])
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").unlink()
    save_file(halves[0], folder / names[0])
    shards = {name: shard for half, shard in zip(halves, names, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def nan_weights(run: Path) -> None:
    weights = weights_of(run, 408)
    weights[MLP][3, :5] = float("nan")
    weights[HEAD][0, 0] = float("inf")
    put_weights(run, 408, weights)


def head_no_longer_tied(run: Path) -> None:
    for step in STEPS:
        weights = weights_of(run, step)
        if step != 336:
            put_weights(run, step, weights | {HEAD: weights[EMBEDDING]})
    without_batches(run)


def another_learning_rate(run: Path) -> None:
    edit_optimizer(run, 336, lambda settings: settings["param_groups"][0].update(lr=0.01))


def another_step_in_the_optimizer(run: Path) -> None:
    edit_optimizer(run, 300, lambda saved: saved.update(step=dict.fromkeys(saved["step"], 299)))


def optimizer_of_another_step(run: Path) -> None:
    shutil.copy(folder_of(run, 300) / "optimizer.safetensors", folder_of(run, 336) / "optimizer.safetensors")


def optimizer_of_another_model(run: Path) -> None:
    file = folder_of(run, 264) / "optimizer.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({key: torch.cat([one, one]) for key, one in load_file(file).items()}, file, metadata=metadata)


def log_that_counts_from_0(run: Path) -> None:
    put_rows(run, [row | {"step": row["step"] - 1} for row in rows_of(run)])


def weights_that_training_did_not_go_on_with(run: Path) -> None:
    weights = weights_of(run, 192)
    put_weights(run, 192, weights | {HEAD: 1.2 * weights[HEAD]})


def batch_of_another_run(run: Path) -> None:
    file = run / "batches.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    saved = load_file(file)
    save_file(
        {name: tensor.flip(0) if tensor.ndim == 1 else tensor for name, tensor in saved.items()},
        file,
        metadata,
    )


def two_runs_in_one_log(run: Path) -> None:
    put_rows(run, [row | {"loss": loss} for row in rows_of(run) for loss in (1.7 * row["loss"], row["loss"])])


def gap_in_the_log(run: Path) -> None:
    put_rows(run, [row for row in rows_of(run) if not 205 <= row["step"] < 290])


def log_that_ends_early(run: Path) -> None:
    put_rows(run, rows_of(run)[:310])


def rounded_weights(run: Path) -> None:
    # The last checkpoints of the sample, where the learning rate falls to 0.
    shutil.rmtree(run / "checkpoints")
    for step in range(768, 985, 36):
        folder = run / "checkpoints" / f"step-{step:06d}"
        shutil.copytree(SAMPLES / "steady" / "checkpoints" / folder.name, folder)
        put_weights(run, step, {name: tensor.bfloat16() for name, tensor in weights_of(run, step).items()})
    shutil.copy(SAMPLES / "steady" / "log.jsonl", run / "log.jsonl")
    without_batches(run)


PLANTED = [
    (folder_copied, "identical-weights", 336),
    (final_weights_in_an_early_step, "identical-weights", 264),
    (tensors_of_another_step, "identical-weights", 336),
    (weights_exchanged, "discontinuity", 264),
    (weights_of_another_run, "discontinuity", 300),
    (tensors_of_another_run, "discontinuity", 336),
    (weights_off_the_way, "discontinuity", 336),
    (one_tensor_off_the_way, "discontinuity", 336),
    (another_run_from_a_step_on, "discontinuity", 372),
    (another_shape, "other-shapes", 408),
    (another_name, "other-shapes", 228),
    (another_type, "other-dtype", 300),
    (another_configuration, "mixed-runs", 336),
    (two_runs_in_one_folder, "mixed-runs", 204),
    (file_cut_short, "damaged", 264),
    (shard_missing, "damaged", 372),
    (nan_weights, "nonfinite-weights", 408),
    (head_no_longer_tied, "tied-weights", 336),
    (another_learning_rate, "learning-rate", 336),
    (another_step_in_the_optimizer, "step-count", 300),
    (optimizer_of_another_step, "optimizer-state", 336),
    (optimizer_of_another_model, "optimizer-state", 264),
    (log_that_counts_from_0, "replayed-loss", None),
    (weights_that_training_did_not_go_on_with, "replayed-loss", 192),
    (batch_of_another_run, "replayed-loss", None),
    (two_runs_in_one_log, "log", 1),
    (gap_in_the_log, "log", 204),
    (log_that_ends_early, "log", None),
    (rounded_weights, "save-precision", None),
]


def test_the_healthy_run_is_sound(healthy: Path, examined: Examined) -> None:
    done = examined(healthy)
    assert done.sound
    assert done.faults == ()
    # It begins at step 192: how it was initialised cannot be said.
    assert [one.name for one in done.checks if not one.looked_at] == ["initialisation"]


@pytest.mark.parametrize(("plant", "kind", "step"), PLANTED, ids=[plant.__name__ for plant, _, _ in PLANTED])
def test_a_planted_fault_is_found_and_nothing_else(
    plant: Callable[[Path], None], kind: str, step: int | None, healthy: Path, examined: Examined
) -> None:
    plant(healthy)
    done = examined(healthy)
    assert [(one.kind, one.step) for one in done.wrong] == [(kind, step)], done.faults
    assert not done.sound
