"""What this process holds of the memory that an engine computes in, as the operating system or the driver reports it.

Readings, never estimates: what cannot be read is None. Of a GPU only NVML is asked, and torch's own counters: a
CUDA runtime call could break a graph capture in progress. Imports no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from .config import DeviceInfo
from .devices import visible_gpu
from .nvml import Backoff
from .types import MemorySplit


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes: all there is, what this process holds, and what everything else does."""

    total: int | None
    own: int
    others: int | None


class DeviceMemory(Protocol):
    """The memory of one device."""

    name: str  # as the gauges call it: RAM, GPU0

    def read(self) -> Reading:
        """What is held now; takes up to a millisecond."""
        ...


class Ram:
    """The host's memory."""

    name = "RAM"

    def __init__(self) -> None:
        self._process = psutil.Process(os.getpid())

    def read(self) -> Reading:
        machine, own = psutil.virtual_memory(), self._process.memory_info().rss
        return Reading(machine.total, own, max(0, machine.total - machine.available - own))


# What this process takes of a GPU outside torch's pool (context, kernels, graphs), where the driver does not tell the
# memory of each process. Measured at the first load: later ones find the context there already.
_outside_torch: int | None = None


class Vram:
    """The memory of the GPU that CUDA calls device 0.

    `before` is the device as it was before the load, and before this process had a CUDA context if it is the first.
    Where NVML does not list this process (a container hides it), what it holds is torch's pool and what was measured
    to be outside of that at the end of the load, by `loaded`.
    """

    def __init__(self, before: DeviceInfo, nvml: Any = None, pool: Callable[[], int] | None = None) -> None:
        self._others_before = before.total - before.free
        self._pool = pool or _torch_pool
        self._backoff = Backoff()
        self._nvml = nvml or importlib.import_module("pynvml")
        self._handle = self._backoff.read("handle", self._open)
        index = self._backoff.read("index", lambda: int(self._nvml.nvmlDeviceGetIndex(self._handle)))
        self.name = "GPU" if index is None else f"GPU{index}"

    def _open(self) -> Any:
        self._nvml.nvmlInit()
        return visible_gpu(self._nvml)

    def loaded(self) -> int | None:
        """The load is over: what this process holds now, in bytes; None when that cannot be read."""
        global _outside_torch
        device, listed = self._device(), self._listed()
        if device is None:
            return None
        if listed is not None:
            return listed
        if _outside_torch is None:
            _outside_torch = max(0, device[1] - self._others_before - self._pool())
        return self._pool() + _outside_torch

    def read(self) -> Reading:
        device, listed = self._device(), self._listed()
        own = listed if listed is not None else self._pool() + (_outside_torch or 0)
        if device is None:
            return Reading(None, own, None)
        total, used = device
        return Reading(total, own, max(0, used - own))

    def _device(self) -> tuple[int, int] | None:
        """(total, not free) bytes; what the driver keeps for itself is not free either."""

        def ask() -> tuple[int, int]:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            return int(memory.total), int(memory.total) - int(memory.free)

        return self._backoff.read("memory", ask)

    def _listed(self) -> int | None:
        """This process's bytes as the driver lists them. Less than torch's pool is another process, which has our
        number outside our container."""

        def ask() -> int | None:
            entries = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            own = [entry.usedGpuMemory for entry in entries if int(entry.pid) == os.getpid()]
            return int(own[0]) if own and own[0] is not None else None

        listed = self._backoff.read("processes", ask)
        return listed if listed is not None and listed >= self._pool() else None


def _torch_pool() -> int:
    """Bytes that torch's allocator holds on its device 0, from its own counters."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved(0)) if torch is not None and torch.cuda.is_initialized() else 0


def memory_of(device: DeviceInfo) -> DeviceMemory:
    """The memory of a device that is about to be loaded to."""
    return Vram(device) if device.kind == "cuda" else Ram()


def given_back(split: MemorySplit | None) -> int:
    """Bytes that the engine of `split` frees when it is unloaded. Of a GPU that is all of ours, since a plan counts
    the runtime too; of the RAM weights and cache, the interpreter stays."""
    if split is None:
        return 0
    model = split.weights + split.kv_used + split.kv_rest
    return model if split.device == "RAM" else model + split.workspace
