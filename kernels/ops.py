"""Signatures of the operations a decoder is made of: one meaning, several backends.

`kernels.reference` gives the meaning in torch (CPU product path and oracle); a CUDA backend has the same
functions. Shapes: n rows (tokens), B sequences, T tokens of one sequence, H query heads, K key-value heads,
D head size, C numbers of a block table. Floating tensors of one call share device and dtype unless said
otherwise; norm gains, cos and sin are float32; sums, norms and softmax are computed in float32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer: y = x @ weight.T + bias. weight [out, in], bias [out] or None; `turned` is weight.T, a view
    kept because making it costs as much as a small product."""

    weight: Tensor
    bias: Tensor | None = None
    turned: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turned", self.weight.t())


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """What one layer's attention computes: softmax(cap(scale * q @ k) + slope * j) @ v over visible keys j.

    window: key j is visible to the query at position i only if i - window < j <= i; None is 0 <= j <= i.
    softcap: c * tanh(x / c) on scores; slopes: ALiBi, [H] float32; sinks: an extra logit per head that takes
    part in the sum of the softmax only, [H] float32. The last three serve families of later waves.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: Tensor | None = None
    sinks: Tensor | None = None

    @property
    def special(self) -> bool:
        """Whether anything but scale and window is asked for."""
        return self.softcap is not None or self.slopes is not None or self.sinks is not None


@dataclass(frozen=True, slots=True)
class Batch:
    """What all layers of one call share, prepared once by `plan_decode` or `plan_prefill`.

    positions, slots [n] int64: slot = block id * block size + offset, where the row's key and value go.
    blocks: the block ids to gather, row after row, int64; every row has the same count, which covers `length`,
    the longest context. fresh: ids of blocks that get their first token now, None for none. start: position of the first row of a
    prefill. cos, sin [n, 1, rope_dim] float32: see `Ops.rope_kv_write`. masks: window ->
    additive float mask of the backend's own shape, None where everything gathered is visible.
    """

    positions: Tensor
    slots: Tensor
    blocks: Tensor
    fresh: Tensor | None
    length: int
    start: int
    cos: Tensor
    sin: Tensor
    masks: dict[int | None, Tensor | None]


class Ops(Protocol):
    """The functions of a backend module. None of them changes an argument unless it says so."""

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        """Rows of table [V, hidden] at tokens [n] int64 -> [n, hidden]."""
        ...

    def linear(self, x: Tensor, layer: Dense, residual: Tensor | None = None) -> Tensor:
        """x [n, in] -> [n, out], plus `residual` [n, out] when given."""
        ...

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * gain over the last dimension; gain float32, broadcast to x."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[n, 2 * width] as gate | up -> silu(gate) * up, [n, width]."""
        ...

    def rope_kv_write(
        self, qkv: Tensor, heads: int, batch: Batch, cache: Tensor, qk_gain: Tensor | None, eps: float
    ) -> Tensor:
        """Split qkv [n, (H + 2K) * D], rotate q and k, write k and v into `cache`; returns q [n, H, D]. May
        overwrite qkv.

        Rotation of a head x: x * cos + swap(x) * sin, where swap exchanges the two halves of the first
        rope_dim numbers and batch.sin carries the sign, minus in its first half (RoPE of Su et al. 2021 in the
        rotate-half order); the rest of the head stays. qk_gain [H + K, D] float32:
        RMS norm of each q and k head before it. cache [blocks, block_size, 2K, D]: K key heads, K value heads.
        """
        ...

    def attn_decode(self, q: Tensor, cache: Tensor, batch: Batch, params: AttentionParams) -> Tensor:
        """One query per sequence over its cached positions 0..position: q [B, H, D] -> [B, H * D]."""
        ...

    def attn_prefill(self, q: Tensor, cache: Tensor, batch: Batch, params: AttentionParams) -> Tensor:
        """T queries of one sequence, row t at position start + t, causal: q [T, H, D] -> [T, H * D]."""
        ...

    def logits(self, x: Tensor, head: Dense) -> Tensor:
        """x [n, hidden] -> float32 [n, V]."""
        ...

    def plan_decode(
        self,
        positions: Tensor,
        tables: Tensor,
        cache: Tensor,
        windows: tuple[int | None, ...],
        cos: Tensor,
        sin: Tensor,
    ) -> Batch:
        """Prepare a decode step: positions [B], tables [B, C] block ids in order, `cache` any layer's. cos, sin
        [B, 1, rope_dim]."""
        ...

    def plan_prefill(
        self,
        positions: Tensor,
        start: int,
        table: Tensor,
        cache: Tensor,
        windows: tuple[int | None, ...],
        cos: Tensor,
        sin: Tensor,
    ) -> Batch:
        """Prepare a chunk at positions start .. start + T - 1: table [C] holds the sequence's block ids."""
        ...
