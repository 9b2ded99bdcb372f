"""The operations of `kernels.ops` on a GPU: which kernel serves how many rows.

Up to `FEW` rows a product is bound by reading the weights and takes norm, bias, residual and activation along in
one kernel. More rows are normed by a kernel of their own; then our tensor-core product while it is ahead, cuBLAS
beyond. Nothing here waits for the device or copies to the host, so that a decode step can be captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..launch import architecture
from ..nvrtc import Unit
from ..ops import AttentionParams, Chunk, Dense, Int4
from . import attn_decode, attn_prefill, elementwise, gemm, matvec, rope_kv
from . import kv as caches
from .sample import LOGPROBS, SAMPLE
from .stage import STAGE
from .w4 import PackedW4, pack_w4

FEW = matvec.MAX_TOKENS  # rows
BITS = {"16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class Packed:
    """A linear layer with packed four-bit weights."""

    weight: PackedW4
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


Linear = Dense | Packed


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """One token of each of B sequences; all int32 but cos and sin [B, rope_dim / 2] float32."""

    positions: Tensor
    tables: Tensor
    rows: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Chunks one after the other, tables int32; cos and sin [n, rope_dim / 2] float32 of all their rows."""

    chunks: tuple[Chunk, ...]
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides which kernels a model needs. `matrices` are (rows, columns) of its layers' four, gate | up third;
    `head` of the last one; `packed` ones have four-bit weights in groups of `group`. `batches` are the row counts
    of decode steps, `capacity` the tokens that a block table holds."""

    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    qk_norm: bool
    windows: tuple[int | None, ...]
    matrices: tuple[tuple[int, int], ...]
    head: tuple[int, int]
    packed: bool
    packed_head: bool
    group: int
    kv: str
    block_size: int
    batches: tuple[int, ...]
    capacity: int


def units(shape: Shape, device: torch.device) -> tuple[Unit, ...]:
    """Every kernel that a model of this shape launches, to be compiled beforehand."""
    cache = caches.new_cache(
        1,
        shape.kv_heads,
        shape.head_dim,
        block_size=shape.block_size,
        bits=BITS[shape.kv],
        dtype=shape.dtype,
        device=device,
    )
    weights = [_meta(matrix, shape.packed, shape, at == 2) for at, matrix in enumerate(shape.matrices)]
    weights.append(_meta(shape.head, shape.packed_head, shape, False))
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    found = [
        *elementwise.units(shape.dtype),
        *rope_kv.units(cache, shape.rope_dim, shape.qk_norm),
        *matvec.units(weights, shape.dtype, device),
        *gemm.units(weights, shape.dtype, device),
        STAGE,
        SAMPLE,
        LOGPROBS,
    ]
    for window in shape.windows:
        params = AttentionParams(1.0, window)
        found += attn_prefill.units(cache, params, architecture(device), shared)
        found += attn_decode.units(shape.heads, cache, params, shape.batches, shape.capacity)
    return tuple(dict.fromkeys(found))


def _meta(matrix: tuple[int, int], packed: bool, shape: Shape, gate_up: bool) -> Tensor | PackedW4:
    """A matrix of this shape without its numbers."""
    rows, columns = matrix
    if not packed or columns % 8:
        return torch.empty(matrix, dtype=shape.dtype, device="meta")
    tiles, wide = -(-rows // 16), -(-columns // 128) * 128
    words = torch.empty(tiles, wide // 64, 32, 4, dtype=torch.int32, device="meta")
    pairs = torch.empty(tiles, wide // shape.group, 8, 2, dtype=torch.int32, device="meta")
    return PackedW4(words, pairs, rows, columns, shape.group, gate_up)


class CudaOps:
    """`kernels.ops.Ops` on one device, for one model; at most `max_batch` rows decode at once. `invariant`: what a
    row of a decode step gets does not depend on how many others there are, at the price of speed above `FEW`."""

    def __init__(
        self,
        device: torch.device,
        heads: int,
        kv_heads: int,
        head_dim: int,
        max_batch: int,
        invariant: bool = False,
    ) -> None:
        self._few = max_batch if invariant else FEW
        self._invariant = invariant
        self._max_batch = max_batch
        self._workspace = attn_decode.Workspace(max_batch, heads, kv_heads, head_dim, device)
        self._norms: dict[tuple[int, float], matvec.Norm] = {}

    def prepare(self, layer: Dense | Int4, gate_up: bool = False) -> Linear:
        if isinstance(layer, Dense):
            return layer
        inputs = layer.codes.shape[1]
        if inputs % 8:  # rows of x are not 16-byte aligned: no kernel for it
            return Dense(reference.dequantise(layer, torch.float16), layer.bias)
        wide = layer.scales.shape[1] * layer.group - inputs
        packed = pack_w4(F.pad(layer.codes, (0, wide)), layer.scales, layer.zeros, gate_up=gate_up)
        return Packed(replace(packed, columns=inputs), layer.bias)

    def new_cache(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, like: Tensor, kv: str = "16"
    ) -> caches.KVLayer:
        return caches.new_cache(
            num_blocks,
            kv_heads,
            head_dim,
            block_size=block_size,
            bits=BITS[kv],
            dtype=like.dtype,
            device=like.device,
        )

    def _norm(self, gain: Tensor, eps: float) -> matvec.Norm:
        """The norm as the matrix-vector kernels want it, made at a gain's first use, which is before any capture."""
        key = (gain.data_ptr(), eps)
        if key not in self._norms:
            self._norms[key] = matvec.fold_norm(gain, eps)
        return self._norms[key]

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        return elementwise.embed(table, tokens)

    def norm_linear(self, x: Tensor, gain: Tensor, eps: float, layer: Linear) -> Tensor:
        if x.shape[0] <= self._few:
            return _few_rows(x, layer, norm=self._norm(gain, eps))
        return gemm.linear(elementwise.rms_norm(x, gain, eps), layer.weight, layer.bias)

    def linear(self, x: Tensor, layer: Linear, residual: Tensor) -> Tensor:
        if x.shape[0] <= self._few:
            return _few_rows(x, layer, residual=residual)
        return gemm.linear(x, layer.weight, layer.bias, residual=residual)

    def norm_gate_up(self, x: Tensor, gain: Tensor, eps: float, layer: Linear) -> Tensor:
        if x.shape[0] <= self._few:
            return _few_rows(x, layer, norm=self._norm(gain, eps), silu=True)
        return gemm.linear(elementwise.rms_norm(x, gain, eps), layer.weight, layer.bias, silu=True)

    def logits(self, x: Tensor, gain: Tensor, eps: float, head: Linear) -> Tensor:
        if x.shape[0] <= self._few:
            return _few_rows(x, head, norm=self._norm(gain, eps), out_float=True)
        return gemm.linear(elementwise.rms_norm(x, gain, eps), head.weight, head.bias, out_float=True)

    def attend(
        self,
        qkv: Tensor,
        heads: int,
        batch: DecodeBatch | PrefillBatch,
        cache: caches.KVLayer,
        params: AttentionParams,
        qk_gain: Tensor | None,
        eps: float,
    ) -> Tensor:
        if isinstance(batch, DecodeBatch):
            return attn_decode.attend(
                qkv,
                heads,
                cache,
                batch.rows,
                batch.positions,
                batch.tables,
                batch.cos,
                batch.sin,
                params,
                qk_gain,
                eps,
                self._workspace,
                self._attention_plan(heads, cache, batch, params) if self._invariant else None,
            )
        counts = [chunk.count for chunk in batch.chunks]
        parts = zip(
            batch.chunks,
            *(whole.split_with_sizes(counts) for whole in (qkv, batch.cos, batch.sin)),
            strict=True,
        )
        out = [
            attn_prefill.attend(
                rope_kv.write(part, heads, cache, chunk.table, chunk.start, cos, sin, qk_gain, eps),
                cache,
                chunk.table,
                chunk.start,
                params,
            )
            for chunk, part, cos, sin in parts
        ]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _attention_plan(
        self, heads: int, cache: caches.KVLayer, batch: DecodeBatch, params: AttentionParams
    ) -> attn_decode.Plan:
        """How the largest batch is cut up, whatever this one's size: where a row is split decides its rounding."""
        group, parts = attn_decode.shares(heads, cache.kv_heads, cache.head_dim)
        properties = torch.cuda.get_device_properties(batch.rows.device)
        return attn_decode.make_plan(
            self._max_batch * cache.kv_heads * parts,
            group,
            cache.head_dim,
            cache.bits,
            batch.tables.shape[1] * cache.block_size,
            properties.multi_processor_count,
            properties.major,
            params.special,
        )

    def plan_decode(
        self,
        rotary: Any,
        positions: Tensor,
        lengths: Tensor | int,
        tables: Tensor,
        rows: Tensor | None,
        cache: caches.KVLayer,
        windows: tuple[int | None, ...],
    ) -> DecodeBatch:
        if rows is None:
            rows = torch.arange(positions.shape[0], dtype=torch.int32, device=positions.device)
        cos, sin = elementwise.rotary(positions, _lengths(rotary, lengths, positions), rotary)
        return DecodeBatch(positions, tables, rows, cos, sin)

    def plan_prefill(
        self,
        rotary: Any,
        chunks: Sequence[Chunk],
        cache: caches.KVLayer,
        windows: tuple[int | None, ...],
    ) -> PrefillBatch:
        device = chunks[0].table.device
        positions = torch.cat(
            [
                torch.arange(chunk.start, chunk.start + chunk.count, dtype=torch.int32, device=device)
                for chunk in chunks
            ]
        )
        lengths = None
        if rotary.by_length:
            lengths = torch.cat([torch.full_like(positions[: chunk.count], chunk.length) for chunk in chunks])
        cos, sin = elementwise.rotary(positions, lengths, rotary)
        return PrefillBatch(tuple(chunks), cos, sin)


def _lengths(rotary: Any, lengths: Tensor | int, positions: Tensor) -> Tensor | None:
    """Prompt lengths as a tensor like `positions`, where the rotary looks at them."""
    if not rotary.by_length:
        return None
    return torch.full_like(positions, lengths) if isinstance(lengths, int) else lengths


def _few_rows(x: Tensor, layer: Linear, residual: Tensor | None = None, **more: Any) -> Tensor:
    """The matrix-vector kernels, `FEW` rows at a time: a row's result does not depend on the others."""
    if x.shape[0] <= FEW:
        return matvec.linear(x, layer.weight, layer.bias, residual=residual, **more)
    parts = [
        matvec.linear(
            x[at : at + FEW],
            layer.weight,
            layer.bias,
            residual=None if residual is None else residual[at : at + FEW],
            **more,
        )
        for at in range(0, x.shape[0], FEW)
    ]
    return torch.cat(parts)
