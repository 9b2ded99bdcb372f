"""Four-bit weights: the canonical form that every checkpoint format and the quantiser produce, and round to nearest.

y = sum over groups g of scale[g] * (code - zero[g]) * x, groups of `group` neighbouring inputs of one output row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.ops import Int4

ROWS = 4096  # rows quantised at a time: bounds the float32 workspace


def quantise_rtn(weight: Tensor, bias: Tensor | None, group: int, symmetric: bool = False) -> Int4:
    """Round `weight` [out, in] to nearest, each group on its own range; `group` -1 is a whole row.

    Asymmetric: codes 0..15 span min..max, which include 0. Symmetric: zero is code 8 and codes span -max..max.
    A last group may be short.
    """
    inputs = weight.shape[1]
    size = inputs if group == -1 else group
    parts = [_quantise_rows(rows, size, symmetric) for rows in torch.split(weight, ROWS)]
    codes, scales, zeros = (torch.cat(column) for column in zip(*parts, strict=True))
    return Int4(codes, scales, zeros, size, bias)


def _quantise_rows(rows: Tensor, size: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    inputs = rows.shape[1]
    groups = -(-inputs // size)
    padded = torch.nn.functional.pad(rows.float(), (0, groups * size - inputs)).view(len(rows), groups, size)
    if symmetric:
        scale = (padded.abs().amax(-1) / 7.5).half().clamp_min(torch.finfo(torch.float16).tiny)
        zero = torch.full_like(scale, 8)
    else:
        low, high = padded.amin(-1).clamp_max(0), padded.amax(-1).clamp_min(0)
        scale = ((high - low) / 15).half().clamp_min(torch.finfo(torch.float16).tiny)
        zero = (-low / scale.float()).round().clamp(0, 15)
    codes = (padded / scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)).round_().clamp_(0, 15)
    return codes.view(len(rows), -1)[:, :inputs].to(torch.uint8), scale, zero.to(torch.uint8)
