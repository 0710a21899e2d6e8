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


def test_a_stretch_covers_the_climb_and_the_history_of_its_alarm() -> None:
    profile = ratio({step: 0.5 if step < 110 else 1.2 for step in range(10, 200, 10)})
    (one,) = stretches_to_zoom(a_run(range(10, 300, 10)), profile, found([spike(1, 157)], [alarm(110)]))
    assert (one.start, one.stop) == (60, 157), "48 steps before the alarm, from below the level that arms it"
    assert "alarm could first be known" in one.because


def test_it_begins_where_s_was_low_enough_to_arm_the_alarm() -> None:
    spoken = found([spike(1, 157)], [alarm(110)])
    hovering = dict.fromkeys(range(10, 200, 10), 0.85)
    low = ratio(hovering | {30: 0.5})
    assert ends(stretches_to_zoom(a_run(range(10, 300, 10)), low, spoken)) == [(30, 157)]
    too_far = ratio(dict.fromkeys(range(10, 300, 10), 0.85) | {10: 0.5})
    late = found([spike(1, 257)], [alarm(210)])
    assert ends(stretches_to_zoom(a_run(range(10, 300, 10)), too_far, late)) == [(120, 257)], (
        "at most 96 steps before the alarm"
    )


def test_where_checkpoints_are_far_apart_it_goes_back_two_gaps() -> None:
    run = a_run(range(60, 600, 60))
    profile = ratio({60: 0.4, 120: 0.5, 180: 0.9, 240: 1.1, 300: 1.2})
    assert ends(stretches_to_zoom(run, profile, found([spike(1, 310)], [alarm(240)]))) == [(120, 310)]


def test_it_does_not_begin_in_the_spike_before() -> None:
    profile = ratio(dict.fromkeys(range(10, 300, 10), 0.5))
    spoken = found([spike(1, 157), spike(2, 190)], [alarm(185)])
    first, second = stretches_to_zoom(a_run(range(10, 300, 10)), profile, spoken)
    assert (first.start, first.stop) == (150, 157)
    assert second.start == 180, "not before 157 + 16"


def test_stretches_that_touch_are_one() -> None:
    spikes = [spike(1, 157), spike(2, 163)]
    (joint,) = stretches_to_zoom(a_run([150]), table(), found(spikes, []))
    assert (joint.start, joint.stop, joint.spikes) == (150, 163, (1, 2))


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
    assert ends(touching) == [(150, 190)], "not from 100, although S was low there"


def test_an_alarm_of_the_logged_learning_rate_needs_no_history() -> None:
    profile = ratio(dict.fromkeys(range(10, 300, 10), 0.5))
    spoken = found([spike(1, 157)], [alarm(125, "headroom", quantity="optimizer.headroom")])
    assert ends(stretches_to_zoom(a_run(range(10, 300, 10)), profile, spoken)) == [(120, 157)]


def test_where_s_is_past_the_edge_at_the_last_checkpoint_the_crossing_before_it_is_zoomed_too() -> None:
    run = a_run(range(10, 300, 10))
    jumped = ratio({step: 11.9 if step == 150 else 0.5 for step in range(10, 200, 10)})
    spoken = found([spike(1, 151)], [alarm(150, "headroom", quantity="optimizer.headroom")])
    assert ends(stretches_to_zoom(run, jumped, spoken)) == [(140, 151)]
    calm = ratio(dict.fromkeys(range(10, 200, 10), 0.3))
    assert ends(stretches_to_zoom(run, calm, found([spike(1, 157)], []))) == [(150, 157)], "a bad batch"
