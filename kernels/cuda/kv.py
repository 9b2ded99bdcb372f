"""The paged key-value cache of one layer as the CUDA kernels keep it; `kv.cuh` describes the bytes of a record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One layer's cache. data: uint8 [blocks, kv_heads, record bytes]; block_size in tokens; bits per number, 16, 8
    or 4; dtype of the model, torch.float16 or torch.bfloat16, in which 16-bit numbers are stored."""

    data: Tensor
    head_dim: int
    block_size: int
    bits: int
    dtype: torch.dtype

    @property
    def kv_heads(self) -> int:
        return self.data.shape[1]


def record_bytes(head_dim: int, block_size: int, bits: int) -> int:
    """Bytes of one block of one key-value head: K and V, and two halves each a token where they are quantised."""
    return 2 * block_size * (head_dim * bits // 8 + (4 if bits < 16 else 0))


def new_cache(
    blocks: int,
    kv_heads: int,
    head_dim: int,
    *,
    block_size: int = 64,
    bits: int = 16,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str | None = None,
) -> KVLayer:
    """An empty cache of `blocks` blocks, zeros. Block 0 is where padding rows write; give it to no sequence."""
    if bits not in (16, 8, 4) or block_size not in BLOCK_SIZES or head_dim % 8 or not 0 < head_dim <= 256:
        raise ValueError(
            f"a cache of {bits} bits, blocks of {block_size}, heads of {head_dim}: bits are 16, 8 or 4, a block "
            f"has {', '.join(map(str, BLOCK_SIZES))} tokens, a head 8, 16 .. 256 numbers"
        )
    shape = (blocks, kv_heads, record_bytes(head_dim, block_size, bits))
    return KVLayer(torch.zeros(shape, dtype=torch.uint8, device=device), head_dim, block_size, bits, dtype)
