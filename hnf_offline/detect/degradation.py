"""Slow degradations of a network: units that die or saturate, ranks that collapse, logits that drift, ranges that end.

Each is judged against the layer's own first checkpoint, since levels that are healthy differ from model to model, and
says what can be done. A value that is wrong once may be an accident of the replayed rows: it counts when the next
checkpoint agrees, or when there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from hnf_offline.detect.measured import Measured, measured, worst_head
from hnf_offline.detect.trailing import Flags, Floats
from hnf_offline.findings import Pathology

#: Share of units, or of rows of attention, that is bad; and by how much it must have risen since the first checkpoint.
SHARE, ROSE = 0.5, 0.25
#: The same of a head's queries, higher: healthy heads may rest on a sink (Xiao et al. 2023, arXiv:2309.17453).
ATTENTION_SHARE = 0.9
#: An effective rank is collapsed at this part of its first value.
RANK_PART = 0.25
#: Nats that the mean log Z may move, a factor of 1e13 of the softmax's denominator, which the loss cannot see; and it
#: counts only beyond three times its first size: the steady sample run goes from 183 to 414 and is well.
LOG_Z_DRIFT, LOG_Z_TIMES = 30.0, 3.0
#: Times its own median before that an embedding's gradient jumps, and the most that the other layers' do meanwhile.
JUMP, ALONE, BEFORE = 10.0, 3.0, 3
#: Nats that casting to bfloat16 may cost.
BFLOAT16_COST = 0.1

#: What to do about attention that rests on single keys.
CALM_ATTENTION = "Normalise queries and keys (QK-norm) or lower the learning rate of their projections."
_EMBEDDING = (
    "Scale the embedding's gradient down (GLM-130B: 0.1) or clip it alone; look for rare tokens in that step."
)
_OVERFLOW = "Train in bfloat16, or scale down what this layer gives out."
_ORIGIN = "Look at its input of that batch; clip the gradient, and go back to the checkpoint before."


@dataclass(frozen=True, slots=True)
class Rule:
    """A quantity that is judged against its own first value.

    Attributes:
        quantity: its name in the catalogue.
        kind: of the pathology.
        bad: which values are, given all of them.
        evidence: a sentence with `now`, `first` and, of a worst head, `head`.
        action: what can be done.
    """

    quantity: str
    kind: str
    bad: Callable[[Floats], Flags]
    evidence: str
    action: str


def _risen(share: float) -> Callable[[Floats], Flags]:
    return lambda values: (values >= share) & (values >= values[0] + ROSE)


RULES: tuple[Rule, ...] = (
    Rule(
        "activation.dead_share",
        "dead-units",
        _risen(SHARE),
        "{now:.0%} of its units are off at every replayed token, {first:.0%} at the first checkpoint.",
        "Lower the peak learning rate or warm up longer; where units must recover, a leaky activation lets them.",
    ),
    Rule(
        "activation.saturated_share",
        "saturated-units",
        _risen(SHARE),
        "{now:.0%} of its outputs are at the limit, {first:.0%} at the first checkpoint.",
        "Gradients hardly pass there: normalise what goes in, or lower the learning rate of the layer before.",
    ),
    Rule(
        "attention.saturation",
        "attention-saturation",
        _risen(ATTENTION_SHARE),
        "{now:.0%} of the queries of the worst head{head} give more than 99 % of their weight to one key, {first:.0%} "
        "at the first checkpoint.",
        CALM_ATTENTION,
    ),
    Rule(
        "weight.effective_rank",
        "rank-collapse",
        lambda values: values < RANK_PART * values[0],
        "effective rank fell from {first:.3g} to {now:.3g}.",
        "The layer uses few directions: lower its learning rate or weight decay, and look at what feeds it.",
    ),
    # Output logits that move together, which softmax does not see (Wortsman et al. 2023, arXiv:2309.14322).
    Rule(
        "logits.log_z",
        "logit-drift",
        lambda values: np.abs(values - values[0]) > max(LOG_Z_DRIFT, LOG_Z_TIMES * abs(values[0])),
        "mean log Z moved from {first:.3g} to {now:.3g} nats.",
        "Add a z-loss (1e-4 of log^2 Z): it costs little and holds log Z near 0.",
    ),
    Rule(
        "adam.epsilon_share",
        "epsilon-bound-updates",
        lambda values: values >= SHARE,
        "{now:.0%} of the entries have sqrt(v_hat) below eps.",
        "Lower eps, or scale the loss up: these entries move by less than the learning rate says.",
    ),
    Rule(
        "precision.loss_change_bf16",
        "silent-precision-loss",
        lambda values: values > BFLOAT16_COST,
        "cast to bfloat16 the replayed loss is {now:.2g} nats higher.",
        "Keep a float32 copy of the weights, or at least of norms and head, where the model is trained or served.",
    ),
)


def degradations(profile: pl.DataFrame, log: pl.DataFrame) -> tuple[Pathology, ...]:
    """Find what slowly goes wrong inside the network.

    Args:
        profile: the long table.
        log: with a column `loss_scale` where float16 is trained.

    Returns:
        One a layer and kind, at the first checkpoint that shows it.
    """
    series: dict[str, list[Measured]] = {}
    for one in measured(profile):
        series.setdefault(one.quantity, []).append(one)
    return (
        *(found for rule in RULES for found in _by_rule(rule, series.get(rule.quantity, ()), profile)),
        *_embedding_gradient(profile),
        *_first_overflow(series, trains_float16="loss_scale" in log.columns),
        *_first_nonfinite(series),
    )


def _by_rule(rule: Rule, series: Sequence[Measured], profile: pl.DataFrame) -> Iterator[Pathology]:
    for one in series:
        bad = rule.bad(one.values)
        lasting = np.flatnonzero(bad & np.append(bad[1:], True))  # the next one agrees, or there is none
        if lasting.size:
            row = lasting[0]
            head = worst_head(profile, one, int(row)) if "{head}" in rule.evidence else ""
            evidence = rule.evidence.format(now=one.values[row], first=one.values[0], head=head)
            yield Pathology(rule.kind, one.layer, int(one.steps[row]), evidence, rule.action)


def _embedding_gradient(profile: pl.DataFrame) -> Iterator[Pathology]:
    """A gradient of an embedding that jumps while the others do not (Zeng et al. 2022, arXiv:2210.02414).

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
        evidence = (
            f"{first.values[row]:.2%} of its outputs leave the range of {name}, none observed before does."
        )
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
        evidence = (
            "the weights are finite, what this layer gives out is not; none observed before it does that."
        )
        yield Pathology("nonfinite-origin", first.layer, step, evidence, _ORIGIN)
