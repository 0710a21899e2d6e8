"""The user's own model: `package.module:function`, imported only because the user named it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hnf_offline.errors import UsageError


def build_from_factory(factory: str, config: Mapping[str, Any]) -> nn.Module:
    """Call the user's function, with the run's configuration if it takes one argument.

    Returns:
        The module it returns.

    Raises:
        UsageError: if the name is malformed, cannot be imported, or does not give a module.
    """
    module_name, _, function_name = factory.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"--model {factory!r} is not package.module:function")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--model {factory!r}: {error}",
            remedy="run hnf where `python -c 'import ...'` of that module works",
        ) from error
    finally:
        sys.path.remove(folder)
    if not callable(function):
        raise UsageError(f"--model {factory!r} is {type(function).__name__}, not a function")
    module = function(config) if inspect.signature(function).parameters else function()
    if not isinstance(module, nn.Module):
        raise UsageError(f"--model {factory!r} returned {type(module).__name__}, not a torch module")
    return module
