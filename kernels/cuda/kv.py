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


def read_cache(layer: KVLayer) -> tuple[Tensor, Tensor]:
    """K and V as attention sees them, float32 [blocks, kv_heads, block_size, head_dim]."""
    size, row = layer.block_size, layer.head_dim * layer.bits // 8
    data = layer.data
    halves = []
    for which in range(2):
        rows = data[..., which * size * row : (which + 1) * size * row].contiguous()
        rows = rows.view(*data.shape[:2], size, row)
        if layer.bits == 16:
            halves.append(rows.view(layer.dtype).float())
            continue
        at = 2 * size * row + which * size * 4
        params = data[..., at : at + size * 4].contiguous().view(torch.float16).float()
        params = params.view(*data.shape[:2], size, 2)
        if layer.bits == 4:
            rows = torch.stack((rows & 15, rows >> 4), -1).flatten(-2)
        halves.append(params[..., 1:] + params[..., :1] * rows.float())
    return halves[0], halves[1]


def encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """What the kernels make of heads x [..., head_dim] in the model's dtype: codes uint8 [..., head_dim] (not yet
    packed) and (scale, min) float16 [..., 2]. Scale and min are rounded first; a scale of 0 gives codes of 0."""
    wide = x.float()
    low, high = wide.aminmax(dim=-1, keepdim=True)
    params = torch.cat(((high - low) / (2**bits - 1), low), -1).half()
    scale, least = params[..., :1].float(), params[..., 1:].float()
    codes = torch.where(scale > 0, (wide - least) / scale, 0).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), params


def rows_of(x: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """Heads x [..., head_dim] as bytes of their rows, uint8 [..., row bytes], and their params as bytes [..., 4]."""
    if bits == 16:
        return x.contiguous().view(torch.uint8), None
    codes, params = encode(x, bits)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes, params.view(torch.uint8)


def fill_cache(layer: KVLayer, keys: Tensor, values: Tensor) -> None:
    """Overwrite all of `layer` with keys and values [blocks, kv_heads, block_size, head_dim] in its dtype."""
    parts = [rows_of(x, layer.bits) for x in (keys, values)]
    pieces = [rows for rows, _ in parts] + [params for _, params in parts if params is not None]
    layer.data.copy_(torch.cat([piece.flatten(2) for piece in pieces], -1))
