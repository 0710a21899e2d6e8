"""Curvature of a map from input to output, and of compositions of maps.

Not the curvature of the loss in the parameters (`hessian`): the two share a word and nothing else.
"""

from __future__ import annotations

from torch import Tensor

from hnf_offline.linalg.condition import smallest_on_range


def hnf_curvature(second_derivative_norm: Tensor) -> Tensor:
    """HNF curvature kappa = 1/2 ||D2 f||, in units of output / input^2.

    How fast a linear prediction fails: ||f(a+h) - f(a) - Df h|| <= kappa ||h||^2 to second order (homotopy numerical
    foundations, definition of curvature: no factor ||Df^-1|| in it). A lower bound where the norm is one.

    Args:
        second_derivative_norm: ||D2 f||, [...].

    Returns:
        kappa, [...].
    """
    return second_derivative_norm / 2


def newton_curvature(second_derivative_norm: Tensor, singular_values: Tensor, nullity: int) -> Tensor:
    """Newton curvature 1/2 ||D2 f|| ||Df^+||^2 on the range of Df, in units of 1 / output.

    Its reciprocal is a distance in output space: a Newton step that inverts f is trusted for outputs nearer than it.
    ||Df^+|| = 1 / s_{k-q}, with the structural null directions left out, since f cannot move along them.

    Args:
        second_derivative_norm: ||D2 f||, [...].
        singular_values: of Df, descending, [..., k].
        nullity: q, how many directions are null by construction: LayerNorm 2, RMSNorm 1, softmax 1.

    Returns:
        [...]; inf where further directions are null.
    """
    return hnf_curvature(second_derivative_norm) / smallest_on_range(singular_values, nullity).square()


def composition_bound(
    outer_curvature: Tensor, outer_lipschitz: Tensor, inner_curvature: Tensor, inner_lipschitz: Tensor
) -> Tensor:
    """Bound on the curvature of a composition, kappa_{g.f} <= kappa_g L_f^2 + L_g kappa_f (chain rule).

    Holds for suprema over the domains f maps between, or at one point with both taken there. With *lower* bounds on
    the right it is no bound: use closed forms.

    Args:
        outer_curvature: kappa_g, [...].
        outer_lipschitz: L_g, [...].
        inner_curvature: kappa_f, [...].
        inner_lipschitz: L_f, [...].

    Returns:
        [...].
    """
    return outer_curvature * inner_lipschitz.square() + outer_lipschitz * inner_curvature
