from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.detect.spikes import SPIKE_RULES, find_spikes
from hnf_offline.detect.trailing import below_median, rows_above_median, trailing_median
from hnf_offline.errors import UsageError
from hnf_offline.synthetic import loss_with_spikes

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def frame(steps, loss) -> pl.DataFrame:
    return pl.DataFrame({"step": list(steps), "loss": [None if v is None else float(v) for v in loss]})


def smooth(n=200, noise=0.001, seed=0):
    return (1.2 + 1.5 * np.exp(-np.arange(n) / 60)) * np.exp(
        noise * np.random.default_rng(seed).standard_normal(n)
    )


def onsets(log, **options):
    return [spike.onset for spike in find_spikes(log, **options)]


def test_planted_spikes_are_found_with_onset_peak_and_end():
    log, truth = loss_with_spikes(600, [150, 300, 450], seed=3)
    spikes = find_spikes(log)
    assert tuple(s.onset for s in spikes) == truth.onsets
    assert tuple(s.peak for s in spikes) == truth.peaks
    assert [s.id for s in spikes] == [1, 2, 3]
    assert all(s.kind == "spike" and s.recovered and 3 <= s.recovery_steps <= 40 for s in spikes)
    assert all(s.end == s.onset + s.recovery_steps for s in spikes)
    assert all(abs(s.offset) < 0.4 and s.height > 1 and s.z >= 6 for s in spikes)


@pytest.mark.parametrize("before, peak", [(1.40, 2.64), (1.27, 1.55), (1.22, 1.46), (1.10, 1.25)])
def test_small_spikes_of_a_smooth_full_batch_loss_are_found(before, peak):
    loss = before * np.exp(-0.0005 * np.arange(-150, 100)) * np.exp(0.001 * np.sin(np.arange(250)))
    loss[150:156] = [1.04 * before, peak, 0.5 * (peak + before), 1.02 * before, 1.01 * before, before]
    (spike,) = find_spikes(frame(range(1, 251), loss))
    assert spike.peak == 152
    assert spike.onset in (151, 152)
    assert spike.recovered


def test_ripples_of_a_few_percent_are_not_spikes():
    loss = smooth(400)
    loss[200:260] *= 1 + 0.06 * np.sin(np.arange(60))
    assert onsets(frame(range(400), loss)) == []


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.02, 0.1])
def test_a_healthy_loss_has_none(noise):
    for seed in range(20):
        log, _ = loss_with_spikes(600, [], seed=seed, noise=noise)
        assert onsets(log) == []


def test_fast_descent_constant_loss_and_empty_logs_have_none():
    assert onsets(frame(range(50), 10 * np.exp(-np.arange(50) / 3) + 0.1)) == []
    assert onsets(frame(range(100), np.full(100, 2.0))) == []
    assert onsets(frame([], [])) == []
    assert onsets(frame(range(5), [None] * 5)) == []
    assert find_spikes(pl.DataFrame({"step": [1, 2]})) == ()


def test_a_spike_on_a_constant_loss_has_a_finite_z():
    loss = np.full(100, 2.0)
    loss[60] = 3.0
    (spike,) = find_spikes(frame(range(100), loss))
    assert spike.onset == 60
    assert np.isfinite(spike.z)
    assert spike.end == 61


def test_nan_is_flagged_at_once_and_each_stretch_is_one_episode():
    loss = smooth(200)
    loss[0] = np.nan
    loss[80:85] = np.nan
    loss[120] = np.inf
    spikes = find_spikes(frame(range(200), loss))
    assert [s.onset for s in spikes] == [0, 80, 120]
    assert {s.kind for s in spikes} == {"nonfinite"}
    assert spikes[1].end == 85
    assert np.isnan(spikes[1].loss_peak)
    assert spikes[2].loss_peak == np.inf


def test_nan_until_the_end_never_recovers():
    loss = smooth(100)
    loss[90:] = np.nan
    (spike,) = find_spikes(frame(range(100), loss))
    assert (spike.kind, spike.end, spike.recovered) == ("nonfinite", None, False)
    assert spike.loss_before == pytest.approx(np.median(loss[30:90]), rel=0.05)


def test_a_blow_up_that_ends_in_nan_is_one_episode_from_its_first_high_loss():
    loss = smooth(100)
    loss[80:90] = np.geomspace(3, 1000, 10)
    loss[90:] = np.nan
    (spike,) = find_spikes(frame(range(100), loss))
    assert (spike.onset, spike.peak, spike.kind) == (80, 90, "nonfinite")


def test_a_zero_loss_beside_a_broken_gradient_norm_is_a_hidden_nan():
    loss = smooth(100)
    loss[70:73] = 0.0
    norm = np.ones(100)
    norm[70:73] = np.nan
    log = frame(range(100), loss).with_columns(pl.Series("grad_norm", norm))
    (spike,) = find_spikes(log)
    assert (spike.onset, spike.kind) == (70, "nonfinite")


def test_divergence_is_a_loss_that_stays_well_above():
    loss = smooth(200)
    loss[150:] = 4.0
    (spike,) = find_spikes(frame(range(200), loss))
    assert (spike.onset, spike.kind, spike.end) == (150, "divergence", None)
    assert spike.offset == pytest.approx(4.0 - spike.loss_before)


def test_a_small_lasting_offset_is_a_spike_that_did_not_recover():
    loss = 2.0 * np.exp(0.003 * np.random.default_rng(0).standard_normal(300))
    loss[200] = 5.0
    loss[201:] *= 1.2
    (spike,) = find_spikes(frame(range(300), loss))
    assert (spike.kind, spike.recovered) == ("spike", False)
    assert spike.offset == pytest.approx(0.4, rel=0.1)


def test_aftershocks_belong_to_their_spike():
    loss = smooth(200)
    loss[100:115] *= [2, 2.5, 2, 1.5, 1.2, 1, 1, 1, 1, 1.6, 1.4, 1, 1, 1, 1]
    (spike,) = find_spikes(frame(range(200), loss))
    assert (spike.onset, spike.peak) == (100, 101)
    assert spike.end >= 111


def test_a_second_spike_before_the_first_recovered_is_its_own():
    loss = 2.0 * np.exp(0.003 * np.random.default_rng(0).standard_normal(300))
    loss[100:] *= 1.35
    loss[100:105] *= [2, 2, 1.8, 1.5, 1.2]
    loss[200] *= 4
    spikes = find_spikes(frame(range(300), loss))
    assert [s.onset for s in spikes] == [100, 200]
    assert spikes[0].end is None
    assert spikes[1].end == 201


@pytest.mark.parametrize(
    "resume, expected", [((97,), True), ((100,), True), ((96,), False), ((101,), False), ((), False)]
)
def test_a_spike_within_three_steps_of_a_resume_says_so(resume, expected):
    loss = smooth(200)
    loss[100] *= 3
    (spike,) = find_spikes(frame(range(200), loss), resume_steps=resume)
    assert spike.at_resume is expected


def test_negative_losses_are_handled():
    random = np.random.default_rng(0)
    loss = -5 - 2 * np.arange(300) / 300 + 0.02 * random.standard_normal(300)
    assert onsets(frame(range(300), loss)) == []
    loss[200:203] += [3, 2, 1]
    (spike,) = find_spikes(frame(range(300), loss))
    assert (spike.onset, spike.peak, spike.recovered) == (200, 200, True)
    crossing = np.linspace(1, -1, 300) + 0.02 * random.standard_normal(300)
    assert onsets(frame(range(300), crossing)) == []


def test_sparse_logs_keep_their_spikes_apart():
    log, _ = loss_with_spikes(4000, [1500, 1600, 3000], seed=1, every=50, decay=30)
    assert onsets(log) == [1500, 1600, 3000]


def test_nulls_are_not_rows():
    log, truth = loss_with_spikes(600, [300], seed=2)
    holes = log.with_columns(pl.when(pl.col("step") % 2 == 0).then(pl.col("loss")).alias("loss"))
    assert onsets(holes) == list(truth.onsets)


@pytest.mark.parametrize("early", [[16.475, 16.446, 25.22], [12.4, 12.4, 12.3, 12.35, 16.5], [2.0, 2.1, 5.0]])
def test_a_rise_far_beyond_the_few_rows_before_is_found(early):
    loss = [*early, *np.linspace(early[-1], early[0], 20), *np.full(20, early[0])]
    assert onsets(frame(range(1, len(loss) + 1), loss)) == [len(early)]


@pytest.mark.parametrize(
    "early", [[16.4, 12.0, 17.5], [12.4, 12.0, 12.9], [10.0, 9.0, 8.2, 9.9], [3.0, 4.4], [0.1, 0.101, 0.13]]
)
def test_a_rise_that_few_rows_cannot_judge_is_none(early):
    assert onsets(frame(range(1, len(early) + 1), early)) == []


def test_the_first_rows_of_noise_hardly_ever_spike():
    draw = np.random.default_rng(0)
    logs = [frame(range(30), 3 * np.exp(0.05 * draw.standard_normal(30))) for _ in range(500)]
    assert sum(bool(onsets(log)) for log in logs) <= 3


def test_a_larger_one_soon_after_is_no_aftershock():
    loss = 3.3 * np.exp(0.03 * np.random.default_rng(1).standard_normal(200))
    loss[100], loss[108] = 4.6, 5.2
    assert onsets(frame(range(200), loss)) == [100, 108]
    loss[108] = 4.4
    assert onsets(frame(range(200), loss)) == [100]


def test_a_spike_recovered_if_the_loss_was_back_when_the_next_one_came():
    steps = range(0, 10_000, 50)
    loss = 2.0 * np.exp(0.003 * np.random.default_rng(0).standard_normal(200))
    loss[100:110] *= np.linspace(4, 1.2, 10)
    loss[112] *= 6
    first, second = find_spikes(frame(steps, loss))
    assert (first.onset, first.end, second.onset) == (5000, 5500, 5600)
    assert abs(first.offset) < 0.1  # the rows of the next spike do not count
    loss[110] *= 1.2  # one row is not back
    first, second = find_spikes(frame(steps, loss))
    assert (first.end, first.recovered, second.onset) == (None, False, 5600)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.sampled_from([5, 59, 60, 61, 75, 300]),
    window=st.sampled_from([5, 20, 60]),
    # Between the steps of a difference, so that no rounding decides.
    rise=st.sampled_from([-0.52, 0.02, 0.32, 1.02]),
)
def test_medians_looked_at_only_where_needed_are_the_same_medians(seed, rows, window, rise):
    draw = np.random.default_rng(seed)
    values = np.round(draw.standard_normal(rows), 1) + (np.arange(rows) % 37 == 0) * 3
    medians = trailing_median(values, window, 3)
    expected = np.flatnonzero(values - medians > rise)
    found, at_them = rows_above_median(values, window, 3, rise)
    assert found.tolist() == expected.tolist()
    assert np.allclose(at_them, medians[expected])
    bound = below_median(values, window)
    assert not np.any(bound[np.isfinite(medians)] > medians[np.isfinite(medians)])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(2, 399), noise=st.sampled_from([0.002, 0.05, 0.3]))
def test_onsets_never_use_later_rows(seed, cut, noise):
    random = np.random.default_rng(seed)
    planted = np.sort(random.choice(np.arange(20, 395), 5, replace=False)).tolist()
    log, _ = loss_with_spikes(400, planted, seed=seed, noise=noise)
    loss = log["loss"].to_numpy().copy()
    if seed % 3 == 0:
        loss[random.integers(0, 400, 4)] = np.nan
    log = log.with_columns(pl.Series("loss", loss))
    assert onsets(log.head(cut)) == [onset for onset in onsets(log) if onset <= cut]


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.5, 50), shift=st.integers(0, 10**6))
def test_onsets_do_not_depend_on_where_steps_begin_and_hardly_on_scale(scale, shift):
    log, truth = loss_with_spikes(500, [200, 400], seed=5)
    moved = log.with_columns(pl.col("step") + shift, pl.col("loss") * scale)
    assert onsets(moved) == [onset + shift for onset in truth.onsets]


@pytest.mark.parametrize("rule", sorted(SPIKE_RULES))
def test_every_rule_finds_a_tall_spike_in_a_long_log_and_has_a_source(rule):
    log, _ = loss_with_spikes(3000, [2500], seed=4, height=6, noise=0.02, start=1.8)
    found = onsets(log, rule=rule)
    description, source = SPIKE_RULES[rule]
    assert description
    assert source
    assert 2500 in found or (rule == "mosaic" and 2503 in found)
    if rule != "stable-adamw":  # 3.2 standard deviations of noise are no rarity in 3000 rows
        assert len(found) == 1


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="robust"):
        find_spikes(frame([1], [1.0]), rule="none")


def test_a_million_rows_take_seconds():
    log, truth = loss_with_spikes(1_000_000, [200_000, 700_000], seed=0, noise=0.05, height=4)
    start = time.process_time()
    found = onsets(log)
    assert time.process_time() - start < 10
    assert set(truth.onsets) <= set(found)
    assert len(found) <= 20  # 60 rows give an uncertain sigma: a few in a million


# --- logs of other people's runs ---


def read(*parts: str) -> str:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path.read_text()


def trainer_log(*parts: str) -> pl.DataFrame:
    rows = [(r["step"], float(r["loss"])) for r in json.loads(read(*parts))["log_history"] if "loss" in r]
    return pl.DataFrame(rows, schema=["step", "loss"], orient="row").unique("step", keep="last").sort("step")


def json_lines(column: str, *parts: str) -> pl.DataFrame:
    rows = [json.loads(line) for line in read(*parts).splitlines()]
    kept = [(r["step"], r[column]) for r in rows if r.get(column) is not None]
    return pl.DataFrame(kept, schema=["step", "loss"], orient="row")


def pythia(run: str) -> pl.DataFrame:
    files = sorted((DATA / "logs" / "polypythias_wandb_tsv").glob(f"{run}_*.tsv"))
    if not files:
        pytest.skip("the Pythia logs are absent")
    parts = [
        pl.read_csv(f, separator="\t").select("step", pl.col("train/lm_loss").alias("loss")) for f in files
    ]
    return pl.concat(parts).unique("step", keep="last").sort("step")


@pytest.mark.real
def test_the_trainer_run_has_exactly_its_two_spikes():
    first, second = find_spikes(trainer_log("runs", "hf_trainer_llama_spike", "trainer_state.json"))
    assert (first.onset, first.peak, round(first.loss_peak, 2)) == (151, 152, 6.28)
    assert (second.onset, second.peak, round(second.loss_peak, 2)) == (220, 220, 10.86)
    assert (second.end, second.recovery_steps) == (221, 1)


@pytest.mark.real
def test_the_distributed_run_has_its_one_spike():
    (spike,) = find_spikes(json_lines("loss", "runs", "dcp_fsdp2_nanogpt", "trace.jsonl"))
    assert 75 <= spike.onset <= 78
    assert spike.peak == 78
    assert spike.recovered


@pytest.mark.real
@pytest.mark.parametrize("run, step", [("410m-seed3", 75002), ("410m-seed4", 122002)])
def test_the_pythia_spikes_are_found_and_nothing_else(run, step):
    (spike,) = find_spikes(pythia(run))
    assert spike.onset == spike.peak == step
    assert spike.loss_peak > 10


@pytest.mark.real
@pytest.mark.parametrize("run, low, high", [("160m-seed4", 1318, 1343), ("160m-seed9", 1256, 1279)])
def test_the_pythia_bursts_are_one_spike_each(run, low, high):
    (spike,) = find_spikes(pythia(run))
    assert low <= spike.onset <= spike.peak <= high


@pytest.mark.real
def test_the_grokking_run_spikes_where_it_says():
    name = ("logs", "jsonl_grokking", "s5_mech_sgdm_sc1.0_wd0.01_s4.jsonl")
    spikes = {s.onset: s for s in find_spikes(json_lines("train_loss", *name))}
    assert spikes[2300].loss_peak == pytest.approx(9.165, abs=1e-3)
    assert spikes[2300].loss_before < 0.1
    assert spikes[2300].recovered
    assert {1100, 1600, 2800, 3500} <= set(spikes)
    assert not set(spikes) & set(range(2350, 2800))


@pytest.mark.real
def test_a_healthy_fine_tuning_has_none():
    assert onsets(trainer_log("logs", "hf_trainer_state", "mistral_translator_healthy.json")) == []
