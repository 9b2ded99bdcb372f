"""Prefill's step between the qkv product and attention: rotate, quantise, write into the paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import load
from ..nvrtc import Unit, unit
from .kv import KVLayer

_THREADS = 256


def units(cache: KVLayer, rope_dim: int, qk_norm: bool = False) -> tuple[Unit, ...]:
    """What a model with such caches needs."""
    return (
        unit(
            "rope_kv.cu",
            DTYPE_BF16=cache.dtype == torch.bfloat16,
            HEAD_DIM=cache.head_dim,
            KV_BITS=cache.bits,
            BLOCK_SIZE=cache.block_size,
            ROPE_DIM=rope_dim,
            QK_NORM=qk_norm,
        ),
    )


def write(
    qkv: Tensor,
    heads: int,
    cache: KVLayer,
    table: Tensor,
    start: int,
    cos: Tensor,
    sin: Tensor,
    qk_gain: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """The rows of one sequence at positions start .. start + n - 1, qkv [n, (H + 2K) * D] contiguous: q and k are
    RMS-normed per head where qk_gain [H + K, D] float32 is given, then rotated in place by cos and sin
    [n, rope_dim / 2] float32 (pairs (i, i + rope_dim / 2)); k and v go into the blocks of table [C] int32, quantised
    as `kv.cuh` says. Returns q [n, H, D], a view of qkv."""
    rows, kv_heads, dim = qkv.shape[0], cache.kv_heads, cache.head_dim
    if rows:
        per_cta = _THREADS // (1 << (dim // 8 - 1).bit_length())  # heads: a lane has eight numbers
        (which,) = units(cache, 2 * cos.shape[1], qk_gain is not None)
        load(which, qkv.device).kernel("rope_kv_write")(
            (rows, -(-(heads + 2 * kv_heads) // per_cta), 1),
            _THREADS,
            qkv,
            cos,
            sin,
            table,
            cache.data,
            qk_gain,
            eps,
            start,
            heads,
            kv_heads,
            pdl=True,
        )
    return qkv.view(rows, heads + 2 * kv_heads, dim)[:, :heads]
