"""Causal attention of a prefill chunk over the paged cache, which holds earlier tokens and the chunk's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..launch import architecture, load, properties
from ..nvrtc import Unit, unit
from ..ops import AttentionParams
from .kv import KVLayer

_HOPPER_HEADS = (64, 80, 96, 128, 256)  # what attn_hopper.cu can do
_HOPPER_ROWS = 128


@dataclass(frozen=True, slots=True)
class Tiling:
    """How attn_prefill.cu cuts the work: warps of a CTA, 16-row tiles of a warp, keys of a tile, tiles in flight."""

    warps: int
    row_tiles: int
    keys: int
    stages: int

    @property
    def rows(self) -> int:
        return 16 * self.warps * self.row_tiles

    def shared(self, head_dim: int, bits: int) -> int:
        """Bytes of its `Shared`."""
        row = (2 * -(-head_dim // 16) + 1) * 16
        raw = 0 if bits == 16 else 2 * self.keys * (head_dim * bits // 8 + 4)
        return self.rows * row + 2 * (self.stages if bits == 16 else 1) * self.keys * row + raw


# The best first: the first that fits the device's shared memory is taken. Two 16-row tiles a warp are ahead (293 against
# 240 TFLOP/s on an H200 with heads of 128), but registers suffice for short heads only.
_SHORT_HEADS = Tiling(4, 2, 64, 2)
_TILINGS = (
    Tiling(8, 1, 64, 2),
    Tiling(4, 1, 64, 2),
    Tiling(4, 1, 64, 1),
    Tiling(4, 1, 32, 1),
    Tiling(4, 1, 16, 1),
)


def units(
    cache: KVLayer, params: AttentionParams, arch: str = "90a", shared: int = 232448
) -> tuple[Unit, ...]:
    """What layers with such a cache and such parameters need on sm_`arch` with `shared` bytes of shared memory."""
    if hopper(arch, cache.head_dim, cache.bits, params):
        return (_unit("attn_hopper.cu", cache, params),)
    return (_tiled(cache, params, tiling(cache.head_dim, cache.bits, params, shared)),)


def hopper(arch: str, head_dim: int, bits: int, params: AttentionParams) -> bool:
    """Whether attn_hopper.cu serves it: cached rows of whole 16 bytes; slopes, and heads of 256 that are quantised or
    have sinks, would spill registers."""
    fits = (
        head_dim in _HOPPER_HEADS
        and head_dim * bits % 128 == 0
        and (head_dim <= 128 or (bits == 16 and params.sinks is None))
    )
    return arch == "90a" and fits and params.slopes is None


def tiling(head_dim: int, bits: int, params: AttentionParams, shared: int) -> Tiling:
    """The tiling of attn_prefill.cu for `shared` bytes of shared memory a CTA."""
    plain = bits == 16 and params.window is None and not params.special
    choices = (_SHORT_HEADS, *_TILINGS) if head_dim <= (96 if plain else 80) else _TILINGS
    return next(t for t in choices if t.shared(head_dim, bits) <= shared or t is _TILINGS[-1])


def _unit(source: str, cache: KVLayer, params: AttentionParams, **more: int) -> Unit:
    return unit(
        source,
        DTYPE_BF16=cache.dtype == torch.bfloat16,
        HEAD_DIM=cache.head_dim,
        KV_BITS=cache.bits,
        BLOCK_SIZE=cache.block_size,
        WINDOW=params.window is not None,
        SOFTCAP=params.softcap is not None,
        SLOPES=params.slopes is not None,
        SINKS=params.sinks is not None,
        **more,
    )


def _tiled(cache: KVLayer, params: AttentionParams, cut: Tiling) -> Unit:
    return _unit(
        "attn_prefill.cu",
        cache,
        params,
        WARPS=cut.warps,
        ROW_TILES=cut.row_tiles,
        KEYS=cut.keys,
        STAGES=cut.stages,
    )


def attend(
    q: Tensor, cache: KVLayer, table: Tensor, start: int, params: AttentionParams, cut: Tiling | None = None
) -> Tensor:
    """q [n, H, D], row i at position start + i of one sequence, heads contiguous (rows may be strided) ->
    [n, H * D]. Keys 0 .. start + n - 1 are in the blocks of table [C] int32, the chunk's own too. What lies before
    every query's window may be anything. `cut`: take attn_prefill.cu and this tiling."""
    rows, heads, dim = q.shape
    out = torch.empty((rows, heads * dim), dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    chunk = (rows, start, heads, cache.kv_heads)
    how = (
        q.stride(0),
        float(params.scale),
        params.window or 0,
        float(params.softcap or 0.0),
        params.slopes,
        params.sinks,
    )
    device = properties(q.device)
    folded = rows * (heads // cache.kv_heads)
    if cut is None and hopper(architecture(q.device), dim, cache.bits, params):
        units_of_work = -(-folded // _HOPPER_ROWS) * cache.kv_heads
        splits = _splits(units_of_work, start + rows, params.window, device.multi_processor_count)
        parts = None
        if splits > 1:
            parts = torch.empty(splits * rows * heads * (dim + 2), dtype=torch.float32, device=q.device)
        shared = _hopper_shared(dim, cache.bits)
        module = load(_unit("attn_hopper.cu", cache, params), q.device)
        grid = min(units_of_work * splits, device.multi_processor_count)
        args = (q, cache.data, table, out, parts, splits, *chunk, *how)
        module.kernel("attn_hopper").max_shared(shared)(grid, 384, *args, shared=shared, pdl=True)
        if splits > 1:
            combine = module.kernel("attn_combine")
            combine(-(-rows * heads // 4), 128, parts, out, splits, *chunk, params.window or 0, pdl=True)
        return out
    cut = cut or tiling(dim, cache.bits, params, getattr(device, "shared_memory_per_block_optin", 49152))
    shared = cut.shared(dim, cache.bits)
    kernel = load(_tiled(cache, params, cut), q.device).kernel("attn_prefill").max_shared(shared)
    grid = -(-folded // cut.rows) * cache.kv_heads
    kernel(grid, 32 * cut.warps, q, cache.data, table, out, *chunk, *how, shared=shared, pdl=True)
    return out


def _splits(units_of_work: int, length: int, window: int | None, processors: int) -> int:
    """Into how many parts to cut the keys, where a short chunk would leave most of the device idle: each part has at
    least 512 keys, and all run at once."""
    keys = min(length, length if window is None else window)
    return max(1, min(processors // units_of_work, keys // 512))


def _hopper_shared(head_dim: int, bits: int) -> int:
    """Bytes of `Shared` in attn_hopper.cu: queries, two tiles each of keys and values, barriers, a quantised tile each."""
    keys, slabs = 64 if head_dim > 128 else 128, -(-head_dim // 64)
    lanes = max(2, 1 << (head_dim * bits // 128 - 1).bit_length())  # threads that load a row
    return (_HOPPER_ROWS + 4 * keys) * slabs * 128 + 80 + (0 if bits == 16 else 2 * keys * lanes * 20)
