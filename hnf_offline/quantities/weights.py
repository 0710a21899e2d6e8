"""The weights themselves, one checkpoint at a time.

`weight` is one layer's parameters, flattened, or those of several layers of one size, [layers, size]; `centred_weight`
the same less their mean, `sorted_weight` in ascending order; `neighbour` those of the layer of the same kind and shape
in the block before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.linalg.vectors import Vectors, entries, length, mean
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_CATALOGUE = "training-stability catalogue (source document)"
_LAYERS = "every layer"


@quantity(
    "weight.nonfinite",
    unit="share",
    formula="share of the layer's parameters that are NaN or infinite",
    reference="definition",
    tier="forward",
    layers="every layer and the whole model",
    reading="Anything above 0 is a dead checkpoint; the first layer affected is where to look.",
    cannot="Cannot say which update wrote them when checkpoints are sparse.",
)
def nonfinite_share(weight: Tensor) -> Tensor:
    """Share of non-finite parameters.

    Returns:
        A scalar a layer.
    """
    return (~weight.isfinite()).float().mean(dim=-1)


@quantity(
    "weight.mean",
    unit="parameter",
    formula="mean_i w_i",
    reference=f"definition; {_CATALOGUE}, weight distribution monitoring",
    tier="weights",
    layers=_LAYERS,
    reading="Near 0 for matrices; a drift of a norm's gain away from 1, or of a bias, is seen here first.",
    cannot="A matrix can grow or collapse in a few directions while its mean stays 0.",
)
def weight_mean(weight: Tensor | Vectors) -> Tensor:
    """Mean of the parameters.

    Returns:
        A scalar a layer.
    """
    return mean(weight)


@quantity(
    "weight.deviation",
    unit="parameter",
    formula="sqrt(mean_i (w_i - mean w)^2)",
    reference=f"definition; {_CATALOGUE}, weight distribution monitoring",
    tier="weights",
    layers=_LAYERS,
    reading="Compare with the initial one (sqrt(2 / fan_in) of He, sqrt(2 / (fan_in + fan_out)) of Glorot) "
    "and its past.",
    cannot="Says nothing of directions: see the singular values.",
)
def weight_deviation(centred_weight: Tensor | Vectors) -> Tensor:
    """Standard deviation of the parameters.

    Returns:
        A scalar a layer.
    """
    deviation: Tensor = length(centred_weight) / entries(centred_weight).shape[-1] ** 0.5
    return deviation


@quantity(
    "weight.excess_kurtosis",
    unit="1",
    formula="mean (w - m)^4 / (mean (w - m)^2)^2 - 3, m = mean w",
    reference=f"definition; {_CATALOGUE}, distribution shape",
    tier="weights",
    layers=_LAYERS,
    reading="0 for a normal distribution; a rise means that few parameters grow while most do not.",
    cannot="A single parameter can make all of it.",
)
def weight_excess_kurtosis(centred_weight: Tensor | Vectors, sorted_weight: Tensor) -> Tensor:
    """Excess kurtosis of the parameters.

    Returns:
        A scalar a layer, NaN where all parameters are equal.
    """
    centred = centred_weight if isinstance(centred_weight, Vectors) else Vectors(centred_weight)
    size = centred.values.shape[-1]
    width = sorted_weight[..., -1] - sorted_weight[..., 0]
    if centred.narrow:
        second, fourth = centred.lengths.square() / size, length(centred.values.square()).square() / size
    else:
        # In units of the range, as a fourth power leaves that of a float32 at 1e10 and at 1e-10.
        squares = (centred.values / width.unsqueeze(-1)).square_()
        second, fourth = (centred.lengths / width).square() / size, length(squares).square() / size
    # Where there is no range; the mean of equal numbers need not be one of them.
    return (fourth / second.square() - 3).masked_fill(width == 0, float("nan"))


def _quantile(sorted_weight: Tensor, share: float) -> Tensor:
    """The smallest value that at least this share of the values does not exceed."""
    rank = max(1, -(-round(share * 1000) * sorted_weight.shape[-1] // 1000))
    return sorted_weight[..., rank - 1]


@quantity(
    "weight.quantile_01",
    unit="parameter",
    formula="the smallest w_i that at least 1 % of the layer's parameters do not exceed",
    reference=f"definition; {_CATALOGUE}, histogram evolution, of which the five quantiles are the sketch",
    tier="weights",
    layers=_LAYERS,
    reading="With the other four quantiles: the shape of the histogram; a tail that moves alone is worth a look.",
    cannot="Does not see the outermost hundredth: see weight.largest.",
)
def weight_quantile_01(sorted_weight: Tensor) -> Tensor:
    """First percentile of the parameters.

    Returns:
        A scalar a layer.
    """
    return _quantile(sorted_weight, 0.01)


@quantity(
    "weight.quantile_25",
    unit="parameter",
    formula="the smallest w_i that at least 25 % of the layer's parameters do not exceed",
    reference=f"definition; {_CATALOGUE}, histogram evolution",
    tier="weights",
    layers=_LAYERS,
    reading="With quantile_75: the width of the bulk, whatever the tails do.",
    cannot="Blind to the tails.",
)
def weight_quantile_25(sorted_weight: Tensor) -> Tensor:
    """Lower quartile of the parameters.

    Returns:
        A scalar a layer.
    """
    return _quantile(sorted_weight, 0.25)


@quantity(
    "weight.quantile_50",
    unit="parameter",
    formula="the smallest w_i that at least 50 % of the layer's parameters do not exceed",
    reference=f"definition; {_CATALOGUE}, histogram evolution",
    tier="weights",
    layers=_LAYERS,
    reading="Against the mean it shows skewness.",
    cannot="Blind to the tails.",
)
def weight_quantile_50(sorted_weight: Tensor) -> Tensor:
    """Median of the parameters.

    Returns:
        A scalar a layer.
    """
    return _quantile(sorted_weight, 0.5)


@quantity(
    "weight.quantile_75",
    unit="parameter",
    formula="the smallest w_i that at least 75 % of the layer's parameters do not exceed",
    reference=f"definition; {_CATALOGUE}, histogram evolution",
    tier="weights",
    layers=_LAYERS,
    reading="With quantile_25: the width of the bulk, whatever the tails do.",
    cannot="Blind to the tails.",
)
def weight_quantile_75(sorted_weight: Tensor) -> Tensor:
    """Upper quartile of the parameters.

    Returns:
        A scalar a layer.
    """
    return _quantile(sorted_weight, 0.75)


@quantity(
    "weight.quantile_99",
    unit="parameter",
    formula="the smallest w_i that at least 99 % of the layer's parameters do not exceed",
    reference=f"definition; {_CATALOGUE}, histogram evolution",
    tier="weights",
    layers=_LAYERS,
    reading="With the other four quantiles: the shape of the histogram.",
    cannot="Does not see the outermost hundredth: see weight.largest.",
)
def weight_quantile_99(sorted_weight: Tensor) -> Tensor:
    """Last percentile of the parameters.

    Returns:
        A scalar a layer.
    """
    return _quantile(sorted_weight, 0.99)


@quantity(
    "weight.largest",
    unit="parameter",
    formula="max_i |w_i|",
    reference=f"definition; {_CATALOGUE}, weight distribution monitoring",
    tier="weights",
    layers=_LAYERS,
    reading="An outlier here costs digits when the layer is quantised or cast.",
    cannot="One parameter decides it.",
)
def weight_largest(sorted_weight: Tensor) -> Tensor:
    """Largest magnitude of a parameter.

    Returns:
        A scalar a layer.
    """
    return sorted_weight[..., -1].maximum(-sorted_weight[..., 0])


@quantity(
    "weight.distance_to_neighbour",
    unit="1",
    formula="||W_l - W_k|| / sqrt(||W_l||^2 + ||W_k||^2), k the layer of the same kind and shape one block earlier",
    reference="definition",
    tier="weights",
    layers="layers that have one of their kind and shape in the block before",
    reading="About 1 for unrelated layers, 0 for equal ones; a fall says that two blocks come to do the same.",
    cannot="Two layers can do the same under another order of their units and be far apart here.",
)
def distance_to_neighbour(weight: Tensor | Vectors, neighbour: Tensor | Vectors) -> Tensor:
    """Distance between two layers' parameters, relative to what unrelated ones would have.

    Returns:
        A scalar a layer between 0 and sqrt(2).
    """
    return length(entries(weight) - entries(neighbour)) / length(weight).hypot(length(neighbour))
