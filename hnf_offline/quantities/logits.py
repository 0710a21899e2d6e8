"""Output logits of the predicted positions: `logits` [positions, vocabulary], `targets` [positions]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


@quantity(
    "logits.log_z",
    unit="nats",
    formula="mean of log Z = logsumexp(logits) over predicted positions",
    reference="Wortsman et al. 2023 (arXiv 2309.14322), section 3.2; PaLM z-loss (arXiv 2204.02311), section 5",
    tier="forward",
    layers="the whole model",
    reading="A drift away from 0 precedes the late output-logit divergence; a z-loss keeps it near 0.",
    cannot="Arbitrary up to a constant that training does not fix without z-loss.",
)
def log_z(logits: Tensor) -> Tensor:
    """Mean log partition function of the output softmax.

    Returns:
        A scalar.
    """
    return logits.logsumexp(dim=-1).mean()


@quantity(
    "logits.p_min",
    unit="probability",
    formula="min over predicted positions of p(correct token)",
    reference="condition-number profiler (source document): cross-entropy component, 1 / p_min",
    tier="forward",
    layers="the whole model",
    over_batches="min",
    reading="The most surprising correct token; its surprise -log p is what one token can add to the loss.",
    cannot="One odd token decides it: read it as a property of the batch as much as of the model.",
)
def smallest_target_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Smallest probability given to a correct token.

    Returns:
        A scalar.
    """
    return logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).amin().exp()
