"""What a checkpoint costs: forward passes by counting products, seconds from a probe of one layer.

The same units as `effort` counts while a profile runs, so that the two can be held against each other. How many
products a spectrum takes is not known beforehand: the table below holds what profiles took on average.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.hessian import block_products
from hnf_offline.linalg.stopping import ACCURACIES, CERTIFIED, SCREEN
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.densities import PROBES, STEPS
from hnf_offline.profile.directions import DIRECTION_PRODUCTS, UPDATE_FORWARDS
from hnf_offline.profile.effort import FORWARDS
from hnf_offline.profile.gradients import FEWEST_ROWS, GROUPED_SHARE
from hnf_offline.profile.layer_curvature import LayerProblem, LayerProducts, exact_graph, share_behind
from hnf_offline.profile.maps.measure import few
from hnf_offline.profile.session import Session
from hnf_offline.profile.settings import TIERS, ProfileSettings
from hnf_offline.profile.suffix.blocks import CallOrder, call_order
from hnf_offline.profile.suffix.calibration import all_exact
from hnf_offline.profile.surroundings import LANDSCAPE_FORWARDS
from hnf_offline.profile.whole import allows_differences
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate


@dataclass(frozen=True, slots=True)
class Products:
    """Products that spectra take on average.

    Attributes:
        whole: of H, the whole model.
        whole_scaled: of A^1/2 H A^1/2, the whole model.
        spread: the same on each training batch alone, for the range of S: its largest end, with one start vector.
        layer: of a layer's block of H.
        layer_scaled: of a layer's block of A^1/2 H A^1/2.
    """

    whole: float
    whole_scaled: float
    spread: float
    layer: float
    layer_scaled: float


#: As `python -m benchmarks.plan` prints them (three models, accuracy by accuracy); update them with the stop rules.
PRODUCTS: Mapping[str, Products] = {
    "screen": Products(4, 10, 4, 2.8, 3),
    "standard": Products(12, 12, 9, 9, 10),
    "certified": Products(50, 22, 16, 33, 19),
}
#: Exact products of the whole model for one spectral density.
DENSITY_PRODUCTS, WHOLE_FORWARDS = PROBES * STEPS, FORWARDS["whole product"]
#: Replays of the tier full in three precisions.
PRECISION_FORWARDS = 3.0
#: Rows that are watched to find the order of calls.
_WATCHED = 2


def _chosen(session: Session, settings: ProfileSettings) -> list[Layer]:
    return [
        layer
        for layer in session.layers
        if settings.layers is None or fnmatchcase(layer.path, settings.layers)
    ]


def measured_layers(session: Session, settings: ProfileSettings) -> int:
    """Count the layers that get their own curvature.

    Returns:
        The number of layers that `--layers` selects.
    """
    return len(_chosen(session, settings))


def forward_passes(session: Session, settings: ProfileSettings, *, with_state: bool) -> float:
    """Estimate the cost of one checkpoint in forward passes of all replayed rows.

    What is spent once a run (calibration) or only where S is alarming (a second look at accuracy screen) is not in it.

    Args:
        session: module, layers and rows.
        settings: the tier, the accuracy and the layers.
        with_state: whether optimizer state is there, so that everything is solved a second time, scaled.

    Returns:
        Forward passes.
    """
    tier = TIERS.index(settings.tier)
    if tier < TIERS.index("forward"):
        return 0.0  # weights are looked at, not replayed
    parts = len(session.training_batches)
    passes = 1.0 + 1.0 / parts  # every row once, and the training batch that follows
    again = 0.0 if session.memory.keep_graphs else FORWARDS["graph"]
    whole = FORWARDS["whole product"] + again
    if settings.density:
        passes += FORWARDS["graph"] + DENSITY_PRODUCTS * whole * (2 if with_state else 1)
    if settings.koopman or tier >= TIERS.index("full"):
        passes += 1.0
    if settings.landscape or tier >= TIERS.index("full"):
        passes += FORWARDS["gradient"] + LANDSCAPE_FORWARDS
    if tier < TIERS.index("gradient"):
        return passes
    if tier < TIERS.index("stability"):
        return passes + FORWARDS["gradient"]  # in the groups that tell the noise between sequences
    if len(session.batch.tokens) >= FEWEST_ROWS:
        passes += GROUPED_SHARE * FORWARDS["gradient"]  # for that noise
    exact = _wants_exact(session, settings)
    passes += FORWARDS["graph" if exact or with_state else "gradient"]
    products = PRODUCTS[settings.accuracy]
    if with_state:
        passes += (products.whole_scaled + DIRECTION_PRODUCTS) * whole + UPDATE_FORWARDS
        if parts > 1:  # every training batch once more, for the range of S
            passes += FORWARDS["graph"] + products.spread * whole
    if tier < TIERS.index("curvature"):
        return passes
    passes += products.whole * (whole if exact or with_state else FORWARDS["gradient"])
    passes += _layer_passes(session, settings, with_state=with_state) / parts
    if tier >= TIERS.index("full"):
        tokens = session.batch.tokens
        short = few(tokens, None)[0].numel() / max(1, tokens.numel())
        passes += PRECISION_FORWARDS + FORWARDS["map"] * short
    return passes


def _wants_exact(session: Session, settings: ProfileSettings) -> bool:
    return ACCURACIES[settings.accuracy].residual < SCREEN.residual or not allows_differences(session.module)


def _layer_passes(session: Session, settings: ProfileSettings, *, with_state: bool) -> float:
    """Passes of the rows that layers are replayed on."""
    layers, products, order = _chosen(session, settings), PRODUCTS[settings.accuracy], order_of(session)
    rule, keep = ACCURACIES[settings.accuracy], session.memory.keep_graphs
    exact = rule.residual <= CERTIFIED.residual or not allows_differences(session.module)
    behind = sum(share_behind(order, layer) for layer in layers)
    each = products.layer + (products.layer_scaled if with_state else 0.0)
    several = len(session.training_batches) > 1
    passes = 0.0
    if exact:
        passes += FORWARDS["graph"] if several else 0.0
        passes += each * behind * FORWARDS["layer product"]
        if not keep:
            rounds = max(products.layer, products.layer_scaled if with_state else 0.0) + _SLOWEST
            passes += _lots(session, layers, order) * rounds * FORWARDS["graph"]
    else:
        # The gradient that differences are taken from, and what every restart remembers.
        passes += FORWARDS["gradient"] + FORWARDS["forward"]
        passes += each * behind * FORWARDS["layer difference"]
        if _wants_exact(session, settings):  # each dominant end is held against one exact product
            passes += (2 if with_state else 1) * behind * FORWARDS["layer product"]
            passes += (1 if keep and several else _lots(session, layers, order)) * FORWARDS["graph"]
    if settings.traces:
        passes += FORWARDS["graph"] + behind * settings.traces * FORWARDS["layer product"]
        if not keep:
            passes += len(layers) * settings.traces * FORWARDS["graph"]
    return passes


#: Rounds that the slowest layer of a lot takes beyond the average one.
_SLOWEST = 4.0


def _lots(session: Session, layers: Sequence[Layer], order: CallOrder) -> int:
    """Lots of layers that share each graph that is built again."""
    products = LayerProducts(
        session.module,
        (),
        {name: value.detach() for name, value in session.module.named_parameters()},
        all_exact(order, layers),
        keep_graphs=False,
        lot_bytes=session.memory.lot_bytes,
    )
    return len(products.groups([LayerProblem(layer, torch.empty(0), SCREEN) for layer in layers]))


def order_of(session: Session) -> CallOrder:
    """Find which blocks the module calls one after another, from a few rows, whatever its weights are.

    Returns:
        The order.
    """
    known = session.products.calibration
    if known is not None:
        return known.order
    batch = session.batch.cut(_WATCHED, session.device)[0]
    return call_order(
        session.module,
        lambda times: evaluate(
            session.module,
            batch.tokens.repeat([times] + [1] * (batch.tokens.ndim - 1)),
            None if batch.labels is None else batch.labels.repeat([times] + [1] * (batch.labels.ndim - 1)),
        ),
    )


@dataclass(frozen=True, slots=True)
class Timed:
    """What a forward pass of all replayed rows comes to within a profile, by a probe of this machine as it is now.

    Attributes:
        seconds: the median of a few.
        low: the quickest.
        high: the slowest.
        fixed: the share of it that half as many rows take no less of: calls, not arithmetic. 1 where it is not known.
    """

    seconds: float
    low: float
    high: float
    fixed: float


def forward_seconds(session: Session, repeats: int = 3) -> float:
    """Time what one forward pass of all replayed rows comes to within a profile.

    Args:
        session: module, layers and rows.
        repeats: of the probe.

    Returns:
        Seconds a forward pass, the median of a few.
    """
    batch = session.batch.cut(session.memory.rows, session.device)[0]
    seconds = [_probe(session, batch, time.perf_counter) for _ in range(repeats)]
    return statistics.median(seconds) * _passes(session, batch)


def timed(session: Session, repeats: int = 3, clock: Callable[[], float] = time.perf_counter) -> Timed:
    """Time the same as a range, and how much of it does not depend on the number of rows.

    The probe is done once before, for what is only done the first time, and with half of the rows.

    Args:
        session: module, layers and rows.
        repeats: of the probe.
        clock: seconds that only go forward.

    Returns:
        Seconds a forward pass.
    """
    batch = session.batch.cut(session.memory.rows, session.device)[0]
    rows = len(batch.tokens)
    _probe(session, batch, clock)
    seconds = [_probe(session, batch, clock) for _ in range(repeats)]
    fixed = 1.0
    if rows > 1 and statistics.median(seconds) > 0:
        half = session.batch.cut(rows // 2, session.device)[0]
        fewer = statistics.median(_probe(session, half, clock) for _ in range(repeats))
        # Of a + b rows, a; with the half, or a little less, b rows / 2 is gone.
        saved = 1.0 - fewer / statistics.median(seconds)
        fixed = min(1.0, max(0.0, 1.0 - saved * rows / (rows - len(half.tokens))))
    each = _passes(session, batch)
    return Timed(statistics.median(seconds) * each, min(seconds) * each, max(seconds) * each, fixed)


def _probe(session: Session, batch: MicroBatch, clock: Callable[[], float]) -> float:
    """Seconds of a forward pass, a graph of second derivatives and a product of the layer in the middle."""

    def wait() -> None:
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)

    layer = session.layers[len(session.layers) // 2]
    vector = torch.ones(layer.size, device=session.device, dtype=next(session.module.parameters()).dtype)
    wait()
    began = clock()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        evaluate(session.module, batch.tokens, batch.labels)
    graph = exact_graph(session.module, [batch], keep=True)
    block_products(graph, [layer.parts], [vector])
    wait()
    return clock() - began


def _passes(session: Session, batch: MicroBatch) -> float:
    """What a probe of some rows is multiplied by to give one forward pass of all."""
    layer, order = session.layers[len(session.layers) // 2], order_of(session)
    counts = FORWARDS["forward"] + FORWARDS["graph"] + FORWARDS["layer product"] * share_behind(order, layer)
    return len(session.batch.tokens) / len(batch.tokens) / counts


#: Measured over foreseen seconds lay between 0.87 and 3.4, of the three models of `python -m benchmarks.plan` and a
#: sample run at the accuracies screen and standard; the highest where nearly all of a pass is calls, because what lies
#: between passes (Lanczos, reading, writing) is calls too, and not in the probe. Passes counted were 0.8 to 1.3 times
#: those foreseen. The range was chosen on these.
FEWEST, MOST, BETWEEN = 0.7, 1.4, 1.6
#: Seconds that reading, preparing and writing a checkpoint of some thousand weights took at most, on a busy machine.
PREPARING = 0.5


def range_of(forwards: float, one: Timed) -> tuple[float, float]:
    """Say within which seconds a checkpoint will take, as long as the machine is as busy as it was when it was timed.

    Args:
        forwards: forward passes that are foreseen.
        one: what each takes.

    Returns:
        The least and the most.
    """
    return FEWEST * forwards * one.low, MOST * forwards * one.high * (1 + BETWEEN * one.fixed) + PREPARING
