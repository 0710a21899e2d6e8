"""Output logits z of the predicted positions, read once.

`log_partition` is logsumexp(z), [positions]; `target_log_probability` is log p(correct token), [positions].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


def predictions(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Read logits once.

    Args:
        logits: [positions, vocabulary].
        targets: the correct tokens, [positions].

    Returns:
        `log_partition` and `target_log_probability`.
    """
    place = targets.unsqueeze(-1)
    correct = logits.gather(-1, place)
    if logits.device.type == "cpu" and bool(correct.isfinite().all()):
        # Two thirds of the time that logsumexp takes. A logit that is minus infinity tells nothing of log Z.
        target = logits.log_softmax(dim=-1).gather(-1, place)
        log_partition = correct - target
    else:
        log_partition = logits.logsumexp(dim=-1, keepdim=True)
        target = correct - log_partition
    return {"log_partition": log_partition.squeeze(-1), "target_log_probability": target.squeeze(-1)}


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
def log_z(log_partition: Tensor) -> Tensor:
    """Mean log partition function of the output softmax.

    Returns:
        A scalar.
    """
    return log_partition.mean()


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
def smallest_target_probability(target_log_probability: Tensor) -> Tensor:
    """Smallest probability given to a correct token.

    Returns:
        A scalar.
    """
    return target_log_probability.amin().exp()
