"""Spoil the formula of every entry of the catalogue, one after another, and run the tests of its family.

Each must fail: a formula whose every value can be wrong by a tenth without a test that notices it has no test. Run as
`python -m tests.quantities.spoiling [NAME ...]`; prints the names that nothing noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings

from hnf_offline.quantities import catalogue
from hnf_offline.quantities.registry import Quantity

#: Family -> where its closed forms and planted truths are; the first file that fails is enough.
TESTS: dict[str, tuple[str, ...]] = {
    "activation": ("quantities/test_activations.py",),
    "adam": ("quantities/test_formulas.py",),
    "attention": ("quantities/test_formulas.py",),
    "estimate": ("quantities/test_planted.py",),
    "gradient": ("quantities/test_gradients.py", "quantities/test_formulas.py", "quantities/test_gradient_course.py",
                 "quantities/test_weights.py", "detect/test_scaler_history.py"),
    "hessian": ("quantities/test_formulas.py", "quantities/test_planted.py"),
    "increment": ("quantities/test_weights.py",),
    "koopman": ("quantities/test_koopman.py",),
    "landscape": ("quantities/test_planted.py", "profile/test_landscape.py", "profile/test_barrier.py",
                  "profile/test_surroundings.py"),
    "logits": ("quantities/test_formulas.py",),
    "loss": ("detect/test_learning_curve.py", "detect/test_paired.py"),
    "lyapunov": ("quantities/test_lyapunov.py",),
    "map": ("quantities/test_maps.py", "quantities/test_planted.py"),
    "norm": ("quantities/test_formulas.py",),
    "optimizer": ("quantities/test_formulas.py", "quantities/test_planted.py"),
    "precision": ("quantities/test_maps.py", "quantities/test_planted.py", "quantities/test_formulas.py"),
    "proxy": ("quantities/test_formulas.py",),
    "replay": ("quantities/test_planted.py",),
    "residual": ("quantities/test_formulas.py", "quantities/test_activations.py"),
    "scaler": ("detect/test_scaler_history.py",),
    "similarity": ("quantities/test_activations.py", "quantities/test_planted.py"),
    "update": ("quantities/test_update.py", "quantities/test_planted.py"),
    "weight": ("quantities/test_weights.py", "quantities/test_formulas.py"),
}  # fmt: skip


def spoiled(value: Any) -> Any:
    """Make a result wrong by a tenth and a hundredth, whatever it is made of.

    Returns:
        The like with other numbers; None stays None.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dict):
        return {key: spoiled(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(spoiled(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {one.name: spoiled(getattr(value, one.name)) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **held)
    if getattr(value, "dtype", None) == np.bool_:
        return ~value
    return value * 1.1 + 0.01


@contextlib.contextmanager
def spoiling(entry: Quantity, change: Callable[[Any], Any] = spoiled) -> Iterator[None]:
    """Spoil what an entry's function gives, for whoever holds the function already.

    Yields:
        Nothing; afterwards the function is as it was.
    """
    function = entry.function
    assert isinstance(function, types.FunctionType)
    code, defaults = function.__code__, function.__defaults__
    right = types.FunctionType(code, function.__globals__, function.__name__, defaults)

    def wrong(*given: Any, **named: Any) -> Any:
        return change(right(*given, **named))

    # A function's code can be exchanged only for one that closes over nothing: it finds its place by a global name.
    place = f"_spoiled_{function.__name__}"
    body: dict[str, Any] = {}
    exec(f"def stand_in(*given, **named):\n    return {place}(*given, **named)", body)
    function.__globals__[place] = wrong
    function.__code__, function.__defaults__ = body["stand_in"].__code__, None
    try:
        yield
    finally:
        function.__code__, function.__defaults__ = code, defaults
        del function.__globals__[place]


def unnoticed(names: list[str]) -> list[str]:
    """Spoil some entries and run their families' tests.

    Returns:
        Those with which all tests still pass.
    """
    # That something fails is enough: no smaller example of it need be found.
    hypothesis_settings.register_profile(
        "spoiled", max_examples=20, phases=(Phase.explicit, Phase.generate), database=None, deadline=None
    )
    hypothesis_settings.load_profile("spoiled")
    survivors = []
    for name in names:
        files = [f"tests/{one}" for one in TESTS[name.partition(".")[0]]]
        quiet = io.StringIO()
        with spoiling(catalogue()[name]), contextlib.redirect_stdout(quiet):
            failed = any(
                pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-m", "not slow", file])
                == pytest.ExitCode.TESTS_FAILED
                for file in files
            )
        if not failed:
            survivors.append(name)
    return survivors


if __name__ == "__main__":
    asked = sys.argv[1:] or [name for name, entry in catalogue().items() if entry.inputs]
    print("\n".join(unnoticed(asked)))
