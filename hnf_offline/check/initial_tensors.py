"""What is looked at of each tensor of an initial checkpoint: moments, its largest singular value, where it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hnf_offline.check.initial import BLOCK, Initial, Place
from hnf_offline.check.portrait import digest_of, without_wrappers
from hnf_offline.run.model.layers import kind_of

#: Elements that are converted at once.
_CHUNK = 2**22
#: Vectors and steps that find the largest singular value: a tenth too low at most without a gap, sharp with one.
_VECTORS, _STEPS = 8, 4

_EMBEDDING = re.compile(
    r"(?:^|[._])(?:wte|wpe|tok(?:en)?s?|vocab|emb|embed\w*|tok_embeddings|\w*_embeddings?|shared)(?:\.weight)?$"
)
_NORM = re.compile(r"norm|(?:^|[._])ln(?:_?\w*)?(?:[._]|$)|layernorm", re.IGNORECASE)


def initial_tensors(weights: Mapping[str, Tensor]) -> tuple[Initial, ...]:
    """Look at every floating-point tensor of a checkpoint; tensors that hold NaN or infinity are left out.

    Returns:
        One each, in the checkpoint's order.
    """
    named = {without_wrappers(name): value for name, value in weights.items() if value.is_floating_point()}
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    numbers = {int(number[0]) for name in named if (number := BLOCK.search(name))}
    # transformers' GPT-2 keeps its weights as [in, out].
    turned = any(
        name.endswith("c_attn.weight") and len(shape) == 2 and shape[1] == 3 * shape[0]
        for name, shape in shapes.items()
    )
    found: list[Initial] = []
    for name, value in named.items():
        looked = _look(name, value.detach(), shapes, max(numbers, default=-1) + 1, turned)
        if looked is not None:
            found.append(looked)
    return tuple(found)


def _look(
    name: str, value: Tensor, shapes: Mapping[str, tuple[int, ...]], blocks: int, turned: bool
) -> Initial | None:
    flat = value.reshape(-1)
    if not flat.numel():
        return None
    powers = torch.zeros(4, dtype=torch.float64)  # sums of w, w^2, w^3, w^4
    low, high = math.inf, -math.inf
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK].double()
        square = chunk * chunk
        powers += torch.stack([chunk.sum(), square.sum(), (square * chunk).sum(), (square * square).sum()])
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if not bool(powers.isfinite().all()):
        return None
    first, second, third, fourth = (powers / flat.numel()).tolist()
    variance = second - first * first
    about_mean = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    constant = low == high
    kind = _kind(name, shapes)
    place = _place(name, shapes[name], blocks, turned) if kind == "matrix" else None
    deviation = math.sqrt(second)
    return Initial(
        name,
        flat.numel(),
        deviation,
        first,
        about_mean / variance**2 - 3 if variance > 0 and not constant else math.nan,
        max(abs(low), abs(high)),
        constant,
        digest_of(flat.contiguous()),
        place,
        _edge(value, deviation) if place is not None and deviation > 0 else math.nan,
        kind,
    )


def _kind(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    shape = shapes[name]
    if len(shape) >= 2:
        # Mamba's A_log and the like are tables of their own, not drawn.
        weight = "weight" in name.rpartition(".")[2] or kind_of(name, nn.Module()) != "other"
        return "matrix" if weight and min(shape[0], math.prod(shape[1:])) > 1 else "other"
    if len(shape) != 1:
        return "other"
    owner, _, last = name.rpartition(".")
    if _NORM.search(owner or name):
        return "bias" if last == "bias" else "gain"
    return "bias" if last == "bias" and len(shapes.get(f"{owner}.weight", ())) >= 2 else "other"


def _place(name: str, shape: Sequence[int], blocks: int, turned: bool) -> Place:
    owner = name.removesuffix(".weight")
    number = BLOCK.search(name)
    block = int(number[0]) if number else None
    outputs, inputs = shape[0], math.prod(shape[1:])
    kind = kind_of(owner, nn.Module())
    if turned and block is not None:
        outputs, inputs = inputs, outputs
    if _EMBEDDING.search(name) and kind != "head":
        role = "embedding"
    elif kind == "head":
        role = "head"
    elif kind in ("out", "mlp_down"):
        role = "residual"
    else:
        role = "inner"
    fused = 3 if outputs == 3 * inputs and re.search(r"attn|attention|qkv|in_proj", owner) else 1
    return Place(role, inputs, outputs, block, blocks, fused)


def _edge(value: Tensor, deviation: float) -> float:
    matrix = value.reshape(value.shape[0], -1).float() / deviation
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    rows, columns = matrix.shape
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(columns, min(_VECTORS, columns), generator=generator).to(matrix)
    for _ in range(_STEPS):
        basis = torch.linalg.qr(matrix.T @ (matrix @ basis)).Q
    return float(torch.linalg.matrix_norm(matrix @ basis, 2)) / (math.sqrt(rows) + math.sqrt(columns))
