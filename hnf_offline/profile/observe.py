"""Watch a forward pass: attention scores, norm inputs, residual stream, activations, of any module, without knowing it.

Every softmax over keys is seen where all attention implementations meet: as an operation below autograd. Under
the math kernel, scaled-dot-product attention ends there too. Which module it belongs to is read off the stack of
modules that are running.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hnf_offline.run.model.layers import blocks_of, centres, is_norm

#: Called as report(path, kind, observations).
Reporter = Callable[[str, str, dict[str, Tensor]], None]

_SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)
#: Activation functions that are called as such, not as a module. (A tanh may be a piece of a GELU: not taken.)
_GATES = (torch.ops.aten.relu.default, torch.ops.aten.gelu.default, torch.ops.aten.silu.default)
#: Classes of activation functions, of torch and transformers: units that are on or off, and bounded ones.
_GATE_CLASS = re.compile(r"(relu|gelu|silu|swish|mish)", re.IGNORECASE)
_BOUNDED_CLASS = re.compile(r"^(Tanh|Sigmoid)$")
#: Tokens that two blocks' outputs are compared on.
COMPARED_TOKENS = 512
#: Fewer tokens say nothing of similarity.
_FEWEST_TOKENS = 8


class _OperationWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports the input of every softmax over the last of at least three dimensions, and functional activations."""

    def __init__(self, running: list[str], functions: frozenset[str], report: Reporter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.running = running
        self.functions = functions
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
        result = func(*args, **(kwargs or {}))
        if func in _GATES and self.running[-1] not in self.functions:
            path = f"{self.running[-1]}.activation".lstrip(".")
            self.report(path, "mlp", _gate(args[0], result))
        return result


def _gate(preactivation: Tensor, output: Tensor) -> dict[str, Tensor]:
    return {"preactivation": preactivation, "activation": output, "gate_output": output}


def _open(logits: Tensor) -> Tensor:
    """Some libraries mask by adding the dtype's most negative number; read that as minus infinity."""
    return logits.masked_fill(logits <= torch.finfo(logits.dtype).min / 2, float("-inf"))


@contextmanager
def observing(module: nn.Module, report: Reporter) -> Iterator[None]:
    """Report what passes through a module while the context is open.

    Kinds reported: "softmax" with `attention_logits`, "norm" with `norm_scale`, "block" with `residual_stream` and
    `activation`, from the second block on also `residual_before`, `stream` and `stream_before`; "mlp" with
    `activation`, and for units that are on or off `preactivation` and `gate_output`, for bounded ones `bounded_output`.

    Yields:
        Nothing; call the module inside.
    """

    def aside(path: str, kind: str, observations: dict[str, Tensor]) -> None:
        # What is computed of an observation is no part of the forward pass: nobody need watch it.
        with _disable_current_modes():
            report(path, kind, observations)

    running: list[str] = [""]
    blocks = set(blocks_of(module))
    functions = frozenset(path for path, part in module.named_modules() if _is_function(part))
    before: list[Tensor] = []
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(_enter(path, running, aside)))
        handles.append(
            part.register_forward_hook(
                _leave(path, before if path in blocks else None, running, aside), always_call=True
            )
        )
    # In eval mode torch's encoder layers would take one fused kernel for everything and show nothing.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _OperationWatcher(running, functions, report):
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


def _is_function(part: nn.Module) -> bool:
    """Whether a module is an activation function: by its class, and nothing inside it."""
    name = type(part).__name__
    leaf = next(part.children(), None) is None
    return leaf and (_GATE_CLASS.search(name) is not None or _BOUNDED_CLASS.match(name) is not None)


def _leave(
    path: str, before: list[Tensor] | None, running: list[str], report: Reporter
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """Make the hook that runs after a module.

    Args:
        path: the module's.
        before: of a block: holds the output of the block before; None for everything else.
        running: the stack of modules that are running.
        report: called with what is seen.

    Returns:
        The hook.
    """

    def hook(part: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop()
        stream = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(stream, Tensor):
            return
        stream = stream.detach()
        if before is not None:
            report(path, "block", _block(stream, before))
            before[:] = [stream]
        elif _is_function(part) and arguments and isinstance(arguments[0], Tensor):
            name = type(part).__name__
            if _BOUNDED_CLASS.match(name):
                bounded = 2 * stream - 1 if name == "Sigmoid" else stream
                report(path, "mlp", {"activation": stream, "bounded_output": bounded})
            else:
                report(path, "mlp", _gate(arguments[0].detach(), stream))

    return hook


def _block(stream: Tensor, before: list[Tensor]) -> dict[str, Tensor]:
    seen = {"residual_stream": stream, "activation": stream}
    if not before or before[0].shape != stream.shape or stream.ndim != 3:
        return seen
    seen["residual_before"] = before[0]
    tokens = stream.shape[1]
    if tokens >= _FEWEST_TOKENS:
        stride = -(-tokens // COMPARED_TOKENS)
        seen |= {"stream": stream[:, ::stride], "stream_before": before[0][:, ::stride]}
    return seen
