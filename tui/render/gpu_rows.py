"""Rows about GPUs and processes: one table for the monitor and for the gauges beside a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...engine.samples import GpuSample, ProcessSample
from .bars import level_style, meter
from .format import NA, gib, number, percent, share, size
from .glyphs import Glyphs
from .rows import Row, fit, left, right

SortKey = Literal["memory", "util", "pid", "gpu"]
SORT_KEYS: tuple[SortKey, ...] = ("memory", "util", "pid", "gpu")


@dataclass(frozen=True, slots=True)
class GpuColumns:
    """Cells of each column of the GPU table; 0 leaves a column out. `util` and `memory` are the meters."""

    name: int
    util: int
    memory: int
    temperature: bool
    power: bool
    clock: bool
    fan: bool
    mem_clock: bool
    pcie: bool


_TEXTS = (("temperature", 5), ("power", 10), ("clock", 6), ("fan", 5), ("mem_clock", 6), ("pcie", 15))
_FIXED = 4 + 5 + 10  # number, util percent, memory figures


def gpu_columns(width: int) -> GpuColumns:
    """What fits into `width` cells: the meters shrink to 9 cells before a column goes, from the right."""
    room = width - _FIXED - 7 - 2 * 10
    shown = {}
    for column, cells in _TEXTS:
        shown[column] = room >= cells
        room -= cells if shown[column] else 0
    room = max(0, room)
    name = 6 + min(18, room // 3)
    meters = 9 + max(0, room - (name - 6)) // 2
    return GpuColumns(name, meters, meters, **shown)


def _pair(part: str, whole: str) -> str:
    return NA if part == whole == NA else f"{part}/{whole}"


def short_name(gpu: GpuSample) -> str:
    """The model without the maker."""
    return gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def gpu_heading(width: int, glyphs: Glyphs) -> Row:
    """The table's column names."""
    columns = gpu_columns(width)
    row: Row = [
        (left("#", 4, glyphs) + left("name", columns.name + 1, glyphs), "label"),
        (left("util", columns.util + 6, glyphs) + left("VRAM GiB", columns.memory + 11, glyphs), "label"),
    ]
    titles = {"temperature": "temp", "power": "power W", "clock": "MHz", "fan": "fan", "mem_clock": "mem"}
    for name, cells in _TEXTS:
        if getattr(columns, name):
            row.append((right(titles.get(name, "rx/tx B/s"), cells, glyphs), "label"))
    return fit(row, width)


def gpu_row(gpu: GpuSample, width: int, glyphs: Glyphs, selected: bool = False) -> Row:
    """One GPU on one row; what cannot be read says n/a."""
    columns = gpu_columns(width)
    marker = glyphs.pointer if selected else " "
    busy = share(gpu.util, 100)
    held = share(gpu.mem_used, gpu.mem_total)
    name = left(short_name(gpu), columns.name, glyphs)
    row: Row = [
        (f"{marker}{gpu.index:<3}", "key" if selected else "label"),
        (f"{name} ", "strong" if selected else "value"),
        *meter(busy, columns.util, glyphs),
        (right(percent(gpu.util), 5, glyphs) + " ", level_style(busy)),
        *meter(held, columns.memory, glyphs),
        (right(_pair(gib(gpu.mem_used), gib(gpu.mem_total)), 10, glyphs) + " ", level_style(held)),
    ]
    texts = {
        "temperature": number(gpu.temperature, "C"),
        "power": _pair(number(gpu.power), number(gpu.power_limit)),
        "clock": number(gpu.sm_clock),
        "fan": percent(gpu.fan),
        "mem_clock": number(gpu.mem_clock),
        "pcie": _pair(size(gpu.pcie_rx), size(gpu.pcie_tx)),
    }
    for name, cells in _TEXTS:
        if getattr(columns, name):
            row.append((right(texts[name], cells, glyphs), "dim" if "n/a" in texts[name] else "value"))
    return fit(row, width)


def mig_rows(gpu: GpuSample, width: int, glyphs: Glyphs) -> list[Row]:
    """The GPU's MIG instances, one row each; NVML has no utilisation for them."""
    columns = gpu_columns(width)
    rows = []
    for instance in gpu.mig:
        held = share(instance.mem_used, instance.mem_total)
        profile = instance.name.rpartition("MIG ")[2]
        label = f"  {gpu.index}:{instance.index} MIG {profile}"
        room = 4 + columns.name + 1 + columns.util
        rows.append(
            fit(
                [
                    (left(label, room, glyphs), "label"),
                    (right("n/a", 5, glyphs) + " ", "dim"),
                    *meter(held, columns.memory, glyphs),
                    (
                        right(_pair(gib(instance.mem_used), gib(instance.mem_total)), 10, glyphs),
                        level_style(held),
                    ),
                ],
                width,
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Listed:
    """A process in the table; `gpu` is None on the host."""

    gpu: int | None
    process: ProcessSample


def sort_processes(listed: Sequence[Listed], key: SortKey) -> list[Listed]:
    """Largest first by memory or use, else by number; what cannot be read comes last."""

    def rank(entry: Listed) -> tuple[float, float, int]:
        process = entry.process
        gpu = entry.gpu if entry.gpu is not None else 0
        memory = -1 if process.memory is None else process.memory
        util = -1 if process.util is None else process.util
        if key == "memory":
            return -memory, gpu, process.pid
        if key == "util":
            return -util, -memory, process.pid
        if key == "pid":
            return process.pid, gpu, 0
        return gpu, -memory, process.pid

    return sorted(listed, key=rank)


def process_heading(width: int, glyphs: Glyphs, host: bool = False, gpu_column: bool = True) -> Row:
    """Column names; on the host memory is resident RAM and use is percent of a core."""
    gpu = "" if host or not gpu_column else right("GPU", 4, glyphs)
    memory = "RES" if host else "GPU-MEM"
    use = "%CPU" if host else "%SM"
    kind = "" if host else f"{'TYPE':<5}"
    return fit([(f"{gpu}{'PID':>8} {'USER':<9} {kind}{memory:>7} {use:>5}  COMMAND", "label")], width)


def process_row(entry: Listed, width: int, own: int, glyphs: Glyphs, gpu_column: bool = True) -> Row:
    """One process; `own` is this program's pid."""
    process = entry.process
    gpu = "" if entry.gpu is None or not gpu_column else f"{entry.gpu:>4}"
    kind = "" if entry.gpu is None else left(process.kind, 4, glyphs) + " "
    start = (
        f"{gpu}{process.pid:>8} {left(process.user or 'n/a', 9, glyphs)} {kind}"
        f"{size(process.memory):>7} {number(process.util):>5}  "
    )
    mine = process.pid == own
    room = max(0, width - len(start) - (6 if mine else 0))
    row: Row = [
        (start, "value"),
        (left(process.command or process.name, room, glyphs), "strong" if mine else "value"),
    ]
    return fit([*row, (" (own)", "accent")] if mine else row, width)
