"""Signatures of the operations a decoder is made of: one meaning, several backends.

`kernels.reference` gives the meaning in torch (CPU product path and oracle), `kernels.cuda.ops` has the same
functions on a GPU; they are as coarse as a GPU wants to fuse them. Shapes: n rows (tokens), B sequences, H query
heads, K key-value heads, D head size, C numbers of a block table. Floating tensors of one call share device and dtype unless said
otherwise; norm gains, cos and sin are float32; sums, norms and softmax are computed in float32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
class Int4:
    """A linear layer with four-bit weights: y = x @ (scale * (code - zero)).T + bias, in groups along the inputs.

    codes [out, in] uint8, 0..15; scales [out, groups] float16; zeros [out, groups] uint8; group g holds columns
    g * group and following. order [in] int64: column c multiplies x[order[c]]; None: x[c] (GPTQ's act-order sorts
    inputs by their weight before it forms groups). Backends keep a packed form of their own.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group: int
    bias: Tensor | None = None
    order: Tensor | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scales, self.zeros, self.bias, self.order)
        return sum(part.nbytes for part in parts if part is not None)


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
class Chunk:
    """Positions start .. start + count - 1 of a sequence whose prompt has `length` tokens; table [C] holds the ids of
    its blocks in order, which cover the chunk."""

    start: int
    count: int
    length: int
    table: Tensor


class Ops(Protocol):
    """What a decoder asks of a backend. None of the functions changes an argument unless it says so.

    Linear layers, caches and batches are the backend's own: made by `prepare`, `new_cache` and the two `plan`
    functions, and only handed back to it.
    """

    def prepare(self, layer: Dense | Int4, gate_up: bool = False) -> Any:
        """A linear layer as this backend wants it; `gate_up`: its rows are gate | up and it is used by
        `norm_gate_up` only."""
        ...

    def new_cache(
        self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, like: Tensor, kv: str
    ) -> Any:
        """An empty paged cache of one layer in format `kv` ("16": the type of `like`, "int8", "int4"), on the
        device of `like`. It has `nbytes`."""
        ...

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        """Rows of table [V, hidden] at tokens [n] -> [n, hidden]."""
        ...

    def norm_linear(self, x: Tensor, gain: Tensor, eps: float, layer: Any) -> Tensor:
        """RMS norm, then the layer: x [n, in] -> [n, out]. The norm is x / sqrt(mean(x^2) + eps) * gain, gain
        [in] float32."""
        ...

    def after_attention(
        self,
        attended: Tensor,
        x: Tensor,
        o: Any,
        gain: Tensor,
        eps: float,
        gate_up: Any,
        down: Any,
        following: tuple[Tensor, Any] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The rest of a layer and the first product of the next: attended [n, H * D] through `o` onto the residual
        stream x [n, hidden], then norm (gain), gate | up, silu and `down` onto it -> (x, the norm_linear of it that
        `following` (gain, layer) names, or None)."""
        ...

    def attend(
        self,
        qkv: Tensor,
        heads: int,
        batch: Any,
        cache: Any,
        params: AttentionParams,
        qk_gain: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Rotate, remember, attend: qkv [n, (H + 2K) * D] -> [n, H * D]. May overwrite qkv.

        q and k are rotated: for a head x and the pairs (i, i + rope_dim / 2) of its first rope_dim numbers,
        (a, b) becomes (a cos - b sin, b cos + a sin) (Su et al. 2021, in the rotate-half order). Before that
        each head is RMS-normed where qk_gain [H + K, D] float32 is given. k and v go into the cache; each row
        attends to what is stored at positions 0..its own, itself included.
        """
        ...

    def logits(self, x: Tensor, gain: Tensor, eps: float, head: Any) -> Tensor:
        """RMS norm and the last matrix: x [n, hidden] -> float32 [n, V]."""
        ...

    def plan_decode(
        self,
        rotary: Any,
        positions: Tensor,
        lengths: Tensor | int,
        tables: Tensor,
        rows: Tensor | None,
        cache: Any,
        windows: tuple[int | None, ...],
    ) -> Any:
        """What all layers of a decode step share. positions [B]; tables [*, C] block ids in order, row i of the
        batch uses tables[rows[i]], or tables[i] where rows is None; `rotary`: see `engine.rope.Rotary`, `lengths`
        [B] its prompt lengths; `cache` any layer's; `windows` those that the layers use."""
        ...

    def plan_prefill(
        self, rotary: Any, chunks: Sequence[Chunk], cache: Any, windows: tuple[int | None, ...]
    ) -> Any:
        """The same of chunks of one or more sequences, whose rows follow each other."""
        ...
