"""Prefill attention over the paged cache against float64 torch: every cache format, odd heads, ragged chunks,
windows, random block tables; whatever nobody may see is NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from support.kv_records import fill_cache, read_cache

from lmtop.kernels.cuda import attn_prefill, kv
from lmtop.kernels.ops import AttentionParams

GPU = torch.device("cuda")
TOLERANCE = {torch.float16: 6e-4, torch.bfloat16: 4e-3}


def poison(cache: kv.KVLayer, block: int, begin: int, end: int) -> None:
    """Make rows begin .. end - 1 of a block NaN, in whatever format."""
    size, row = cache.block_size, cache.head_dim * cache.bits // 8
    for which in range(2):
        at = which * size * row
        cache.data[block, :, at + begin * row : at + end * row] = 0xFF
        if cache.bits < 16:
            at = 2 * size * row + which * size * 4
            cache.data[block, :, at + begin * 4 : at + end * 4] = 0xFF


def stored(
    length: int, kv_heads: int, dim: int, block: int, bits: int, dtype: torch.dtype, hidden: int = 0
) -> tuple[kv.KVLayer, Tensor, Tensor, Tensor]:
    """A cache with `length` random tokens in random blocks of its own, NaN elsewhere and before position `hidden`;
    its table, and keys and values [length, K, D] as attention sees them."""
    used = -(-length // block)
    small = kv.new_cache(used, kv_heads, dim, block_size=block, bits=bits, dtype=dtype, device=GPU)
    keys, values = torch.randn(2, used, kv_heads, block, dim, device=GPU).to(dtype)
    fill_cache(small, keys, values)
    seen = [x.transpose(1, 2).reshape(-1, kv_heads, dim)[:length].double() for x in read_cache(small)]
    table = (torch.randperm(used + 5, device=GPU)[:used] + 1).int()
    cache = replace(
        small, data=torch.full((used + 6, *small.data.shape[1:]), 0xFF, dtype=torch.uint8, device=GPU)
    )
    cache.data[table.long()] = small.data
    if length % block:
        poison(cache, int(table[-1]), length % block, block)
    if hidden:
        poison(cache, int(table[hidden // block]), 0, hidden % block)
        table[: hidden // block] = 0
    return cache, table, seen[0], seen[1]


def exact(q: Tensor, keys: Tensor, values: Tensor, start: int, params: AttentionParams) -> Tensor:
    rows, heads, dim = q.shape
    group = heads // keys.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("nhd,lhd->hnl", q.double(), k) * params.scale
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    column = torch.arange(keys.shape[0], device=GPU)
    if params.slopes is not None:
        scores = scores + params.slopes.double().view(-1, 1, 1) * column
    at = torch.arange(start, start + rows, device=GPU).unsqueeze(1)
    hidden = column > at
    if params.window is not None:
        hidden |= column <= at - params.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if params.sinks is not None:
        sinks = params.sinks.double().view(-1, 1, 1).expand(-1, rows, 1)
        weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("hnl,lhd->nhd", weights, v).reshape(rows, heads * dim)


def check(
    rows: int,
    start: int,
    params: AttentionParams,
    *,
    heads: int = 8,
    kv_heads: int = 2,
    dim: int = 128,
    block: int = 64,
    bits: int = 16,
    dtype: torch.dtype = torch.float16,
    cut: attn_prefill.Tiling | None = None,
) -> None:
    torch.manual_seed(rows + start)
    hidden = 0 if params.window is None else max(0, start - params.window + 1)
    cache, table, keys, values = stored(start + rows, kv_heads, dim, block, bits, dtype, hidden)
    # as in the model: q is a part of the rows of qkv
    q = torch.randn(rows, heads + 2 * kv_heads, dim, device=GPU).to(dtype)[:, :heads]
    got = attn_prefill.attend(q, cache, table, start, params, cut)
    wanted = exact(q, keys, values, start, params)
    assert bool(got.isfinite().all()), "something hidden was seen"
    error = float((got.double() - wanted).norm() / wanted.norm())
    assert error <= TOLERANCE[dtype], f"rel L2 {error:.2e}"
    assert float((got.double() - wanted).abs().max()) <= 8 * TOLERANCE[dtype] * float(wanted.abs().max())
    assert torch.equal(got, attn_prefill.attend(q, cache, table, start, params, cut)), "not deterministic"


PLAIN = AttentionParams(128**-0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("start", [0, 1, 64, 1000])
def test_ragged_chunks(dtype: torch.dtype, bits: int, start: int) -> None:
    for rows in (1, 2, 17, 63, 64, 65, 130, 1000):
        check(rows, start, PLAIN, bits=bits, dtype=dtype)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dim", [8, 40, 64, 72, 80, 96, 128, 192, 256])
def test_head_sizes(bits: int, dim: int) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(77, 200, AttentionParams(dim**-0.5), dim=dim, bits=bits, dtype=dtype)
    check(300, 0, AttentionParams(dim**-0.5), dim=dim, bits=bits, heads=3, kv_heads=3)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_block_sizes(bits: int, block: int) -> None:
    check(150, 333, PLAIN, block=block, bits=bits)
    check(5, 11, AttentionParams(0.125), block=block, bits=bits, dim=64)


@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (7, 1), (28, 4), (32, 8), (5, 5), (64, 2)])
def test_groups(heads: int, kv_heads: int) -> None:
    check(100, 61, PLAIN, heads=heads, kv_heads=kv_heads)
    check(1, 500, PLAIN, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 200, 5000])
@pytest.mark.parametrize("bits", [16, 4])
def test_windows(window: int, bits: int) -> None:
    for rows, start in ((1, 0), (130, 0), (65, 700), (300, 64)):
        check(rows, start, AttentionParams(0.1, window=window), bits=bits)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("variant", ["softcap", "slopes", "sinks", "all"])
def test_variants(variant: str, window: int | None) -> None:
    heads = 8
    slopes = 2.0 ** -torch.arange(1, heads + 1, device=GPU).float()
    sinks = torch.randn(heads, device=GPU)
    params = AttentionParams(
        0.3,
        window,
        softcap=5.0 if variant in ("softcap", "all") else None,
        slopes=slopes if variant in ("slopes", "all") else None,
        sinks=sinks if variant in ("sinks", "all") else None,
    )
    for rows, start in ((130, 0), (65, 700)):
        check(rows, start, params, heads=heads)
        check(rows, start, params, heads=heads, bits=8, dtype=torch.bfloat16)


def test_long_prefix() -> None:
    check(200, 9000, PLAIN)
    check(64, 9001, PLAIN, bits=8)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_few_rows_split_the_keys(bits: int) -> None:
    """A short chunk after a long prefix: parts of the keys on their own, then put together."""
    sinks = torch.randn(8, device=GPU)
    for rows in (1, 33, 64):
        check(rows, 5000, PLAIN, bits=bits)
        check(rows, 5001, AttentionParams(0.1, window=1700), bits=bits, dim=64)
        check(rows, 3000, AttentionParams(0.1, window=2000, sinks=sinks), bits=bits, dtype=torch.bfloat16)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    "cut", [(8, 1, 64, 2), (4, 2, 64, 2), (4, 1, 64, 2), (4, 1, 64, 1), (4, 1, 32, 1), (4, 1, 16, 1)]
)
def test_tilings_of_other_devices(cut: tuple[int, int, int, int], bits: int) -> None:
    for dim in (64, 80) if cut[1] == 2 else (64, 128):
        check(130, 300, PLAIN, bits=bits, dim=dim, cut=attn_prefill.Tiling(*cut))
        check(70, 450, AttentionParams(0.1, window=90), bits=bits, dim=dim, cut=attn_prefill.Tiling(*cut))


def test_chunks_do_not_matter() -> None:
    """A prompt at once, in uneven chunks, and token by token at its end."""
    rows = 700
    cache, table, _, _ = stored(rows, 2, 128, 64, 16, torch.float16)
    q = torch.randn(rows, 8, 128, device=GPU).half()
    whole = attn_prefill.attend(q, cache, table, 0, PLAIN)
    ends = [100, 163, 164, 500, *range(690, 701)]
    parts = [
        attn_prefill.attend(q[a:b], cache, table, a, PLAIN) for a, b in zip([0, *ends], ends, strict=False)
    ]
    assert float((torch.cat(parts).float() - whole.float()).norm() / whole.float().norm()) <= 1e-3
