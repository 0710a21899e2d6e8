"""How the run is taken to have been trained: everything that has to be right for a replay to be the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """One reading of log, batches and configuration.

    Attributes:
        kind: "adam", "adamw" or "sgd".
        rates: where learning rates come from: "log", or "saved" (the optimizer state's own, held constant).
        rate_offset: the rate of update s stands in the log at step s + rate_offset.
        batch_offset: the batch of update s is that of step s + batch_offset in the batch file.
        loss_offset: the loss of update s stands in the log at step s + loss_offset.
        loss_span: steps over which the logged loss is a mean (1: each step's own).
        clip: bound on the gradient's total norm, None for none.
        accumulation: micro-batches of equal size whose gradients are averaged with equal weights; 1 for the mean
            over all tokens.
        loss_scale: what the mean over predicted tokens is multiplied by, in the log and before the gradient: below 1
            where a trainer divides by all labels, the first of each row included.
        precision: "float32", or "bfloat16" or "float16" under autocast.
        dropout: whether the module runs in training mode.
        fresh_state: whether the optimizer begins without its moments, because none were saved.
    """

    kind: str
    rates: str = "log"
    rate_offset: int = 0
    batch_offset: int = 0
    loss_offset: int = 0
    loss_span: int = 1
    clip: float | None = None
    accumulation: int = 1
    loss_scale: float = 1.0
    precision: str = "float32"
    dropout: bool = False
    fresh_state: bool = False

    def words(self) -> tuple[str, ...]:
        """Spell the recipe.

        Returns:
            One phrase for each thing taken for granted.
        """
        names = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
        moments = " with fresh moments" if self.fresh_state else " with its saved state"
        return (
            names[self.kind] + moments,
            "learning rate of the saved state"
            if self.rates == "saved"
            else f"learning rate logged at {_shifted(self.rate_offset)}",
            f"batch of {_shifted(self.batch_offset)}",
            f"loss logged at {_shifted(self.loss_offset)}"
            + ("" if self.loss_span == 1 else f" as the mean of {self.loss_span} steps"),
            "no clipping" if self.clip is None else f"gradient norm clipped at {self.clip:g}",
            "mean over all tokens"
            if self.accumulation == 1
            else f"mean over {self.accumulation} micro-batches",
            *(
                ()
                if self.loss_scale == 1.0
                else (f"loss divided by all labels (times {self.loss_scale:.4g})",)
            ),
            f"{self.precision} autocast" if self.precision != "float32" else "float32",
            "dropout on" if self.dropout else "no dropout",
        )

    def changed_from(self, other: Recipe) -> tuple[str, ...]:
        """Name what differs from another reading.

        Returns:
            The phrases of this recipe that the other has not.
        """
        return tuple(word for word in self.words() if word not in other.words())


def _shifted(offset: int) -> str:
    if offset == 0:
        return "the same step"
    plural = "" if abs(offset) == 1 else "s"
    return f"{abs(offset)} step{plural} {'later' if offset > 0 else 'earlier'}"
