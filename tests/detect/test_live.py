"""What is told of a spike while the run goes on never changes afterwards."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.live import certain_ends, onset_losses
from hnf_offline.detect.spikes import find_spikes


def log_of(loss: np.ndarray, gap: int = 1) -> pl.DataFrame:
    return pl.DataFrame({"step": gap * np.arange(1, loss.size + 1), "loss": loss})


def told(log: pl.DataFrame) -> dict[tuple[str, int], tuple[float, ...]]:
    """All that is said of the spikes of a log, by what it is said of."""
    spikes = find_spikes(log)
    ends, losses = certain_ends(log, spikes), onset_losses(log, spikes)
    said: dict[tuple[str, int], tuple[float, ...]] = {}
    for spike in spikes:
        said["onset", spike.onset] = (spike.loss_before, losses[spike.id])
        if spike.id in ends:
            said["end", spike.onset] = (ends[spike.id], spike.end or 0, spike.peak, spike.loss_peak)
    return said


def test_the_end_of_a_clean_spike_is_certain_after_its_aftershocks_could_have_come() -> None:
    loss = np.full(200, 2.0)
    loss[100:103] = 6.0, 9.0, 5.0
    log = log_of(loss)
    (spike,) = find_spikes(log)
    assert (spike.onset, spike.peak, spike.end) == (101, 102, 104)
    assert certain_ends(log, (spike,)) == {1: 115}, "eleven rows after the end"
    assert onset_losses(log, (spike,)) == {1: 6.0}
    for rows in range(104, 115):
        cut = log.head(rows)
        assert certain_ends(cut, find_spikes(cut)) == {}


def test_a_sparse_log_counts_steps() -> None:
    loss = np.full(200, 2.0)
    loss[100] = 9.0
    log = log_of(loss, gap=10)
    assert certain_ends(log, find_spikes(log)) == {1: 1050}, "three rows: the end itself, beyond 20 steps"


def test_a_spike_that_never_ends_is_not_called_over() -> None:
    loss = np.full(200, 2.0)
    loss[150:] = 9.0
    assert certain_ends(log_of(loss), find_spikes(log_of(loss))) == {}


@pytest.mark.parametrize("seed", range(6))
def test_no_end_that_was_certain_moves_as_the_log_goes_on(seed: int) -> None:
    """Spikes of every size, aftershocks, plateaus and stretches of NaN, cut after every row."""
    random = np.random.default_rng(seed)
    loss = 3 * np.exp(0.02 * random.standard_normal(360))
    for start in random.integers(20, 350, 12):
        kind, length = random.integers(4), int(random.integers(1, 14))
        shape = {
            0: random.uniform(1.5, 6),
            1: np.linspace(4, 1, length),
            2: np.nan,
            3: random.uniform(1, 3, length),
        }
        part = loss[start : start + length]
        part *= np.broadcast_to(shape[int(kind)], length)[: part.size]
    log = log_of(loss, gap=int(random.choice([1, 1, 5])))
    final = told(log)
    assert any(what == "end" for what, _ in final)
    for rows in range(20, log.height):
        for what, said in told(log.head(rows)).items():
            if what[0] == "onset":
                assert what in final
            assert all(
                a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(said, final[what], strict=True)
            ), (rows, what, said, final[what])
