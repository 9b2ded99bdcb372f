"""`lmtop serve MODEL --tui`: the screen of the server that this terminal runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from support.command import Terminal
from support.engines import until
from support.waiting import wait_until

from lmtop.engine.arguments import parse
from lmtop.engine.server.run import served
from lmtop.engine.types import ModelError
from lmtop.tui.screens.serving import Served, ServingApp, run_serving
from lmtop.tui.widgets.line_view import LineView


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("LMTOP_CONFIG", "/nonexistent/config.toml")
    options = parse(["serve", "demo", "--port", "0", "--tui", "--drain", "0.5", "--session-len", "256"])
    with served(options) as parts:
        server = Served(options, parts)
        server.start()
        yield server
        if not server.ended:
            server.server.abort()
            server.join(5)


def text(app: Any, id: str) -> str:
    view = app.screen.query_one(id, LineView)
    return "\n".join("".join(part for part, _ in row) for row in view._rows)


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (40, 12)])
async def test_it_shows_the_server_at_work_and_stops_it(running: Served, size: tuple[int, int]) -> None:
    app = ServingApp(running)
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: running.state.status == "ready", 30)
        body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True}
        asked = threading.Thread(
            target=lambda: httpx.post(f"{running.url}/v1/completions", json=body, timeout=30)
        )
        asked.start()
        await wait_until(pilot, lambda: "answered 1" in text(app, "#serving-head"), 30)
        asked.join()
        app.screen.tick()
        head = text(app, "#serving-head")
        assert "lmtop serve demo" in head
        if size[0] >= 80:
            assert running.url in head and "serving" in head
            assert "generated 200" in head
            assert re.search(r"demo is ready on CPU: 7 M parameters", text(app, "#serving-log"))
        assert "KV" in text(app, "#serving-gauges") or size[1] < 20
        assert all(len(line) <= size[0] for line in head.splitlines())
        await pilot.press("q")
        assert "stopping" in text(app, "#serving-head") or size[0] < 80
        await wait_until(pilot, lambda: running.ended, 10)
    assert app.return_code in (0, None)


def test_a_model_that_cannot_be_loaded_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMTOP_CONFIG", "/nonexistent/config.toml")
    options = parse(["serve", str(tmp_path / "missing"), "--port", "0", "--tui"])
    seen: list[Any] = []

    def run(app: ServingApp, mouse: bool) -> None:
        until(lambda: app._served.ended, "the server ended")
        seen.append(SimpleNamespace(mouse=mouse))

    monkeypatch.setattr(ServingApp, "run", run)  # no terminal here
    with pytest.raises(ModelError, match="no such model directory"):
        run_serving(options)
    assert seen[0].mouse is True


def test_on_a_terminal_q_ends_it_and_puts_the_terminal_right(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "serve", "demo", "--port", "0", "--tui", "--drain", "0")
    terminal.until(b"is ready on")
    assert b"\x1b[?1049h" in terminal.output
    terminal.type("q")
    assert terminal.wait() == 0
    assert terminal.output.rindex(b"\x1b[?1049l") > terminal.output.rindex(b"\x1b[?1049h")
