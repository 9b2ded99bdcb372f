"""The reference operations against plain formulas, one row and one head at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lmtop.kernels import ops, reference

H, K, D, SIZE = 6, 2, 8, 4
SCALE = D**-0.5


@pytest.fixture
def cache() -> Tensor:
    return torch.randn(12, SIZE, 2 * K, D, generator=torch.Generator().manual_seed(2))


def table(cache: Tensor, blocks: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values in order of position, [L, K, D]."""
    rows = torch.cat([cache[block] for block in blocks])
    return rows[:, :K], rows[:, K:]


def expected(q: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None) -> Tensor:
    """softmax(scale * q @ k) @ v over the visible keys, in float64: q [H, D] -> [H * D]."""
    first = 0 if window is None else max(0, position - window + 1)
    out = []
    for head in range(H):
        k, v = (x[first : position + 1, head // (H // K)].double() for x in (keys, values))
        weights = torch.softmax(k @ q[head].double() * SCALE, 0)
        out.append(weights @ v)
    return torch.cat(out).float()


def still(positions: Tensor, lengths: Tensor | int) -> tuple[Tensor, Tensor]:
    """A rotary that turns nothing."""
    return torch.ones(1, 1, D), torch.zeros(1, 1, D)


def decode_plan(positions: list[int], tables: Tensor, cache: Tensor, window: int | None) -> reference.Batch:
    return reference.plan_decode(still, torch.tensor(positions), 0, tables, None, cache, (window,))


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("positions", [[0], [3], [4], [10], [0, 10, 4, 7], [5, 5]])
def test_attn_decode(cache: Tensor, positions: list[int], window: int | None) -> None:
    tables = torch.tensor([[7, 2, 9], [1, 11, 4], [3, 0, 0], [8, 5, 0]])[: len(positions)]
    q = torch.randn(len(positions), H, D)
    batch = decode_plan(positions, tables.int(), cache, window)
    got = reference.attn_decode(q, cache, batch, ops.AttentionParams(SCALE, window))
    for row, position in enumerate(positions):
        keys, values = table(cache, tables[row].tolist())
        assert torch.allclose(got[row], expected(q[row], keys, values, position, window), atol=1e-6)


def test_rows_pick_their_tables(cache: Tensor) -> None:
    tables = torch.tensor([[0, 0, 0], [1, 11, 4], [7, 2, 9]])
    picked = reference.plan_decode(
        still, torch.tensor([10, 4]), 0, tables, torch.tensor([2, 1]), cache, (None,)
    )
    straight = decode_plan([10, 4], tables[[2, 1]], cache, None)
    assert torch.equal(picked.slots, straight.slots)
    assert torch.equal(picked.blocks, straight.blocks)


@pytest.mark.parametrize("tile", [1 << 23, 100, 1])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 11), (3, 6), (4, 4), (10, 1)])
def test_attn_prefill(
    cache: Tensor, start: int, count: int, window: int | None, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "SCORES", tile)
    blocks = [7, 2, 9]
    q = torch.randn(count, H, D)
    chunk = ops.Chunk(start, count, 0, torch.tensor(blocks))
    (batch,) = reference.plan_prefill(still, [chunk], cache, (window,))
    got = reference.attn_prefill(q, cache, batch, ops.AttentionParams(SCALE, window))
    keys, values = table(cache, blocks)
    for row in range(count):
        assert torch.allclose(got[row], expected(q[row], keys, values, start + row, window), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("shape", [(32,), (5, 8)])
def test_rms_norm(rows: int, shape: tuple[int, ...]) -> None:
    x, gain = torch.randn(rows, *shape) * 3, torch.randn(shape)
    wide = x.double()
    want = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * gain.double()
    assert torch.allclose(reference.rms_norm(x, gain, 1e-3), want.float(), atol=1e-6)
    half = reference.rms_norm(x.bfloat16(), gain, 1e-3)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), want.float(), atol=0.05)


@pytest.mark.parametrize("rows", [1, 5])
def test_linear_adds_bias_and_residual(rows: int) -> None:
    x, weight, bias, residual = torch.randn(rows, 8), torch.randn(6, 8), torch.randn(6), torch.randn(rows, 6)
    plain = x @ weight.T
    for given, added in ((None, torch.zeros(6)), (bias, bias)):
        layer = ops.Dense(weight, given)
        assert torch.allclose(reference.linear(x, layer), plain + added, atol=1e-6)
        before = residual.clone()
        assert torch.allclose(reference.linear(x, layer, residual), plain + added + residual, atol=1e-6)
        assert torch.equal(residual, before)


def test_silu_mul() -> None:
    gate, up = torch.randn(3, 5), torch.randn(3, 5)
    want = gate / (1 + torch.exp(-gate)) * up
    assert torch.allclose(reference.silu_mul(torch.cat((gate, up), 1)), want, atol=1e-6)


@pytest.mark.parametrize("rope_dim", [D, D // 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_kv_write(rope_dim: int, dtype: torch.dtype) -> None:
    cache = torch.zeros(12, SIZE, 2 * K, D, dtype=dtype)
    qkv = torch.randn(2, (H + 2 * K) * D).to(dtype)
    heads = qkv.view(2, H + 2 * K, D).float()
    angle = torch.tensor([5.0, 9.0])[:, None] * torch.tensor([100.0**-i for i in range(rope_dim // 2)])
    cos, sin = (f(angle).repeat(1, 2).unsqueeze(1) for f in (torch.cos, torch.sin))
    sin[..., : rope_dim // 2].neg_()
    want = heads.clone()
    for row in range(2):
        for head in range(H + K):
            for i in range(rope_dim // 2):
                a, b = heads[row, head, i].item(), heads[row, head, i + rope_dim // 2].item()
                c, s = math.cos(angle[row, i]), math.sin(angle[row, i])
                want[row, head, i], want[row, head, i + rope_dim // 2] = a * c - b * s, b * c + a * s
    tables = torch.tensor([[7, 2, 9], [1, 11, 4]])
    batch = reference.plan_decode(
        lambda positions, lengths: (cos, sin), torch.tensor([5, 9]), 0, tables, None, cache, (None,)
    )
    q = reference.rope_kv_write(qkv, H, batch, cache, None, 1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(q.float(), want[:, :H], atol=tolerance)
    assert torch.allclose(cache[2, 1].float(), want[0, H:], atol=tolerance)
    assert torch.allclose(cache[4, 1].float(), want[1, H:], atol=tolerance)
    assert int((cache != 0).any(-1).sum()) == 2 * 2 * K  # nothing else was touched


def test_query_and_key_gains_come_before_rotation() -> None:
    cache, gain = torch.zeros(3, SIZE, 2 * K, D), torch.randn(H + K, D)
    qkv = torch.randn(1, (H + 2 * K) * D)
    heads = qkv.view(1, H + 2 * K, D).clone()
    batch = decode_plan([0], torch.tensor([[2]]), cache, None)
    q = reference.rope_kv_write(qkv, H, batch, cache, gain, 1e-6)
    normed = heads[:, : H + K] / (heads[:, : H + K].pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    assert torch.allclose(q, normed[:, :H], atol=1e-6)
    assert torch.allclose(cache[2, 0], torch.cat((normed[0, H:], heads[0, H + K :])), atol=1e-6)


SPECIAL = {
    "softcap": ops.AttentionParams(SCALE, softcap=0.7),
    "slopes": ops.AttentionParams(SCALE, slopes=torch.linspace(-0.5, 0.5, H)),
    "sinks": ops.AttentionParams(SCALE, sinks=torch.linspace(-1, 2, H)),
    "all": ops.AttentionParams(
        SCALE, 3, softcap=0.7, slopes=torch.linspace(-0.5, 0.5, H), sinks=torch.linspace(-1, 2, H)
    ),
}


def special(q: Tensor, keys: Tensor, values: Tensor, position: int, params: ops.AttentionParams) -> Tensor:
    """`expected` with soft cap, slopes and sinks, written out per head in float64."""
    first = 0 if params.window is None else max(0, position - params.window + 1)
    out = []
    for head in range(H):
        k, v = (x[first : position + 1, head // (H // K)].double() for x in (keys, values))
        scores = k @ q[head].double() * SCALE
        if params.softcap is not None:
            scores = params.softcap * torch.tanh(scores / params.softcap)
        if params.slopes is not None:
            scores = scores + params.slopes[head].double() * torch.arange(first, position + 1)
        sink = torch.exp(params.sinks[head].double()) if params.sinks is not None else 0.0
        weights = scores.exp() / (scores.exp().sum() + sink)
        out.append(weights @ v)
    return torch.cat(out).float()


@pytest.mark.parametrize("name", SPECIAL)
def test_soft_caps_slopes_and_sinks(cache: Tensor, name: str) -> None:
    params = SPECIAL[name]
    tables, positions = torch.tensor([[7, 2, 9], [1, 11, 4]]), [10, 4]
    q = torch.randn(11, H, D)
    batch = decode_plan(positions, tables.int(), cache, params.window)
    got = reference.attn_decode(q[:2], cache, batch, params)
    for row, position in enumerate(positions):
        keys, values = table(cache, tables[row].tolist())
        assert torch.allclose(got[row], special(q[row], keys, values, position, params), atol=1e-6)
    keys, values = table(cache, tables[0].tolist())
    (chunk,) = reference.plan_prefill(still, [ops.Chunk(0, 11, 0, tables[0])], cache, (params.window,))
    got = reference.attn_prefill(q, cache, chunk, params)
    for position in range(11):
        assert torch.allclose(got[position], special(q[position], keys, values, position, params), atol=1e-6)
