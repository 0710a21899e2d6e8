"""Walk through the steps of a retraining, in one go or taking up every checkpoint on the way anew."""

from __future__ import annotations

from collections.abc import Iterator

from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Taken, Training


def walk(
    start: Start, recipe: Recipe, stop: int, *, anchored: bool = False
) -> Iterator[tuple[Training, Taken]]:
    """Retrain step by step.

    Rounding differences double every few steps where a run is past the edge of stability, so that in one go even
    the run itself parts from its log in the end; from checkpoint to checkpoint it need not.

    Args:
        start: where to begin.
        recipe: the reading of the run.
        stop: last step.
        anchored: put weights and optimizer state of every checkpoint on the way back in when it is reached.

    Yields:
        The training after each step, and what the step was; at a checkpoint still the retrained weights.
    """
    anchors = {point.step: point for point in start.on_the_way(stop)} if anchored else {}
    training = start.training(recipe)
    try:
        while training.step < stop:
            taken = training.advance()
            yield training, taken
            if training.step in anchors:
                training.end()
                training = start.moved_to(anchors[training.step]).training(recipe)
    finally:
        training.end()
