"""Integer codes out of checkpoints: AWQ, GPTQ and compressed-tensors, brought to one form, on any device.

Words are little-endian int32 with the first code in the lowest bits, so they are unpacked through their bytes: a code
costs one byte on the way, never a 32-bit number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import OWN_CODES, FormatError, Packed

# Nibble i of an AWQ word holds column (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight; this is the way back.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
HALF_ROUNDING = 2.0**-11  # of a float16, relative: what a 16-bit weight is off by as well

Raw = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix of integer codes: w[r, c] = (codes[r, c] - zeros[r, g]) * scales[r, g], with g = index[c].

    codes uint8 [out, in]; scales [out, groups] in the stored type; zeros uint8 [out, groups]; index int64 [in], None
    where it is c // group. order int64 [in]: column c is that of input order[c], and groups are of neighbours; None
    where columns are in the order of the inputs.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group: int
    index: Tensor | None = None
    order: Tensor | None = None

    @property
    def natural(self) -> bool:
        """Whether groups are of neighbouring inputs."""
        return self.index is None and self.order is None


def read_codes(packed: Packed, raw: Raw) -> Codes:
    """The codes of a matrix in one of the formats `INTEGER`. Raises FormatError naming the tensor that is damaged."""
    codes = _READERS[packed.format](packed, raw)
    groups = codes.scales.shape[1]
    if codes.index is None:
        return codes
    part = "g_idx" if packed.format == "gptq" else "weight_g_idx"
    index = codes.index.long()
    if bool((index == -1).all()):  # compressed-tensors' "not reordered"
        return Codes(codes.codes, codes.scales, codes.zeros, codes.group)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= groups:
        raise FormatError(part, f"names group {low if low < 0 else high}, there are {groups}")
    plain = torch.arange(packed.columns, device=index.device) // codes.group
    return Codes(
        codes.codes, codes.scales, codes.zeros, codes.group, None if bool((index == plain).all()) else index
    )


def column_order(codes: Codes) -> Tensor | None:
    """The order [in] of columns in which the groups follow each other, or None where no order makes groups of equal
    size. Not for natural ones."""
    if codes.order is not None:
        return codes.order
    assert codes.index is not None
    order = torch.argsort(codes.index, stable=True)
    plain = torch.arange(len(order), device=order.device) // codes.group
    return order if bool((codes.index[order] == plain).all()) else None


def half_scales(scales: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The scales in float16, or None where they cannot be held: exactly for computing in float32, to within the
    rounding of a 16-bit weight else."""
    half = scales.half()
    if half.dtype == scales.dtype:
        return half
    allowed = 0.0 if dtype == torch.float32 else HALF_ROUNDING
    exact = scales.float()
    return half if bool(((half.float() - exact).abs() <= exact.abs() * allowed).all()) else None


def regroup(values: Tensor, group: int, smaller: int, columns: int) -> Tensor:
    """Scales or zero points [out, groups] of groups of `group` columns, repeated for groups of `smaller`, which
    divides it unless there is one group only."""
    if values.shape[1] == 1:
        return values.expand(-1, -(-columns // smaller))
    return values.repeat_interleave(group // smaller, 1)[:, : -(-columns // smaller)]


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """Words of any width [n, m] -> their codes, uint8 [n, m * width / bits], lowest bits first."""
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data
    return torch.stack((data & 15, data >> 4), -1).flatten(-2)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack_words`; the last axis is padded with zeros."""
    codes = F.pad(codes, (0, -codes.shape[-1] % (32 // bits)))
    if bits == 4:
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    return codes.contiguous().view(torch.int32)


def _awq(packed: Packed, raw: Raw) -> Codes:
    def columns(words: Tensor) -> Tensor:
        eights = unpack_words(words, 4).view(len(words), -1, 8)
        return eights[..., AWQ_ORDER].flatten(1).t().contiguous()

    return Codes(
        columns(raw["qweight"]),
        checked_scales("scales", raw["scales"]).t().contiguous(),
        columns(raw["qzeros"]),
        packed.group,
    )


def _gptq(packed: Packed, raw: Raw) -> Codes:
    stored = unpack_words(raw["qzeros"], packed.bits).t()
    top = (1 << packed.bits) - 1
    zeros = (stored + packed.scheme.zero_offset) & top  # the first version wrapped 0 - 1 around
    if packed.scheme.symmetric:
        zeros = _symmetric(stored, packed.bits)
    return Codes(
        unpack_words(raw["qweight"].t(), packed.bits),
        checked_scales("scales", raw["scales"]).t().contiguous(),
        zeros.contiguous(),
        packed.group,
        raw.get("g_idx"),
    )


def _symmetric(stored: Tensor, bits: int) -> Tensor:
    """Zero points of a matrix that is said to be symmetric: the middle, which both versions of GPTQ store in their
    own way, so that a wrong word about the version does no harm."""
    middle = 1 << (bits - 1)
    low, high = int(stored.min()), int(stored.max())
    if low != high or low not in (middle - 1, middle):
        raise FormatError(
            "qzeros", f"the configuration says symmetric, but zero points run from {low} to {high}"
        )
    return torch.full_like(stored, middle)


def _pack(packed: Packed, raw: Raw) -> Codes:
    shape = raw.get("weight_shape")
    if shape is not None and shape.tolist() != [packed.rows, packed.columns]:
        raise FormatError("weight_shape", f"is {shape.tolist()}, expected {[packed.rows, packed.columns]}")
    scales = checked_scales("weight_scale", raw["weight_scale"])
    middle, top = 1 << (packed.bits - 1), (1 << packed.bits) - 1
    stored = raw.get("weight_zero_point")
    if stored is None:
        zeros = torch.full(scales.shape, middle, dtype=torch.uint8, device=scales.device)
    elif stored.dtype == torch.int32:  # packed along the outputs
        zeros = unpack_words(stored.t(), packed.bits).t()[: packed.rows].contiguous()
    else:
        wide = stored.short() + middle
        if int(wide.min()) < 0 or int(wide.max()) > top:
            raise FormatError("weight_zero_point", f"is not within {-middle} to {top - middle}")
        zeros = wide.to(torch.uint8)
    codes = unpack_words(raw["weight_packed"], packed.bits)[:, : packed.columns]
    return Codes(codes.contiguous(), scales, zeros, packed.group, raw.get("weight_g_idx"))


def _own(packed: Packed, raw: Raw) -> Codes:
    """What `lmtop convert` wrote: codes in the order of their groups."""
    name = next(name for name in OWN_CODES if name in raw)
    codes, zeros = unpack_words(raw[name], 4)[:, : packed.columns], raw["zeros"]
    scales = checked_scales("scales", raw["scales"])
    if bool((zeros > 15).any()):
        raise FormatError("zeros", "holds a zero point above 15")
    order = raw.get("order")
    if order is not None:
        order = order.long()
        if not torch.equal(order.sort().values, torch.arange(packed.columns, device=order.device)):
            raise FormatError("order", "does not name every input once")
    return Codes(codes, scales, zeros, packed.group, order=order)


_READERS = {"awq": _awq, "gptq": _gptq, "pack": _pack, "lmtop": _own}


def checked_scales(part: str, scales: Tensor, zero: bool = False) -> Tensor:
    """`scales`, or FormatError where one is no finite number or, unless allowed, zero."""
    if not bool(torch.isfinite(scales.float()).all()):
        raise FormatError(part, "holds NaN or infinity")
    if not zero and bool((scales == 0).any()):
        raise FormatError(part, "holds a scale of zero")
    return scales
