"""Mixed precision from the log alone: bands of gradient norms, and the loss scaler under other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_FIXES = "training stability fixes (source document)"
#: Bounds of the source document's bands: healthy from the first to the second, high to the third, critical above.
BANDS = (0.5, 5.0, 10.0)
#: From here on a number is rounded to infinity in float16; its largest finite one is 65504.
HALF_OVERFLOW = 65520.0


@quantity(
    "gradient.norm_band",
    unit="share",
    formula="shares of logged norms below .5, healthy .5-5, high 5-10, critical > 10, exploded (NaN or infinite)",
    reference=f"{_FIXES}, expected gradient norms",
    tier="log",
    layers="the log, where gradient norms are logged",
    reading="Any exploded row is a fault; otherwise compare a run with its own past, not with the bands.",
    cannot="The norm grows with the model and with a sum for a mean: a healthy run may lie in any band.",
)
def gradient_norm_bands(norm: Floats) -> dict[str, float]:
    """Share of the gradient norms in each band.

    Returns:
        Share by name of the band, in order.
    """
    low, high, critical = BANDS
    finite = np.isfinite(norm)
    return {
        "below": float(np.mean(finite & (norm < low))),
        "healthy": float(np.mean(finite & (norm >= low) & (norm <= high))),
        "high": float(np.mean(finite & (norm > high) & (norm <= critical))),
        "critical": float(np.mean(finite & (norm > critical))),
        "exploded": float(np.mean(~finite)),
    }


@quantity(
    "scaler.skipped_share",
    unit="share",
    formula="skipped updates / steps, as logged, else counted by the halvings of the loss scale; the search for a "
    "scale at the start counted apart",
    reference=f"definition; {_FIXES}; Micikevicius et al. 2018, arXiv 1710.03740, section 3.2",
    tier="log",
    layers="the log, where overflows or loss scales are logged",
    reading="Torch's scaler tries a doubled scale every 2000 steps: about 1/2000 is its normal rate.",
    cannot="Halvings and growths between two logged rows that cancel are not seen.",
)
def skipped_share(skipped: Floats, steps: Floats) -> float:
    """Share of the updates that were skipped.

    Returns:
        NaN for no steps.
    """
    return float(np.sum(skipped) / np.sum(steps)) if np.sum(steps) else float("nan")


@quantity(
    "scaler.simulated_skips",
    unit="updates",
    formula="s_1 = init; at an overflow (s_t max|g_t| >= 65520) the update is skipped and s halves, after INTERVAL "
    "clean updates in a row s grows by GROWTH; number of skipped updates",
    reference=f"torch.amp.GradScaler (its defaults 2^16, 2, 2000); {_FIXES}, fix 1, blames 2^16, 2, 100 and "
    "recommends 2^10, 1.5, 200: but an overflow is skipped: a large first scale costs some updates at the start",
    tier="log",
    layers="the log, where each step's largest gradient, or loss scale and overflow, is logged",
    reading="Two numbers where the log does not say whether another scale would have overflowed: if it would not, and "
    "if it would. hnf whatif --policy scaler=1024,1.5,200 retrains instead.",
    cannot="Takes the run's own gradients: skipped updates would have changed them. Not what a lower scale loses to "
    "underflow, nor overflows inside the backward pass where only final gradients are logged.",
)
def simulated_skips(
    overflows_at: Floats, initial: float, growth: float, interval: int, backoff: float = 0.5
) -> tuple[NDArray[np.bool_], Floats]:
    """Run the loss scaler over a run's overflow thresholds.

    Args:
        overflows_at: for each step, the scale at and above which its gradients overflow; infinite for never, 0
            for always (gradients that are not finite by themselves).
        initial: first scale.
        growth: factor after `interval` clean updates in a row.
        interval: clean updates in a row before it grows.
        backoff: factor at an overflow.

    Returns:
        Whether each update is skipped, and the scale each was tried at.
    """
    skipped, scales = np.zeros(overflows_at.size, dtype=np.bool_), np.empty(overflows_at.size)
    scale, clean = np.float32(initial), 0  # torch keeps the scale as a float32
    largest = float(np.finfo(np.float32).max)
    for step, limit in enumerate(overflows_at.tolist()):
        scales[step] = scale
        if scale >= limit:
            skipped[step] = True
            scale, clean = np.float32(scale * backoff), 0
            continue
        clean += 1
        if clean == interval:
            clean = 0
            if float(scale) * growth <= largest:
                scale = np.float32(scale * growth)
    return skipped, scales
