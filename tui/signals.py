"""TERM, HUP and INT end the program in order: saved, terminal restored, and within two seconds in any case."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from .wire import restore_terminal

DEADLINE_S = 1.8
AFTER_LOAN_S = 0.5  # the loop may see the end of the other program before the interrupt that ended it

_interrupts_from = 0.0  # monotonic seconds; earlier ones are not for us


def install(leave: Callable[[int], None]) -> None:
    """Call `leave(128 + n)` in the running event loop on the first such signal; later ones change nothing.

    A process that has not ended by itself after 1.8 s, because its terminal or disk hangs, is ended.
    """
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def handle(number: int) -> None:
        if received or (number == signal.SIGINT and time.monotonic() < _interrupts_from):
            return
        received.append(number)
        watchdog = threading.Timer(DEADLINE_S, _force, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        leave(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


@contextlib.contextmanager
def terminal_lent() -> Iterator[None]:
    """While another program has the terminal, an interrupt typed there is for that program alone."""
    global _interrupts_from
    _interrupts_from = math.inf
    try:
        yield
    finally:
        _interrupts_from = time.monotonic() + AFTER_LOAN_S


def _force(code: int) -> None:
    restore_terminal()
    os._exit(code)
