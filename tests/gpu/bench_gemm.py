"""Times the matrix products of one decoder layer on a GPU: `python tests/gpu/bench_gemm.py [tilings] [TOKENS ...]`.

The four matrices of an 8B Llama-style layer, six weight sets in rotation (more than the L2 cache holds), 24 layers a graph,
median of several replays; cuBLAS on 16-bit weights beside it. `tilings` times every compiled tiling on every matrix:
what `COSTS_W4` and `COSTS_PLAIN` of gemm.py are made from.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lmtop.kernels.cuda import gemm
from lmtop.kernels.cuda.w4 import PackedW4

GPU = torch.device("cuda")
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
SETS = 6


def microseconds(calls: Sequence[Callable[[], object]], rounds: int = 4, replays: int = 9) -> float:
    """Median time of one call, in a graph of `rounds` times all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return statistics.median(times)


def packed(rows: int, columns: int) -> PackedW4:
    words = torch.randint(-(2**31), 2**31, (rows // 16, columns // 64, 32, 4), device=GPU).int()
    pairs = torch.full((rows // 16, columns // 128, 8, 2), 0x00081C00, dtype=torch.int32, device=GPU)
    return PackedW4(words, pairs, rows, columns, 128)


def layers(tokens: int) -> None:
    x = {columns: torch.randn(tokens, columns, device=GPU).half() for _, columns in SHAPES}

    def layer(weights: Sequence[PackedW4 | Tensor], product: Callable[..., object]) -> None:
        for weight, (_, columns) in zip(weights, SHAPES, strict=True):
            product(x[columns], weight)

    four = [[packed(*shape) for shape in SHAPES] for _ in range(SETS)]
    ours = microseconds([partial(layer, weights, gemm.linear) for weights in four])
    del four
    plain = [
        [torch.randn(shape, device=GPU, dtype=torch.float16) / 64 for shape in SHAPES] for _ in range(SETS)
    ]
    dense = microseconds([partial(layer, weights, gemm.linear) for weights in plain])
    turned = [[weight.t() for weight in weights] for weights in plain]
    cublas = microseconds([partial(layer, weights, torch.mm) for weights in turned])
    print(
        f"{tokens:5} tokens: W4 {ours:7.1f} us a layer, 16-bit {dense:7.1f}, cuBLAS {cublas:7.1f}", flush=True
    )


def tilings(tokens: int) -> None:
    for rows, columns in SHAPES:
        x = torch.randn(tokens, columns, device=GPU).half()
        weights = [packed(rows, columns) for _ in range(SETS)]
        for cost in gemm.COSTS_W4:
            calls = [partial(gemm.tiled, x, weight, None, cost.tiling) for weight in weights]
            guess = cost(tokens, rows, columns, gemm.device_of(0).processors)
            print(
                f"{rows}x{columns} {tokens} {cost.tiling}: {microseconds(calls):.1f} us (model {guess:.1f})",
                flush=True,
            )


if __name__ == "__main__":
    words = sys.argv[1:]
    counts = [int(word) for word in words if word.isdigit()] or [17, 32, 64, 128, 256, 1024, 2048]
    for count in counts:
        (tilings if "tilings" in words else layers)(count)
