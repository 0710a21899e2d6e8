"""Activations, as modules and as functions, are seen where they are, with what is planted in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.forward import depth_around, forward_rows
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.similarity import linear_cka, principal_information
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.table import Row

CPU = torch.device("cpu")


class Net(nn.Module):
    """Embedding, one hidden layer of four units with a planted bias, head."""

    def __init__(self, activation: nn.Module | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.up = nn.Linear(3, 4)
        self.act = activation
        self.head = nn.Linear(4, 7)
        with torch.no_grad():
            # Unit 0 is always off, unit 1 always on.
            self.up.bias.copy_(torch.tensor([-100.0, 100.0, 0.0, 0.0]))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.up(self.embedding(input_ids))
        hidden = functional.relu(hidden) if self.act is None else self.act(hidden)
        return self.head(hidden)


def rows_of(module: nn.Module, vocabulary: int, pieces: int = 3) -> list[Row]:
    tokens = torch.randint(0, vocabulary, (6, 12), generator=torch.Generator().manual_seed(0))
    batch = ReplayBatch.of(tokens, None, "replay")
    cut = batch.cut(pieces, CPU)
    return forward_rows(Subject(3, module.eval(), layers_of(module), None, cut, cut, "replay"))


def by_quantity(rows: list[Row], layer: str) -> dict[str, Row]:
    return {row.quantity: row for row in rows if row.layer == layer}


@pytest.mark.parametrize(
    ("activation", "layer"),
    [(nn.ReLU(), "act"), (None, "activation"), (nn.GELU(), "act"), (nn.SiLU(), "act")],
)
def test_dead_and_positive_units_are_counted(activation: nn.Module | None, layer: str) -> None:
    torch.manual_seed(0)
    found = by_quantity(rows_of(Net(activation), 7), layer)
    assert found["activation.dead_share"].value == pytest.approx(0.25)
    assert 0.25 < found["activation.positive_share"].value < 0.75
    assert found["activation.largest"].value > 90
    assert found["activation.dead_share"].kind == "mlp"
    if isinstance(activation, nn.ReLU | None):
        zero = found["activation.zero_share"].value
        assert zero == pytest.approx(1 - found["activation.positive_share"].value)
    else:
        assert found["activation.zero_share"].value == pytest.approx(0.25)  # -100 underflows
    assert "activation.saturated_share" not in found


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid()])
def test_bounded_functions_saturate(activation: nn.Module) -> None:
    torch.manual_seed(0)
    found = by_quantity(rows_of(Net(activation), 7), "act")
    assert 0.5 <= found["activation.saturated_share"].value < 1
    assert "activation.dead_share" not in found


def test_units_are_dead_over_all_rows_however_they_are_cut() -> None:
    torch.manual_seed(1)
    module = Net(nn.ReLU())
    shares = {
        by_quantity(rows_of(module, 7, pieces), "act")["activation.dead_share"].value for pieces in (1, 2, 6)
    }
    assert len(shares) == 1


def test_blocks_are_compared_with_the_one_before() -> None:
    module = GPT(GPTConfig(11, 12, 3, 2, 8, mlp_width=12)).initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():  # the last block writes nothing
        for name, value in module.named_parameters():
            if name.startswith("transformer.h.2.") and "c_proj" in name:
                value.zero_()
    rows = rows_of(module, 11)
    first, last = by_quantity(rows, "transformer.h.0"), by_quantity(rows, "transformer.h.2")
    assert "residual.growth" not in first and "similarity.cka" not in first
    assert last["residual.growth"].value == pytest.approx(1)
    assert last["similarity.cka"].value == pytest.approx(1)
    # The same numbers twice: all that k = 3 neighbours among n = 12 tokens can show is psi(n) - psi(k).
    bound = torch.digamma(torch.tensor([12.0, 3.0], dtype=torch.float64)).tolist()
    assert last["similarity.information"].value == pytest.approx(bound[0] - bound[1])
    middle = by_quantity(rows, "transformer.h.1")
    assert middle["residual.growth"].value != pytest.approx(1)
    assert "activation.dead_share" not in middle and "activation.variance" in middle


@pytest.mark.parametrize("pieces", [1, 3, 6])
def test_what_blocks_share_is_that_of_their_outputs_on_the_first_four_rows(pieces: int) -> None:
    module = GPT(GPTConfig(11, 12, 4, 2, 8, mlp_width=12)).initialise(torch.Generator().manual_seed(1)).eval()
    outputs: list[Tensor] = []
    for block in module.transformer.h:
        block.register_forward_hook(lambda part, arguments, output: outputs.append(output.detach().double()))
    rows = rows_of(module, 11, pieces)
    # block -> what it gives out for all rows
    of_blocks = [torch.cat(outputs[depth::4]) for depth in range(4)]
    for depth in range(1, 4):
        found = by_quantity(rows, f"transformer.h.{depth}")
        before, after = of_blocks[depth - 1 : depth + 1]
        growth = (after.square().mean(dim=(1, 2)) / before.square().mean(dim=(1, 2))).sqrt().mean()
        assert found["residual.growth"].value == pytest.approx(growth.item(), rel=1e-5)
        for name, measure in (("cka", linear_cka), ("information", principal_information)):
            expected = measure(before[:4], after[:4]).item()
            assert found[f"similarity.{name}"].value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_an_activation_lies_as_deep_as_the_layers_beside_it() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    layers = layers_of(module)
    assert depth_around(layers, "1.1") == depth_around(layers, "1.activation") == 1
    assert depth_around(layers, "2") == 2
