"""The order of a forward pass: which blocks are called one after another, and where each layer is first used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.run.model.layers import Layer


@dataclass(frozen=True, slots=True)
class CallOrder:
    """Blocks in the order of their calls, and the place of every parameter in it.

    Attributes:
        blocks: paths of blocks that are called exactly once a forward pass, one after another; empty where no list
            of blocks is called so, and every restart begins at the beginning.
        first_use: parameter name -> number of blocks that are finished when it is first used.
        inside: parameter name -> the block all of whose uses lie in it, None where a use lies elsewhere.
        row_axes: for each block, the batch axis of every tensor that it returns; None for one without.
        couples_rows: whether rows of a batch know of each other (BatchNorm, routers of experts, outputs whose batch
            axis is not clear), so that copies must not be joined.
    """

    blocks: tuple[str, ...]
    first_use: Mapping[str, int]
    inside: Mapping[str, int | None]
    row_axes: tuple[tuple[int | None, ...], ...]
    couples_rows: bool

    def stage(self, layer: Layer) -> int:
        """Say how many blocks can be skipped when a layer is changed.

        Returns:
            A number from 0 to the number of blocks.
        """
        return min(self.first_use[part.parameter] for part in layer.parts)

    def block_of(self, layer: Layer) -> int | None:
        """Say in which block a layer lies with all its uses.

        Returns:
            The block's number, None for layers outside and for weights that several places share.
        """
        found = {self.inside[part.parameter] for part in layer.parts}
        return found.pop() if len(found) == 1 else None


def call_order(module: nn.Module, forward: Callable[[int], object]) -> CallOrder:
    """Watch two forward passes: of some rows, and of the same rows twice, which shows where the batch axes are.

    Args:
        module: any module.
        forward: calls it once, with its rows repeated that many times.

    Returns:
        What was seen. Lists of blocks one of which is called twice or not at all, or within another, are no blocks.
    """
    candidates = _candidates(module)
    calls: list[str] = []
    #: Path -> how many candidates were finished when the module was first called.
    seen: dict[str, int] = {}
    running: list[str] = []
    finished: list[str] = []
    overlapping: set[str] = set()
    shapes: dict[str, list[list[torch.Size]]] = {}

    def enter(path: str) -> Callable[[nn.Module, Any], None]:
        def hook(part: nn.Module, arguments: Any) -> None:
            if path in candidates:
                calls.append(path)
                overlapping.update((path, *running) if running else ())
                running.append(path)
            seen.setdefault(path, len(finished))

        return hook

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, arguments: Any, output: Any) -> None:
            running.remove(path)
            finished.append(path)
            shapes.setdefault(path, []).append([leaf.shape for leaf in tensors_of(output)])

        return hook

    handles = [part.register_forward_pre_hook(enter(path)) for path, part in module.named_modules()]
    handles += [
        part.register_forward_hook(leave(path), always_call=True)
        for path, part in module.named_modules()
        if path in candidates
    ]
    try:
        with torch.no_grad(), unfused():
            forward(1)
            calls_of_one = tuple(calls)
            forward(2)
    finally:
        for handle in handles:
            handle.remove()
    spoiled = overlapping | {path for path in candidates if calls_of_one.count(path) != 1}
    spoiled |= {path for path in candidates if calls.count(path) != 2}
    lists = {path.rpartition(".")[0] for path in spoiled}
    blocks = tuple(path for path in calls_of_one if path.rpartition(".")[0] not in lists)
    axes = [_row_axes(*shapes[path]) for path in blocks]
    unclear = None in axes or any(_couples_rows(part) for part in module.modules())
    return _order(module, blocks, calls_of_one, seen, tuple(one or () for one in axes), unclear)


def _row_axes(once: list[torch.Size], twice: list[torch.Size]) -> tuple[int | None, ...] | None:
    # The axis that is twice as long where the rows are given twice; None where that is not one axis a tensor.
    if len(once) != len(twice):
        return None
    axes: list[int | None] = []
    for short, long in zip(once, twice, strict=True):
        if len(short) != len(long):
            return None
        longer = [
            axis for axis, (before, after) in enumerate(zip(short, long, strict=True)) if before != after
        ]
        if len(longer) > 1 or any(long[axis] != 2 * short[axis] for axis in longer):
            return None
        axes.append(longer[0] if longer else None)
    return tuple(axes)


def _order(
    module: nn.Module,
    blocks: tuple[str, ...],
    calls: tuple[str, ...],
    seen: Mapping[str, int],
    row_axes: tuple[tuple[int | None, ...], ...],
    couples_rows: bool,
) -> CallOrder:
    number = {path: place for place, path in enumerate(blocks)}
    first_use: dict[str, int] = {}
    inside: dict[str, int | None] = {}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for path, part in module.named_modules(remove_duplicate=False):
        within = next((number[block] for block in blocks if f"{path}.".startswith(f"{block}.")), None)
        if within is not None:
            place = within
        elif path in seen:
            # Candidates that turned out to be no blocks do not count as finished.
            done = calls[: seen[path]]
            place = sum(block in number for block in done)
        else:
            place = 0
        for parameter in part.parameters(recurse=False):
            name = names[id(parameter)]
            first_use[name] = min(first_use.get(name, place), place)
            inside[name] = within if inside.get(name, within) == within else None
    return CallOrder(blocks, first_use, inside, row_axes, couples_rows)


def _candidates(module: nn.Module) -> set[str]:
    # Items of lists of like modules, the outermost ones; a list within an item is part of that item.
    found: set[str] = set()
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential):
            continue
        items = [(f"{path}.{name}".lstrip("."), item) for name, item in part.named_children()]
        alike = len({type(item) for _, item in items}) == 1
        deep = all(any(True for _ in item.children()) for _, item in items)
        nested = any(path.startswith(f"{block}.") for block in found)
        if items and alike and deep and not nested:
            found.update(name for name, _ in items)
    return found


def _couples_rows(part: nn.Module) -> bool:
    name = type(part).__name__.lower()
    return "moe" in name or "router" in name or name.endswith("experts") or "batchnorm" in name


@contextmanager
def unfused() -> Iterator[None]:
    """Keep torch's encoder layers from taking one kernel for everything, which would hide their parts.

    Yields:
        Nothing.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Walk the tensors of what a module returned.

    Yields:
        Tensors in order.
    """
    leaves, _ = torch.utils._pytree.tree_flatten(value)
    yield from (leaf for leaf in leaves if isinstance(leaf, Tensor))
