"""Linear layers for many tokens on a GPU, against float64 on the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("cupy")

from lmtop.kernels.cuda import gemm
from lmtop.kernels.cuda.gemm import dequantise, linear, tiled
from lmtop.kernels.cuda.w4 import PackedW4, pack_w4

FP16, BF16 = torch.float16, torch.bfloat16
TOLERANCE = {FP16: 3e-4, BF16: 2.5e-3}
# silu(gate) * up has the errors of both: of the weights where W4 is rounded to 16 bits before the product, or of gate
# and up themselves where cuBLAS writes them in 16 bits.
TOLERANCE_SILU = {FP16: 4e-4, BF16: 3.2e-3}
TOLERANCE_SILU_CUBLAS = {FP16: 5e-4, BF16: 4e-3}  # rounding alone, simulated: 4.3e-4, 3.6e-3


def packed(rows: int, columns: int, group: int, gate_up: bool = False) -> tuple[PackedW4, Tensor]:
    """A random W4 matrix and its meaning in float64."""
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, device="cuda")
    scales = (torch.rand(rows, columns // group, device="cuda") * 0.01 + 0.002).half()
    zeros = torch.randint(0, 17, scales.shape, dtype=torch.uint8, device="cuda")
    wide = [x.double().repeat_interleave(group, 1) for x in (scales, zeros)]
    return pack_w4(codes, scales, zeros, gate_up=gate_up), (codes - wide[1]) * wide[0]


def poison() -> None:
    """Fill the memory that the next allocations will get with NaN."""
    blocks = [torch.full((size,), float("nan"), device="cuda") for size in (4096, 65536, 1 << 19, 1 << 21)]
    del blocks


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def expected(x: Tensor, meaning: Tensor, bias: Tensor | None, residual: Tensor | None, silu: bool) -> Tensor:
    y = x.double() @ meaning.t()
    if bias is not None:
        y = y + bias.double()
    if silu:
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
    return y if residual is None else y + residual.double()


def check(
    weight: Tensor | PackedW4,
    meaning: Tensor,
    tokens: int,
    dtype: torch.dtype,
    extras: str,
    tiling: gemm.Tiling | None = None,
) -> None:
    rows, columns = meaning.shape
    silu = "silu" in extras
    features = rows // 2 if silu else rows
    x = torch.randn(tokens, columns, device="cuda").to(dtype)
    bias = torch.randn(rows, device="cuda").to(dtype) if "bias" in extras else None
    residual = torch.randn(tokens, features, device="cuda").to(dtype) if "residual" in extras else None

    def run() -> Tensor:
        poison()
        options = {"residual": residual, "silu": silu, "out_float": "float" in extras}
        if tiling is not None:
            return tiled(x, weight, bias, tiling, **options)  # type: ignore[arg-type]
        return linear(x, weight, bias, **options)  # type: ignore[arg-type]

    first, second = run(), run()
    assert first.shape == (tokens, features)
    assert first.dtype == (torch.float32 if "float" in extras else dtype)
    assert torch.equal(first, second)
    ours = tiling or gemm.choose(tokens, weight, gemm.device_of(0))
    limit = ((TOLERANCE_SILU if ours else TOLERANCE_SILU_CUBLAS) if silu else TOLERANCE)[dtype]
    scatter = 1 + 3 * first.numel() ** -0.5  # of the rounding errors of few numbers
    assert error(first, expected(x, meaning, bias, residual, silu)) <= limit * scatter


EXTRAS = ("", "bias residual", "silu bias", "float", "bias float residual")


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("tokens", [17, 33, 63, 65, 100, 255, 300])
def test_packed_products_of_every_number_of_tokens(tokens: int, dtype: torch.dtype) -> None:
    for i, (rows, columns, group) in enumerate(
        ((272, 1152, 128), (1040, 640, 64), (4096, 2048, 128), (48, 416, 32))
    ):
        extras = EXTRAS[(tokens + i) % len(EXTRAS)]
        check(*packed(rows, columns, group, "silu" in extras), tokens, dtype, extras)


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("tokens", [17, 33, 50, 63, 64, 65])
def test_plain_products_of_every_number_of_tokens(tokens: int, dtype: torch.dtype) -> None:
    for i, (rows, columns) in enumerate(((270, 1160), (1040, 2048), (6144, 512), (50, 100))):
        extras = EXTRAS[(tokens + i) % len(EXTRAS)]
        weight = (torch.randn(rows, columns, device="cuda") / 64).to(dtype)
        check(weight, weight.double(), tokens, dtype, extras)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_dequantise_gives_the_rows_in_their_order(dtype: torch.dtype, gate_up: bool, group: int) -> None:
    weight, meaning = packed(36, 3 * 128 + group, group, gate_up)
    out = torch.full(meaning.shape, float("nan"), dtype=dtype, device="cuda")
    dequantise(weight, out)
    assert torch.equal(out, meaning.to(dtype))


@pytest.mark.parametrize("tokens", [40, 200])
def test_every_tiling_gives_the_same_product(tokens: int) -> None:
    weights = {extras: packed(784, 1536, 128, "silu" in extras) for extras in EXTRAS}
    tilings = [gemm.Tiling(64, 1, 3, hopper=False)]
    if gemm.device_of(0).capability == 90:
        tilings += [cost.tiling for cost in gemm.COSTS_W4]
        plain = (torch.randn(784, 1536, device="cuda") / 64).half()
        for cost in gemm.COSTS_PLAIN:
            for extras in EXTRAS:
                check(plain, plain.double(), tokens, FP16, extras, cost.tiling)
    for tiling in tilings:
        for extras in EXTRAS:
            check(*weights[extras], tokens, FP16, extras, tiling)


def test_capture_in_a_graph_gives_what_was_given_outside() -> None:
    weight, meaning = packed(512, 1024, 128)
    x = torch.randn(48, 1024, device="cuda").half()
    outside = linear(x, weight, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = linear(x, weight, None)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(inside, linear(x, weight, None))
    assert not torch.equal(inside, outside)
    assert error(inside, x.double() @ meaning.t()) <= TOLERANCE[FP16]
