"""The gauges beside a chat: a panel of sections, and one line of them for a narrow terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from textual import events

from ...engine.samples import GpuSample, TelemetrySnapshot
from ...engine.types import EngineSnapshot
from ..render.bars import level_style, meter, stacked
from ..render.format import NA, gib, number, percent, rate, share, size
from ..render.gauge_rows import (
    WIDE,
    Section,
    batch_section,
    kv_section,
    labels_of,
    memory_parts,
    memory_section,
    memory_used,
    rate_row,
    stack,
)
from ..render.glyphs import UNICODE, Glyphs
from ..render.gpu_rows import (
    Listed,
    gpu_heading,
    gpu_row,
    mig_rows,
    process_heading,
    process_row,
    short_name,
    sort_processes,
)
from ..render.kvmap import ZOOMS, KVMap, Letters, cell_info, usable
from ..render.load_rows import load_batch_section, load_kv_section, rates
from ..render.rows import Row, fit, row_width
from ..render.series import Axis, TimeSeries, sparkline
from .line_view import LineView

SPAN = 60  # seconds that the graphs show


class _Readings:
    """What the panel remembers of the snapshots it was shown: graphs, and axes that never shrink."""

    def __init__(self) -> None:
        self.decode, self.prefill = TimeSeries(SPAN), TimeSeries(SPAN)
        self.decode_axis, self.prefill_axis = Axis(10), Axis(100)
        self.busy: dict[int, TimeSeries] = {}  # by GPU; -1 is the processor
        self._seen: tuple[float, float] = (-1.0, -1.0)

    def add(self, engine: EngineSnapshot, telemetry: TelemetrySnapshot) -> None:
        last_engine, last_telemetry = self._seen
        self._seen = (engine.time, telemetry.time)
        decode, prefill = rates(engine)
        if engine.time > last_engine:
            for rate_now, series in ((decode, self.decode), (prefill, self.prefill)):
                if rate_now is not None:
                    series.add(engine.time, rate_now)
        self.decode_axis.cover(decode or 0.0)
        self.prefill_axis.cover(prefill or 0.0)
        if telemetry.time > last_telemetry:
            for gpu in telemetry.gpus:
                if gpu.util is not None:
                    self.busy.setdefault(gpu.index, TimeSeries(SPAN)).add(telemetry.time, gpu.util)
            if telemetry.cpu is not None and telemetry.cpu.percent is not None:
                self.busy.setdefault(-1, TimeSeries(SPAN)).add(telemetry.time, telemetry.cpu.percent)


class GaugePanel(LineView):
    """Device, memory split, KV block map, throughput, batch and queue, and on a wide panel GPUs and processes.

    `show()` may be called at any rate; what did not change is not drawn again. When the panel is short, sections go
    in this order: processes, GPU table, throughput, batch, KV map; memory stays longest.
    """

    DEFAULT_CSS = "GaugePanel { width: 1fr; height: 1fr; }"

    def __init__(
        self, *, glyphs: Glyphs = UNICODE, gpu: int = 0, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.glyphs = glyphs
        self.gpu = gpu
        self.zoom = ZOOMS[0]
        self._readings = _Readings()
        self._own: int | None = os.getpid()
        self._shown: tuple[EngineSnapshot, TelemetrySnapshot, Letters] | None = None
        self._map: KVMap | None = None
        self._map_top = 0
        self._pointer: tuple[int, int] | None = None  # cell of the map

    def show(self, engine: EngineSnapshot, telemetry: TelemetrySnapshot, letters: Letters) -> int:
        """Draw the newest snapshots; the number of rows that changed."""
        self._readings.add(engine, telemetry)
        self._shown = (engine, telemetry, letters)
        return self._draw()

    def begin(self, here: bool) -> None:
        """Another engine's snapshots follow; `here`: it runs in this process."""
        self._readings, self._shown, self.gpu = _Readings(), None, 0
        self._own = os.getpid() if here else None

    def cycle_zoom(self) -> None:
        """The next zoom of the block map."""
        self.zoom = ZOOMS[(ZOOMS.index(self.zoom) + 1) % len(ZOOMS)]
        self._pointer = None
        self._draw()

    def select_gpu(self, step: int) -> None:
        """Show the GPU `step` further on."""
        known = [gpu.index for gpu in self._shown[1].gpus] if self._shown else []
        if known:
            at = known.index(self.gpu) if self.gpu in known else 0
            self.gpu = known[(at + step) % len(known)]
            self._draw()

    def move_pointer(self, dx: int, dy: int) -> None:
        """Move the map's cursor, which names the cell's owner, blocks and holders; it appears at the first cell."""
        x, y = (self._pointer[0] + dx, self._pointer[1] + dy) if self._pointer else (0, 0)
        if self._map is not None and self._map.at(x, y) is not None:
            self._pointer = (x, y)
            self._draw()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        cell = (event.x - 1, event.y - self._map_top)
        pointer = cell if self._map is not None and self._map.at(*cell) is not None else None
        if pointer != self._pointer:
            self._pointer = pointer
            self._draw()

    def on_leave(self) -> None:
        if self._pointer is not None:
            self._pointer = None
            self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> int:
        if self._shown is None or self.size.width < 16 or self.size.height < 3:
            return 0
        self._map = None
        sections = self._sections(*self._shown, width=self.size.width - 2)
        rows, tops = stack(sections, self.size.width, self.size.height, self.glyphs)
        self._map_top = tops.get("kv", 0)
        return self.set_rows(rows)

    def _sections(
        self, engine: EngineSnapshot, telemetry: TelemetrySnapshot, letters: Letters, width: int
    ) -> list[Section]:
        absent = {"none": "no model loaded", "loading": "loading", "failed": "no model loaded"}.get(
            engine.status, "n/a"
        )
        chosen = next((gpu for gpu in telemetry.gpus if gpu.index == self.gpu), None)
        if engine.load is not None:
            blocks = load_kv_section(engine.load, width, self.glyphs)
            batch = load_batch_section(engine.load, self.glyphs)
        else:
            blocks = kv_section(
                engine.kv,
                self.zoom,
                width,
                letters,
                absent,
                self.glyphs,
                self._keep_map,
                lambda: self._cell_text(engine),
            )
            batch = batch_section(engine, width, letters, self.glyphs)
        sections = [
            self._device(telemetry, chosen, width),
            memory_section(engine.memory, width, absent, self.glyphs, self._others(engine, chosen, width)),
            blocks,
            self._throughput(engine, width),
            batch,
        ]
        if width >= WIDE and chosen is not None and chosen.processes:
            sections.append(self._processes(chosen, width))
        return sections

    def _keep_map(self, laid_out: KVMap) -> None:
        self._map = laid_out

    def _cell_text(self, engine: EngineSnapshot) -> str:
        if self._pointer is None or self._map is None or engine.kv is None:
            return ""
        return cell_info(self._map, engine.kv, *self._pointer, labels_of(engine))

    def _others(self, engine: EngineSnapshot, gpu: GpuSample | None, width: int) -> str:
        """Who holds the rest of the GPU; of the RAM it is not said, nor of another machine."""
        if self._own is None:
            return ""
        others = [it for it in (gpu.processes if gpu else None) or () if it.pid != self._own]
        if not others or engine.memory is None or engine.memory.device == "RAM":
            return ""
        largest = max(others, key=lambda it: it.memory or 0)
        more = f" + {len(others) - 1}" if len(others) > 1 else ""
        return f"({largest.name} {size(largest.memory)}{more})" if width >= WIDE else f"({len(others)} procs)"

    def _busy_line(self, device: int, now: float, text: str, width: int) -> Row:
        series = self._readings.busy.get(device)
        cells = max(0, width - row_width([(text, "")]))
        values = series.values(SPAN, cells, now) if series else []
        return [*sparkline(values, cells, 0, 100, self.glyphs, "series.util"), (text, "label")]

    def _device(self, telemetry: TelemetrySnapshot, gpu: GpuSample | None, width: int) -> Section:
        dot = f" {self.glyphs.dot} "
        now = telemetry.time
        if gpu is None:
            cpu = telemetry.cpu
            if cpu is None and telemetry.notice:
                absent: Row = [(self.glyphs.plain(telemetry.notice), "dim")]
                return Section(
                    "device", [("device ", "title"), (NA, "label")], 5, 1, 1, lambda rows: [absent]
                )
            busy = cpu.percent if cpu else None
            load = f"{dot}load {cpu.load[0]:.2f}" if cpu and cpu.load else ""
            title: Row = [("CPU ", "title"), (percent(busy), level_style(share(busy, 100))), (load, "label")]
            body = [self._busy_line(-1, now, f" rss {size(cpu.rss if cpu else None)}", width)]
            if telemetry.notice:
                body.append([(self.glyphs.plain(telemetry.notice), "dim")])
            return Section("device", title, 5, 1, len(body), lambda rows: body[:rows])
        if width >= WIDE:
            table = [gpu_heading(width, self.glyphs)]
            for it in telemetry.gpus:
                selected = len(telemetry.gpus) > 1 and it.index == self.gpu
                table += [gpu_row(it, width, self.glyphs, selected), *mig_rows(it, width, self.glyphs)]
            return Section("device", [("GPUs", "title")], 5, 2, len(table), lambda rows: table[:rows])
        title = [
            (f"GPU{gpu.index} {self.glyphs.plain(short_name(gpu))} ", "title"),
            (percent(gpu.util), level_style(share(gpu.util, 100))),
            (f"{dot}{number(gpu.temperature, 'C')}{dot}{number(gpu.power, 'W')}", "label"),
        ]
        line = self._busy_line(gpu.index, now, f" sm {number(gpu.sm_clock)} MHz", width)
        return Section("device", title, 5, 1, 1, lambda rows: [line])

    def _throughput(self, engine: EngineSnapshot, width: int) -> Section:
        kept = self._readings

        def row(label: str, value: float | None, series: TimeSeries, axis: Axis, style: str) -> Row:
            def spark(cells: int) -> Row:
                if value is None:
                    return []
                values = series.values(SPAN, cells, engine.time)
                if engine.load is None:  # before its first reading, our own engine generated nothing
                    values = [it or 0.0 for it in values]
                return sparkline(values, cells, 0, axis.high, self.glyphs, style)

            return rate_row(label, value, spark, axis.high, width, self.glyphs)

        wide, ready = width >= WIDE, engine.status == "ready"
        decode, prefill = rates(engine)
        names = ("decode ", "prefill") if wide else ("dec", "pre")
        body = [
            row(names[0], decode, kept.decode, kept.decode_axis, "series.decode"),
            row(names[1], prefill, kept.prefill, kept.prefill_axis, "series.prefill"),
        ]
        if wide:
            p50, p99 = (
                f"{ms:.1f}" if ready and ms else NA for ms in (engine.step_ms_p50, engine.step_ms_p99)
            )
            text = f"step ms p50 {p50}  p99 {p99}"
            body.append(fit([(text, "label")], width))
        return Section(
            "throughput", [(f"throughput {SPAN} s", "title")], 3, 2, len(body), lambda rows: body[:rows]
        )

    def _processes(self, gpu: GpuSample, width: int) -> Section:
        listed = sort_processes([Listed(gpu.index, it) for it in gpu.processes or ()], "memory")
        body = [process_heading(width, self.glyphs, gpu_column=False)]
        body += [process_row(it, width, self._own or -1, self.glyphs, gpu_column=False) for it in listed]
        title: Row = [(f"processes on GPU{gpu.index}", "title")]
        return Section("processes", title, 6, 2, len(body), lambda rows: body[:rows])


class GaugeStrip(LineView):
    """The gauges on one line: memory, KV, decode rate, slots, queue. What does not fit goes from the right."""

    DEFAULT_CSS = "GaugeStrip { width: 1fr; height: 1; }"

    def __init__(
        self, *, glyphs: Glyphs = UNICODE, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.glyphs = glyphs
        self._engine: EngineSnapshot | None = None

    def show(self, engine: EngineSnapshot, telemetry: TelemetrySnapshot, letters: Letters) -> int:
        """Draw the newest snapshot; the number of rows that changed."""
        self._engine = engine
        return self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> int:
        if self._engine is None or not self.size.width:
            return 0
        return self.set_rows([strip_row(self._engine, self.size.width, self.glyphs)])


def strip_row(engine: EngineSnapshot, width: int, glyphs: Glyphs) -> Row:
    """The one-line gauges in exactly `width` cells; pieces that do not fit are left out from the right."""
    texts = sum(map(row_width, _strip_pieces(engine, 0, glyphs))) + 2 * 4 + 1
    bar = max(6, min(30, (width - texts) // 2))
    return fit(_join(_strip_pieces(engine, bar, glyphs), width), width)


def _strip_pieces(engine: EngineSnapshot, bar: int, glyphs: Glyphs) -> list[Row]:
    kv, load, ready = engine.kv, engine.load, engine.status == "ready"
    used = share(kv.used, usable(kv)) if kv else load.kv_share if load else None
    held = percent(None if used is None else used * 100)
    if load is not None:
        return [
            [("KV", "label"), *meter(used, bar + 2, glyphs), (held, "value")],
            [(rate(load.decode_tps), "value"), (" t/s", "label")],
            [("running ", "label"), (number(load.running), "value")],
            [("waiting ", "label"), (number(load.waiting), "notice" if load.waiting else "value")],
        ]
    return [
        _strip_memory(engine, bar, glyphs),
        [("KV", "label"), *meter(used, bar + 2, glyphs), (held, "value")],
        [(rate(rates(engine)[0]), "value"), (" t/s", "label")],
        [("slots ", "label"), (f"{len(engine.slots)}/{engine.max_batch}" if ready else NA, "value")],
        [
            ("queue ", "label"),
            (str(len(engine.queue)) if ready else NA, "notice" if engine.queue else "value"),
        ],
    ]


def _join(pieces: Sequence[Row], width: int) -> Row:
    row: Row = [(" ", "")]
    for piece in pieces:
        gap = "  " if len(row) > 1 else ""
        if row_width(row) + len(gap) + row_width(piece) > width:
            break
        row += [(gap, ""), *piece]
    return row


def _strip_memory(engine: EngineSnapshot, bar: int, glyphs: Glyphs) -> Row:
    split = engine.memory
    if split is None:
        return [("memory n/a", "dim")]
    parts = [(float(size or 0), glyph, style) for _, size, glyph, style in memory_parts(split, glyphs)]
    return [
        ("RAM" if split.device == "RAM" else "VRAM", "label"),
        (glyphs.cap_left, "frame"),
        *stacked(parts, bar, split.total),
        (glyphs.cap_right, "frame"),
        (f"{gib(memory_used(split))}/{gib(split.total)}G", "value"),
    ]
