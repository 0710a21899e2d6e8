"""Train in float16 with a gradient scaler of one's own settings."""

from __future__ import annotations

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.precision import Precision
from hnf_offline.rerun.policies.registry import policy

#: The scale is a float32.
_LARGEST = 2.0**127


@policy(
    "scaler",
    value="INIT,GROWTH,INTERVAL",
    summary="Train in float16 with this loss scaling; changes the function at once, by rounding.",
    formula="the loss times s before the backward pass, gradients over s after it; s times GROWTH after INTERVAL "
    "updates without overflow, the update skipped and s halved at an overflow",
    reference="source document on training stability fixes, fix 1, which blames 65536,2.0,100 (torch's scale and "
    "growth at a twentieth of its interval) for divergence and recommends 1024,1.5,200; but an overflow is skipped, "
    "so a large first scale costs only some skipped updates. Micikevicius et al. 2018, arXiv 1710.03740, section 3.2",
    cost="one pass over the gradients, and one wait for the device a step",
    example="scaler=1024,1.5,200",
)
def make(text: str | None) -> Policy:
    """Read the scale to start with, its growth and the clean updates before it grows.

    Returns:
        The policy.
    """
    initial, growth, interval = fields(text, ["INIT", "GROWTH", "INTERVAL"], required=3)
    return Precision(
        "float16",
        {
            "init_scale": number(str(initial), "INIT", above=0, most=_LARGEST),
            "growth_factor": number(str(growth), "GROWTH", above=1, most=_LARGEST),
            "growth_interval": whole(str(interval), "INTERVAL"),
        },
    )
