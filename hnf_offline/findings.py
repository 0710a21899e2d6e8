"""The findings: everything the page, the terminal and `findings.json` say, as frozen records (schema 1).

`detect` and `relate` fill them, `report` prints them; nobody computes anything after this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hnf_offline.strict_json import plain

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss spike, with an onset, a peak and an end.

    Attributes:
        id: 1, 2, ... in order of onset.
        onset: first step at which the loss left its band.
        peak: step of the highest loss.
        end: first step back in the band, None where it never came back.
        loss_before: baseline before the onset (trailing median).
        loss_peak: loss at the peak (may be NaN or infinite).
        height: loss_peak - loss_before.
        z: robust z of log loss at the highest of the first steps.
        kind: "spike", "divergence" (never came back and stayed high) or "nonfinite".
        recovered: whether the loss came back into its band.
        recovery_steps: end - onset.
        offset: loss level after the end minus loss level before the onset.
        at_resume: whether a resume of the run lies at most a few steps before the onset.
    """

    id: int
    onset: int
    peak: int
    end: int | None
    loss_before: float
    loss_peak: float
    height: float
    z: float
    kind: str
    recovered: bool
    recovery_steps: int | None
    offset: float | None
    at_resume: bool


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A level shift of a series; `causal` is False for PELT, which sees the future."""

    quantity: str
    layer: str
    step: int
    method: str
    direction: str
    causal: bool


@dataclass(frozen=True, slots=True)
class Growth:
    """An exponential stretch of a series, with the interval of its doubling time."""

    quantity: str
    layer: str
    start: int
    end: int
    doubling_steps: float
    low: float
    high: float
    r2: float
    threshold: float | None
    projected_step: float | None


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a live monitor would have said.

    Attributes:
        step: the step the alarm is about.
        known_at: the step at which it could have been said: no future data, ever.
        quantity: name in the catalogue.
        layer: module path, "" for the whole model.
        value: value of the quantity then.
        threshold: what it crossed.
        rule: name of the rule, such as "edge", "forecast", "headroom", "rapid-increase", "band", "nonfinite".
        severity: "info", "warning" or "danger".
        text: one sentence.
        action: one sentence on what to do, "" where there is nothing to do.
        spike: id of the spike that it came before (within the window), None where none followed.
        projected_step: the step at which a forecast sees the threshold crossed, None for other rules.
    """

    step: int
    known_at: int
    quantity: str
    layer: str
    value: float
    threshold: float
    rule: str
    severity: str
    text: str
    action: str = ""
    spike: int | None = None
    projected_step: float | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """How well one rule on one quantity announced the spikes, beside chance.

    Attributes:
        quantity: name in the catalogue, or of a log column.
        layer: module path, "" for the whole model.
        rule: the rule in words.
        n_alarms: alarm episodes that were scored.
        n_spikes: spikes that were scored.
        recall: share of spikes with an alarm in the window before them, None without spikes.
        precision: share of alarms followed by a spike within the window, None without alarms.
        chance_recall: the same for as many alarms placed at random.
        chance_precision: the same for as many alarms placed at random.
        lead_median: median steps from first alarm to onset, None without hits.
        lead_low: lower quartile.
        lead_high: upper quartile.
        resolution: checkpoint gap (1 for logged quantities): a lead below it is "< gap".
        false_alarms_per_1000: false alarms per 1000 scored steps.
        time_in_warning: share of scored steps within a window that follows an alarm.
        p_value: circular-shift p of the recall, for the maximum over all tests; None where not testable.
        n_tests: number of (quantity, layer) series the maximum was taken over.
        n_shifts: number of distinct shifts behind p.
        baseline: True for the rivals (gradient norm, loss spread, ...).
        early_recall: share of spikes with an alarm at least ten steps before them: time to act.
        early_chance: the same for as many alarms placed at random.
    """

    quantity: str
    layer: str
    rule: str
    n_alarms: int
    n_spikes: int
    recall: float | None
    precision: float | None
    chance_recall: float | None
    chance_precision: float | None
    lead_median: float | None
    lead_low: float | None
    lead_high: float | None
    resolution: int
    false_alarms_per_1000: float
    time_in_warning: float
    p_value: float | None
    n_tests: int
    n_shifts: int
    baseline: bool
    early_recall: float | None = None
    early_chance: float | None = None


@dataclass(frozen=True, slots=True)
class Pathology:
    """Something wrong that is not a spike.

    Attributes:
        kind: what it is called.
        layer: where, "" for the whole model.
        step: the first at which it was seen.
        evidence: the numbers that show it, one sentence.
        action: what can be done, one sentence; "" where nothing general can be said.
    """

    kind: str
    layer: str
    step: int
    evidence: str
    action: str = ""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Something a log shows beside its spikes.

    Attributes:
        kind: "nonfinite-loss", "nonfinite-gradient", "gradient-outliers", "slow-divergence", "open-spike", "plateau",
            "loss-scale-collapse", "skipped-steps", "throughput-drop", "memory-growth", "duplicated-log", "restart" or
            "gap".
        severity: "danger", "warning", or "info" (worth knowing, nothing wrong).
        first: its first step.
        last: its last step; `first` where it is a point.
        evidence: the numbers that show it, one sentence.
    """

    kind: str
    severity: str
    first: int
    last: int
    evidence: str


@dataclass(frozen=True, slots=True)
class LogFindings:
    """All that was found in one training log, without checkpoints.

    Attributes:
        log: files, formats, columns, rows, steps, segments, restarts, duplicates, skipped_lines, shift, notes.
        rule: name of the spike rule.
        spikes: the loss spikes.
        events: what else the log shows.
        highest: the highest rise that is no spike: {"step", "loss", "before", "z"}; None where nothing rises.
        skipped: files that were passed over: {"path", "reason", "remedy"}.
        curve: the learning curve: "window", "plateau", "explosion", "power_law", "target", "validation", "accuracy",
            "components", "schedule", "phases", "epochs"; empty for a short log.
        precision: gradient norms and loss scaling: "bands", "scale", "skipped", "simulated"; what was logged of them.
    """

    log: Mapping[str, Any]
    rule: str
    spikes: tuple[Spike, ...] = ()
    events: tuple[LogEvent, ...] = ()
    highest: Mapping[str, Any] | None = None
    skipped: tuple[Mapping[str, Any], ...] = ()
    curve: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the findings as one JSON value, as `Findings.to_json` does.

        Returns:
            Plain dicts, lists, strings and numbers.
        """
        result = plain({"schema": SCHEMA, **asdict(self)})
        assert isinstance(result, dict)
        return result


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a run as a series of files: what `hnf check` finds.

    Attributes:
        kind: name of the check that found it, such as "identical-weights".
        severity: "danger" (what is computed from it is wrong), "warning", or "info".
        step: the checkpoint or log step it is about, None for the whole run.
        path: the file or folder, relative to the run; "" for the whole run.
        evidence: the numbers that show it, one sentence.
        remedy: what to do about it, one sentence.
    """

    kind: str
    severity: str
    step: int | None
    path: str
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, why, from which checkpoint, and the numbers behind it.

    Attributes:
        action: what to do, in one sentence.
        because: why.
        step: the checkpoint it starts from.
        numbers: the figures behind it.
        spike: id of the spike it is about.
        policy: the same as a policy of `hnf whatif` ("lr-cap=0.0084"), "" where retraining cannot test it.
        tested: what retraining with it gave ("tested: no spike, loss 2.18 instead of 3.19 at step 180"), ""
            where it was not tested.
        evidence: the page of that retraining, relative to the report's folder, "" where there is none.
    """

    action: str
    because: str
    step: int
    numbers: Mapping[str, float]
    spike: int | None = None
    policy: str = ""
    tested: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """One spike told in order: what moved first, where, how early, and what explains it.

    Attributes:
        spike: id of the spike.
        cause: "learning-rate", "edge", "bad-batch", "resume", "unknown".
        sentence: the story in one or two sentences.
        first_layer: the layer that moved first, "" where none can be named.
        first_quantity: what moved there, "" where nothing did.
        first_step: when, None where nothing did.
        known_at: earliest causal alarm inside the window, None where there was none.
        lead: onset - known_at, None where there was none.
        lead_text: "23 steps", "< 12 steps (checkpoint gap)" or "none".
        timeline: (step, sentence) in order.
        resolution: steps from the last measured point before that alarm to it (1 where it was zoomed), 0 where
            there was no alarm.
    """

    spike: int
    cause: str
    sentence: str
    first_layer: str
    first_quantity: str
    first_step: int | None
    known_at: int | None
    lead: int | None
    lead_text: str
    timeline: tuple[tuple[int, str], ...]
    resolution: int = 0


@dataclass(frozen=True, slots=True)
class ReplayCheck:
    """Replayed loss of a checkpoint against the logged loss of the next step: proof that the data fit.

    Attributes:
        checkpoint: step of the checkpoint.
        batch_step: step whose rows were replayed.
        replayed: the replayed loss.
        logged: the logged loss of that step.
        shift: batch_step - (checkpoint + 1); 0 unless an off-by-one was found.
        agrees: whether the two agree within 1e-3.
    """

    checkpoint: int
    batch_step: int
    replayed: float
    logged: float
    shift: int
    agrees: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found in one run.

    Attributes:
        run: name, path, checkpoints, steps, model, optimizer, gap, missing, skipped (all JSON values).
        verdict: {"word": "Spike"|"Diverged"|"Stable"|"Cannot say", "sentence": ..., "caveat": ...}.
        facts: the four facts of the first screen: {"label": ..., "value": ...}.
        zooms: stretches that were retrained step by step, and how well that gave the run again: {"start", "stop",
            "word", "because", "loss_difference_max", "weight_difference_max"}.
        faults: what is wrong with the run as a series of files.
        curve: the learning curve, as in `LogFindings`.
        precision: gradient norms and loss scaling, as in `LogFindings`.
        made: versions, time, device: the only part that differs between two identical runs.
    """

    run: Mapping[str, Any]
    verdict: Mapping[str, str]
    facts: tuple[Mapping[str, str], ...]
    spikes: tuple[Spike, ...] = ()
    stories: tuple[Story, ...] = ()
    change_points: tuple[ChangePoint, ...] = ()
    growth: tuple[Growth, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    relations: tuple[Relation, ...] = ()
    regimes: tuple[Mapping[str, Any], ...] = ()
    pathologies: tuple[Pathology, ...] = ()
    faults: tuple[Fault, ...] = ()
    replay_checks: tuple[ReplayCheck, ...] = ()
    last_healthy_checkpoint: int | None = None
    advice: tuple[Advice, ...] = ()
    rates: Mapping[str, Any] = field(default_factory=dict)
    zooms: tuple[Mapping[str, Any], ...] = ()
    curve: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the findings as one JSON value.

        Returns:
            Plain dicts, lists, strings and numbers; NaN and infinities become None beside a
            `"..._text"` key that spells them, so that strict JSON readers can read it.
        """
        result = plain({"schema": SCHEMA, **asdict(self)})
        assert isinstance(result, dict)
        return result
