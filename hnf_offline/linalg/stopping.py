"""When an extreme eigenvalue is known well enough. Torch-free.

How good they are is held, and printed, by tests/profile/test_accuracy.py and test_certification.py (slow): dense
float64 blocks of seven models and of every layer of a trained run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: Which ends of a spectrum are looked for: the algebraically largest, the one that is larger in size, or both.
Ends = Literal["largest", "dominant", "both"]


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a Krylov space has seen enough of a spectrum's ends.

    An end is settled when its Ritz value's residual and its last move are at most `residual` times its size (of a
    smaller end that is looked for too: times the size of the larger one; a nearly zero end is not worth hundreds of
    products). The space ends when all ends that are looked for are settled, and, of two vectors, certain; or when it
    is exhausted; or after `maximum` products.

    Attributes:
        residual: residual relative to the eigenvalue, ||M y - theta y|| <= residual |theta|.
        minimum: fewest products.
        maximum: most products.
        ends: which ends are looked for; the other one is told as far as it is known then.
        fresh: fewest products from a second vector, orthogonal to all that is known, before an end counts as the
            extreme one; 0 for none.
        independent: whether the second vector has to be random; else it may be what is known of the spectrum.
        doubt: share of its size by which a certain value may yet be elsewhere, as far as the space can tell.
        reach: residuals that another pair is taken to reach beyond its Ritz value when that is judged.
    """

    residual: float
    minimum: int
    maximum: int = 32
    ends: Ends = "both"
    fresh: int = 0
    independent: bool = True
    doubt: float = 0.01
    reach: float = 3.0


SCREEN = StopRule(residual=0.2, minimum=2, ends="dominant", doubt=0.001, reach=1.0)
STANDARD = StopRule(residual=0.05, minimum=3, ends="dominant", fresh=2, independent=False, doubt=0.003)
CERTIFIED = StopRule(residual=0.01, minimum=4, maximum=64, fresh=4, doubt=0.003)

#: The accuracies that a profile can be asked for, in order of cost.
ACCURACIES: Mapping[str, StopRule] = {"screen": SCREEN, "standard": STANDARD, "certified": CERTIFIED}
