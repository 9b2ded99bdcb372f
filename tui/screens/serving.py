"""`lmtop serve MODEL --tui`: the monitor of a server, in the terminal that runs it.

The server has a thread of its own; this screen only reads its snapshots. Quitting lets open replies end first, as a
signal does without a screen; quitting once more cuts them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from ... import themes
from ...engine.server.run import Parts, ready_text, served
from ...engine.text import one_line
from ...engine.types import LmtopError, ModelState, Notice
from ..pulse import Pulse
from ..render.format import number, rate
from ..render.glyphs import Glyphs, glyphs
from ..render.kvmap import OwnerPalette
from ..render.lines import Row
from ..render.rows import fit
from ..widgets.gauges import GaugePanel
from ..widgets.line_view import LineView
from ..wire import TerminalDriver, Wire

if TYPE_CHECKING:
    from ...engine.arguments import Options
    from ...engine.server.http_server import HttpServer

TICK_S = 0.5
KEPT = 4  # lines of the log


class Served:
    """A server on its own thread, and what it said. Any thread may read."""

    def __init__(self, options: Options, parts: Parts) -> None:
        self.parts = parts
        self.state = ModelState("loading", options.model or "")
        self.lines: deque[tuple[str, str]] = deque(maxlen=KEPT)  # text, style
        self.failure: LmtopError | None = None
        self.stopping = False
        self.server: HttpServer = parts.server(options, self._changed, self._noticed)
        self.url = parts.access.url(self.server.port)
        self._ready = False
        self._thread = threading.Thread(target=self._run, name="lmtop-server", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.parts.backend.load(self.server.setup.engine)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Let open replies end, then end; at once when called again."""
        if self.stopping:
            self.server.abort()
        else:
            self._say("open replies may end, then the server does; once more ends it now", "notice")
            self.server.stop()
        self.stopping = True

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.run(self.server.run())

    def _changed(self, state: ModelState) -> None:
        self.state = state
        if state.status == "ready" and state.info is not None:
            self._ready = True
            self._say(ready_text(state.info), "value")
        elif state.status in ("failed", "dead"):
            self._say(state.message, "error")
            if not self._ready:
                self.failure = state.error or LmtopError(state.message)
                self.server.abort()

    def _noticed(self, notice: Notice) -> None:
        self._say(notice.text, "notice")

    def _say(self, text: str, style: str) -> None:
        self.lines.append((f"{time.strftime('%H:%M:%S')} {one_line(text, 400)}", style))


class ServingScreen(Screen[None]):
    """Address and counts, the engine's gauges, the last lines of the log."""

    CSS_PATH = "serving.tcss"
    DEFAULT_CSS = "ServingScreen { overflow: hidden; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("z", "zoom", "zoom of the block map"),
        Binding("left_square_bracket", "gpu(-1)", "previous GPU", key_display="["),
        Binding("right_square_bracket", "gpu(1)", "next GPU", key_display="]"),
        Binding("q,ctrl+q,ctrl+c", "stop", "stop the server", key_display="q"),
    ]

    def __init__(self, served: Served, glyphs: Glyphs) -> None:
        super().__init__()
        self._served = served
        self._glyphs = glyphs
        self._pulse = Pulse()
        self._palette = OwnerPalette()

    def compose(self) -> ComposeResult:
        yield LineView(id="serving-head")
        yield GaugePanel(glyphs=self._glyphs, id="serving-gauges")
        yield LineView(id="serving-log")
        yield LineView(id="serving-help")

    def on_mount(self) -> None:
        self.set_interval(TICK_S, self.tick)
        self.call_after_refresh(self.tick)

    def on_resize(self) -> None:
        self.tick()

    def tick(self) -> None:
        """Draw what is true now."""
        served = self._served
        if served.ended:
            self.app.exit()
            return
        snapshot = self._pulse.check(served.parts.backend.snapshot(kv_map=True))
        sessions = {slot.session for slot in snapshot.slots} | set(
            snapshot.kv.sessions if snapshot.kv else ()
        )
        self._palette.release_others("", sessions)
        letters = self._palette.letters(sorted(sessions))
        self.query_one(GaugePanel).show(snapshot, served.parts.telemetry.snapshot(), letters)
        width = self.size.width
        self.query_one("#serving-head", LineView).set_rows([fit(row, width) for row in self._head()])
        log = [[(self._glyphs.plain(text), style)] for text, style in served.lines]
        self.query_one("#serving-log", LineView).set_rows([fit(row, width) for row in log])
        keys = (("q", "stop"), ("z", "zoom"), ("[ ]", "GPU"))
        row: Row = [part for key, text in keys for part in ((f" {key} ", "key"), (f"{text} ", "label"))]
        self.query_one("#serving-help", LineView).set_rows([fit(row, width)])

    def _head(self) -> list[Row]:
        served, state = self._served, self._served.state
        service = served.server.service
        what = {
            "loading": f"loading {state.progress:.0%} {one_line(state.message, 40)}",
            "ready": "serving",
        }.get(state.status, state.status)
        if served.stopping:
            what = "stopping"
        name = state.info.name if state.info is not None else state.name
        first: Row = [
            ("lmtop serve ", "title"),
            (self._glyphs.plain(f"{name} "), "value"),
            (f"{served.url} ", "label"),
            (what, "notice" if what != "serving" else "value"),
        ]
        if service is None:
            return [first, []]
        counts = service.metrics
        answered = counts.ended["stop"] + counts.ended["length"]
        snapshot = served.parts.backend.snapshot()
        second: Row = [
            ("answered ", "label"),
            (number(answered), "value"),
            (" ended otherwise ", "label"),
            (number(counts.ended.total() - answered), "value"),
            (" connections ", "label"),
            (number(service.connections()), "value"),
            (" generated ", "label"),
            (f"{counts.generated_tokens:,}", "value"),
            (" tokens, ", "label"),
            (rate(snapshot.decode_tps), "value"),
            (" t/s", "label"),
        ]
        return [first, second]

    def action_zoom(self) -> None:
        self.query_one(GaugePanel).cycle_zoom()

    def action_gpu(self, step: int) -> None:
        self.query_one(GaugePanel).select_gpu(step)

    def action_stop(self) -> None:
        self._served.stop()
        self.tick()


class ServingApp(App[None], inherit_bindings=False):
    """The screen of one server."""

    ENABLE_COMMAND_PALETTE = False

    def __init__(self, served: Served, ascii: bool = False, theme: str | None = None) -> None:
        super().__init__(driver_class=TerminalDriver, ansi_color=True if "NO_COLOR" in os.environ else None)
        self.wire = Wire("auto", ascii)
        self._served = served
        self._glyphs = glyphs(ascii)
        chosen = themes.load(theme or themes.DEFAULT)
        self.register_theme(chosen)
        self.theme = chosen.name

    def on_mount(self) -> None:
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.add_signal_handler(number, self._served.stop)
        self.push_screen(ServingScreen(self._served, self._glyphs))


def run_serving(options: Options) -> int:
    """Serve and show it until the user or a signal stops it; 0 then."""
    with served(options) as parts:
        running = Served(options, parts)
        app = ServingApp(running, options.values["ascii"], options.values["theme"])
        running.start()
        try:
            app.run(mouse=options.values["mouse"])
        finally:
            if not running.ended:
                running.server.abort()
                running.join(3.0)
    if running.failure is not None:
        raise running.failure
    return app.return_code or 0
