"""Read a checkpoint's tensors once and keep a portrait of each: hash, norm, a sample. One checkpoint in memory."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hnf_offline.check.series import Moment, OptimizerPortrait, Portrait, TensorPortrait
from hnf_offline.errors import UserError
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.optimizer import RawOptimizer
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Elements kept of all checkpoints together (256 MiB of f32), and of one at most and at least.
_KEPT_IN_ALL = 2**26
_MOST_KEPT, _LEAST_KEPT = 2**16, 2**12
#: Elements kept of each tensor where it has as many: a norm's gains count beside an embedding.
_LEAST_OF_A_TENSOR = 64
#: Elements converted at once.
_CHUNK = 2**22
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.|_fsdp_wrapped_module\.)+|(?<=\.)_orig_mod\.")
#: State tensors that follow the gradient: no two steps of a training run have the same ones.
_SECOND = ("exp_avg_sq", "momentum_buffer", "square_avg", "exp_avg")


def draw(checkpoint: Checkpoint, checkpoints: int) -> Portrait:
    """Read a checkpoint and keep what the checks look at.

    Args:
        checkpoint: the checkpoint.
        checkpoints: how many are read in all: together they keep a bounded number of elements.

    Returns:
        Its portrait.

    Raises:
        InputError: when its weights cannot be read.
    """
    weights = load_weights(checkpoint)
    room = max(_LEAST_KEPT, min(_MOST_KEPT, _KEPT_IN_ALL // max(1, checkpoints)))
    total = sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())
    tensors = {}
    for name in list(weights):
        tensor = weights.pop(name)  # so that what was looked at can be let go
        share = max(_LEAST_OF_A_TENSOR, room * tensor.numel() // max(1, total))
        tensors[without_wrappers(name)] = _tensor(tensor, share)
    try:
        raw = load_optimizer(checkpoint)
    except UserError as error:
        return Portrait(checkpoint, tensors, None, error.reason)
    return Portrait(checkpoint, tensors, None if raw is None else _optimizer(raw))


def _tensor(tensor: Tensor, kept: int) -> TensorPortrait:
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.contiguous().reshape(-1)
    squares, nonfinite = 0.0, 0
    for start in range(0, flat.numel() if tensor.is_floating_point() else 0, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk = chunk if chunk.dtype == torch.float64 else chunk.to(torch.float32)
        length = float(torch.linalg.vector_norm(chunk))
        if not math.isfinite(length):  # the one number says whether a closer look is needed
            finite = torch.isfinite(chunk)
            nonfinite += chunk.numel() - int(finite.sum())
            length = float(torch.linalg.vector_norm(torch.where(finite, chunk, 0.0).double()))
        squares += length**2
    places = _places(flat.numel(), kept)
    sample = flat[torch.from_numpy(places)].to(torch.float32) if tensor.is_floating_point() else flat[:0]
    return TensorPortrait(
        tuple(tensor.shape),
        str(tensor.dtype).removeprefix("torch."),
        flat.numel(),
        tensor.is_floating_point(),
        digest_of(flat),
        squares**0.5,
        nonfinite,
        sample.to(torch.float32).numpy(),
    )


@cache
def _places(size: int, kept: int) -> NDArray[np.int64]:
    # Drawn, not evenly spaced: equal distances would meet one column of a matrix again and again.
    if size <= kept:
        return np.arange(size)
    return np.sort(np.random.default_rng(size).integers(0, size, kept))


def digest_of(flat: Tensor) -> str:
    """Hash all bytes of a flat, contiguous tensor.

    Returns:
        Hexadecimal digits.
    """
    state = hashlib.blake2b(digest_size=16)
    if flat.numel():
        # A view of the bytes: types such as bfloat16 are unknown to numpy.
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()


def without_wrappers(name: str) -> str:
    """Leave out what compilation and parallel wrappers put into a parameter's name.

    Returns:
        The name in the model itself.
    """
    return _WRAPPERS.sub("", name)


def _optimizer(raw: RawOptimizer) -> OptimizerPortrait:
    steps = [count for one in raw.state.values() if (count := _count(one.get("step"))) is not None]
    steps += [count for group in raw.groups if (count := _count(group.get("step"))) is not None]
    rates = [group.get("lr") for group in raw.groups]
    moments = {}
    for key, state in raw.state.items():
        moment = _moment(state)
        if moment is not None:
            moments[_WRAPPERS.sub("", str(key))] = moment
    return OptimizerPortrait(
        max(steps, default=None),
        tuple(float(rate) for rate in rates if isinstance(rate, int | float | Tensor)),
        moments,
        raw.names,
    )


def _moment(state: Mapping[str, Any]) -> Moment | None:
    for key in _SECOND:
        tensor = state.get(key)
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel():
            flat = tensor.detach().contiguous().reshape(-1)
            kind = str(tensor.dtype).removeprefix("torch.")
            return Moment(tuple(tensor.shape), kind, digest_of(flat), not bool(flat.any()))
    return None


def _count(step: Any) -> int | None:
    try:
        return None if step is None else int(step)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
