"""The quantised paged cache in torch: int8 and int4, a scale and a minimum per token and head.

x = minimum + scale * code, codes 0 .. 2^bits - 1. scale = (max - min) / (2^bits - 1) and minimum are rounded to
float16 first and the codes chosen against the rounded values; a head of equal numbers has scale 0 and codes 0.
int4: byte i holds number 2i in its low and 2i + 1 in its high nibble.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class QuantisedKV:
    """One layer: codes uint8 [blocks, block_size, 2K, D * bits / 8], params float16 [blocks, block_size, 2K, 2]
    (scale, minimum); key heads before value heads. `dtype` is what reading gives."""

    codes: Tensor
    params: Tensor
    bits: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        blocks, size, both, width = self.codes.shape
        return blocks, size, both, width * 8 // self.bits

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.params.nbytes

    def write(self, slots: Tensor, kv: Tensor) -> None:
        """Store kv [n, 2K, D] at flat token slots [n]."""
        codes, params = quantise(kv, self.bits)
        both = kv.shape[1]
        self.codes.view(-1, both, codes.shape[-1]).index_copy_(0, slots, codes)
        self.params.view(-1, both, 2).index_copy_(0, slots, params)

    def read(self, blocks: Tensor) -> Tensor:
        """Blocks [n] as numbers, [n, block_size, 2K, D] of `dtype`."""
        return dequantise(
            self.codes.index_select(0, blocks), self.params.index_select(0, blocks), self.bits
        ).to(self.dtype)


def new_quantised(
    num_blocks: int, block_size: int, kv_heads: int, head_dim: int, like: Tensor, bits: int
) -> QuantisedKV:
    """An empty cache that reads as zeros, on the device and in the type of `like`."""
    shape = (num_blocks, block_size, 2 * kv_heads)
    codes = torch.zeros((*shape, head_dim * bits // 8), dtype=torch.uint8, device=like.device)
    return QuantisedKV(
        codes, torch.zeros((*shape, 2), dtype=torch.float16, device=like.device), bits, like.dtype
    )


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., D] -> codes uint8 [..., D * bits / 8] and params float16 [..., 2]."""
    wide = x.float()
    low, high = wide.amin(-1), wide.amax(-1)
    params = torch.stack(((high - low) / (2**bits - 1), low), -1).half()
    scale, minimum = params.float().unbind(-1)
    codes = ((wide - minimum.unsqueeze(-1)) / scale.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1)
    codes = torch.where(scale.unsqueeze(-1) > 0, codes, 0).to(torch.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, params


def dequantise(codes: Tensor, params: Tensor, bits: int) -> Tensor:
    """The numbers, float32 [..., D]."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    wide = params.float()
    return codes.float().mul_(wide[..., :1]).add_(wide[..., 1:])
