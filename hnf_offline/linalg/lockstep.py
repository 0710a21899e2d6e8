"""Many Lanczos processes side by side, their products made together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.certify import CertifyingSpace
from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.krylov import KrylovSpace, advance_together
from hnf_offline.linalg.stopping import StopRule


@dataclass(frozen=True, slots=True)
class Problem:
    """One operator D M D whose extremes are wanted.

    Attributes:
        start: some weight on the wanted eigenvectors, [dimension].
        rule: when to stop.
        scale: the diagonal D, [dimension]; None for 1.
        fresh: a random vector, independent of the start, for rules that want one, [dimension].
    """

    start: Tensor
    rule: StopRule
    scale: Tensor | None = None
    fresh: Tensor | None = None

    def space(self) -> KrylovSpace:
        """Begin the Krylov space.

        Returns:
            One that asks the fresh vector before it ends, where the rule wants it.
        """
        if self.rule.fresh and self.fresh is not None:
            return CertifyingSpace(self.start, self.fresh, self.rule)
        return KrylovSpace(self.start, self.rule)


def extremes_together(
    multiply: Callable[[Sequence[int], Sequence[Tensor]], Sequence[Tensor]], problems: Sequence[Problem]
) -> list[Extremes]:
    """Find the extremes of several operators, one product of each of them at a time.

    Args:
        multiply: gives the products of the operators M with these numbers and vectors.
        problems: in the order of those numbers.

    Returns:
        One result a problem.
    """
    spaces = [problem.space() for problem in problems]
    while active := [number for number, space in enumerate(spaces) if not space.finished]:
        vectors = [_scaled(problems[number].scale, spaces[number].vector) for number in active]
        images = multiply(active, vectors)
        advance_together(
            [spaces[number] for number in active],
            [_scaled(problems[number].scale, image) for number, image in zip(active, images, strict=True)],
        )
    return [space.result() for space in spaces]


def _scaled(scale: Tensor | None, vector: Tensor) -> Tensor:
    return vector if scale is None else torch.mul(scale, vector)
