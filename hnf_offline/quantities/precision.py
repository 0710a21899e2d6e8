"""What reduced precision does to the replay, measured by replaying with all parameters cast.

`reference_loss` and `cast_loss` are scalars, `reference_output` and `cast_output` one module's outputs for the same
rows. The names end in the precision: `cast_loss_bf16`, `cast_output_fp16`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.linalg.vectors import length
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_FORMULA = "with parameters and activations in"
_CAST = "The whole model is cast, which is harsher than mixed precision: autocast keeps norms, softmax and loss wider."


def _relative(cast: Tensor, reference: Tensor) -> Tensor:
    return length((cast - reference).flatten()) / length(reference.flatten())


@quantity(
    "precision.loss_change_bf16",
    unit="nats",
    formula=f"L {_FORMULA} bfloat16 - L in the replay's own precision, cross-entropy itself in float32",
    reference="definition",
    tier="full",
    layers="the whole model",
    reading="Far above its own past: what the weights say no longer fits into 8 bits (large logits, cancelling sums).",
    cannot=_CAST,
)
def loss_change_bf16(reference_loss: Tensor, cast_loss_bf16: Tensor) -> Tensor:
    """Change of the replayed loss when the model is cast to bfloat16.

    Returns:
        A scalar.
    """
    return cast_loss_bf16 - reference_loss


@quantity(
    "precision.loss_change_fp16",
    unit="nats",
    formula=f"L {_FORMULA} float16 - L in the replay's own precision, cross-entropy itself in float32",
    reference="definition",
    tier="full",
    layers="the whole model",
    reading="inf or NaN: something overflowed 65504; precision.nonfinite_fp16 says in which layer first.",
    cannot=_CAST,
)
def loss_change_fp16(reference_loss: Tensor, cast_loss_fp16: Tensor) -> Tensor:
    """Change of the replayed loss when the model is cast to float16.

    Returns:
        A scalar.
    """
    return cast_loss_fp16 - reference_loss


@quantity(
    "precision.output_error_bf16",
    unit="1",
    formula=f"|y_bf16 - y| / |y|, y a module's output {_FORMULA} bfloat16, on up to 2 sequences",
    reference="definition",
    tier="full",
    layers="every block, and every layer that gives an output",
    reading="2^-8 = 0.004 is rounding alone; where it jumps from one layer to the next, precision is lost there.",
    cannot="Holds the errors of all layers before: it says where the error stands, not which layer made it.",
)
def output_error_bf16(reference_output: Tensor, cast_output_bf16: Tensor) -> Tensor:
    """Relative error of a module's output when the whole model is cast to bfloat16.

    Returns:
        A scalar.
    """
    return _relative(cast_output_bf16, reference_output)


@quantity(
    "precision.output_error_fp16",
    unit="1",
    formula=f"|y_fp16 - y| / |y|, y a module's output {_FORMULA} float16, on up to 2 sequences",
    reference="definition",
    tier="full",
    layers="every block, and every layer that gives an output",
    reading="2^-11 = 0.0005 is rounding alone; inf or NaN: an activation beyond 65504.",
    cannot="Holds the errors of all layers before: it says where the error stands, not which layer made it.",
)
def output_error_fp16(reference_output: Tensor, cast_output_fp16: Tensor) -> Tensor:
    """Relative error of a module's output when the whole model is cast to float16.

    Returns:
        A scalar.
    """
    return _relative(cast_output_fp16, reference_output)


@quantity(
    "precision.nonfinite_bf16",
    unit="share",
    formula=f"share of a module's outputs that are NaN or infinite {_FORMULA} bfloat16, on up to 2 sequences",
    reference="definition",
    tier="full",
    layers="every block and layer that has some",
    reading="The first layer with any is where the range ends; bfloat16 has float32's range, so this is rare.",
    cannot="Intermediate values inside a module are not seen, only what it hands on.",
)
def nonfinite_bf16(cast_output_bf16: Tensor) -> Tensor:
    """Share of a module's outputs that are not finite in bfloat16.

    Returns:
        A scalar in [0, 1].
    """
    return (~cast_output_bf16.isfinite()).double().mean()


@quantity(
    "precision.nonfinite_fp16",
    unit="share",
    formula=f"share of a module's outputs that are NaN or infinite {_FORMULA} float16, on up to 2 sequences",
    reference="definition",
    tier="full",
    layers="every block and layer that has some",
    reading="The first layer with any is where activations pass 65504; float16 training needs them far below.",
    cannot="Intermediate values inside a module are not seen, only what it hands on.",
)
def nonfinite_fp16(cast_output_fp16: Tensor) -> Tensor:
    """Share of a module's outputs that are not finite in float16.

    Returns:
        A scalar in [0, 1].
    """
    return (~cast_output_fp16.isfinite()).double().mean()


@quantity(
    "precision.lost_updates",
    unit="share",
    formula="share of entries with u_i other than 0 for which w_i - u_i rounds to w_i in the precision that the "
    "weights and the optimizer's moments are stored in, u the optimizer's next update in full",
    reference="definition; motive: Zamirai et al. 2020, Revisiting bfloat16 training (arXiv 2010.06192), section 3",
    tier="gradient",
    layers="every layer whose weights and moments are stored in bfloat16 or float16",
    reading="Near 0 training moves what it means to move; near 1 the layer stands still although its gradient does "
    "not.",
    cannot="Does not know of stochastic rounding or of a compensation term, under which small updates add up all the "
    "same.",
)
def lost_updates(weight: Tensor, next_update: Tensor, stored_as: Tensor) -> Tensor:
    """Share of a layer's entries that the next update leaves where they are.

    Args:
        weight: [size], numbers of that precision.
        next_update: [size].
        stored_as: an empty tensor of that precision.

    Returns:
        A scalar in [0, 1].
    """
    meant = next_update != 0
    stays = (weight - next_update).to(stored_as.dtype) == weight.to(stored_as.dtype)
    return (stays & meant).sum() / meant.sum().clamp_min(1)


@quantity(
    "precision.left_out",
    unit="precisions",
    formula="number of the precisions bfloat16 and float16 in which the model could not be run here",
    reference="definition",
    tier="full",
    layers="the whole model; only where there are any",
    reading="Above 0: this device has no kernel for some operation of the model in that precision.",
    cannot="Says nothing about the weights.",
)
def precisions_left_out(failed_precisions: float) -> float:
    """Number of reduced precisions that could not be tried.

    Returns:
        0, 1 or 2.
    """
    return failed_precisions
