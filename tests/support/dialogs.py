"""The program with a scripted engine, for tests of its dialogs."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

from support.fake_backend import FakeBackend, FakeTelemetry
from support.waiting import wait_until
from textual.pilot import Pilot
from textual.widgets import Input

from lmtop.tui.app import AppOptions, LmtopApp

CLOCK = 1_700_000_000.0


@contextmanager
def same_everywhere() -> Iterator[None]:
    """A terminal and a time zone for pictures that are the same on every machine."""
    with mock.patch.dict(os.environ, {"TZ": "UTC", "TERM": "tmux-256color"}):
        for name in ("SSH_CONNECTION", "NO_COLOR", "COLORTERM"):
            os.environ.pop(name, None)
        time.tzset()
        yield
    time.tzset()


def program(backend: FakeBackend, **options: Any) -> LmtopApp:
    """The program, not started."""
    fixed: dict[str, Any] = {"telemetry": FakeTelemetry(), "clock": lambda: CLOCK}
    return LmtopApp(AppOptions(backend=backend, **(fixed | options)))


@asynccontextmanager
async def running(
    backend: FakeBackend, size: tuple[int, int] = (120, 40), **options: Any
) -> AsyncIterator[tuple[LmtopApp, Pilot[Any]]]:
    """The program with a session shown."""
    app = program(backend, **options)
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: app.chat.session is not None)
        yield app, pilot


def screen_text(app: LmtopApp) -> str:
    """What stands on the screen."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def styles_of(app: LmtopApp, text: str) -> list[Any]:
    """The Rich styles of the pieces of the screen that hold `text`."""
    strips = app.screen._compositor.render_strips()
    return [segment.style for strip in strips for segment in strip if text in segment.text]


async def type_into(pilot: Pilot[Any], field: str, text: str) -> None:
    """Put the cursor into an input of the dialog, and a text in place of its own."""
    widget = pilot.app.screen.query_one(f"#{field}", Input)
    widget.focus()
    widget.value = text  # at once: each key pressed would cost the test a frame
    await pilot.pause()
