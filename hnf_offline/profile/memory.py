"""How many rows go through the model at once: measured on one row, held against what one training gradient takes.

Whoever trains a model has the memory of one gradient of its batch, so that is what curvature may take, vectors
included; and never more than a share of the memory that is free.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.stopping import ACCURACIES
from hnf_offline.run.model.frozen import frozen_weights
from hnf_offline.run.model.loss import evaluate

#: Second-derivative graphs hold about this many times what one row saves under the math kernel, products included:
#: 2.9 to 4.4 as measured on five decoders (built-in, GPT-2, Llama).
DOUBLE_BACKWARD = 4
#: Rows of the whole model's Krylov basis, for the 10 to 13 products that it takes as a rule; elsewhere, as at
#: `certified`, as many as the rule allows.
_BASIS: Mapping[str, int] = {"screen": 16, "standard": 16}
#: Vectors of the model's size that are held beside it: gradient, step metric, images.
_BESIDE_BASIS = 6
#: The same while layers are solved: their results and starts, raw and scaled, and the bases of one block.
VECTORS_OF_ALL_LAYERS = 15
#: Vectors that one layer holds while it is solved, raw and scaled: eight of a basis and one image each.
LAYER_VECTORS = 18
#: What graphs may take in any case: below, a device is not busy with few rows.
FREE_FOR_GRAPHS = 32 << 20
#: Changed copies that go side by side: more gain nothing (measured from 1 to 16), and memory they may take in any case.
MOST_COPIES, FREE_FOR_COPIES = 8, 64 << 20
#: Share of the free memory that a profile may take.
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How to cut the replayed rows.

    Attributes:
        rows: rows a micro-batch.
        keep_graphs: whether the graphs of all micro-batches may be kept.
        peak_bytes: estimated peak, weights and Lanczos vectors included.
        lot_bytes: bytes of parameters whose layers may step together where graphs are not kept.
    """

    rows: int
    keep_graphs: bool
    peak_bytes: int
    lot_bytes: int = 0

    @property
    def forward_rows(self) -> int:
        """Rows a micro-batch where no second derivatives are taken: what they keep is what graphs may take."""
        return self.rows * DOUBLE_BACKWARD


def saved_bytes(module: nn.Module, tokens: Tensor, labels: Tensor | None, *, plain: bool = True) -> int:
    """Measure what one forward pass of some rows keeps for its backward pass.

    Args:
        module: in eval mode.
        tokens: [rows, length].
        labels: of the rows, None where they are the tokens.
        plain: under the attention kernel that has second derivatives; else under the one that training takes.

    Returns:
        Bytes of all saved tensors, weights excluded, each storage counted once.
    """
    weights = chain(module.parameters(), frozen_weights(module))
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that keeps its own output with its history is never freed

    kernel = sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), kernel:
        outcome = evaluate(module, tokens, labels)
        total = sum(storages.values())
        del outcome
    return total


def free_bytes(device: torch.device) -> int:
    """Ask for the memory that is free now.

    Returns:
        Bytes; 4 GiB where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def plan_memory(
    row_bytes: int,
    rows: int,
    parameter_bytes: int,
    free: int,
    *,
    ordinary_bytes: int | None = None,
    accuracy: str = "standard",
    batch: int | None = None,
) -> MemoryPlan:
    """Decide how many rows go together and whether graphs are kept.

    Graphs and vectors together may take what one gradient of all rows takes. Where vectors alone take as much (large
    models, few rows), graphs may take half of what that gradient saves.

    Args:
        row_bytes: what one row saves in a forward pass under the math kernel.
        rows: rows to replay.
        parameter_bytes: size of the weights in the replay's dtype.
        free: bytes that are free.
        ordinary_bytes: what one row saves in training, None where it is no less.
        accuracy: decides how many vectors are held.
        batch: rows that layers are replayed on, None for all.

    Returns:
        The plan; at least one row a micro-batch, whatever the memory.
    """
    ordinary = row_bytes if ordinary_bytes is None else ordinary_bytes
    saved = ordinary * rows
    basis = _BASIS.get(accuracy, ACCURACIES[accuracy].maximum)
    vectors = parameter_bytes * (basis + _BESIDE_BASIS)
    fixed = parameter_bytes + vectors
    room = max(saved + parameter_bytes - vectors, saved // 2, FREE_FOR_GRAPHS)
    room = max(0, min(room, int(SHARE * free) - fixed))
    graph = max(1, row_bytes) * DOUBLE_BACKWARD
    together = max(1, min(rows, room // graph))
    lot = min(saved, int(SHARE * free)) // 4 // LAYER_VECTORS
    # Where all rows go together, a graph that is kept takes no more than one that is built again.
    copies = copies_together(row_bytes, together, rows if batch is None else batch)
    layers = parameter_bytes * VECTORS_OF_ALL_LAYERS + copies * together * ordinary
    peak = parameter_bytes + max(vectors + graph * together, layers)
    return MemoryPlan(together, together == rows, peak, lot)


def copies_together(row_bytes: int, rows: int, batch: int) -> int:
    """Decide how many changed copies of a micro-batch go through the model side by side.

    Together they may keep what one ordinary gradient of the batch keeps, or a little where even that is small: side
    by side they are faster only as long as the device is not busy with one.

    Args:
        row_bytes: what one row saves in an ordinary forward pass; 0 where that is not known.
        rows: rows of a micro-batch.
        batch: rows of the batch.

    Returns:
        At least 1, at most `MOST_COPIES`.
    """
    budget = max(FREE_FOR_COPIES, row_bytes * batch)
    return max(1, min(MOST_COPIES, budget // max(1, row_bytes * rows)))
