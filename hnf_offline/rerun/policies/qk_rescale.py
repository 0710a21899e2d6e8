"""Shrink the query and key projections of heads whose attention logits grew too large."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hnf_offline.profile.batch import MicroBatch
    from hnf_offline.rerun.rows import Rows
    from hnf_offline.rerun.training import Training
    from hnf_offline.run.model.loss import Outcome


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention module.

    Attributes:
        path: where it is.
        query: weight and bias that make the queries.
        key: those that make the keys.
    """

    path: str
    query: tuple[Rows, ...]
    key: tuple[Rows, ...]

    def rescale(self, factors: Tensor) -> None:
        """Multiply every head's logits.

        Where key heads are shared by several query heads, they stay and the queries take the whole factor, as
        Kimi K2 does with its shared rotary keys.

        Args:
            factors: one for each query head.
        """
        heads = len(factors)
        width = self.query[0].count // heads
        shared = self.key[0].count != heads * width
        own = factors if shared else factors.sqrt()
        for rows in self.query if shared else (*self.query, *self.key):
            rows.scale(own.repeat_interleave(width))


class QKRescale(Policy):
    """QK-Clip: caps each head's largest attention logit through its weights."""

    def __init__(self, limit: float) -> None:
        """Choose the limit.

        Args:
            limit: largest attention logit, after scaling by 1 / sqrt(head width).
        """
        self.limit = limit
        self._attentions: tuple[Attention, ...] = ()
        self._seen: dict[str, Tensor] = {}
        self._rescaled: Tensor | None = None
        self._largest: list[Tensor] = []

    def begin(self, training: Training) -> None:
        """Find the projections of queries and keys."""
        self._attentions = attentions_of(training.module)
        self._seen.clear()
        self._largest.clear()
        self._rescaled = None

    def forward(self, training: Training, micro: MicroBatch) -> AbstractContextManager[None]:
        """Watch this step's attention logits.

        Returns:
            A context for the forward pass, which stays as it is.
        """
        from hnf_offline.rerun.attention import watching_logits

        return watching_logits(training.module, self._seen)

    def penalty(self, training: Training, step: int, outcome: Outcome, micro: MicroBatch) -> None:
        """Add nothing, but make sure that the logits were seen.

        Raises:
            UsageError: if a module's attention logits could not be watched, or its heads not be told apart.
        """
        for attention in self._attentions:
            seen = self._of(attention)
            if seen is None:
                raise UsageError(
                    f"--policy qk-rescale: the attention logits of {attention.path} cannot be watched",
                    remedy="build the model with torch's scaled_dot_product_attention or eager attention",
                )
            width, left = divmod(attention.query[0].count, len(seen))
            if left or attention.key[0].count % width or len(seen) % (attention.key[0].count // width or 1):
                raise UsageError(
                    f"--policy qk-rescale: {len(seen)} heads of {attention.path} do not fit its projections",
                    remedy="leave this policy out for this model",
                )

    def updated(self, training: Training, step: int) -> None:
        """Rescale the heads whose logits in this step's forward pass were above the limit."""
        import torch

        if not self._seen:
            return
        for attention in self._attentions:
            logits = self._of(attention)
            assert logits is not None
            above = logits.isfinite() & (logits > self.limit)
            attention.rescale(torch.where(above, self.limit / logits, torch.ones_like(logits)))
            count = above.sum()
            self._rescaled = count if self._rescaled is None else self._rescaled + count
        # What a skipped step would find here belongs to this one.
        self._largest.append(torch.stack([logits.max() for logits in self._seen.values()]).max())
        self._seen.clear()

    def notes(self) -> tuple[str, ...]:
        """Say how often heads were rescaled.

        Returns:
            One sentence once a step was taken.
        """
        if self._rescaled is None:
            return ()
        logits = [float(value) for value in self._largest]
        times, largest = int(self._rescaled), f"the largest attention logit seen was {max(logits):.3g}"
        if not times:
            return (f"no attention logit came above {self.limit:g}, so nothing was changed; {largest}",)
        return (f"heads rescaled {times} times; {largest}, at the last step {logits[-1]:.3g}",)

    def _of(self, attention: Attention) -> Tensor | None:
        """Logits of an attention module, which may compute them in a module of its own inside."""
        for path, logits in self._seen.items():
            if path == attention.path or path.startswith(f"{attention.path}."):
                return logits
        return None


def attentions_of(module: nn.Module) -> tuple[Attention, ...]:
    """Find every attention module with its own projections of queries and keys.

    Returns:
        The modules; at least one.

    Raises:
        UsageError: if there is none, if projections cannot be told apart, or if queries and keys are normalised, so
            that scaling their weights changes no logit.
    """
    from hnf_offline.rerun.rows import rows_of
    from hnf_offline.run.model.layers import is_norm, layers_of

    found: dict[str, dict[str, tuple[Rows, ...]]] = {}
    for layer in layers_of(module):
        if layer.kind in {"query", "key"}:
            path = layer.path.removesuffix(f".{layer.kind}") if _is_fused(module, layer.path) else layer.path
            roles = found.setdefault(path.rpartition(".")[0], {})
            if layer.kind in roles:
                roles.clear()
                break
            roles[layer.kind] = rows_of(module, layer)
    pairs = {path: roles for path, roles in found.items() if roles.get("query") and roles.get("key")}
    if not pairs or len(pairs) < len(found):
        raise UsageError(
            "--policy qk-rescale: the model's query and key projections cannot be told apart",
            remedy="it needs attention with a query and a key projection, fused or not; latent attention has none",
        )
    for path in pairs:
        inside = [name for name, part in module.get_submodule(path).named_modules() if is_norm(part)]
        if inside:
            raise UsageError(
                f"--policy qk-rescale: {path}.{inside[0]} normalises queries or keys, so that smaller weights leave "
                "the attention logits as they are",
                remedy="the norm bounds them already; leave this policy out for this model",
            )
    return tuple(Attention(path, roles["query"], roles["key"]) for path, roles in pairs.items())


def _is_fused(module: nn.Module, path: str) -> bool:
    """Whether a layer's path has its role appended, so that it is no module's."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return True
    return False


@policy(
    "qk-rescale",
    value="LIMIT",
    summary="Cap attention logits through the query and key weights; changes the function at once where it binds.",
    formula="S_h the largest logit q.k / sqrt(d) of head h in this step's forward pass; where S_h > LIMIT, after the "
    "update W_q and W_k of the head (and their biases) times sqrt(LIMIT / S_h); W_q alone times LIMIT / S_h where "
    "heads share their keys; moments stay. Biases added to the logits (ALiBi) are not scaled, logits under a "
    "tanh cap are seen capped",
    reference="Kimi Team 2025, Kimi K2 (QK-Clip of MuonClip), arXiv 2507.20534, section 2.1 (LIMIT 100)",
    cost="queries times keys once more, with the whole matrix of logits in memory",
    example="qk-rescale=100",
)
def make(text: str | None) -> QKRescale:
    """Read the limit.

    Returns:
        The policy.
    """
    (limit,) = fields(text, ["LIMIT"], required=1)
    return QKRescale(number(str(limit), "LIMIT", above=0))
