"""A vector of any length in a few thousand numbers that keep its inner products: a sparse random projection.

Every entry goes, with a random sign, into one bucket of each of a few independent blocks (Kane & Nelson 2014, arXiv
1012.1577). One block alone is a count sketch; the mean of the blocks' inner products is unbiased, and how far the
blocks differ tells its error.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

#: Independent blocks, and buckets of each: 2^BUCKET_BITS.
BLOCKS, BUCKET_BITS = 8, 10
#: Numbers that a sketch has; a vector that is no longer is kept as it is.
LENGTH = BLOCKS << BUCKET_BITS
#: Entries whose buckets are drawn at once.
CHUNK = 1 << 20
#: Blocks whose buckets and signs come out of one drawn integer.
_BLOCKS_A_DRAW, _BITS = 4, BUCKET_BITS + 1


def sketch(pieces: Iterable[Tensor], size: int, seed: int) -> Tensor:
    """Project a vector that comes in pieces.

    The buckets are drawn on the CPU and depend on the seed and the entry's place alone, so that vectors of any device
    and in any pieces of one order can be compared.

    Args:
        pieces: parts of the vector, one after another, of any shapes.
        size: entries of all of them.
        seed: of the projection; only sketches of one seed and size can be compared.

    Returns:
        [1, size] the vector itself where that is no longer than `LENGTH`, else [BLOCKS, 2^BUCKET_BITS]; float64, on the
        CPU. Inner products are means over the blocks of inner products of rows.
    """
    if size <= LENGTH:
        return torch.cat([piece.detach().flatten().double().cpu() for piece in pieces])[None]
    total, codes, drawn = torch.empty(0), torch.empty(0), -1
    place = 0
    for piece in pieces:
        flat = piece.detach().flatten()
        if not len(total):
            # Apple's devices have no float64.
            where = torch.device("cpu") if flat.device.type == "mps" else flat.device
            total = torch.zeros(LENGTH, dtype=torch.float64, device=where)
        done = 0
        while done < flat.numel():
            chunk, within = divmod(place, CHUNK)
            if chunk != drawn:
                codes, drawn = _codes(chunk, seed), chunk
            count = min(CHUNK - within, flat.numel() - done)
            values = flat[done : done + count].to(total.device, total.dtype)
            for block in range(BLOCKS):
                code = codes[block, within : within + count].to(total.device).long()
                signed = torch.where((code & 1).bool(), -values, values)
                total.index_add_(0, (code >> 1) + (block << BUCKET_BITS), signed)
            place, done = place + count, done + count
    return total.cpu().view(BLOCKS, 1 << BUCKET_BITS)


def _codes(chunk: int, seed: int) -> Tensor:
    """Draw bucket and sign of every entry of a chunk in every block, [BLOCKS, CHUNK]."""
    generator = torch.Generator().manual_seed((seed << 24) + chunk)
    size = BLOCKS // _BLOCKS_A_DRAW, CHUNK
    drawn = torch.randint(1 << (_BLOCKS_A_DRAW * _BITS), size, generator=generator)
    mask = (1 << _BITS) - 1
    parts = [(drawn >> (_BITS * part)) & mask for part in range(_BLOCKS_A_DRAW)]
    return torch.cat(parts).to(torch.int16)


def cosines(sketches: Tensor) -> Tensor:
    """Cosines between vectors of which each block of their sketches tells.

    Args:
        sketches: [vectors, blocks, buckets], none of them zero.

    Returns:
        [blocks, vectors, vectors]; the mean over blocks has ones on its diagonal.
    """
    products = torch.einsum("ibk,jbk->bij", sketches, sketches)
    lengths = products.mean(dim=0).diagonal().sqrt()
    return products / (lengths[:, None] * lengths)
