"""Reading stored tensors through staging buffers, a piece at a time; files are read, not mapped."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, wait

import torch
from torch import Tensor

from .checkpoint import StoredTensor
from .hfconfig import open_regular, shown
from .random_weights import NOWHERE, Noise
from .types import Cancelled, ModelError

CHUNK_BYTES = 32 << 20  # staging buffer, and how often progress is told and a cancel is seen
# The same for the CPU, where the disk reads ahead while a piece is copied: 320 MB that are in no cache took 0.13 s in
# pieces of 32 and of 16 MiB, 0.10 s in those of 8.
CPU_CHUNK_BYTES = 8 << 20
# Threads that read a piece together. Out of the page cache of an H200's host into pinned memory, and on to the GPU:
# one 9.4 GB/s, two 16, four 25, eight 28.
READERS = 4
PART_BYTES = 4 << 20  # a smaller part is not worth another thread
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class Reader:
    """Reads tensors for `device`, tells how much of `total` bytes is done and sees a cancel at each piece."""

    def __init__(
        self,
        device: torch.device,
        threads: Executor,
        total: int,
        progress: Callable[[float, str], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._device, self._threads, self._total = device, threads, total
        self._progress, self._cancelled = progress, cancelled
        self._staging = _Staging(device)
        self._noise: Noise | None = None
        self._done = 0

    def pieces(self, tensor: StoredTensor) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a tensor, piece by piece. A piece is valid until the next is asked for; copies out of
        it may then be on their way still. A tensor without dimensions is one row."""
        for first, piece in self._raw(tensor):
            if self._cancelled():
                raise Cancelled
            yield first, piece
            self._staging.sent()
            self._done += piece.nbytes
            self._progress(self._done / self._total, f"reading {shown(tensor.path.name)}")

    def whole(self, tensor: StoredTensor) -> Tensor:
        """A tensor as stored, on the device."""
        result = torch.empty(tensor.shape or (1,), dtype=DTYPES[tensor.dtype], device=self._device)
        for first, piece in self.pieces(tensor):
            result[first : first + len(piece)].copy_(piece, non_blocking=True)
        return result

    def _raw(self, tensor: StoredTensor) -> Iterator[tuple[int, Tensor]]:
        if tensor.path != NOWHERE:
            return _chunks(tensor, self._staging, self._threads)
        if self._noise is None:
            self._noise = Noise(self._device)
        return self._noise.rows(tensor)


class _Staging:
    """Buffers that file contents pass through. For a GPU there are two, pinned, so that one is filled while the
    other is still being copied. `chunk`: bytes of a piece, unless a row is longer."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self.chunk = CHUNK_BYTES if self._pinned else min(CHUNK_BYTES, CPU_CHUNK_BYTES)
        self._buffers = [self._new(self.chunk) for _ in range(2 if self._pinned else 1)]
        self._events: list[torch.cuda.Event | None] = [None, None]
        self._at = 0

    def _new(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)

    def take(self, nbytes: int) -> Tensor:
        """A buffer that may be overwritten, its first `nbytes` bytes."""
        if nbytes > self._buffers[self._at].nbytes:  # one row longer than the buffer
            self._buffers[self._at] = self._new(nbytes)
        event = self._events[self._at]
        if event is not None:
            event.synchronize()
        return self._buffers[self._at][:nbytes]

    def sent(self) -> None:
        """The copy out of the buffer taken last is queued."""
        if self._pinned:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._events[self._at] = event
            self._at = 1 - self._at


def _chunks(tensor: StoredTensor, staging: _Staging, threads: Executor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of a stored tensor, piece by piece; each piece is valid until the next is asked for."""
    dtype = DTYPES[tensor.dtype]
    rows, *shape = tensor.shape or (1,)
    row_bytes = math.prod(shape) * dtype.itemsize
    with open_regular(tensor.path) as file:
        step = max(1, staging.chunk // max(1, row_bytes))
        for first in range(0, rows, step):
            count = min(step, rows - first)
            piece = staging.take(count * row_bytes)
            _read_into(file.fileno(), tensor.offset + first * row_bytes, piece, tensor, threads)
            yield first, piece.view(dtype).view(count, *shape)


def _read_into(descriptor: int, offset: int, piece: Tensor, tensor: StoredTensor, threads: Executor) -> None:
    """Fill `piece` from `offset` of the file on. Returns, or raises, when no thread writes to it any more."""
    view = memoryview(piece.numpy())  # type: ignore[arg-type]  # an ndarray is a buffer

    def read(start: int, end: int) -> None:
        while start < end:
            got = os.preadv(descriptor, [view[start:end]], offset + start)
            if not got:
                raise ModelError(f"{shown(tensor.path.name)}: the file became shorter while it was read")
            start += got

    size = max(PART_BYTES, -(-len(view) // READERS))
    parts = [
        threads.submit(read, start, min(start + size, len(view))) for start in range(size, len(view), size)
    ]
    try:
        read(0, min(size, len(view)))
    finally:
        wait(parts)
    for part in parts:
        part.result()
