from __future__ import annotations

import polars as pl
import pytest

from hnf_offline.findings import Advice, Story
from hnf_offline.relate.advice import advice
from hnf_offline.relate.evidence import annotated, find_jump
from hnf_offline.relate.healthy import last_healthy_checkpoint
from hnf_offline.relate.stories import lead_text, stories
from hnf_offline.table import Row, table

from .planted import alarm, rows, spike


def a_log(jump_at: int | None = None, length: int = 300) -> pl.DataFrame:
    rate = [
        5e-2 if jump_at is not None and jump_at <= s < jump_at + 3 else 5e-3 for s in range(1, length + 1)
    ]
    return pl.DataFrame({
        "step": range(1, length + 1),
        "loss": [2.0] * length,
        "grad_norm": [1.0] * length,
        "learning_rate": rate,
    })


def a_profile(ratio: dict[int, float], rate: float = 5e-3) -> pl.DataFrame:
    return table([
        *rows("hessian.stability_ratio", list(ratio), list(ratio.values())),
        *rows("optimizer.learning_rate", list(ratio), [rate] * len(ratio)),
    ])


def tell(
    profile: pl.DataFrame, log: pl.DataFrame, *spikes_and_alarms: object
) -> tuple[Story, tuple[Advice, ...]]:
    spikes = [one for one in spikes_and_alarms if hasattr(one, "onset")]
    alarms = annotated([one for one in spikes_and_alarms if hasattr(one, "known_at")], spikes)
    told = stories(profile, log, spikes, alarms, 10)
    healthy = last_healthy_checkpoint([], profile, log, spikes, alarms)
    return told[0], advice(profile, log, spikes, told, alarms, 10, healthy)


CALM = dict.fromkeys(range(10, 300, 10), 0.3)


def test_a_learning_rate_jump_is_told_with_its_numbers() -> None:
    ratio = {step: (0.5 if step < 150 else 0.2) for step in range(10, 300, 10)} | {150: 5.0}
    told, advised = tell(
        a_profile(ratio),
        a_log(150),
        spike(1, 151, recovered=False, offset=0.14),
        alarm(150, "edge", value=5.0),
        alarm(150, "headroom", quantity="optimizer.headroom"),
    )
    assert told.cause == "learning-rate"
    assert "10-fold at step 150" in told.sentence
    assert "5 times past the edge" in told.sentence
    assert (told.known_at, told.lead, told.lead_text) == (150, 1, "1 step")
    lines = dict(told.timeline)
    assert told.timeline[0] == (140, "S = 0.5, headroom 2")
    assert (150, "learning rate 0.005 -> 0.05") in told.timeline
    assert "never recovered (+0.14)" in lines.values()
    assert [step for step, _ in told.timeline] == sorted(step for step, _ in told.timeline)
    assert advised[0].numbers["largest_stable_learning_rate"] == pytest.approx(1e-2)
    assert advised[0].numbers["times_past_the_edge"] == pytest.approx(5)
    assert "0.01 (lr/S at checkpoint 140)" in advised[0].action
    assert advised[-1].action == "restart from checkpoint 140"


def test_a_jump_within_the_headroom_is_not_blamed() -> None:
    told, _ = tell(a_profile(dict.fromkeys(range(10, 300, 10), 0.05)), a_log(150), spike(1, 151))
    assert told.cause != "learning-rate"


def test_warm_up_is_no_jump() -> None:
    steps = range(1, 101)
    log = pl.DataFrame({"step": steps, "loss": [1.0] * 100, "learning_rate": [1e-4 * s for s in steps]})
    assert all(find_jump(log, onset) is None for onset in range(12, 100))
    assert find_jump(a_log(150), 151) is not None
    assert find_jump(a_log(150), 150) is None, "the rate of step 150 acts on the loss of step 151"
    assert find_jump(a_log(None), 151) is None
    assert find_jump(None, 151) is None


def test_a_spike_at_the_edge_gets_lasting_advice() -> None:
    ratio = {step: 0.3 + 0.005 * step for step in range(10, 200, 10)}
    told, advised = tell(a_profile(ratio), a_log(), spike(1, 185), alarm(150, "edge"))
    assert told.cause == "edge"
    assert (told.known_at, told.lead, told.lead_text) == (150, 35, "35 steps")
    text = advised[0].action + advised[0].because
    assert "for good" in text
    assert "for 100 steps" not in text
    assert "blind" in text or "ignores S" in text
    assert "stable at this checkpoint" in text
    assert advised[0].numbers["recommended_learning_rate"] <= 5e-3


def test_a_lead_below_the_checkpoint_gap_is_never_a_number() -> None:
    told, _ = tell(a_profile(CALM | {150: 1.4}), a_log(), spike(1, 157), alarm(150, "edge"))
    assert told.lead_text == "< 10 steps (checkpoint gap)"
    assert "7 steps" not in told.sentence
    assert lead_text(None, 10) == "none"
    assert lead_text(10, 10) == "10 steps"
    assert lead_text(1, 1, "log") == "1 step"


def test_a_bad_batch_is_told_as_one() -> None:
    told, advised = tell(a_profile(CALM | {150: 0.35}), a_log(), spike(1, 150, steps=1))
    assert told.cause == "bad-batch"
    assert told.sentence.startswith("no curvature cause: S was 0.35; the loss fell back in 1 step")
    assert "step 150" in told.sentence
    assert told.lead_text == "none"
    assert "rows of step 150" in advised[0].action
    assert told.first_layer == ""


def test_a_slow_recovery_or_a_high_s_is_no_bad_batch() -> None:
    assert tell(a_profile(CALM), a_log(), spike(1, 150, steps=40))[0].cause == "unknown"
    assert tell(a_profile(CALM | {140: 1.2}), a_log(), spike(1, 150, steps=1))[0].cause == "edge"


def test_without_s_nothing_is_claimed_and_what_is_missing_is_said() -> None:
    told, advised = tell(table(), a_log(), spike(1, 150, steps=1))
    assert told.cause == "unknown"
    assert "fits a bad batch" in told.sentence
    assert "not ruled out" in told.sentence
    assert "optimizer state" in advised[0].action


def test_a_spike_at_a_resume_is_the_resume_whatever_s_says() -> None:
    told, advised = tell(a_profile(CALM | {140: 3.0}), a_log(), spike(1, 150, at_resume=True), alarm(140))
    assert told.cause == "resume"
    assert "optimizer state" in advised[0].action


def test_an_alarm_belongs_to_the_next_spike_only() -> None:
    spikes = [spike(1, 151), spike(2, 220)]
    found = annotated([alarm(150), alarm(151), alarm(219), alarm(220), alarm(20)], spikes)
    assert [(one.known_at, one.spike) for one in found] == [
        (20, None),
        (150, 1),
        (151, 2),
        (219, 2),
        (220, None),
    ]


def test_notes_do_not_make_a_lead() -> None:
    told, _ = tell(a_profile(CALM), a_log(), spike(1, 150), alarm(120, "edge-from-start", severity="info"))
    assert told.lead is None


@pytest.mark.parametrize("peak", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_told(peak: float) -> None:
    lost = spike(1, 150, recovered=False, loss_peak=peak, height=peak, kind="nonfinite", offset=None)
    told, _ = tell(a_profile(CALM), a_log(), lost)
    assert any(f"loss is {peak}" in text for _, text in told.timeline)
    assert any(text == "never recovered" for _, text in told.timeline)


def test_last_healthy_checkpoint() -> None:
    ratio = CALM | {140: 1.3}
    log = a_log()
    assert last_healthy_checkpoint([], a_profile(ratio), log, [spike(1, 150, recovered=False)]) == 130
    assert last_healthy_checkpoint([], a_profile(ratio), log, []) == 290
    assert last_healthy_checkpoint([10, 20, 160], table(), log, [spike(1, 150)]) == 20
    assert last_healthy_checkpoint([], table(), log, []) is None
    assert last_healthy_checkpoint([200], table(), log, [spike(1, 150)]) is None
    broken = pl.concat([a_profile(CALM), table([Row(100, "a", "other", 0, "weight.nonfinite", 0.1)])])
    assert last_healthy_checkpoint([], broken, log, []) == 90
    first_lost = [spike(1, 50), spike(2, 150, recovered=False), spike(3, 250, recovered=False)]
    assert last_healthy_checkpoint([], a_profile(CALM), log, first_lost) == 140
    no_loss = log.with_columns(
        pl.when(pl.col("step") == 141).then(None).otherwise(pl.col("loss")).alias("loss")
    )
    assert last_healthy_checkpoint([], a_profile(CALM), no_loss, [spike(1, 150)]) == 140
    nan = log.with_columns(
        pl.when(pl.col("step") == 141).then(float("nan")).otherwise(pl.col("loss")).alias("loss")
    )
    assert last_healthy_checkpoint([], a_profile(CALM), nan, [spike(1, 150)]) == 130


def test_advice_without_a_spike() -> None:
    quiet = advice(a_profile(CALM), a_log(), [], [], [], 10, 290)
    assert quiet[0].action == "nothing to do"
    assert quiet[0].numbers["headroom"] == pytest.approx(1 / 0.3)
    assert "stable at this checkpoint" in quiet[0].because
    unseen = advice(a_profile(CALM), None, [], [], [], 10, 290)
    assert unseen[0].action != "nothing to do"


def test_a_profile_that_stopped_short_of_curvature_says_how_to_know_more() -> None:
    gradients = table([*rows("optimizer.learning_rate", list(CALM), [5e-3] * len(CALM))])
    told, advised = tell(gradients, a_log(), spike(1, 151, recovered=False, offset=0.1))
    assert told.cause == "unknown"
    assert "not measured at this tier" in told.sentence
    assert any("--tier curvature" in one.action for one in advised)


def test_the_range_of_s_between_training_batches_is_told_where_it_is_wide() -> None:
    ratio = {step: (0.5 if step < 150 else 0.2) for step in range(10, 300, 10)} | {150: 5.0}
    profile = a_profile(ratio).with_columns(
        low=pl.when(pl.col("step") == 140).then(0.3), high=pl.when(pl.col("step") == 140).then(0.9)
    )
    told, advised = tell(profile, a_log(150), spike(1, 151, recovered=False, offset=0.14))
    assert "0.5 (0.3 to 0.9 between batches)" in told.sentence
    assert any("(0.3 to 0.9 between batches)" in one.because for one in advised)
