"""The catalogue: one small file a family, each quantity a registered formula. No torch at import."""

from __future__ import annotations

from hnf_offline.quantities.registry import SOURCE_BANDS, Quantity, catalogue, computable

__all__ = ["SOURCE_BANDS", "Quantity", "catalogue", "computable"]
