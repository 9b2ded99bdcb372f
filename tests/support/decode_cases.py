"""Decode attention on made-up numbers: a filled paged cache, one token a row, and the answer in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from support.kv_records import fill_cache, read_cache
from torch import Tensor

from lmtop.kernels.cuda.kv import KVLayer, new_cache
from lmtop.kernels.ops import AttentionParams


@dataclass
class Case:
    """lengths: context per row with the new token; the last `padding` rows of the batch are padding."""

    lengths: Sequence[int]
    heads: int = 4
    kv_heads: int = 2
    dim: int = 128
    bits: int = 16
    block: int = 64
    dtype: torch.dtype = torch.float16
    rope_dim: int | None = None
    padding: int = 0
    norm: bool = False
    window: int | None = None
    softcap: float | None = None
    slopes: bool = False
    sinks: bool = False
    seed: int = 0
    shuffle: int = 0

    def build(self, device: str = "cuda") -> Case:
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        batch, both = len(self.lengths) + self.padding, self.heads + 2 * self.kv_heads
        counts = [-(-length // self.block) for length in self.lengths]
        blocks = sum(counts) + 3
        order = torch.randperm(blocks - 1, generator=torch.Generator().manual_seed(self.shuffle)) + 1
        self.tables = torch.zeros(batch + 1, max(counts) + 1, dtype=torch.int32)
        valid = torch.zeros(blocks, self.block, dtype=torch.bool)
        keys = torch.zeros(blocks, self.kv_heads, self.block, self.dim)
        values = keys.clone()
        used = 0
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            ids = order[used : used + count]
            used += count
            self.tables[row, :count] = ids.int()
            for target in (keys, values):
                data = normal(self.kv_heads, count * self.block, self.dim) * (1 + row % 3)
                target[ids] = data.view(self.kv_heads, count, self.block, self.dim).transpose(0, 1)
            for i, block in enumerate(ids.tolist()):
                valid[block, : max(0, length - 1 - i * self.block)] = True
        self.layer = new_cache(
            blocks, self.kv_heads, self.dim, block_size=self.block, bits=self.bits, dtype=self.dtype
        )
        fill_cache(self.layer, keys.to(self.dtype), values.to(self.dtype))
        poison(self.layer, ~valid)  # what nobody has written must not matter
        self.spare = int(order[used])
        self.rows = torch.arange(batch, dtype=torch.int32)
        self.rows[len(self.lengths) :] = batch
        self.positions = torch.tensor(
            [*(n - 1 for n in self.lengths), *[0] * self.padding], dtype=torch.int32
        )
        rope = self.dim if self.rope_dim is None else self.rope_dim
        angles = normal(batch, rope // 2) * 3
        self.cos, self.sin = angles.cos(), angles.sin()
        self.qkv = normal(batch, both * self.dim).to(self.dtype)
        self.gain = 1 + normal(self.heads + self.kv_heads, self.dim) / 4 if self.norm else None
        self.params = AttentionParams(
            self.dim**-0.5,
            self.window,
            self.softcap,
            normal(self.heads).abs() / 16 if self.slopes else None,
            normal(self.heads) * 2 if self.sinks else None,
        )
        return self.to(device)

    def to(self, device: str) -> Case:
        for name in ("tables", "rows", "positions", "cos", "sin", "qkv", "gain"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))
        p = self.params
        moved = (None if x is None else x.to(device) for x in (p.slopes, p.sinks))
        self.params = AttentionParams(p.scale, p.window, p.softcap, *moved)
        data = self.layer.data.to(device)
        self.layer = KVLayer(data, self.dim, self.block, self.bits, self.dtype)
        return self


def poison(layer: KVLayer, rows: Tensor) -> None:
    """Bytes of 255 (a NaN in every format) into rows [blocks, block_size] of every head, and their params."""
    size, row = layer.block_size, layer.head_dim * layer.bits // 8
    at = 0
    for width in (row, row, *([4, 4] if layer.bits < 16 else [])):
        part = layer.data[..., at : at + size * width]
        part.view(*layer.data.shape[:2], size, width).transpose(1, 2)[rows] = 255
        at += size * width


def rotated(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, heads, D] float32 of a case, normed and rotated as `kernels.reference` does it, on the CPU."""
    x = case.qkv.cpu().float().view(len(case.qkv), -1, case.dim)
    qk, v = x[:, : case.heads + case.kv_heads], x[:, case.heads + case.kv_heads :]
    if case.gain is not None:
        qk = qk * (qk.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * case.gain.cpu()
        qk = qk.to(case.dtype).float()
    cos, sin = case.cos.cpu().unsqueeze(1), case.sin.cpu().unsqueeze(1)
    half = cos.shape[-1]
    a, b, rest = qk[..., :half], qk[..., half : 2 * half], qk[..., 2 * half :]
    qk = torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)
    return qk[:, : case.heads], qk[:, case.heads :], v


def expected(case: Case) -> Tensor:
    """The answer in float64 for q in the model's dtype, over the cache as it is now, [real rows, heads * D]."""
    q = rotated(case)[0].to(case.dtype).double()
    layer = case.layer
    cpu = KVLayer(layer.data.cpu(), layer.head_dim, layer.block_size, layer.bits, layer.dtype)
    keys, values = (x.double() for x in read_cache(cpu))
    p, group, out = case.params, case.heads // case.kv_heads, []
    for row, length in enumerate(case.lengths):
        ids = case.tables[row, : -(-length // case.block)].long().cpu()
        first = 0 if p.window is None else max(0, length - p.window)
        k, v = (x[ids].transpose(0, 1).flatten(1, 2)[:, first:length] for x in (keys, values))
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = (q[row].unsqueeze(1) @ k.mT).squeeze(1) * p.scale
        if p.softcap is not None:
            scores = p.softcap * torch.tanh(scores / p.softcap)
        if p.slopes is not None:
            scores = scores + p.slopes.cpu().double().unsqueeze(1) * torch.arange(first, length)
        most = scores.amax(-1, keepdim=True)
        if p.sinks is not None:
            most = torch.maximum(most, p.sinks.cpu().double().unsqueeze(1))
        weights = (scores - most).exp()
        total = weights.sum(-1, keepdim=True)
        if p.sinks is not None:
            total = total + (p.sinks.cpu().double().unsqueeze(1) - most).exp()
        out.append(((weights / total).unsqueeze(1) @ v).flatten())
    return torch.stack(out)


def errors(got: Tensor, want: Tensor) -> tuple[float, float]:
    """(relative L2 error, largest difference over the largest number); NaN counts as infinite."""
    difference = got.cpu().double() - want
    if not bool(difference.isfinite().all()):
        return math.inf, math.inf
    return (
        float(difference.norm() / want.norm()),
        float(difference.abs().max() / want.abs().max()),
    )
