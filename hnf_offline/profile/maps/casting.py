"""Replay with all parameters cast to bfloat16 and float16: what reduced precision really does to these weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.effort import spend
from hnf_offline.profile.exhaustion import is_out_of_memory
from hnf_offline.profile.maps.capture import first_tensor
from hnf_offline.profile.maps.measure import SEQUENCES
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.registry import computable
from hnf_offline.run.model.frozen import frozen_weights
from hnf_offline.run.model.layers import blocks_of, kind_of
from hnf_offline.run.model.loss import evaluate
from hnf_offline.table import Row

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_rows(subject: Subject) -> list[Row]:
    """Measure what casting does to the loss of all rows and to every layer's output on the first two.

    One forward of all rows in the replay's own precision and one in each reduced precision.

    Returns:
        Rows of the `precision` family; the loss change's error bar is its range over the halves.

    Raises:
        Exception: if memory runs out; the caller tries again with fewer rows at a time.
    """
    losses, outputs = _replayed(subject, subject.halves)
    rows: list[Row] = []
    failed = 0
    for name, dtype in _PRECISIONS.items():
        try:
            cast_losses, cast_outputs = _replayed_in(subject, dtype)
        except Exception as error:  # no kernel for this precision here, or a module that insists on its own
            if is_out_of_memory(error):
                raise
            failed += 1
            continue
        rows += _loss_rows(subject, f"cast_loss_{name}", losses, cast_losses)
        for path, reference in outputs.items():
            if path in cast_outputs:
                seen = {"reference_output": reference, f"cast_output_{name}": cast_outputs[path]}
                rows += _output_rows(subject, path, seen)
    if failed:
        entry = computable(frozenset({"failed_precisions"}), "full")[0]
        rows.append(Row(subject.step, "", "model", -1, entry.name, float(entry.function(failed))))
    return rows


def _replayed_in(subject: Subject, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    try:
        with cast(subject.module, dtype, buffers=False):
            return _replayed(subject, subject.halves)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # Tables of positions kept as buffers meet the weights in products. Where they need not be cast (rotary
        # frequencies), casting them would spoil what mixed precision keeps.
        with cast(subject.module, dtype, buffers=True):
            return _replayed(subject, subject.halves)


@contextmanager
def cast(module: nn.Module, dtype: torch.dtype, *, buffers: bool) -> Iterator[None]:
    """Hold a module's weights in another precision while the context is open; afterwards they are as before.

    Args:
        module: the module.
        dtype: the precision.
        buffers: whether its floating buffers are cast as well.

    Yields:
        Nothing.
    """
    tensors: list[Tensor] = [*module.parameters(), *frozen_weights(module)]
    if buffers:
        tensors += list(module.buffers())
    kept = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point()]
    try:
        for tensor, data in kept:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def _replayed(subject: Subject, batches: Sequence[MicroBatch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of every micro-batch, and every layer's output on the first rows of the first one."""
    module = subject.module
    holders = {name.rpartition(".")[0] for name, _ in module.named_parameters(remove_duplicate=False)} - {""}
    outputs: dict[str, Tensor] = {}
    handles = []

    def keep(path: str) -> Callable[..., None]:
        def hook(_part: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            came_out = first_tensor(output)
            if path not in outputs and came_out is not None and came_out.is_floating_point():
                outputs[path] = came_out.detach()[:SEQUENCES].clone()

        return hook

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole encoder layer shows no layer
    try:
        for path in dict.fromkeys([*blocks_of(module), *sorted(holders)]):
            handles.append(module.get_submodule(path).register_forward_hook(keep(path)))
        losses = []
        with torch.no_grad():
            for batch in batches:
                losses.append(_loss(module, batch))
                spend("forward", len(batch.tokens))
                for handle in handles:
                    handle.remove()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return torch.stack(losses), outputs


def _loss(module: nn.Module, batch: MicroBatch) -> Tensor:
    outcome = evaluate(module, batch.tokens, batch.labels)
    if outcome.logits is None or outcome.targets is None:
        return outcome.loss.float()
    # A loss that is itself rounded to eight bits would hide every change below 2^-8 of it.
    return functional.cross_entropy(outcome.logits.float(), outcome.targets)


def _loss_rows(subject: Subject, name: str, losses: Tensor, cast_losses: Tensor) -> list[Row]:
    weights = torch.tensor([batch.weight for batch in subject.halves], dtype=torch.float64)
    rows: list[Row] = []
    for entry in computable(frozenset({"reference_loss", name}), "full"):
        changes = entry.function(**{"reference_loss": losses, name: cast_losses}).to("cpu", torch.float64)
        value = float((weights / weights.sum() * changes).sum())
        low, high = (float(changes.min()), float(changes.max())) if len(changes) > 1 else (None, None)
        rows.append(Row(subject.step, "", "model", -1, entry.name, value, low, high, True, subject.name))
    return rows


def _output_rows(subject: Subject, path: str, seen: dict[str, Tensor]) -> list[Row]:
    wide = {name: value.float() for name, value in seen.items()}
    is_block = path in blocks_of(subject.module)
    kind = "block" if is_block else kind_of(path, subject.module.get_submodule(path))
    inside = [one.depth for one in subject.layers if one.path == path or one.path.startswith(f"{path}.")]
    # A head that shares the embedding's weight is no layer of its own, and stands last.
    depth = max(inside, default=max((one.depth for one in subject.layers), default=0))
    rows: list[Row] = []
    for entry in computable(frozenset(wide), "full"):
        value = float(entry.function(**{name: wide[name] for name in entry.inputs}))
        if entry.unit != "share" or value > 0:
            rows.append(Row(subject.step, path, kind, depth, entry.name, value, batch=subject.name))
    return rows
