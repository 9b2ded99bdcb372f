"""The one decoder. `engine.spec.Spec` says what it computes, `kernels.ops` how; families differ in data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..kernels.ops import AttentionParams, Chunk, Ops
from .inference import inference
from .rope import Rotary
from .spec import Spec
from .weights import Weights


@dataclass(frozen=True, slots=True)
class KVCache:
    """Paged keys and values, one cache of the backend's per layer. A block id means the same block in every layer;
    block 0 is never given to a sequence: padding points there. `nbytes` is the size of all layers."""

    layers: tuple[Any, ...]
    block_size: int

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


class Decoder:
    """Computes hidden states and logits; keeps no state between calls but the weights. `kv`: the cache's format."""

    def __init__(self, spec: Spec, weights: Weights, ops: Ops, kv: str = "16") -> None:
        self.spec = spec
        self._weights = weights
        self._ops = ops
        self._kv = kv
        self._rotary = Rotary(spec.rope, weights.embed.device)
        self._attention = tuple(AttentionParams(spec.attn_scale, window) for window in spec.window)
        self._windows = tuple(dict.fromkeys(spec.window))
        self._following = (*((layer.attn_norm, layer.qkv) for layer in weights.layers[1:]), None)

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        """An empty cache of `num_blocks` blocks, block 0 included, on the weights' device."""
        spec, like = self.spec, self._weights.embed
        make = self._ops.new_cache
        layers = tuple(
            make(num_blocks, block_size, spec.kv_heads, spec.head_dim, like, self._kv)
            for _ in range(spec.layers)
        )
        return KVCache(layers, block_size)

    @inference
    def decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        tables: Tensor,
        cache: KVCache,
        prompt_lens: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One new token per sequence. tokens, positions [B]; tables [*, C] int, block ids in order, any value in
        entries beyond a row's own blocks; sequence i uses tables[rows[i]], or tables[i] -> residual stream
        [B, hidden], for `logits`.

        Writes keys and values at `positions` and attends to 0..position. `prompt_lens` [B]: the prompt length
        each sequence was admitted with; only dynamic and longrope models look at it (see `engine.rope`).
        """
        lengths = 0 if prompt_lens is None else prompt_lens
        batch = self._ops.plan_decode(
            self._rotary, positions, lengths, tables, rows, cache.layers[0], self._windows
        )
        return self._forward(tokens, cache, batch)

    @inference
    def prefill(
        self, tokens: Tensor, start: int, table: Tensor, cache: KVCache, prompt_len: int | None = None
    ) -> Tensor:
        """A chunk of one sequence. tokens [T] at positions start .. start + T - 1; table [C] int, its block ids in
        order, covering the chunk -> residual stream [T, hidden], for `logits`.

        Writes their keys and values and attends to everything before, in the blocks and in the chunk.
        `prompt_len`: length of the whole prompt (default: it ends with this chunk), as in `decode`.
        """
        count = tokens.shape[0]
        length = start + count if prompt_len is None else prompt_len
        return self.prefill_all(tokens, (Chunk(start, count, length, table),), cache)

    @inference
    def prefill_all(self, tokens: Tensor, chunks: Sequence[Chunk], cache: KVCache) -> Tensor:
        """Chunks of several sequences at once: their tokens [n] one after the other -> residual stream [n, hidden].
        A sequence occurs once."""
        return self._forward(
            tokens, cache, self._ops.plan_prefill(self._rotary, chunks, cache.layers[0], self._windows)
        )

    @inference
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, hidden], as `decode` and `prefill` return it -> float32 [n, vocab]."""
        return self._ops.logits(hidden, self._weights.final_norm, self.spec.eps, self._weights.head)

    def _forward(self, tokens: Tensor, cache: KVCache, batch: Any) -> Tensor:
        ops, eps, heads = self._ops, self.spec.eps, self.spec.heads
        layers = self._weights.layers
        x = ops.embed(self._weights.embed, tokens)
        qkv: Any = ops.norm_linear(x, layers[0].attn_norm, eps, layers[0].qkv)
        for layer, kv, params, following in zip(
            layers, cache.layers, self._attention, self._following, strict=True
        ):
            attended = ops.attend(qkv, heads, batch, kv, params, layer.qk_gain, eps)
            x, qkv = ops.after_attention(
                attended, x, layer.o, layer.mlp_norm, eps, layer.gate_up, layer.down, following
            )
        return x
