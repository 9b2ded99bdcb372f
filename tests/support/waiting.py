"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 10.0


async def until(predicate: Callable[[], object], deadline: float = DEADLINE_S) -> None:
    """Let the event loop run until `predicate` is true; AssertionError after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not predicate():
        assert time.monotonic() < end, f"still false after {deadline} s"
        await asyncio.sleep(0.005)


async def wait_until(pilot: Any, predicate: Callable[[], object], deadline: float = DEADLINE_S) -> None:
    """The same, and what was true is on the screen."""
    await until(predicate, deadline)
    await pilot.pause()
