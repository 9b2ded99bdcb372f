"""What the machine does: GPUs by NVML, processor and RAM by psutil, sampled once a second in one thread.

Readers take the newest frozen snapshot and never wait for the driver.

`LMTOP_FAKE_GPU` (a hook for tests; the file is described in `fake_machine`) takes the place of both.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import psutil

from .fake_machine import FakeMachine, fake_file
from .nvml import Backoff, NvmlSampler, ProcessNames
from .samples import CpuSample, GpuSample, History, MigSample, ProcessSample, TelemetrySnapshot
from .text import one_line

__all__ = [
    "HISTORY",
    "HOST",
    "CpuSample",
    "GpuSample",
    "History",
    "MigSample",
    "ProcessSample",
    "Telemetry",
    "TelemetrySnapshot",
]

HISTORY = 300  # samples kept per device
HOST = -1  # the key of the host's own history
TOP_PROCESSES = 40
RETRY_DRIVER = 30  # samples between two tries to find a driver, or with no answer from any GPU


class _Source(Protocol):
    def sample(self) -> TelemetrySnapshot: ...
    def close(self) -> None: ...


class Sensors(Protocol):
    """Where the monitor looks: this machine's `Telemetry`, or what a server tells of its own. `interval` in seconds."""

    interval: float

    def snapshot(self) -> TelemetrySnapshot: ...
    def histories(self) -> Mapping[int, History]: ...


class Histories:
    """The last samples of every device. One thread adds, any reads."""

    def __init__(self) -> None:
        self._rings: dict[int, tuple[deque[float | None], ...]] = {}
        self._lock = threading.Lock()

    def begin(self, device: int, told: History) -> None:
        """Earlier samples of a device."""
        with self._lock:
            for ring, values in zip(self._ring(device), (told.util, told.memory, told.power), strict=True):
                ring.extend(values)

    def add(self, snapshot: TelemetrySnapshot) -> None:
        """One sample more."""
        with self._lock:
            for gpu in snapshot.gpus:
                self._remember(gpu.index, gpu.util, gpu.mem_used, gpu.power)
            if snapshot.cpu is not None:
                self._remember(HOST, snapshot.cpu.percent, _ram_used(snapshot.cpu), None)

    def all(self) -> Mapping[int, History]:
        """By GPU index; `HOST` is the processor (util) and RAM (memory)."""
        with self._lock:
            return {device: History(*map(tuple, rings)) for device, rings in self._rings.items()}

    def _remember(self, device: int, *values: float | None) -> None:
        for ring, value in zip(self._ring(device), values, strict=True):
            ring.append(value)

    def _ring(self, device: int) -> tuple[deque[float | None], ...]:
        return self._rings.setdefault(device, tuple(deque(maxlen=HISTORY) for _ in range(3)))


class Telemetry:
    """Samples every `interval` seconds between `start()` and `stop()`; `sample()` takes one by hand.

    `processes`: also rank the host's processes where no GPU has any to list. `nvml` stands in for pynvml.
    Raises UsageError when the test hook is set outside a test or its file cannot be used.
    """

    def __init__(self, interval: float = 1.0, processes: bool = False, nvml: Any = None) -> None:
        self.interval = interval
        self._histories = Histories()
        self._latest = TelemetrySnapshot()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._source: _Source
        if path := fake_file():
            self._source = fake = FakeMachine(path)
            for device, told in fake.history.items():
                self._histories.begin(device, told)
        else:
            self._source = _Machine(processes, nvml)

    def start(self) -> None:
        """Begin sampling in a background thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lmtop-telemetry", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread; a driver call that hangs is left behind after `timeout` seconds."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def snapshot(self) -> TelemetrySnapshot:
        """The newest sample; an empty one before the first."""
        return self._latest

    def histories(self) -> Mapping[int, History]:
        """History by GPU index; `HOST` is the processor (util) and RAM (memory)."""
        return self._histories.all()

    def sample(self) -> TelemetrySnapshot:
        """Take one sample now, and keep it."""
        snapshot = self._source.sample()
        self._histories.add(snapshot)
        self._latest = snapshot
        return snapshot

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            self.sample()
            due = max(due + self.interval, time.monotonic())
            self._stopping.wait(due - time.monotonic())
        self._source.close()


class _Machine:
    """The real host and its GPUs."""

    def __init__(self, processes: bool, nvml: Any) -> None:
        self._host = _Host()
        self._rank = processes
        self._nvml = nvml
        self._gpus: NvmlSampler | None = None
        self._notice = ""
        self._retry_in = 0
        self._silent = 0  # samples in a row in which no GPU gave any reading

    def sample(self) -> TelemetrySnapshot:
        gpus = self._sample_gpus()
        listed = any(gpu.processes for gpu in gpus)
        cpu = self._host.sample(rank=self._rank and not listed)
        driver = self._gpus.driver if self._gpus is not None else ""
        return TelemetrySnapshot(time.monotonic(), gpus, cpu, self._notice, driver)

    def close(self) -> None:
        if self._gpus is not None:
            self._gpus.close()

    def _sample_gpus(self) -> tuple[GpuSample, ...]:
        if self._gpus is None:
            self._retry_in -= 1
            if self._retry_in > 0:
                return ()
            try:
                self._gpus = NvmlSampler(self._nvml)
                self._notice = ""
            except Exception as error:  # noqa: BLE001  no driver, version mismatch ...: one notice, never the end
                self._notice = f"no NVIDIA GPU: {one_line(str(error), 120) or type(error).__name__}"
                self._retry_in = RETRY_DRIVER
                return ()
        gpus = self._gpus.sample()
        if not gpus:
            self._notice = "no NVIDIA GPU: the driver lists none"
        elif any((gpu.util, gpu.mem_used, gpu.temperature, gpu.power) != (None,) * 4 for gpu in gpus):
            self._silent, self._notice = 0, ""
        else:
            self._silent += 1
            self._notice = "no GPU answers; trying again"
            if self._silent % RETRY_DRIVER == 0:  # the driver was reloaded: old handles never come back
                self._gpus.close()
                self._gpus, self._retry_in = None, 0
        return gpus


class _Host:
    def __init__(self) -> None:
        self._own = psutil.Process()
        self._backoff = Backoff()
        self._names = ProcessNames()
        self._rated: set[int] = set()  # pids whose processor time was read in the last sample
        psutil.cpu_percent(None)  # the first call measures nothing
        self._since = time.monotonic()

    def sample(self, rank: bool) -> CpuSample:
        def field(name: str, ask: Callable[[], Any]) -> Any:
            return self._backoff.read(name, ask)

        memory = field("ram", psutil.virtual_memory)
        return CpuSample(
            percent=field("cpu", self._percent),
            cores=field("cores", psutil.cpu_count),
            load=field("load", os.getloadavg),
            ram_total=memory and memory.total,
            ram_available=memory and memory.available,
            rss=field("rss", lambda: self._own.memory_info().rss),
            processes=(field("processes", self._largest) or ()) if rank else (),
        )

    def _percent(self) -> float | None:
        now, since = time.monotonic(), self._since
        if now - since < 0.05:  # too short a time for the kernel's clock ticks to mean anything
            return None
        self._since = now
        return float(psutil.cpu_percent(None))

    def _largest(self) -> tuple[ProcessSample, ...]:
        self._names.turn()
        sized = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                sized.append((process.memory_info().rss, process))
        sized.sort(key=lambda entry: -entry[0])
        found = []
        rated, self._rated = self._rated, {process.pid for _, process in sized[:TOP_PROCESSES]}
        for rss, process in sized[:TOP_PROCESSES]:
            user, name, command = self._names.look_up(process.pid)
            busy = None
            with contextlib.suppress(psutil.Error, OSError):
                busy = process.cpu_percent(None)
            if process.pid not in rated:
                busy = None  # a first call has no time span to measure
            found.append(ProcessSample(process.pid, user, "", rss, busy, name, command))
        return tuple(found)


def _ram_used(cpu: CpuSample) -> int | None:
    if cpu.ram_total is None or cpu.ram_available is None:
        return None
    return cpu.ram_total - cpu.ram_available
