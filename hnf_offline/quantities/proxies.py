"""The source document's table of component estimates, in log10 and labelled as what they are: proxies.

They are not curvature of anything: ||D2 softmax|| is at most sqrt(2/27) whatever the scores, and the
cross-entropy Hessian in the logits is at most 1/2. They are kept because they are cheap, because users of the
document expect them, and because a change within a run can still be read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import SOURCE_BANDS, quantity

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.quantities.attention import AttentionRows

_SOURCE = "condition-number profiler (source document), table of transformer-specific curvature sources"


@quantity(
    "proxy.softmax_log10",
    unit="log10",
    formula="log10 exp(2 max_ij z_ij) = 2 max z / ln 10",
    reference=_SOURCE,
    tier="forward",
    layers="every softmax over keys",
    over_batches="max",
    bands=SOURCE_BANDS,
    reading="The unshifted exponential's size; grows with the largest attention score.",
    cannot="Not a curvature: softmax itself is bounded, so high values alone mean nothing is wrong.",
)
def softmax_proxy(attention_rows: AttentionRows) -> Tensor:
    """Source document's softmax estimate e^(2 max score), in log10.

    Returns:
        A scalar.
    """
    return 2.0 * attention_rows.highest.amax() / math.log(10.0)


@quantity(
    "proxy.norm_log10",
    unit="log10",
    formula="log10 max over tokens of 1 / sigma^2",
    reference=_SOURCE + "; the norm's true second derivative is 2 / (sqrt(3 n) sigma^2) times the gain",
    tier="forward",
    layers="every LayerNorm and RMSNorm",
    over_batches="max",
    bands=SOURCE_BANDS,
    reading="Large when what enters the norm shrinks towards a constant.",
    cannot="Leaves out the width n and the gain, so layers of different width do not compare.",
)
def norm_proxy(norm_scale: Tensor) -> Tensor:
    """Source document's LayerNorm estimate 1 / sigma^2, in log10.

    Returns:
        A scalar.
    """
    return -2.0 * norm_scale.log10().amin()


@quantity(
    "proxy.cross_entropy_log10",
    unit="log10",
    formula="log10 1 / p_min over predicted positions",
    reference=_SOURCE + "; the true Hessian in the logits, diag(p) - pp', has norm at most 1/2",
    tier="forward",
    layers="the whole model",
    over_batches="max",
    bands=SOURCE_BANDS,
    reading="How surprising the worst token is, in powers of ten.",
    cannot="Not a curvature, and decided by a single token.",
)
def cross_entropy_proxy(target_log_probability: Tensor) -> Tensor:
    """Source document's cross-entropy estimate 1 / p_min, in log10.

    Returns:
        A scalar.
    """
    return -target_log_probability.amin() / math.log(10.0)
