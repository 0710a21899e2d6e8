"""What a checkpoint costs: forward passes by counting products, seconds by timing one forward pass."""

from __future__ import annotations

import statistics
import time
from fnmatch import fnmatchcase

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.profile.directions import UPDATE_FORWARDS
from hnf_offline.profile.maps.measure import LENGTH, SEQUENCES
from hnf_offline.profile.session import Session
from hnf_offline.profile.settings import TIERS, ProfileSettings
from hnf_offline.run.model.loss import evaluate

#: Products that one end of a spectrum takes, as a rule, and what a product costs in forward passes: of the whole
#: model, and of one layer on average (only the part of the graph behind the layer is walked).
WHOLE_PRODUCTS, LAYER_PRODUCTS = 9, 5
WHOLE_FORWARDS, LAYER_FORWARDS = 5.0, 1.6
#: Exact products of the whole model for one spectral density (`densities.PROBES` times `densities.STEPS`).
DENSITY_PRODUCTS = 160
#: The tier full: its layer maps, in forward passes of the short sequences they look at (measured on decoders of d = 64
#: to 256 on one CPU core: 1070, 780, 490, 340, falling with the width), and replays in the two reduced precisions.
MAP_FORWARDS, PRECISION_FORWARDS = 600.0, 11.0


def measured_layers(session: Session, settings: ProfileSettings) -> int:
    """Count the layers that get their own curvature.

    Returns:
        The number of layers that `--layers` selects.
    """
    return sum(
        settings.layers is None or fnmatchcase(layer.path, settings.layers) for layer in session.layers
    )


def forward_passes(session: Session, settings: ProfileSettings, *, with_state: bool) -> float:
    """Estimate the cost of one checkpoint in forward passes of all replayed rows.

    Args:
        session: module, layers and rows.
        settings: the tier and the layers.
        with_state: whether optimizer state is there, so that everything is solved a second time, scaled.

    Returns:
        Forward passes.
    """
    tier = TIERS.index(settings.tier)
    passes = 2.0 + (3.0 if tier >= TIERS.index("gradient") else 0.0)
    if settings.density:
        passes += DENSITY_PRODUCTS * WHOLE_FORWARDS * (2 if with_state else 1)
    if tier < TIERS.index("stability"):
        return passes
    parts = len(session.training_batches)
    whole = WHOLE_PRODUCTS * WHOLE_FORWARDS
    layers = measured_layers(session, settings) * LAYER_PRODUCTS * LAYER_FORWARDS / parts
    if tier < TIERS.index("curvature"):
        layers = 0.0
    else:
        passes += whole + layers
        passes += measured_layers(session, settings) * settings.traces * LAYER_FORWARDS / parts
    if tier >= TIERS.index("full"):
        tokens = session.batch.tokens
        passes += PRECISION_FORWARDS + MAP_FORWARDS * tokens[:SEQUENCES, :LENGTH].numel() / max(
            1, tokens.numel()
        )
    if with_state:
        spread = whole if parts > 1 else 0.0  # every training batch once more, for the range of S
        passes += whole + spread + layers + 3 * WHOLE_FORWARDS + UPDATE_FORWARDS
    return passes


def forward_seconds(session: Session, repeats: int = 3) -> float:
    """Time one forward pass of all replayed rows, under the attention kernel that profiling uses.

    Returns:
        Seconds, the median of a few.
    """
    batches = session.batch.cut(session.memory.rows, session.device)
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            losses = [evaluate(session.module, batch.tokens, batch.labels).loss for batch in batches]
        sum(float(loss) for loss in losses)  # waits for the device
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
