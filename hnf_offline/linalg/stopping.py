"""When an extreme eigenvalue is known well enough. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a Krylov space has seen enough of a spectrum's ends.

    It ends when the largest Ritz value's residual and its last move are at most `residual` times its size, and the
    smallest one's at most `residual` times the larger of the two sizes (a nearly zero end is not worth hundreds of
    products); or when the space is exhausted; or after `maximum` products, and then nothing is certified.

    Attributes:
        residual: residual relative to the eigenvalue, ||M y - theta y|| <= residual |theta|.
        minimum: fewest products.
        maximum: most products.
        both_ends: whether the smallest eigenvalue has to be known too.
        fresh: fewest products from a fresh random vector, orthogonal to all that is known, before an end counts as
            the extreme one; 0 for none.
    """

    residual: float
    minimum: int
    maximum: int = 32
    both_ends: bool = True
    fresh: int = 0


SCREEN = StopRule(residual=0.2, minimum=2)
STANDARD = StopRule(residual=0.05, minimum=3)
CERTIFIED = StopRule(residual=0.02, minimum=4, maximum=64, fresh=4)

#: The accuracies that a profile can be asked for, in order of cost.
ACCURACIES: Mapping[str, StopRule] = {"screen": SCREEN, "standard": STANDARD, "certified": CERTIFIED}
