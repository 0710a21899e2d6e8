from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from hnf_offline.findings import Alarm, Findings, Spike, Story
from hnf_offline.relate.stretches import Stretch, stretches_to_zoom
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import table

from .planted import alarm, rows, spike

STATE = (Path("optimizer.pt"),)


def a_run(states: range | list[int], without: list[int] | None = None, resumes: tuple[int, ...] = ()) -> Run:
    saved = [Checkpoint(step, Path(f"checkpoint-{step}"), "hf", (), STATE) for step in states]
    saved += [Checkpoint(step, Path(f"checkpoint-{step}"), "hf", ()) for step in without or []]
    ordered = tuple(sorted(saved, key=lambda one: one.step))
    return Run(Path("run"), "run", ordered, None, None, None, resume_steps=resumes)


def found(spikes: list[Spike], alarms: list[Alarm]) -> Findings:
    told = [
        replace(one, spike=next((s.id for s in spikes if s.onset > one.known_at), None)) for one in alarms
    ]
    stories = []
    for one in spikes:
        known = min((a.known_at for a in told if a.spike == one.id), default=None)
        stories.append(Story(one.id, "edge", "", "", "", None, known, None, "", ()))
    return Findings({}, {}, (), spikes=tuple(spikes), stories=tuple(stories), alarms=tuple(told))


def ratio(values: dict[int, float]) -> pl.DataFrame:
    return table(rows("hessian.stability_ratio", list(values), list(values.values())))


def ends(stretches: tuple[Stretch, ...]) -> list[tuple[int, int]]:
    return [(one.start, one.stop) for one in stretches]


def test_from_the_checkpoint_before_the_onset_to_the_onset_without_any_profile() -> None:
    (one,) = stretches_to_zoom(a_run(range(10, 300, 10)), table(), found([spike(1, 157)], []))
    assert (one.start, one.stop, one.spikes) == (150, 157, (1,))
    assert "before the onset of spike 1" in one.because
    assert ends(stretches_to_zoom(a_run(range(10, 300, 10)), pl.DataFrame(), found([spike(1, 150)], []))) == [
        (140, 150)
    ]


def test_the_gap_in_which_the_alarm_became_known_is_a_stretch_of_its_own() -> None:
    profile = ratio({step: 0.5 if step < 110 else 1.2 for step in range(10, 200, 10)})
    both = stretches_to_zoom(a_run(range(10, 300, 10)), profile, found([spike(1, 157)], [alarm(110)]))
    assert ends(both) == [(100, 110), (150, 157)]
    assert "alarm of spike 1" in both[0].because


def test_stretches_that_touch_are_one() -> None:
    profile = ratio({step: 0.5 if step < 150 else 1.2 for step in range(10, 200, 10)})
    (one,) = stretches_to_zoom(a_run(range(10, 300, 10)), profile, found([spike(1, 157)], [alarm(150)]))
    assert (one.start, one.stop) == (140, 157)
    assert "onset" in one.because
    assert "alarm" in one.because
    spikes = [spike(1, 157), spike(2, 163)]
    (joint,) = stretches_to_zoom(a_run([150]), table(), found(spikes, []))
    assert (joint.start, joint.stop, joint.spikes) == (150, 163, (1, 2))


def test_where_s_was_past_the_level_already_it_goes_back_at_most_two_gaps_more() -> None:
    run, spoken = a_run(range(10, 300, 10)), found([spike(1, 250)], [alarm(150)])
    below = dict.fromkeys(range(10, 300, 10), 0.5)
    assert (130, 150) in ends(stretches_to_zoom(run, ratio(below | {140: 1.3}), spoken))
    assert (120, 150) in ends(stretches_to_zoom(run, ratio(below | {140: 1.3, 130: 1.3, 120: 1.3}), spoken))
    unknown = {step: value for step, value in below.items() if step != 140}
    assert (130, 150) in ends(stretches_to_zoom(run, ratio(unknown), spoken))
    assert (10, 20) in ends(stretches_to_zoom(run, ratio({20: 1.2}), found([spike(1, 250)], [alarm(20)]))), (
        "there is nothing before the first checkpoint"
    )


def test_without_optimizer_state_there_is_no_s_and_no_stretch_begins_there() -> None:
    sparse = a_run([100], without=[110, 120, 130, 140, 150])
    assert ends(stretches_to_zoom(sparse, table(), found([spike(1, 157)], []))) == [(100, 157)]
    assert stretches_to_zoom(a_run([], without=[100]), table(), found([spike(1, 157)], [])) == ()
    assert stretches_to_zoom(a_run([200]), table(), found([spike(1, 157)], [])) == ()
    raw = table([
        *rows("hessian.stability_ratio", [140], [0.5]),
        *rows("hessian.lambda_max", [140, 150], [9.0, 9.0]),
    ])
    unreadable = stretches_to_zoom(a_run([140, 150]), raw, found([spike(1, 157)], []))
    assert ends(unreadable) == [(140, 157)], "curvature was measured at 150, but its state gave no S"


def test_a_retraining_passes_no_resume() -> None:
    run = a_run(range(100, 300, 50))
    assert stretches_to_zoom(run, table(), found([spike(1, 157, at_resume=True)], [])) == ()
    inside = replace(run, resume_steps=(130,))
    assert stretches_to_zoom(inside, table(), found([spike(1, 148)], [])) == ()
    right_after = replace(run, resume_steps=(151,))  # resumed from checkpoint 150
    assert ends(stretches_to_zoom(right_after, table(), found([spike(1, 190)], []))) == [(150, 190)]
    profile = ratio({100: 0.5, 150: 1.2})
    touching = stretches_to_zoom(right_after, profile, found([spike(1, 190)], [alarm(150)]))
    assert ends(touching) == [(100, 150), (150, 190)]


def test_an_alarm_of_the_logged_learning_rate_is_known_to_the_step_already() -> None:
    profile = ratio(dict.fromkeys(range(10, 300, 10), 0.5))
    spoken = found([spike(1, 157)], [alarm(125, "headroom", quantity="optimizer.headroom")])
    assert ends(stretches_to_zoom(a_run(range(10, 300, 10)), profile, spoken)) == [(150, 157)]


def test_where_s_is_past_the_edge_at_the_last_checkpoint_the_crossing_before_it_is_zoomed_too() -> None:
    run = a_run(range(10, 300, 10))
    jumped = ratio({step: 11.9 if step == 150 else 0.5 for step in range(10, 200, 10)})
    spoken = found([spike(1, 151)], [alarm(150, "headroom", quantity="optimizer.headroom")])
    assert ends(stretches_to_zoom(run, jumped, spoken)) == [(140, 151)]
    lives_there = ratio(dict.fromkeys(range(10, 200, 10), 1.2))
    assert ends(stretches_to_zoom(run, lives_there, found([spike(1, 157)], []))) == [(150, 157)]
    resumed = replace(run, resume_steps=(151,))
    assert ends(stretches_to_zoom(resumed, jumped, found([spike(1, 155)], []))) == [(150, 155)]
