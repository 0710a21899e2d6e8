"""Attention that is read while it is computed: torch's own output, and the rows of the scores as a whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.profile import watched_attention
from hnf_offline.profile.observe import observing
from hnf_offline.profile.watched_attention import attend
from hnf_offline.quantities.attention import AttentionRows, attention_rows

QUERIES, KEYS = 7, 9


def masks(dtype: torch.dtype) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    seen = torch.rand(3, 1, QUERIES, KEYS, generator=generator) > 0.3
    blind, lowest = seen.clone(), torch.zeros(3, 1, QUERIES, KEYS, dtype=dtype)
    blind[1, 0, 3] = False
    lowest[..., 5:] = torch.finfo(dtype).min
    return {
        "none": None,
        "seen": seen,
        "of all": seen[0, 0],
        "of each head": torch.rand(4, QUERIES, KEYS, generator=generator) > 0.3,
        "of each head of each sequence": torch.rand(3, 4, QUERIES, KEYS, generator=generator) > 0.3,
        "a query that sees nothing": blind,
        "added": torch.randn(QUERIES, KEYS, generator=generator, dtype=dtype),
        "most negative": lowest,
        "causal": torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(),
        "padded at the right, of one query": torch.arange(KEYS).expand(1, KEYS) < KEYS - 4,
        "a window, and the first queries see nothing": torch
        .ones(QUERIES, KEYS, dtype=torch.bool)
        .tril(-3)
        .triu(-5),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", masks(torch.float32))
@pytest.mark.parametrize(("at_once", "stretch"), [(1, 64), (200, 64), (1 << 16, 64), (200, 2), (1 << 16, 3)])
def test_output_is_torchs_and_rows_are_those_of_all_scores(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, at_once: int, stretch: int
) -> None:
    monkeypatch.setattr(watched_attention, "_SCORES_CPU", at_once)
    monkeypatch.setattr(watched_attention, "_QUERIES", stretch)
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        4 * torch.randn(3, heads, length, 5, generator=generator, dtype=dtype)
        for heads, length in ((4, QUERIES), (2, KEYS), (2, KEYS))
    )
    mask = masks(dtype)[name]
    found = attend(query, key, value, mask, enable_gqa=True)
    assert found is not None
    output, rows = found
    close = 1e-5 if dtype == torch.float32 else 1e-12
    expected = functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    assert torch.allclose(output, expected, atol=close)
    scores = query @ key.repeat_interleave(2, dim=1).mT / math.sqrt(5)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    opened = scores.masked_fill(scores <= torch.finfo(dtype).min / 2, -math.inf)
    logs = opened.log_softmax(dim=-1)
    attention = logs.exp()
    seen = (opened > -math.inf).sum(dim=-1)
    truth = AttentionRows(
        opened.amax(dim=-1), attention.amax(dim=-1), -torch.special.xlogy(attention, attention).sum(dim=-1), seen >= 2
    )  # fmt: skip
    for one in (rows, attention_rows(scores)):
        assert torch.equal(one.several, truth.several)
        assert torch.allclose(one.highest, truth.highest, atol=close)
        assert torch.allclose(one.entropy, truth.entropy, atol=close, equal_nan=True)
        assert torch.allclose(one.largest[seen > 0], truth.largest[seen > 0], atol=close)


def test_causal_queries_leave_out_the_keys_that_they_do_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_attention, "_QUERIES", 2)
    reach = watched_attention._reaches
    causal = torch.zeros(6, 6).masked_fill_(~torch.ones(6, 6, dtype=torch.bool).tril(), -math.inf)
    assert reach(6, 6, causal) == [(slice(0, 2), 2), (slice(2, 4), 4), (slice(4, 6), 6)]
    # Neither a mask that lets everything through nor one that only adds leaves anything out.
    assert reach(6, 6, torch.zeros(6, 6)) == [(slice(0, 6), 6)]
    lowest = causal.clamp(min=torch.finfo(torch.float32).min)
    assert reach(6, 6, lowest) == [
        (slice(0, 6), 6)
    ]  # torch gives a query that sees nothing else its share of these


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (7, 3), (3, 7), (9, 8)])
@pytest.mark.parametrize("stretch", [2, 4, 64])
def test_causal_is_the_lower_triangle_and_scale_is_that_asked_for(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, stretch: int
) -> None:
    monkeypatch.setattr(watched_attention, "_QUERIES", stretch)
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(2, 3, length, 4, generator=generator) for length in (queries, keys))
    found = attend(query, key, key, is_causal=True, scale=2.0)
    assert found is not None
    expected = functional.scaled_dot_product_attention(query, key, key, is_causal=True, scale=2.0)
    assert torch.allclose(found[0], expected, atol=1e-5)
    scores = (2 * query @ key.mT).masked_fill(~torch.ones(queries, keys).tril().bool(), -math.inf)
    truth = attention_rows(scores)
    for name in ("highest", "largest", "entropy"):
        assert torch.allclose(getattr(found[1], name), getattr(truth, name), atol=1e-5)
    assert found[1].several.tolist() == [[[False] + [True] * (queries - 1)] * 3] * 2
    assert found[1].entropy[..., 0].abs().max() < 1e-30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_stay_so(bad: float) -> None:
    query = torch.zeros(1, 1, 2, 2)
    query[0, 0, 1] = bad
    found = attend(query, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    assert found is not None
    assert found[0][0, 0, 0].tolist() == [1, 1] and found[0][0, 0, 1].isnan().all()
    assert not found[1].highest[0, 0, 1].isfinite() and not found[1].several[0, 0, 1]


def test_calls_that_are_not_covered_are_left_to_torch() -> None:
    query = torch.randn(1, 2, 3, 4)
    assert attend(query, query, query, dropout_p=0.5) is None
    assert attend(query[0], query[0], query[0]) is None
    assert attend(query.bfloat16(), query.bfloat16(), query.bfloat16()) is None


class Attention(nn.Module):
    """One query, key and value for all, attended in one of the ways that models have."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True) if how.startswith("module") else None

    def forward(self, stream: Tensor) -> Tensor:
        if self.inner is not None:
            weights = self.how == "module with weights"
            return self.inner(stream, stream, stream, need_weights=weights)[0]  # type: ignore[no-any-return]
        heads = stream.unflatten(-1, (2, 4)).transpose(1, 2)
        if self.how == "three dimensions":
            return functional.scaled_dot_product_attention(*[heads.flatten(0, 1)] * 3)
        if self.how == "called":
            return functional.scaled_dot_product_attention(heads, heads, heads)
        scores = heads @ heads.mT / 2
        if self.how == "softmax of a tensor":
            return scores.softmax(-1) @ heads
        return functional.softmax(scores, dim=-1) @ heads


@pytest.mark.parametrize(
    "how",
    ["called", "three dimensions", "softmax of a tensor", "functional", "module", "module with weights"],
)
def test_attention_is_seen_once_however_it_is_written(how: str) -> None:
    torch.manual_seed(0)
    module, stream = Attention(how).eval(), torch.randn(3, 5, 8)
    expected = module(stream).detach()
    seen: list[tuple[str, str]] = []
    with observing(module, lambda path, kind, _: seen.append((path, kind))):
        found = module(stream)
    assert torch.allclose(found, expected, atol=1e-6)
    assert seen == [("inner.softmax" if how.startswith("module") else "softmax", "softmax")]
