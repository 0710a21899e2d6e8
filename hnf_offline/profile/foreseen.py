"""How far the curvature of one checkpoint is, in shares of the work that is foreseen.

Three parts follow one another: the calibration (at one checkpoint of a run), the whole model, the layers. Each knows
how far itself is; what it is of the whole is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from hnf_offline.profile.parts import tell_part
from hnf_offline.profile.subject import Subject

#: What the whole model's spectra take, in layers.
WHOLE_AS_LAYERS = 12
#: What a layer's calibration takes, in layers at the accuracy `screen` on the same rows: two exact products, and a
#: difference or more, for three or four differences.
CALIBRATION_AS_LAYERS = 1.5
#: Rows that the calibration replays: what second derivatives keep of them is little.
CALIBRATION_ROWS = 2


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The curvature of one checkpoint, divided.

    Attributes:
        step: the checkpoint.
        layers: that get a curvature of their own.
        calibration: share of the calibration, 0 where it was made before.
        whole: share of the whole model.
    """

    step: int
    layers: int
    calibration: float
    whole: float

    @classmethod
    def of(cls, subject: Subject, pattern: str | None) -> Foreseen:
        """Divide.

        Args:
            subject: layers, rows, and whether products are calibrated at its step.
            pattern: glob over layer paths, None for all.

        Returns:
            The parts.
        """
        layers = sum(pattern is None or fnmatchcase(layer.path, pattern) for layer in subject.layers)
        calibration = 0.0
        if subject.products.calibrated_at == subject.step:
            rows = sum(len(batch.tokens) for batch in subject.batches)
            together = min(CALIBRATION_ROWS, len(subject.batches[0].tokens))
            calibration = CALIBRATION_AS_LAYERS * layers * together / rows
        total = calibration + WHOLE_AS_LAYERS + layers
        return cls(subject.step, layers, calibration / total, WHOLE_AS_LAYERS / total)

    def tell_calibration(self, part: float) -> None:
        """Tell which part of the calibration is behind."""
        tell_part(self.step, 0, self.layers, self.calibration * part)

    def tell_whole(self, part: float) -> None:
        """Tell which part of the whole model's spectra is behind."""
        tell_part(self.step, 0, self.layers, self.calibration + self.whole * part)

    def tell_layers(self, part: float) -> None:
        """Tell which part of the layers' spectra is behind."""
        before = self.calibration + self.whole
        tell_part(self.step, int(self.layers * part), self.layers, before + (1 - before) * part)
