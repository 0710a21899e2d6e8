"""Layers as maps from input to output: first and second derivatives in the hidden state, weights held fixed.

A function here gives one value an item, an item being a token (norms, MLPs), a sequence (attention, blocks) or a
row of scores (softmax over keys); how the items become one number is the entry's `over_batches`.

- `largest_singular_values`: of the Jacobian, [items]; `rms_singular_values`: ||J||_F / sqrt(rank), [items].
- `singular_values`: all of them but the structural zeros (LayerNorm 2, RMSNorm 1, softmax 1), descending, [items, k].
- `smallest_singular_values`: the last of these, [items].
- `second_derivative_norms`: lower bounds of ||D2 f||, [items].
- `input_norms`, `output_norms`: Euclidean norms of the item and of its image, [items].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

#: Relative output error that `map.precision_bits` asks for: the rounding error of bfloat16.
OUTPUT_ERROR = 2.0**-8

_MAPS = "every norm and MLP (16 tokens), attention and block (2 sequences of at most 128 tokens)"
_CURVED = "every norm and MLP (16 tokens), attention and block (1 sequence of at most 128 tokens)"
_FEW = "Looked at on a few tokens only"


@quantity(
    "map.sigma_max",
    unit="output / input",
    formula="max over items of s_1(J), J = df/dx of the layer's map at the replayed hidden state",
    reference="definition; Golub & Kahan 1965; Golub & Van Loan, Matrix Computations, section 10.4",
    tier="full",
    layers=_MAPS + ", every softmax over keys",
    over_batches="max",
    reading="The largest factor by which this layer stretches a small change; read its change over the checkpoints.",
    cannot=f"{_FEW}, so no bound for others; products of layers' values overstate what the whole model does.",
)
def largest_stretch(largest_singular_values: Tensor) -> Tensor:
    """Largest singular value of the layer's input-output Jacobian.

    Returns:
        [items].
    """
    return largest_singular_values


@quantity(
    "map.sigma_over_rms",
    unit="1",
    formula="median over items of s_1(J) / (||J||_F / sqrt(k)), k = min(outputs, inputs) less the structural zeros",
    reference="definition; ||J||_F of large maps by 4 random probes (Hutchinson 1990)",
    tier="full",
    layers=_MAPS + ", every softmax over keys",
    over_batches="median",
    reading="1: all directions are stretched alike; large: one direction carries nearly everything (rank collapse).",
    cannot=f"{_FEW}; says nothing of the small singular values.",
)
def stretch_over_typical(largest_singular_values: Tensor, rms_singular_values: Tensor) -> Tensor:
    """Largest singular value over the root mean square of all that are not structurally zero.

    Returns:
        [items].
    """
    return largest_singular_values / rms_singular_values


@quantity(
    "map.condition",
    unit="1",
    formula="median over items of s_1 / s_(n-q), q structural zeros left out: LayerNorm 2, RMSNorm 1, softmax 1",
    reference="definition; the plain s_1 / s_n of a norm or a softmax is infinite by construction",
    tier="full",
    layers="every norm and MLP of width at most 1024 (16 tokens), every softmax over keys (up to 16 queries a head)",
    over_batches="median",
    reading="A norm without gains has 1, a softmax grows with saturation; inf: a direction is lost altogether.",
    cannot="Deflates only what is zero by construction; near zeros of an MLP are rounding of the replay's precision.",
)
def deflated_condition(largest_singular_values: Tensor, smallest_singular_values: Tensor) -> Tensor:
    """Condition number of the Jacobian on the directions that the layer's construction leaves.

    Returns:
        [items]; infinite where the smallest is zero.
    """
    return largest_singular_values / smallest_singular_values


@quantity(
    "map.log_singular_spread",
    unit="nats",
    formula="median over items of std_i(log s_i), structural zeros left out",
    reference="Pennington et al. 2017, dynamical isometry (arXiv 1711.04735)",
    tier="full",
    layers="every norm and MLP of width at most 1024 (16 tokens)",
    over_batches="median",
    reading="0 is isometry; growth means that the layer treats directions more and more unequally.",
    cannot=f"{_FEW}; of a map that narrows, only the directions it keeps are counted.",
)
def log_singular_spread(singular_values: Tensor) -> Tensor:
    """Standard deviation of the logarithms of the singular values.

    Returns:
        [items].
    """
    return singular_values.log().std(dim=-1, correction=0)


@quantity(
    "map.d2_norm",
    unit="output / input^2",
    formula="max over items of sup_{|w|=|v|=1} <w, D2f[v,v]>, from below",
    reference="alternating maximisation: De Lathauwer 2000; Kolda & Mayo 2011 (arXiv 1007.1267)",
    tier="full",
    layers=_CURVED,
    over_batches="max",
    reading="How fast the layer's own Jacobian turns; 1 / this is the distance over which it may be taken as linear.",
    cannot="A lower bound, with no upper end: the supremum is NP-hard; uncertified where restarts disagree.",
)
def second_derivative_norm(second_derivative_norms: Tensor) -> Tensor:
    """Operator norm of the second derivative of the layer's map, as far as it was found.

    Returns:
        [items].
    """
    return second_derivative_norms


@quantity(
    "map.hnf_curvature",
    unit="output / input^2",
    formula="kappa = 1/2 ||D2f||, from below",
    reference="hnf_paper.tex of thehalleyyoung/TorchType, definition of curvature",
    tier="full",
    layers=_CURVED,
    over_batches="max",
    reading="The quadratic error per squared input error: |f(x+h) - f(x) - J h| <= kappa |h|^2 near x.",
    cannot="A lower bound. It is the map's curvature, not the loss's, and knows neither optimizer nor learning rate.",
)
def hnf_curvature(second_derivative_norms: Tensor) -> Tensor:
    """Half the operator norm of the second derivative.

    Returns:
        [items].
    """
    return second_derivative_norms / 2


@quantity(
    "map.newton_curvature",
    unit="1 / output",
    formula="max over items of kappa ||J^+||^2 = 1/2 ||D2f|| / s_(n-q)^2, on the range of J",
    reference="forward-backward theorem of hnf_paper.tex (thehalleyyoung/TorchType); Kantorovich's condition",
    tier="full",
    layers="every norm and MLP of width at most 1024 (16 tokens)",
    over_batches="max",
    reading="1 / this is the output change that can be traced back through the layer by its linearisation.",
    cannot="A lower bound; infinite where the layer loses a direction; not measured where s_(n-q) is not (attention).",
)
def newton_curvature(second_derivative_norms: Tensor, smallest_singular_values: Tensor) -> Tensor:
    """Curvature in units of the output: the Newton-Kantorovich product on the range of the Jacobian.

    Returns:
        [items].
    """
    return second_derivative_norms / 2 / smallest_singular_values.square()


@quantity(
    "map.precision_bits",
    unit="bits",
    formula="max over items of max(log2(s_1 |x| / e), 1/2 log2(kappa |x|^2 / e)), e = 2^-8 |f(x)|",
    reference="hnf_comprehensive.tex (thehalleyyoung/TorchType); its other version (D^2, factor 1/8) is not honest",
    tier="full",
    layers=_CURVED,
    over_batches="max",
    reading="Bits of the input that the worst case needs for 8 good bits of the output; bfloat16 has 8, float16 11.",
    cannot="A worst case over directions, and from below; precision.output_error_bf16 is what really happens.",
)
def precision_bits(
    largest_singular_values: Tensor,
    second_derivative_norms: Tensor,
    input_norms: Tensor,
    output_norms: Tensor,
) -> Tensor:
    """Bits of the input needed for a relative output error of 2^-8, first and second order.

    Returns:
        [items].
    """
    from hnf_offline.linalg.precision import required_bits

    curvature, accuracy = second_derivative_norms / 2, OUTPUT_ERROR * output_norms
    return required_bits(largest_singular_values, curvature, input_norms, accuracy)


@quantity(
    "map.left_out",
    unit="reason",
    formula="1: no hidden state [sequences, tokens, width] goes in; 2: the call does not repeat; 3: no derivative; "
    "4: the block has no such module of its own; 5: memory ran out",
    reference="definition",
    tier="full",
    layers="every module whose map was looked for and not measured",
    over_batches="max",
    reading="1, 4: the model is built otherwise; 2: the call has a state or mixes tokens; 3: torch refused.",
    cannot="Says nothing of the layer itself: only that its map is missing from the table, and why.",
)
def left_out(reason: float) -> float:
    """Reason why a module has no map in the table.

    Returns:
        The reason's number.
    """
    return reason
