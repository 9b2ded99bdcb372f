"""Paged decode attention in one launch: rotary embedding, quantised cache write, split-KV attention, combination."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..launch import Kernel, load
from ..nvrtc import Unit, unit
from ..ops import AttentionParams
from .kv import KVLayer


class _Arguments(ctypes.Structure):
    """`Arguments` of attn_decode.cu."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                *(
                    "qkv",
                    "out",
                    "cache",
                    "rows",
                    "positions",
                    "tables",
                    "cos",
                    "sin",
                    "gain",
                    "slopes",
                    "sinks",
                ),
                *("partial", "weights", "tickets"),
            )
        ),
        *(
            (name, ctypes.c_int)
            for name in ("table_stride", "kv_heads", "group", "rope_dim", "window", "least_split")
        ),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "eps")),
    ]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call is cut up. warps per CTA; ctas on an SM that registers are limited for; splits: the most of one
    row; least: tokens per cluster below which there is only one; cluster: CTAs that merge their splits through
    distributed shared memory (sm_90+), a divisor of splits, or 1; depth: tiles that a warp holds."""

    warps: int
    ctas: int
    splits: int
    least: int
    cluster: int
    depth: int


def shares(heads: int, kv_heads: int, head_dim: int) -> tuple[int, int]:
    """(query heads of one key-value head that a CTA takes, CTAs that share a key-value head)."""
    group = heads // kv_heads
    most = 16 if group <= 16 and head_dim <= 128 else 8
    parts = -(-group // most)
    return -(-group // parts), parts


def make_plan(
    pairs: int,
    group: int,
    head_dim: int,
    bits: int,
    capacity: int,
    processors: int,
    major: int,
    special: bool,
) -> Plan:
    """For `pairs` CTAs before splitting, contexts up to `capacity` tokens, on `processors` SMs of compute capability
    `major`.x. Measured on an H200, 8 key-value heads of 128:

    - Clusters merge within 0.5 us where a ticket takes 1.6, but those of 4 do not fill the card: a row or two at 320
      tokens 3.5 us instead of 5.0 (of 2), at 32,000 tokens 39.6 instead of 37.3; and only if an eighth stays free
      (48 if not).
    - From 16 rows on splitting pays beyond 1,024 tokens only.
    - Where every SM has two rows, smaller CTAs waste less of the last wave.
    - A second tile in flight pays where it is small, int4, and fits the registers (`special`: see AttentionParams)."""
    wide = group > 8 or head_dim > 128  # twice the registers
    warps = 4 if wide or pairs > 2 * processors else 8
    ctas = 2 if wide else (16 if major == 9 else 12) // warps  # others' code takes a few registers more
    slots = processors * ctas
    cluster = 1
    if major >= 9 and 2 * pairs <= processors:
        cluster, slots = (4, slots * 7 // 8) if 8 * pairs <= processors else (2, slots)
    splits = max(1, min(slots // pairs, max(4, capacity // (16 * warps))))
    cluster = min(cluster, splits)
    return Plan(
        warps,
        ctas,
        splits // cluster * cluster,
        512 if cluster == 1 else 256,
        cluster,
        2 if bits == 4 and major == 9 and not wide and head_dim in (64, 128) and not special else 1,
    )


def plan_unit(layer: KVLayer, group: int, plan: Plan, params: AttentionParams) -> Unit:
    return unit(
        "attn_decode.cu",
        DTYPE_BF16=layer.dtype == torch.bfloat16,
        KV_BITS=layer.bits,
        HEAD_DIM=layer.head_dim,
        BLOCK_SIZE=layer.block_size,
        GROUP=group,
        WARPS=plan.warps,
        CTAS=plan.ctas,
        CLUSTER=plan.cluster,
        DEPTH=plan.depth,
        SOFTCAP=params.softcap is not None,
        ALIBI=params.slopes is not None,
        SINKS=params.sinks is not None,
    )


def units(
    heads: int,
    layer: KVLayer,
    params: AttentionParams,
    batches: Iterable[int],
    capacity: int,
    processors: int | None = None,
    major: int | None = None,
) -> tuple[Unit, ...]:
    """What calls of these batch sizes on contexts up to `capacity` tokens need, to be loaded before any capture:
    on the layer's device, or on one of so many SMs and that major compute capability."""
    group, parts = shares(heads, layer.kv_heads, layer.head_dim)
    device = layer.data.device
    processors = _processors(device) if processors is None else processors
    major = _major(device) if major is None else major
    plans = (
        make_plan(
            *(batch * layer.kv_heads * parts, group, layer.head_dim, layer.bits, capacity),
            *(processors, major, params.special),
        )
        for batch in batches
    )
    return tuple(dict.fromkeys(plan_unit(layer, group, plan, params) for plan in plans))


class Workspace:
    """Partial results of splits, for calls one after the other (all layers share one), up to `batch` rows of `heads`
    query heads. Its tickets are zero between calls."""

    def __init__(self, batch: int, heads: int, kv_heads: int, head_dim: int, device: torch.device) -> None:
        group, parts = shares(heads, kv_heads, head_dim)
        pairs = batch * kv_heads * parts
        slots = _processors(device) * 4 + pairs  # make_plan: at most four CTAs an SM where anything is split
        self.partial = torch.zeros(slots * group * head_dim, dtype=torch.float32, device=device)
        self.weights = torch.zeros(slots * group * 2, dtype=torch.float32, device=device)
        self.tickets = torch.zeros(pairs, dtype=torch.int32, device=device)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


@cache
def _kernel(wanted: Unit, device: torch.device) -> Kernel:
    return load(wanted, device).kernel("attn_decode")


def attend(
    qkv: Tensor,
    heads: int,
    cache: KVLayer,
    rows: Tensor,
    positions: Tensor,
    tables: Tensor,
    cos: Tensor,
    sin: Tensor,
    params: AttentionParams,
    qk_gain: Tensor | None,
    eps: float,
    workspace: Workspace,
    plan: Plan | None = None,
) -> Tensor:
    """One token per row: q and k of qkv [B, (heads + 2 kv_heads) * D] (RMS-normed with qk_gain [heads + kv_heads, D]
    float32 if given, then rotated by cos, sin [B, rope_dim / 2] float32), its K and V written into `cache` at
    positions [B] int32, attention over positions 0..position as stored -> [B, heads * D] in qkv's dtype.

    Row b's blocks are tables[rows[b]] (int32 [any, capacity / block_size]); several rows may share a spare table of
    zeros at position 0. Reads rows, positions, tables and what older steps cached before the preceding kernel ends:
    kernels of the same graph must not write them. Lengths may change between replays of a captured call.
    """
    batch, dim = qkv.shape[0], cache.head_dim
    group, parts = shares(heads, cache.kv_heads, dim)
    grid = cache.kv_heads * parts
    if plan is None:
        capacity = tables.shape[1] * cache.block_size
        plan = make_plan(
            *(batch * grid, group, dim, cache.bits, capacity),
            *(_processors(qkv.device), _major(qkv.device), params.special),
        )
    out = torch.empty(batch, heads * dim, dtype=qkv.dtype, device=qkv.device)
    pointers = (
        *(qkv, out, cache.data, rows, positions, tables, cos, sin, qk_gain, params.slopes, params.sinks),
        *(workspace.partial, workspace.weights, workspace.tickets),
    )
    arguments = _Arguments(
        *(None if tensor is None else tensor.data_ptr() for tensor in pointers),
        tables.stride(0),
        cache.kv_heads,
        heads // cache.kv_heads,
        2 * cos.shape[-1],
        params.window or 0,
        plan.least,
        params.scale,
        params.softcap or 0.0,
        eps,
    )
    kernel = _kernel(plan_unit(cache, group, plan, params), qkv.device)
    kernel((grid, batch, plan.splits), 32 * plan.warps, arguments, pdl=True)
    return out
