"""Every kernel worth compiling ahead: what `lmtop kernels` builds for each architecture, with no GPU.

The wrappers beside the sources choose the macros, as they do for a loaded model; here are the models and chips that they
are asked about. Hopper, which all variants are tuned for, gets every activation type, cache format and group size; the
other architectures get what tells of their own code paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from .cuda import attn_decode, attn_prefill, chain, elementwise, gemm, matvec, rope_kv, sample, stage
from .cuda.kv import KVLayer, new_cache
from .cuda.w4 import GROUPS, PackedW4
from .nvrtc import Unit, unit
from .ops import AttentionParams

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 512, 1024, 2048, 4096, 8192)
CAPACITY = 32768  # tokens of a context
PLAIN = AttentionParams(1.0)


@dataclass(frozen=True, slots=True)
class Chip:
    """A card of an architecture: multiprocessors, compute capability as 10 * major + minor, bytes of shared memory
    that a CTA can have."""

    arch: str
    processors: int
    capability: int
    shared: int


CHIPS = {
    chip.arch: chip
    for chip in (
        Chip("75", 40, 75, 64 << 10),
        Chip("80", 108, 80, 163 << 10),
        Chip("86", 82, 86, 99 << 10),
        Chip("89", 128, 89, 99 << 10),
        Chip("90a", 132, 90, 227 << 10),
        Chip("100", 148, 100, 227 << 10),
        Chip("120", 170, 120, 99 << 10),
    )
}


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes that decide which kernels run."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    width: int
    vocab: int

    def matrices(self) -> Iterator[tuple[int, int]]:
        """(rows, columns) of a layer's four, and of the last one."""
        queries = self.heads * self.head_dim
        yield queries + 2 * self.kv_heads * self.head_dim, self.hidden
        yield self.hidden, queries
        yield 2 * self.width, self.hidden
        yield self.hidden, self.width
        yield self.vocab, self.hidden


LLAMA_3_8B = Model(32, 8, 128, 4096, 14336, 128256)
MODELS = (
    LLAMA_3_8B,
    Model(16, 8, 128, 2048, 8192, 92544),  # InternLM2-1.8B
    Model(32, 32, 128, 4096, 11008, 32000),  # Llama-2-7B: each head its own keys
    Model(32, 4, 128, 4096, 22016, 151936),  # eight heads share keys
    Model(64, 4, 128, 8192, 22016, 151936),  # sixteen
    Model(14, 2, 64, 896, 4864, 151936),  # Qwen2-0.5B
    Model(8, 2, 64, 256, 768, 4096),  # the built-in one
    Model(32, 32, 80, 2560, 10240, 51200),  # heads of 80
    Model(32, 32, 96, 3072, 8192, 32064),  # Phi-3-mini
    Model(8, 2, 256, 2048, 8192, 256000),  # heads of 256
)
KV_BITS = (16, 8, 4)


def units(arch: str) -> tuple[Unit, ...]:
    """The units to compile for sm_`arch`, each once. An architecture that is not listed is taken for the nearest
    older one."""
    chip = CHIPS.get(arch) or max(
        (chip for chip in CHIPS.values() if chip.capability <= int(arch)), key=lambda chip: chip.capability
    )
    thorough = arch == "90a"
    dtypes = (torch.float16, torch.bfloat16)[: 1 if arch == "75" else 2]  # Turing computes no bfloat16
    found = [unit("bandwidth.cu"), sample.SAMPLE, sample.LOGPROBS, stage.STAGE]
    for dtype in dtypes:
        found += elementwise.units(dtype)
        for model in MODELS if thorough else MODELS[:1]:
            for group in (0, *GROUPS) if thorough else (0, 128):
                found += _products(model, dtype, group, chip)
        for bits in KV_BITS:
            found += _attention(LLAMA_3_8B, dtype, bits, chip)
    for model in MODELS[1:]:
        for dtype, bits in product(dtypes, KV_BITS) if thorough else ((dtypes[-1], 16), (dtypes[-1], 4)):
            found += _attention(model, dtype, bits, chip)
    return tuple(dict.fromkeys((*found, *_rare(chip))))


def _products(model: Model, dtype: torch.dtype, group: int, chip: Chip) -> Iterator[Unit]:
    """Matrix products for few tokens and for many; `group` 0 is plain weights."""
    if chip.capability == 90:
        yield chain.chain_unit(group, dtype)
    for rows, columns in model.matrices():
        yield matvec.cut_unit(matvec.choose_cut(rows, columns, group, chip.capability >= 90), group, dtype)
        weight = _meta(rows, columns, dtype, group)
        for tokens in TOKENS:
            tiling = gemm.choose(tokens, weight, gemm.Device(chip.processors, chip.capability))
            if tiling is not None:
                yield tiling.unit(dtype, group)
            elif group:
                yield gemm._dequantiser(dtype, group)


def _meta(rows: int, columns: int, dtype: torch.dtype, group: int) -> torch.Tensor | PackedW4:
    """A matrix without its numbers."""
    if not group:
        return torch.empty(rows, columns, dtype=dtype, device="meta")
    words = torch.empty(-(-rows // 16), -(-columns // 64), 32, 4, dtype=torch.int32, device="meta")
    pairs = torch.empty(-(-rows // 16), -(-columns // group), 8, 2, dtype=torch.int32, device="meta")
    return PackedW4(words, pairs, rows, columns, group)


def _attention(
    model: Model, dtype: torch.dtype, bits: int, chip: Chip, params: AttentionParams = PLAIN
) -> Iterator[Unit]:
    """Cache writing and attention of decode and prefill."""
    cache = _cache(model, dtype, bits)
    yield from rope_kv.units(cache, model.head_dim)
    yield from attn_decode.units(
        model.heads, cache, params, BATCHES, CAPACITY, chip.processors, chip.capability // 10
    )
    yield from attn_prefill.units(cache, params, chip.arch, chip.shared)


def _cache(model: Model, dtype: torch.dtype, bits: int) -> KVLayer:
    return new_cache(1, model.kv_heads, model.head_dim, bits=bits, dtype=dtype, device="meta")


def _rare(chip: Chip) -> Iterator[Unit]:
    """What few families have, once each."""
    cache = _cache(LLAMA_3_8B, torch.float16, 16)
    yield from rope_kv.units(cache, 128, qk_norm=True)
    yield from rope_kv.units(cache, 64)
    numbers = torch.empty(32, device="meta")
    for params in (
        AttentionParams(1.0, window=4096),
        AttentionParams(1.0, softcap=50.0),
        AttentionParams(1.0, slopes=numbers),
        AttentionParams(1.0, sinks=numbers),
    ):
        yield from _attention(LLAMA_3_8B, torch.float16, 16, chip, params)
