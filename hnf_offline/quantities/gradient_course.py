"""Gradients over the checkpoints of a run: how well they predict the loss, and how many directions they have.

Every value at a checkpoint is of a trailing window that ends there, so that nothing looks ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CATALOGUE = "training-stability catalogue (source document)"
#: Checkpoints of a window of predictions, and fewest of them.
PREDICTED, FEWEST_PREDICTED = 16, 8
#: Checkpoints of a window of gradients; all of a shorter run, and fewest of them.
COMPARED, FEWEST_COMPARED = 8, 4
_PREDICTED = f"the whole model; {FEWEST_PREDICTED} checkpoints or more whose next update is known"
_COMPARED = f"the whole model; {FEWEST_COMPARED} checkpoints or more; tier full, or --landscape"
_WINDOW = (
    f"of the last {PREDICTED} checkpoints (at least {FEWEST_PREDICTED}), those that are not finite left out; "
    "the band is of checkpoints drawn anew (bootstrap, 95 %)"
)
_GRAM = (
    f"G_ij = <g_i, g_j> / (||g_i|| ||g_j||) over the last {COMPARED} checkpoints with a finite gradient (all of "
    "a shorter run), not centred; exact up to 8192 parameters, beyond from a sparse random projection to 8192 numbers"
)
_NOT_SPAN = (
    "Directions over checkpoints, not over batches or steps: closely spaced ones are alike by themselves. The "
    "replayed rows are the same at all, so noise between batches is not in it. Error of a projected cosine: 1.6 %."
)


@quantity(
    "gradient.predictiveness",
    unit="1",
    formula=f"R^2 = 1 - sum (m - p)^2 / sum (m - mean m)^2, p = -g'u, m = L(w - u) - L(w), u the next update; "
    f"{_WINDOW}",
    reference=f"{_CATALOGUE}, gradient predictiveness; there the variance of m - p, which forgives a constant error",
    tier="stability",
    layers=_PREDICTED,
    reading="Near 1: updates are short enough for the slope to say what they do. Falling, or below 0 (worse "
    "than the mean): curvature decides, as at the edge of stability.",
    cannot="Of the replayed rows, whose loss the update was made for: what training saw (update.logged_change) "
    "is mostly other batches' difference. One spike within the window decides it; neighbouring checkpoints are "
    "not independent, so the band is too narrow.",
)
def predictiveness(first_order_changes: Floats, measured_changes: Floats) -> float:
    """Share of the variation of one-step loss changes that slopes predict.

    Returns:
        R^2, at most 1; NaN where the changes do not vary.
    """
    return r_squared(first_order_changes, measured_changes)


@quantity(
    "gradient.predictiveness_curved",
    unit="1",
    formula=f"R^2 = 1 - sum (m - q)^2 / sum (m - mean m)^2, q = -g'u + u'Hu / 2, m = L(w - u) - L(w); {_WINDOW}",
    reference=f"{_CATALOGUE}, gradient predictiveness, with the second term of Taylor's series",
    tier="stability",
    layers=_PREDICTED,
    reading="Near 1 where gradient.predictiveness is not: a parabola says what updates do. Low too: the loss is "
    "no parabola over one update.",
    cannot="As gradient.predictiveness.",
)
def predictiveness_curved(second_order_changes: Floats, measured_changes: Floats) -> float:
    """Share of the variation of one-step loss changes that slopes and curvature predict.

    Returns:
        R^2, at most 1; NaN where the changes do not vary.
    """
    return r_squared(second_order_changes, measured_changes)


def r_squared(predicted: Floats, measured: Floats) -> float:
    """Coefficient of determination of a prediction that is not fitted.

    Returns:
        At most 1; NaN where nothing varies.
    """
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - predicted) ** 2).sum()) / spread if spread > 0 else float("nan")


@quantity(
    "gradient.effective_dimension",
    unit="directions",
    formula=f"(sum_k l_k)^2 / sum_k l_k^2, l the eigenvalues of {_GRAM}",
    reference=f"{_CATALOGUE}, effective dimensionality of the gradients of all steps; participation ratio: Gao "
    "et al. 2017 (bioRxiv 214262). Projection: Kane & Nelson 2014 (arXiv 1012.1577)",
    tier="full",
    layers=_COMPARED,
    reading="1: the gradient keeps its line (either way along it); the size of the window: every checkpoint "
    "pulls elsewhere. Unit gradients, so that one spike's length does not decide alone.",
    cannot=_NOT_SPAN,
)
def effective_dimension(gradient_gram: Floats) -> float:
    """Participation ratio of the gradients' directions.

    Args:
        gradient_gram: cosines between gradients, [n, n].

    Returns:
        Between 1 and n.
    """
    return float(gradient_gram.trace() ** 2 / (gradient_gram**2).sum())


@quantity(
    "gradient.first_component_share",
    unit="share",
    formula="l_1 / sum_k l_k, l_1 the largest eigenvalue of the matrix of gradient.effective_dimension",
    reference=f"{_CATALOGUE}, principal components of gradients",
    tier="full",
    layers=_COMPARED,
    reading="How much of the window's unit gradients lies along one line.",
    cannot=_NOT_SPAN,
)
def first_component_share(gradient_gram: Floats) -> float:
    """Explained share of the first principal component of the gradients.

    Args:
        gradient_gram: cosines between gradients, [n, n].

    Returns:
        Between 1 / n and 1.
    """
    return leading_share(gradient_gram, 1)


@quantity(
    "gradient.three_component_share",
    unit="share",
    formula="(l_1 + l_2 + l_3) / sum_k l_k, eigenvalues of the matrix of gradient.effective_dimension",
    reference=f"{_CATALOGUE}, principal components of gradients; Gur-Ari et al. 2018 (arXiv 1812.04754): "
    "gradients stay in a small subspace",
    tier="full",
    layers=_COMPARED,
    reading="How much lies in three directions; three of eight unrelated gradients would have 3/8.",
    cannot=_NOT_SPAN,
)
def three_component_share(gradient_gram: Floats) -> float:
    """Explained share of the first three principal components of the gradients.

    Args:
        gradient_gram: cosines between gradients, [n, n].

    Returns:
        Between 3 / n and 1.
    """
    return leading_share(gradient_gram, 3)


def leading_share(gram: Floats, count: int) -> float:
    """Share of the trace that the largest eigenvalues hold.

    Returns:
        Between count / n and 1.
    """
    import numpy as np

    return min(1.0, float(np.linalg.eigvalsh(gram)[-count:].sum() / gram.trace()))
