"""`lmtop top`: the monitor alone. Needs neither torch nor transformers, and no GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from ... import themes
from ...engine.telemetry import Sensors, Telemetry, TelemetrySnapshot
from ...engine.types import UsageError
from ..render.glyphs import UNICODE, Glyphs, glyphs
from ..render.lines import Row, row_width
from ..render.rows import fit
from ..widgets.gpus import GpuView
from ..widgets.line_view import LineView


class TopScreen(Screen[None]):
    """Every GPU, live. It reads `telemetry` and neither starts nor stops it."""

    CSS_PATH = "top.tcss"
    # not in the sheet, which is read after the first layout: that one would draw a scroll bar
    DEFAULT_CSS = "TopScreen { overflow: hidden; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "select(-1)", "previous GPU", key_display="["),
        Binding("right_square_bracket", "select(1)", "next GPU", key_display="]"),
        Binding("s", "sort", "sort processes"),
        Binding("space", "pause", "pause"),
        Binding("f", "graphs", "graphs or table"),
        Binding("f1,question_mark", "keys", "keys", key_display="F1"),
        Binding("q,ctrl+q", "leave", "quit", key_display="q"),
    ]

    def __init__(self, telemetry: Sensors, glyphs: Glyphs = UNICODE) -> None:
        super().__init__()
        self._telemetry = telemetry
        self._glyphs = glyphs
        self._paused = False
        self._long_help = False
        self._drawn: TelemetrySnapshot | None = None

    def compose(self) -> ComposeResult:
        yield GpuView(glyphs=self._glyphs, id="top-gpus")
        yield LineView(id="top-help")

    def on_mount(self) -> None:
        # looking twice per sample keeps the age of what is shown below half an interval
        self.set_interval(self._telemetry.interval / 2, self._tick)
        self.set_interval(0.05, self._first, repeat=40)

    def on_resize(self) -> None:
        self._show_help()

    def _first(self) -> None:
        if self._drawn is None:
            self._tick()

    def _tick(self) -> None:
        """Draw the newest sample, once."""
        snapshot = self._telemetry.snapshot()
        if self._paused or snapshot is self._drawn or (not snapshot.gpus and snapshot.cpu is None):
            return
        self._drawn = snapshot
        self._gpus.show(snapshot, self._telemetry.histories())

    @property
    def _gpus(self) -> GpuView:
        return self.query_one(GpuView)

    def _show_help(self) -> None:
        line = self.query_one("#top-help", LineView)
        line.styles.height = 2 if self._long_help else 1
        line.set_rows(help_rows(self._gpus, self._paused, self._long_help, self.size.width, self._glyphs))

    def action_select(self, step: int) -> None:
        self._gpus.select(step)

    def action_sort(self) -> None:
        self._gpus.next_sort()
        self._show_help()

    def action_pause(self) -> None:
        self._paused = not self._paused
        self._tick()
        self._show_help()

    def action_graphs(self) -> None:
        self._gpus.toggle_graphs()
        self._show_help()

    def action_keys(self) -> None:
        self._long_help = not self._long_help
        self._show_help()

    def action_leave(self) -> None:
        """Back to where it was opened from; the end where it is all there is."""
        if len(self.app.screen_stack) > 1:
            self.dismiss()
        else:
            self.app.exit()


def help_rows(view: GpuView, paused: bool, long: bool, width: int, glyphs: Glyphs) -> list[Row]:
    """The keys, shortest first; the long form explains the columns as well."""
    keys = [
        ("[ ]", "GPU"),
        ("s", f"sort: {view.view.sort}"),
        ("space", "PAUSED" if paused else "pause"),
        ("f", "table" if view.view.graphs else "graphs"),
        ("q", "quit"),
        ("F1", "less" if long else "help"),
    ]
    row: Row = []
    for key, meaning in keys:
        item: Row = [(f" {key} ", "key"), (f"{meaning} ", "notice" if meaning == "PAUSED" else "label")]
        if row_width(row) + row_width(item) <= width:
            row += item
    rows = [fit(row, width)]
    if long:
        text = " n/a: cannot be read · %SM since the last sample · graphs: 5 min, axis 0-100 %"
        rows.append(fit([(glyphs.plain(text), "label")], width))
    return rows


class TopApp(App[None]):
    """The monitor as a program of its own."""

    ENABLE_COMMAND_PALETTE = False

    def __init__(self, telemetry: Telemetry, ascii: bool = False, theme: str | None = None) -> None:
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self._telemetry = telemetry
        self._glyphs = glyphs(ascii)
        chosen = themes.load(theme or themes.DEFAULT)
        self.register_theme(chosen)
        self.theme = chosen.name

    def get_default_screen(self) -> TopScreen:
        return TopScreen(self._telemetry, self._glyphs)


def run_top(
    *, interval: float = 1.0, ascii: bool = False, mouse: bool = True, theme: str | None = None
) -> int:
    """Run `lmtop top` until the user quits; the exit code. UsageError when there is no terminal or no such theme."""
    if not 0.1 <= interval <= 60:
        raise UsageError(f"interval = {interval}: must be from 0.1 to 60 seconds")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("lmtop top needs a terminal; `lmtop top --json` prints one reading")
    telemetry = Telemetry(interval, processes=True)
    app = TopApp(telemetry, ascii, theme)
    telemetry.start()
    try:
        app.run(mouse=mouse)
    finally:
        telemetry.stop(0.5)
    return app.return_code or 0


def top_json() -> str:
    """One reading of everything as a JSON object, in the units of `GpuSample` and `CpuSample`; null: cannot be read."""
    telemetry = Telemetry(processes=True)
    time.sleep(0.1)  # processor use is a difference over time
    telemetry.sample()
    time.sleep(0.1)
    return json.dumps(asdict(telemetry.sample()), indent=2)
