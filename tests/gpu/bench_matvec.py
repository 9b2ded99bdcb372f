"""Times linear layers of few tokens, per matrix and four in a row as in a layer.

python tests/gpu/bench_matvec.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lmtop.kernels.cuda.matvec import fold_norm, linear
from lmtop.kernels.cuda.w4 import PackedW4
from lmtop.kernels.timing import copies, microseconds

MODELS = {
    "8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "1.8B": ((4096, 2048), (2048, 2048), (16384, 2048), (2048, 8192)),
}


def matrix(rows: int, columns: int, group: int, gate_up: bool) -> Tensor | PackedW4:
    if not group:
        return torch.randn(rows, columns, device="cuda").half() / 64
    words = torch.randint(
        -(2**31), 2**31 - 1, (rows // 16, columns // 64, 32, 4), dtype=torch.int32, device="cuda"
    )
    scales = torch.rand(rows // 16, columns // group, 8, 2, device="cuda") * 0.01 + 0.002
    pairs = scales.half().view(torch.int16).int() | (8 << 16)
    return PackedW4(words, pairs, rows, columns, group, gate_up)


def operations(tokens: int, shapes: tuple[tuple[int, int], ...]) -> list[Callable]:
    """The four products of a layer, each a function of its weights alone."""
    hidden, wide = shapes[0][1], shapes[3][1]
    x, attended, h = (
        torch.randn(tokens, size, device="cuda").half() for size in (hidden, shapes[1][1], wide)
    )
    norm = fold_norm(torch.rand(hidden, device="cuda") + 0.5, 1e-5)
    return [
        lambda w: linear(x, w, norm=norm),
        lambda w: linear(attended, w, residual=x),
        lambda w: linear(x, w, norm=norm, silu=True),
        lambda w: linear(h, w, residual=x),
    ]


def main() -> None:
    for model, shapes in MODELS.items():
        for group in (128, 0):
            nbytes = sum(n * k * (0.53125 if group else 2) for n, k in shapes)
            layers = [
                [matrix(n, k, group, i == 2) for i, (n, k) in enumerate(shapes)]
                for _ in range(copies(nbytes))
            ]
            for tokens in (1, 2, 4, 8):
                steps = operations(tokens, shapes)
                each = [
                    microseconds([partial(step, layer[i]) for layer in layers])
                    for i, step in enumerate(steps)
                ]
                row = [partial(step, layer[i]) for layer in layers for i, step in enumerate(steps)]
                whole = 4 * microseconds(row)
                print(
                    f"{model} {f'W4 g{group}' if group else 'fp16'} {tokens} tokens: "
                    f"{' '.join(f'{t:.2f}' for t in each)} us, layer {whole:.2f} us, {nbytes / whole / 1e3:.0f} GB/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
