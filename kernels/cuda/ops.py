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
from . import attn_decode, attn_prefill, chain, elementwise, gemm, matvec, rope_kv
from . import kv as caches
from .chain import Product
from .sample import LOGPROBS, SAMPLE
from .stage import STAGE
from .w4 import PackedW4, pack_w4

FEW = matvec.MAX_TOKENS  # rows
BITS = {"16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class Packed:
    """A linear layer with packed four-bit weights; `order`: see `kernels.ops.Int4`."""

    weight: PackedW4
    bias: Tensor | None
    order: Tensor | None = None

    @property
    def nbytes(self) -> int:
        beside = (part.nbytes for part in (self.bias, self.order) if part is not None)
        return self.weight.nbytes + sum(beside)


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
class Matrix:
    """The size of a matrix, and of the groups of its four-bit weights: 0 where they are plain."""

    rows: int
    columns: int
    group: int = 0
    gate_up: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides which kernels a model needs. `matrices` are all that differ, the last one's included. `batches`
    are the row counts of decode steps, `capacity` the tokens that a block table holds."""

    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    qk_norm: bool
    windows: tuple[int | None, ...]
    matrices: tuple[Matrix, ...]
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
    weights = [_meta(matrix, shape.dtype) for matrix in shape.matrices]
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    found = [
        *elementwise.units(shape.dtype),
        *rope_kv.units(cache, shape.rope_dim, shape.qk_norm),
        *matvec.units(weights, shape.dtype, device),
        *chain.units(weights, shape.dtype, device),
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


def _meta(matrix: Matrix, dtype: torch.dtype) -> Tensor | PackedW4:
    """A matrix of this shape without its numbers."""
    if not matrix.group or matrix.columns % 8:
        return torch.empty(matrix.rows, matrix.columns, dtype=dtype, device="meta")
    tiles, wide = -(-matrix.rows // 16), -(-matrix.columns // 128) * 128
    words = torch.empty(tiles, wide // 64, 32, 4, dtype=torch.int32, device="meta")
    pairs = torch.empty(tiles, wide // matrix.group, 8, 2, dtype=torch.int32, device="meta")
    return PackedW4(words, pairs, matrix.rows, matrix.columns, matrix.group, matrix.gate_up)


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
        self._norms: dict[tuple[int, int, float], matvec.Norm] = {}
        self._chains: dict[tuple[int, int], tuple[tuple[Linear, ...], tuple[Product, ...] | None]] = {}

    def prepare(self, layer: Dense | Int4, gate_up: bool = False) -> Linear:
        if isinstance(layer, Dense):
            return layer
        inputs = layer.codes.shape[1]
        if inputs % 8:  # rows of x are not 16-byte aligned: no kernel for it
            return Dense(reference.dequantise(layer, torch.float16), layer.bias)
        wide = layer.scales.shape[1] * layer.group - inputs
        packed = pack_w4(F.pad(layer.codes, (0, wide)), layer.scales, layer.zeros, gate_up=gate_up)
        return Packed(replace(packed, columns=inputs), layer.bias, layer.order)

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

    def _norm(self, gain: Tensor, eps: float, layer: Linear) -> matvec.Norm:
        """The norm before a layer as the matrix-vector kernels want it, in the layer's order of inputs; made at its
        first use, which is before any capture."""
        order = _order(layer)
        key = (gain.data_ptr(), 0 if order is None else order.data_ptr(), eps)
        if key not in self._norms:
            self._norms[key] = matvec.fold_norm(gain if order is None else gain[order], eps)
        return self._norms[key]

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        return elementwise.embed(table, tokens)

    def norm_linear(self, x: Tensor, gain: Tensor, eps: float, layer: Linear) -> Tensor:
        if x.shape[0] <= self._few:
            return _few_rows(_in_order(x, layer), layer, norm=self._norm(gain, eps, layer))
        return gemm.linear(_in_order(elementwise.rms_norm(x, gain, eps), layer), layer.weight, layer.bias)

    def after_attention(
        self,
        attended: Tensor,
        x: Tensor,
        o: Linear,
        gain: Tensor,
        eps: float,
        gate_up: Linear,
        down: Linear,
        following: tuple[Tensor, Linear] | None,
    ) -> tuple[Tensor, Tensor | None]:
        products = self._chain(x, (o, gate_up, down), gain, eps, following)
        if products is not None:
            outs = chain.run(products, attended, (x, None, 0, None)[: len(products)])
            return outs[2], outs[3] if following else None
        x = self._linear(attended, o, x)
        x = self._linear(self._norm_gate_up(x, gain, eps, gate_up), down, x)
        return x, None if following is None else self.norm_linear(x, following[0], eps, following[1])

    def _chain(
        self,
        x: Tensor,
        layers: tuple[Linear, Linear, Linear],
        gain: Tensor,
        eps: float,
        following: tuple[Tensor, Linear] | None,
    ) -> tuple[Product, ...] | None:
        """The layers as a chain, or None where so many rows must go through them one by one."""
        if x.shape[0] > FEW or self._invariant:
            return None
        if any(_order(layer) is not None for layer in (*layers, *(following or ())[1:])):
            return None
        key = (id(layers[0]), x.shape[0])
        if key not in self._chains:
            norms = (None, self._norm(gain, eps, layers[1]), None)
            products = [
                Product(layer.weight, layer.bias, norm, at == 1)
                for at, (layer, norm) in enumerate(zip(layers, norms, strict=True))
            ]
            if following is not None:
                products.append(
                    Product(
                        following[1].weight, following[1].bias, self._norm(following[0], eps, following[1])
                    )
                )
            # The layers are kept with their chain, so that no other can get their identity.
            self._chains[key] = layers, tuple(products) if chain.can(products, x.shape[0], x.dtype) else None
        return self._chains[key][1]

    def _linear(self, x: Tensor, layer: Linear, residual: Tensor) -> Tensor:
        x = _in_order(x, layer)
        if x.shape[0] <= self._few:
            return _few_rows(x, layer, residual=residual)
        return gemm.linear(x, layer.weight, layer.bias, residual=residual)

    def _norm_gate_up(self, x: Tensor, gain: Tensor, eps: float, layer: Linear) -> Tensor:
        if x.shape[0] <= self._few:
            return _few_rows(_in_order(x, layer), layer, norm=self._norm(gain, eps, layer), silu=True)
        normed = _in_order(elementwise.rms_norm(x, gain, eps), layer)
        return gemm.linear(normed, layer.weight, layer.bias, silu=True)

    def logits(self, x: Tensor, gain: Tensor, eps: float, head: Linear) -> Tensor:
        if x.shape[0] <= FEW and not self._invariant:
            product = Product(head.weight, head.bias, self._norm(gain, eps, head))
            if chain.can((product,), x.shape[0], x.dtype):
                return chain.run((product,), _in_order(x, head), (None,), out_float=True)[0]
        if x.shape[0] <= self._few:
            return _few_rows(_in_order(x, head), head, norm=self._norm(gain, eps, head), out_float=True)
        normed = _in_order(elementwise.rms_norm(x, gain, eps), head)
        return gemm.linear(normed, head.weight, head.bias, out_float=True)

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


def _order(layer: Linear) -> Tensor | None:
    return layer.order if isinstance(layer, Packed) else None


def _in_order(x: Tensor, layer: Linear) -> Tensor:
    """The columns of x in the order in which the layer takes them."""
    order = _order(layer)
    return x if order is None else x.index_select(1, order)


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
