"""The cast replay against a model that was cast by hand; overflow is found in the layer where it begins."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.profile.maps import precision_rows
from hnf_offline.profile.maps.casting import cast
from hnf_offline.profile.subject import Subject
from hnf_offline.table import Row
from tests.profile.maps.conftest import Mapped

Of = Callable[[str], Mapped]
Subjects = Callable[..., Subject]


def values(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(row.layer, row.quantity): row.value for row in rows}


@pytest.mark.parametrize(
    ("name", "short"), [("pre", "bf16"), ("llama", "bf16"), ("none", "fp16"), ("gpt2", "fp16")]
)
def test_the_change_of_the_loss_is_that_of_a_model_cast_by_hand(
    name: str, short: str, make_model: Callable[[str], nn.Module], make_subject: Subjects
) -> None:
    module = make_model(name).float()
    subject = make_subject(module, rows=4)
    found = values(precision_rows(subject))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[short]
    narrow = copy.deepcopy(module)
    for parameter in narrow.parameters():
        parameter.data = parameter.data.to(dtype)
    losses = []
    for model in (module, narrow):
        with torch.no_grad():
            per_half = []
            for half in subject.halves:
                output = model(half.tokens)
                logits = output if isinstance(output, Tensor) else output.logits
                per_half.append(
                    functional.cross_entropy(
                        logits[:, :-1].flatten(0, 1).float(), half.tokens[:, 1:].flatten()
                    )
                )
            losses.append(torch.stack(per_half).double().mean())
    change = found["", f"precision.loss_change_{short}"]
    assert change == pytest.approx(float(losses[1] - losses[0]), abs=1e-6)
    assert 0 < abs(change) < 0.05
    errors = [
        value for (_, quantity), value in found.items() if quantity == f"precision.output_error_{short}"
    ]
    rounding = torch.finfo(dtype).eps
    assert len(errors) >= 8 and all(rounding / 20 < error < 40 * rounding for error in errors)


def test_a_head_that_shares_its_weight_is_seen_and_stands_last(mapped: Of) -> None:
    rows = precision_rows(mapped("llama").subject)
    head = next(
        row for row in rows if row.layer == "lm_head" and row.quantity == "precision.output_error_bf16"
    )
    assert head.depth == max(row.depth for row in rows) and head.kind == "head"
    blocks = {row.layer for row in rows if row.kind == "block"}
    assert blocks == {"model.layers.0"}


def test_overflow_in_float16_is_found_where_it_begins(
    make_model: Callable[[str], nn.Module], make_subject: Subjects
) -> None:
    module = make_model("none").float()
    with torch.no_grad():
        module.transformer["h"][0].mlp.c_fc.weight.fill_(3e4)  # 8 inputs of order 1: beyond 65504
    rows = precision_rows(make_subject(module))
    found = values(rows)
    in_order = sorted(rows, key=lambda row: row.depth)
    overflowed = [row.layer for row in in_order if row.quantity == "precision.nonfinite_fp16"]
    assert overflowed[0] == "transformer.h.0.mlp.c_fc"
    assert found["transformer.h.0.mlp.c_fc", "precision.nonfinite_fp16"] > 0
    assert not math.isfinite(found["", "precision.loss_change_fp16"])
    assert not any(quantity == "precision.nonfinite_bf16" for _, quantity in found)
    assert math.isfinite(found["", "precision.loss_change_bf16"])
    assert ("transformer.h.0.attn.c_proj", "precision.nonfinite_fp16") not in found


class Stubborn(nn.Module):
    """Insists on its own precision; and holds a table of positions that must be cast with the weights."""

    def __init__(self, refused: set[torch.dtype]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 4)
        self.head = nn.Linear(4, 13)
        self.register_buffer("positions", torch.linspace(-1, 1, 16).reshape(4, 4))
        self.refused = refused

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.embedding.weight.dtype in self.refused:
            raise RuntimeError("not implemented for 'Half'")
        return self.head(self.embedding(input_ids) + self.positions)  # type: ignore[operator]


def test_a_precision_without_kernels_is_left_out_and_counted(make_subject: Subjects) -> None:
    rows = precision_rows(make_subject(Stubborn({torch.float16}).eval()))
    found = values(rows)
    assert found["", "precision.left_out"] == 1
    assert "precision.loss_change_fp16" not in {quantity for _, quantity in found}
    assert math.isfinite(found["", "precision.loss_change_bf16"])  # its table of positions was cast too
    assert ("", "precision.left_out") not in values(precision_rows(make_subject(Stubborn(set()).eval())))


def test_casting_ends_with_the_context_also_after_an_error() -> None:
    module = Stubborn(set())
    weight, table = module.head.weight, module.positions
    before = weight.detach().clone()
    with pytest.raises(ValueError, match="planted"), cast(module, torch.bfloat16, buffers=True):
        assert weight.dtype == torch.bfloat16 and table.dtype == torch.bfloat16
        raise ValueError("planted")
    assert weight.dtype == table.dtype == torch.float32 and torch.equal(weight, before)
    with cast(module, torch.float16, buffers=False):
        assert weight.dtype == torch.float16 and table.dtype == torch.float32
