from dataclasses import replace

import pytest

from hnf_offline.errors import UsageError
from hnf_offline.findings import Alarm
from hnf_offline.report.heat import heat_map
from hnf_offline.report.monitor import monitor_lines, remarks, spelled_remarks
from hnf_offline.report.terminal import spikes_table, summary
from hnf_offline.table import Row, table

from . import made


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("run", [made.spike_run, made.healthy_run, made.nan_run, made.log_only_run])
def test_the_summary_fits_with_the_verdict_first(run, width):
    lines = summary(run().findings, width=width).split("\n")
    assert len(lines) <= 12
    assert max(map(len, lines)) <= width
    word = run().findings.verdict["word"]
    assert word in lines[1]


def test_the_summary_tells_every_fact_and_the_worst_spike_first_in_detail():
    text = summary(made.spike_run().findings, width=100)
    assert "layers.0.self_attn.k_proj at 140   lead 11 steps   learning rate" in text
    assert "spike 2  onset 220  peak 10.86" in text
    assert "not shown (2 spikes)" in text
    assert "missing: optimizer.pt in 17 of 30" in text


def test_many_spikes_are_cut_to_the_worst_and_counted():
    findings = made.spike_run().findings
    many = tuple(replace(findings.spikes[1], id=place, onset=place * 9) for place in range(3, 23))
    text = summary(replace(findings, spikes=findings.spikes + many, stories=()))
    assert len(text.split("\n")) <= 12
    assert "spike 1 " in text
    assert "milder spikes; all in the report" in text


def test_a_long_verdict_keeps_its_advice_and_milder_spikes_make_room():
    # That of a real run: what to do comes last.
    sentence = (
        "One loss spike, at step 62 (3.42 to 14.4): the learning rate rose 50-fold at step 61 (0.003 -> 0.15), 16.3 "
        "times past the edge: at checkpoint 60 S was 0.327 (0.316 to 0.434 between batches), so at most 0.0092 was "
        "stable there; least stable in model.embed_tokens. 1 spike is too few to test (p = 0.421, and >= 0.0526 "
        "whatever happens). Keep the learning rate at or below 0.0092 (lr/S at checkpoint 60)."
    )
    findings = made.spike_run().findings
    many = tuple(replace(findings.spikes[1], id=place, onset=place * 9) for place in range(3, 23))
    findings = replace(
        findings, verdict={**findings.verdict, "sentence": sentence}, spikes=findings.spikes + many
    )
    lines = summary(findings, width=80).split("\n")
    assert len(lines) <= 12 and max(map(len, lines)) <= 80
    assert sentence in " ".join(line.strip() for line in lines)
    assert "milder spikes; all in the report" in "\n".join(lines)


def test_escapes_from_files_never_reach_the_terminal():
    findings = made.spike_run().findings
    evil = "\x1b]0;title\x07\x1b[2Jname\r\n\u202e"
    alarms = (replace(findings.alarms[0], text=evil, action=evil),)
    findings = replace(findings, run={**findings.run, "name": evil}, alarms=alarms)
    for text in (summary(findings), *lines_of(findings)):
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
    assert "name" in summary(findings)


def test_ascii_is_ascii_and_colour_is_only_on_request():
    run = made.spike_run()
    plain = summary(run.findings, unicode=False) + heat_map(run.profile, unicode=False)
    assert plain.isascii()
    assert "\x1b" not in summary(run.findings) + heat_map(run.profile)
    assert "\x1b[1m" in summary(run.findings, color=True)
    assert "\x1b[" in heat_map(run.profile, color=True)


def test_the_map_has_the_source_documents_form_and_bands():
    rows = [
        Row(step, f"layers.{layer}.softmax", "softmax", layer, "proxy.softmax_log10", value)
        for layer, values in enumerate([(1.0, 2.9, 2.0), (2.0, 5.9, 8.9), (2.0, 9.1, float("inf"))])
        for step, value in zip((0, 100, 200), values, strict=True)
    ]
    lines = heat_map(table(rows)).split("\n")
    assert lines[0].split() == ["Step", "|", "0", "100", "200"]
    assert [line.split("|")[1].split() for line in lines[2:5]] == [
        ["■", "■", "■"],
        ["■", "▓", "█"],
        ["■", "!!!", "!!!"],
    ]
    assert "■ low (<1e3), ▓ medium (<1e6), █ high (<1e9), !!! danger (>1e9)" in lines[-1]


def test_s_has_its_own_bands_with_the_edge_at_one():
    rows = [
        Row(step, "layers.0.a", "key", 0, "hessian.stability_ratio", value)
        for step, value in ((0, 0.29), (1, 0.79), (2, 0.99), (3, 1.0))
    ]
    assert "■    ▓    █    !!!" in heat_map(table(rows))


def test_summary_and_map_fit_thirty_lines_and_the_spikes_are_marked():
    run = made.spike_run()
    text = heat_map(run.profile, findings=run.findings)
    assert len((summary(run.findings) + "\n" + text).split("\n")) <= 30
    assert "^1" in text and "^2" in text
    assert made.GUILTY.split(".self")[0].removeprefix("model.") in text
    assert max(map(len, text.split("\n"))) <= 80


def test_pooling_keeps_the_highest_value():
    run = made.large_run(400, 260)
    lines = heat_map(run.profile, width=80).split("\n")
    assert "400 layers pooled to 14 rows by their highest value" in lines[-1]
    assert len(lines) <= 18
    guilty = next(line for line in lines if "!!!" in line)
    assert guilty.startswith("layers.20-22 ")


def test_no_layers_is_a_sentence_and_an_unknown_quantity_an_error():
    assert heat_map(table()) == "no map: no quantity was measured per layer"
    with pytest.raises(UsageError, match="not measured per layer"):
        heat_map(made.spike_run().profile, quantity="attention.entropy")


#: The loss with which each spike of `made.spike_run` began, and when the end of the second was certain.
ONSETS, ENDS = {1: 3.43, 2: 10.86}, {2: 231}


def lines_of(findings, restarts=()):
    return list(monitor_lines(findings, losses=ONSETS, ends=ENDS, restarts=restarts))


def test_the_monitor_speaks_in_causal_order_with_actions_after_their_alarm():
    lines = lines_of(made.spike_run().findings)
    assert lines == [
        "[WARNING] Step 140: S reaches 1 near step 156.",
        "[INFO] Step 140: mass moves into layers.0 k_proj",
        "[DANGER] Step 150: S = 1.70 crosses 1.",
        "[ACTION] Recommended: resume from checkpoint 140 with learning rate 0.0081.",
        "[SPIKE] Step 151: loss 2.28 -> 3.43",
        "[SPIKE] Step 220: loss 2.75 -> 10.86",
        "[RECOVERED] Step 231: the loss is back since step 221; the spike of step 220 peaked at 10.86",
        "[WARNING] Step 260: headroom 1.4.",
    ]


def test_an_alarm_known_later_than_its_step_is_told_when_it_was_known():
    late = Alarm(100, 190, "hessian.lambda_max", "", 1.0, 1.0, "band", "warning", "late")
    findings = replace(made.spike_run().findings, alarms=(late,))
    lines = lines_of(findings)
    assert lines.index("[WARNING] Step 190: late.") == 1


def alarm_at(step, text, severity, action=""):
    return Alarm(step, step, "adam.lag_rms", "", 1.0, 1.0, "lag", severity, text, action)


def test_notes_of_a_step_are_one_line_without_what_it_says_already():
    notes = (
        alarm_at(384, "lag of a is 3 at checkpoint 384 (and 2 more layers).", "info", "Lower beta2."),
        alarm_at(384, "norm is 7 at step 384, high.", "info"),
        alarm_at(384, "norm is 7 at step 384, high.", "info"),
        alarm_at(384, "Adam lag is 3 at checkpoint 384.", "warning", "Lower beta2."),
    )
    assert lines_of(replace(made.healthy_run().findings, alarms=notes, spikes=())) == [
        "[WARNING] Step 384: Adam lag is 3 at checkpoint 384.",
        "[ACTION] Recommended: lower beta2.",
        "[INFO] Step 384: lag of a is 3 (and 2 more layers); norm is 7, high",
    ]


def test_a_spike_is_seen_before_the_checkpoint_of_its_step():
    findings = made.spike_run().findings
    onset = findings.spikes[0].onset
    findings = replace(findings, alarms=(alarm_at(onset, "S is 1.2.", "danger"),))
    assert [line.split("]")[0] for line in lines_of(findings)][:2] == ["[SPIKE", "[DANGER"]


def test_the_monitor_tells_a_restart_before_what_follows_it():
    findings = made.spike_run().findings
    lines = lines_of(findings, restarts=(151,))
    assert lines[lines.index("[RESTART] Step 151: the run starts again here") + 1].startswith(
        "[SPIKE] Step 151"
    )


def test_a_remark_knows_nothing_of_what_came_after_it():
    findings = made.spike_run().findings
    alarm = replace(findings.alarms[0], spike=1)
    (early, *_) = remarks((alarm,), (), losses={}, ends={})
    assert "spike" not in early.to_json()["alarm"], "which spike followed"
    (onset,) = remarks((), findings.spikes[:1], losses=ONSETS, ends={})
    assert set(onset.to_json()["spike"]) == {"onset", "loss_before", "loss", "at_resume"}
    assert list(spelled_remarks([onset])) == ["[SPIKE] Step 151: loss 2.28 -> 3.43"]


def test_spikes_table_has_one_line_a_spike():
    text = spikes_table(made.spike_run().findings.spikes)
    assert len(text.split("\n")) == 3
    assert "10.86" in text and "never, offset +0.14" in text
    assert spikes_table(()) == "no loss spike found"


def test_a_spike_without_a_finite_z_has_none_printed():
    findings = made.spike_run().findings
    broken = replace(findings.spikes[0], loss_peak=float("inf"), z=float("nan"), kind="nonfinite")
    text = summary(replace(findings, spikes=(broken,)), width=100)
    assert "spike 1" in text and "NaN" not in text and "(z" not in text
    assert "(z 31)" in summary(findings, width=100)


def test_one_checkpoint_has_one_step():
    findings = made.spike_run().findings
    alone = replace(findings, run={**findings.run, "steps": [1200, 1200]})
    assert (
        "step 1,200" in summary(alone, width=120).split("\n")[0]
        and "–" not in summary(alone, width=120).split("\n")[0]
    )
