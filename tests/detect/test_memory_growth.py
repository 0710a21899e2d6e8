"""Memory that leaks, beside everything that memory does in healthy runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.log_events import Written, log_pathologies
from hnf_offline.detect.memory_growth import memory_growth
from hnf_offline.findings import LogEvent

ROWS = 1200
TIME = np.arange(ROWS)
Floats = np.ndarray


def log_of(values: Floats, column: str = "memory/max_active(GiB)") -> pl.DataFrame:
    return pl.DataFrame({"step": TIME + 1, "loss": np.ones(ROWS), column: values})


def noise(seed: int, size: float) -> Floats:
    return size * np.random.default_rng(seed).standard_normal(ROWS)


def found(
    values: Floats, column: str = "memory/max_active(GiB)", restarts: tuple[int, ...] = ()
) -> list[LogEvent]:
    return list(memory_growth(log_of(values, column), restarts))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "column",
    ["memory/max_active(GiB)", "gpu_mem", "mem-allocated-bytes", "system.gpu.0.memoryAllocated", "memory"],
)
def test_a_leak_is_told_with_its_rate(column: str, seed: int) -> None:
    (leak,) = found(10 + 3 * TIME / ROWS + noise(seed, 0.3), column)
    assert (leak.kind, leak.severity) == ("memory-growth", "warning")
    assert leak.evidence.startswith(f"{column} rose from 10.")
    rate = float(leak.evidence.partition(" per 1000")[0].rpartition("(")[2])
    assert rate == pytest.approx(2.5, rel=0.15)


HEALTHY: dict[str, Callable[[int], Floats]] = {
    "warm-up of an allocator": lambda seed: 10 * (1 - np.exp(-TIME / 100)) + noise(seed, 0.05),
    "long warm-up": lambda seed: 10 * (1 - np.exp(-TIME / 240)),
    "batches of random length": lambda seed: 10 + noise(seed, 2.0),
    "peak so far of such batches": lambda seed: np.maximum.accumulate(10 * np.exp(noise(seed, 0.3))),
    "an evaluation that needs more once": lambda seed: 10 + 3.0 * (TIME > 500) + noise(seed, 0.05),
    "garbage collected now and then": lambda seed: 10 + 3 * (TIME % 57) / 57,
    "a creep of two percent": lambda seed: 10 + 0.2 * TIME / ROWS,
    "a creep within the noise": lambda seed: 10 + 0.6 * TIME / ROWS + noise(seed, 3.0),
    "always the same": lambda seed: np.full(ROWS, 10.0),
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", HEALTHY)
def test_what_healthy_runs_do_is_no_leak(name: str, seed: int) -> None:
    assert found(HEALTHY[name](seed)) == []


def test_free_memory_falls_where_used_memory_rises() -> None:
    (leak,) = found(20 - 3 * TIME / ROWS + noise(0, 0.1), "gb_free")
    assert "gb_free fell from 19." in leak.evidence
    assert found(20 + 3 * TIME / ROWS, "gb_free") == []


def test_memory_starts_anew_at_a_restart() -> None:
    half = ROWS // 2
    twice = 10 + 4 * (TIME % half) / half
    assert found(twice) == [], "as one stretch it falls back in the middle"
    (leak,) = found(twice, restarts=(half + 1,))
    assert leak.last in (half, ROWS)
    # A new machine that uses more from its restart on is no growth.
    assert found(10 + 4.0 * (half <= TIME), restarts=(half + 1,)) == []


def test_other_columns_may_rise() -> None:
    for column in ("cos_mem", "memory_loss", "train_mem_gpu_alloc_delta", "memory/num_ooms", "tokens"):
        assert found(10 + 3 * TIME / ROWS, column) == [], column


def test_it_stands_among_the_pathologies_with_what_to_do() -> None:
    log = log_of(10 + 3 * TIME / ROWS).with_columns(loss=3 * np.exp(-TIME / 300))
    (one,) = log_pathologies(log, (), Written(ROWS))
    assert (one.kind, one.step) == ("memory-growth", 241)
    assert ".item()" in one.action
