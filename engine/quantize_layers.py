"""One layer of a checkpoint at a time: its weights in the decoder's own order, and what it computes.

A model that fits no device still passes through one in this way: only a layer and the activations of the texts that
are being followed are held. The operations are those of the CPU's engine, `kernels.reference`, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import reference
from ..kernels.ops import AttentionParams, Chunk, Dense
from ..quant.formats import FormatError
from ..quant.formats_dense import dequantise
from .fusing import head_rows
from .reading import READERS, Reader
from .roles import FUSED, Placed, wrong_part
from .rope import Rotary
from .spec import ModelFiles, Spec

BLOCK = 64  # tokens in a block of the scratch KV cache
MATRICES = ("qkv", "o", "gate_up", "down")
Watch = Callable[[str, Tensor], None]


@dataclass(slots=True)
class Layer:
    """One block, as stored but in the decoder's order: `matrices` qkv (rows q|k|v), o, gate_up (rows gate|up) and
    down; gains [n] float32 by role (attn_norm, mlp_norm, q_norm, k_norm)."""

    index: int
    matrices: dict[str, Dense]
    gains: dict[str, Tensor]

    def cast(self, dtype: torch.dtype) -> Layer:
        """The same with matrices of `dtype`; those that are of it are shared."""
        matrices = {
            role: Dense(layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))
            for role, layer in self.matrices.items()
        }
        return Layer(self.index, matrices, self.gains)


def places_of(files: ModelFiles, layer: int) -> list[Placed]:
    """The stored tensors of a layer; -1: those outside of all layers."""
    return [place for place in files.placed if place.layer == layer]


def stored_rows(files: ModelFiles, place: Placed) -> Tensor:
    """For each row of a stored matrix or bias, its row in the decoder's matrix of the same group, int64."""
    if FUSED.get(place.role, place.role) == "qkv":
        return head_rows(files.spec, files.layout, place.role)
    rows = torch.arange(place.shape[0])
    return rows + len(rows) if place.role == "up" else rows


class Layers:
    """Reads a checkpoint, quantised or not, layer by layer onto `device`."""

    def __init__(self, files: ModelFiles, device: torch.device) -> None:
        self.files, self.device = files, device
        self._threads = ThreadPoolExecutor(READERS, "lmtop-read")
        self._reader = Reader(device, self._threads, 1, lambda share, text: None, lambda: False)

    def tensor(self, place: Placed) -> Tensor:
        """A weight or bias: in its stored type, float64 as float32; a quantised one as float32."""
        if place.packed is None:
            whole = self._reader.whole(place.tensor)
            return whole.float() if whole.dtype == torch.float64 else whole
        try:
            raw = {name: self._reader.whole(part) for name, part in place.parts.items()}
            return dequantise(place.packed, raw, torch.float32)
        except FormatError as error:
            raise wrong_part(place.parts, error) from None

    def outside(self, role: str, part: str = "weight") -> Tensor | None:
        """A tensor outside of all layers; None where the checkpoint has none."""
        for place in places_of(self.files, -1):
            if (place.role, place.part) == (role, part):
                return self.tensor(place)
        return None

    def read(self, index: int) -> Layer:
        files, device = self.files, self.device
        places = places_of(files, index)
        rows: dict[str, int] = {}
        for place in places:
            if place.part == "weight" and len(place.shape) == 2:
                group = FUSED.get(place.role, place.role)
                rows[group] = rows.get(group, 0) + place.shape[0]
        parts: dict[tuple[str, str], Tensor] = {}
        gains: dict[str, Tensor] = {}
        for place in places:
            tensor = self.tensor(place)
            if place.role.endswith("norm"):
                gains[place.role] = tensor.float()
                continue
            group = FUSED.get(place.role, place.role)
            key = (group, place.part)
            if key not in parts:
                parts[key] = torch.zeros((rows[group], *tensor.shape[1:]), dtype=tensor.dtype, device=device)
            parts[key][stored_rows(files, place).to(device)] = tensor.to(parts[key].dtype)
        matrices = {role: Dense(parts[role, "weight"], parts.get((role, "bias"))) for role in MATRICES}
        return Layer(index, matrices, gains)

    def close(self) -> None:
        self._threads.shutdown()


class Blocks:
    """Computes blocks of `spec` over whole texts, on one device, in the type of the activations."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        self._spec = spec
        self._rotary = Rotary(spec.rope, device)
        self._device = device

    def run(self, layer: Layer, x: Tensor, lengths: Sequence[int], watch: Watch | None = None) -> Tensor:
        """x [n, hidden]: texts of `lengths` tokens, one after the other -> [n, hidden] behind the block. `watch`
        is shown the input of each matrix, by role, [n, in]."""
        spec, see = self._spec, watch or (lambda role, tensor: None)
        chunks = self._chunks(lengths)
        blocks = 1 + sum(len(chunk.table) for chunk in chunks)
        cache = reference.new_cache(blocks, BLOCK, spec.kv_heads, spec.head_dim, x)
        batch = reference.plan_prefill(self._rotary, chunks, cache, ())
        params = AttentionParams(spec.attn_scale, spec.window[layer.index])
        read = reference.rms_norm(x, layer.gains["attn_norm"], spec.eps)
        see("qkv", read)
        qkv = reference.linear(read, layer.matrices["qkv"])
        seen = reference.attend(qkv, spec.heads, batch, cache, params, self._qk_gain(layer), spec.eps)
        see("o", seen)
        x = reference.linear(seen, layer.matrices["o"], x)
        read = reference.rms_norm(x, layer.gains["mlp_norm"], spec.eps)
        see("gate_up", read)
        inner = reference.silu_mul(reference.linear(read, layer.matrices["gate_up"]))
        see("down", inner)
        return reference.linear(inner, layer.matrices["down"], x)

    def _qk_gain(self, layer: Layer) -> Tensor | None:
        if not self._spec.qk_norm:
            return None
        q, k = layer.gains["q_norm"], layer.gains["k_norm"]
        return torch.cat((q.expand(self._spec.heads, -1), k.expand(self._spec.kv_heads, -1)))

    def _chunks(self, lengths: Sequence[int]) -> list[Chunk]:
        chunks, first = [], 1
        for length in lengths:
            used = -(-length // BLOCK)
            chunks.append(Chunk(0, length, length, torch.arange(first, first + used, device=self._device)))
            first += used
        return chunks


def batches(texts: Sequence[Tensor], tokens: int) -> Iterator[range]:
    """Consecutive texts [n, hidden] that are computed together: at most `tokens` rows, but at least one text."""
    first = total = 0
    for at, text in enumerate(texts):
        if at > first and total + len(text) > tokens:
            yield range(first, at)
            first, total = at, 0
        total += len(text)
    if texts:
        yield range(first, len(texts))
