"""Four-bit weights: the canonical form that every checkpoint format and the quantiser produce, and round to nearest.

y = sum over groups g of scale[g] * (code - zero[g]) * x, groups of `group` neighbouring inputs of one output row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import reference
from ..kernels.ops import Dense, Int4

ROWS = 4096  # rows quantised at a time: bounds the float32 workspace
NUMBERS = 1 << 24  # dequantised at a time: the same


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


def dequantise(layer: Int4, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that a layer's codes stand for, inputs in their natural order; some rows at a time."""
    rows, inputs = layer.codes.shape
    whole = torch.empty(rows, inputs, dtype=dtype, device=layer.codes.device)
    step = max(1, NUMBERS // inputs)
    for first in range(0, rows, step):
        at = slice(first, first + step)
        part = Int4(layer.codes[at], layer.scales[at], layer.zeros[at], layer.group)
        weight = reference.dequantise(part, dtype)
        whole[at] = weight if layer.order is None else weight[:, torch.argsort(layer.order)]
    return whole


def in_format(layer: Dense | Int4, wanted: str, dtype: torch.dtype, group: int | None) -> Dense | Int4:
    """`layer` as `wanted`: "16", codes made plain in `dtype`; or "int4", plain weights rounded in groups of `group`,
    or left as they are where that is None."""
    if isinstance(layer, Int4):
        return layer if wanted == "int4" else Dense(dequantise(layer, dtype), layer.bias)
    if wanted == "int4" and group is not None:
        return quantise_rtn(layer.weight, layer.bias, group)
    return layer


def _quantise_rows(rows: Tensor, size: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    inputs = rows.shape[1]
    groups = -(-inputs // size)
    padded = torch.nn.functional.pad(rows.float(), (0, groups * size - inputs)).view(len(rows), groups, size)
    scale, zero = grid(padded.amin(-1), padded.amax(-1), symmetric)
    codes = encode(padded, scale, zero)
    return codes.view(len(rows), -1)[:, :inputs].to(torch.uint8), scale, zero


def grid(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales (float16) and zero points (uint8) of groups whose weights run from `low` to `high`, float32 of any shape."""
    tiny = torch.finfo(torch.float16).tiny
    if symmetric:
        scale = (torch.maximum(-low, high) / 7.5).half().clamp_min(tiny)
        return scale, torch.full_like(scale, 8, dtype=torch.uint8)
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 15).half().clamp_min(tiny)
    return scale, (-low / scale.float()).round().clamp(0, 15).to(torch.uint8)


def encode(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest codes of weights [..., group] float32 on scales and zero points [...]; codes as float32."""
    codes = groups / scale.float().unsqueeze(-1)
    return codes.add_(zero.float().unsqueeze(-1)).round_().clamp_(0, 15)
