"""What goes over the wire to the terminal: a byte meter, a guard against a stalled terminal, low bandwidth.

Textual's writer queue holds 30 writes and then blocks the event loop. `TerminalDriver` drops frames before that
and repaints the whole screen once the terminal reads again, so neither the screen nor the engine ever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from textual.app import App
from textual.drivers._writer_thread import MAX_QUEUED_WRITES
from textual.drivers.linux_driver import LinuxDriver

from .parent import RESTORE
from .render.glyphs import glyphs

Mode = Literal["auto", "on", "off"]

WINDOW_S = 2.0  # the meter shows the mean over this time
CONGESTED = MAX_QUEUED_WRITES // 2
SLOW_WRITE_S = 0.08
RECOVER_S = 10.0  # automatic low bandwidth ends after this long without congestion
POLL_S = 0.1


class Wire:
    """Bytes sent, and whether to be sparing with them. `changed` is called when `low` flips.

    With `ascii` nothing else goes out: chrome becomes its twin, any other character one "?" per cell.
    """

    def __init__(
        self, mode: Mode = "auto", ascii: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = 0
        self.glyphs = glyphs(ascii)
        self.changed: Callable[[], None] = lambda: None
        self._mode: Mode = mode
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque()
        self._congested_at: float | None = None

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def low(self) -> bool:
        """Whether low-bandwidth drawing applies now."""
        if self._mode == "auto":
            return self._congested_at is not None
        return self._mode == "on"

    def set_mode(self, mode: Mode) -> None:
        before = self.low
        self._mode = mode
        self._congested_at = None
        self._report(before)

    def sent(self, size: int, congested: bool = False) -> None:
        """Count one write of `size` bytes; `congested` when the terminal reads too slowly for it."""
        now, before = self._clock(), self.low
        self.total += size
        self._recent.append((now, size))
        self._forget(now)
        if congested:
            self._congested_at = now
        elif self._congested_at is not None and now - self._congested_at > RECOVER_S:
            self._congested_at = None
        self._report(before)

    def rate(self) -> float:
        """Bytes per second over the last two seconds."""
        self._forget(self._clock())
        return sum(size for _, size in self._recent) / WINDOW_S

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()

    def _report(self, before: bool) -> None:
        if self.low != before:
            self.changed()


class TerminalDriver(LinuxDriver):
    """Textual's driver with the meter and the guard in `write`."""

    def __init__(
        self,
        app: App[object],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self.wire: Wire = getattr(app, "wire", None) or Wire()
        self._open = False
        self._lost = False
        self._starting = self._continued = False

    def start_application_mode(self) -> None:
        """Take over the terminal; where that is done already, draw everything again.

        SIGCONT may come twice (from the shell and from our parent), in the middle of this, or without a stop.
        """
        if self._starting:
            self._continued = True
            return
        self._starting = True
        thread = self._writer_thread
        if thread is not None:  # not the first time: Textual draws only what changes from now on
            self._app.call_later(self._app.refresh, layout=True)
        if not self._open or thread is None or not thread.is_alive():
            self._open = True
            super().start_application_mode()  # type: ignore[no-untyped-call]
        self._starting = False
        if self._continued:
            self._continued = False
            self.start_application_mode()

    def write(self, data: str) -> None:
        """Queue `data`; never blocks. A closed or stalled terminal loses it, and is repainted later."""
        thread = self._writer_thread
        if not self._open or thread is None or not thread.is_alive():
            return
        waiting = thread._queue.qsize()
        if self._lost or waiting >= MAX_QUEUED_WRITES - 2:
            self.wire.sent(0, congested=True)
            self._lose()
            return
        data = self.wire.glyphs.plain(data)
        started = time.monotonic()
        thread.write(data)
        slow = time.monotonic() - started > SLOW_WRITE_S
        self.wire.sent(len(data.encode("utf-8", "replace")), congested=slow or waiting > CONGESTED)

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._poll()

    def _poll(self) -> None:
        thread = self._writer_thread
        if thread is None or not thread.is_alive() or not self._open:
            self._lost = False
        elif thread._queue.qsize() > 0:
            asyncio.get_running_loop().call_later(POLL_S, self._poll)
        else:
            self._lost = False
            self._app.call_later(self._app.refresh, layout=True)

    def stop_application_mode(self) -> None:
        self._lost = False  # what restores the terminal is never dropped
        super().stop_application_mode()

    def close(self) -> None:
        """Stop the writer; a writer that died with its terminal is not waited for."""
        self._open = False
        if self._writer_thread is not None and self._writer_thread.is_alive():
            super().close()


def restore_terminal() -> None:
    """Leave a usable terminal behind when the driver cannot; never blocks, from any thread."""
    fd = next((fd for fd in (2, 1) if os.isatty(fd)), None)
    if fd is not None:
        with contextlib.suppress(OSError):  # the terminal is gone: nothing is left to restore
            os.set_blocking(fd, False)
            os.write(fd, RESTORE.encode())
