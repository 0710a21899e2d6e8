"""Extreme eigenvalues with a second opinion: a fresh random vector, and both chains together where ends are close.

A small residual certifies *an* eigenvalue. A start that hardly meets the extreme eigenvector settles on the next one,
and nothing in its Krylov space shows it. So once the first space has settled, a random vector orthogonal to it joins
(the band Lanczos process of Ruhe 1979): its own chain is multiplied first, and as long as another pair may reach
beyond the ends, both chains in turn, which is block Lanczos with two vectors (Golub & Van Loan, section 10.3.6). All
that the first chain found stays in the projection, so nothing is computed twice and no value gets worse.
"""

from __future__ import annotations

from torch import Tensor

from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.krylov import KrylovSpace, RitzPairs, in_doubt
from hnf_offline.linalg.operator import SymmetricOperator
from hnf_offline.linalg.stopping import CERTIFIED, StopRule


class CertifyingSpace(KrylovSpace):
    """A Krylov space that asks a fresh vector before it ends; driven like any other, also in lock-step."""

    def __init__(self, start: Tensor, fresh: Tensor, rule: StopRule = CERTIFIED) -> None:
        """Begin at a vector.

        Args:
            start: some weight on the wanted eigenvectors, [dimension].
            fresh: random, independent of the start and of the operator, [dimension].
            rule: when to end; `rule.fresh` products at least are spent on the fresh vector's own chain.
        """
        super().__init__(start, rule)
        self._fresh: Tensor | None = fresh
        self._alone: RitzPairs | None = None  # what the first chain said before the fresh vector joined
        self._alone_products = 0

    def _decide(self) -> None:
        super()._decide()
        if self.products >= self.rule.maximum:
            return
        if self._fresh is not None:
            if self.finished and len(self._basis) < self._dimension:
                self._join(self._fresh)
            return
        second = self.products - self._alone_products
        if second < self.rule.fresh and len(self._waiting) > 1:
            self._waiting.rotate(1)  # the newest vector, of the fresh chain, goes first
        if second < self.rule.fresh or self._open():
            self.finished = self._exhausted

    def _open(self) -> bool:
        assert self._ritz is not None
        return any(in_doubt(self._ritz, end, size, self.rule) for end, size in self._wanted())

    def _join(self, fresh: Tensor) -> None:
        self._fresh = None
        self._alone, self._alone_products = self._ritz, self.products
        _, remainder = self._basis.remainder(fresh)
        self._waiting.appendleft(len(self._basis))
        self._basis.append(remainder / remainder.norm())
        self.finished = self._exhausted = False

    def _certified(self, end: int) -> bool:
        if self._exhausted:
            return super()._certified(end)
        if self._alone is None or self.products - self._alone_products < self.rule.fresh:
            return False
        assert self._ritz is not None
        value = float(self._ritz.values[end])
        moved = abs(value - float(self._alone.values[end]))
        return moved <= self.rule.residual * abs(value) and super()._certified(end)


def certified_extremes(
    operator: SymmetricOperator, start: Tensor, fresh: Tensor, rule: StopRule = CERTIFIED
) -> Extremes:
    """Find the extreme eigenvalues from a start vector and have a fresh one look for others.

    Args:
        operator: the symmetric operator M.
        start: any vector with some weight on the wanted eigenvectors, [dimension].
        fresh: random, independent of the start and of the operator, [dimension].
        rule: when to stop.

    Returns:
        Both ends. One is certified only if its residual is small, no other pair may reach beyond it, and the fresh
        vector did not move it.
    """
    space = CertifyingSpace(start, fresh, rule)
    while not space.finished:
        space.advance(operator(space.vector))
    return space.result()
