"""Attention logits seen beside a training forward pass: the same as by hand, and the pass stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.rerun.attention import watching_logits


class Attention(nn.Module):
    def __init__(self, how: str, heads: int, shared: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.heads, self.shared = how, heads, shared
        self.q_proj, self.k_proj = nn.Linear(16, 4 * heads), nn.Linear(16, 4 * shared)

    def forward(self, stream: Tensor) -> Tensor:
        rows, length, _ = stream.shape
        query = self.q_proj(stream).view(rows, length, self.heads, 4).transpose(1, 2)
        key = self.k_proj(stream).view(rows, length, self.shared, 4).transpose(1, 2)
        if self.how == "gqa":
            return functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
        key = key.repeat_interleave(self.heads // self.shared, dim=1)
        open_ = torch.ones(length, length, dtype=torch.bool).tril()
        if self.how == "causal":
            return functional.scaled_dot_product_attention(query, key, key, is_causal=True)
        if self.how == "mask":
            return functional.scaled_dot_product_attention(query, key, key, attn_mask=open_)
        if self.how == "additive":
            mask = torch.zeros(length, length).masked_fill(~open_, torch.finfo(torch.float32).min)
            return functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
        scores = (query @ key.transpose(-2, -1) / 2).masked_fill(~open_, torch.finfo(torch.float32).min)
        return functional.softmax(scores, dim=-1) @ key  # type: ignore[no-any-return]

    def by_hand(self, stream: Tensor) -> Tensor:
        rows, length, _ = stream.shape
        query = self.q_proj(stream).view(rows, length, self.heads, 4)
        key = self.k_proj(stream).view(rows, length, self.shared, 4)
        key = key.repeat_interleave(self.heads // self.shared, dim=2)
        scores = torch.einsum("bihd,bjhd->bhij", query, key) / 2
        closed = torch.ones(length, length, dtype=torch.bool).triu(1)
        return scores.masked_fill(closed, -torch.inf).amax(dim=(0, 2, 3)).detach()


STREAM = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", ["causal", "mask", "additive", "eager", "gqa"])
def test_each_heads_largest_logit_is_that_by_hand(how: str) -> None:
    module = nn.ModuleDict({"attn": Attention(how, 4, 2)})
    seen: dict[str, Tensor] = {}
    attention = module["attn"]
    plain = attention(STREAM)
    with watching_logits(module, seen):
        watched = attention(STREAM)
    assert torch.equal(plain, watched)
    assert watched.requires_grad
    assert list(seen) == ["attn"]
    torch.testing.assert_close(seen["attn"], attention.by_hand(STREAM))  # type: ignore[operator]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_second_batch_raises_what_was_seen() -> None:
    module = nn.ModuleDict({"attn": Attention("causal", 2, 2)})
    seen: dict[str, Tensor] = {}
    with watching_logits(module, seen):
        module["attn"](STREAM[:1])
        module["attn"](STREAM[1:])
    torch.testing.assert_close(seen["attn"], module["attn"].by_hand(STREAM))  # type: ignore[operator]


def test_torchs_own_attention_module_is_seen() -> None:
    module = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4, batch_first=True)})
    seen: dict[str, Tensor] = {}
    with watching_logits(module, seen):
        module["attn"](STREAM, STREAM, STREAM, need_weights=False)
    assert list(seen) == ["attn"]
    assert seen["attn"].shape == (4,)


def test_a_failing_pass_leaves_no_hook() -> None:
    module = nn.ModuleDict({"attn": Attention("causal", 2, 2)})
    with pytest.raises(RuntimeError), watching_logits(module, {}):
        module["attn"](torch.ones(1, 2, 3))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
