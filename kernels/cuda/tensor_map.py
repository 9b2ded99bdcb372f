"""Descriptors by which sm_90's copy engine reads boxes of a tensor (CUDA driver API, cuTensorMapEncodeTiled)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..launch import LaunchError, _driver, error_name

Map = ctypes.Array[ctypes.c_uint64]
_KINDS = {torch.int32: 3, torch.float16: 6, torch.bfloat16: 9}  # CUtensorMapDataType
_SWIZZLE_128B = 3
_L2_128B = 2


def encode(
    matrix: Tensor, size: Sequence[int], stride: Sequence[int], box: Sequence[int], swizzled: bool
) -> Map:
    """The descriptor of `matrix`'s memory as a tensor of `size` numbers, innermost first; stride: bytes from one to
    the next along every dimension but the innermost; read in boxes of `box`, zeros outside. swizzled: the 16-byte
    pieces of 128-byte rows are exchanged (piece ^ row % 8)."""
    rank = len(size)
    room = (ctypes.c_uint64 * 32)()  # the driver wants it aligned to 64 bytes
    result = (ctypes.c_uint64 * 16).from_buffer(room, -ctypes.addressof(room) % 128)
    code = _driver().cuTensorMapEncodeTiled(
        ctypes.byref(result),
        _KINDS[matrix.dtype],
        rank,
        ctypes.c_void_p(matrix.data_ptr()),
        (ctypes.c_uint64 * rank)(*size),
        (ctypes.c_uint64 * (rank - 1))(*stride),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        0,
        _SWIZZLE_128B if swizzled else 0,
        _L2_128B,
        0,
    )
    if code:
        raise LaunchError(f"a matrix {[*matrix.shape]} cannot be read by tiles: {error_name(code)}")
    return result


def rows_and_columns(matrix: Tensor, columns: int, rows: int, swizzled: bool = True) -> Map:
    """A row-major matrix [R, C] read in boxes of `rows` by `columns`."""
    pitch = matrix.stride(0) * matrix.element_size()
    return encode(matrix, (matrix.shape[1], matrix.shape[0]), (pitch,), (columns, rows), swizzled)


def column_blocks(matrix: Tensor, rows: int, blocks: int) -> Map:
    """A contiguous matrix [R, C] of 16-bit numbers, C a multiple of 64, as [C / 64, R, 64], read in boxes of `blocks` by
    `rows` by 64, swizzled."""
    height, width = matrix.shape
    return encode(matrix, (64, height, width // 64), (width * 2, 128), (64, rows, blocks), True)
