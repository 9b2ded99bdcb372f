"""The meaning of every operation of `kernels.ops`, in torch: the CPU product path and the oracle of GPU tests.

A small model's decode step is bound by the cost of torch calls (0.4-8 us each), so they are few and small: keys
and values share one cache tensor (one write, one gather), heads rotate in place, grouped queries fold into the
query length instead of repeating keys, masks are built once per step, sums ride on the matrix product. Prefill
keeps to transformers' eager order of roundings instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import AttentionParams, Batch, Dense

NEG_INF = float("-inf")
SCORES = 1 << 23  # numbers in one tile of attention scores: bounds the workspace of a long prefill
FEW_ROWS = 16


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    return table.index_select(0, tokens)


def linear(x: Tensor, layer: Dense, residual: Tensor | None = None) -> Tensor:
    if residual is None:
        return torch.mm(x, layer.turned) if layer.bias is None else torch.addmm(layer.bias, x, layer.turned)
    if layer.bias is not None:
        residual = residual + layer.bias
    return torch.addmm(residual, x, layer.turned)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    if x.dtype != torch.float32:
        return rms_norm(x.float(), gain, eps).to(x.dtype)
    width = x.shape[-1]
    if x.shape[0] <= FEW_ROWS:
        # the same through |x|: 4 us instead of the 7 us of F.rms_norm
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
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def rope_kv_write(
    qkv: Tensor, heads: int, batch: Batch, cache: Tensor, qk_gain: Tensor | None, eps: float
) -> Tensor:
    both, dim = cache.shape[2], cache.shape[3]
    x = qkv.view(-1, heads + both, dim)
    qk = x.narrow(1, 0, heads + both // 2)
    if qk_gain is not None:
        qk.copy_(rms_norm(qk, qk_gain, eps))
    rotate_(qk, batch.cos, batch.sin)
    if batch.fresh is not None:  # a masked key still counts as 0 * value: leave no NaN of an earlier owner
        cache.index_fill_(0, batch.fresh, 0)
    cache.view(-1, both, dim).index_copy_(0, batch.slots, x.narrow(1, heads, both))
    return x.narrow(1, 0, heads)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first rope_dim numbers of each head in place: x [n, heads, D], cos and sin [n, 1, rope_dim]."""
    dim = cos.shape[-1]
    part = x if dim == x.shape[-1] else x.narrow(2, 0, dim)
    if x.dtype == torch.float32:
        swapped = part.roll(dim // 2, -1).mul_(sin)
        part.mul_(cos).add_(swapped)
    else:
        wide = part.float()
        part.copy_(wide * cos + wide.roll(dim // 2, -1) * sin)


def attn_decode(q: Tensor, cache: Tensor, batch: Batch, params: AttentionParams) -> Tensor:
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


def attn_prefill(q: Tensor, cache: Tensor, batch: Batch, params: AttentionParams) -> Tensor:
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


def logits(x: Tensor, head: Dense) -> Tensor:
    return linear(x, head).float()


def plan_decode(
    positions: Tensor,
    tables: Tensor,
    cache: Tensor,
    windows: tuple[int | None, ...],
    cos: Tensor,
    sin: Tensor,
) -> Batch:
    rows, size = positions.shape[0], cache.shape[1]
    last = int(positions.max()) if rows > 1 else int(positions)
    length, used = last + 1, last // size + 1
    blocks = tables.narrow(1, 0, used).long()
    if rows == 1:
        blocks = blocks.view(-1)
        current = blocks.narrow(0, used - 1, 1)
        slots = current * size + last % size
        fresh = current if last % size == 0 else None
    else:
        own = positions.div(size, rounding_mode="floor").unsqueeze(1)
        current = blocks.gather(1, own).view(-1)
        slots = torch.add(positions % size, current, alpha=size)
        starts = positions % size == 0
        fresh = current[starts] if bool(starts.any()) else None
        # Beyond its own blocks a row gathers its first one again: foreign numbers, which may be NaN, never enter.
        beyond = torch.arange(used, device=blocks.device) > own
        blocks = torch.where(beyond, blocks.narrow(1, 0, 1), blocks).view(-1)
        length = used * size
    masks: dict[int | None, Tensor | None] = {}
    for window in windows:
        visible = rows == 1 and (window is None or length <= window)
        masks[window] = None
        if not visible:
            masks[window] = _causal_mask(positions, length, window, cache.dtype).view(rows, 1, 1, length)
    return Batch(positions, slots, blocks, fresh, length, 0, cos, sin, masks)


def plan_prefill(
    positions: Tensor,
    start: int,
    table: Tensor,
    cache: Tensor,
    windows: tuple[int | None, ...],
    cos: Tensor,
    sin: Tensor,
) -> Batch:
    size = cache.shape[1]
    length = start + positions.shape[0]
    used = -(-length // size)
    blocks = table[:used].long()
    slots = torch.add(positions % size, blocks.index_select(0, positions // size), alpha=size)
    first_fresh = -(-start // size)
    fresh = blocks[first_fresh:] if first_fresh < used else None
    return Batch(positions, slots, blocks, fresh, length, start, cos, sin, {})


def _gather(cache: Tensor, batch: Batch, rows: int) -> tuple[Tensor, Tensor]:
    """Keys and values of `rows` sequences in order of position: two [rows, K, length, D] views of one copy."""
    both, dim = cache.shape[2], cache.shape[3]
    kv = cache.index_select(0, batch.blocks)
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
