"""While one checkpoint is measured the next is read, into page-locked memory where it goes to a CUDA device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hnf_offline.errors import UserError
from hnf_offline.profile import reading
from hnf_offline.profile.reading import Loaded, read_ahead
from hnf_offline.run import open_run
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.placing import pinned, placed

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was asked to be page-locked; the machine of the tests has no GPU to do it with."""
    asked: list[Tensor] = []

    def pin_memory(tensor: Tensor) -> Tensor:
        assert threading.current_thread() is not threading.main_thread(), (
            "the reader does it, not who measures"
        )
        asked.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    return asked


def test_every_tensor_on_its_way_to_cuda_is_page_locked(tiny: Path, locked: list[Tensor]) -> None:
    run = open_run(tiny)
    plain = {point.step: loaded for point, loaded in read_ahead(run.checkpoints, CPU)}
    assert not locked
    steps = []
    for checkpoint, loaded in read_ahead(run.checkpoints, CUDA):
        steps.append(checkpoint.step)
        before = plain[checkpoint.step]
        assert isinstance(loaded, Loaded) and isinstance(before, Loaded)
        assert loaded.optimizer is not None and before.optimizer is not None
        addresses = {tensor.data_ptr() for tensor in locked}
        for name, tensor in before.weights.items():
            assert torch.equal(loaded.weights[name], tensor)
            assert loaded.weights[name].data_ptr() not in addresses, "the copy is used, not what was copied"
        for key, state in before.optimizer.state.items():
            assert set(loaded.optimizer.state[key]) == set(state)
            assert torch.equal(loaded.optimizer.state[key]["exp_avg_sq"], state["exp_avg_sq"])
    assert steps == [4, 8, 12, 16, 20, 24]
    moments = 2 * len(loaded.optimizer.state)
    assert len(locked) >= len(steps) * (len(loaded.weights) + moments)


def test_what_does_not_fit_is_not_locked(
    tiny: Path, locked: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "free_bytes", lambda device: 1000)
    assert all(isinstance(loaded, Loaded) for _, loaded in read_ahead(open_run(tiny).checkpoints, CUDA))
    assert not locked


def test_a_system_that_locks_no_more_memory_only_makes_it_slower(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensor: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: OS call failed or operation not supported on this OS")

    monkeypatch.setattr(Tensor, "pin_memory", refuse)
    assert all(isinstance(loaded, Loaded) for _, loaded in read_ahead(open_run(tiny).checkpoints, CUDA))


def test_no_more_than_one_checkpoint_is_read_ahead(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tiny)
    read: list[int] = []
    load = reading.load

    def noted(checkpoint: Any, device: torch.device) -> Any:
        read.append(checkpoint.step)
        return load(checkpoint, device)

    monkeypatch.setattr(reading, "load", noted)
    for number, (checkpoint, _) in enumerate(read_ahead(run.checkpoints, CPU)):
        assert checkpoint.step == run.checkpoints[number].step
        assert len(read) <= number + 2
    assert read == [4, 8, 12, 16, 20, 24]
    assert list(read_ahead((), CPU)) == []


def test_a_checkpoint_that_cannot_be_read_does_not_stop_the_reading(tiny: Path) -> None:
    run = open_run(tiny)
    file = tiny / "checkpoints" / "step-000012" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    kinds = {point.step: isinstance(loaded, UserError) for point, loaded in read_ahead(run.checkpoints, CPU)}
    assert kinds == {4: False, 8: False, 12: True, 16: False, 20: False, 24: False}


def test_only_copies_to_cuda_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, bool]] = []

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        asked.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    for device in (CPU, CUDA, torch.device("mps")):
        placed(torch.ones(2), device)
    assert asked == [(CPU, False), (CUDA, True), (torch.device("mps"), False)]


def test_weights_are_placed_before_they_are_widened(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tiny)
    assert run.model is not None
    module = build_model(run.model, device=CPU, dtype=torch.float64)
    ((_, loaded), *_) = read_ahead(run.checkpoints[:1], CPU)
    assert isinstance(loaded, Loaded)
    narrow = {name: tensor.bfloat16() for name, tensor in loaded.weights.items()}
    seen: list[torch.dtype] = []

    def to(tensor: Tensor, device: torch.device) -> Tensor:
        seen.append(tensor.dtype)
        return tensor

    monkeypatch.setattr("hnf_offline.run.model.build.placed", to)
    load_weights_into(module, narrow)
    assert set(seen) == {torch.bfloat16}, "half the bytes travel"
    assert torch.equal(
        module.state_dict()["transformer.wte.weight"], narrow["transformer.wte.weight"].double()
    )


def test_empty_tensors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pytest.fail("nothing to lock"))
    empty = {"nothing": torch.empty(0, 3)}
    assert pinned(empty)["nothing"] is empty["nothing"]
