"""How many mantissa bits a map asks for: estimates from its first and second derivative.

An input x stored with p bits is off by at most h = ||x|| 2^-p, and the output by at most L h + kappa h^2 to second
order. Asking each term to stay below eps gives the two formulas here.

The source papers disagree with each other. One version (hnf_paper) claims p >= log2(c kappa D^2 / eps), another
(hnf_comprehensive) p >= max(log2(L / eps), 1/2 log2(kappa / eps)). The first rests on a bound that drops the middle
term of a triangle inequality and would give x^2 on [0, 1] an error of 1/8 in any precision. The second follows from
the expansion above with ||x|| = 1; here ||x|| is put back. Both are estimates: the arithmetic inside f rounds too,
so measure the error of a cast replay beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def first_order_bits(lipschitz: Tensor, size: Tensor, accuracy: Tensor) -> Tensor:
    """Bits for the linear term, log2(L ||x|| / eps).

    Args:
        lipschitz: L = ||Df||, output / input, [...].
        size: ||x||, [...].
        accuracy: eps, the wanted absolute error of the output, [...].

    Returns:
        Bits, [...]; 0 or below where any precision will do, -inf for a constant map.
    """
    return (lipschitz * size / accuracy).log2()


def second_order_bits(curvature: Tensor, size: Tensor, accuracy: Tensor) -> Tensor:
    """Bits for the quadratic term, 1/2 log2(kappa ||x||^2 / eps).

    Args:
        curvature: HNF kappa = 1/2 ||D2 f||, output / input^2, [...].
        size: ||x||, [...].
        accuracy: eps, the wanted absolute error of the output, [...].

    Returns:
        Bits, [...]; 0 or below where any precision will do, -inf for a linear map.
    """
    return (curvature * size.square() / accuracy).log2() / 2


def required_bits(lipschitz: Tensor, curvature: Tensor, size: Tensor, accuracy: Tensor) -> Tensor:
    """Mantissa bits that keep either term of the error within eps: the larger of the two.

    Each term is within eps then, so the error is within 2 eps.

    Args:
        lipschitz: L = ||Df||, output / input, [...].
        curvature: HNF kappa = 1/2 ||D2 f||, output / input^2, [...].
        size: ||x||, [...].
        accuracy: eps, the wanted absolute error of the output, [...].

    Returns:
        Bits, [...].
    """
    return torch.maximum(
        first_order_bits(lipschitz, size, accuracy), second_order_bits(curvature, size, accuracy)
    )
