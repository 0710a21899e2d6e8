"""The two sample runs are what their README says, and what make.py would train again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
import torch
from torch import Tensor

from hnf_offline.detect.spikes import find_spikes
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run import load_optimizer, load_rows, load_weights, match_optimizer, open_run
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.records import Run

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("spiky", "steady")


def run_of(name: str) -> Run:
    folder = ROOT / "sample_runs" / name
    if not folder.is_dir():
        pytest.skip(f"{folder.name} has not been trained here: make sample-runs")
    return open_run(folder)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module sample_runs.make, on one thread as it trains."""
    monkeypatch.syspath_prepend(ROOT)
    import sample_runs.make as made

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_run_opens_whole_without_options(name: str) -> None:
    run = run_of(name)
    assert run.missing == () and run.skipped == ()
    assert run.model is not None and run.batches is not None and run.log is not None
    assert run.log.skipped_lines == run.log.duplicates == 0 and run.log.restarts == ()
    assert run.configuration["training.batch"] == "full"


@pytest.mark.parametrize("name", NAMES)
def test_the_log_is_complete(name: str) -> None:
    run = run_of(name)
    assert run.log is not None
    rows = run.log.rows
    assert rows["step"].to_list() == list(range(1, int(run.configuration["training.steps"]) + 1))
    for column in ("loss", "grad_norm", "learning_rate"):
        assert rows[column].null_count() == 0 and bool(rows[column].is_finite().all())


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_evenly_spaced_and_as_recorded(name: str, maker: ModuleType) -> None:
    run, recipe = run_of(name), maker.RUNS[name]
    steps = [checkpoint.step for checkpoint in run.checkpoints]
    assert {after - before for before, after in pairwise(steps)} == {recipe.every}
    assert (steps[0], steps[-1]) == (recipe.first, recipe.last)
    assert run.configuration["optimizer.learning_rate"] == recipe.learning_rate
    assert run.configuration["training.seed"] == maker.SEED


@pytest.mark.parametrize("name", NAMES)
def test_every_checkpoint_has_the_whole_optimizer_state(name: str) -> None:
    run = run_of(name)
    assert run.model is not None and run.log is not None
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    named = [(one, tuple(value.shape)) for one, value in module.named_parameters()]
    rates = dict(zip(run.log.rows["step"], run.log.rows["learning_rate"], strict=True))
    for checkpoint in run.checkpoints:
        raw = load_optimizer(checkpoint)
        assert raw is not None
        state = match_optimizer(raw, named, run.optimizer, checkpoint.optimizer_files[0])
        assert state.kind == "adam" and state.parameters.keys() == dict(named).keys()
        for own in state.parameters.values():
            assert own.step == checkpoint.step
            assert own.exp_avg is not None and bool(own.second_moment().isfinite().all())
            # Saved is the rate of the next update.
            assert own.learning_rate == pytest.approx(rates[checkpoint.step + 1], rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_replaying_the_data_gives_the_logged_losses(name: str) -> None:
    run = run_of(name)
    assert run.model is not None and run.batches is not None and run.log is not None
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    tokens, labels = load_rows(run.batches, range(run.batches.rows))
    logged = dict(zip(run.log.rows["step"], run.log.rows["loss"], strict=True))
    for checkpoint in run.checkpoints:
        load_weights_into(module, load_weights(checkpoint))
        with torch.no_grad():
            loss = evaluate(module, tokens, labels).loss.item()
        assert loss == pytest.approx(logged[checkpoint.step + 1], rel=1e-4), checkpoint.step


def test_both_start_from_the_same_weights() -> None:
    first = {name: run_of(name).log for name in NAMES}
    losses = {name: log.rows["loss"][0] for name, log in first.items() if log is not None}
    assert losses["spiky"] == losses["steady"]


def test_one_spikes_and_the_other_does_not() -> None:
    spiky, steady = (run_of(name) for name in NAMES)
    assert spiky.log is not None and steady.log is not None
    found = find_spikes(spiky.log.rows)
    assert len(found) == 5
    recorded = [checkpoint.step for checkpoint in spiky.checkpoints]
    assert all(recorded[0] < spike.onset for spike in found), "a checkpoint before each of them"
    assert find_spikes(steady.log.rows) == ()


def test_they_are_small_enough_to_commit() -> None:
    files = [file for name in NAMES for file in run_of(name).path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000


def test_training_is_deterministic(maker: ModuleType) -> None:
    from dataclasses import replace

    recipe = replace(maker.RUNS["spiky"], steps=30)

    def trained() -> tuple[list[float], list[Tensor]]:
        losses: list[float] = []
        module = maker.train(recipe, lambda step, model, adam, loss, norm, used: losses.append(loss))
        return losses, [value.detach() for value in module.parameters()]

    (losses, weights), (again, weights_again) = trained(), trained()
    assert losses == again and len(losses) == 30
    assert all(torch.equal(one, other) for one, other in zip(weights, weights_again, strict=True))
    assert losses[-1] < losses[0]


def test_the_training_set_is_the_task(maker: ModuleType) -> None:
    tokens, targets = maker.data()
    assert torch.equal((tokens[:, 0] + tokens[:, 1]) % maker.MODULUS, targets)
    assert (tokens[:, 2] == maker.MODULUS).all()
    assert len(torch.unique(tokens, dim=0)) == len(tokens)
    run = run_of("spiky")
    assert run.batches is not None
    saved, labels = load_rows(run.batches, range(run.batches.rows))
    assert torch.equal(saved, tokens) and labels is not None and torch.equal(labels, targets)


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_follows_the_recipe(name: str, maker: ModuleType) -> None:
    recipe, log = maker.RUNS[name], run_of(name).log
    assert log is not None
    expected = [maker.rate(recipe, step) for step in range(1, recipe.steps + 1)]
    assert log.rows["learning_rate"].to_list() == pytest.approx(expected, rel=1e-7)
    assert max(expected) == recipe.learning_rate


@pytest.mark.parametrize("accuracy", ["screen", "standard"])
def test_a_run_that_hovers_at_the_edge_stays_there_at_every_accuracy(tmp_path: Path, accuracy: str) -> None:
    # Here gradients are small and the step metric is large: differences of gradients gave S of 2 to 8.
    settings = ProfileSettings(tier="stability", accuracy=accuracy, first_step=624, last_step=720, every=2)
    table = profile_run(run_of("steady"), settings, tmp_path).table
    found = table.filter(pl.col("quantity") == "hessian.stability_ratio")["value"].to_list()
    assert len(found) >= 2
    assert all(0.85 <= value <= 1.1 for value in found), found
