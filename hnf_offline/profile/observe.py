"""Watch a forward pass: attention, norm inputs, residual stream, activations, of any module, without knowing it.

Calls of torch's functions are seen as they are made, which costs little. Scaled-dot-product attention is computed here
and read on the way. What those functions are made of that are written in Python is watched as operations below
autograd, where all implementations meet; under the math kernel attention that is not computed here ends there too.
Which module a softmax belongs to is read off the stack of modules that are running. What a scripted function does
inside is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from hnf_offline.profile.watched_attention import attend
from hnf_offline.quantities.attention import AttentionRows
from hnf_offline.run.model.layers import blocks_of, centres, is_norm

#: Called as report(path, kind, observations).
Reporter = Callable[[str, str, dict[str, Any]], None]

_SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)
#: Activation functions that are called as such, not as a module. (A tanh may be a piece of a GELU: not taken.)
_GATES = (torch.ops.aten.relu.default, torch.ops.aten.gelu.default, torch.ops.aten.silu.default)
#: The calls that end in these, where they are not written in Python.
_SOFTMAX_CALLS = frozenset({torch.softmax, torch.special.softmax, torch.Tensor.softmax})
_GATE_CALLS = frozenset({torch.relu, torch.Tensor.relu, functional.gelu})
#: What activation functions that are modules call; their hooks tell of them.
_ACTIVATIONS = _GATE_CALLS | {functional.relu, functional.silu, functional.mish}
#: Calls written in Python that hold no softmax over keys.
_SIMPLE_CALLS = frozenset({
    functional.embedding,
    functional.layer_norm,
    functional.rms_norm,
    functional.dropout,
    functional.cross_entropy,
})
#: Classes of activation functions, of torch and transformers: units that are on or off, and bounded ones.
_GATE_CLASS = re.compile(r"(relu|gelu|silu|swish|mish)", re.IGNORECASE)
_BOUNDED_CLASS = re.compile(r"^(Tanh|Sigmoid)$")
#: Modules in which nothing is to be seen; their subclasses may do more.
_PLAIN = frozenset({nn.Linear, nn.Embedding, nn.Dropout, nn.Identity, nn.Conv1d, nn.Conv2d})
#: Tokens that two blocks' outputs are compared on.
COMPARED_TOKENS = 512
#: Fewer tokens say nothing of similarity.
_FEWEST_TOKENS = 8


class _OperationWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports every softmax over the last of at least three dimensions, and functional activations."""

    def __init__(self, sight: _Sight) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sight = sight

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX:
            self.sight.softmax(args[0], args[1], result)
        elif func in _GATES:
            self.sight.gate(args[0], result)
        return result


class _CallWatcher(TorchFunctionMode):
    """Reports the same of calls from Python, which are fewer than operations and cheaper to watch."""

    def __init__(self, sight: _Sight) -> None:
        super().__init__()
        self.sight = sight

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            found = attend(*args, **keywords)
            if found is not None:
                self.sight.rows(found[1])
                return found[0]
        elif (func in _ACTIVATIONS and self.sight.in_function()) or (
            func not in _SOFTMAX_CALLS
            and func not in _GATE_CALLS
            and (func in _SIMPLE_CALLS or not isinstance(func, FunctionType))
        ):
            return func(*args, **keywords)
        # Written in Python, or made of several operations: what is inside is seen below.
        with _OperationWatcher(self.sight):
            return func(*args, **keywords)


class _Sight:
    """What watchers report, and where."""

    def __init__(self, running: list[str], functions: frozenset[str], report: Reporter) -> None:
        self._running = running
        self._functions = functions
        self._report = report

    def softmax(self, scores: Tensor, dimension: int, attention: Tensor) -> None:
        """See a softmax; over keys if it runs over the last of at least three dimensions."""
        if scores.ndim >= 3 and dimension in {-1, scores.ndim - 1}:
            seen = {"attention_scores": _by_head(scores), "attention": _by_head(attention)}
            self._report(self._inside("softmax"), "softmax", seen)

    def rows(self, rows: AttentionRows) -> None:
        """See attention that was read already."""
        self._report(self._inside("softmax"), "softmax", {"attention_rows": rows})

    def gate(self, preactivation: Tensor, output: Tensor) -> None:
        """See an activation function; one that is a module is reported by its hook."""
        if not self.in_function():
            self._report(self._inside("activation"), "mlp", _gate(preactivation, output))

    def in_function(self) -> bool:
        """Whether an activation function that is a module is running."""
        return self._running[-1] in self._functions

    def _inside(self, name: str) -> str:
        return f"{self._running[-1]}.{name}".lstrip(".")


def _gate(preactivation: Tensor, output: Tensor) -> dict[str, Tensor]:
    return {"preactivation": preactivation, "activation": output, "gate_output": output}


def _by_head(scores: Tensor) -> Tensor:
    """Give scores or attention as [batch, heads, queries, keys]."""
    heads = scores if scores.ndim >= 4 else scores.unsqueeze(0)
    return heads.flatten(0, heads.ndim - 4) if heads.ndim > 4 else heads


def opened(scores: Tensor) -> Tensor:
    """Some libraries mask by adding the dtype's most negative number; read that as minus infinity.

    Returns:
        The scores.
    """
    return scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 2, float("-inf"))


@contextmanager
def observing(module: nn.Module, report: Reporter, *, whole_scores: bool = False) -> Iterator[None]:
    """Report what passes through a module while the context is open.

    Kinds reported: "softmax" with `attention_rows`, or with `attention_scores` and `attention`; "norm" with
    `norm_scale`; "block" with `residual_stream` and `activation`, from the second block on also `residual_before`,
    `stream` and `stream_before`; "mlp" with `activation`, and for units that are on or off `preactivation` and
    `gate_output`, for bounded ones `bounded_output`.

    Args:
        module: the module.
        report: called with what is seen.
        whole_scores: whether `attention_scores` are wanted at every softmax, all at once.

    Yields:
        Nothing; call the module inside.
    """

    def aside(path: str, kind: str, observations: dict[str, Any]) -> None:
        # What is computed of an observation is no part of the forward pass: nobody need watch it.
        operations = _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()
        with operations, torch._C.DisableTorchFunction():
            report(path, kind, observations)

    running: list[str] = [""]
    blocks = set(blocks_of(module))
    watched = [(path, part) for path, part in module.named_modules() if type(part) not in _PLAIN]
    functions = frozenset(path for path, part in watched if _is_function(part))
    before: list[Tensor] = []
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for path, part in watched:
        leave = _leave(path, before if path in blocks else None, path in functions, running, aside)
        handles.append(part.register_forward_pre_hook(_enter(path, is_norm(part), running, aside)))
        handles.append(part.register_forward_hook(leave, always_call=True))
    # In eval mode torch's encoder layers would take one fused kernel for everything and show nothing.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        sight = _Sight(running, functions, aside)
        watcher = _OperationWatcher(sight) if whole_scores else _CallWatcher(sight)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), watcher:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def _enter(
    path: str, norm: bool, running: list[str], report: Reporter
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(part: nn.Module, arguments: tuple[Any, ...]) -> None:
        running.append(path)
        if norm and arguments and isinstance(arguments[0], Tensor):
            stream = (
                arguments[0].detach().float() if arguments[0].dtype.itemsize < 4 else arguments[0].detach()
            )
            if centres(part):
                stream = stream - stream.mean(dim=-1, keepdim=True)
            scale = torch.linalg.vector_norm(stream, dim=-1).flatten() / stream.shape[-1] ** 0.5
            report(path, "norm", {"norm_scale": scale})

    return hook


def _is_function(part: nn.Module) -> bool:
    """Whether a module is an activation function: by its class, and nothing inside it."""
    name = type(part).__name__
    leaf = next(part.children(), None) is None
    return leaf and (_GATE_CLASS.search(name) is not None or _BOUNDED_CLASS.match(name) is not None)


def _leave(
    path: str, before: list[Tensor] | None, function: bool, running: list[str], report: Reporter
) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """Make the hook that runs after a module.

    Args:
        path: the module's.
        before: of a block: holds the output of the block before; None for everything else.
        function: whether it is an activation function.
        running: the stack of modules that are running.
        report: called with what is seen.

    Returns:
        The hook.
    """

    def hook(part: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop()
        if before is None and not function:
            return
        stream = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(stream, Tensor):
            return
        stream = stream.detach()
        if before is not None:
            report(path, "block", _block(stream, before))
            before[:] = [stream]
        elif arguments and isinstance(arguments[0], Tensor):
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
