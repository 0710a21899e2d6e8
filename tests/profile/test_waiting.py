"""Work on a GPU is queued: whoever asks for a number waits for all of it, so nobody asks once a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.forward import fetched, forward_rows
from hnf_offline.profile.measure import weights_rows
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of

CPU = torch.device("cpu")


@contextmanager
def waits_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the calls that would wait for a GPU, from Python and from within torch.

    What has been fetched with `.cpu()` is on the CPU, and asking it costs nothing: it is not counted.
    """
    counted: Counter[str] = Counter()
    here: set[int] = set()

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}:
                counted[str(func)] += args[0].untyped_storage().data_ptr() not in here
            return func(*args, **(kwargs or {}))

    fetch = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        counted["cpu"] += 1
        copy = fetch(tensor).double()
        here.add(copy.untyped_storage().data_ptr())
        return copy

    with monkeypatch.context() as patch, Dispatch():
        patch.setattr(torch.Tensor, "cpu", cpu)
        yield counted


def subject(layers: int) -> Subject:
    config = GPTConfig(11, 6, layers, 2, 8, mlp_width=12, norm="pre", initial_std=0.3)
    module = GPT(config).initialise(torch.Generator().manual_seed(1)).eval()
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
    batch = ReplayBatch.of(tokens, None, "replay")
    return Subject(7, module, layers_of(module), None, batch.cut(2, CPU), batch.cut(4, CPU), "replay")


def test_the_forward_tier_waits_once_however_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    for layers in (2, 8):
        of = subject(layers)
        with waits_counted(monkeypatch) as counted:
            rows = forward_rows(of)
        assert len(rows) > 10 * layers
        waits.append(counted)
    assert waits[0] == waits[1]
    assert waits[1]["cpu"] == 1
    # Whether positions are left out, which loss is meant: twice a pass, of which there are two.
    assert sum(waits[1].values()) <= 1 + 2 * 2


def test_weights_are_looked_at_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    of = subject(8)
    with torch.no_grad():
        next(of.module.parameters())[0, 0] = torch.nan
        of.module.transformer.h[5].mlp.c_fc.weight[0, 0] = torch.inf
    with waits_counted(monkeypatch) as counted:
        rows = weights_rows(of)
    assert len(rows) == 3
    assert sum(counted.values()) <= 1


def test_what_is_fetched_together_is_what_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in [(), (3,), (2, 4), (0, 5), (1, 1, 1)]]
    tensors.append(torch.tensor([torch.nan, torch.inf, -0.0]))
    for before, after in zip(tensors, fetched(tensors), strict=True):
        assert after.dtype == torch.float64
        assert torch.equal(before.double().nan_to_num(7.0), after.nan_to_num(7.0))
        assert after.shape == before.shape
    assert fetched([]) == []
