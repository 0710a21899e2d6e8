"""The families of quantities: one file each; importing a file registers what is in it."""

from __future__ import annotations

from hnf_offline.quantities import (
    attention,
    estimate,
    gradients,
    hessian,
    jacobian,
    logits,
    loss_curve,
    loss_scaler,
    norms,
    optimizer,
    precision,
    proxies,
    replay,
    residual,
    spectrum,
    update,
    weights,
)

ALL = (
    weights,
    replay,
    attention,
    norms,
    residual,
    logits,
    proxies,
    gradients,
    optimizer,
    hessian,
    spectrum,
    update,
    estimate,
    jacobian,
    precision,
    loss_curve,
    loss_scaler,
)
