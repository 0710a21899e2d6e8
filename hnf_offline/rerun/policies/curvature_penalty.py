"""Penalise the loss curvature of chosen layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.layers import chosen_layers
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy
from hnf_offline.rerun.policies.spelling import options

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.linalg.hessian import Part
    from hnf_offline.profile.batch import MicroBatch
    from hnf_offline.rerun.training import Training
    from hnf_offline.run.model.loss import Outcome

#: Samples that the notes average at either end.
_ENDS = 5


class CurvaturePenalty(Policy):
    """Adds one Hutchinson sample of the trace of the loss Hessian in the chosen layers' parameters."""

    second_derivatives = True

    def __init__(self, weight: float, pattern: str = "*", every: int = 1) -> None:
        """Choose strength and layers.

        Args:
            weight: of the penalty.
            pattern: glob over layer paths.
            every: the penalty is taken at the first step and every so many after it.
        """
        self.weight = weight
        self.pattern = pattern
        self.every = every
        self._first = 0
        self._parts: tuple[Part, ...] = ()
        self._samples: dict[int, Tensor] = {}

    def begin(self, training: Training) -> None:
        """Find the layers."""
        self._first = training.step + 1
        self._samples.clear()
        trained = {name for name, value in training.module.named_parameters() if value.requires_grad}
        layers = chosen_layers(training.module, self.pattern, "curvature-penalty")
        self._parts = tuple(part for layer in layers for part in layer.parts if part.parameter in trained)

    def penalty(self, training: Training, step: int, outcome: Outcome, micro: MicroBatch) -> Tensor | None:
        """Sample the curvature; every micro-batch of a step along the same signs.

        Returns:
            WEIGHT v^T H v with its graph; None between the steps on which it is taken.
        """
        if (step - self._first) % self.every:
            return None
        parameters = dict(training.module.named_parameters())
        sample = quadratic_form(outcome.loss, parameters, self._parts, random_signs(self._parts, step))
        if sample is None:
            return None
        seen = sample.detach() * micro.weight
        self._samples[step] = self._samples[step] + seen if step in self._samples else seen
        return self.weight * sample

    def notes(self) -> tuple[str, ...]:
        """Say how the sampled trace moved.

        Returns:
            One sentence once there are samples.
        """
        if not self._samples:
            return ()
        values = [float(sample) for sample in self._samples.values()]
        ends = min(_ENDS, len(values))
        return (
            f"sampled trace of the chosen layers' Hessian: mean {fmean(values[:ends]):.3g} over the first {ends} "
            f"samples, {fmean(values[-ends:]):.3g} over the last",
        )


def random_signs(parts: Sequence[Part], seed: int) -> tuple[Tensor, ...]:
    """Draw a Rademacher vector.

    Returns:
        One [size] vector of -1 and 1 for each part, on the CPU; the same for the same seed.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(0, 2, (part.size,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        for part in parts
    )


def quadratic_form(
    loss: Tensor, parameters: Mapping[str, Tensor], parts: Sequence[Part], vector: Sequence[Tensor]
) -> Tensor | None:
    """Compute v^T H v with its graph, H the Hessian of a loss in some parts of the parameters.

    Args:
        loss: a scalar with its graph.
        parameters: leaves by name.
        parts: which entries.
        vector: one [size] piece of v for each part.

    Returns:
        A scalar; None where the loss is linear in the parts.
    """
    import torch

    along: dict[str, Tensor] = {}
    for part, piece in zip(parts, vector, strict=True):
        leaf = parameters[part.parameter]
        placed = part.scatter(piece.to(leaf.device, leaf.dtype))
        along[part.parameter] = along[part.parameter] + placed if part.parameter in along else placed
    leaves = [parameters[name] for name in along]
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    slope = torch.stack([(g * v).sum() for g, v in zip(gradients, along.values(), strict=True)]).sum()
    if not slope.requires_grad:
        return None
    products = torch.autograd.grad(slope, leaves, create_graph=True, materialize_grads=True)
    return torch.stack([(p * v).sum() for p, v in zip(products, along.values(), strict=True)]).sum()


@policy(
    "curvature-penalty",
    value="WEIGHT[,GLOB][,every=K]",
    summary="Penalise the Hessian's trace in some layers; acts on later steps, and rewards negative curvature too.",
    formula="loss + WEIGHT v^T H v, H the Hessian of the loss in the layers' parameters, v random signs seeded by "
    "the step, so E[v^T H v] = tr H; every=K takes it at every K-th step only, as strong as otherwise",
    reference="source document on the condition profiler, Curvature Regularization: there the curvature is a "
    "detached number (gradient 0) of module(x).sum(), whose Hessian is 0 for linear layers, norms and softmax; this "
    "is what it means. Sankar et al. 2021, arXiv 2012.03801 (layers), Liu, Yu & Lin 2023, arXiv 2208.05924 (sampled)",
    cost="a Hessian-vector product and a backward pass through it: seven to twenty plain steps at every K-th step; "
    "attention under the math kernel at every step",
    example="curvature-penalty=1e-4,*.attn.*,every=2",
)
def make(text: str | None) -> CurvaturePenalty:
    """Read weight, layers and interval.

    Returns:
        The policy.
    """
    plain, named = options(text, ["every"])
    weight, pattern = fields(plain, ["WEIGHT", "GLOB"], required=1)
    every = whole(named.get("every", "1"), "every")
    return CurvaturePenalty(number(str(weight), "WEIGHT", above=0), pattern or "*", every)
