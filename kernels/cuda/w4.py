"""The packed layout of 4-bit weights that the GEMV and GEMM kernels share ("A16x64").

A weight is w[row, k] = scale * (q - zero), q in 0..15, scale and zero one per row and group of `group` columns.

`words` int32 [N/16, K/64, 32, 4]: 16 rows by 64 columns are 512 bytes in the very order of the A operand of
`mma.m16n8k16` (PTX ISA, "Matrix fragments for mma.m16n8k16"): lane l owns 16 bytes; word j is its share of the
columns 16j .. 16j+15 of the tile. With r = l / 4 and c = 2 * (l % 4), bits 4i .. 4i+3 hold the column c and bits
16+4i .. 16+4i+3 the column c+1 of fragment register i: i = 0 is (row r, c), 1 is (r+8, c), 2 is (r, c+8) and 3 is
(r+8, c+8). Masking with 0x000f000f << (0 or 4), after a shift by 8 for registers 2 and 3, so gives two codes at once.

`pairs` int32 [N/16, K/group, 8, 2]: bits 0..15 the scale as fp16, bits 16..31 the zero as an integer, of row r and of
row r+8 side by side. Both tensors are contiguous along K for one tile of 16 rows.

Rows are padded to 16 and columns to 128 by scale, code and zero 0. With `gate_up` the rows of a fused gate | up matrix
are interleaved: tile i holds the rows 8i .. 8i+7 of gate, then the same rows of up; both halves are padded to 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = (32, 64, 128)


class PackError(ValueError):
    """These codes, scales and zeros are no W4 matrix that the kernels can run."""


@dataclass(frozen=True, slots=True)
class PackedW4:
    """A 4-bit matrix [rows, columns], packed as this module says. `rows` and `columns` do not count the padding."""

    words: Tensor
    pairs: Tensor
    rows: int
    columns: int
    group: int
    gate_up: bool = False

    @property
    def padded_rows(self) -> int:
        return self.words.shape[0] * 16

    @property
    def padded_columns(self) -> int:
        return self.words.shape[1] * 64

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.pairs.nbytes


def pack_w4(codes: Tensor, scales: Tensor, zeros: Tensor, *, gate_up: bool = False) -> PackedW4:
    """Pack codes uint8 [N, K], scales fp16 and zeros uint8 [N, K / group] (group 32, 64 or 128, or one for the
    whole row), on the device that they are on. Raises PackError if the shapes or dtypes fit no kernel."""
    rows, columns = codes.shape
    group = _group(codes, scales, zeros)
    if scales.shape[1] == 1:
        scales, zeros = (x.expand(-1, -(-columns // group)) for x in (scales, zeros))
    if gate_up and rows % 2:
        raise PackError(f"a fused gate and up matrix needs an even number of rows, not {rows}")
    wide = -columns % 128
    codes = _tile_rows(F.pad(codes, (0, wide)), gate_up)
    more = (columns + wide) // group - scales.shape[1]
    scales, zeros = (_tile_rows(F.pad(x, (0, more)), gate_up) for x in (scales, zeros))
    # [tile, row / 8, row % 8, k / 64, j, k / 8 % 2, lane % 4, k % 2]
    split = codes.view(codes.shape[0], 2, 8, -1, 4, 2, 4, 2)
    nibbles = split[:, 0] | (split[:, 1] << 4)
    lanes = nibbles.permute(
        0, 2, 1, 5, 3, 6, 4
    ).contiguous()  # tile, k / 64, row, lane % 4, j, k % 2, k / 8 % 2
    words = lanes.flatten(5).view(torch.int32).view(lanes.shape[0], -1, 32, 4)
    both = torch.stack((scales.contiguous().view(torch.int16), zeros.short()), -1)  # [tile, 16, groups, 2]
    both = both.view(both.shape[0], 2, 8, -1, 2)
    pairs = both.permute(0, 3, 2, 1, 4).contiguous().view(torch.int32).squeeze(-1)
    return PackedW4(words, pairs, rows, columns, group, gate_up)


def unpack_w4(packed: PackedW4) -> tuple[Tensor, Tensor, Tensor]:
    """The codes uint8 [N, K], scales fp16 and zeros uint8 [N, ceil(K / group)] that were packed."""
    tiles = packed.words.shape[0]
    lanes = packed.words.view(torch.uint8).view(tiles, -1, 8, 4, 4, 2, 2)
    split = torch.stack(
        (lanes & 15, lanes >> 4), 1
    )  # tile, row / 8, k / 64, row, lane % 4, j, k % 2, k / 8 % 2
    codes = split.permute(0, 1, 3, 2, 5, 7, 4, 6).reshape(tiles, 16, -1)
    both = packed.pairs.unsqueeze(-1).view(torch.int16).permute(0, 3, 2, 1, 4).reshape(tiles, 16, -1, 2)
    scales, zeros = both[..., 0].contiguous().view(torch.float16), both[..., 1].byte()
    groups = -(-packed.columns // packed.group)
    codes, scales, zeros = (_rows_of(x, packed) for x in (codes, scales, zeros))
    return codes[:, : packed.columns], scales[:, :groups], zeros[:, :groups]


def _group(codes: Tensor, scales: Tensor, zeros: Tensor) -> int:
    rows, columns = codes.shape
    if (codes.dtype, scales.dtype, zeros.dtype) != (torch.uint8, torch.float16, torch.uint8):
        raise PackError(
            f"codes, scales, zeros must be uint8, float16, uint8, not {codes.dtype}, {scales.dtype}, {zeros.dtype}"
        )
    count = scales.shape[1]
    if scales.shape != zeros.shape or scales.shape[0] != rows:
        raise PackError(
            f"codes {[*codes.shape]}, scales {[*scales.shape]} and zeros {[*zeros.shape]} do not belong together"
        )
    if count == 1 and columns not in GROUPS:
        return 128
    for group in GROUPS:
        if count * group == columns:
            return group
    raise PackError(
        f"{columns} columns in {count} groups: groups of {GROUPS} columns or one per row can be run"
    )


def _tile_rows(x: Tensor, gate_up: bool) -> Tensor:
    """[N, C] -> [tiles, 16, C]: rows padded and, for gate_up, interleaved 8 by 8."""
    if not gate_up:
        return F.pad(x, (0, 0, 0, -x.shape[0] % 16)).view(-1, 16, x.shape[1])
    halves = x.view(2, -1, x.shape[1])
    halves = F.pad(halves, (0, 0, 0, -halves.shape[1] % 8))
    return halves.view(2, -1, 8, x.shape[1]).transpose(0, 1).reshape(-1, 16, x.shape[1])


def _rows_of(x: Tensor, packed: PackedW4) -> Tensor:
    """The inverse of `_tile_rows`."""
    if not packed.gate_up:
        return x.reshape(-1, x.shape[-1])[: packed.rows]
    halves = x.view(-1, 2, 8, x.shape[-1]).transpose(0, 1).reshape(2, -1, x.shape[-1])
    return halves[:, : packed.rows // 2].reshape(packed.rows, -1)
