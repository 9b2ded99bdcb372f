"""The server picker, F9: saved servers, how each is, adding, changing and removing them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dialogs import program, running, same_everywhere, screen_text, type_into
from support.fake_backend import FakeBackend
from support.openai_servers import FakeServer
from support.waiting import wait_until
from textual.pilot import Pilot

from lmtop.engine import remote_probe
from lmtop.engine.remote_kinds import KINDS
from lmtop.engine.remote_probe import Found, Status
from lmtop.engine.servers import Server, read_servers, saved, servers_path
from lmtop.engine.types import ServerLoad
from lmtop.tui.app import LmtopApp
from lmtop.tui.screens.server_form import ServerForm
from lmtop.tui.screens.servers import PlaceList, ServerPicker


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTOP_CONFIG", str(tmp_path / "config.toml"))


@pytest.fixture
def servers() -> Iterator[dict[str, FakeServer]]:
    """One that answers, one that wants a key, one that is gone."""
    with FakeServer("vllm") as good, FakeServer("vllm", key="k") as locked, FakeServer("ollama") as gone:
        found = {"good": good, "locked": locked, "gone": gone}
        for name, server in found.items():
            saved(Server(name, server.url))
        gone.stop()
        yield found


async def opened(app: LmtopApp, pilot: Pilot[Any]) -> ServerPicker:
    await pilot.press("f9")
    assert isinstance(app.screen, ServerPicker)
    return app.screen


def row(app: LmtopApp, text: str) -> str:
    return next((line for line in screen_text(app).splitlines() if text in line), "")


async def test_each_server_is_looked_at(servers: dict[str, FakeServer]) -> None:
    async with running(FakeBackend()) as (app, pilot):
        await opened(app, pilot)
        await wait_until(pilot, lambda: "2 mod" in row(app, " good ") and "refused" in row(app, " gone "))
        await wait_until(pilot, lambda: "key?" in row(app, " locked "))
        assert "●" in row(app, " good ") and " ms" in row(app, " good ")
        assert "○" in row(app, " locked ") and "✗" in row(app, " gone ")
        assert "this machine: demo" in screen_text(app) and "✓ ● local" in screen_text(app)
        await pilot.press("down")
        shown = screen_text(app)
        assert "vLLM · gauges: /metrics" in shown and "51%  run 4  wait 2  speed n/a" in shown
        assert "Qwen/Qwen3-8B, Qwen/Qwen3-8B-math" in shown
        await pilot.press("j")
        assert "no key was given" in screen_text(app)
        await pilot.press("down")
        assert "cannot connect to" in screen_text(app)


async def test_keys_and_mouse_choose(servers: dict[str, FakeServer]) -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await opened(app, pilot)
        await pilot.press("down", "enter")
        await wait_until(pilot, lambda: app.replies.model.place == "good")
        assert app.screen is app.chat
        await opened(app, pilot)
        assert "✓" in row(app, " good ") and app.screen.query_one(PlaceList).marked.current  # type: ignore[union-attr]
        for _ in range(2):  # marks, and chooses
            await pilot.click("#places", offset=(10, 0))
        await wait_until(pilot, lambda: app.replies.model.name == "demo")
        await opened(app, pilot)
        await pilot.press("escape")
        assert app.screen is app.chat and app.link.server is None
        await app.link.close(1.0)


async def test_add_change_and_remove() -> None:
    with FakeServer("plain") as server:
        async with running(FakeBackend()) as (app, pilot):
            picker = await opened(app, pilot)
            await pilot.press("a")
            assert isinstance(app.screen, ServerForm)
            await type_into(pilot, "url", "ftp://h")
            assert "begins with http:// or https://" in screen_text(app)
            await pilot.press("enter")
            assert isinstance(app.screen, ServerForm)
            await type_into(pilot, "url", server.url)
            await pilot.press("enter")
            assert isinstance(app.screen, ServerForm) and "a name is missing" in screen_text(app)
            await type_into(pilot, "name", "box")
            await type_into(pilot, "api_key_env", "BOX_KEY")
            await pilot.press("enter")
            assert app.screen is picker
            assert read_servers() == (Server("box", server.url, api_key_env="BOX_KEY"),)
            await wait_until(pilot, lambda: "key?" in row(app, " box "))
            assert "$BOX_KEY is not set" in screen_text(app)
            await pilot.press("enter")
            assert app.screen is picker and app.link.server is None and "is not set" in screen_text(app)
            await pilot.press("e")
            await type_into(pilot, "api_key_env", "")
            await type_into(pilot, "name", "cube")
            await pilot.press("enter")
            assert read_servers() == (Server("cube", server.url),)
            await wait_until(pilot, lambda: "1 mod" in row(app, " cube "))
            await pilot.press("x")
            assert "Forget the server 'cube'" in screen_text(app)
            await pilot.press("escape")
            assert read_servers()
            await pilot.press("x", "r")
            await wait_until(pilot, lambda: not read_servers())
            assert not row(app, " cube ")


async def test_an_address_from_the_command_line_can_be_saved() -> None:
    with FakeServer("plain") as server:
        async with running(FakeBackend(), server=Server("", server.url)) as (app, pilot):
            await wait_until(pilot, lambda: app.replies.model.status == "ready")
            await opened(app, pilot)
            assert "(not saved)" in screen_text(app)
            await pilot.press("a")
            await type_into(pilot, "name", "box")
            await pilot.press("enter")
            assert read_servers() == (Server("box", server.url),)
            assert "✓" in row(app, " box ") and "(not saved)" not in screen_text(app)
            await app.link.close(1.0)


async def test_a_file_that_is_wrong_is_said_and_not_overwritten() -> None:
    servers_path().write_text("[a]\nurl = ")
    async with running(FakeBackend()) as (app, pilot):
        await opened(app, pilot)
        assert "servers.toml:" in screen_text(app)
        await pilot.press("a")
        await type_into(pilot, "url", "http://h")
        await type_into(pilot, "name", "box")
        await pilot.press("enter")
        await pilot.pause()
        assert servers_path().read_text() == "[a]\nurl = "


LOOKS = {
    "h100": Status(
        Found(
            "/v1",
            KINDS["vllm"],
            ("Qwen/Qwen3-8B", "b", "c"),
            {},
            0.012,
            "metrics",
            ServerLoad(4, 0, 0.51, 212.0),
        )
    ),
    "lab": Status(problem="lab:443: key rejected (401); the key from $LAB_KEY"),
    "old": Status(problem="cannot connect to old:8080: no answer within 5 s"),
}


@pytest.mark.parametrize("dialog", ["picker", "form"])
@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_picture(
    size: tuple[int, int], dialog: str, snap_compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_probe, "look_at", lambda server: LOOKS[server.name])  # names, ports, times
    saved(Server("h100", "http://h100:8000/v1"))
    saved(Server("lab", "https://lab/v1", api_key_env="LAB_KEY"))
    saved(Server("old", "http://old:8080"))
    with same_everywhere():
        app = program(FakeBackend())

        async def play(pilot: Pilot[Any]) -> None:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await opened(app, pilot)
            await wait_until(pilot, lambda: "3 mod" in row(app, " h100 ") and "timeout" in row(app, " old "))
            await pilot.press("down")
            if dialog == "form":
                await pilot.press("e")
            await wait_until(pilot, lambda: app._bridge is not None and not app._bridge._armed)

        assert snap_compare(app, terminal_size=size, run_before=play)
