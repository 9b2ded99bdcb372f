"""The monitor's screen as rows: a table of GPUs, history graphs on an axis from 0 to 100 %, processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...engine.samples import CpuSample, GpuSample, History, TelemetrySnapshot
from .bars import level_style, meter
from .format import gib, number, percent, share
from .glyphs import Glyphs
from .gpu_rows import (
    Listed,
    SortKey,
    gpu_heading,
    gpu_row,
    mig_rows,
    process_heading,
    process_row,
    short_name,
    sort_processes,
)
from .rows import Row, fit, footing, framed, heading, row_width
from .series import chart

HOST = -1  # the key of the host's history
MIN_PROCESSES = 4  # rows kept for the process table, its heading included


@dataclass(frozen=True, slots=True)
class View:
    """What the user chose: the GPU in focus, the order of processes, graphs or the bare table."""

    gpu: int = 0
    sort: SortKey = "memory"
    graphs: bool = True


def monitor_rows(
    snapshot: TelemetrySnapshot,
    histories: Mapping[int, History],
    width: int,
    height: int,
    view: View,
    glyphs: Glyphs,
) -> list[Row]:
    """Exactly `height` rows of `width` cells. Graphs are drawn for all GPUs where they fit, else for the one in
    focus; when even the table is too long it scrolls with the focus."""
    inner = max(0, width - 2)
    room = height - 1
    rows: list[Row] = []
    if snapshot.gpus:
        title: Row = [("GPUs", "title"), (f" {len(snapshot.gpus)}", "value")]
        if snapshot.driver:
            title.append((f" {glyphs.dot} driver {glyphs.plain(snapshot.driver)}", "label"))
        table = _gpu_table(snapshot.gpus, inner, room - 1, view.gpu, glyphs)
    else:
        title = [("host", "title")]
        table = host_rows(snapshot.cpu, snapshot.notice, inner, glyphs)[: room - 1]
    rows.append(heading(title, width, glyphs, first=True))
    rows += [framed(row, width, glyphs) for row in table]
    if view.graphs:
        rows += _graphs(snapshot, histories, width, room - len(rows), view.gpu, glyphs)
    rows += _processes(snapshot, width, room - len(rows), view.sort, glyphs)
    rows += [framed([], width, glyphs)] * (room - len(rows))
    return [*rows[:room], footing(width, glyphs)]


def _gpu_table(gpus: Sequence[GpuSample], width: int, room: int, focus: int, glyphs: Glyphs) -> list[Row]:
    head = [gpu_heading(width, glyphs)]
    body: list[Row] = []
    focused = 0
    for gpu in gpus:
        chosen = gpu.index == focus and len(gpus) > 1
        if chosen:
            focused = len(body)
        body += [gpu_row(gpu, width, glyphs, chosen), *mig_rows(gpu, width, glyphs)]
    fits = max(1, room - 1)
    first = max(0, min(focused - fits + 1, len(body) - fits))
    return [*head, *body[first : first + fits]]


def host_rows(cpu: CpuSample | None, notice: str, width: int, glyphs: Glyphs) -> list[Row]:
    """Processor and RAM, and why there is no GPU."""
    rows: list[Row] = [[(glyphs.plain(notice), "notice")]] if notice else []
    if cpu is None:
        return rows or [[("reading", "dim")]]
    busy = share(cpu.percent, 100)
    used = None if cpu.ram_total is None or cpu.ram_available is None else cpu.ram_total - cpu.ram_available
    held = share(used, cpu.ram_total)
    bar = max(8, min(50, width - 44))
    load = " ".join(f"{it:.2f}" for it in cpu.load) if cpu.load else "n/a"
    rows.append(
        [
            ("CPU ", "label"),
            *meter(busy, bar, glyphs),
            (f"{percent(cpu.percent):>5}", level_style(busy)),
            (f"  {number(cpu.cores)} cores  load {load}", "label"),
        ]
    )
    rows.append(
        [
            ("RAM ", "label"),
            *meter(held, bar, glyphs),
            (f"{percent(None if held is None else held * 100):>5}", level_style(held)),
            (f"  {gib(used)} / {gib(cpu.ram_total)} GiB", "label"),
        ]
    )
    return [fit(row, width) for row in rows]


def _graphs(
    snapshot: TelemetrySnapshot,
    histories: Mapping[int, History],
    width: int,
    room: int,
    focus: int,
    glyphs: Glyphs,
) -> list[Row]:
    half = room // 2
    room -= MIN_PROCESSES + 1
    if room < 2:
        return []
    if not snapshot.gpus:
        return _host_graph(
            snapshot.cpu, histories.get(HOST, History()), width, min(room - 1, max(8, half - 1)), glyphs
        )
    shown = [gpu for gpu in snapshot.gpus if gpu.index == focus] or list(snapshot.gpus[:1])
    if 2 * len(snapshot.gpus) <= room:
        shown = list(snapshot.gpus)
    tall = min(max(8, half // len(shown) - 1), room // len(shown) - 1)
    rows: list[Row] = []
    for gpu in shown:
        rows += _gpu_graph(gpu, histories.get(gpu.index, History()), width, tall, glyphs)
    return rows


def _scaled(values: Sequence[float | None], whole: float | None) -> list[float | None]:
    """Values in percent of `whole`; nothing where that is not known."""
    return [None if value is None or not whole else 100 * value / whole for value in values]


def _gpu_graph(gpu: GpuSample, history: History, width: int, height: int, glyphs: Glyphs) -> list[Row]:
    held, drawn = share(gpu.mem_used, gpu.mem_total), share(gpu.power, gpu.power_limit)
    panes = [
        ("util", history.util, gpu.util, "series.util"),
        ("VRAM", _scaled(history.memory, gpu.mem_total), held and held * 100, "series.memory"),
        ("power", _scaled(history.power, gpu.power_limit), drawn and drawn * 100, "series.power"),
    ]
    name = f"GPU{gpu.index} {glyphs.plain(short_name(gpu))}"
    return _panes(name, panes, width, height, glyphs)


def _host_graph(
    cpu: CpuSample | None, history: History, width: int, height: int, glyphs: Glyphs
) -> list[Row]:
    total = cpu.ram_total if cpu else None
    used = None
    if cpu and cpu.ram_available is not None and total:
        used = 100 * (total - cpu.ram_available) / total
    panes = [
        ("CPU", history.util, cpu.percent if cpu else None, "series.util"),
        ("RAM", _scaled(history.memory, total), used, "series.memory"),
    ]
    return _panes("history", panes, width, height, glyphs)


def _panes(
    name: str,
    panes: Sequence[tuple[str, Sequence[float | None], float | None, str]],
    width: int,
    height: int,
    glyphs: Glyphs,
) -> list[Row]:
    """Charts of 0 to 100 % side by side under one heading; the newest reading is at the right of each."""
    inner = max(0, width - 2)
    cells = max(1, (inner - (len(panes) - 1)) // len(panes))
    title: Row = [(f"{name} ", "title")]
    for label, _, value, style in panes:
        title += [(f"{glyphs.dot} {label} ", style), (f"{percent(value)} ", "value")]
    title.append((f"{glyphs.dot} 0-100%", "dim"))
    if row_width(title) > inner - 2:
        title = title[:-1]
    charts = [chart(values, cells, height, 0, 100, glyphs, style) for _, values, _, style in panes]
    rows = [heading(title, width, glyphs)]
    for lines in zip(*charts, strict=True):
        row: Row = []
        for line in lines:
            row += [*([(glyphs.vertical, "frame")] if row else []), *line]
        rows.append(framed(row, width, glyphs))
    return rows


def _processes(
    snapshot: TelemetrySnapshot, width: int, room: int, sort: SortKey, glyphs: Glyphs
) -> list[Row]:
    if room < 2:
        return []
    inner = max(0, width - 2)
    listed = [Listed(gpu.index, it) for gpu in snapshot.gpus for it in gpu.processes or ()]
    host = not listed and snapshot.cpu is not None and bool(snapshot.cpu.processes)
    if host and snapshot.cpu is not None:
        listed = [Listed(None, it) for it in snapshot.cpu.processes]
    where = "processes by" if not host else "host processes by"
    title: Row = [(where, "title"), (f" {sort}", "value")]
    rows = [heading(title, width, glyphs)]
    if not listed:
        unknown = snapshot.gpus and all(gpu.processes is None for gpu in snapshot.gpus)
        return [*rows, framed([("n/a" if unknown else "none", "dim")], width, glyphs)]
    rows.append(framed(process_heading(inner, glyphs, host=host), width, glyphs))
    for entry in sort_processes(listed, sort)[: max(0, room - 2)]:
        rows.append(framed(process_row(entry, inner, os.getpid(), glyphs), width, glyphs))
    return rows[:room]
