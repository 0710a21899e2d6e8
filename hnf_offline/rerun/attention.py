"""The largest attention logit of every head, seen during a training step's own forward pass.

The pass keeps its attention kernel and its gradients: scores are recomputed beside it from the queries and keys
that the kernel is given, below autograd, where all implementations of attention meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")
#: Every fused kernel of scaled_dot_product_attention begins with this.
_FUSED = "aten::_scaled_dot_product_"


@contextmanager
def watching_logits(module: nn.Module, largest: dict[str, Tensor]) -> Iterator[None]:
    """Collect the largest attention logits of what the module computes meanwhile.

    Args:
        module: any module.
        largest: module path -> largest logit of every query head, [heads]; filled, or raised where the path is
            in it already.

    Yields:
        Nothing; call the module inside.
    """
    running: list[str] = [""]
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(_enter(path, running)))
        handles.append(part.register_forward_hook(_leave(running), always_call=True))

    def see(heads: Tensor) -> None:
        path = running[-1]
        largest[path] = torch.maximum(largest[path], heads) if path in largest else heads

    try:
        with _Watcher(see):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports each head's largest logit of every softmax over keys and every fused attention kernel."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.see = see

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name: str = func._schema.name
        if name in _SOFTMAX and args[0].ndim == 4 and args[1] in {-1, 3}:
            scores = args[0]
            self.see(_largest(scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 2, -torch.inf)))
        elif name.startswith(_FUSED) and "backward" not in name:
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.see(_largest(_scores(given)))
        return func(*args, **(kwargs or {}))


def _scores(given: dict[str, Any]) -> Tensor:
    """Q K^T scaled, minus infinity where masked; what an additive mask adds besides is left out."""
    query, key = given["query"].float(), given["key"].float()
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = given.get("scale")
    scores: Tensor = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    mask = given.get("attn_mask")
    mask = given.get("attn_bias") if mask is None else mask
    if mask is not None:
        closed = ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
        scores = scores.masked_fill(closed[..., : scores.shape[-1]], -torch.inf)
    if given.get("is_causal"):
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def _largest(scores: Tensor) -> Tensor:
    return scores.amax(dim=(0, 2, 3)).float()


def _enter(path: str, running: list[str]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(part: nn.Module, arguments: tuple[Any, ...]) -> None:
        running.append(path)

    return hook


def _leave(running: list[str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(part: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop()

    return hook
