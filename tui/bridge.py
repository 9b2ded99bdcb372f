"""From the engine's mailbox to the screen, on the screen's clock.

The engine's thread only appends to the mailbox and, when the screen sleeps, schedules one wake-up. The first
event after a pause is delivered at once; further ones wait for the next tick of the one drain timer. Nothing
runs while nothing happens.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from ..engine.client import Backend, Mailbox
from ..engine.types import Event

NORMAL_S = 1 / 12
LOW_BANDWIDTH_S = 1 / 6


class Bridge:
    """Drains one mailbox of `backend` into `deliver`, at most once per `interval` seconds."""

    def __init__(self, backend: Backend, deliver: Callable[[list[Event]], None]) -> None:
        self.interval = NORMAL_S
        self.drains = 0
        self.mailbox: Mailbox
        self._backend = backend
        self._deliver = deliver
        self._armed = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Open the mailbox. Call it in the event loop: callbacks run in the caller's context."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self.mailbox = self._backend.open(wake=self._wake)
        self._wake()

    def _wake(self) -> None:
        # Any thread, once per event: a plain flag, so that a burst schedules one callback, not one per token.
        if not self._armed:
            self._armed = True
            try:
                self._loop.call_soon_threadsafe(self._tick, context=self._context)
            except RuntimeError:
                self._armed = False  # the loop is closed: nobody looks any more

    def _tick(self) -> None:
        self._timer = None
        if self.flush():
            self._rearm()
            return
        self._armed = False
        if self.flush():  # put between the drain and the flag
            self._armed = True
            self._rearm()

    def _rearm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self.interval, self._tick, context=self._context)

    def flush(self) -> bool:
        """Deliver what is there now; whether there was anything."""
        events = self.mailbox.drain()
        if events:
            self.drains += 1
            self._deliver(events)
        return bool(events)

    def stop(self) -> None:
        """No callback runs after this."""
        self._armed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._backend.close_mailbox(self.mailbox)
