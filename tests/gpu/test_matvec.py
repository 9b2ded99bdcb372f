"""Linear layers whose weights stream from memory, against float64 on the same numbers."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("cupy")

from support.products import EPS, expected, matrix, poison

from lmtop.kernels.cuda import matvec
from lmtop.kernels.cuda.matvec import Cut, fold_norm, linear

FP16, BF16 = torch.float16, torch.bfloat16
TOLERANCE = {FP16: 3e-4, BF16: 2.5e-3}
EXTRAS: tuple[dict[str, bool], ...] = (
    {},
    {"norm": True},
    {"bias": True, "residual": True},
    {"norm": True, "bias": True, "silu": True},
    {"norm": True, "out_float": True},
)
# rows, columns, group (0: dense)
SHAPES = [
    (16, 8, 0),
    (1002, 520, 0),
    (130, 18944, 0),
    (4096, 4096, 0),
    (40, 32, 32),
    (34, 320, 64),
    (50, 18944, 128),
    (4096, 14336, 128),
]


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape: tuple[int, int, int], extras: dict[str, bool], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    rows, columns, group = shape
    silu = extras.get("silu", False)
    weight, meaning = matrix(rows, columns, group, dtype, silu)
    gain = torch.rand(columns, device="cuda") * 3 + 0.1 if extras.get("norm") else None
    bias = torch.randn(rows, device="cuda").to(dtype) if extras.get("bias") else None
    norm = None if gain is None else fold_norm(gain, EPS)
    for tokens in (1, 3, 8, 9, 16):
        x = torch.randn(tokens, columns, device="cuda").to(dtype)
        width = rows // 2 if silu else rows
        residual = torch.randn(tokens, width, device="cuda").to(dtype) if extras.get("residual") else None
        poison()
        got = linear(
            x,
            weight,
            bias,
            norm=norm,
            residual=residual,
            silu=silu,
            out_float=extras.get("out_float", False),
        )
        wanted = expected(x, meaning, gain, bias, residual, silu)
        assert got.dtype == (torch.float32 if extras.get("out_float") else dtype)
        # x times gain is rounded to 16 bits, SiLU multiplies two products' errors; few outputs scatter more
        more = (1.35 if gain is not None else 1) * (1.5 if silu else 1) * (2 if got.numel() < 200 else 1)
        assert (got.double() - wanted).norm() <= more * TOLERANCE[dtype] * wanted.norm()


@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("rows, columns", [(256, 1024), (2048, 2048), (4096, 14336)])
def test_a_token_is_the_same_bits_in_any_company(rows: int, columns: int, group: int) -> None:
    torch.manual_seed(2)
    weight, _ = matrix(rows, columns, group, FP16)
    x = torch.randn(16, columns, device="cuda").half()
    norm = fold_norm(torch.rand(columns, device="cuda"), EPS)
    whole = linear(x, weight, norm=norm)
    for tokens in range(1, 16):
        assert torch.equal(linear(x[:tokens], weight, norm=norm), whole[:tokens])
        assert torch.equal(linear(x[16 - tokens :], weight, norm=norm), whole[16 - tokens :])


@pytest.mark.parametrize("group", [0, 128])
def test_a_lost_row_does_not_touch_its_neighbours(group: int) -> None:
    torch.manual_seed(3)
    weight, _ = matrix(512, 1024, group, FP16)
    x = torch.randn(9, 1024, device="cuda").half()
    whole = linear(x, weight)
    x[4] = float("nan")
    spoilt = linear(x, weight)
    assert spoilt[4].isnan().all()
    assert torch.equal(spoilt[:4], whole[:4]) and torch.equal(spoilt[5:], whole[5:])


@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("warps, depth, cluster", [(4, 2, 1), (8, 4, 1), (8, 2, 2), (4, 2, 4)])
def test_every_cut_gives_the_product(warps: int, depth: int, cluster: int, group: int) -> None:
    torch.manual_seed(4)
    cut = Cut(warps, depth, cluster)
    weight, meaning = matrix(2040, 3584, group, FP16)
    gain = torch.rand(3584, device="cuda") + 0.5
    x = torch.randn(7, 3584, device="cuda").half()
    wanted = expected(x, meaning, gain, None, None, False)
    for _ in range(5):
        y = torch.full((7, 2040), float("nan"), dtype=FP16, device="cuda")
        matvec.run(cut, x, weight, None, fold_norm(gain, EPS), None, False, y)
        assert (y.double() - wanted).norm() <= 1.35 * TOLERANCE[FP16] * wanted.norm()


def test_in_a_graph_it_gives_the_same_bits() -> None:
    torch.manual_seed(5)
    first, second = (matrix(1024, 1024, 128, FP16)[0] for _ in range(2))
    x = torch.randn(5, 1024, device="cuda").half()
    eager = linear(linear(x, first), second, residual=x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear(linear(x, first), second, residual=x)
    for _ in range(20):
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, eager)
