"""Watch a forward pass: attention scores, norm inputs, residual stream, of any module, without knowing it.

Every softmax over keys is seen where all attention implementations meet: as an operation below autograd. Under
the math kernel, scaled-dot-product attention ends there too. Which module it belongs to is read off the stack of
modules that are running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from hnf_offline.run.model.layers import blocks_of, centres, is_norm

#: Called as report(path, kind, observations).
Reporter = Callable[[str, str, dict[str, Tensor]], None]

_SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


class _SoftmaxWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports the input of every softmax over the last of at least three dimensions."""

    def __init__(self, running: list[str], report: Reporter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.report = report

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _SOFTMAX:
            scores, dimension = args[0], args[1]
            if scores.ndim >= 3 and dimension in {-1, scores.ndim - 1}:
                heads = scores if scores.ndim >= 4 else scores.unsqueeze(0)
                logits = _open(heads.flatten(0, heads.ndim - 4) if heads.ndim > 4 else heads)
                self.report(
                    f"{self.running[-1]}.softmax".lstrip("."), "softmax", {"attention_logits": logits}
                )
        return func(*args, **(kwargs or {}))


def _open(logits: Tensor) -> Tensor:
    """Some libraries mask by adding the dtype's most negative number; read that as minus infinity."""
    return logits.masked_fill(logits <= torch.finfo(logits.dtype).min / 2, float("-inf"))


@contextmanager
def observing(module: nn.Module, report: Reporter) -> Iterator[None]:
    """Report what passes through a module while the context is open.

    Kinds reported: "softmax" with `attention_logits`, "norm" with `norm_scale`, "block" with `residual_stream`.

    Yields:
        Nothing; call the module inside.
    """
    running: list[str] = [""]
    blocks = set(blocks_of(module))
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(_enter(path, running, report)))
        handles.append(
            part.register_forward_hook(_leave(path, path in blocks, running, report), always_call=True)
        )
    # In eval mode torch's encoder layers would take one fused kernel for everything and show nothing.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _SoftmaxWatcher(running, report):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def _enter(path: str, running: list[str], report: Reporter) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(part: nn.Module, arguments: tuple[Any, ...]) -> None:
        running.append(path)
        if is_norm(part) and arguments and isinstance(arguments[0], Tensor):
            stream = (
                arguments[0].detach().float() if arguments[0].dtype.itemsize < 4 else arguments[0].detach()
            )
            if centres(part):
                stream = stream - stream.mean(dim=-1, keepdim=True)
            report(path, "norm", {"norm_scale": stream.square().mean(dim=-1).sqrt().flatten()})

    return hook


def _leave(
    path: str, is_block: bool, running: list[str], report: Reporter
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(part: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop()
        stream = output[0] if isinstance(output, tuple | list) and output else output
        if is_block and isinstance(stream, Tensor):
            report(path, "block", {"residual_stream": stream.detach()})

    return hook
