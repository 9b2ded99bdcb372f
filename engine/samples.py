"""What the machine's sensors said: frozen values. Every reading is None when it cannot be read, never 0."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """One process on a GPU, or (kind "") on the host.

    `kind`: "C" compute, "G" graphics, "C+G" both. `memory` in bytes (VRAM; resident RAM on the host), `util`
    in percent of the SMs (of one core on the host). None: cannot be read, as for another user's process.
    Texts are safe to show.
    """

    pid: int
    user: str | None
    kind: str
    memory: int | None
    util: float | None
    name: str
    command: str


@dataclass(frozen=True, slots=True)
class MigSample:
    """One MIG instance. NVML has no utilisation for it. Memory in bytes."""

    index: int
    name: str
    uuid: str
    mem_used: int | None
    mem_total: int | None


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU. Every reading is None when it cannot be read, never 0.

    util, fan: percent · memory: bytes · temperature: degrees Celsius · power: watts · clocks: MHz ·
    pcie: bytes/s · processes: None when the list itself cannot be read.
    """

    index: int
    name: str
    uuid: str
    util: float | None = None
    mem_used: int | None = None
    mem_total: int | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    fan: float | None = None
    sm_clock: int | None = None
    mem_clock: int | None = None
    pcie_rx: int | None = None
    pcie_tx: int | None = None
    processes: tuple[ProcessSample, ...] | None = None
    mig: tuple[MigSample, ...] = ()


@dataclass(frozen=True, slots=True)
class CpuSample:
    """The host. percent: of all cores, 0 to 100 · RAM in bytes, `rss` this process's · load: 1, 5, 15 minutes.
    None: cannot be read. `processes`: the largest by resident memory, when they were asked for."""

    percent: float | None = None
    cores: int | None = None
    load: tuple[float, float, float] | None = None
    ram_total: int | None = None
    ram_available: int | None = None
    rss: int | None = None
    processes: tuple[ProcessSample, ...] = ()


@dataclass(frozen=True, slots=True)
class TelemetrySnapshot:
    """One sample, taken at `time` (monotonic seconds). `notice` says in one line why there is no GPU."""

    time: float = 0.0
    gpus: tuple[GpuSample, ...] = ()
    cpu: CpuSample | None = None
    notice: str = ""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """The last samples of one device, oldest first: percent, bytes, watts. None: was not read."""

    util: tuple[float | None, ...] = ()
    memory: tuple[float | None, ...] = ()
    power: tuple[float | None, ...] = ()
