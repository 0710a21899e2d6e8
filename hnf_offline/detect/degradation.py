"""Slow degradations of a network: units that die or saturate, ranks that collapse, logits that drift, ranges that end.

Each is judged against the layer's own first checkpoint, since levels that are healthy differ from model to model, and
says what can be done. A value that is wrong once may be an accident of the replayed rows: it counts when the next
checkpoint agrees, or when there is none.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.measured import Measured, measured
from hnf_offline.detect.trailing import Flags
from hnf_offline.findings import Pathology

#: Share of units, or of rows of attention, that is bad; and by how much it must have risen since the first checkpoint.
SHARE, ROSE = 0.5, 0.25
#: The same of a head's queries: heads of healthy language models give half of their rows to a sink.
ATTENTION_SHARE = 0.9
#: An effective rank is collapsed at this part of its first value.
RANK_PART = 0.25
#: Nats that the mean log Z may move, a factor of 1e13 of the softmax's denominator, which the loss cannot see; and it
#: counts only beyond three times its first size: the steady sample run goes from 183 to 414 and is well.
LOG_Z_DRIFT, LOG_Z_TIMES = 30.0, 3.0
#: Times its own median before that an embedding's gradient jumps, and the most that the other layers' do meanwhile.
JUMP, ALONE, BEFORE = 10.0, 3.0, 3
#: Nats that casting to bfloat16 may cost; a healthy model pays a few thousandths.
BFLOAT16_COST = 0.1


def degradations(profile: pl.DataFrame, log: pl.DataFrame) -> tuple[Pathology, ...]:
    """Find what slowly goes wrong inside the network.

    Args:
        profile: the long table.
        log: with a column `loss_scale` where float16 is trained.

    Returns:
        One a layer and kind, at the first checkpoint that shows it.
    """
    series = _by_quantity(profile)
    return (
        *_shares(
            series,
            "activation.dead_share",
            "dead-units",
            _DEAD,
            "of its units are off at every replayed token",
        ),
        *_shares(
            series,
            "activation.saturated_share",
            "saturated-units",
            _SATURATED,
            "of its outputs are at the limit",
        ),
        *_shares(
            series,
            "attention.saturation",
            "attention-saturation",
            _ATTENTION,
            "of the worst head's queries give more than 99 % of their weight to one key",
            ATTENTION_SHARE,
        ),
        *_rank_collapse(series),
        *_logit_drift(series),
        *_embedding_gradient(profile),
        *_epsilon_bound(series),
        *_precision_loss(series),
        *_first_overflow(series, trains_float16="loss_scale" in log.columns),
        *_first_nonfinite(series),
    )


_DEAD = (
    "Lower the peak learning rate or warm up longer; where units must recover, a leaky activation lets them."
)
_SATURATED = (
    "Gradients hardly pass there: normalise what goes in, or lower the learning rate of the layer before."
)
_ATTENTION = "Normalise queries and keys (QK-norm) or lower the learning rate of their projections."
_RANK = "The layer uses few directions: lower its learning rate or weight decay, and look at what feeds it."
_DRIFT = "Add a z-loss (1e-4 of log^2 Z): it costs nothing and holds log Z near 0."
_EMBEDDING = (
    "Scale the embedding's gradient down (GLM-130B: 0.1) or clip it alone; look for rare tokens in that step."
)
_EPSILON = "Lower eps, or scale the loss up: these entries move by less than the learning rate says."
_BFLOAT16 = (
    "Keep a float32 copy of the weights, or at least of norms and head, where the model is trained or served."
)
_OVERFLOW = "Train in bfloat16, or scale down what this layer gives out."


def _by_quantity(profile: pl.DataFrame) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for series in measured(profile):
        found.setdefault(series.quantity, []).append(series)
    return found


def _first_lasting(bad: Flags) -> int | None:
    """First row that is bad and whose successor, if there is one, is bad too."""
    lasting = bad & np.append(bad[1:], True)
    return int(np.flatnonzero(lasting)[0]) if lasting.any() else None


def _shares(
    series: dict[str, list[Measured]],
    quantity: str,
    kind: str,
    action: str,
    words: str,
    share: float = SHARE,
) -> Iterator[Pathology]:
    """Shares that rose above a limit.

    Yields:
        One a layer.
    """
    for one in series.get(quantity, ()):
        first = one.values[0]
        row = _first_lasting((one.values >= share) & (one.values >= first + ROSE))
        if row is not None:
            evidence = f"{one.values[row]:.0%} {words}, {first:.0%} at {one.place(0)}."
            yield Pathology(kind, one.layer, int(one.steps[row]), evidence, action)


def _rank_collapse(series: dict[str, list[Measured]]) -> Iterator[Pathology]:
    """Weights whose singular values concentrate on few directions (Dong et al. 2021, arXiv:2103.03404).

    Yields:
        Kind "rank-collapse", one a layer.
    """
    for one in series.get("weight.effective_rank", ()):
        row = _first_lasting(one.values < RANK_PART * one.values[0])
        if row is not None:
            evidence = f"effective rank fell from {one.values[0]:.3g} to {one.values[row]:.3g}."
            yield Pathology("rank-collapse", one.layer, int(one.steps[row]), evidence, _RANK)


def _logit_drift(series: dict[str, list[Measured]]) -> Iterator[Pathology]:
    """Output logits that move together, which softmax does not see (Wortsman et al. 2023, arXiv:2309.14322, 3.2).

    Yields:
        Kind "logit-drift".
    """
    for one in series.get("logits.log_z", ()):
        first = one.values[0]
        row = _first_lasting(np.abs(one.values - first) > max(LOG_Z_DRIFT, LOG_Z_TIMES * abs(first)))
        if row is not None:
            evidence = f"mean log Z moved from {first:.3g} to {one.values[row]:.3g} nats."
            yield Pathology("logit-drift", one.layer, int(one.steps[row]), evidence, _DRIFT)


def _embedding_gradient(profile: pl.DataFrame) -> Iterator[Pathology]:
    """A gradient of an embedding that jumps while the others do not (Zeng et al. 2022, arXiv:2210.02414, section 2.3).

    Yields:
        Kind "embedding-gradient-spike", one a layer.
    """
    if profile.is_empty():
        return
    norms = profile.filter(pl.col("quantity") == "gradient.norm")
    embeddings = set(norms.filter(pl.col("kind") == "embedding")["layer"].to_list())
    each = list(measured(norms.filter(pl.col("layer") != "")))
    others = [one for one in each if one.layer not in embeddings]
    for one in each:
        if one.layer not in embeddings:
            continue
        for row in range(BEFORE, len(one.values)):
            jump = _jump(one, int(one.steps[row]))
            rest = [found for other in others if (found := _jump(other, int(one.steps[row]))) is not None]
            if jump is not None and rest and jump >= JUMP and float(np.median(rest)) <= ALONE:
                evidence = (
                    f"gradient norm is {jump:.3g} times its median of the checkpoints before, that of the "
                )
                evidence += f"other layers {np.median(rest):.3g} times."
                yield Pathology(
                    "embedding-gradient-spike", one.layer, int(one.steps[row]), evidence, _EMBEDDING
                )
                break


def _jump(one: Measured, step: int) -> float | None:
    at = int(np.searchsorted(one.steps, step))
    if at < BEFORE or at >= len(one.steps) or one.steps[at] != step:
        return None
    usual = float(np.median(one.values[max(0, at - 2 * BEFORE) : at]))
    return float(one.values[at]) / usual if usual > 0 and np.isfinite(one.values[at]) else None


def _epsilon_bound(series: dict[str, list[Measured]]) -> Iterator[Pathology]:
    """Adam's updates bounded by its epsilon (Wortsman et al. 2023, arXiv:2309.14322, section 3.4).

    Yields:
        Kind "epsilon-bound-updates", one a layer.
    """
    for one in series.get("adam.epsilon_share", ()):
        row = _first_lasting(one.values >= SHARE)
        if row is not None:
            evidence = f"{one.values[row]:.0%} of the entries have sqrt(v_hat) below eps."
            yield Pathology("epsilon-bound-updates", one.layer, int(one.steps[row]), evidence, _EPSILON)


def _precision_loss(series: dict[str, list[Measured]]) -> Iterator[Pathology]:
    """Weights that bfloat16 cannot hold.

    Yields:
        Kind "silent-precision-loss".
    """
    for one in series.get("precision.loss_change_bf16", ()):
        row = _first_lasting(one.values > BFLOAT16_COST)
        if row is not None:
            evidence = f"cast to bfloat16 the replayed loss is {one.values[row]:.2g} nats higher."
            yield Pathology("silent-precision-loss", one.layer, int(one.steps[row]), evidence, _BFLOAT16)


def _first_overflow(series: dict[str, list[Measured]], *, trains_float16: bool) -> Iterator[Pathology]:
    """Where the range of a reduced precision ends: the first layer, in forward order, at the first such checkpoint.

    float16 counts only for runs that train in it, as a logged loss scale tells.

    Yields:
        Kinds "float16-overflow" and "bfloat16-overflow".
    """
    for name, letters, counts in (("float16", "fp16", trains_float16), ("bfloat16", "bf16", True)):
        quantities = f"precision.nonfinite_{letters}", f"activation.overflow_{letters}"
        wrong = [one for quantity in quantities for one in series.get(quantity, ()) if (one.values > 0).any()]
        if not counts or not wrong:
            continue
        first = min(wrong, key=lambda one: (int(one.steps[one.values > 0][0]), one.depth))
        row = int(np.flatnonzero(first.values > 0)[0])
        evidence = f"{first.values[row]:.2%} of what it gives out leaves the range of {name}; no layer before it does."
        yield Pathology(f"{name}-overflow", first.layer, int(first.steps[row]), evidence, _OVERFLOW)


def _first_nonfinite(series: dict[str, list[Measured]]) -> Iterator[Pathology]:
    """Finite weights whose replay is not finite: the first module that gives out NaN or infinity.

    Yields:
        Kind "nonfinite-origin".
    """
    broken = [one for one in series.get("replay.loss", ()) if not np.isfinite(one.values).all()]
    if not broken:
        return
    step = min(int(one.steps[~np.isfinite(one.values)][0]) for one in broken)
    origin = [
        one
        for quantity in ("activation.variance", "residual.rms", "attention.logit_max")
        for one in series.get(quantity, ())
        if (~np.isfinite(one.values[one.steps == step])).any()
    ]
    if origin:
        first = min(origin, key=lambda one: one.depth)
        evidence = "the weights are finite, what this layer gives out is not; no layer before it does that."
        action = "Look at its input of that batch; clip the gradient, and go back to the checkpoint before."
        yield Pathology("nonfinite-origin", first.layer, step, evidence, action)
