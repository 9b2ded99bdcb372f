"""Chatting with a model on a server: the same screen over real HTTP on loopback (check 39, bar 5)."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.dialogs import CLOCK, same_everywhere, screen_text
from support.fake_backend import FakeBackend, FakeTelemetry
from support.openai_servers import WORDS, Answer, FakeServer
from support.waiting import wait_until
from textual.pilot import Pilot
from textual.widgets import Input

from lmtop.engine.servers import Server, read_servers, saved
from lmtop.tui.app import AppOptions, LmtopApp
from lmtop.tui.screens.ask import Ask
from lmtop.tui.screens.choose import ChooseDialog
from lmtop.tui.screens.sampling import SamplingPanel
from lmtop.tui.screens.top import TopScreen

REPLY = "".join(WORDS)


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTOP_CONFIG", str(tmp_path / "config.toml"))


def program(server: Server | None, **options: Any) -> LmtopApp:
    fixed: dict[str, Any] = {
        "backend": FakeBackend(),
        "telemetry": FakeTelemetry(),
        "clock": lambda: CLOCK,
    }
    return LmtopApp(AppOptions(server=server, **(fixed | options)))


@asynccontextmanager
async def connected(
    server: FakeServer, size: tuple[int, int] = (120, 40), **fields: str
) -> AsyncIterator[tuple[LmtopApp, Pilot[Any]]]:
    """The program, connected to it."""
    app = program(Server("box", server.url, **fields))
    async with app.run_test(size=size, notifications=True) as pilot:
        await wait_until(pilot, lambda: app.chat.session is not None and app.replies.model.status == "ready")
        yield app, pilot
        await app.link.close(1.0)


async def ask(app: LmtopApp, pilot: Pilot[Any], text: str) -> None:
    app.chat.composer.text = text
    await pilot.press("enter")


async def answered(app: LmtopApp, pilot: Pilot[Any], status: str = "complete") -> str:
    """The text of the last reply, once it ended so."""
    session = app.chat.session
    assert session is not None
    await wait_until(pilot, lambda: session.turns and session.turns[-1].status == status)
    return session.turns[-1].text


def notices(app: LmtopApp) -> str:
    return "\n".join(str(notice.message) for notice in app._notifications)


async def test_ask_regenerate_and_ask_elsewhere() -> None:
    with FakeServer("vllm") as server:
        async with connected(server) as (app, pilot):
            assert "Qwen/Qwen3-8B" in screen_text(app) and "●box" in screen_text(app)
            app.sessions.update(app.actions.session, system="be brief")
            await ask(app, pilot, "what is a cache?")
            assert await answered(app, pilot) == REPLY
            assert "7 tok" in screen_text(app) and "28/32k" in screen_text(app)
            app.run_command("reply.regenerate")
            await wait_until(pilot, lambda: len(server.asked()) == 2)
            await answered(app, pilot)
            await pilot.press("ctrl+n")
            await ask(app, pilot, "another")
            await answered(app, pilot)
            first, again, other = (seen.body["messages"] for seen in server.asked())
            assert (
                first
                == again
                == [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "what is a cache?"},
                ]
            )
            assert other == [{"role": "user", "content": "another"}]


async def test_escape_stops_within_200_ms_and_the_server_sees_it() -> None:
    with FakeServer("vllm") as server:
        server.hold.clear()
        async with connected(server) as (app, pilot):
            await ask(app, pilot, "talk")
            session = app.actions.session
            await wait_until(pilot, lambda: session.turns[-1].text == "".join(WORDS[:3]))
            started = time.monotonic()
            await pilot.press("escape")
            assert session.turns[-1].status == "stopped"
            assert server.asked()[0].gone.wait(0.2) and time.monotonic() - started < 0.4  # Pilot waits, too
            assert session.turns[-1].text == "".join(WORDS[:3])


async def test_two_sessions_stream_at_once() -> None:
    with FakeServer("vllm") as server:
        server.hold.clear()
        async with connected(server) as (app, pilot):
            await ask(app, pilot, "one")
            await pilot.press("ctrl+n")
            await ask(app, pilot, "two")
            await wait_until(pilot, lambda: len(server.asked()) == 2)
            assert len(app.sessions.generating) == 2
            server.hold.set()
            await wait_until(pilot, lambda: not app.sessions.generating)
            assert all(session.turns[-1].text == REPLY for session in app.sessions.all[:2])


async def test_the_model_is_chosen_by_name_or_from_the_list() -> None:
    with FakeServer("vllm") as server:
        saved(Server("box", server.url))
        async with connected(server) as (app, pilot):
            await pilot.press("f4")
            assert isinstance(app.screen, ChooseDialog) and "2 models" in screen_text(app)
            await pilot.press("m", "a", "t", "h", "enter")
            await wait_until(pilot, lambda: app.replies.model.name == "Qwen/Qwen3-8B-math")
            assert read_servers()[0].model == "Qwen/Qwen3-8B-math"  # also the next time
            await ask(app, pilot, "/load Qwen/Qwen3-8B")
            await wait_until(pilot, lambda: app.replies.model.name == "Qwen/Qwen3-8B")
            await ask(app, pilot, "/load demo")
            await wait_until(pilot, lambda: "box has no model 'demo'" in notices(app))
            await ask(app, pilot, "/unload")
            await wait_until(pilot, lambda: "the model belongs to box" in notices(app))


async def test_what_the_server_does_not_understand_is_greyed_out() -> None:
    with FakeServer("ollama") as server:
        async with connected(server) as (app, pilot):
            await pilot.press("f8")
            assert isinstance(app.screen, SamplingPanel)
            fields = {field.id for field in app.screen.query(Input) if field.disabled}
            assert fields == {"top_k", "min_p", "repetition_penalty"}
            assert screen_text(app).count("not understood by this server") == 3
            await pilot.press("down", "down")
            assert app.focused is not None and app.focused.id == "presence_penalty"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("vllm", ("KV 51%", "running 4", "waiting 2", "device n/a")),
        ("llamacpp", ("KV n/a", "running 4", "waiting 2")),
        ("ollama", ("KV n/a", "running n/a", "waiting n/a", "dec   n/a", "pre   n/a")),
    ],
)
async def test_gauges_show_what_the_server_tells_and_else_nothing(kind: str, told: tuple[str, ...]) -> None:
    with FakeServer(kind) as server:
        async with connected(server) as (app, pilot):
            app.chat.tick()
            await pilot.pause()
            shown = screen_text(app)
            assert all(text in shown for text in told), shown
            await pilot.press("f3")
            assert not isinstance(app.screen, TopScreen) and "does not tell about its machine" in notices(app)
    with FakeServer(kind) as server:
        async with connected(server, (80, 24)) as (app, pilot):
            app.chat.tick()
            await pilot.pause()
            assert ("running 4" if kind != "ollama" else "running n/a") in screen_text(app)


@pytest.mark.parametrize("kind", ["refused", "key", "empty"])
async def test_a_server_that_cannot_be_used_gives_one_line_and_keeps_the_draft(kind: str) -> None:
    """Check 39."""
    with FakeServer(
        "vllm", key="x" if kind == "key" else "", models=() if kind == "empty" else None
    ) as server:
        if kind == "refused":
            server.stop()
        why = {"refused": "refused", "key": "key rejected (401)", "empty": "serves no model"}[kind]
        app = program(Server("box", server.url))
        async with app.run_test(size=(120, 40), notifications=True) as pilot:
            await wait_until(pilot, lambda: app.chat.session is not None and why in app.replies.model.message)
            await wait_until(pilot, lambda: why in screen_text(app).splitlines()[0])
            await ask(app, pilot, "my question")
            assert app.chat.composer.text == "my question" and why in notices(app)
            await app.link.close(1.0)


async def test_a_cut_in_the_middle_keeps_the_text_and_says_why() -> None:
    def chat(answer: Answer) -> None:
        answer.stream()
        answer.text("Half a reply")

    with FakeServer("vllm", chat=chat) as server:
        async with connected(server) as (app, pilot):
            await ask(app, pilot, "q")
            assert await answered(app, pilot, "failed") == "Half a reply"
            assert "✗ failed: interrupted: the connection ended before" in screen_text(app)
            server.chat = None
            app.run_command("reply.regenerate")
            assert await answered(app, pilot) == REPLY


async def test_a_wait_is_counted_down_and_escape_ends_it() -> None:
    """R5."""

    def busy(answer: Answer) -> None:
        answer.document({"error": {"message": "slow down"}}, 429, Retry_After="20")

    with FakeServer("vllm", chat=busy) as server:
        async with connected(server) as (app, pilot):
            await ask(app, pilot, "q")
            await wait_until(pilot, lambda: "slow down (429); try 2 of 3 in" in screen_text(app))
            await pilot.press("escape")
            assert await answered(app, pilot, "stopped") == ""
            assert len(server.asked()) == 1


async def test_switching_keeps_the_conversations_and_this_machines_model() -> None:
    with FakeServer("vllm") as server:
        saved(Server("lab", server.url))
        local = FakeBackend()
        app = program(None, backend=local)
        async with app.run_test(size=(120, 40), notifications=True) as pilot:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await ask(app, pilot, "to the local one")
            await wait_until(pilot, lambda: local.requests)
            local.push(local.last(), "local text")
            await wait_until(pilot, lambda: "local text" in screen_text(app))
            await ask(app, pilot, "")
            app.run_command("servers.open", "lab")
            await wait_until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press("s")
            await wait_until(
                pilot, lambda: app.replies.model.place == "lab" and app.replies.model.status == "ready"
            )
            session = app.actions.session
            assert session.turns[-1].text == "local text" and session.turns[-1].status == "interrupted"
            assert local.cancelled and not local.closed
            await ask(app, pilot, "to the lab")
            await answered(app, pilot)
            sent = server.asked()[0].body["messages"]
            assert [message["content"] for message in sent] == [
                "to the local one",
                "local text",
                "to the lab",
            ]
            app.run_command("servers.open", "local")
            await wait_until(pilot, lambda: app.replies.model.name == "demo")
            assert "●local cpu" in screen_text(app)
            await ask(app, pilot, "back")
            await wait_until(pilot, lambda: len(local.requests) == 2)
            assert [message.role for message in local.requests[local.last()].messages or ()] == [
                "user",
                "assistant",
                "user",
                "assistant",
                "user",
            ]
            app.run_command("servers.open", "nowhere")
            await wait_until(pilot, lambda: "no saved server 'nowhere'; saved: lab" in notices(app))
            await app.link.close(1.0)
    assert read_servers()[0].name == "lab"


async def test_a_question_that_waits_for_one_server_is_not_asked_of_the_next() -> None:
    hold = threading.Event()

    def slow(answer: Answer) -> None:
        if answer.wait(hold):
            answer.document(answer.fake.listing())

    with FakeServer("vllm", pages={"/v1/models": slow}) as first, FakeServer("ollama") as second:
        app = program(Server("slow", first.url))
        async with app.run_test(size=(120, 40), notifications=True) as pilot:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await ask(app, pilot, "q")
            await wait_until(pilot, lambda: "connecting to 127.0.0.1" in screen_text(app).split("you", 1)[1])
            await app.link.use(Server("second", second.url))
            await wait_until(pilot, lambda: app.replies.model.status == "ready")
            assert await answered(app, pilot, "interrupted") == ""
            app.run_command("reply.regenerate")
            await answered(app, pilot)
            assert len(second.asked()) == 1 and not first.asked()
            hold.set()
            await app.link.close(1.0)


async def test_a_server_that_is_gone_has_no_figures() -> None:
    server = FakeServer("vllm")
    with server:
        async with connected(server) as (app, pilot):
            app.chat.tick()
            await wait_until(pilot, lambda: "KV 51%" in screen_text(app))
            server.stop()
            await wait_until(pilot, lambda: app.replies.model.status == "failed")
            app.chat.tick()
            await wait_until(pilot, lambda: "51%" not in screen_text(app))
            assert "running 4" not in screen_text(app) and "refused" in screen_text(app)


HOSTILE = "\x1b]0;owned\x07\x1b[2J[/x][@click=app.quit]\u202e"


async def test_hostile_text_is_shown_as_text() -> None:
    """R17."""

    def chat(answer: Answer) -> None:
        answer.stream()
        answer.text(HOSTILE)
        answer.event({"error": {"message": HOSTILE}})

    with FakeServer("vllm", models=(HOSTILE, "b"), chat=chat) as server:
        async with connected(server) as (app, pilot):
            await ask(app, pilot, "q")
            await answered(app, pilot, "failed")
            await pilot.press("f4")
            shown = screen_text(app)
            assert "[/x]" in shown and not any(mark in shown for mark in "\x1b\x07\u202e")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_picture(size: tuple[int, int], snap_compare: Any) -> None:
    """A reply that streams from a server with gauges."""
    page = b"vllm:num_requests_running 4\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.51\n"
    with same_everywhere(), FakeServer("vllm") as server:
        server.pages["/metrics"] = lambda answer: answer.data(page)
        server.hold.clear()
        app = program(Server("h100", server.url))

        async def play(pilot: Pilot[Any]) -> None:
            await wait_until(
                pilot, lambda: app.chat.session is not None and app.replies.model.status == "ready"
            )
            await ask(app, pilot, "what is a KV cache?")
            session = app.actions.session
            await wait_until(pilot, lambda: session.turns[-1].text == "".join(WORDS[:3]))
            await wait_until(pilot, lambda: app._bridge is not None and not app._bridge._armed)
            app.chat._ticks = 0
            app.chat.tick()
            app.chat._ticker.pause()
            await pilot.pause()

        assert snap_compare(app, terminal_size=size, run_before=play)
