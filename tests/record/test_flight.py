"""The black box changes nothing, freezes what is needed, and what it froze is the run again, bit by bit."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from hnf_offline.errors import InputError, UsageError
from hnf_offline.record import FlightRecorder
from hnf_offline.record.stability import StabilityEstimate, live_step_metric
from hnf_offline.run import load_optimizer, load_rows, load_weights, open_run
from hnf_offline.run.random_states import load_random_state

from .loops import LENGTH, ROWS, Small, draw, make, train, update

SPIKE = {"keep": 48, "state_every": 16, "after": 8}


def test_a_recorded_run_is_bitwise_the_unrecorded_one(tmp_path: Path) -> None:
    plain, module, optimizer, _ = train(70, None)
    generator = torch.get_rng_state()
    estimate = StabilityEstimate(every=7, products=3)
    recorded, twin, other, box = train(
        70,
        tmp_path / "box",
        **SPIKE,
        stability=estimate,
        on_step=lambda box, step: box.freeze("now") if step == 33 else None,
    )
    assert recorded == plain
    assert torch.equal(torch.get_rng_state(), generator)
    for one, two in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
        for key, value in optimizer.state[one].items():
            assert torch.equal(value, other.state[two][key])
    assert box is not None and len(box.frozen) == 1


def test_a_spike_is_frozen_once_with_what_led_to_it(tmp_path: Path) -> None:
    losses, *_, box = train(120, tmp_path / "box", spike_at=60, **SPIKE)
    assert box is not None
    assert max(losses[60:66]) > 2 * losses[58]
    (folder,) = box.frozen
    assert [path.name for path in (tmp_path / "box").iterdir()] == [folder.name]
    run = open_run(folder)
    assert run.skipped == ()
    config = json.loads((folder / "config.json").read_text())
    frozen = config["frozen"]
    assert 61 <= frozen["triggered"] <= 66
    assert "robust sigmas above" in frozen["why"]
    assert frozen["step"] == frozen["triggered"] + 8 == int(folder.name.removeprefix("frozen-"))
    assert config["training"]["dropout"] is True and config["training"]["accumulation"] == 1
    assert run.log is not None and run.log.rows["step"].to_list() == list(range(1, frozen["step"] + 1))
    assert run.log.rows["learning_rate"][59:62].to_list() == [1.0, 1.0, 0.005]
    assert run.batches is not None and len(run.batches.rows_of_step(frozen["step"])) == ROWS
    assert run.random_states is not None
    assert run.random_states.steps == tuple(range(frozen["step"] - 47, frozen["step"] + 1))
    # Every full state the ring covers, the oldest well before the spike.
    assert [one.step for one in run.checkpoints] == [32, 48, 64]
    assert run.configuration["optimizer.kind"] == "AdamW"


def test_retraining_from_the_oldest_state_gives_the_recorded_losses_bitwise(tmp_path: Path) -> None:
    losses, *_, box = train(120, tmp_path / "box", spike_at=60, **SPIKE)
    assert box is not None
    run = open_run(box.frozen[0])
    assert run.log is not None and run.batches is not None and run.random_states is not None
    first = run.checkpoints[0]
    module = Small()
    module.load_state_dict(load_weights(first))
    raw = load_optimizer(first)
    assert raw is not None
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.95))
    for name, parameter in module.named_parameters():
        state = raw.state[name]
        optimizer.state[parameter] = {**state, "step": torch.tensor(float(state["step"]))}
    logged = {row["step"]: row for row in run.log.rows.iter_rows(named=True)}
    torch.manual_seed(99)
    last = run.random_states.steps[-1]
    assert first.step < 60 < 66 < last  # the spike is inside
    for step in range(first.step + 1, last + 1):
        tokens, _ = load_rows(run.batches, tuple(run.batches.rows_of_step(step)))
        state = load_random_state(run.random_states, step)
        assert state is not None
        torch.set_rng_state(state["cpu"])
        optimizer.param_groups[0]["lr"] = logged[step]["learning_rate"]
        loss, norm = update(module, optimizer, tokens)
        assert float(loss.detach()) == losses[step - 1]
        assert torch.equal(loss.detach(), torch.tensor(logged[step]["loss"], dtype=torch.float32))
        assert torch.equal(norm, torch.tensor(logged[step]["grad_norm"], dtype=torch.float32))
    for later in run.checkpoints[1:]:
        assert first.step < later.step <= last


def test_memory_is_the_ring_and_its_full_states_and_no_more(tmp_path: Path) -> None:
    model = sum(value.nbytes for value in Small().parameters())
    held: list[tuple[int, int, int]] = []

    def look(box: FlightRecorder, step: int) -> None:
        memory = box.memory()
        held.append((memory.batches, memory.random_states, memory.full_states))
        assert memory.total == sum(held[-1])

    train(100, tmp_path / "box", on_step=look, **SPIKE)
    batch, generator = ROWS * LENGTH * 4, torch.get_rng_state().nbytes
    assert held[-1][0] == max(one[0] for one in held) == 48 * batch
    assert held[-1][1] == max(one[1] for one in held) == 48 * generator
    # Weights and Adam's two moments each; 48 // 16 + 1 states at most.
    assert max(one[2] for one in held) == 4 * 3 * model


def test_a_batch_that_the_loop_reuses_is_kept_as_it_was(tmp_path: Path) -> None:
    module, optimizer = make()
    buffer = torch.zeros(2, 5, dtype=torch.long)
    with FlightRecorder(tmp_path / "box", module, optimizer, **SPIKE) as box:
        for step in range(1, 6):
            buffer.fill_(step)
            with box.step(buffer) as taken:
                loss, _ = update(module, optimizer, buffer)
                taken.done(loss)
                loss.detach().fill_(-1.0)
        folder = box.freeze("look")
    run = open_run(folder)
    assert run.batches is not None and run.log is not None
    tokens, _ = load_rows(run.batches, tuple(run.batches.rows_of_step(3)))
    assert tokens.unique().tolist() == [3]
    assert min(run.log.rows["loss"]) > 0


def test_accumulated_micro_batches_keep_their_order_and_count(tmp_path: Path) -> None:
    module, optimizer = make()
    with FlightRecorder(tmp_path / "box", module, optimizer, **SPIKE, training={"max_grad_norm": 1.0}) as box:
        for step in range(1, 4):
            with box.step() as taken:
                for part in range(3):
                    # Rows of different lengths, with labels: filled up, and the filling does not count.
                    tokens = torch.full((2, 4 + part), step)
                    labels = torch.full((2, 4 + part), part)
                    taken.batch(tokens, labels, torch.ones_like(tokens))
                    loss, _ = update(module, optimizer, tokens)
                taken.done(loss)
        folder = box.freeze("look")
    run = open_run(folder)
    assert run.batches is not None
    assert run.configuration["training.accumulation"] == 3
    assert run.configuration["training.max_grad_norm"] == 1.0
    tokens, labels = load_rows(run.batches, tuple(run.batches.rows_of_step(2)))
    assert tokens.shape == (6, 6) and labels is not None
    assert labels.tolist()[::2] == [[0] * 4 + [-100] * 2, [1] * 5 + [-100], [2] * 6]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_freeze_once_even_soon_after_a_spike(tmp_path: Path, bad: float) -> None:
    module, optimizer = make()
    with FlightRecorder(tmp_path / "box", module, optimizer, **SPIKE) as box:
        for step in range(1, 101):
            tokens = draw(step)
            with box.step(tokens) as taken:
                update(module, optimizer, tokens)
                loss = 9.0 if step == 50 else 2.0 + 0.01 * (step % 3)
                taken.done(loss, grad_norm=bad if step >= 70 else 1.0)
    assert [path.name for path in box.frozen] == ["frozen-000058", "frozen-000078"]
    why = json.loads((box.frozen[1] / "config.json").read_text())["frozen"]["why"]
    assert why == f"step 70: grad_norm is {bad}"


def test_after_its_limit_it_writes_no_more_of_its_own_accord(tmp_path: Path) -> None:
    module, optimizer = make()
    with FlightRecorder(tmp_path / "box", module, optimizer, **SPIKE, limit=2, pause=0) as box:
        for step in range(1, 121):
            tokens = draw(step)
            with box.step(tokens) as taken:
                update(module, optimizer, tokens)
                taken.done(50.0 if step % 25 == 0 else 2.0)
        assert len(box.frozen) == 2
        box.freeze("by hand")
    assert len(box.frozen) == 3


def test_an_exception_freezes_with_the_batch_that_failed(tmp_path: Path) -> None:
    module, optimizer = make()
    with (
        pytest.raises(IndexError),
        FlightRecorder(tmp_path / "box", module, optimizer, **SPIKE) as box,
    ):
        for step in range(1, 20):
            tokens = torch.full((2, 5), 1 if step < 7 else 1000)
            with box.step(tokens) as taken:
                loss, _ = update(module, optimizer, tokens)
                taken.done(loss)
    (folder,) = box.frozen
    run = open_run(folder)
    assert run.log is not None and run.log.rows["step"][-1] == 6
    assert run.batches is not None and len(run.batches.rows_of_step(7)) == 2
    assert "IndexError" in json.loads((folder / "config.json").read_text())["frozen"]["why"]


def test_a_run_that_ends_inside_a_spike_is_frozen_on_closing(tmp_path: Path) -> None:
    *_, box = train(64, tmp_path / "box", spike_at=60, **SPIKE)
    assert box is not None and [path.name for path in box.frozen] == ["frozen-000064"]


def test_an_interrupted_write_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hnf_offline.record.frozen.save_text", full_disk)
    with pytest.warns(UserWarning, match="No space left on device"):
        losses, *_, box = train(120, tmp_path / "box", spike_at=60, **SPIKE)
    assert len(losses) == 120  # the training went on
    assert box is not None and box.frozen == []
    assert list((tmp_path / "box").iterdir()) == []
    monkeypatch.undo()
    box = FlightRecorder(tmp_path / "box", *make(), **SPIKE)
    monkeypatch.setattr("hnf_offline.record.frozen.save_tensors", full_disk)
    with box.step(draw(1)) as taken:
        taken.done(1.0)
    with pytest.raises(OSError, match="No space"):
        box.freeze("by hand")
    assert list((tmp_path / "box").iterdir()) == []


def test_a_directory_with_files_of_the_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other files, such as notes\.txt"):
        FlightRecorder(tmp_path, *make(), **SPIKE)
    pretender = tmp_path / "sub" / "frozen-000001"
    pretender.mkdir(parents=True)
    with pytest.raises(InputError, match="such as frozen-000001"):
        FlightRecorder(tmp_path / "sub", *make(), **SPIKE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "sub"]


def test_a_resumed_run_goes_on_in_its_directory_and_writes_over_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        box = FlightRecorder(tmp_path / "box", *make(), **SPIKE, steps_done=40)
        with box.step(draw(1)) as taken:
            assert taken.step == 41
            taken.done(1.0)
        box.freeze("again")
        box.close()
    assert sorted(path.name for path in (tmp_path / "box").iterdir()) == ["frozen-000041", "frozen-000041-2"]


def test_wrong_use_is_told_with_its_remedy(tmp_path: Path) -> None:
    module, optimizer = make()
    with pytest.raises(UsageError, match="keep at least 81 steps"):
        FlightRecorder(tmp_path / "small", module, optimizer, keep=80, state_every=64, after=16)
    assert not (tmp_path / "small").exists()
    box = FlightRecorder(tmp_path / "box", module, optimizer, **SPIKE)
    with pytest.raises(UsageError, match="without done"), box.step(draw(1)):
        pass
    with pytest.raises(UsageError, match="done already"), box.step(draw(1)) as taken:
        taken.done(1.0)
        taken.done(1.0)
    with pytest.raises(UsageError, match="has no batch"), box.step() as taken:
        taken.done(1.0)
    with pytest.raises(InputError, match="whole numbers"), box.step(torch.randn(2, 3)) as taken:
        taken.done(1.0)
    box.close()
    with pytest.raises(UsageError, match="closed"):
        box.begin()


def test_the_stability_estimate_is_the_top_eigenvalue_of_that_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, optimizer = make()
    with FlightRecorder(
        tmp_path / "box", module, optimizer, **SPIKE, stability=StabilityEstimate(every=10, products=60)
    ) as box:
        for step in range(1, 11):
            tokens = draw(step)
            with box.step(tokens) as taken:
                loss, _ = update(module, optimizer, tokens)
                taken.done(loss)
        folder = box.freeze("look")
    run = open_run(folder)
    assert run.log is not None
    found = run.log.rows["stability_ratio"].to_list()[-1]
    # The same by the dense matrix A^1/2 H A^1/2.
    module.eval()
    names = [name for name, _ in module.named_parameters()]
    shapes = [value.shape for value in module.parameters()]
    metric = live_step_metric(module, optimizer)
    root = torch.cat([metric[name].flatten() for name in names]).sqrt()

    def loss_of(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([shape.numel() for shape in shapes])
        weights = {
            name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)
        }
        logits = torch.func.functional_call(module, weights, (tokens,))
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    flat = torch.cat([value.detach().flatten() for value in module.parameters()])
    hessian = torch.func.hessian(loss_of)(flat)
    truth = float(torch.linalg.eigvalsh(root[:, None] * hessian * root[None, :])[-1])
    # A Ritz value: never above, and close.
    assert 0.95 * truth < found <= truth * (1 + 1e-4)


def test_an_optimizer_without_known_limit_only_loses_the_estimate(tmp_path: Path) -> None:
    module, _ = make()
    optimizer = torch.optim.RMSprop(module.parameters(), lr=1e-3)
    with FlightRecorder(
        tmp_path / "box", module, optimizer, **SPIKE, stability=StabilityEstimate(every=1)
    ) as box:
        with pytest.warns(UserWarning, match="not known here"), box.step(draw(1)) as taken:
            loss, _ = update(module, optimizer, draw(1))
            taken.done(loss)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with box.step(draw(2)) as taken:
                loss, _ = update(module, optimizer, draw(2))
                taken.done(loss)
    assert box.steps_done == 2
