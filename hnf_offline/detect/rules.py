"""The thresholds of every alarm, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds of the alarms; the defaults are those that were studied, not tuned to any run.

    Attributes:
        on: stability ratio above which an armed machine alarms: the edge of stability (Cohen et al. 2022,
            arXiv:2207.14484).
        off: the machine arms only below this. Of the settings of the prediction study the stricter
            hysteresis: recall .79, precision .60 (chance .44, .41), median lead 34 steps on fresh seeds.
        forecast_steps: a crossing forecast within so many steps alarms early.
        forecast_gaps: or within so many checkpoint gaps, where that is more.
        forecast_from: stability ratio below which nothing is forecast.
        straight: R^2 that the growth of the logarithm must exceed.
        refractory: steps after a spike in which the stability ratio is still its aftershock.
        raise_ratio: learning-rate rises below this factor are rounding or a smooth schedule.
        lag: Adam's lag RMS_t above this (StableAdamW, Wortsman et al. 2023, arXiv:2304.13013).
        logit_warning: attention logit at which the loss degrades (Wortsman et al. 2023, arXiv:2309.14322).
        logit_danger: attention logit above which every run of that paper diverged.
        band_warning: log10 of a component estimate: the source document's warning band.
        band_danger: the same, danger band.
        band_gap: decades below a band at which its alarm arms again.
        norm_high: gradient norm above the source documents' healthy band (meant for clipped fp16 runs).
        norm_critical: gradient norm they call critical.
        norm_rows: logged rows whose median norm must lie below the healthy band for it to say anything.
        norm_quiet: logged rows in a row within the healthy band that end an episode.
        increase: rapid increase: so many times within `increase_checkpoints` (source document,
            TrainingMonitor).
        increase_checkpoints: checkpoints of that window.
        overflow_log10: log10 of what overflows (source document, predict_failure).
        overflow_steps: steps within which the fitted growth has to reach it.
        overflow_checkpoints: checkpoints of that fit.
    """

    on: float = 1.0
    off: float = 0.8
    forecast_steps: int = 24
    forecast_gaps: float = 2.0
    forecast_from: float = 0.6
    straight: float = 0.8
    refractory: int = 16
    raise_ratio: float = 1.05
    lag: float = 2.3
    logit_warning: float = 1e3
    logit_danger: float = 1e4
    band_warning: float = 6.0
    band_danger: float = 9.0
    band_gap: float = 0.5
    norm_high: float = 5.0
    norm_critical: float = 10.0
    norm_rows: int = 128
    norm_quiet: int = 50
    increase: float = 10.0
    increase_checkpoints: int = 10
    overflow_log10: float = 15.0
    overflow_steps: int = 100
    overflow_checkpoints: int = 20


#: The thresholds as studied.
STUDIED = Rules()
