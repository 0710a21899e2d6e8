"""An estimate of the stability ratio S during training, every so many steps, for the black box's trigger.

What it is: the largest Ritz value of A^1/2 H A^1/2 after a few Lanczos products, on the first micro-batch of the
step just taken, at the weights after it, with the step metric A of the optimizer's present state and rates.
So it is at most the S of that batch, and the S of one batch scatters about that of the whole data. Dropout is off
and the forward pass is in the weights' own precision. The start is the last estimate's vector, so that few
products go far from the second estimate on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.errors import InputError
from hnf_offline.linalg.hessian import HessianGraph, Part
from hnf_offline.linalg.lanczos import lanczos_extremes
from hnf_offline.linalg.operator import Scaled
from hnf_offline.quantities.optimizer import adam_step_metric, sgd_step_size
from hnf_offline.record.ring import Batch
from hnf_offline.run.model.loss import evaluate


class StabilityEstimate:
    """Measures S every so many steps; costs about one training step for each product, and its graph's memory.

    Attributes:
        every: steps between estimates.
    """

    def __init__(self, *, every: int = 100, products: int = 8, rows: int | None = None) -> None:
        """Set how often and how well.

        Args:
            every: steps between estimates.
            products: Hessian products an estimate.
            rows: sequences of the batch to use; None for all.
        """
        self.every = every
        self._products = products
        self._rows = rows
        self._start: Tensor | None = None

    def measure(self, module: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        """Estimate S now; weights, gradients, module modes and generators stay as they are.

        Returns:
            The estimate.

        Raises:
            InputError: if the stability limit of this optimizer is not known.
        """
        metric = live_step_metric(module, optimizer)
        parameters = {name: value for name, value in module.named_parameters() if name in metric}
        device = next(iter(parameters.values())).device
        tokens = batch.tokens[: self._rows].to(device, torch.int64)
        labels = None if batch.labels is None else batch.labels[: self._rows].to(device, torch.int64)
        with (
            undisturbed(module, device),
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast(device.type, enabled=False),
            torch.enable_grad(),
        ):
            graph = HessianGraph([lambda: evaluate(module, tokens, labels).loss], [1.0], parameters)
            block = graph.block([Part(name, tuple(value.shape)) for name, value in parameters.items()])
            root = block.flatten(metric).sqrt()
            found = lanczos_extremes(
                Scaled(block, root),
                self._begin(root),
                maximum=self._products,
                ends="largest",
            )
        self._start = found.vector
        return found.largest.value

    def _begin(self, like: Tensor) -> Tensor:
        if self._start is not None and self._start.shape == like.shape and bool(self._start.isfinite().all()):
            return self._start
        # A generator of its own: the training's draw nothing for this.
        generator = torch.Generator().manual_seed(0)
        return torch.randn(like.shape, generator=generator).to(like)


def live_step_metric(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give the diagonal A of the optimizer's next step, for which S = lambda_max(A^1/2 H A^1/2).

    Returns:
        By name of every parameter that the optimizer updates, shaped as the parameter.

    Raises:
        InputError: if the stability limit of this optimizer is not known, or it took no step yet.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    kind = type(optimizer).__name__.lower()
    metric: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if not parameter.requires_grad:
                continue
            if kind in {"adam", "adamw"} and "exp_avg_sq" in state:
                beta1, beta2 = group["betas"]
                moment = state.get("max_exp_avg_sq", state["exp_avg_sq"]).float()
                second = moment / (1 - beta2 ** float(state["step"]))
                size = adam_step_metric(float(group["lr"]), beta1, second, group["eps"])
            elif kind == "sgd":
                step_size = sgd_step_size(
                    float(group["lr"]), group["momentum"], group["dampening"], group["nesterov"]
                )
                size = torch.full_like(parameter, step_size)
            else:
                raise InputError(f"the stability limit of {type(optimizer).__name__} is not known here")
            metric[names[parameter]] = size.detach().to(parameter.dtype)
    if not metric:
        raise InputError("the optimizer updates no parameter of the module")
    return metric


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Switch every part of a module to evaluation, and put modes and generators back as they were.

    Yields:
        Nothing.
    """
    modes: Mapping[nn.Module, bool] = {part: part.training for part in module.modules()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
