"""The meaning of every operation of `kernels.ops`, in torch: the CPU product path and the oracle of GPU tests.

A small model's decode step is bound by the cost of torch calls (0.4-8 us each), so they are few and small: keys
and values share one cache tensor (one write, one gather), heads rotate in place, grouped queries fold into the
query length instead of repeating keys, masks are built once per step, sums ride on the matrix product. Prefill
keeps to transformers' eager order of roundings instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import AttentionParams, Chunk, Dense, Int4
from .reference_kv import QuantisedKV, new_quantised

NEG_INF = float("-inf")
SCORES = 1 << 23  # numbers in one tile of attention scores: bounds the workspace of a long prefill
FEW_ROWS = 16
ZERO = torch.zeros(())

Cache = Tensor | QuantisedKV
RotaryFn = Callable[[Tensor, "Tensor | int"], tuple[Tensor, Tensor]]  # positions, lengths -> cos, sin


@dataclass(frozen=True, slots=True)
class Batch:
    """What all layers of a decode step, or of one chunk of a prefill, share.

    positions, slots [n] int64: slot = block id * block size + offset, where the row's key and value go.
    blocks: the block ids to gather, row after row, int64; every row has the same count, which covers `length`,
    the longest context. fresh: ids of blocks that get their first token now, None for none. cos, sin [n, 1, rope_dim] float32: see `rotate_`. masks: window -> additive
    float mask, None where everything gathered is visible.
    """

    positions: Tensor
    slots: Tensor
    blocks: Tensor
    fresh: Tensor | None
    length: int
    cos: Tensor
    sin: Tensor
    masks: dict[int | None, Tensor | None]


def prepare(layer: Dense | Int4, gate_up: bool = False) -> Dense | Int4:
    return layer


def new_cache(
    num_blocks: int, block_size: int, kv_heads: int, head_dim: int, like: Tensor, kv: str = "16"
) -> Cache:
    """[blocks, block_size, 2 * kv_heads, head_dim]: key heads before value heads."""
    if kv != "16":
        return new_quantised(num_blocks, block_size, kv_heads, head_dim, like, {"int8": 8, "int4": 4}[kv])
    shape = (num_blocks, block_size, 2 * kv_heads, head_dim)
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    return table.index_select(0, tokens)


def norm_linear(x: Tensor, gain: Tensor, eps: float, layer: Dense | Int4) -> Tensor:
    return linear(rms_norm(x, gain, eps), layer)


def norm_gate_up(x: Tensor, gain: Tensor, eps: float, layer: Dense | Int4) -> Tensor:
    return silu_mul(linear(rms_norm(x, gain, eps), layer))


def linear(x: Tensor, layer: Dense | Int4, residual: Tensor | None = None) -> Tensor:
    if isinstance(layer, Int4):
        x = x if layer.order is None else x.index_select(-1, layer.order)
        layer = Dense(dequantise(layer, x.dtype), layer.bias)
    if residual is None:
        return torch.mm(x, layer.turned) if layer.bias is None else torch.addmm(layer.bias, x, layer.turned)
    if layer.bias is not None:
        residual = residual + layer.bias
    return torch.addmm(residual, x, layer.turned)


def after_attention(
    attended: Tensor,
    x: Tensor,
    o: Dense | Int4,
    gain: Tensor,
    eps: float,
    gate_up: Dense | Int4,
    down: Dense | Int4,
    following: tuple[Tensor, Dense | Int4] | None,
) -> tuple[Tensor, Tensor | None]:
    x = linear(attended, o, x)
    x = linear(norm_gate_up(x, gain, eps, gate_up), down, x)
    return x, None if following is None else norm_linear(x, following[0], eps, following[1])


def dequantise(layer: Int4, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that four-bit codes stand for, columns in the order of the codes."""
    inputs = layer.codes.shape[1]
    scales, zeros = (
        part.float().repeat_interleave(layer.group, 1)[:, :inputs] for part in (layer.scales, layer.zeros)
    )
    return (layer.codes.float().sub_(zeros).mul_(scales)).to(dtype)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    if x.dtype != torch.float32:
        return rms_norm(x.float(), gain, eps).to(x.dtype)
    width = x.shape[-1]
    if x.is_cpu and x.numel() == width:
        # one row: the scale is a number of the host, and 0 + scale * x * gain one call: 3 us
        norm = float(torch.linalg.vector_norm(x, 2, -1, True))
        return torch.addcmul(ZERO, x, gain, value=1 / math.sqrt(norm * norm / width + eps))
    if x.shape[0] <= FEW_ROWS:
        # the same through |x|: 5 us instead of the 7 us of F.rms_norm
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        scale = torch.addcmul(_constant(eps, x.device), norm, norm, value=1 / width).rsqrt_()
        return (x * scale).mul_(gain)
    if gain.dim() == 1:
        return F.rms_norm(x, (width,), gain, eps)
    return F.rms_norm(x, (width,), None, eps).mul_(gain)


_CONSTANTS: dict[tuple[float, torch.device], Tensor] = {}


def _constant(value: float, device: torch.device) -> Tensor:
    """A kept scalar tensor: making one costs as much as a norm's arithmetic."""
    key = (value, device)
    if key not in _CONSTANTS:
        _CONSTANTS[key] = torch.tensor(value, dtype=torch.float32, device=device)
    return _CONSTANTS[key]


def silu_mul(gate_up: Tensor) -> Tensor:
    """[n, 2 * width] as gate | up -> silu(gate) * up, [n, width]."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def attend(
    qkv: Tensor,
    heads: int,
    batch: Batch | tuple[Batch, ...],
    cache: Cache,
    params: AttentionParams,
    qk_gain: Tensor | None,
    eps: float,
) -> Tensor:
    if isinstance(batch, Batch):
        return attn_decode(rope_kv_write(qkv, heads, batch, cache, qk_gain, eps), cache, batch, params)
    parts = qkv.split_with_sizes([len(chunk.positions) for chunk in batch])
    out = [
        attn_prefill(rope_kv_write(part, heads, chunk, cache, qk_gain, eps), cache, chunk, params)
        for part, chunk in zip(parts, batch, strict=True)
    ]
    return out[0] if len(out) == 1 else torch.cat(out)


def rope_kv_write(
    qkv: Tensor, heads: int, batch: Batch, cache: Cache, qk_gain: Tensor | None, eps: float
) -> Tensor:
    """Rotate q and k, write k and v: qkv [n, (H + 2K) * D] -> q [n, H, D]. Overwrites qkv."""
    both, dim = cache.shape[2], cache.shape[3]
    x = qkv.view(-1, heads + both, dim)
    qk = x.narrow(1, 0, heads + both // 2)
    if qk_gain is not None:
        qk.copy_(rms_norm(qk, qk_gain, eps))
    rotate_(qk, batch.cos, batch.sin)
    if isinstance(cache, QuantisedKV):
        cache.write(batch.slots, x.narrow(1, heads, both))
        return x.narrow(1, 0, heads)
    if batch.fresh is not None:  # a masked key still counts as 0 * value: leave no NaN of an earlier owner
        cache.index_fill_(0, batch.fresh, 0)
    cache.view(-1, both, dim).index_copy_(0, batch.slots, x.narrow(1, heads, both))
    return x.narrow(1, 0, heads)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first rope_dim numbers of each head in place: x [n, heads, D], cos and sin [n, 1, rope_dim]. sin has
    the sign of the rotate-half form, minus in its first half."""
    dim = cos.shape[-1]
    part = x if dim == x.shape[-1] else x.narrow(2, 0, dim)
    if x.dtype == torch.float32:
        swapped = part.roll(dim // 2, -1)
        part.mul_(cos).addcmul_(swapped, sin)
    else:
        wide = part.float()
        part.copy_(wide * cos + wide.roll(dim // 2, -1) * sin)


def attn_decode(q: Tensor, cache: Cache, batch: Batch, params: AttentionParams) -> Tensor:
    """One query per sequence over its cached positions 0..position: q [B, H, D] -> [B, H * D]."""
    rows, heads, dim = q.shape
    keys, values = _gather(cache, batch, rows)
    grouped = q.view(rows, keys.shape[1], -1, dim)
    mask = batch.masks[params.window]
    if params.special:
        scores = torch.matmul(grouped, keys.mT).mul_(params.scale).view(rows, heads, -1)
        weights = _weights(scores.transpose(0, 1), None if mask is None else mask.view(rows, -1), params)
        out = torch.matmul(weights.transpose(0, 1).reshape(*grouped.shape[:3], -1).to(q.dtype), values)
        return out.reshape(rows, heads * dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=params.scale)
    return out.reshape(rows, heads * dim)


def attn_prefill(q: Tensor, cache: Cache, batch: Batch, params: AttentionParams) -> Tensor:
    """Queries of one sequence at consecutive positions, causal: q [T, H, D] -> [T, H * D]."""
    rows, heads, dim = q.shape
    keys, values = (x.squeeze(0) for x in _gather(cache, batch, 1))
    kv_heads = keys.shape[0]
    grouped = q.view(rows, kv_heads, -1, dim).permute(1, 2, 0, 3)  # [K, H / K, T, D]
    tile = max(1, SCORES // (heads * batch.length))
    parts = []
    for at in range(0, rows, tile):
        part = grouped[:, :, at : at + tile]
        mask = _causal_mask(batch.positions[at : at + tile], batch.length, params.window, q.dtype)
        scores = torch.matmul(part.reshape(kv_heads, -1, dim), keys.mT).mul_(params.scale)
        weights = _weights(scores.view(heads, *mask.shape), mask, params)
        weights = weights.to(q.dtype).view(kv_heads, -1, batch.length)
        parts.append(torch.matmul(weights, values).view(heads, -1, dim))
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return joined.transpose(0, 1).reshape(rows, heads * dim)


def logits(x: Tensor, gain: Tensor, eps: float, head: Dense | Int4) -> Tensor:
    return norm_linear(x, gain, eps, head).float()


def plan_decode(
    rotary: RotaryFn,
    positions: Tensor,
    lengths: Tensor | int,
    tables: Tensor,
    rows: Tensor | None,
    cache: Cache,
    windows: tuple[int | None, ...],
) -> Batch:
    cos, sin = rotary(positions, lengths)
    if rows is not None:
        tables = tables.index_select(0, rows)
    count, size = positions.shape[0], cache.shape[1]
    at = positions.tolist()  # on the host: a comparison of so few numbers costs less there than in torch
    last = max(at)
    length, used = last + 1, last // size + 1
    blocks = tables.narrow(1, 0, used).long()
    if count == 1:
        blocks = blocks.view(-1)
        current = blocks.narrow(0, used - 1, 1)
    else:
        own = positions.div(size, rounding_mode="floor").unsqueeze(1)
        current = blocks.gather(1, own).view(-1)
        if min(at) // size < used - 1:
            # Beyond its own blocks a row gathers its first one again: foreign numbers, perhaps NaN, never enter.
            beyond = torch.arange(used, device=blocks.device) > own
            blocks = torch.where(beyond, blocks.narrow(1, 0, 1), blocks)
        blocks = blocks.reshape(-1)
        length = used * size
    slots = torch.add(positions % size, current, alpha=size)
    starting = [row for row, position in enumerate(at) if position % size == 0]
    fresh = current[starting] if starting else None
    masks: dict[int | None, Tensor | None] = {}
    for window in windows:
        visible = count == 1 and (window is None or length <= window)
        masks[window] = None
        if not visible:
            masks[window] = _causal_mask(positions, length, window, cache.dtype).view(count, 1, 1, length)
    return Batch(positions, slots, blocks, fresh, length, cos, sin, masks)


def plan_prefill(
    rotary: RotaryFn, chunks: Sequence[Chunk], cache: Cache, windows: tuple[int | None, ...]
) -> tuple[Batch, ...]:
    return tuple(_plan_chunk(rotary, chunk, cache) for chunk in chunks)


def _plan_chunk(rotary: RotaryFn, chunk: Chunk, cache: Cache) -> Batch:
    start, length = chunk.start, chunk.start + chunk.count
    positions = torch.arange(start, length, device=chunk.table.device)
    cos, sin = rotary(positions, chunk.length)
    size = cache.shape[1]
    used = -(-length // size)
    blocks = chunk.table[:used].long()
    slots = torch.add(positions % size, blocks.index_select(0, positions // size), alpha=size)
    first_fresh = -(-start // size)
    fresh = blocks[first_fresh:] if first_fresh < used else None
    return Batch(positions, slots, blocks, fresh, length, cos, sin, {})


def _gather(cache: Cache, batch: Batch, rows: int) -> tuple[Tensor, Tensor]:
    """Keys and values of `rows` sequences in order of position: two [rows, K, length, D] views of one copy."""
    both, dim = cache.shape[2], cache.shape[3]
    kv = cache.read(batch.blocks) if isinstance(cache, QuantisedKV) else cache.index_select(0, batch.blocks)
    size = (rows, both // 2, batch.length, dim)
    strides = (kv.numel() // rows, dim, both * dim, 1)
    return kv.as_strided(size, strides), kv.as_strided(size, strides, both // 2 * dim)


def _causal_mask(positions: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[n, length]: 0 where key j is visible to the query at positions[n], -inf elsewhere."""
    keys = torch.arange(length, device=positions.device)
    at = positions.unsqueeze(1)
    hidden = keys > at
    if window is not None:
        hidden |= keys <= at - window
    return torch.zeros((), dtype=dtype, device=positions.device).masked_fill(hidden, NEG_INF)


def _weights(scores: Tensor, mask: Tensor | None, params: AttentionParams) -> Tensor:
    """Attention weights [H, n, L] float32 from scaled scores [H, n, L], which may be overwritten."""
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    if params.slopes is not None:
        keys = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)
        scores = scores + params.slopes.view(-1, 1, 1) * keys
    if mask is not None:
        scores = scores.add_(mask)
    if params.sinks is None:
        return scores.softmax(-1, dtype=torch.float32)
    sinks = params.sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.cat((scores.float(), sinks), -1).softmax(-1)[..., :-1]
