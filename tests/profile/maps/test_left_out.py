"""What cannot be measured is counted with its reason, what is not finite is told, and the model stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hnf_offline.profile.maps import map_rows, precision_rows
from hnf_offline.profile.maps import measure as maps_measure
from hnf_offline.profile.maps.measure import few
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.table import Row
from tests.profile.maps.conftest import Mapped

Subjects = Callable[..., Subject]
SETTINGS = ProfileSettings()


class Once(torch.autograd.Function):
    """A kernel with a first derivative and no other, such as fused ones have."""

    @staticmethod
    def forward(context: Any, state: Tensor) -> Tensor:
        return state * 2

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Plain(nn.Module):
    """A block without attention: a linear branch; `spoil` changes what comes out."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda stream: stream) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.spoil = spoil

    def forward(self, stream: Tensor) -> Tensor:
        return self.spoil(stream + self.branch(stream))


class Model(nn.Module):
    """An embedding, blocks and a head; `reshape` changes the stream on its way into the blocks."""

    def __init__(self, *blocks: nn.Module, flat: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 4)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(4, 13)
        self.flat = flat

    def forward(self, input_ids: Tensor) -> Tensor:
        stream = self.embedding(input_ids)
        shape = stream.shape
        stream = stream.flatten(0, 1) if self.flat else stream
        for block in self.blocks:
            stream = block(stream)
        return self.head(stream.reshape(shape))


def reasons(rows: list[Row]) -> dict[str, float]:
    return {row.layer: row.value for row in rows if row.quantity == "map.left_out"}


def test_blocks_that_cannot_be_measured_are_counted_with_their_reason(make_subject: Subjects) -> None:
    calls = torch.zeros(())

    def remembers(stream: Tensor) -> Tensor:
        calls.add_(1)
        return stream * calls

    model = Model(Plain(), Plain(remembers), Plain(Once.apply)).eval()
    rows = map_rows(make_subject(model), SETTINGS)
    found = reasons(rows)
    assert {path: found[path] for path in found if not path.endswith(".mlp")} == {
        "blocks.1": 2,
        "blocks.2": 3,
    }
    # blocks without an MLP of their own, each once
    assert {path for path in found if path.endswith(".mlp")} == {f"blocks.{one}.mlp" for one in range(3)}
    measured = {row.layer for row in rows if row.quantity == "map.sigma_max"}
    assert measured == {"blocks.0"}
    flat = reasons(map_rows(make_subject(Model(Plain(), flat=True).eval()), SETTINGS))
    assert flat["blocks.0"] == 1


def test_torchs_encoder_layer_has_no_mlp_of_its_own(mapped: Callable[[str], Mapped]) -> None:
    seen = mapped("encoder")
    assert reasons(list(seen.rows)) == {"encoder.layers.0.mlp": 4}
    assert not any(row.quantity == "map.left_out" for row in mapped("pre").rows)


def test_a_state_that_is_not_finite_is_told_and_crashes_nothing(
    make_model: Callable[[str], nn.Module], make_subject: Subjects
) -> None:
    module = make_model("pre")
    with torch.no_grad():
        module.get_submodule("transformer.wte").weight[:, 0] = math.inf
    rows = map_rows(make_subject(module), SETTINGS)
    told = {row.layer: row.value for row in rows if row.quantity == "map.sigma_max" and row.kind != "softmax"}
    assert set(told) == {
        *("transformer.h.0", "transformer.h.0.attn", "transformer.h.0.mlp"),
        *("transformer.h.0.ln_1", "transformer.h.0.ln_2", "transformer.ln_f"),
    }
    assert all(math.isnan(value) for value in told.values())
    assert not any(
        row.certified for row in rows if row.layer == "transformer.h.0" and row.quantity == "map.sigma_max"
    )


def test_memory_that_runs_out_is_the_callers_business_until_one_row_is_left(
    make_subject: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("planted")

    model = Model(Plain()).eval()
    monkeypatch.setattr(maps_measure, "observe_sequences", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        map_rows(make_subject(model), SETTINGS)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert reasons(map_rows(make_subject(model, rows=1), SETTINGS))["blocks.0"] == 5


@pytest.mark.parametrize("measure", ["maps", "precision"])
def test_the_model_is_left_as_it_was(measure: str, mapped: Callable[[str], Mapped]) -> None:
    seen = mapped("pre")
    before = {name: value.clone() for name, value in seen.module.state_dict().items()}
    if measure == "maps":
        map_rows(seen.subject, SETTINGS)
    else:
        precision_rows(seen.subject)
    for name, value in seen.module.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype
    assert all(parameter.requires_grad and parameter.grad is None for parameter in seen.module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in seen.module.modules())


def test_the_same_checkpoint_gives_the_same_rows(mapped: Callable[[str], Mapped]) -> None:
    seen = mapped("none")
    again = map_rows(seen.subject, ProfileSettings(dtype="float64"))
    assert [(row.layer, row.quantity, row.value) for row in again] == [
        (row.layer, row.quantity, row.value) for row in seen.rows
    ]


def test_rows_are_cut_with_their_labels() -> None:
    tokens = torch.arange(3 * 200).reshape(3, 200)
    for extra in (0, 1):
        labels = torch.arange(3 * (200 + extra)).reshape(3, 200 + extra)
        short, own = few(tokens, labels)
        assert short.shape == (2, 128) and own is not None and own.shape == (2, 128 + extra)
        assert torch.equal(own, labels[:2, : 128 + extra])
    assert few(tokens, torch.arange(3))[1].shape == (2,)  # type: ignore[union-attr]
    assert few(tokens, None)[1] is None
