"""The CUDA cache's records (kernels/cuda/kv.cuh) written and read in torch, by the reference's quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from lmtop.kernels.cuda.kv import KVLayer
from lmtop.kernels.reference_kv import quantise


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


def rows_of(x: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """Heads x [..., head_dim] as bytes of their rows, uint8 [..., row bytes], and their params as bytes [..., 4]."""
    if bits == 16:
        return x.contiguous().view(torch.uint8), None
    codes, params = quantise(x, bits)
    return codes, params.view(torch.uint8)


def fill_cache(layer: KVLayer, keys: Tensor, values: Tensor) -> None:
    """Overwrite all of `layer` with keys and values [blocks, kv_heads, block_size, head_dim] in its dtype."""
    parts = [rows_of(x, layer.bits) for x in (keys, values)]
    pieces = [rows for rows, _ in parts] + [params for _, params in parts if params is not None]
    layer.data.copy_(torch.cat([piece.flatten(2) for piece in pieces], -1))
