"""How far the measurement of one checkpoint is: told by whoever solves it, heard by whoever shows it. Torch-free.

Between the two lie the rooms that measure, which have no use for it; so it travels beside the calls, in a context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class OnPart(Protocol):
    """Called while a checkpoint is measured, at most a few times a second of work."""

    def __call__(self, step: int, done: int, total: int, share: float) -> None:
        """Hear how far it is.

        Args:
            step: the checkpoint.
            done: layers that are finished.
            total: layers that get a curvature of their own.
            share: share of this checkpoint's work that is behind, in forward passes, from 0 to 1.
        """


_listener: ContextVar[OnPart | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: OnPart | None) -> Iterator[None]:
    """Let somebody hear of every part that is told inside.

    Args:
        listener: called in the thread that measures; None for nobody.

    Yields:
        Nothing.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_part(step: int, done: int, total: int, share: float) -> None:
    """Tell how far the measurement of a checkpoint is; nothing happens where nobody listens.

    Layers differ in cost several times over, so the share of the work is not that of the layers: give the forward
    passes that are behind over those that are foreseen. What was foreseen too low ends at 1 a little early.

    Args:
        step: the checkpoint.
        done: layers that are finished.
        total: layers that get a curvature of their own.
        share: share of this checkpoint's work that is behind.
    """
    listener = _listener.get()
    if listener is not None:
        listener(step, done, total, min(max(share, 0.0), 1.0))
