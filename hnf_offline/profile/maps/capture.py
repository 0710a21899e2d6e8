"""Watch one replay and keep the calls of blocks, attention modules, MLPs and norms, with everything they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.profile.observe import observing, opened
from hnf_offline.run.model.layers import Layer, blocks_of, is_norm
from hnf_offline.run.model.loss import evaluate

#: Names under which libraries hand the hidden state on.
_STATE_NAMES = ("hidden_states", "hidden_state", "input", "src", "query", "x")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module during a replay.

    Attributes:
        path: module path.
        kind: "norm", "mlp", "attention" or "block".
        module: the module.
        arguments: its positional arguments.
        keywords: its keyword arguments.
        hidden: the hidden state among them, None where none was found.
        given: a copy of that state from before the call, which may have changed it.
        output: what came out first, None where that is no tensor.
    """

    path: str
    kind: str
    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    hidden: Tensor | None
    given: Tensor | None
    output: Tensor | None

    def again(self, state: Tensor) -> Tensor:
        """Call the module once more with another hidden state; masks, positions and the rest as they were.

        Args:
            state: shaped as `hidden`; it takes every place where that was (query, key and value of one state).

        Returns:
            The first tensor that comes out.

        Raises:
            ValueError: if none does.
        """

        def replaced(value: Any) -> Any:
            return state if value is self.hidden else value

        output = first_tensor(
            self.module(
                *map(replaced, self.arguments),
                **{name: replaced(value) for name, value in self.keywords.items()},
            )
        )
        if output is None:
            raise ValueError(f"{self.path} returns no tensor")
        return output


@dataclass(frozen=True, slots=True)
class Captured:
    """What one replay showed.

    Attributes:
        calls: one call a module (its first), in the order in which they ended.
        scores: attention module's path -> scores entering its softmax, [sequences, heads, queries, keys].
    """

    calls: tuple[Call, ...]
    scores: Mapping[str, Tensor]


def first_tensor(output: Any) -> Tensor | None:
    """Find the hidden state in what a module returned.

    Returns:
        The output itself, or its first tensor; None where there is none.
    """
    if isinstance(output, Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, tuple | list | Mapping):
        return next((item for item in items if isinstance(item, Tensor)), None)
    return None


def capture(module: nn.Module, layers: tuple[Layer, ...], tokens: Tensor, labels: Tensor | None) -> Captured:
    """Replay rows once and keep the calls whose maps are measured.

    An attention module is one that runs a softmax over keys; an MLP is the innermost module that holds layers of the
    kinds "mlp_up" and "mlp_down" and no attention.

    Args:
        module: in eval mode.
        layers: its layers.
        tokens: [sequences, length], int64.
        labels: the rows' labels, None where they are the tokens.

    Returns:
        Calls and attention scores.
    """
    blocks = set(blocks_of(module))
    composed = {path for path, part in module.named_modules() if any(True for _ in part.children())}
    watched = blocks | composed | {path for path, part in module.named_modules() if is_norm(part)}
    watched.discard("")
    calls: dict[str, Call] = {}
    scores: dict[str, Tensor] = {}
    given: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(_part: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if path not in calls:
                hidden = hidden_state(arguments, keywords)
                given[path] = hidden, None if hidden is None else hidden.detach().clone()

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(part: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if path not in calls:
                came_out = first_tensor(output)
                copied = None if came_out is None else came_out.detach().clone()
                calls[path] = Call(path, "", part, arguments, keywords, *given.pop(path), copied)

        return hook

    def report(path: str, kind: str, observations: Mapping[str, Tensor]) -> None:
        if kind == "softmax":
            owner = path.removesuffix("softmax").removesuffix(".")
            scores.setdefault(owner, opened(observations["attention_scores"]))

    handles = []
    for path in watched:
        part = module.get_submodule(path)
        handles.append(part.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(part.register_forward_hook(after(path), with_kwargs=True))
    try:
        with observing(module, report, whole_scores=True):
            evaluate(module, tokens, labels)
    finally:
        for handle in handles:
            handle.remove()
    mlps = _mlps(set(calls) & composed - blocks, set(scores), layers)
    attention = {_owner(path, set(calls) & composed - blocks) for path in scores} - {""}
    kinds = {path: "norm" for path in calls if is_norm(module.get_submodule(path))}
    kinds |= dict.fromkeys(mlps, "mlp") | dict.fromkeys(attention, "attention")
    kinds |= {path: "block" for path in blocks if path in calls}
    kept = tuple(replace(call, kind=kinds[path]) for path, call in calls.items() if path in kinds)
    return Captured(kept, scores)


def hidden_state(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """The first floating tensor that can be one: by position, then by the usual names, then any keyword."""
    named = [keywords[name] for name in _STATE_NAMES if name in keywords]
    for value in (*arguments, *named, *keywords.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            return value
    return None


def _owner(path: str, candidates: set[str]) -> str:
    """The innermost candidate that holds a module or is it; "" where there is none."""
    while path and path not in candidates:
        path = path.rpartition(".")[0]
    return path


def _mlps(candidates: set[str], attention: set[str], layers: tuple[Layer, ...]) -> set[str]:
    def kinds_within(path: str) -> set[str]:
        return {layer.kind for layer in layers if layer.path.startswith(f"{path}.")}

    fitting = {
        path
        for path in candidates
        if {"mlp_up", "mlp_down"} <= kinds_within(path)
        and not any(one == path or one.startswith(f"{path}.") for one in attention)
    }
    return {path for path in fitting if not any(other.startswith(f"{path}.") for other in fitting)}


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Let a module be differentiated in its hidden states alone, twice, while the context is open.

    Parameters are held fixed (no graph is kept for them), and torch's fused encoder kernel is off.

    Yields:
        Nothing.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fused)
