"""A stalled engine is told from an idle one, and what it said last is not shown as measured (E10)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.dialogs import running, screen_text
from support.fake_backend import READY, FakeBackend
from support.llama import write_llama
from support.machine import engine_snapshot
from support.waiting import wait_until

from lmtop.engine.config import EngineConfig
from lmtop.engine.faults import Faults
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import ModelState, ServerLoad
from lmtop.tui.pulse import NO_ANSWER, Pulse


def test_a_heartbeat_that_stands_still_for_five_seconds_is_a_stall() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    beat = engine_snapshot(heartbeat=3, load=ServerLoad(running=4))
    assert pulse.check(beat) is beat
    now[0] += 5.0
    assert pulse.check(beat) is beat and not pulse.stalled
    now[0] += 0.1
    seen = pulse.check(beat)
    assert pulse.stalled and seen.status == "dead"
    assert (seen.memory, seen.kv, seen.slots, seen.queue, seen.load) == (None, None, (), (), None)
    moved = replace(beat, heartbeat=4)
    assert pulse.check(moved) is moved and not pulse.stalled


def test_only_a_model_that_is_ready_has_a_heartbeat() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    loading = engine_snapshot(heartbeat=0, status="loading")
    for _ in range(3):
        now[0] += 60
        assert pulse.check(loading).slots == () and not pulse.stalled
    ready = engine_snapshot(heartbeat=0)
    assert pulse.check(ready) is ready  # the time before does not count


@pytest.mark.parametrize("size", [(120, 40), (80, 24)], ids=["panel", "strip"])
async def test_a_stall_is_said_once_and_figures_read_na_until_it_ends(size: tuple[int, int]) -> None:
    backend, now = FakeBackend(), [0.0]
    async with running(backend, size) as (app, pilot):
        app.chat.pulse = Pulse(lambda: now[0])
        app.chat.composer.text = "q"
        await pilot.press("enter")
        await wait_until(pilot, lambda: bool(backend.requests))
        backend.push(backend.last(), "because")
        await wait_until(pilot, lambda: "71t/s" in screen_text(app) or "71.4 t/s" in screen_text(app))
        backend.stalled = True
        app.chat.tick()
        now[0] = 5.5
        for _ in range(3):
            app.chat.tick()
        await pilot.pause()
        text = screen_text(app)
        assert NO_ANSWER in text.split("\n")[0]
        assert sum(NO_ANSWER in notice.message for notice in app._notifications) == 1
        assert "71.4" not in text and "71t/s" not in text
        words = (
            ("batch n/a", "dec   n/a", "queue n/a")
            if size[0] == 120
            else ("n/a t/s", "slots n/a", "queue n/a")
        )
        for word in words:
            assert word in text, word
        assert any("ctx" in line and "n/a" in line for line in text.split("\n"))
        backend.stalled = False
        app.chat.tick()
        await pilot.pause()
        text = screen_text(app)
        assert NO_ANSWER not in text.split("\n")[0] and "71.4" in text and "/4k" in text


@pytest.mark.parametrize("state", [ModelState("dead", "m", message="x; load it again"), ModelState("none")])
async def test_without_an_engine_nothing_is_measured(state: ModelState) -> None:
    backend = FakeBackend(READY)
    async with running(backend) as (app, pilot):
        backend.tell(state)
        await wait_until(pilot, lambda: app.replies.model is state)
        app.chat.tick()
        await pilot.pause()
        text = screen_text(app)
        assert "dec   n/a" in text and "batch n/a" in text and "0/8" not in text
        context = next(line for line in text.split("\n") if "ctx" in line and "temp" in line)
        assert "n/a" in context and "0/" not in context


async def test_the_real_engine_stalls_and_comes_back(tmp_path: Path) -> None:
    """A forward pass that hangs; the clock of the pulse runs four times as fast."""
    backend = LocalBackend(Faults("forward@12:hang=3"))
    path = write_llama(tmp_path / "tiny")
    async with running(backend, model=str(path), engine=EngineConfig(str(path))) as (app, pilot):  # type: ignore[arg-type]
        app.chat.pulse = Pulse(lambda: 4 * time.monotonic())
        await wait_until(pilot, lambda: app.replies.model.status == "ready", 30)
        app.chat.composer.text = "a b c d"
        await pilot.press("enter")
        await wait_until(pilot, lambda: NO_ANSWER in screen_text(app), 30)
        assert "batch n/a" in screen_text(app)
        await wait_until(pilot, lambda: not app.chat.pulse.stalled, 30)
        await wait_until(pilot, lambda: NO_ANSWER not in screen_text(app).split("\n")[0], 30)
        backend.close()
