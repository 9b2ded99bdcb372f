"""The one decoder. `engine.spec.Spec` says what it computes, `kernels.ops` how; families differ in data only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.ops import AttentionParams, Batch, Ops
from .inference import inference
from .rope import Rotary
from .spec import Spec
from .weights import Weights


@dataclass(frozen=True, slots=True)
class KVCache:
    """Paged keys and values: one tensor per layer, [blocks, block_size, 2 * kv_heads, head_dim], key heads
    before value heads. A block id means the same block in every layer; block 0 is never given to a sequence:
    padding points there. `nbytes` is the size of all layers."""

    layers: tuple[Tensor, ...]
    block_size: int

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


class Decoder:
    """Computes hidden states and logits; keeps no state between calls but the weights."""

    def __init__(self, spec: Spec, weights: Weights, ops: Ops) -> None:
        self.spec = spec
        self._weights = weights
        self._ops = ops
        self._rotary = Rotary(spec.rope, weights.embed.device)
        self._attention = tuple(AttentionParams(spec.attn_scale, window) for window in spec.window)
        self._windows = tuple(dict.fromkeys(spec.window))

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        """A zeroed cache of `num_blocks` blocks in the weights' dtype, block 0 included."""
        spec, like = self.spec, self._weights.embed
        shape = (num_blocks, block_size, 2 * spec.kv_heads, spec.head_dim)
        layers = tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(spec.layers))
        return KVCache(layers, block_size)

    @inference
    def decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        tables: Tensor,
        cache: KVCache,
        prompt_lens: Tensor | None = None,
    ) -> Tensor:
        """One new token per sequence. tokens, positions [B] int64; tables [B, C] int, block ids in order, any
        value in entries beyond a row's own blocks -> hidden [B, hidden].

        Writes keys and values at `positions` and attends to 0..position. `prompt_lens` [B]: the prompt length
        each sequence was admitted with; only dynamic and longrope models look at it (see `engine.rope`).
        """
        lengths = 0 if prompt_lens is None else prompt_lens
        cos, sin = self._rotary(positions, lengths)
        batch = self._ops.plan_decode(positions, tables, cache.layers[0], self._windows, cos, sin)
        return self._forward(tokens, cache, batch, decoding=True)

    @inference
    def prefill(
        self, tokens: Tensor, start: int, table: Tensor, cache: KVCache, prompt_len: int | None = None
    ) -> Tensor:
        """A chunk of one sequence. tokens [T] int64 at positions start .. start + T - 1; table [C] int, its block
        ids in order, covering the chunk -> hidden [T, hidden].

        Writes their keys and values and attends to everything before, in the blocks and in the chunk.
        `prompt_len`: length of the whole prompt (default: it ends with this chunk), as in `decode`.
        """
        end = start + tokens.shape[0]
        positions = torch.arange(start, end, device=tokens.device)
        cos, sin = self._rotary(positions, end if prompt_len is None else prompt_len)
        batch = self._ops.plan_prefill(positions, start, table, cache.layers[0], self._windows, cos, sin)
        return self._forward(tokens, cache, batch, decoding=False)

    @inference
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, hidden], as `decode` and `prefill` return it -> float32 [n, vocab]."""
        return self._ops.logits(hidden, self._weights.head)

    def _forward(self, tokens: Tensor, cache: KVCache, batch: Batch, decoding: bool) -> Tensor:
        ops, eps, heads = self._ops, self.spec.eps, self.spec.heads
        attention = ops.attn_decode if decoding else ops.attn_prefill
        x = ops.embed(self._weights.embed, tokens)
        for layer, kv, params in zip(self._weights.layers, cache.layers, self._attention, strict=True):
            qkv = ops.linear(ops.rms_norm(x, layer.attn_norm, eps), layer.qkv)
            q = ops.rope_kv_write(qkv, heads, batch, kv, layer.qk_gain, eps)
            x = ops.linear(attention(q, kv, batch, params), layer.o, x)
            gate_up = ops.linear(ops.rms_norm(x, layer.mlp_norm, eps), layer.gate_up)
            x = ops.linear(ops.silu_mul(gate_up), layer.down, x)
        return ops.rms_norm(x, self._weights.final_norm, eps)
