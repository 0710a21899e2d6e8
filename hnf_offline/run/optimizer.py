"""The optimizer's state, parameter by parameter: what the preconditioner and the momentum were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import AmbiguousOptimizerError, InputError
from hnf_offline.run.assignment import assign_positions
from hnf_offline.run.records import OptimizerSettings

if TYPE_CHECKING:
    from torch import Tensor

_PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")


@dataclass(frozen=True)
class RawOptimizer:
    """Optimizer state as saved, before anyone knows which parameter it belongs to.

    Attributes:
        kind: the optimizer's class name where the file says it.
        groups: the param_groups, each with `params`: positions or names.
        state: position or name -> its state tensors and step.
        names: True where `state` and `params` are keyed by parameter name.
    """

    kind: str | None
    groups: tuple[Mapping[str, Any], ...]
    state: Mapping[int | str, Mapping[str, Any]]
    names: bool


@dataclass(frozen=True)
class ParameterState:
    """What the optimizer knows about one parameter; None where that optimizer has no such thing.

    Attributes:
        learning_rate: rate of the next update.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decay coefficient.
        momentum: decay of SGD's momentum buffer.
        dampening: share of the gradient kept out of SGD's momentum buffer.
        nesterov: whether SGD looks ahead.
        step: updates this parameter has had.
        exp_avg: first moment, not bias-corrected.
        exp_avg_sq: second moment, not bias-corrected; the running maximum where AMSGrad keeps one.
        momentum_buffer: SGD's momentum.
        decoupled: whether weight decay stands beside the gradient's moments (AdamW) or inside (Adam); None where
            the file does not say which of the two it is.
    """

    learning_rate: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    dampening: float | None = None
    nesterov: bool = False
    step: int | None = None
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    momentum_buffer: Tensor | None = None
    decoupled: bool | None = None

    def second_moment(self) -> Tensor:
        """Bias-corrected second moment, v_hat = v / (1 - beta2^t).

        Returns:
            A tensor of the parameter's shape.

        Raises:
            InputError: when the state has no second moment, no beta2, or no update was applied yet.

        Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1.
        """
        if self.exp_avg_sq is None or self.beta2 is None or not self.step:
            raise InputError("this optimizer state has no bias-corrected second moment")
        return self.exp_avg_sq / (1 - self.beta2**self.step)


@dataclass(frozen=True)
class OptimizerState:
    """The optimizer's state by parameter name.

    Attributes:
        kind: "adam", "adamw", "sgd" or "other".
        parameters: parameter name -> state, in the model's order.
        saved: whether it was read from a checkpoint; otherwise it is put together from run.toml, the configuration
            and the log: rates and decays are known, moments are not.
        total_second_moment: where the state was not saved and the log knows it, the sum over all parameters of
            Adam's bias-corrected second moment.
    """

    kind: str
    parameters: Mapping[str, ParameterState]
    saved: bool = True
    total_second_moment: float | None = None

    @property
    def moments_known(self) -> bool:
        """Whether the next update follows from this state and a gradient."""
        return self.saved or (
            self.kind == "sgd" and not any(own.momentum for own in self.parameters.values())
        )


def match_optimizer(
    raw: RawOptimizer,
    named_parameters: Sequence[tuple[str, tuple[int, ...]]],
    settings: OptimizerSettings,
    path: Path,
) -> OptimizerState:
    """Assign saved optimizer state to the model's parameters, by name or else by group, order and shape.

    Args:
        raw: the state as saved.
        named_parameters: (name, shape) in `module.named_parameters()` order, tied ones once.
        settings: what run.toml says; wins over what was saved.
        path: the file, for error messages.

    Returns:
        The state of every parameter the optimizer updates.

    Raises:
        AmbiguousOptimizerError: when the state fits the parameters in no way or in more than one.
    """
    shapes = dict(named_parameters)
    position_of = keys_of_parameters(raw, named_parameters, path)
    group_of = {key: group for group in raw.groups for key in group.get("params", ())}
    parameters: dict[str, ParameterState] = {}
    for name, _ in named_parameters:
        if name in position_of:
            key = position_of[name]
            group = group_of.get(key, {})
            decoupled = _decoupled(settings.kind or raw.kind, group)
            parameters[name] = _parameter_state(raw.state.get(key, {}), group, settings, decoupled)
    _check_shapes(parameters, shapes, path)
    return OptimizerState(settings.kind or optimizer_kind(raw), parameters)


def keys_of_parameters(
    raw: RawOptimizer, named_parameters: Sequence[tuple[str, tuple[int, ...]]], path: Path
) -> dict[str, int | str]:
    """Find the key of each parameter's state: its saved name, or its place by group, order and shape.

    Args:
        raw: the state as saved.
        named_parameters: (name, shape) in `module.named_parameters()` order, tied ones once.
        path: the file, for error messages.

    Returns:
        Parameter name -> key of `raw.state`; parameters the optimizer does not update are left out.
    """
    if raw.names:
        return _match_names(raw, dict(named_parameters), path)
    positions = [[int(p) for p in group.get("params", ())] for group in raw.groups]
    saved = {int(key): _shape(state) for key, state in raw.state.items()}
    return dict(assign_positions(positions, saved, named_parameters, path))


def optimizer_kind(raw: RawOptimizer) -> str:
    """Recognise the optimizer by its name where saved, else by the keys of its groups and state.

    Adam and AdamW have the same stability ratio; without `decoupled_weight_decay` they look alike.

    Returns:
        "adam", "adamw", "sgd" or "other".
    """
    if raw.kind is not None:
        plain = raw.kind.rsplit(".", 1)[-1].lower()
        return plain if plain in {"adam", "adamw", "sgd"} else "other"
    group = {key: value for one in raw.groups for key, value in one.items()}
    state = {key for one in raw.state.values() for key in one}
    radam = "foreach" in group and "amsgrad" not in group
    if "betas" in group and "exp_avg_sq" in state:
        if radam or "momentum_decay" in group or "mu_product" in state:
            return "other"
        return "adamw" if group.get("decoupled_weight_decay") else "adam"
    if "momentum" in group and "betas" not in group and state <= {"momentum_buffer", "step"}:
        return "other" if {"ns_steps", "ns_coefficients", "alpha"} & set(group) else "sgd"
    return "other"


def _match_names(raw: RawOptimizer, shapes: Mapping[str, Any], path: Path) -> dict[str, int | str]:
    keys: list[int | str] = [key for group in raw.groups for key in group.get("params", ())]
    names = {key: _unwrapped(str(key), shapes) for key in dict.fromkeys([*keys, *raw.state])}
    attribute = _attribute(list(names.values()), shapes)
    matched: dict[str, int | str] = {}
    for key, wrapped in names.items():
        name = wrapped.removeprefix(attribute)
        if name not in shapes:
            raise AmbiguousOptimizerError(
                f"the optimizer state is of {key!r}, which is no parameter of the model",
                path=path,
                remedy="name the model these checkpoints belong to ([model] in run.toml)",
            )
        matched[name] = key
    return matched


def _unwrapped(name: str, shapes: Mapping[str, Any]) -> str:
    while name not in shapes and any(name.startswith(prefix) for prefix in _PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _attribute(names: Sequence[str], shapes: Mapping[str, Any]) -> str:
    # The attribute under which a trainer's module holds the model (model.*, net.*), where that explains every name.
    prefix = names[0].partition(".")[0] + "." if names else ""
    below = all(name.startswith(prefix) and name.removeprefix(prefix) in shapes for name in names)
    return prefix if below and not any(name in shapes for name in names) else ""


def _decoupled(kind: str | None, group: Mapping[str, Any]) -> bool | None:
    # Before torch 2.7 no saved group tells Adam from AdamW.
    if kind is not None and (plain := kind.rsplit(".", 1)[-1].lower()) in {"adam", "adamw"}:
        return plain == "adamw"
    told = group.get("decoupled_weight_decay")
    return None if told is None else bool(told)


def _parameter_state(
    state: Mapping[str, Any],
    group: Mapping[str, Any],
    settings: OptimizerSettings,
    decoupled: bool | None = None,
) -> ParameterState:
    betas = settings.betas if settings.betas is not None else group.get("betas")
    step = state.get("step")

    def number(setting: float | None, key: str) -> float | None:
        value = setting if setting is not None else group.get(key)
        return None if value is None else float(value)

    return ParameterState(
        learning_rate=number(settings.learning_rate, "lr"),
        beta1=None if betas is None else float(betas[0]),
        beta2=None if betas is None else float(betas[1]),
        eps=number(settings.eps, "eps"),
        weight_decay=number(settings.weight_decay, "weight_decay"),
        momentum=number(settings.momentum, "momentum"),
        dampening=number(None, "dampening"),
        nesterov=bool(settings.nesterov if settings.nesterov is not None else group.get("nesterov", False)),
        step=None if step is None else int(step),
        exp_avg=state.get("exp_avg"),
        exp_avg_sq=state.get("max_exp_avg_sq", state.get("exp_avg_sq")),
        momentum_buffer=state.get("momentum_buffer"),
        decoupled=decoupled,
    )


def _shape(state: Mapping[str, Any]) -> tuple[int, ...] | None:
    for key in ("exp_avg_sq", "exp_avg", "momentum_buffer", "square_avg"):
        if state.get(key) is not None:
            return tuple(state[key].shape)
    return None


def _check_shapes(
    parameters: Mapping[str, ParameterState], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    for name, state in parameters.items():
        for moment in (state.exp_avg, state.exp_avg_sq, state.momentum_buffer):
            if moment is not None and tuple(moment.shape) != tuple(shapes[name]):
                raise AmbiguousOptimizerError(
                    f"the optimizer state of {name} has shape {tuple(moment.shape)}, "
                    f"the parameter has {tuple(shapes[name])}",
                    path=path,
                    remedy="the optimizer state and the weights are not of the same run; remove one of them",
                )
