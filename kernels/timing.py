"""Timing on a GPU: calls in a CUDA graph, as the engine launches them, and the ceilings that they are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from . import launch
from .nvrtc import unit

ROTATION = 400 << 20  # bytes between two uses of a buffer: several times any L2 cache
READ_TILE = 512 * 2 * 16  # bytes: THREADS, LOADS of bandwidth.cu
LONGEST = 64  # calls in one graph, at least each once


def copies(nbytes: float) -> int:
    """Sets of buffers of `nbytes` each that a call should rotate over, so that none is left in the L2 cache."""
    return max(2, min(LONGEST, math.ceil(ROTATION / max(nbytes, 1))))


def microseconds(calls: Sequence[Callable[[], object]], replays: int = 7) -> float:
    """Median time of one call, the calls taking turns in a replayed graph; each must be on data of its own."""
    for call in calls[:2]:
        call()  # compiles, and makes what may not be made during the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    launches = max(20, len(calls))
    with torch.cuda.graph(graph):
        for index in range(launches):
            calls[index % len(calls)]()
    graph.replay()
    times: list[float] = []
    for _ in range(replays):
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / launches)
    return median(times)


def read_bandwidth(device: torch.device) -> float:
    """GB/s at which a kernel that only reads gets up to 4 GiB from memory."""
    free, _ = torch.cuda.mem_get_info(device)
    tiles = min(4 << 30, free // 4) // READ_TILE
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    kernel = launch.load(unit("bandwidth.cu"), device).kernel("read_memory")
    data = torch.zeros(tiles * READ_TILE // 8, dtype=torch.int64, device=device)
    out = torch.zeros(1, dtype=torch.int32, device=device)
    time = microseconds([lambda: kernel(2 * processors, 512, data, tiles, out)], replays=3)
    return tiles * READ_TILE / 1e3 / time


def tensor_peak(device: torch.device, dtype: torch.dtype = torch.float16, size: int = 8192) -> float:
    """TFLOP/s of a large square product by cuBLAS."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2e-6 * size**3 / microseconds([lambda: torch.mm(a, b)], replays=3)
