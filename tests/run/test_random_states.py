"""Recorded generator states: read by step, checked by header, and never a reason to crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.random_states import find_random_states, load_random_state


def write(folder: Path, **changes: Tensor | None) -> tuple[Path, list[Tensor]]:
    """Save states of three steps and the numbers drawn from each."""
    torch.manual_seed(5)
    states, drawn = [], []
    for _ in range(3):
        states.append(torch.get_rng_state())
        drawn.append(torch.rand(4))
    tensors = {"steps": torch.tensor([7, 8, 9]), "cpu": torch.stack(states)} | changes
    path = folder / "random_states.safetensors"
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    return path, drawn


def test_a_state_gives_the_same_numbers_again(tmp_path: Path) -> None:
    path, drawn = write(tmp_path, cuda=torch.arange(48, dtype=torch.uint8).reshape(3, 16))
    states = find_random_states(tmp_path)
    assert states is not None and (states.path, states.steps) == (path, (7, 8, 9))
    for step, numbers in zip(states.steps, drawn, strict=True):
        state = load_random_state(states, step)
        assert state is not None
        torch.set_rng_state(state["cpu"])
        assert torch.equal(torch.rand(4), numbers)
    assert state["cuda"].tolist() == list(range(32, 48))
    assert load_random_state(states, 10) is None


def test_a_run_without_has_none(tmp_path: Path) -> None:
    assert find_random_states(tmp_path) is None
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n')
    run = open_run(tmp_path)
    assert run.random_states is None and run.skipped == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": None}, "no array 'steps'"),
        ({"cpu": None}, "no array 'cpu'"),
        ({"steps": torch.tensor([7.0, 8.0, 9.0])}, "no array 'steps' of I64"),
        ({"steps": torch.tensor([7, 8])}, "'cpu' has shape"),
        ({"steps": torch.tensor([7, 8, 8])}, "not one of a kind"),
        ({"steps": torch.tensor([7, 8, -1])}, "not one of a kind"),
        ({"cpu": torch.zeros(3, 2, 2, dtype=torch.uint8)}, "no array 'cpu' of U8"),
        ({"cuda": torch.zeros(2, 16, dtype=torch.uint8)}, "'cuda' has shape"),
        (
            {"steps": torch.zeros(0, dtype=torch.int64), "cpu": torch.zeros(0, 5, dtype=torch.uint8)},
            "has shape",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_passed_over_and_told(
    tmp_path: Path, changes: dict[str, Tensor | None], reason: str
) -> None:
    path, _ = write(tmp_path, **changes)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n')
    with pytest.raises(InputError, match=reason):
        find_random_states(tmp_path)
    run = open_run(tmp_path)
    assert run.random_states is None
    assert [(one.path, one.checkpoint) for one in run.skipped] == [(path, False)]


@pytest.mark.parametrize("kept", [0, 5, 40, 300, 2000])
def test_a_file_cut_short_is_passed_over_and_told(tmp_path: Path, kept: int) -> None:
    path, _ = write(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n')
    run = open_run(tmp_path)
    assert run.random_states is None and len(run.skipped) == 1 and run.skipped[0].reason


def test_a_state_of_another_kind_of_generator_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    write(tmp_path, cpu=torch.zeros(3, 16, dtype=torch.uint8))
    states = find_random_states(tmp_path)
    assert states is not None
    with pytest.raises(InputError, match="none of this torch's generator") as error:
        load_random_state(states, 8)
    assert error.value.remedy
