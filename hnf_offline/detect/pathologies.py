"""Pathologies: what is wrong with a run beside its spikes, each with the numbers that show it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from hnf_offline.detect.degradation import CALM_ATTENTION, degradations
from hnf_offline.detect.log_events import Written, log_pathologies
from hnf_offline.detect.measured import Measured, measured, one, worst_head
from hnf_offline.findings import Pathology, Spike

ENTROPY = 0.05  # nats: one key gets everything
ENTROPY_FALL = 5.0  # and it was so many times more before
LOGIT = 1e3  # Wortsman et al. 2023, arXiv:2309.14322: the loss degrades from here
LAG, LAG_CHECKPOINTS = 2.3, 3
DECADES = 3.0  # gradient norms of the first and the last block this far apart
BLOCKS = 4

_GO_BACK = "Go back to the last healthy checkpoint, with a lower learning rate or without that batch."


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
        *_gradient_over_depth(profile),
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
            evidence += f"step {spike.peak} and stayed up."
            yield Pathology("divergence", "", spike.onset, evidence, _GO_BACK)
        elif spike.kind == "nonfinite":
            ending = "never came back" if spike.end is None else f"came back at step {spike.end}"
            evidence = f"loss is {spike.loss_peak} at step {spike.peak} and {ending}."
            yield Pathology("nonfinite-loss", "", spike.onset, evidence, _GO_BACK)


def _weights(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Weights that are not finite, at the first checkpoint that holds them.

    Yields:
        Kind "nonfinite-weights", one a layer.
    """
    for series in _series(profile, "weight.nonfinite"):
        for row in np.flatnonzero(series.values > 0)[:1]:
            share, step = series.values[row], int(series.steps[row])
            yield Pathology(
                "nonfinite-weights",
                series.layer,
                step,
                f"{share:.2%} of the weights are not finite at checkpoint {step}.",
                "Nothing can be saved from here: go back to the checkpoint before.",
            )


def _entropy_collapse(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Attention of a head that falls onto one key (Zhai et al. 2023, arXiv:2303.06296).

    Yields:
        Kind "attention-entropy-collapse", one a layer.
    """
    for series in _series(profile, "attention.entropy"):
        highest = np.maximum.accumulate(np.where(np.isfinite(series.values), series.values, 0.0))
        low = (series.values < ENTROPY) & (highest > ENTROPY_FALL * np.maximum(series.values, 1e-3))
        for row in np.flatnonzero(low)[:1]:
            head = worst_head(profile, series, int(row))
            fall = f"from {highest[row]:.3g} to {series.values[row]:.3g} nats."
            evidence = f"mean entropy of the lowest head{head} fell {fall}"
            yield Pathology(
                "attention-entropy-collapse", series.layer, int(series.steps[row]), evidence, CALM_ATTENTION
            )


def _logit_growth(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Attention logits past the size at which the loss degrades.

    Yields:
        Kind "attention-logit-growth", one a layer.
    """
    for series in _series(profile, "attention.logit_max"):
        for row in np.flatnonzero(np.isfinite(series.values) & (series.values > LOGIT))[:1]:
            evidence = f"largest logit grew from {series.values[0]:.3g} at step {series.steps[0]} to "
            evidence += f"{series.values[row]:.3g}{worst_head(profile, series, int(row))}; runs above 1e4 "
            evidence += "diverged in the published study."
            yield Pathology(
                "attention-logit-growth", series.layer, int(series.steps[row]), evidence, CALM_ATTENTION
            )


def _lag(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Gradients that outgrow Adam's second moment for several checkpoints running.

    Yields:
        Kind "adam-lag", for the whole model.
    """
    lag = one(profile, "adam.lag_rms").values
    steps = one(profile, "adam.lag_rms").steps
    if lag.size < LAG_CHECKPOINTS:
        return
    held = np.lib.stride_tricks.sliding_window_view(lag > LAG, LAG_CHECKPOINTS).all(axis=1)
    for row in np.flatnonzero(held)[:1]:
        values = ", ".join(f"{value:.2g}" for value in lag[row : row + LAG_CHECKPOINTS])
        yield Pathology(
            "adam-lag",
            "",
            int(steps[row]),
            f"lag RMS is {values} at successive checkpoints; 1 is normal.",
            "Lower beta2 (0.95 for language models) or clip each update by its RMS, so that v_hat keeps up.",
        )


def _gradient_over_depth(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Gradients that vanish or explode from the last block to the first.

    Fits log10 of the gradient norm of a block (root of its summed squares) against the block's number, at
    each checkpoint; the median over checkpoints must exceed three decades from first to last block.

    Yields:
        Kind "gradient-vanishing" or "gradient-exploding", for the whole model.
    """
    squares: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for series in _series(profile, "gradient.norm"):
        block = re.search(r"(?:^|\.)(\d+)(?:\.|$)", series.layer)
        if block:
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                squares[step][int(block[1])] += value * value
    decades: dict[int, float] = {}
    for step, blocks in squares.items():
        numbers = np.array(sorted(blocks), dtype=np.float64)
        norms = np.array([blocks[int(number)] for number in numbers])
        usable = np.isfinite(norms) & (norms > 0)
        if usable.sum() >= BLOCKS:
            slope = np.polyfit(numbers[usable], 0.5 * np.log10(norms[usable]), 1)[0]
            decades[step] = float(slope * (numbers[usable][-1] - numbers[usable][0]))
    if not decades or abs(np.median(list(decades.values()))) < DECADES:
        return
    typical = float(np.median(list(decades.values())))
    first = min(step for step, value in decades.items() if value * np.sign(typical) >= DECADES)
    kind = "gradient-vanishing" if typical > 0 else "gradient-exploding"
    evidence = f"from the first to the last block the gradient norm changes by 1e{typical:+.1f} (median over "
    action = "Normalise before each block, or scale each residual branch by 1 / sqrt(2 blocks) at the start."
    yield Pathology(kind, "", first, f"{evidence}{len(decades)} checkpoints).", action)


def _series(profile: pl.DataFrame, quantity: str) -> Iterator[Measured]:
    """Series of one quantity, all layers.

    Yields:
        One series a layer.
    """
    if not profile.is_empty():
        yield from measured(profile.filter(pl.col("quantity") == quantity))
