"""Row-wise kernels and the prefill's cache write against float64 torch, on odd shapes and poisoned outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from support.kv_records import read_cache, rows_of

from lmtop.engine.architecture import Rope
from lmtop.engine.rope import inverse_frequencies
from lmtop.kernels.cuda import elementwise, kv, rope_kv
from lmtop.kernels.cuda.elementwise import RotaryTable

GPU = torch.device("cuda")
DTYPES = (torch.float16, torch.bfloat16)
TOLERANCE = {
    torch.float16: 2.5e-4,
    torch.bfloat16: 2.3e-3,
}  # the rounding of a result alone is 2.1e-4 and 1.7e-3


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def randn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=GPU) * scale).to(dtype)


def rounds_once(got: Tensor, wanted: Tensor) -> bool:
    """Whether `got` is as near to float64 `wanted` as numbers of its type come, but for few neighbours."""
    return relative(got, wanted) <= 1.05 * relative(wanted.to(got.dtype), wanted) + 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 17, 65, 1000])
@pytest.mark.parametrize("width", [8, 64, 2048, 3584, 4096, 8200, 16384, 17000, 37, 1001])
def test_rms_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    x, gain = randn(rows, width, dtype=dtype, scale=3), torch.randn(width, device=GPU)
    wide = x.double()
    wanted = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * gain.double()
    got = elementwise.rms_norm(x, gain, 1e-5)
    assert rounds_once(got, wanted)
    # every element rounds once: half an ulp of its own value, and the norm's own error
    assert bool(
        (
            (got.double() - wanted).abs() <= wanted.abs() * 2 ** (-10 if dtype == DTYPES[0] else -7) + 1e-6
        ).all()
    )
    assert torch.equal(got, elementwise.rms_norm(x, gain, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows,width", [(1, 8), (3, 14336), (65, 8192), (17, 37), (1000, 4864)])
def test_silu_mul(dtype: torch.dtype, rows: int, width: int) -> None:
    x = randn(rows, 2 * width, dtype=dtype, scale=4)
    x[0, 0], x[0, -1] = -60000.0, 2.0  # silu of a large negative number is 0, not NaN
    gate, up = x.double().chunk(2, -1)
    got = elementwise.silu_mul(x)
    assert bool(got.isfinite().all())
    assert rounds_once(got, gate * torch.sigmoid(gate) * up)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("width", [4096, 2048, 24, 37])
def test_embed(index: torch.dtype, width: int) -> None:
    table = randn(1000, width, dtype=torch.bfloat16)
    for rows in (1, 2, 65):
        tokens = torch.randint(0, 1000, (rows,), device=GPU, dtype=index)
        assert torch.equal(elementwise.embed(table, tokens), table[tokens.long()])


ROPES = {
    "plain": Rope(dim=128, theta=500000.0),
    "small": Rope(dim=20),
    "linear": Rope(dim=64, kind="linear", factor=4.0),
    "llama3": Rope(
        dim=128,
        kind="llama3",
        theta=500000.0,
        factor=8.0,
        original=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    ),
    "yarn": Rope(dim=64, kind="yarn", factor=4.0, original=4096, attention_factor=1.139),
    "dynamic": Rope(dim=128, kind="dynamic", factor=2.0, original=2048),
    "longrope": Rope(
        dim=96,
        kind="longrope",
        original=4096,
        attention_factor=1.19,
        short_factor=tuple(1 + i / 48 for i in range(48)),
        long_factor=tuple(1 + i for i in range(48)),
    ),
}


def table_of(rope: Rope) -> RotaryTable:
    frequencies = inverse_frequencies(rope).to(GPU)
    far = inverse_frequencies(rope, torch.tensor([rope.original + 1]))[0] if rope.kind == "longrope" else None
    return RotaryTable(
        frequencies,
        None if far is None else far.to(GPU),
        rope.original,
        rope.factor if rope.kind == "dynamic" else 0.0,
        rope.attention_factor,
    )


@pytest.mark.parametrize("name", ROPES)
def test_rotary(name: str) -> None:
    rope = ROPES[name]
    positions = torch.tensor(
        [0, 1, 2, 77, 2047, 2048, 4095, 4096, 31999, 131071], dtype=torch.int32, device=GPU
    )
    lengths = torch.tensor([1, 9, 5000, 78, 2048, 4, 8192, 1, 32000, 7], dtype=torch.int32, device=GPU)
    table = table_of(rope)
    cos, sin = elementwise.rotary(positions, lengths if table.by_length else None, table)
    if table.by_length:
        frequencies = inverse_frequencies(rope, torch.maximum(lengths, positions + 1).cpu()).to(GPU)
    else:
        frequencies = table.frequencies.unsqueeze(0)
    angles = (positions.unsqueeze(1).float() * frequencies).double()
    # dynamic: a float32 frequency has an error of some ulps either way, which grows with the position
    slack = 3e-7 + (angles.abs() * 1e-6 if name == "dynamic" else 0.0)
    assert bool(((cos - angles.cos() * rope.attention_factor).abs() <= slack).all())
    assert bool(((sin - angles.sin() * rope.attention_factor).abs() <= slack).all())


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((a * c - b * s, b * c + a * s, rest), -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    "dim,rope_dim,heads,kv_heads,block,normed",
    [
        (128, 128, 32, 8, 64, False),
        (128, 128, 16, 2, 128, True),
        (64, 64, 3, 3, 16, False),
        (64, 32, 14, 2, 32, True),
        (80, 32, 5, 1, 64, False),
        (80, 20, 4, 4, 64, True),
        (96, 96, 4, 2, 64, False),
        (256, 256, 8, 1, 64, True),
        (8, 8, 2, 1, 16, False),
    ],
)
def test_rope_kv_write(
    dtype: torch.dtype,
    bits: int,
    dim: int,
    rope_dim: int,
    heads: int,
    kv_heads: int,
    block: int,
    normed: bool,
) -> None:
    for rows, start in ((1, 0), (65, 0), (17, 63), (130, 1000)):
        torch.manual_seed(rows)
        qkv = randn(rows, (heads + 2 * kv_heads) * dim, dtype=dtype)
        before = qkv.view(rows, -1, dim).clone()
        used = -(-(start + rows) // block)
        table = (torch.randperm(used + 3, device=GPU)[:used] + 1).int()
        cache = kv.new_cache(used + 4, kv_heads, dim, block_size=block, bits=bits, dtype=dtype, device=GPU)
        cache.data.fill_(0xFF)
        angles = torch.rand(rows, rope_dim // 2, device=GPU) * 100
        cos, sin = angles.cos(), angles.sin()
        gain = torch.rand(heads + kv_heads, dim, device=GPU) + 0.5 if normed else None
        q = rope_kv.write(qkv, heads, cache, table, start, cos, sin, gain, 1e-6)

        wide = before.double()
        qk, v = wide[:, : heads + kv_heads], before[:, heads + kv_heads :]
        if gain is not None:
            qk = (
                (qk * torch.rsqrt(qk.pow(2).mean(-1, keepdim=True) + 1e-6) * gain.double()).to(dtype).double()
            )
        wanted = rotated(qk, cos.double(), sin.double())
        got = qkv.view(rows, -1, dim)
        assert relative(got[:, : heads + kv_heads], wanted) <= TOLERANCE[dtype] * (2 if normed else 1)
        assert torch.equal(got[:, heads + kv_heads :], v)
        assert torch.equal(q, got[:, :heads])

        # what the cache holds is exactly the encoding of the rotated keys that were left in qkv
        spots = torch.arange(start, start + rows, device=GPU)
        blocks, slots = table[spots // block].long(), spots % block
        row = dim * bits // 8
        for which, stored in ((0, got[:, heads : heads + kv_heads]), (1, v)):
            codes, params = rows_of(stored, bits)
            data = cache.data[..., which * block * row : (which + 1) * block * row].unflatten(
                -1, (block, row)
            )
            held = data[blocks, :, slots]
            if bits == 16:
                assert torch.equal(held, codes.reshape(held.shape))
                continue
            at = 2 * block * row + which * block * 4
            pairs = cache.data[..., at : at + block * 4].unflatten(-1, (block, 4))[blocks, :, slots]
            assert params is not None and torch.equal(pairs, params.reshape(pairs.shape))
            assert float((held != codes).double().mean()) <= 1e-4  # ties
        untouched = torch.ones(cache.data.shape[0], dtype=torch.bool, device=GPU)
        untouched[table[start // block :].long()] = False
        assert bool((cache.data[untouched] == 0xFF).all())


def test_constant_head_quantises_to_itself() -> None:
    """A head whose numbers are equal has scale 0: codes 0, min the number."""
    cache = kv.new_cache(2, 1, 64, bits=4, device=GPU)
    qkv = torch.full((1, 3 * 64), 1.5, dtype=torch.float16, device=GPU)
    zero = torch.zeros(1, 32, device=GPU)
    rope_kv.write(qkv, 1, cache, torch.tensor([1], dtype=torch.int32, device=GPU), 0, zero + 1, zero)
    keys, values = read_cache(cache)
    assert math.isclose(float(keys[1, 0, 0].min()), 1.5) and math.isclose(float(values[1, 0, 0].max()), 1.5)
