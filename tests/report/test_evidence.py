from dataclasses import replace

from hnf_offline.report import svg_evidence
from hnf_offline.report.evidence import lead, predictors, raster

from . import made


def test_the_raster_counts_back_from_each_onset():
    panel = raster(made.spike_run().findings)
    assert panel.resolution == 10
    assert panel.rows[0].alarms == (("edge", 1.0), ("forecast", 11.0))
    assert panel.rows[1].alarms == ()
    assert "1 of 2 onsets" in panel.title
    assert "no alarm" in svg_evidence.raster(panel)


def test_a_lead_below_the_checkpoint_gap_is_never_a_number():
    edge, forecast, rival = made.spike_run().findings.relations
    assert lead(edge) == "11 [11–11]"
    assert lead(forecast) == "< 10 (gap)"
    assert lead(rival) == "-"
    assert lead(replace(edge, lead_low=4.0)) == "11 [< gap–11]"


def test_every_rate_stands_beside_chance_and_baselines_come_last_and_marked():
    panel = predictors(made.spike_run().findings)
    assert [row.baseline for row in panel.rows] == [False, False, True]
    assert panel.rows[0].recall == "0.50 (chance 0.20)"
    assert {row.p_value for row in panel.rows} == {"not testable", "0.31 (14 tests)", "1.0 (14 tests)"}
    drawn = svg_evidence.predictors(panel)
    assert drawn.count("(baseline)") == 1
    assert "best baseline" in panel.title


def test_without_spikes_or_relations_there_is_no_evidence_panel():
    findings = made.healthy_run().findings
    assert raster(findings) is None
    assert predictors(findings) is None


def test_a_rule_tried_on_many_layers_is_one_dot_and_its_other_layers_are_set_apart():
    findings = made.spike_run().findings
    layered = tuple(
        replace(findings.relations[0], rule="layer S", layer=f"layers.{place}", recall=place / 10)
        for place in range(11)
    )
    panel = predictors(replace(findings, relations=findings.relations + layered))
    assert sum(dot.label.startswith("layer S") for dot in panel.dots) == 1
    assert max(dot.recall for dot in panel.dots if dot.label.startswith("layer S")) == 1.0
    assert len(panel.more) == 10
    assert any(dot.baseline for dot in panel.dots)


def test_a_rule_no_better_than_chance_is_not_called_the_best():
    findings = made.spike_run().findings
    relations = tuple(replace(one, recall=1.0, chance_recall=1.0) for one in findings.relations)
    assert predictors(replace(findings, relations=relations)).title == (
        "The forecast announced no more spikes than as many alarms at random: recall 1.00 (chance 1.00)"
    )
