"""Memory that runs out in the middle of anything: fewer rows, the same table, and nothing of the failed try is kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hnf_offline.errors import InputError
from hnf_offline.profile import ProfileSettings, profile_run
from hnf_offline.profile import checkpoint as measuring
from hnf_offline.profile.exhaustion import halving, is_out_of_memory
from hnf_offline.profile.memory import MemoryPlan, free_bytes
from hnf_offline.profile.session import bytes_of_parameters, memory_now, open_session
from hnf_offline.run import open_run

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


def test_it_is_known_by_what_torch_really_says() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    ("error", "means_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError(ALLOCATOR), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.08 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_and_others(error: Exception, means_it: bool) -> None:
    assert is_out_of_memory(error) is means_it


class _Planted(TorchDispatchMode):
    """Lets the n-th operation fail, once."""

    def __init__(self, at: int | None, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.at = at
        self.error = error
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.at:
            raise self.error()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def measured(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Profile the first checkpoint with an error planted at an operation of its measurement."""
    original = measuring.measure_in_memory
    settings = ProfileSettings(dtype="float64", accuracy="converged", rows=6, last_step=4)

    def run(at: int | None, error: Callable[[], BaseException] = MemoryError, **changed: Any) -> Any:
        planted = _Planted(at, error)

        def fragile(*arguments: Any) -> Any:
            with planted:
                return original(*arguments)

        monkeypatch.setattr(measuring, "measure_in_memory", fragile)
        from dataclasses import replace

        profile = profile_run(open_run(tiny), replace(settings, **changed), tmp_path / f"out-{at}")
        return profile, planted.count

    return run


@pytest.mark.slow
def test_wherever_memory_runs_out_the_table_is_the_same(measured: Callable[..., Any]) -> None:
    calm, operations = measured(None)
    places = [operations * share // 100 for share in (1, 40, 95)]
    errors: list[Callable[[], BaseException]] = [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError(ALLOCATOR),
        MemoryError,
    ]
    for number, place in enumerate(places):
        profile, _ = measured(place, errors[number])
        assert profile.skipped == () and profile.computed == 1
        key = ["step", "layer", "quantity", "batch"]
        assert profile.table.select(key).equals(calm.table.select(key))
        for row, other in zip(calm.table.to_dicts(), profile.table.to_dicts(), strict=True):
            assert other["value"] == pytest.approx(row["value"], rel=1e-4, abs=1e-7), (place, row)


def test_other_errors_are_not_taken_for_it(measured: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        measured(100, lambda: RuntimeError("shapes cannot be multiplied"), tier="gradient")


def test_nothing_of_the_try_that_failed_is_alive_when_the_next_begins() -> None:
    layer = nn.Linear(64, 64)
    alive: list[weakref.ref[Tensor]] = []
    seen: list[tuple[int, list[bool]]] = []

    def deep(graph: Tensor) -> None:
        held = graph.sin()  # a local variable of a frame that the traceback keeps
        alive.append(weakref.ref(held))
        try:
            raise ValueError("on the way")
        except ValueError:
            raise torch.OutOfMemoryError("CUDA out of memory")  # noqa: B904  (the context holds a frame, too)

    def work(memory: MemoryPlan) -> str:
        seen.append((memory.rows, [reference() is not None for reference in alive]))
        if memory.rows > 2:
            activations = layer(torch.ones(memory.rows, 64))
            alive.append(weakref.ref(activations))
            deep(activations)
        return "done"

    gc.disable()  # so that what is freed was freed by letting go, or by asking for it
    try:
        done, plan = halving(work, MemoryPlan(8, True, 0), Path("checkpoint"))
    finally:
        gc.enable()
    assert (done, plan.rows, plan.keep_graphs) == ("done", 2, False)
    assert seen == [(8, []), (4, [False, False]), (2, [False] * 4)]


def test_half_done_work_is_undone_before_the_next_try() -> None:
    weights = [1.0]

    def work(memory: MemoryPlan) -> float:
        weights[0] += 0.5  # a perturbation that would have been taken back
        if memory.rows > 1:
            raise MemoryError
        return weights[0]

    def restore() -> None:
        weights[0] = 1.0

    value, _ = halving(work, MemoryPlan(4, True, 0), Path("checkpoint"), restore)
    assert value == 1.5


def test_where_one_row_is_too_much_the_remedy_is_told() -> None:
    def work(memory: MemoryPlan) -> None:
        raise MemoryError

    with pytest.raises(InputError, match="one row does not fit") as error:
        halving(work, MemoryPlan(4, True, 0), Path("step-000008"))
    assert "--device cpu" in str(error.value)


def test_weights_that_do_not_fit_cost_only_their_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = measuring.load_weights_into
    calls: list[int] = []

    def full(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load(*arguments)

    monkeypatch.setattr(measuring, "load_weights_into", full)
    profile = profile_run(open_run(tiny), ProfileSettings(tier="forward"), tmp_path / "out")
    ((path, reason, _),) = profile.skipped
    assert path.name == "step-000008" and "does not fit into memory" in reason
    assert profile.computed == 5


def test_the_memory_of_a_gpu_is_read_anew_at_every_checkpoint(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    session = open_session(open_run(tiny), ProfileSettings(tier="gradient", device="cpu"))
    assert session is not None and session.row_bytes > 0
    rows, weights = len(session.batch.tokens), bytes_of_parameters(session.module)
    enough = 1000 * (rows * session.row_bytes + weights)
    for free, sharing, together in ((enough, 1, rows), (0, 1, 1), (enough, 10**9, 1)):
        monkeypatch.setattr("hnf_offline.profile.session.free_bytes", lambda device, free=free: free)
        on_gpu = replace(session, device=torch.device("cuda", 0), sharing=sharing)
        assert memory_now(on_gpu).rows == together
        assert memory_now(session) is session.memory, "on the CPU all checkpoints are summed in one order"
    assert free_bytes(torch.device("cpu")) > 0
