"""How weights move between checkpoints.

`change` is W(t) - W(s) of a layer, flattened, or of several layers of one size, [layers, size]; s is the checkpoint
before t; `earlier` is W(s), `change_before` the change
into s, `first` the weights of the run's first checkpoint, `moment` and `moment_before` the optimizer's first moments
at t and s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.linalg.vectors import Vectors, cosine, entries, length
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_CATALOGUE = "training-stability catalogue (source document), weight change analysis"
_LAYERS = "every layer; not at the first checkpoint"


@quantity(
    "weight.update_norm",
    unit="parameter",
    formula="||W(t) - W(s)||_2, s the checkpoint before t",
    reference=f"definition; {_CATALOGUE}",
    tier="weights",
    layers=_LAYERS,
    reading="Compare intervals of the same number of steps; the column `batch` names s.",
    cannot="The way between two checkpoints is longer than their distance where updates turn back.",
)
def update_norm(change: Tensor | Vectors) -> Tensor:
    """Distance moved since the checkpoint before.

    Returns:
        A scalar a layer.
    """
    return length(change)


@quantity(
    "weight.update_ratio",
    unit="1",
    formula="||W(t) - W(s)|| / ||W(s)||, s the checkpoint before t",
    reference=f"definition; {_CATALOGUE} (relative change)",
    tier="weights",
    layers=_LAYERS,
    reading="A layer that moves much further than the others for its size has too large a step, or just recovered.",
    cannot="Norm gains and biases near 0 have a large ratio by themselves.",
)
def update_ratio(change: Tensor | Vectors, earlier: Tensor | Vectors) -> Tensor:
    """Distance moved since the checkpoint before, relative to the weights there.

    Returns:
        A scalar a layer.
    """
    return length(change) / length(earlier)


@quantity(
    "weight.update_cosine",
    unit="1",
    formula="<d, d'> / (||d|| ||d'||), d = W(t) - W(s), d' = W(s) - W(r) over three checkpoints in a row r < s < t",
    reference=f"definition; {_CATALOGUE} (update direction consistency)",
    tier="weights",
    layers="every layer; from the third checkpoint on",
    reading="Near 1: steady drift; near 0: a random walk; negative: what was moved is taken back, as in "
    "oscillation.",
    cannot="Oscillations faster than the checkpoints average out.",
)
def update_cosine(change: Tensor | Vectors, change_before: Tensor | Vectors) -> Tensor:
    """Cosine between two successive changes.

    Returns:
        A scalar a layer, NaN where a layer did not move.
    """
    return cosine(change, change_before)


@quantity(
    "weight.distance_from_first",
    unit="1",
    formula="||W(t) - W(0)|| / ||W(0)||, 0 the run's first checkpoint",
    reference="definition",
    tier="weights",
    layers=_LAYERS,
    reading="Grows like a root of the steps in a random walk, linearly in a drift; a jump is an event.",
    cannot="The first checkpoint is the initialisation only if that was saved.",
)
def distance_from_first(weight: Tensor | Vectors, first: Tensor | Vectors) -> Tensor:
    """Distance from the first checkpoint, relative to the weights there.

    Returns:
        A scalar a layer.
    """
    return length(entries(weight) - entries(first)) / length(first)


@quantity(
    "gradient.moment_cosine",
    unit="1",
    formula="<m(t), m(s)> / (||m(t)|| ||m(s)||), m the saved first moment (momentum buffer), s the checkpoint "
    "before t",
    reference="training-stability catalogue (source document), cosine similarity between steps, on averages "
    "of the last "
    "1 / (1 - beta1) gradients instead of single ones",
    tier="weights",
    layers="every layer with a first moment; not at the first checkpoint",
    reading="Near 0 is usual for checkpoints far apart; lasting -1 between close ones is oscillation.",
    cannot="The moments hold training batches, other ones at each checkpoint: their noise draws the cosine to 0.",
)
def moment_cosine(moment: Tensor | Vectors, moment_before: Tensor | Vectors) -> Tensor:
    """Cosine between the smoothed gradients of two checkpoints.

    Returns:
        A scalar a layer, NaN where a moment is 0.
    """
    return cosine(moment, moment_before)
