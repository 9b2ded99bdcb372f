"""NVIDIA GPUs as NVML (nvidia-ml-py, module `pynvml`) reports them.

Only NVML is asked, never the CUDA runtime: a runtime call on another thread would break a graph capture in
progress and would itself take memory on the card. The module is imported when a sampler is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

from .samples import GpuSample, MigSample, ProcessSample
from .text import one_line

T = TypeVar("T")

MAX_BACKOFF = 64  # samples: a field that keeps failing is asked about once a minute
MAX_GPUS = 64


class Backoff:
    """Leaves a failing reading alone for 1, 2, 4 ... `MAX_BACKOFF` turns after each failure in a row."""

    def __init__(self) -> None:
        self._waiting: dict[object, tuple[int, int]] = {}  # key -> (turns left, last wait)

    def read(self, key: object, ask: Callable[[], T]) -> T | None:
        """`ask()`, or None when it fails or still rests after failing."""
        left, last = self._waiting.get(key, (0, 0))
        if left > 0:
            self._waiting[key] = (left - 1, last)
            return None
        try:
            value = ask()
        except Exception:  # noqa: BLE001  any failure of one field is that field's n/a, never the end
            wait = min(max(1, last * 2), MAX_BACKOFF)
            self._waiting[key] = (wait, wait)
            return None
        self._waiting.pop(key, None)
        return value


class ProcessNames:
    """User, name and command line of a pid, remembered for as long as it is asked for in each turn."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str | None, str, str]] = {}
        self._fresh: dict[int, tuple[str | None, str, str]] = {}

    def turn(self) -> None:
        """Begin a sample: forget the pids that the last one did not ask for (a pid can be used again)."""
        self._known, self._fresh = self._fresh, {}

    def look_up(self, pid: int) -> tuple[str | None, str, str]:
        found = self._fresh.get(pid) or self._known.get(pid) or _describe(pid)
        self._fresh[pid] = found
        return found


def _describe(pid: int) -> tuple[str | None, str, str]:
    try:
        process = psutil.Process(pid)
        name = one_line(process.name(), 80)
    except (psutil.Error, OSError):
        return None, "n/a", "n/a"  # gone, or in another pid namespace (NVML reports the host's pids)
    user, command = None, name
    try:
        user = one_line(process.username(), 40)
        command = one_line(" ".join(process.cmdline()), 200) or name
    except (psutil.Error, OSError, KeyError):
        pass  # another user's process: the name alone
    return user, name, command


class NvmlSampler:
    """Reads every GPU once per `sample()`. The constructor raises what NVML raises when there is no driver.

    `nvml` is the pynvml module; a test passes its own.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml if nvml is not None else importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        self._backoff = Backoff()
        self._names = ProcessNames()
        self._handles: dict[int, Any] = {}
        self._labels: dict[int, tuple[str, str]] = {}  # name and uuid outlive a lost GPU
        self._seen: dict[int, int] = {}  # GPU -> newest process-utilisation time stamp, µs
        self._count = min(int(self._nvml.nvmlDeviceGetCount()), MAX_GPUS)
        self.driver = one_line(str(self._backoff.read("driver", self._nvml.nvmlSystemGetDriverVersion) or ""))

    def close(self) -> None:
        self._backoff.read("shutdown", self._nvml.nvmlShutdown)

    def sample(self) -> tuple[GpuSample, ...]:
        """All GPUs; one that does not answer keeps its row with every reading None."""
        self._names.turn()
        return tuple(self._gpu(index) for index in range(self._count))

    def _gpu(self, index: int) -> GpuSample:
        handle = self._handles.get(index)
        if handle is None:
            handle = self._backoff.read(
                (index, "handle"), lambda: self._nvml.nvmlDeviceGetHandleByIndex(index)
            )
            if handle is None:
                name, uuid = self._labels.get(index, ("n/a", ""))
                return GpuSample(index, name, uuid)
            self._handles[index] = handle
        sample = self._read(index, handle)
        if (sample.util, sample.mem_used, sample.temperature, sample.power) == (None,) * 4:
            del self._handles[index]  # lost, or all of it resting: look the GPU up again
        return sample

    def _read(self, index: int, handle: Any) -> GpuSample:
        nvml = self._nvml

        def field(name: str, ask: Callable[[], T]) -> T | None:
            return self._backoff.read((index, name), ask)

        name = field("name", lambda: one_line(nvml.nvmlDeviceGetName(handle), 60))
        uuid = field("uuid", lambda: one_line(nvml.nvmlDeviceGetUUID(handle), 60))
        known_name, known_uuid = self._labels.get(index, ("n/a", ""))
        self._labels[index] = (name or known_name, uuid or known_uuid)
        memory = field("memory", lambda: self._memory(handle))
        return GpuSample(
            index,
            *self._labels[index],
            util=field("util", lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            mem_used=memory and memory[0],
            mem_total=memory and memory[1],
            temperature=field(
                "temperature",
                lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            ),
            power=field("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            power_limit=field("limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            fan=field("fan", lambda: float(nvml.nvmlDeviceGetFanSpeed(handle))),
            sm_clock=field("sm", lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            mem_clock=field("mem", lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
            pcie_rx=field("rx", lambda: self._pcie(handle, nvml.NVML_PCIE_UTIL_RX_BYTES)),
            pcie_tx=field("tx", lambda: self._pcie(handle, nvml.NVML_PCIE_UTIL_TX_BYTES)),
            processes=field("processes", lambda: self._processes(index, handle)),
            mig=field("mig", lambda: self._mig(handle)) or (),
        )

    def _memory(self, handle: Any) -> tuple[int, int]:
        """(used, total) bytes. Version 2 leaves out what the driver keeps for itself, as nvidia-smi does."""
        try:
            info = self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2)
        except (self._nvml.NVMLError_FunctionNotFound, self._nvml.NVMLError_NotSupported, AttributeError):
            info = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(info.used), int(info.total)

    def _pcie(self, handle: Any, counter: int) -> int:
        return int(self._nvml.nvmlDeviceGetPcieThroughput(handle, counter)) * 1024

    def _processes(self, index: int, handle: Any) -> tuple[ProcessSample, ...]:
        kinds: dict[int, str] = {}
        memory: dict[int, int | None] = {}
        for kind, ask in (
            ("C", self._nvml.nvmlDeviceGetComputeRunningProcesses),
            ("G", self._nvml.nvmlDeviceGetGraphicsRunningProcesses),
        ):
            for entry in ask(handle):
                pid = int(entry.pid)
                kinds[pid] = f"{kinds[pid]}+{kind}" if pid in kinds else kind
                memory.setdefault(pid, None if entry.usedGpuMemory is None else int(entry.usedGpuMemory))
        busy = self._backoff.read((index, "sm"), lambda: self._busy(index, handle)) if kinds else None
        samples = []
        for pid, kind in kinds.items():
            user, name, command = self._names.look_up(pid)
            samples.append(ProcessSample(pid, user, kind, memory[pid], (busy or {}).get(pid), name, command))
        return tuple(samples)

    def _busy(self, index: int, handle: Any) -> dict[int, float]:
        """SM percent by pid since the last call. A quiet GPU has no new samples, which NVML calls an error."""
        since = self._seen.get(index, 0)
        try:
            entries = self._nvml.nvmlDeviceGetProcessUtilization(handle, since)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) in (0, self._nvml.NVML_ERROR_NOT_FOUND):
                return {}
            raise
        busy = {}
        for entry in entries:
            if entry.timeStamp > since:  # the driver pads the buffer with stale entries
                busy[int(entry.pid)] = float(entry.smUtil)
                self._seen[index] = max(self._seen.get(index, 0), int(entry.timeStamp))
        return busy

    def _mig(self, handle: Any) -> tuple[MigSample, ...]:
        nvml = self._nvml
        try:
            if not nvml.nvmlDeviceGetMigMode(handle)[0]:
                return ()
        except nvml.NVMLError_NotSupported:
            return ()
        found = []
        for slot in range(int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
            except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
                continue  # an empty slot
            name = one_line(nvml.nvmlDeviceGetName(instance), 60)
            uuid = one_line(nvml.nvmlDeviceGetUUID(instance), 60)
            used, total = self._backoff.read(uuid, lambda it=instance: self._memory(it)) or (None, None)  # type: ignore[misc]
            found.append(MigSample(slot, name, uuid, used, total))
        return tuple(found)
