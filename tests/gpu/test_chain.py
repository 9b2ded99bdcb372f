"""Products that follow each other in one launch, against float64 on the numbers that each was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
pytest.importorskip("cupy")
if torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("for sm_90", allow_module_level=True)

from support.products import EPS, expected, matrix, poison

from lmtop.kernels.cuda import chain
from lmtop.kernels.cuda.chain import Product
from lmtop.kernels.cuda.matvec import fold_norm
from lmtop.kernels.cuda.w4 import PackedW4

FP16, BF16 = torch.float16, torch.bfloat16
TOLERANCE = {FP16: 4e-4, BF16: 3e-3}
# hidden, attended, width, rows of what follows
SIZES = [
    (4096, 4096, 14336, 6144),
    (2048, 2048, 8192, 4096),
    (896, 896, 4864, 1152),
    (256, 512, 768, 130),
    (64, 128, 192, 36),
    (256, 512, 768, 4096),  # few CTAs have rows of the third, all of the fourth
]


def drawn(
    rows: int, columns: int, group: int, dtype: torch.dtype, gate_up: bool = False
) -> tuple[Tensor | PackedW4, Tensor]:
    """A random matrix that neither lets a chain of products die out nor grow."""
    return matrix(rows, columns, group, dtype, gate_up, (0.025 / columns**0.5, 0.125 / columns**0.5))


class Layer:
    """The four products from attention to attention, and their meaning."""

    def __init__(self, sizes: tuple[int, int, int, int], group: int, dtype: torch.dtype, bias: bool) -> None:
        hidden, attended, width, following = sizes
        shapes = ((hidden, attended), (2 * width, hidden), (hidden, width), (following, hidden))
        pairs = [drawn(rows, columns, group, dtype, at == 1) for at, (rows, columns) in enumerate(shapes)]
        self.meanings = [meaning for _, meaning in pairs]
        self.gains = [
            None,
            torch.rand(hidden, device="cuda") * 3,
            None,
            torch.rand(hidden, device="cuda") + 0.5,
        ]
        self.biases = [torch.randn(rows, device="cuda").to(dtype) if bias else None for rows, _ in shapes]
        self.products = [
            Product(weight, bias, None if gain is None else fold_norm(gain, EPS), at == 1)
            for at, ((weight, _), bias, gain) in enumerate(zip(pairs, self.biases, self.gains, strict=True))
        ]

    def check(self, attended: Tensor, x: Tensor, outs: list[Tensor], tolerance: float) -> None:
        """Each result against its exact value from what the kernel itself gave before."""
        residuals = (x, None, outs[0], None)
        given = attended
        for at, out in enumerate(outs):
            want = expected(given, self.meanings[at], self.gains[at], self.biases[at], residuals[at], at == 1)
            error = (out.double() - want).norm() / want.norm()
            # the normed x is rounded once more, and a gate's error multiplies the other half's
            assert error <= tolerance * (1.5 if at == 1 else 1), f"product {at}: {error:.1e}"
            given = out


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_layer_is_exact(sizes: tuple[int, int, int, int], group: int, dtype: torch.dtype) -> None:
    hidden, attended, _, _ = sizes
    if group and any(size % group for size in sizes[:3]):
        pytest.skip("no whole groups")
    layer = Layer(sizes, group, dtype, bias=hidden < 1000)
    for tokens in (1, 2):
        given = [torch.randn(tokens, size, device="cuda").to(dtype) for size in (attended, hidden)]
        assert chain.can(layer.products, tokens, dtype)
        poison()
        outs = chain.run(layer.products, given[0], (given[1], None, 0, None))
        layer.check(given[0], given[1], outs, TOLERANCE[dtype])
        again = chain.run(layer.products, given[0], (given[1], None, 0, None))
        assert all(torch.equal(a, b) for a, b in zip(outs, again, strict=True))
        alone = chain.run(layer.products, given[0][:1], (given[1][:1], None, 0, None))
        assert all(torch.equal(a, b[:1]) for a, b in zip(alone, outs, strict=True)), (
            "depends on its neighbours"
        )


@pytest.mark.parametrize("group", [0, 128])
def test_many_launches_in_a_graph(group: int) -> None:
    """Barriers count on through launches and replays; each launch starts while the one before ends."""
    layer = Layer((2048, 2048, 8192, 4096), group, FP16, bias=False)
    attended, x = (torch.randn(1, 2048, device="cuda").half() for _ in range(2))
    want = chain.run(layer.products, attended, (x, None, 0, None))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [chain.run(layer.products, attended, (x, None, 0, None)) for _ in range(50)]
    for _ in range(40):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for out in outs for a, b in zip(out, want, strict=True))


@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("rows", [1000, 92544])
def test_a_single_product_in_float32(rows: int, group: int) -> None:
    weight, meaning = drawn(rows, 2048, group, FP16)
    gain = torch.rand(2048, device="cuda") + 0.5
    x = torch.randn(2, 2048, device="cuda").half()
    products = [Product(weight, None, fold_norm(gain, EPS))]
    poison()
    (out,) = chain.run(products, x, (None,), out_float=True)
    want = expected(x, meaning, gain, None, None, False)
    assert out.dtype == torch.float32
    assert (out.double() - want).norm() / want.norm() <= 4e-4


def test_large_activations_do_not_overflow() -> None:
    weight, meaning = drawn(1024, 4096, 128, FP16)
    gain = torch.full((4096,), 40.0, device="cuda")
    x = torch.randn(1, 4096, device="cuda").half() * 12000
    x.clamp_(-60000, 60000)
    (out,) = chain.run([Product(weight, None, fold_norm(gain, EPS))], x, (None,))
    want = expected(x, meaning, gain, None, None, False)
    assert (out.double() - want).norm() / want.norm() <= 4e-4
