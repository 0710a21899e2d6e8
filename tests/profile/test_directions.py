"""What the next update does, on losses whose every value is known on paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.directions import direction_rows, logged_change_rows
from hnf_offline.profile.layer_curvature import exact_graph
from hnf_offline.profile.metric import step_metric
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.optimizer import OptimizerState, ParameterState
from hnf_offline.table import Row

CPU = torch.device("cpu")
TOKENS = torch.zeros(2, 3, dtype=torch.int64)


class Quadratic(nn.Module):
    """Loss sum h_i w_i^2 / 2; takes tokens and ignores them."""

    def __init__(self, weight: list[float], curvature: list[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=dtype))
        self.curvature = torch.tensor(curvature, dtype=dtype)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.curvature * self.weight.square()).sum() / 2 + 0.0 * input_ids.sum()}


def measured(module: nn.Module, state: OptimizerState, tokens: Tensor = TOKENS) -> dict[str, Row]:
    """Directional rows by quantity."""
    cut = ReplayBatch.of(tokens, None, "replay").cut(len(tokens), CPU)
    subject = Subject(7, module, layers_of(module), state, cut, cut, "replay")
    parameters = dict(module.named_parameters())
    graph = exact_graph(module, cut, keep=True)
    whole = graph.block([part for layer in subject.layers for part in layer.parts])
    metric = step_metric(state, parameters)
    assert metric is not None
    rows = direction_rows(subject, graph.gradients, whole, whole.flatten(metric))
    assert len({row.quantity for row in rows}) == len(rows)
    return {row.quantity: row for row in rows}


def sgd(rate: float, **own: object) -> OptimizerState:
    return OptimizerState("sgd", {"weight": ParameterState(learning_rate=rate, **own)})  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.02, 0.3, 0.97, 1.05, 4.0, 40.0])
def test_on_a_parabola_the_critical_multiple_is_one_over_s(ratio: float) -> None:
    curvature = 3.0
    rows = measured(Quadratic([0.4], [curvature], torch.float64), sgd(2 * ratio / curvature))
    assert rows["hessian.update_direction"].value == pytest.approx(ratio)
    found = rows["update.critical_multiple"]
    assert found.certified
    assert found.low is not None and found.high is not None
    assert found.low <= 1 / ratio <= found.high <= found.low * (1 + 1 / 15)
    rate = rows["update.critical_lr"]  # 2 / h, whatever the learning rate is
    assert rate.low is not None and rate.high is not None
    assert rate.low <= 2 / curvature * (1 + 1e-12) and rate.high >= 2 / curvature * (1 - 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_on_a_parabola_the_prediction_is_the_measurement(dtype: torch.dtype) -> None:
    weight, curvature, rate = [1.0, -0.5, 2.0], [3.0, 1.0, 0.25], 0.3
    rows = measured(Quadratic(weight, curvature, dtype), sgd(rate))
    before = sum(h * w * w / 2 for h, w in zip(curvature, weight, strict=True))
    after = sum(h * (w - rate * h * w) ** 2 / 2 for h, w in zip(curvature, weight, strict=True))
    change = rows["update.measured_change"]
    assert rows["update.predicted_change"].value == pytest.approx(after - before, rel=1e-5)
    assert change.low is not None and change.high is not None
    assert change.low <= after - before <= change.high
    assert change.high - change.low <= 20 * torch.finfo(dtype).eps * before


def test_a_falling_line_has_no_critical_multiple_and_a_bound_says_so() -> None:
    class Line(Quadratic):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"loss": self.weight.sum() + 0.0 * input_ids.sum()}

    rows = measured(Line([1.0, 2.0], [0.0, 0.0], torch.float64), sgd(0.1))
    found = rows["update.critical_multiple"]
    assert (found.value, found.low, found.high, found.certified) == (64.0, 64.0, math.inf, False)
    assert rows["update.measured_change"].value == pytest.approx(-0.2)


def test_momentum_that_points_uphill_leaves_no_room_at_all() -> None:
    own = {"momentum": 0.9, "momentum_buffer": torch.tensor([-5.0], dtype=torch.float64), "step": 3}
    rows = measured(Quadratic([1.0], [1.0], torch.float64), sgd(0.1, **own))
    found = rows["update.critical_multiple"]  # the update is .1 (.9 * -5 + 1) < 0: away from the minimum
    assert (found.value, found.low, found.high, found.certified) == (0.0, 0.0, 0.0, True)
    assert rows["update.measured_change"].value == pytest.approx(((1 + 0.35) ** 2 - 1) / 2)


def test_the_critical_multiple_is_searched_and_not_read_off_the_parabola() -> None:
    class Wall(Quadratic):
        """Flat curvature at the weight, and a wall behind |w| = 1."""

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            wall = 100 * nn.functional.relu(-self.weight - 1).sum()
            return {"loss": self.weight.square().sum() / 2 + wall + 0.0 * input_ids.sum()}

    rows = measured(Wall([0.5], [0.0], torch.float64), sgd(2.0))
    found = rows["update.critical_multiple"]  # w - c: the parabola rises at c = 1, the wall stands at 1.5
    assert found.low is not None and found.high is not None
    assert found.low <= 1.0 <= found.high
    rows = measured(Wall([4.0], [0.0], torch.float64), sgd(1.0))
    found = rows["update.critical_multiple"]  # 4 - 4 c: the parabola says 2, the wall rises at about 5 / 4
    assert found.certified
    assert found.low is not None and found.high is not None
    truth = next(c for c in torch.linspace(0, 2, 200001).tolist()[1:] if wall_loss(4 - 4 * c) > 8)
    assert found.low <= truth <= found.high
    assert rows["update.predicted_change"].value == pytest.approx(-8.0)


def wall_loss(weight: float) -> float:
    return weight * weight / 2 + 100 * max(0.0, -weight - 1)


def test_an_update_that_ends_in_nowhere_is_a_finding() -> None:
    rows = measured(Quadratic([1.0], [1e30], torch.float32), sgd(1e30))
    assert not math.isfinite(rows["update.measured_change"].value)
    assert not rows["update.critical_multiple"].certified


def test_parameters_that_the_optimizer_does_not_move_stay_out() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moved = Quadratic([1.0], [1.0], torch.float64)
            self.frozen = Quadratic([1.0], [500.0], torch.float64)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"loss": self.moved(input_ids)["loss"] + self.frozen(input_ids)["loss"]}

    state = OptimizerState("sgd", {"moved.weight": ParameterState(learning_rate=0.5)})
    rows = measured(Two(), state)
    assert rows["update.predicted_change"].value == pytest.approx((0.5**2 - 1) / 2)
    assert rows["update.measured_change"].value == pytest.approx((0.5**2 - 1) / 2)


class TwoClasses(nn.Module):
    """Logits (w, 0) at every position: margin w."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([margin], dtype=torch.float64))

    def forward(self, input_ids: Tensor) -> Tensor:
        margin = self.weight.expand(*input_ids.shape)
        return torch.stack([margin, torch.zeros_like(margin)], dim=-1)


@pytest.mark.parametrize("margin", [0.0, 1.0, 5.0])
def test_two_classes_have_their_ghost_where_the_partition_function_vanishes(margin: float) -> None:
    rate = 7.0
    rows = measured(TwoClasses(margin), sgd(rate), torch.ones(2, 3, dtype=torch.int64))
    # Targets are class 1: the gradient is sigmoid(margin), so the update has length tau and moves the margin by it.
    tau = rate / (1 + math.exp(-margin))
    ratio = rows["update.ghost_ratio"]
    assert ratio.certified
    assert ratio.value == pytest.approx(tau / math.pi)
    assert rows["update.ghost_ratio_q99"].value == pytest.approx(tau / math.pi)
    # 1 + exp(margin + s) = 0 at s = -margin + i pi: at distance sqrt(margin^2 + pi^2), D_a = 1
    exact = math.hypot(margin, math.pi)
    assert abs(1 + complex(math.e) ** complex(0, math.pi)) < 1e-12
    bound = tau / ratio.value
    assert bound <= exact * (1 + 1e-12)
    assert (bound == pytest.approx(exact)) == (margin == 0.0)


def test_on_a_real_network_all_of_it_is_what_torch_does_next() -> None:
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
    config = GPTConfig(11, 6, 2, 2, 8, mlp_width=12, norm="pre", tied=True, initial_std=0.3)
    module = GPT(config).initialise(torch.Generator().manual_seed(1)).double().eval()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    state = OptimizerState(
        "adamw",
        {
            name: ParameterState(
                learning_rate=0.02,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=0.1,
                step=3,
                exp_avg=optimizer.state[value]["exp_avg"].clone(),
                exp_avg_sq=optimizer.state[value]["exp_avg_sq"].clone(),
            )
            for name, value in module.named_parameters()
        },
    )
    rows = measured(module, state, tokens)
    before = float(loss().detach())
    weights = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    after = float(loss().detach())
    steps = {name: weights[name] - value.detach() for name, value in module.named_parameters()}

    def at(multiple: float) -> float:
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(weights[name] - multiple * steps[name])
            return float(loss())

    assert rows["update.measured_change"].value == pytest.approx(after - before, rel=1e-9)
    assert rows["update.predicted_change"].value == pytest.approx(
        (at(1e-3) - at(-1e-3)) / 2e-3 + (at(1e-3) + at(-1e-3) - 2 * before) / 2e-6, rel=1e-4
    )
    found = rows["update.critical_multiple"]
    assert found.certified and found.low is not None and found.high is not None
    assert at(found.low) <= before < at(found.high)
    assert rows["update.ghost_ratio"].certified
    assert rows["update.ghost_ratio_q99"].value <= rows["update.ghost_ratio"].value


def test_without_saved_momentum_only_the_gradient_is_a_direction() -> None:
    own = ParameterState(learning_rate=0.1, momentum=0.9)
    rows = measured(
        Quadratic([1.0], [2.0], torch.float64), OptimizerState("sgd", {"weight": own}, saved=False)
    )
    assert set(rows) == {"hessian.gradient_direction"}
    plain = OptimizerState("sgd", {"weight": ParameterState(learning_rate=0.1)}, saved=False)
    assert "update.critical_multiple" in measured(Quadratic([1.0], [2.0], torch.float64), plain)


def test_logged_losses_on_either_side_of_the_update() -> None:
    logged = {10: 9.0, 11: 2.0, 12: 2.5}
    (row,) = logged_change_rows(logged, 10)  # weights of step 10 gave the loss logged at 11
    assert (row.quantity, row.value, row.step) == ("update.logged_change", 0.5, 10)
    assert logged_change_rows(logged, 11) == []
    assert math.isnan(logged_change_rows({1: 1.0, 2: math.nan}, 0)[0].value)


def test_the_table_holds_the_logged_change_beside_the_measured_one(tiny: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    table = profile_run(run, ProfileSettings(tier="stability"), tmp_path / "out").table
    assert run.log is not None
    loss = dict(run.log.rows.select("step", "loss").iter_rows())
    changes = table.filter(table["quantity"] == "update.logged_change")
    assert changes["step"].to_list() == [4, 8, 12, 16, 20]  # at 24 the log has ended
    for step, value in changes.select("step", "value").iter_rows():
        assert value == pytest.approx(loss[step + 2] - loss[step + 1])
    gradients = profile_run(run, ProfileSettings(tier="gradient"), tmp_path / "gradients").table
    assert not any(name.startswith("update.") for name in gradients["quantity"])


SPIKY = Path(__file__).resolve().parents[2] / "sample_runs" / "spiky"


@pytest.mark.skipif(not SPIKY.is_dir(), reason="not trained here: make sample-runs")
def test_on_a_trained_run_of_one_batch_the_measured_change_is_the_logged_one(tmp_path: Path) -> None:
    run = open_run(SPIKY)  # the steps of a spike and one far from any
    settings = ProfileSettings(tier="stability", first_step=216, last_step=336, every=5)
    table = profile_run(run, settings, tmp_path / "out").table
    measured, logged = (
        dict(table.filter(table["quantity"] == name).select("step", "value").iter_rows())
        for name in ("update.measured_change", "update.logged_change")
    )
    assert len(measured) == 3 and measured.keys() == logged.keys()
    for step, value in measured.items():
        assert value == pytest.approx(logged[step], abs=1e-5)
