"""Matrices of any checkpoint format as plain weights, on any device: computed in float32, some rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .formats import INTEGER, FormatError, Packed
from .formats_int import Codes, Raw, checked_scales, read_codes

NUMBERS = 1 << 24  # made at a time: bounds the float32 workspace
# Values of a four-bit float e2m1, OCP Microscaling Formats 1.0, table 5.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def dequantise(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    """The weight [rows, columns] in `dtype`. Raises FormatError naming the tensor that is damaged."""
    if packed.format in INTEGER:
        return dequantise_codes(read_codes(packed, raw), dtype)
    return _DECODERS[packed.format](packed, raw, dtype)


def dequantise_codes(codes: Codes, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that codes stand for."""
    rows, columns = codes.codes.shape
    index = codes.index
    if index is None:
        index = torch.arange(columns, device=codes.codes.device) // codes.group
    back = None if codes.order is None else torch.argsort(codes.order)

    def part(at: slice) -> Tensor:
        scales, zeros = (values[at].float().index_select(1, index) for values in (codes.scales, codes.zeros))
        weight = codes.codes[at].float().sub_(zeros).mul_(scales)
        return weight if back is None else weight[:, back]

    return _by_rows(rows, columns, dtype, codes.codes.device, part)


def _by_rows(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device, part: Callable[[slice], Tensor]
) -> Tensor:
    """[rows, columns], `part(rows)` at a time."""
    whole = torch.empty(rows, columns, dtype=dtype, device=device)
    for at in _slices(rows, max(1, NUMBERS // columns)):
        whole[at].copy_(part(at))
    return whole


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(first, first + step) for first in range(0, count, step))


def _fp8(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    name = "weight_scale_inv" if "weight_scale_inv" in raw else "weight_scale"
    weight, scale = raw["weight"], checked_scales(name, raw[name]).float()
    if scale.numel() == packed.rows and scale.numel() > 1 and scale.shape[1:] in ((), (1,)):
        tall, wide = 1, packed.columns
    else:
        tall, wide = (packed.rows, packed.columns) if scale.numel() == 1 else packed.scheme.block
    scale = scale.view(-(-packed.rows // tall), -(-packed.columns // wide))
    columns = torch.arange(packed.columns, device=weight.device) // wide
    rows = torch.arange(packed.rows, device=weight.device) // tall

    def part(at: slice) -> Tensor:
        return weight[at].float().mul_(scale.index_select(0, rows[at]).index_select(1, columns))

    return _by_rows(packed.rows, packed.columns, dtype, weight.device, part)


def _int8(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    weight, scale = raw["weight"], checked_scales("weight_scale", raw["weight_scale"])
    zeros = raw.get("weight_zero_point", torch.zeros_like(scale, dtype=torch.int8))
    scale, zeros = (x.float().view(-1, x.shape[-1] if x.dim() == 2 else 1) for x in (scale, zeros))
    scale, zeros = (x.expand(packed.rows, -1) for x in (scale, zeros))
    index = torch.arange(packed.columns, device=weight.device) // packed.group

    def part(at: slice) -> Tensor:
        return (
            weight[at].float().sub_(zeros[at].index_select(1, index)).mul_(scale[at].index_select(1, index))
        )

    return _by_rows(packed.rows, packed.columns, dtype, weight.device, part)


def _bnb8(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    weight = raw["weight"]
    if "weight_format" in raw and int(raw["weight_format"].view(-1)[0]) != 0:
        raise FormatError("weight_format", "is not the row layout")
    scale = checked_scales("SCB", raw["SCB"], zero=True).unsqueeze(1) / 127
    return _by_rows(
        packed.rows, packed.columns, dtype, weight.device, lambda at: weight[at].float().mul_(scale[at])
    )


def _values(data: Tensor, table: Tensor) -> Tensor:
    """float32 [..., 2n] of the nibbles of uint8 [..., n], low ones first."""
    return table[torch.stack((data & 15, data >> 4), -1).flatten(-2).int()]


def _mxfp4(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    blocks, name = (
        ("weight_blocks", "weight_scales") if "weight_blocks" in raw else ("weight_packed", "weight_scale")
    )
    exponents = raw[name]
    if bool((exponents == 255).any()):  # e8m0's NaN
        raise FormatError(name, "holds NaN")
    data = raw[blocks].view(packed.rows, -1)
    table = torch.tensor(E2M1, device=data.device)

    def part(at: slice) -> Tensor:
        scale = torch.exp2(exponents[at].float() - 127).unsqueeze(-1)
        return (_values(data[at], table).view(-1, packed.columns // 32, 32) * scale).flatten(1)

    return _by_rows(packed.rows, packed.columns, dtype, data.device, part)


def _nvfp4(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    data = raw["weight_packed"] if "weight_packed" in raw else raw["weight"]
    scales = checked_scales("weight_scale", raw["weight_scale"].float(), zero=True)
    if "weight_global_scale" in raw:
        scales = scales / checked_scales("weight_global_scale", raw["weight_global_scale"])
    else:
        scales = scales * checked_scales("weight_scale_2", raw["weight_scale_2"])
    table = torch.tensor(E2M1, device=data.device)

    def part(at: slice) -> Tensor:
        values = _values(data[at], table).view(-1, packed.columns // 16, 16)
        return (values * scales[at].unsqueeze(-1)).flatten(1)

    return _by_rows(packed.rows, packed.columns, dtype, data.device, part)


def _bnb4(packed: Packed, raw: Raw, dtype: torch.dtype) -> Tensor:
    """bitsandbytes: blocks of neighbouring numbers of the flattened matrix share an absolute maximum; the high nibble
    of a byte comes first. Maxima may be quantised themselves."""
    name = next(name for name in raw if name.startswith("weight.quant_state."))
    state = _bnb_state(name, raw[name], packed)
    block, count = state["blocksize"], packed.rows * packed.columns
    maxima = raw["weight.absmax"]
    if maxima.numel() != -(-count // block):
        raise FormatError(
            "weight.absmax", f"holds {maxima.numel()} numbers for {-(-count // block)} blocks of {block}"
        )
    if "weight.nested_absmax" in raw:
        nested = checked_scales("weight.nested_absmax", raw["weight.nested_absmax"], zero=True)
        size = state["nested_blocksize"]
        if nested.numel() != -(-maxima.numel() // size):
            raise FormatError("weight.nested_absmax", f"holds {nested.numel()} numbers for blocks of {size}")
        spread = nested.repeat_interleave(size)[: maxima.numel()]
        maxima = raw["weight.nested_quant_map"][maxima.int()] * spread + state["nested_offset"]
    maxima = checked_scales("weight.absmax", maxima, zero=True)
    table, data = (
        checked_scales("weight.quant_map", raw["weight.quant_map"], zero=True),
        raw["weight"].view(-1),
    )
    whole = torch.empty(count, dtype=dtype, device=data.device)
    for at in _slices(-(-count // block), max(1, NUMBERS // block)):
        first, end = at.start * block, min(at.stop * block, count)
        some = data[first // 2 : -(-end // 2)]
        values = table[torch.stack((some >> 4, some & 15), -1).flatten().int()][: end - first]
        whole[first:end] = values * maxima[at].repeat_interleave(block)[: end - first]
    return whole.view(packed.rows, packed.columns)


def _bnb_state(name: str, stored: Tensor, packed: Packed) -> dict[str, int]:
    """The JSON object that bitsandbytes stores as bytes: block sizes, and the shape, which must be the matrix's."""
    try:
        state = json.loads(bytes(stored.cpu().tolist()))
    except (ValueError, RecursionError):
        raise FormatError(name, "is not valid JSON") from None
    if not isinstance(state, dict) or state.get("shape") != [packed.rows, packed.columns]:
        raise FormatError(name, f"does not describe a matrix of {[packed.rows, packed.columns]}")
    for key in ("blocksize", "nested_blocksize"):
        value = state.setdefault(key, 256)
        if type(value) is not int or value < 2 or value > 1 << 20 or value % 2:
            raise FormatError(name, f"{key} must be an even number")
    offset = state.setdefault("nested_offset", 0.0)
    if not isinstance(offset, (int, float)) or not abs(offset) < 1e6:
        raise FormatError(name, "nested_offset must be a number")
    return state


_DECODERS = {
    "fp8": _fp8,
    "int8": _int8,
    "bnb8": _bnb8,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "bnb4": _bnb4,
}
