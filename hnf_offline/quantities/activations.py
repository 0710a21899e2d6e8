"""Activations. `activation` is what a block or an activation function gives out, [..., units], or what was read of it.

Of functions whose units are on or off (ReLU, GELU, SiLU and their relatives) also `preactivation`, what goes in, its
highest value of each unit over all tokens, and `gate_output`, which is `activation` again; of tanh and sigmoid
`bounded_output`, scaled to -1..1.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

from hnf_offline.quantities.observed import Observed, share_where
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_CATALOGUE = "training-stability catalogue (source document)"
_ALL = "every block and every activation function"
_GATES = "every ReLU, GELU, SiLU and their relatives"
#: A variance of this share of the mean square is known to five digits without subtracting the mean first.
_CLEAR_SHARE = 0.01
#: A bounded function is saturated beyond this share of its range.
SATURATED = 0.99
#: Half a unit of the last place above the largest bfloat16: what rounds to infinity.
BFLOAT16_OVERFLOW = 2.0**128 - 2.0**119


@quantity(
    "activation.mean",
    unit="activation",
    formula="mean of a over tokens and units",
    reference=f"definition; {_CATALOGUE}, activation statistics monitoring",
    tier="forward",
    layers=_ALL,
    reading="A drift away from its own past is a shift that the next layer has to undo.",
    cannot="Single units can run away while the mean stays.",
)
def activation_mean(activation: Tensor | Observed) -> Tensor:
    """Mean of the activations.

    Returns:
        A scalar.
    """
    return Observed.of(activation).means.mean()


@quantity(
    "activation.variance",
    unit="activation^2",
    formula="mean over sequences of the mean of (a - m)^2 over tokens and units, m the mean over the sequence",
    reference=f"definition; {_CATALOGUE}, activation statistics monitoring; variance-preserving initialization",
    tier="forward",
    layers=_ALL,
    reading="At step 0 about the same in every block if the initialization preserves it; then compare with "
    "its past.",
    cannot="A few units with massive activations can make all of it.",
)
def activation_variance(activation: Tensor | Observed) -> Tensor:
    """Variance of the activations within a sequence.

    Returns:
        A scalar.
    """
    seen = Observed.of(activation)
    if seen.values.device.type == "cpu" and seen.values.dtype.itemsize >= 4:
        # One pass over the values, where their mean does not use the digits up.
        squares = seen.mean_squares
        variances = squares - seen.means.to(squares).square()
        if bool((variances > _CLEAR_SHARE * squares).all()):
            return variances.mean()
    centred = seen.each - seen.means.unsqueeze(1)
    # The mean that was taken off is rounded itself: what is left of it is no variance.
    left = centred.mean(dim=1)
    around = Observed(centred.reshape(seen.values.shape))
    return (around.mean_squares - left.square()).mean()


@quantity(
    "activation.smallest",
    unit="activation",
    formula="min of a over tokens and units",
    reference=f"definition; {_CATALOGUE}, activation range monitoring",
    tier="forward",
    layers=_ALL,
    over_batches="min",
    reading="With activation.largest: the range; growth over steps goes towards overflow.",
    cannot="One token and one unit decide it.",
)
def activation_smallest(activation: Tensor | Observed) -> Tensor:
    """Lowest activation.

    Returns:
        A scalar.
    """
    return Observed.of(activation).lowest


@quantity(
    "activation.largest",
    unit="activation",
    formula="max of a over tokens and units",
    reference=f"definition; {_CATALOGUE}, activation range monitoring",
    tier="forward",
    layers=_ALL,
    over_batches="max",
    reading="Float16 ends at 65504; growth over steps goes towards overflow.",
    cannot="One token and one unit decide it; massive activations of a few units are normal in trained models.",
)
def activation_largest(activation: Tensor | Observed) -> Tensor:
    """Highest activation.

    Returns:
        A scalar.
    """
    return Observed.of(activation).highest


@quantity(
    "activation.overflow_fp16",
    unit="share",
    formula="share of finite a that are infinite as float16 (|a| of 65520 and more)",
    reference=f"IEEE 754-2019, binary16; {_CATALOGUE}, activation range monitoring",
    tier="forward",
    layers=_ALL,
    over_batches="max",
    reading="Anything above 0: under float16 this place makes infinities.",
    cannot="What happens inside the operation before its output: see precision.nonfinite_fp16 at tier full.",
)
def overflow_fp16(activation: Tensor | Observed) -> Tensor:
    """Share of activations that overflow in float16.

    Returns:
        A scalar.
    """
    seen = Observed.of(activation)
    return seen.at_least(65520.0) - seen.at_least(math.inf)


@quantity(
    "activation.underflow_fp16",
    unit="share",
    formula="share of a other than 0 that are 0 as float16 (|a| of 2^-25 and less)",
    reference=f"IEEE 754-2019, binary16; {_CATALOGUE}, activation range monitoring",
    tier="forward",
    layers=_ALL,
    reading="Harmless where large values stand beside; of all values it means that the layer's signal is lost.",
    cannot="Values just above lose most of their digits (below 2^-14 they are subnormal) and do not count.",
)
def underflow_fp16(activation: Tensor | Observed) -> Tensor:
    """Share of activations that underflow in float16.

    Returns:
        A scalar.
    """
    seen = Observed.of(activation)
    return seen.at_most(2.0**-25) - seen.at_most(0.0)


@quantity(
    "activation.overflow_bf16",
    unit="share",
    formula="share of finite a that are infinite as bfloat16 (|a| above about 3.39e38)",
    reference=f"bfloat16: eight exponent bits as float32; {_CATALOGUE}, activation range monitoring",
    tier="forward",
    layers=_ALL,
    over_batches="max",
    reading="Above 0 only where float32 itself is about to overflow.",
    cannot="bfloat16 loses digits, not range: see precision.output_error_bf16 at tier full.",
)
def overflow_bf16(activation: Tensor | Observed) -> Tensor:
    """Share of activations that overflow in bfloat16.

    Returns:
        A scalar.
    """
    seen = Observed.of(activation)
    return seen.at_least(BFLOAT16_OVERFLOW) - seen.at_least(math.inf)


@quantity(
    "activation.underflow_bf16",
    unit="share",
    formula="share of a other than 0 that are 0 as bfloat16 (|a| below about 4.6e-41)",
    reference=f"bfloat16: eight exponent bits as float32; {_CATALOGUE}, activation range monitoring",
    tier="forward",
    layers=_ALL,
    reading="Above 0 only for values at the end of float32's own range, such as tails of GELU.",
    cannot="bfloat16 loses digits, not range: see precision.output_error_bf16 at tier full.",
)
def underflow_bf16(activation: Tensor | Observed) -> Tensor:
    """Share of activations that underflow in bfloat16.

    Returns:
        A scalar.
    """
    seen = Observed.of(activation)
    return seen.at_most(2.0**-134) - seen.at_most(0.0)


@quantity(
    "activation.positive_share",
    unit="share",
    formula="share of preactivations > 0 over tokens and units",
    reference=f"definition; {_CATALOGUE}, ReLU statistics",
    tier="forward",
    layers=_GATES,
    reading="Half for symmetric inputs, less in trained models; towards 0 the function passes nothing on.",
    cannot="Sparse activations are no fault by themselves.",
)
def positive_share(preactivation: Tensor) -> Tensor:
    """Share of positive preactivations.

    Returns:
        A scalar.
    """
    return share_where(preactivation, operator.gt, 0.0)


@quantity(
    "activation.zero_share",
    unit="share",
    formula="share of a = 0 over tokens and units",
    reference=f"definition; {_CATALOGUE}, dead ReLU detection (its dead ratio)",
    tier="forward",
    layers=_GATES,
    reading="For ReLU 1 - positive_share; for GELU and SiLU above 0 only where values underflow.",
    cannot="Cannot tell units that are always off from units that are often off: see activation.dead_share.",
)
def zero_share(gate_output: Tensor | Observed) -> Tensor:
    """Share of activations that are exactly zero.

    Returns:
        A scalar.
    """
    return Observed.of(gate_output).at_most(0.0)


@quantity(
    "activation.dead_share",
    unit="share",
    formula="share of units with z <= 0 at every replayed token, z the preactivation",
    reference=f"definition; {_CATALOGUE}, dead neuron ratio",
    tier="forward",
    layers=_GATES,
    reading="A rise that does not go back means units that no longer learn (ReLU) or hardly do (GELU, SiLU).",
    cannot="A unit may be on for inputs that are not among the replayed rows: it is an upper bound.",
)
def dead_share(highest_preactivation: Tensor) -> Tensor:
    """Share of units that are off at every token.

    Args:
        highest_preactivation: [units], over all tokens.

    Returns:
        A scalar.
    """
    return share_where(highest_preactivation, operator.le, 0.0)


@quantity(
    "activation.saturated_share",
    unit="share",
    formula="share of outputs beyond 99 % of the function's range: |tanh| > 0.99, |2 sigmoid - 1| > 0.99",
    reference=f"definition; {_CATALOGUE}, saturation analysis",
    tier="forward",
    layers="every tanh and sigmoid that is a module",
    reading="There the derivative is below 0.02 of its largest: gradients hardly pass.",
    cannot="Gates are meant to saturate.",
)
def saturated_share(bounded_output: Tensor) -> Tensor:
    """Share of saturated outputs of bounded functions.

    Returns:
        A scalar.
    """
    return share_where(bounded_output.abs(), operator.gt, SATURATED)
