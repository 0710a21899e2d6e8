"""The way of a run through weight space: which order of its checkpoints is the shortest, and who is off it.

A run moves on: exchanging two of its checkpoints makes the way longer, whatever its speed, its learning rate or its
spikes (tests/check/test_trajectory.py exchanges those of the sample runs). What comes back bit by bit, such as weights
that only jitter about one point, has no order to be found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

#: An exchange of two checkpoints that shortens the legs it touches to this share is an order gone wrong.
SHORTER = 0.95
#: Two ways instead of one, together shorter than this share of the one: two runs.
TWO_WAYS = 0.6
#: Two legs over the way between their ends: 1 straight on, 1.4 at random, 2 where weights only jitter about a point.
OFF = 2.5
#: Where half of the detours are longer, no order can be seen.
_MOVING = 1.7
#: A wrong order turns back (cosine of two legs), and much more than the way turns elsewhere (in robust deviations).
_TURNS_BACK, _DEVIATIONS, _LEAST_DEVIATION = -0.3, 4.0, 0.1
#: At the ends nothing turns back: there an exchange has to shorten this much, on a way that turns little; or so much
#: that no way that wanders does it.
_MUCH_SHORTER, _STEADY, _FAR_SHORTER = 0.6, 0.25, 0.2
#: A point that is off has longer legs than those around it.
_LONG = 1.5
_MOST_EXCHANGES = 8


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two places whose checkpoints lie better the other way round; `share` is what is left of the legs."""

    first: int
    second: int
    share: float


def distances(points: Matrix) -> Matrix:
    """Measure how far apart all points are.

    Returns:
        [n, n], symmetric.
    """
    import numpy as np

    # Differences from the mean: distances are small beside the norms.
    centred = points - points.mean(axis=0)
    products = centred @ centred.T
    squares = np.diag(products)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0.0)))


def legs(apart: Matrix) -> Matrix:
    """Take the distances between neighbours.

    Returns:
        [n - 1].
    """
    import numpy as np

    return np.asarray(np.diagonal(apart, 1))


def exchanges(apart: Matrix) -> list[Exchange]:
    """Exchange two points again and again while that shortens the way; keep what leads to a way that moves on.

    Args:
        apart: distances of the points in the order that is in question.

    Returns:
        The exchanges in the order in which they were made, the one that saves most of the way first.
    """
    import numpy as np

    made: list[Exchange] = []
    order = np.arange(len(apart))
    while len(made) < _MOST_EXCHANGES:
        best = _best_exchange(apart[np.ix_(order, order)])
        if best is None:
            break
        made.append(best)
        order[[best.first, best.second]] = order[[best.second, best.first]]
    if not made:
        return []
    mended = turns(apart[np.ix_(order, order)])
    usual = float(np.median(mended))
    spread = max(_LEAST_DEVIATION, 1.4826 * float(np.median(np.abs(mended - usual))))
    if usual <= _TURNS_BACK:
        return []
    now = turns(apart)
    told = []
    for one in made:
        around = {k + near for k in (one.first, one.second) for near in (-1, 0, 1)}
        back = min(now[k - 1] for k in around if 0 < k < len(apart) - 1) <= min(
            _TURNS_BACK, usual - _DEVIATIONS * spread
        )
        at_an_end = one.share <= (_MUCH_SHORTER if spread <= _STEADY else _FAR_SHORTER)
        if back or at_an_end:
            told.append(one)
    return told


def _best_exchange(apart: Matrix) -> Exchange | None:
    import numpy as np

    n = len(apart)
    if n < 3:
        return None  # the other way round is as short
    # Beyond both ends lie points at distance 0 of everything, so that ends need no care.
    wide = np.zeros((n + 2, n + 2))
    wide[1:-1, 1:-1] = apart
    places = np.arange(1, n + 1)
    touched = wide[places - 1, places] + wide[places, places + 1]
    best: Exchange | None = None
    most = 0.0
    for first in range(1, n):
        second = np.arange(first + 1, n + 1)
        now = touched[first - 1] + touched[second - 1]
        then = (
            wide[first - 1, second]
            + wide[second, first + 1]
            + wide[second - 1, first]
            + wide[first, second + 1]
        )
        # Neighbours keep the leg between them, which counts once.
        now[0] -= wide[first, first + 1]
        then[0] = wide[first - 1, first + 1] + wide[first, first + 1] + wide[first, first + 2]
        saved = np.where(then < SHORTER * now, now - then, 0.0)
        place = int(np.argmax(saved))
        if saved[place] > most:
            most = float(saved[place])
            best = Exchange(first - 1, int(second[place]) - 1, float(then[place] / now[place]))
    return best


def two_ways(apart: Matrix) -> list[int] | None:
    """Part the points into two ways, each in order, that are shortest together.

    Returns:
        0 or 1 for each point, where the two are much shorter than the one and are not one after the other;
        None otherwise.
    """
    import numpy as np

    n = len(apart)
    whole = float(legs(apart).sum())
    if n < 4 or whole == 0:
        return None
    # cost[j]: one way ends at the present point, the other at point j - 1 (0: it has not begun).
    cost = np.zeros(1)
    came: list[int] = []
    for point in range(1, n):
        stay = cost + apart[point - 1, point]
        change = cost + np.concatenate([[0.0], apart[: point - 1, point]])
        best = int(np.argmin(change))
        came.append(best)
        cost = np.concatenate([stay, [change[best]]])
    if float(cost.min()) > TWO_WAYS * whole:
        return None
    labels = [0] * n
    other = int(np.argmin(cost))
    label = 0
    for point in range(n - 1, 0, -1):
        labels[point] = label
        if other == point:
            # The way of this point went on from where the other one had ended.
            other = came[point - 1]
            label = 1 - label
    labels[0] = label
    changes = sum(labels[k] != labels[k + 1] for k in range(n - 1))
    return labels if changes >= 2 else None


def off_places(apart: Matrix, least: float = OFF) -> dict[int, float]:
    """Find the points that the way goes to and comes back from.

    Args:
        apart: distances of the points in order.
        least: the detour from which on a point is off.

    Returns:
        Place -> detour of the points whose two legs are longer than those around them besides.
    """
    import numpy as np

    leg = legs(apart)
    found: dict[int, float] = {}
    if len(leg) > 3 and float(np.median(detours(apart))) > _MOVING:
        return found
    for place, detour in enumerate(detours(apart), start=1):
        around = np.concatenate([leg[max(0, place - 5) : place - 1], leg[place + 1 : place + 5]])
        usual = float(np.median(around)) if len(around) else 0.0
        if detour >= least and min(leg[place - 1], leg[place]) >= _LONG * usual:
            found[place] = float(detour)
    return found


def turns(apart: Matrix) -> Matrix:
    """Measure how much the way turns at each point: the cosine of the legs before and after it.

    Returns:
        [n - 2]: 1 straight on, 0 at random, -0.5 where weights only jitter about a point, -1 straight back.
    """
    import numpy as np

    between = np.asarray(np.diagonal(apart, 2))
    leg = legs(apart)
    product = np.maximum(2 * leg[:-1] * leg[1:], 1e-300)
    return np.asarray((between**2 - leg[:-1] ** 2 - leg[1:] ** 2) / product)


def detours(apart: Matrix) -> Matrix:
    """Measure how far each point is off the way between its neighbours.

    Returns:
        [n - 2]: the two legs over the distance of the neighbours.
    """
    import numpy as np

    between = np.asarray(np.diagonal(apart, 2))
    leg = legs(apart)
    return np.asarray((leg[:-1] + leg[1:]) / np.maximum(between, 1e-300))
