"""Slow degradations of a network: units that die or saturate, ranks that collapse, logits that drift, ranges that end.

Each is judged against the layer's own first checkpoint, since levels that are healthy differ from model to model, and
says what can be done. A value that is wrong once may be an accident of the replayed rows: it counts when the next
checkpoint agrees, or when there is none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from hnf_offline.detect.kinds import Kind, kind
from hnf_offline.detect.measured import Measured, measured, worst_head
from hnf_offline.detect.trailing import Flags, Floats
from hnf_offline.findings import Pathology

#: Share of units, or of rows of attention, that is bad; and by how much it must have risen since the first checkpoint.
SHARE, ROSE = 0.5, 0.25
#: The same of a head's queries, higher: healthy heads may rest on a sink (Xiao et al. 2023, arXiv:2309.17453).
ATTENTION_SHARE = 0.9
#: An effective rank is collapsed at this part of its first value.
RANK_PART = 0.25
#: Tokens that differ by less than this share of the stream are one. Alone it says little: a GPT-2 is well whose last
#: block gives nearly parallel outputs to random words (Ethayarajh 2019, arXiv 1909.00512, section 4.1).
TOKEN_SPREAD = 0.05
#: Nats that the mean log Z may move, a factor of 1e13 of the softmax's denominator, which the loss cannot see; and it
#: counts only beyond three times its first size: the steady sample run goes from 183 to 414 and is well.
LOG_Z_DRIFT, LOG_Z_TIMES = 30.0, 3.0
#: Nats that casting to bfloat16 may cost.
BFLOAT16_COST = 0.1

#: What to do about attention that rests on single keys.
CALM_ATTENTION = "Normalise queries and keys (QK-norm) or lower the learning rate of their projections."
_OVERFLOW = "Train in bfloat16, or scale down what this layer gives out."
_LASTS = "; the next checkpoint agrees, or there is none."
_RISEN = f"and that share has risen by {ROSE:.0%} of all since the first checkpoint{_LASTS}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A quantity that is judged against its own first value.

    Attributes:
        quantity: its name in the catalogue.
        kind: of the pathology.
        bad: which values are, given all of them, which are finite.
        evidence: a sentence with `now`, `first` and, of a worst head, `head`.
        broken: the sentence where the value is not finite although the replayed loss is; "" where others tell it.
    """

    quantity: str
    kind: Kind
    bad: Callable[[Floats], Flags]
    evidence: str
    broken: str = ""


def _risen(share: float) -> Callable[[Floats], Flags]:
    return lambda values: (values >= share) & (values >= values[0] + ROSE)


RULES: tuple[Rule, ...] = (
    Rule(
        "activation.dead_share",
        kind(
            "dead-units",
            rule=f"{SHARE:.0%} or more of a layer's units are off at every replayed token {_RISEN}",
            needs=("activation.dead_share",),
            action="Lower the peak learning rate or warm up longer; where units must recover, a leaky activation "
            "lets them.",
        ),
        _risen(SHARE),
        "{now:.0%} of its units are off at every replayed token, {first:.0%} at the first checkpoint.",
    ),
    Rule(
        "activation.saturated_share",
        kind(
            "saturated-units",
            rule=f"{SHARE:.0%} or more of a tanh's or sigmoid's outputs are beyond 99 % of its range {_RISEN}",
            needs=("activation.saturated_share",),
            action="Gradients hardly pass there: normalise what goes in, or lower the learning rate of the layer "
            "before.",
        ),
        _risen(SHARE),
        "{now:.0%} of its outputs are at the limit, {first:.0%} at the first checkpoint.",
    ),
    Rule(
        "attention.saturation",
        kind(
            "attention-saturation",
            rule=f"{ATTENTION_SHARE:.0%} or more of a head's queries give over 99 % of their weight to one key "
            f"{_RISEN}",
            needs=("attention.saturation",),
            action=CALM_ATTENTION,
        ),
        _risen(ATTENTION_SHARE),
        "{now:.0%} of the queries of the worst head{head} give more than 99 % of their weight to one key, {first:.0%} "
        "at the first checkpoint.",
    ),
    Rule(
        "weight.effective_rank",
        kind(
            "rank-collapse",
            rule=f"The effective rank of a layer's weights is below {RANK_PART:g} of that of its first "
            f"checkpoint{_LASTS}",
            needs=("weight.effective_rank",),
            action="The layer uses few directions: lower its learning rate or weight decay, and look at what feeds it.",
        ),
        lambda values: values < RANK_PART * values[0],
        "effective rank fell from {first:.3g} to {now:.3g}.",
    ),
    # Output logits that move together, which softmax does not see (Wortsman et al. 2023, arXiv:2309.14322).
    Rule(
        "logits.log_z",
        kind(
            "logit-drift",
            rule=f"The mean log Z of the output moved by more than {LOG_Z_DRIFT:g} nats, and by {LOG_Z_TIMES:g} times "
            f"its first size, since the first checkpoint{_LASTS}",
            needs=("logits.log_z",),
            action="Add a z-loss (1e-4 of log^2 Z): it costs little and holds log Z near 0.",
        ),
        lambda values: np.abs(values - values[0]) > max(LOG_Z_DRIFT, LOG_Z_TIMES * abs(values[0])),
        "mean log Z moved from {first:.3g} to {now:.3g} nats.",
    ),
    Rule(
        "adam.epsilon_share",
        kind(
            "epsilon-bound-updates",
            rule=f"{SHARE:.0%} or more of a layer's entries that the replayed rows move have sqrt(v_hat) below Adam's "
            f"eps{_LASTS}",
            needs=("adam.epsilon_share",),
            action="Lower eps, or scale the loss up: these entries move by less than the learning rate says.",
        ),
        lambda values: values >= SHARE,
        "{now:.0%} of the entries have sqrt(v_hat) below eps.",
    ),
    Rule(
        "precision.loss_change_bf16",
        kind(
            "silent-precision-loss",
            rule=f"Cast to bfloat16 the model's replayed loss is {BFLOAT16_COST} nats higher, or not finite "
            f"although it is as it stands{_LASTS}",
            needs=("precision.loss_change_bf16",),
            action="Keep a float32 copy of the weights, or at least of norms and head, where the model is trained or "
            "served.",
        ),
        lambda values: values > BFLOAT16_COST,
        "cast to bfloat16 the replayed loss is {now:.2g} nats higher.",
        broken="cast to bfloat16 the replayed loss is not finite, as the weights stand it is.",
    ),
    Rule(
        "precision.lost_updates",
        kind(
            "lost-updates",
            rule=f"The next update leaves {SHARE:.0%} or more of a layer's entries where they are, because weights "
            f"that are trained in half precision round it away{_LASTS}",
            needs=("precision.lost_updates",),
            action="Train with float32 master weights, or round stochastically (or with a compensation term).",
        ),
        lambda values: values >= SHARE,
        "{now:.0%} of its entries stay where they are at the next update: the precision that they are trained in "
        "rounds it away.",
    ),
)

# The first block alone is told: those after it get its tokens.
TOKEN_COLLAPSE = Rule(
    "residual.token_spread",
    kind(
        "token-collapse",
        rule=f"What differs between the tokens of a sequence is below {TOKEN_SPREAD:g} of a block's output, by its "
        f"norm, and below {RANK_PART:g} of what it was at the first checkpoint{_LASTS}",
        needs=("residual.token_spread",),
        action="Go back to where the tokens differ, and scale down what blocks add to the stream (by 1 / sqrt(depth)), "
        "so that skip connections carry it.",
    ),
    lambda values: (values < TOKEN_SPREAD) & (values < RANK_PART * values[0]),
    "its tokens have become one: what differs between them fell from {first:.2g} of its output to {now:.2g}.",
)

_RANGE = "Any output of a layer, replayed in {0}, {1}."
FLOAT16_OVERFLOW = kind(
    "float16-overflow",
    rule=_RANGE.format("float16", "leaves its range (above 65504), in runs that log a loss scale"),
    needs=("precision.nonfinite_fp16", "activation.overflow_fp16"),
    action=_OVERFLOW,
)
BFLOAT16_OVERFLOW = kind(
    "bfloat16-overflow",
    rule=_RANGE.format("bfloat16", "leaves its range (about 3.4e38)"),
    needs=("precision.nonfinite_bf16", "activation.overflow_bf16"),
    action="Scale down what this layer gives out: float32 itself ends there too.",
)
NONFINITE_ORIGIN = kind(
    "nonfinite-origin",
    rule="The replayed loss is not finite although the weights are: the first layer whose output is not.",
    needs=("replay.loss", "activation.variance", "residual.rms", "attention.logit_max"),
    action="Look at its input of that batch; clip the gradient, and go back to the checkpoint before.",
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
    losses = series.get("replay.loss", ())
    replayed = frozenset(step for one in losses for step in one.known().steps.tolist())
    broken = frozenset(step for one in losses for step in one.steps.tolist()) - replayed
    return (
        *(
            found
            for rule in RULES
            for one in series.get(rule.quantity, ())
            for found in _by_rule(rule, one, profile, replayed)
        ),
        *_first_collapse(series, profile),
        *_first_overflow(series, broken, trains_float16="loss_scale" in log.columns),
        *_first_nonfinite(series, broken),
    )


def _by_rule(
    rule: Rule, one: Measured, profile: pl.DataFrame, replayed: frozenset[int]
) -> Iterator[Pathology]:
    """Judge one series by one rule.

    Args:
        rule: the rule.
        one: the series.
        profile: the long table, which names heads.
        replayed: steps whose replayed loss is finite.

    Yields:
        At most one.
    """
    broken = ~np.isfinite(one.values) & np.isin(one.steps, list(replayed)) & bool(rule.broken)
    kept = np.isfinite(one.values) | broken
    one = replace(
        one, steps=one.steps[kept], values=np.where(broken, np.inf, one.values)[kept], zoomed=one.zoomed[:0]
    )
    if not one.values.size:
        return
    for row in np.flatnonzero(lasting(rule.bad(one.values)))[:1]:
        now = one.values[row]
        head = worst_head(profile, one, int(row)) if "{head}" in rule.evidence else ""
        evidence = rule.evidence if np.isfinite(now) else rule.broken
        yield rule.kind.at(
            one.layer, one.steps[row], evidence.format(now=now, first=one.values[0], head=head)
        )


def lasting(bad: Flags) -> Flags:
    """Keep what is bad at a checkpoint and at the next one too, or at the last one.

    Returns:
        One flag a row.
    """
    return np.asarray(bad & np.append(bad[1:], True))


def _first_collapse(series: dict[str, list[Measured]], profile: pl.DataFrame) -> Iterator[Pathology]:
    """Where the tokens of a sequence become one: the first block, in forward order, at the first such checkpoint.

    Yields:
        Kind "token-collapse".
    """
    found = [
        (pathology.step, one.depth, pathology)
        for one in series.get(TOKEN_COLLAPSE.quantity, ())
        for pathology in _by_rule(TOKEN_COLLAPSE, one, profile, frozenset())
    ]
    if found:
        yield min(found, key=operator.itemgetter(0, 1))[2]


def _first_overflow(
    series: dict[str, list[Measured]], broken: frozenset[int], *, trains_float16: bool
) -> Iterator[Pathology]:
    """Where the range of a reduced precision ends: the first layer, in forward order, at the first such checkpoint.

    Checkpoints whose replay is not finite in its own precision say nothing of another. float16 counts only for runs
    that train in it, as a logged loss scale tells.

    Yields:
        Kinds "float16-overflow" and "bfloat16-overflow".
    """
    for name, letters, overflow, counts in (
        ("float16", "fp16", FLOAT16_OVERFLOW, trains_float16),
        ("bfloat16", "bf16", BFLOAT16_OVERFLOW, True),
    ):
        quantities = f"precision.nonfinite_{letters}", f"activation.overflow_{letters}"
        wrong = [
            (int(one.steps[row]), one.depth, one.layer, float(one.values[row]))
            for quantity in quantities
            for one in series.get(quantity, ())
            for row in np.flatnonzero((one.values > 0) & ~np.isin(one.steps, list(broken)))[:1]
        ]
        if counts and wrong:
            step, _, layer, share = min(wrong)
            evidence = f"{share:.2%} of its outputs leave the range of {name}, none observed before does."
            yield overflow.at(layer, step, evidence)


def _first_nonfinite(series: dict[str, list[Measured]], broken: frozenset[int]) -> Iterator[Pathology]:
    """Finite weights whose replay is not finite: the first module that gives out NaN or infinity.

    Yields:
        Kind "nonfinite-origin".
    """
    sick = {step for one in series.get("weight.nonfinite", ()) for step in one.steps[one.values > 0].tolist()}
    step = min(broken - sick, default=None)
    if step is None:
        return
    origin = [
        one
        for quantity in ("activation.variance", "residual.rms", "attention.logit_max")
        for one in series.get(quantity, ())
        if (~np.isfinite(one.values[one.steps == step])).any()
    ]
    if origin:
        first = min(origin, key=lambda one: one.depth)
        evidence = f"the replayed loss of checkpoint {step} is not finite and its weights are: of all layers this one "
        evidence += "is the first to give out what is not."
        yield NONFINITE_ORIGIN.at(first.layer, step, evidence)
