"""Pathologies: what is wrong with a run beside its spikes, each with the numbers that show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from hnf_offline.detect.degradation import CALM_ATTENTION, degradations, lasting
from hnf_offline.detect.depth import gradient_over_depth
from hnf_offline.detect.embedding import embedding_gradient
from hnf_offline.detect.kinds import kind
from hnf_offline.detect.log_events import Written, log_pathologies
from hnf_offline.detect.measured import Measured, measured, one, worst_head
from hnf_offline.detect.spikes import DIVERGED_NATS, DIVERGED_ROWS
from hnf_offline.findings import Pathology, Spike

ENTROPY = 0.05  # nats: one key gets everything
ENTROPY_FALL = 5.0  # and it was so many times more before
LOGIT = 1e3  # Wortsman et al. 2023, arXiv:2309.14322: the loss degrades from here
LAG, LAG_CHECKPOINTS = 2.3, 3
YOUNG = 100  # updates in which v_hat is made of too few gradients: healthy runs lag by 2 to 20 there

_GO_BACK = "Go back to the last healthy checkpoint, with a lower learning rate or without that batch."
DIVERGENCE = kind(
    "divergence",
    rule=f"A spike after which the loss never comes back: the median of the last {DIVERGED_ROWS} rows lies half of the "
    f"level before, and {DIVERGED_NATS} nat, above it (of losses that began below {10 * DIVERGED_NATS:g}, a tenth of "
    "where they began).",
    needs=("loss",),
    action=_GO_BACK,
)
NONFINITE_LOSS = kind(
    "nonfinite-loss",
    rule="The loss is NaN or infinite in any row; 0.0 beside a gradient norm that is not finite counts.",
    needs=("loss",),
    action=_GO_BACK,
)
NONFINITE_WEIGHTS = kind(
    "nonfinite-weights",
    rule="Any weight of a layer is NaN or infinite.",
    needs=("weight.nonfinite",),
    action="Nothing can be saved from here: go back to the checkpoint before.",
)
ENTROPY_COLLAPSE = kind(
    "attention-entropy-collapse",
    rule=f"The mean entropy of a layer's lowest head is below {ENTROPY} nats and was {ENTROPY_FALL:g} times as high "
    "before; the next checkpoint agrees, or there is none.",
    needs=("attention.entropy",),
    action=CALM_ATTENTION,
)
LOGIT_GROWTH = kind(
    "attention-logit-growth",
    rule=f"The largest attention logit of a layer exceeds {LOGIT:g}.",
    needs=("attention.logit_max",),
    action=CALM_ATTENTION,
)
ADAM_LAG = kind(
    "adam-lag",
    rule=f"The whole model's lag RMS_t exceeds {LAG} at {LAG_CHECKPOINTS} checkpoints in a row, those of the first "
    f"{YOUNG} updates left out.",
    needs=("adam.lag_rms",),
    action="Lower beta2 (0.95 for language models) or clip each update by its RMS, so that v_hat keeps up.",
)


def pathologies(
    profile: pl.DataFrame, log: pl.DataFrame, spikes: Sequence[Spike], written: Written | None = None
) -> tuple[Pathology, ...]:
    """Find what is wrong beside the spikes, in hindsight.

    Args:
        profile: the long table.
        log: `step`, `loss` and, where logged, `learning_rate`.
        spikes: the spikes of the log.
        written: how the log was written, None where nothing is known.

    Returns:
        The pathologies in order of their step.
    """
    found = (
        *_of_the_loss(spikes),
        *_weights(profile),
        *_entropy_collapse(profile),
        *_logit_growth(profile),
        *_lag(profile),
        *gradient_over_depth(profile),
        *embedding_gradient(profile),
        *degradations(profile, log),
        *log_pathologies(log, spikes, written),
    )
    return tuple(sorted(found, key=lambda one_of: (one_of.step, one_of.kind, one_of.layer)))


def _of_the_loss(spikes: Sequence[Spike]) -> Iterator[Pathology]:
    """A loss that diverged or was not finite.

    Yields:
        Kinds "divergence" and "nonfinite-loss".
    """
    for spike in spikes:
        if spike.kind == "divergence":
            evidence = (
                f"loss left {spike.loss_before:.3g} at step {spike.onset}, reached {spike.loss_peak:.3g} at "
            )
            evidence += f"step {spike.peak} and stayed up"
            evidence += "." if spike.offset is None else f", {spike.offset:.3g} higher at the end."
            yield DIVERGENCE.at("", spike.onset, evidence)
        elif spike.kind == "nonfinite":
            ending = "never came back" if spike.end is None else f"came back at step {spike.end}"
            evidence = f"loss is {spike.loss_peak} at step {spike.peak} and {ending}."
            yield NONFINITE_LOSS.at("", spike.onset, evidence)


def _weights(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Weights that are not finite, at the first checkpoint that holds them.

    Yields:
        Kind "nonfinite-weights", one a layer.
    """
    for series in _series(profile, "weight.nonfinite"):
        for row in np.flatnonzero(series.values > 0)[:1]:
            share, step = series.values[row], int(series.steps[row])
            evidence = f"{share:.2%} of the weights are not finite at checkpoint {step}."
            yield NONFINITE_WEIGHTS.at(series.layer, step, evidence)


def _entropy_collapse(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Attention of a head that falls onto one key (Zhai et al. 2023, arXiv:2303.06296).

    Yields:
        Kind "attention-entropy-collapse", one a layer.
    """
    for series in map(Measured.known, _series(profile, "attention.entropy")):
        highest = np.maximum.accumulate(series.values)
        low = (series.values < ENTROPY) & (highest > ENTROPY_FALL * np.maximum(series.values, 1e-3))
        for row in np.flatnonzero(lasting(low))[:1]:
            head = worst_head(profile, series, int(row))
            fall = f"from {highest[row]:.3g} to {series.values[row]:.3g} nats"
            fall += f" ({series.values[row - 1]:.3g} at the checkpoint before)."
            evidence = f"mean entropy of the lowest head{head} fell {fall}"
            yield ENTROPY_COLLAPSE.at(series.layer, series.steps[row], evidence)


def _logit_growth(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Attention logits past the size at which the loss degrades.

    Yields:
        Kind "attention-logit-growth", one a layer.
    """
    for series in map(Measured.known, _series(profile, "attention.logit_max")):
        for row in np.flatnonzero(series.values > LOGIT)[:1]:
            evidence = f"largest logit is {series.values[row]:.3g}{worst_head(profile, series, int(row))}"
            if row:
                evidence += f", {series.values[0]:.3g} at step {series.steps[0]}"
            evidence += "; runs above 1e4 diverged in the published study."
            yield LOGIT_GROWTH.at(series.layer, series.steps[row], evidence)


def _lag(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Gradients that outgrow Adam's second moment for several checkpoints running.

    Yields:
        Kind "adam-lag", for the whole model.
    """
    series = one(profile, "adam.lag_rms")
    lag, steps = series.values[series.steps >= YOUNG], series.steps[series.steps >= YOUNG]
    lag = np.where(np.isfinite(lag), lag, 0.0)  # a gradient that is not finite is told as such
    if lag.size < LAG_CHECKPOINTS:
        return
    held = np.lib.stride_tricks.sliding_window_view(lag > LAG, LAG_CHECKPOINTS).all(axis=1)
    for row in np.flatnonzero(held)[:1]:
        values = ", ".join(f"{value:.2g}" for value in lag[row : row + LAG_CHECKPOINTS])
        evidence = f"lag RMS is {values} at successive checkpoints; 1 is normal."
        yield ADAM_LAG.at("", steps[row], evidence)


def _series(profile: pl.DataFrame, quantity: str) -> Iterator[Measured]:
    """Series of one quantity, all layers.

    Yields:
        One series a layer.
    """
    if not profile.is_empty():
        yield from measured(profile.filter(pl.col("quantity") == quantity))
