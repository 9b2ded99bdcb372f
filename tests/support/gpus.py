"""NVIDIA GPUs that are not there: the part of pynvml that the engine asks, and an environment in which they could be
used."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lmtop.engine import devices

GIB = 1 << 30


class NvmlError(Exception):
    """pynvml's error with its number."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


@dataclass
class Gpu:
    """One card. `processes` are (pid, bytes or None); None where they cannot be listed."""

    name: str = "NVIDIA H200"
    uuid: str = "GPU-aaaa-1"
    capability: tuple[int, int] = (9, 0)
    total: int = 141 * GIB
    used: int = GIB
    processes: list[tuple[int, int | None]] | None = field(default_factory=list)
    lost: bool = False


class FakeNvml:
    """Stands in for pynvml; `fails` is what nvmlInit raises."""

    def __init__(self, *gpus: Gpu, fails: Exception | None = None) -> None:
        self.gpus = gpus
        self.fails = fails
        self.asked: list[str] = []

    def nvmlInit(self) -> None:
        if self.fails is not None:
            raise self.fails

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise NvmlError(6, "Not Found")

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        if gpu.lost:
            raise NvmlError(15, "GPU is lost")
        return gpu.name

    def nvmlDeviceGetIndex(self, gpu: Gpu) -> int:
        return self.gpus.index(gpu)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: Gpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> Any:
        self.asked.append("memory")
        if gpu.lost:
            raise NvmlError(15, "GPU is lost")
        return SimpleNamespace(total=gpu.total, free=gpu.total - gpu.used, used=gpu.used)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Gpu) -> list[Any]:
        if gpu.processes is None or gpu.lost:
            raise NvmlError(4, "Insufficient Permissions")
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in gpu.processes]


def usable(
    monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, cuda: str = "13.0", cupy: bool = True, **nvml: Any
) -> FakeNvml:
    """A machine with these GPUs, a torch built for `cuda` ("" for none), and CuPy or not."""
    fake = FakeNvml(*gpus, **nvml)
    real = devices.importlib.util.find_spec
    there = SimpleNamespace() if cupy else None
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(devices, "torch_cuda", lambda: cuda)
    monkeypatch.setattr(
        devices.importlib.util, "find_spec", lambda name: there if name == "cupy" else real(name)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # what device_info sets; undone with the test
    return fake
