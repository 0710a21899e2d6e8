"""When an extreme eigenvalue is known well enough. Torch-free.

Measured on dense float64 blocks of two small GPTs in training (112 layer and step pairs, starts from the Ritz vector
ten steps before and the whole model's, four noises each), the end looked for: `SCREEN` takes 3.5 products, 5.4 % of
values are more than 1 % off; `STANDARD` 4.4 products and .9 %. Of certified values (70 % and 85 % of all) .6 % and .5 %
are more than 1 % off, none more than 5 %. `CERTIFIED` (two noises) takes 12.6 products, and no certified value is more
than .1 % off. Stopping already where residual^2/gap is a quarter of a percent saves one product in 400, so no rule
does it.

Starts that hardly meet the top eigenvector (500 planted, weight 1e-3): 227 values of `STANDARD` are more than 5 % off
and 62 % of these are told as uncertain; of `CERTIFIED` none is more than 1 % off.
"""

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
