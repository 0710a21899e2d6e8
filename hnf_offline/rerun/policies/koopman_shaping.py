"""Koopman spectral shaping: push the modes between blocks away from the unit circle while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import UsageError
from hnf_offline.quantities.koopman import BEYOND, NEAR
from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy
from hnf_offline.rerun.policies.spelling import options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hnf_offline.profile.batch import MicroBatch
    from hnf_offline.rerun.training import Training
    from hnf_offline.run.model.loss import Outcome

#: Edges of the near-unit band, and how sharply the soft masses count (arXiv 2602.22988).
LOWER, UPPER, SHARPNESS = NEAR, BEYOND, 20.0
#: Weight of the near-unit mass against the modes outside. The paper's own value is not known to us.
BALANCE = 1.0
#: Most samples (token states) of a fit, and fewest for each mode.
SAMPLES, SAMPLES_A_MODE = 2048, 4


class KoopmanShaping(Policy):
    """Adds the mean KSS loss of some block transitions, at every K-th step."""

    def __init__(
        self, weight: float, *, every: int = 10, part: float = 0.5, target: float = 0.4, rank: int = 32
    ) -> None:
        """Choose strength and shape.

        Args:
            weight: alpha.
            every: the loss is taken at the first step and every so many after it.
            part: share of the blocks that are shaped, evenly spaced.
            target: wanted near-unit mass.
            rank: modes of each fit, at most the width of the stream.
        """
        self.weight = weight
        self.every = every
        self.part = part
        self.target = target
        self.rank = rank
        self._first = 0
        self._blocks: tuple[str, ...] = ()
        self._streams: dict[str, tuple[Tensor, Tensor]] = {}
        self._masses: list[Tensor] = []
        self._unfit = 0

    def begin(self, training: Training) -> None:
        """Find the blocks.

        Raises:
            UsageError: if the model has none.
        """
        from hnf_offline.run.model.layers import blocks_of

        blocks = blocks_of(training.module)
        if not blocks:
            raise UsageError(
                "--policy koopman-shaping: the model has no list of like blocks with a residual stream between them",
                remedy="leave this policy out for this model",
            )
        count = max(1, round(self.part * len(blocks)))
        self._blocks = tuple(blocks[place * len(blocks) // count] for place in range(count))
        self._first = training.step + 1
        self._masses.clear()
        self._unfit = 0

    @contextmanager
    def forward(self, training: Training, micro: MicroBatch) -> Iterator[None]:
        """Keep what goes into and comes out of the blocks.

        Yields:
            Nothing.
        """
        self._streams.clear()
        chosen = () if (training.step + 1 - self._first) % self.every else self._blocks
        handles = [
            training.module.get_submodule(path).register_forward_hook(self._keep(path), with_kwargs=True)
            for path in chosen
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def penalty(self, training: Training, step: int, outcome: Outcome, micro: MicroBatch) -> Tensor | None:
        """Shape the spectra of the chosen transitions.

        Returns:
            WEIGHT times their mean KSS loss; None between the steps on which it is taken, and where a stream is no
            longer finite.

        Raises:
            UsageError: if the blocks give no residual stream, or the batch has too few tokens for a fit.
        """
        import torch

        if (step - self._first) % self.every:
            return None
        if len(self._streams) < len(self._blocks):
            raise UsageError(
                f"--policy koopman-shaping: {self._blocks[0]} does not map a stream to one of its own shape",
                remedy="leave this policy out for this model",
            )
        losses: list[Tensor] = []
        masses: list[Tensor] = []
        with torch.autocast(training.device.type, enabled=False):
            for place, (before, after) in enumerate(self._streams.values()):
                modes = self._modes(before, after, step + place)
                if modes is None:
                    self._unfit += 1
                    continue
                losses.append(shaping_loss(modes, self.target))
                masses.append(near_unit_mass(modes).detach())
        self._streams.clear()
        if not losses:
            return None
        self._masses.append(torch.stack(masses).mean())
        return self.weight * torch.stack(losses).mean().to(outcome.loss.device, outcome.loss.dtype)

    def notes(self) -> tuple[str, ...]:
        """Say how the near-unit mass moved.

        Returns:
            Sentences once the loss was taken.
        """
        sentences = []
        if self._masses:
            first, last = (float(self._masses[place]) for place in (0, -1))
            sentences.append(f"near-unit mass {first:.2f} when first taken, {last:.2f} when last")
        if self._unfit:
            sentences.append(
                f"{self._unfit} fits left out, because a residual stream was not finite or had no modes"
            )
        return tuple(sentences)

    def _modes(self, before: Tensor, after: Tensor, seed: int) -> Tensor | None:
        """Moduli of the modes of one transition; None where there are none."""
        import torch

        from hnf_offline.linalg.dynamic_modes import eigenvalues, reduced_operator

        count, width = before.shape
        rank = min(self.rank, width)
        if count < SAMPLES_A_MODE * rank:
            raise UsageError(
                f"--policy koopman-shaping: {count} tokens at once are too few for {rank} modes",
                remedy=f"choose at most rank={max(1, count // SAMPLES_A_MODE)}",
            )
        if count > SAMPLES:
            chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:SAMPLES]
            before, after = (stream[chosen.to(stream.device)] for stream in (before, after))
        if not bool(before.isfinite().all() & after.isfinite().all()):
            return None
        try:
            moduli = eigenvalues(reduced_operator(before, after, rank, seed)).abs()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None
        return moduli if len(moduli) and bool(moduli.isfinite().all()) else None

    def _keep(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        import torch

        def hook(block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            before = arguments[0] if arguments else named.get("hidden_states")
            after = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
                return
            if before.shape == after.shape and before.ndim >= 2 and before.is_floating_point():
                self._streams[path] = before.flatten(0, -2), after.flatten(0, -2)

        return hook


def near_unit_mass(moduli: Tensor) -> Tensor:
    """Count, softly, the modes near the unit circle.

    Returns:
        mean_j s(T (|lambda_j| - lower)) s(T (upper - |lambda_j|)), s the logistic function.
    """
    return ((SHARPNESS * (moduli - LOWER)).sigmoid() * (SHARPNESS * (UPPER - moduli)).sigmoid()).mean()


def shaping_loss(moduli: Tensor, target: float) -> Tensor:
    """Give the KSS loss of one transition.

    Args:
        moduli: |lambda_j| of its modes.
        target: wanted near-unit mass g.

    Returns:
        sum_j s(T (|lambda_j| - upper)) softplus(|lambda_j| - upper)^2 + b (near-unit mass - g)^2.
    """
    from torch.nn.functional import softplus

    beyond = moduli - UPPER
    outside = ((SHARPNESS * beyond).sigmoid() * softplus(beyond).square()).sum()
    return outside + BALANCE * (near_unit_mass(moduli) - target).square()


@policy(
    "koopman-shaping",
    value="WEIGHT[,every=K][,share=F][,target=G][,rank=R]",
    summary="Shape the spectrum of the maps between blocks (KSS); acts on later steps, the function stays as it is.",
    formula="loss + WEIGHT mean_l [sum_j s(T(|l_j| - 1.05)) softplus(|l_j| - 1.05)^2 + (m - G)^2], m = mean_j "
    "s(T(|l_j| - .90)) s(T(1.05 - |l_j|)), T = 20, l_j the eigenvalues of the whitened rank-R DMD from the stream "
    "before block l to that after it, over at most 2048 tokens; for a share F of the blocks at every K-th step "
    "(K 10, F 0.5, G 0.4, R 32)",
    reference="Kim et al. 2026, arXiv 2602.22988, Koopman Spectral Shaping (WEIGHT 0.15); the weight of (m - G)^2 is "
    "taken as 1, the fit's subspace is held fixed when differentiated. Its published gain is for models without "
    "norms; a stable model may have any near-unit mass",
    cost="about a step more at every K-th step, mostly eigenvalues on the CPU",
    example="koopman-shaping=0.15,every=2,rank=8",
)
def make(text: str | None) -> KoopmanShaping:
    """Read weight and options.

    Returns:
        The policy.
    """
    plain, named = options(text, ["every", "share", "target", "rank"])
    (weight,) = fields(plain, ["WEIGHT"], required=1)
    return KoopmanShaping(
        number(str(weight), "WEIGHT", above=0),
        every=whole(named.get("every", "10"), "every"),
        part=number(named.get("share", "0.5"), "share", above=0, most=1),
        target=number(named.get("target", "0.4"), "target", least=0, most=1),
        rank=whole(named.get("rank", "32"), "rank"),
    )
