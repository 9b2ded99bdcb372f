"""Times the prefill kernels on a GPU: `python tests/gpu/bench_prefill.py [copy] [small] [attention] [tilings]`.

Graphs of many launches over rotating buffers (more than three times the L2 cache), median of several replays.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from lmtop.kernels.cuda import attn_prefill, elementwise, kv, rope_kv
from lmtop.kernels.ops import AttentionParams

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.kv_records import fill_cache

GPU = torch.device("cuda")
COPY = 4260.0  # GB/s of a copy on an H200
ROTATE = 400e6  # bytes that a rotation of buffers covers


def microseconds(calls: Sequence[Callable[[], object]], launches: int = 0, replays: int = 7) -> float:
    """Median time of one call, in a graph of `launches` (default: each call at least once, 20 in all)."""
    launches = launches or max(20, len(calls))
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            calls[i % len(calls)]()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)


def copies(nbytes: float) -> int:
    return max(2, min(64, int(ROTATE / nbytes)))


def row_kernels(rows: int) -> None:
    """hidden 4096, gate-up 14336, 32/8 heads of 128: an 8B model's layer."""
    dtype = torch.float16

    def report(name: str, calls: Sequence[Callable[[], object]], nbytes: float) -> None:
        time = microseconds(calls)
        print(
            f"{name:24} n={rows:5} {time:8.2f} us {nbytes / time / 1e3:7.0f} GB/s {nbytes / time / 10 / COPY:5.1f} %"
        )

    gain = torch.ones(4096, device=GPU)
    nbytes = 2 * rows * 4096 * 2
    xs = [torch.randn(rows, 4096, device=GPU, dtype=dtype) for _ in range(copies(nbytes))]
    report("rms_norm 4096", [lambda x=x: elementwise.rms_norm(x, gain, 1e-5) for x in xs], nbytes)
    nbytes = 3 * rows * 14336 * 2
    xs = [torch.randn(rows, 2 * 14336, device=GPU, dtype=dtype) for _ in range(copies(nbytes))]
    report("silu_mul 14336", [lambda x=x: elementwise.silu_mul(x) for x in xs], nbytes)
    cos, sin = torch.randn(2, rows, 64, device=GPU)
    table = torch.arange(1, rows // 64 + 2, dtype=torch.int32, device=GPU)
    for bits in (16, 8, 4):
        read, q = rows * 48 * 128 * 2, rows * 32 * 128 * 2
        nbytes = read + q + rows * 8 * 128 * 2 + rows * 16 * (16 * bits + (4 if bits < 16 else 0))
        sets = [
            (
                torch.randn(rows, 48 * 128, device=GPU, dtype=dtype),
                kv.new_cache(rows // 64 + 2, 8, 128, bits=bits, device=GPU),
            )
            for _ in range(copies(nbytes))
        ]
        calls = [lambda x=x, c=c: rope_kv.write(x, 32, c, table, 0, cos, sin) for x, c in sets]
        report(f"rope_kv_write {bits} bits", calls, nbytes)
    if rows <= 64:
        table_ = torch.randn(128256, 4096, device=GPU, dtype=dtype)
        tokens = [torch.randint(0, 128256, (rows,), device=GPU, dtype=torch.int32) for _ in range(16)]
        report("embed 4096", [lambda t=t: elementwise.embed(table_, t) for t in tokens], 2 * rows * 8192)
        turning = elementwise.RotaryTable(torch.rand(64, device=GPU))
        at = torch.arange(rows, dtype=torch.int32, device=GPU)
        report("rotary 128", [lambda: elementwise.rotary(at, None, turning)], rows * 512)


def attention(
    rows: int,
    start: int,
    bits: int,
    dim: int = 128,
    heads: int = 32,
    kv_heads: int = 8,
    cut: attn_prefill.Tiling | None = None,
) -> None:
    """One line: time and TFLOP/s of the causal products, 4 * keys * heads * dim a row."""
    for dtype in (torch.float16,) if bits == 16 else (torch.bfloat16,):
        length = start + rows
        cache = kv.new_cache(length // 64 + 2, kv_heads, dim, bits=bits, dtype=dtype, device=GPU)
        blocks = torch.randn(2, length // 64 + 2, kv_heads, 64, dim, device=GPU, dtype=dtype)
        fill_cache(cache, blocks[0], blocks[1])
        table = (torch.randperm(length // 64 + 1, device=GPU) + 1).int()
        q = torch.randn(rows, heads + 2 * kv_heads, dim, device=GPU, dtype=dtype)[:, :heads]
        params = AttentionParams(dim**-0.5)
        flops = 4 * heads * dim * (rows * start + rows * rows / 2)
        launches = max(3, min(20, int(2e13 / flops)))
        time = microseconds([partial(attn_prefill.attend, q, cache, table, start, params, cut)], launches, 5)
        print(
            f"attention n={rows:5} prefix={start:6} kv{bits:<2} D={dim} {heads}/{kv_heads} {time:9.1f} us "
            f"{flops / time / 1e6:6.0f} TFLOP/s {cut or ''}"
        )


def main() -> None:
    wanted = sys.argv[1:] or ["copy", "small", "attention"]
    print(torch.cuda.get_device_name())
    if "copy" in wanted:
        row_kernels(2048)
    if "small" in wanted:
        for rows in (1, 16, 64):
            row_kernels(rows)
    if "attention" in wanted:
        for bits in (16, 8, 4):
            attention(2048, 0, bits)
            attention(2048, 30 * 1024, bits)
        attention(8192, 0, 16)
        attention(64, 30 * 1024, 16)
        attention(2048, 0, 16, heads=28, kv_heads=4)
        for dim in (64, 80, 96, 256):
            attention(2048, 2048, 16, dim=dim)
    if "tilings" in wanted:
        for cut in (
            attn_prefill.Tiling(8, 1, 64, 2),
            attn_prefill.Tiling(4, 2, 64, 2),
            attn_prefill.Tiling(4, 2, 32, 2),
            attn_prefill.Tiling(4, 1, 64, 2),
            attn_prefill.Tiling(4, 1, 64, 1),
        ):
            for bits in (16, 8):
                attention(2048, 2048, bits, cut=cut)


if __name__ == "__main__":
    main()
