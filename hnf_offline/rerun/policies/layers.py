"""Choose layers of a module by a glob over their paths."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from hnf_offline.run.model.layers import Layer


def chosen_layers(
    module: nn.Module, pattern: str, policy: str, without: Collection[str] = ()
) -> tuple[Layer, ...]:
    """List the layers whose path fits.

    Args:
        module: the model.
        pattern: glob over layer paths, as for --layers.
        policy: its name, for the message.
        without: kinds that only a pattern other than "*" reaches.

    Returns:
        The layers in forward order; at least one.

    Raises:
        UsageError: if none fits, with some that are there.
    """
    from hnf_offline.run.model.layers import layers_of

    layers = layers_of(module)
    kept = tuple(
        layer
        for layer in layers
        if fnmatchcase(layer.path, pattern) and not (pattern == "*" and layer.kind in without)
    )
    if not kept:
        some = ", ".join(layer.path for layer in layers[1:5])
        raise UsageError(
            f"--policy {policy}: no layer's path fits {pattern!r}",
            remedy=f"layers are called {some} and so on",
        )
    return kept
