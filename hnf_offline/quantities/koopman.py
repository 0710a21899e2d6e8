"""Dynamic modes of the maps between residual streams. `transition` is a `Transition`, `moduli` are its |lambda_j|.

What Kim et al. 2026 (arXiv 2602.22988) call Koopman spectral features: the stream of tokens before a block and after
it are paired samples of one map, of which a linear one is fitted in whitened coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_SOURCE = "Kim et al. 2026 (arXiv 2602.22988), residual Koopman spectral profiling"
_LAYERS = "every block, and the whole model as their mean; tier full, or --koopman"
_WORST = "every block, and the whole model as its largest; tier full, or --koopman"
_LEVELS = (
    "Levels are not comparable between architectures (healthy pretrained models have .6 to .75), and it knows no "
    "learning rate."
)
#: Bands of |lambda|: near the unit circle from 1 - .10 to 1 + .05, growing beyond, damped below 1 - .20.
NEAR, BEYOND, DAMPED = 0.9, 1.05, 0.8
#: Relative residual up to which a mode is one of the map and not of the fit (ResDMD filter).
RESOLVED = 0.1


@dataclass(frozen=True, slots=True)
class Transition:
    """The fitted linear map A of one block, in whitened coordinates of what goes in.

    Attributes:
        operator: A, [modes, modes].
        values: its eigenvalues, [modes], complex.
        vectors: right eigenvectors of unit length, [modes, modes], complex, in columns.
        before: the tokens' whitened stream before the block, [tokens, modes].
        after: the same tokens after the block, in the same coordinates.
    """

    operator: Tensor
    values: Tensor
    vectors: Tensor
    before: Tensor
    after: Tensor


@quantity(
    "koopman.near_unit_mass",
    unit="1",
    formula=f"share of modes with {NEAR} <= |lambda_j| <= {BEYOND}, lambda_j the eigenvalues of the least-squares A of "
    "Y = A X between whitened streams; all modes where 10 a width of tokens are replayed, else the leading 32 at most",
    reference=f"{_SOURCE}, M_~1. Whitening is a similarity: it changes no eigenvalue. The published AUROC of .995 is "
    "that of the label 'no normalization' (.989 alone)",
    tier="full",
    layers=_LAYERS,
    reading="Watch its change within a run: streams that pass on unchanged have 1, and so has a map that rotates.",
    cannot=_LEVELS,
)
def near_unit_mass(moduli: Tensor) -> Tensor:
    """Share of dynamic modes near the unit circle.

    Returns:
        A scalar.
    """
    return ((moduli >= NEAR) & (moduli <= BEYOND)).double().mean(dim=-1)


@quantity(
    "koopman.growing_mass",
    unit="1",
    formula=f"share of modes with |lambda_j| > {BEYOND}",
    reference=f"{_SOURCE}, M_>1",
    tier="full",
    layers=_LAYERS,
    reading="What a block amplifies; in pre-norm models it falls with depth by itself.",
    cannot=_LEVELS,
)
def growing_mass(moduli: Tensor) -> Tensor:
    """Share of dynamic modes that grow.

    Returns:
        A scalar.
    """
    return (moduli > BEYOND).double().mean(dim=-1)


@quantity(
    "koopman.damped_mass",
    unit="1",
    formula=f"share of modes with |lambda_j| < {DAMPED}",
    reference=f"{_SOURCE}, M_<1",
    tier="full",
    layers=_LAYERS,
    reading="What a block forgets.",
    cannot=_LEVELS,
)
def damped_mass(moduli: Tensor) -> Tensor:
    """Share of dynamic modes that are damped.

    Returns:
        A scalar.
    """
    return (moduli < DAMPED).double().mean(dim=-1)


@quantity(
    "koopman.middle_mass",
    unit="1",
    formula=f"share of modes with {DAMPED} <= |lambda_j| < {NEAR}",
    reference=f"{_SOURCE}, M_mid",
    tier="full",
    layers=_LAYERS,
    reading="What is left beside the other three masses.",
    cannot=_LEVELS,
)
def middle_mass(moduli: Tensor) -> Tensor:
    """Share of dynamic modes between damped and near the unit circle.

    Returns:
        A scalar.
    """
    return ((moduli >= DAMPED) & (moduli < NEAR)).double().mean(dim=-1)


@quantity(
    "koopman.spectral_radius",
    unit="1",
    formula="max_j |lambda_j|",
    reference=f"{_SOURCE}, rho",
    tier="full",
    layers=_WORST,
    over_batches="max",
    reading="The largest factor that the stream has in one direction; its power with depth bounds what is passed on.",
    cannot="Of a map that is not normal, single powers can grow far beyond it: see koopman.kreiss.",
)
def spectral_radius(moduli: Tensor) -> Tensor:
    """Spectral radius of the fitted map.

    Returns:
        A scalar.
    """
    return moduli.amax(dim=-1)


@quantity(
    "koopman.eigenvector_condition",
    unit="1",
    formula="||V||_2 ||V^-1||_2, V the right eigenvectors of unit length",
    reference=f"{_SOURCE}, kappa(V)",
    tier="full",
    layers=_WORST,
    over_batches="max",
    reading="1 for a normal map; how far eigenvalues can mislead about what is amplified.",
    cannot="Large near any two equal eigenvalues, harmless ones included.",
)
def eigenvector_condition(transition: Transition) -> Tensor:
    """Condition number of the eigenvectors: how far the fitted map is from normal.

    Returns:
        A scalar; infinite for a map without a basis of eigenvectors.
    """
    import torch

    sizes: Tensor = torch.linalg.svdvals(transition.vectors)
    return sizes[0] / sizes[-1]


@quantity(
    "koopman.kreiss",
    unit="1",
    formula="sup over |z| > 1 of (|z| - 1) ||(z I - A)^-1||_2, on a refined grid: a lower bound",
    reference=f"{_SOURCE}, K(A); Trefethen & Embree 2005, section 18",
    tier="full",
    layers=f"{_WORST}; only where koopman.spectral_radius is at most 1 (it is infinite beyond)",
    over_batches="max",
    reading="1: no power of the map grows; K: some power grows by at least K before it decays.",
    cannot="Speaks of the same map applied again and again, and no two blocks are the same.",
)
def kreiss(transition: Transition) -> float:
    """Kreiss constant: transient growth of the powers of the fitted map.

    Returns:
        At least 1; infinite where the spectral radius is above 1.
    """
    from hnf_offline.linalg.dynamic_modes import kreiss_constant

    return kreiss_constant(transition.operator)


@quantity(
    "koopman.nonlinearity",
    unit="1",
    formula="||Y - A X||_F / ||Y - X||_F in whitened coordinates",
    reference=f"{_SOURCE}, eta_nl",
    tier="full",
    layers=_LAYERS,
    reading="What the block does that no linear map of the same token explains; above .5 the masses say little.",
    cannot="Large too where the block does almost nothing; attention counts as unexplained, as it uses other tokens.",
)
def nonlinearity(transition: Transition) -> Tensor:
    """What the fitted map leaves unexplained, relative to what the block changes.

    Returns:
        A scalar; 0 for a block that changes nothing.
    """
    unexplained: Tensor = transition.after - transition.before @ transition.operator.mT
    changed: Tensor = (transition.after - transition.before).norm()
    share: Tensor = unexplained.norm() / changed.clamp_min(1e-12 * float(transition.before.norm()))
    return share


@quantity(
    "koopman.resolved_share",
    unit="1",
    formula=f"share of modes with ||u_j* (Y - lambda_j X)|| <= {RESOLVED} ||u_j* X||, u_j the left eigenvectors",
    reference=f"{_SOURCE}, residual filter (tau = {RESOLVED}); Colbrook, Ayton & Szoke 2023 (arXiv 2205.09779)",
    tier="full",
    layers=_LAYERS,
    reading="Modes that are the map's and not the fit's; the masses are of all modes, this says how many to trust.",
    cannot="In-sample: needs at least ten tokens a mode, which is what is taken.",
)
def resolved_share(transition: Transition) -> Tensor:
    """Share of dynamic modes whose residual is small.

    Returns:
        A scalar; 0 for a map without a basis of eigenvectors.
    """
    import torch

    left, failed = torch.linalg.inv_ex(transition.vectors)
    if int(failed):
        return transition.before.new_zeros(())
    before, after = (left @ stream.mT.to(left.dtype) for stream in (transition.before, transition.after))
    missed = torch.linalg.vector_norm(after - transition.values[:, None] * before, dim=1)
    resolved: Tensor = missed <= RESOLVED * torch.linalg.vector_norm(before, dim=1)
    return resolved.double().mean()


@quantity(
    "koopman.modes",
    unit="modes",
    formula="number of eigenvalues: the width where 10 a width of tokens are replayed, else min(32, tokens / 10); "
    "fewer where the stream does not spread over as many directions",
    reference=_SOURCE,
    tier="full",
    layers=_LAYERS,
    reading="The masses' resolution is one over it.",
    cannot="Says nothing by itself.",
)
def modes(moduli: Tensor) -> float:
    """Dynamic modes that the masses are shares of.

    Returns:
        How many.
    """
    return float(moduli.shape[-1])
