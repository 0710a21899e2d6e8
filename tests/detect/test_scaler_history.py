"""Gradient bands, the loss scale's history, and the simulated scaler against torch's own."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from hnf_offline.detect.scaler_history import Scaling, mixed_precision
from hnf_offline.quantities.loss_scaler import gradient_norm_bands, simulated_skips, skipped_share


def torch_scaler(gradients, initial, growth, interval):
    """Skipped updates and scales of torch.amp.GradScaler, fed with float16 gradients of given size."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_factor=growth, growth_interval=interval)
    scaler.scale(torch.zeros(1))  # makes its tensors
    skipped, scales = [], []
    for gradient in gradients:
        scales.append(scaler.get_scale())
        weight.grad = (torch.tensor([gradient], dtype=torch.float64) * scales[-1]).half().float()
        before = weight.detach().clone()
        scaler.step(optimizer)
        skipped.append(bool((weight == before).all()))
        scaler.update()
    return skipped, scales


@pytest.mark.parametrize(
    "settings", [(65536.0, 2.0, 2000), (65536.0, 2.0, 7), (1024.0, 1.5, 5), (2.0**30, 3.0, 4)]
)
@pytest.mark.parametrize("seed", range(3))
def test_the_simulation_is_torchs_scaler(settings, seed):
    gradients = np.exp(2 * np.random.default_rng(seed).standard_normal(300))
    gradients[[50, 51, 200]] = np.inf
    limits = np.where(np.isfinite(gradients), 65520.0 / gradients, 0.0)
    skipped, scales = simulated_skips(limits, *settings)
    expected, expected_scales = torch_scaler(gradients, *settings)
    assert skipped.tolist() == expected
    assert scales.tolist() == expected_scales


def test_without_overflow_nothing_is_skipped_and_the_scale_grows_on_time():
    skipped, scales = simulated_skips(np.full(100, np.inf), 1024.0, 1.5, 30)
    assert not skipped.any()
    assert scales[[0, 29, 30, 60, 99]].tolist() == [1024, 1024, 1536, 2304, 3456]


def logged(gradients, settings=(65536.0, 2.0, 50), *, after=True):
    """A log of scale and overflows as this scaler would leave it; the scale before or after each update."""
    skipped, scales = simulated_skips(65520.0 / gradients, *settings)
    if after:
        scales = np.append(scales[1:], scales[-1] / 2 if skipped[-1] else scales[-1])
    rows = np.arange(1, gradients.size + 1)
    return pl.DataFrame({
        "step": rows,
        "loss": np.ones(rows.size),
        "loss_scale": scales,
        "found_inf": skipped * 1.0,
    })


def by_setting(told):
    return {(one["initial"], one["growth"], one["interval"]): one for one in told["simulated"]}


def test_from_the_largest_gradient_the_skips_are_exact():
    gradients = np.exp(np.random.default_rng(0).standard_normal(500))
    log = pl.DataFrame({"step": range(500), "loss": np.ones(500), "grad_max": gradients})
    told = by_setting(mixed_precision(log, [Scaling(2.0**20, 2.0, 10)]))
    assert len(told) == 4
    for settings, one in told.items():
        expected = int(simulated_skips(65520.0 / gradients, *settings)[0].sum())
        assert one["skipped_if_unknown_is_clean"] == one["skipped_if_unknown_overflows"] == expected
    assert (
        told[1024.0, 1.5, 200]["skipped_if_unknown_is_clean"]
        < told[2.0**20, 2.0, 10]["skipped_if_unknown_is_clean"]
    )


@pytest.mark.parametrize("after", [True, False])
def test_from_scale_and_overflows_its_own_settings_give_its_own_skips_where_all_is_known(after):
    gradients = np.exp(np.random.default_rng(1).standard_normal(400))
    log = logged(gradients, (65536.0, 2.0, 50), after=after).rename({"found_inf": "skipped_steps"})
    mine = by_setting(mixed_precision(log, [Scaling(65536.0, 2.0, 50)]))[65536.0, 2.0, 50]
    count = int(simulated_skips(65520.0 / gradients, 65536.0, 2.0, 50)[0].sum())
    assert count > 3
    assert mine["skipped_if_unknown_is_clean"] == count
    # A lower scale than was ever tried is known to be clean but where an overflow leaves it open.
    low = by_setting(mixed_precision(log, [Scaling(1.0, 2.0, 1000)]))[1.0, 2.0, 1000]
    assert low["skipped_if_unknown_is_clean"] == 0
    assert low["skipped_if_unknown_overflows"] == count


def test_rows_ten_steps_apart_are_not_simulated():
    log = pl.DataFrame({"step": range(0, 500, 10), "loss": np.ones(50), "loss_scale": np.full(50, 65536.0)})
    told = mixed_precision(log)
    assert "simulated" not in told and "every step" in told["not_simulated"]


def test_a_run_without_scaling_has_none():
    log = pl.DataFrame({"step": range(100), "loss": np.ones(100), "loss_scale": np.ones(100)})
    assert "simulated" not in mixed_precision(log) and "not_simulated" not in mixed_precision(log)
    assert mixed_precision(log.drop("loss_scale")) == {}


def test_history_and_skipped_share_are_those_planted():
    scale = np.concatenate([[2.0**16, 2.0**15, 2.0**14], np.full(97, 2.0**13), np.full(100, 2.0**12)])
    skipped = np.zeros(200)
    skipped[[0, 1, 2, 100]] = 1
    log = pl.DataFrame({
        "step": range(1, 201),
        "loss": np.ones(200),
        "loss_scale": scale,
        "skipped_steps": skipped,
    })
    told = mixed_precision(log)
    assert told["scale"] == {
        "first": 2.0**16, "last": 2.0**12, "lowest": 2.0**12, "lowest_step": 101, "highest": 2.0**16,
        "falls": 4, "rises": 0,
    }  # fmt: skip
    assert told["skipped"] == {"updates": 4.0, "at_the_start": 3.0, "share_after_it": pytest.approx(1 / 197)}


def test_each_norm_is_in_its_band():
    norms = np.array([0.1, 0.5, 5.0, 5.1, 10.0, 10.1, np.inf, np.nan])
    told = gradient_norm_bands(norms)
    assert told == {"below": 1 / 8, "healthy": 2 / 8, "high": 2 / 8, "critical": 1 / 8, "exploded": 2 / 8}
    assert sum(told.values()) == 1
    assert skipped_share(np.array([1.0, 0.0]), np.array([10.0, 10.0])) == 0.05
    assert np.isnan(skipped_share(np.zeros(0), np.zeros(0)))
