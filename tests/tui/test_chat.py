from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.fake_backend import NO_MODEL, FakeBackend, FakeTelemetry
from support.waiting import wait_until
from textual.geometry import Offset
from textual.pilot import Pilot

from lmtop.engine.types import ModelState, SamplingParams, Timings
from lmtop.tui.app import AppOptions, LmtopApp
from lmtop.tui.commands import COMMANDS
from lmtop.tui.screens.ask import Ask, EditText
from lmtop.tui.screens.chat import ChatScreen
from lmtop.tui.screens.help import HelpScreen, MenuScreen
from lmtop.tui.sessions import ChatSession, Turn


class Desk:
    """A user at the program."""

    def __init__(self, app: LmtopApp, backend: FakeBackend, pilot: Pilot[Any]) -> None:
        self.app = app
        self.backend = backend
        self.pilot = pilot

    @property
    def chat(self) -> ChatScreen:
        return self.app.chat

    async def until(self, predicate: Any) -> None:
        await wait_until(self.pilot, predicate)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def enter(self, text: str) -> None:
        self.chat.composer.text = text
        await self.press("enter")

    async def ask(self, text: str) -> str:
        known = len(self.backend.requests)
        await self.enter(text)
        await self.until(lambda: len(self.backend.requests) > known)
        return self.backend.last()

    async def answer(self, text: str, question: str = "q") -> str:
        request = await self.ask(question)
        self.backend.push(request, text)
        self.backend.finish(request)
        await self.until(lambda: not self.app.replies.active)
        return request

    @property
    def screen_text(self) -> str:
        return screen_text(self.app)

    @property
    def notices(self) -> str:
        return "\n".join(notice.message for notice in self.app._notifications)


def first_word(text: str) -> str:
    return re.search(r"word\d+", text).group()  # type: ignore[union-attr]


def screen_text(app: LmtopApp) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


@asynccontextmanager
async def sit(size: tuple[int, int] = (120, 40), **options: Any) -> AsyncIterator[Desk]:
    backend = options.pop("backend", None) or FakeBackend()
    app = LmtopApp(
        AppOptions(backend=backend, telemetry=FakeTelemetry(), clock=lambda: 1_700_000_000.0, **options)
    )
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: app.chat.session is not None)
        yield Desk(app, backend, pilot)


# --- sending and reading ---------------------------------------------------------------------------------------


async def test_question_is_shown_before_the_engine_is_asked() -> None:
    """Check 4."""
    async with sit() as desk:
        desk.chat.composer.text = "why?"
        desk.chat.send("why?")
        desk.chat.composer.text = ""
        assert not desk.backend.requests  # the engine has not even been asked
        await desk.pilot.pause()
        assert "why?" in desk.screen_text and desk.chat.composer.text == ""


async def test_first_fragment_is_on_the_screen_within_a_frame() -> None:
    """Check 5."""
    async with sit() as desk:
        request = await desk.ask("q")
        await desk.until(lambda: not desk.app._bridge._armed)
        drains = desk.app._bridge.drains
        desk.backend.push(request, "Hello")
        await desk.until(lambda: "Hello" in desk.screen_text)
        assert desk.app._bridge.drains == drains + 1


async def test_scrolled_up_stays_put_while_streaming() -> None:
    """Check 10."""
    async with sit() as desk:
        request = await desk.ask("q")
        desk.backend.push(request, "\n\n".join(f"line {n}" for n in range(100)))
        await desk.until(lambda: "line 99" in desk.screen_text)
        desk.chat.transcript.focus()
        await desk.press("g")
        await desk.until(lambda: "line 0" in desk.screen_text)
        offset = desk.chat.transcript.scroll_y
        for n in range(100, 200):
            desk.backend.push(request, f"\n\nline {n}")
        await desk.until(lambda: desk.chat.transcript.new_below > 0)
        await desk.until(lambda: "new lines below" in desk.screen_text)
        assert desk.chat.transcript.scroll_y == offset
        await desk.press("G")
        await desk.until(lambda: "line 199" in desk.screen_text)
        assert "below" not in desk.screen_text


async def test_escape_stops_and_keeps_the_text() -> None:
    """Check 11."""
    async with sit() as desk:
        request = await desk.ask("q")
        desk.backend.push(request, "so far")
        await desk.until(lambda: "so far" in desk.screen_text)
        desk.backend.push(request, " and this")
        await desk.press("escape")
        assert desk.backend.cancelled == [request]
        await desk.until(lambda: "stopped" in desk.screen_text)
        assert "so far and this" in desk.screen_text
        assert desk.chat.focused is desk.chat.composer
        assert desk.backend.snapshot().slots == ()
        await desk.press("escape")
        assert desk.chat.focused is desk.chat.transcript
        await desk.press("i")
        assert desk.chat.focused is desk.chat.composer


async def test_variants() -> None:
    """Check 12."""
    async with sit() as desk:
        await desk.answer("first answer")
        await desk.enter("/regen")
        await desk.until(lambda: len(desk.backend.requests) == 2)
        desk.backend.push(desk.backend.last(), "second answer")
        desk.backend.finish(desk.backend.last())
        await desk.until(lambda: "‹2/2›" in desk.screen_text and not desk.app.replies.active)
        assert "first answer" not in desk.screen_text
        await desk.press("escape", "less_than_sign")
        await desk.until(lambda: "first answer" in desk.screen_text)
        assert "‹1/2›" in desk.screen_text and "second answer" not in desk.screen_text
        await desk.press("greater_than_sign")
        await desk.until(lambda: "second answer" in desk.screen_text)


async def test_sessions_generate_at_once_and_show_only_their_own() -> None:
    """Check 15, on the screen."""
    async with sit() as desk:
        first = await desk.ask("alpha?")
        await desk.press("ctrl+n")
        second = await desk.ask("beta?")
        for n in range(50):
            desk.backend.push(first, f"a{n} ")
            desk.backend.push(second, f"b{n} ")
        await desk.until(lambda: "b49" in desk.screen_text)
        assert "a49" not in desk.screen_text
        await desk.press("ctrl+right_square_bracket")
        await desk.until(lambda: "a49" in desk.screen_text)
        desk.backend.push(first, "more")
        await desk.until(lambda: "a49 more" in desk.screen_text)
        assert "b49" not in desk.screen_text


async def test_failed_reply_says_why() -> None:
    async with sit() as desk:
        request = await desk.ask("q")
        desk.backend.fail(request, "out of memory")
        await desk.until(lambda: "failed: out of memory" in desk.screen_text)


async def test_hostile_text_is_shown_literally() -> None:
    """Check 22."""
    evil = "[red]x[/] [@click=app.quit]y[/] [/z] \x1b[2J\x1b]52;c;eA==\a\x9b1m"
    async with sit((200, 60)) as desk:
        await desk.answer(evil, question=evil)
        await desk.enter("/system " + evil)
        await desk.enter("/rename " + evil)
        await desk.pilot.pause()
        text = desk.screen_text
        assert "[red]x[/] [@click=app.quit]y[/] [/z] ␛[2J␛]52;c;eA==␇<U+009B>1m" in text
        assert not any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 for c in text)
        desk.chat.notice(evil, "error")
        await desk.pilot.pause()


# --- layout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (100, 30), (120, 40), (200, 60)])
async def test_everything_fits(size: tuple[int, int]) -> None:
    """Checks 1, 2: nothing out of bounds, the prompt always usable."""
    async with sit(size) as desk:
        await desk.answer("a\n\n```python\nprint(1)\n```")
        rows = desk.app.screen._compositor.render_strips()
        assert len(rows) == size[1] and all(strip.cell_length == size[0] for strip in rows)
        for widget in desk.app.screen.query("*"):
            if widget.display and widget.region.area:
                assert widget.region in desk.app.screen.region, widget
            assert not widget.show_horizontal_scrollbar
        assert desk.chat.composer.region.height >= 2
        assert desk.chat.transcript.region.height >= 5


async def test_resize_keeps_place_draft_and_focus() -> None:
    """Check 3."""
    async with sit((200, 60)) as desk:
        desk.chat.session.turns = [
            Turn(1000 + n, "assistant", f"word{n} " * 200, "complete", 0.0) for n in range(80)
        ]
        desk.chat.turns_changed(desk.chat.session)
        desk.chat.composer.text = "draft 草稿"
        desk.chat.transcript.focus()
        await desk.press("g", "ctrl+d", "ctrl+d")
        await desk.pilot.pause()
        top = first_word(desk.screen_text)
        for width, height in ((80, 24), (1, 1), (200, 60)):
            await desk.pilot.resize_terminal(width, height)
            await desk.pilot.pause()
        assert first_word(desk.screen_text) == top
        assert desk.chat.composer.text == "draft 草稿"
        assert desk.chat.focused is desk.chat.transcript


async def test_wide_characters_keep_columns_and_cursor() -> None:
    """Check 26."""
    async with sit() as desk:
        for text, cells in (("你好", 4), ("e\u0301x", 2), ("a", 1)):
            desk.chat.composer.text = text
            await desk.pilot.pause()
            where = desk.chat.composer.cursor_screen_offset - desk.chat.composer.content_region.offset
            assert where == Offset(cells, 0), text
        await desk.answer("答案", question="翻译 一下 这个 很长 很长 很长 的 句子")
        rows = [strip.text for strip in desk.app.screen._compositor.render_strips()]
        assert {strip.cell_length for strip in desk.app.screen._compositor.render_strips()} == {120}
        assert any("答案" in row for row in rows)


async def test_gauges_come_and_go() -> None:
    async with sit((80, 24)) as desk:
        assert "slots" in desk.screen_text
        await desk.press("ctrl+t")
        await desk.until(lambda: "throughput" in desk.screen_text)
        assert not desk.chat.transcript.region.area or not desk.chat.query_one("#chat").display
        await desk.press("ctrl+t")
        await desk.enter("/gauges off")
        await desk.until(lambda: not desk.chat.gauges_visible)
        snapshots = desk.backend.snapshots
        await desk.until(lambda: not desk.chat._ticker._active.is_set())
        assert desk.backend.snapshots <= snapshots + 2
        await desk.enter("/gauges on")
        await desk.until(lambda: "slots" in desk.screen_text)


# --- commands --------------------------------------------------------------------------------------------------


def test_every_command_can_be_carried_out() -> None:
    """Check 40: no dead entries."""
    from lmtop.tui.app_actions import AppActions
    from lmtop.tui.screens.chat_actions import TRANSCRIPT, ChatActions
    from lmtop.tui.widgets.transcript import Transcript

    for command in COMMANDS:
        owner: type = AppActions if command.where == "app" else ChatActions
        name = command.id.replace(".", "_")
        if command.id in TRANSCRIPT:
            owner, name = Transcript, f"action_{TRANSCRIPT[command.id]}"
        assert command.native or callable(getattr(owner, name, None)), command.id


async def test_bindings_in_the_program_are_those_of_the_table() -> None:
    async with sit() as desk:
        chat = desk.chat
        nodes = (desk.app, chat, chat.query_one("#chat"), chat.query_one("#prompt"), chat.session_list)
        bound = {binding.id for node in nodes for _, binding in node._bindings if binding.id}
        assert bound == {c.id for c in COMMANDS if c.keys and not c.native}


async def test_menu_help_and_unknown_commands() -> None:
    async with sit((80, 24)) as desk:
        await desk.press("ctrl+g")
        assert isinstance(desk.app.screen, MenuScreen)
        await desk.press("n")
        await desk.until(lambda: desk.app.screen is desk.chat)
        await desk.press("f1")
        assert isinstance(desk.app.screen, HelpScreen)
        await desk.press("escape")
        await desk.enter("/stpo")
        await desk.until(lambda: "did you mean /stop?" in desk.notices)
        assert desk.chat.composer.text == "/stpo"
        await desk.ask("//etc/hosts is a file")
        assert desk.chat.session.turns[0].text == "/etc/hosts is a file"


async def test_tab_completes_a_command() -> None:
    async with sit() as desk:
        await desk.press("slash", "r", "e", "n")
        assert "/rename" in desk.screen_text
        await desk.press("tab")
        assert desk.chat.composer.text == "/rename "
        await desk.press(*"hi", "enter")
        await desk.until(lambda: desk.chat.session.title == "hi")


async def test_settings_change_the_next_request_only() -> None:
    """Check 20."""
    async with sit(system="base", sampling=SamplingParams(max_new_tokens=9)) as desk:
        first = await desk.ask("one")
        await desk.enter("/set temp=0.2 seed=3")
        await desk.enter("/system be brief")
        await desk.until(lambda: desk.chat.session.system == "be brief")
        assert "temp 0.2" in desk.screen_text and "seed 3" in desk.screen_text
        desk.backend.finish(first)
        await desk.until(lambda: not desk.app.replies.active)
        second = await desk.ask("two")
        one, two = desk.backend.requests[first], desk.backend.requests[second]
        assert (one.sampling.temperature, one.messages[0].content) == (0.7, "base")
        assert two.sampling == SamplingParams(temperature=0.2, seed=3, max_new_tokens=9)
        assert two.messages[0].content == "be brief"
        await desk.enter("/set temp=hot")
        await desk.until(lambda: "temperature" in desk.notices)


async def test_sessions_from_the_keyboard() -> None:
    async with sit() as desk:
        await desk.answer("a", question="first")
        await desk.press("ctrl+n")
        await desk.answer("b", question="second")
        await desk.press("f2", "j", "enter")
        await desk.until(lambda: desk.chat.session.title == "first")
        assert desk.chat.focused is desk.chat.composer
        await desk.press("f2", "r")
        assert isinstance(desk.app.screen, EditText)
        await desk.press("!", "enter")
        await desk.until(lambda: desk.chat.session.title == "first!")
        await desk.press("ctrl+g", "d")
        await desk.until(lambda: isinstance(desk.app.screen, Ask))
        await desk.press("d")
        await desk.until(lambda: [s.title for s in desk.app.sessions.all] == ["second"])
        assert desk.chat.session.title == "second"


async def test_drafts_belong_to_their_sessions() -> None:
    async with sit() as desk:
        await desk.answer("a", question="first")
        desk.chat.composer.text = "unfinished"
        await desk.press("ctrl+n")
        await desk.until(lambda: desk.chat.composer.text == "")
        assert "✎ draft" in desk.screen_text
        await desk.press("ctrl+right_square_bracket")
        await desk.until(lambda: desk.chat.composer.text == "unfinished")


async def test_what_cannot_be_asked_stays_in_the_prompt() -> None:
    async with sit(backend=FakeBackend(NO_MODEL)) as desk:
        await desk.until(lambda: desk.app.screen is not desk.chat)  # the load dialog welcomes
        await desk.press("escape")
        await desk.enter("hello")
        await desk.until(lambda: "/load demo" in desk.notices)
        assert desk.chat.composer.text == "hello"
        await desk.enter("/load demo")
        await desk.until(lambda: desk.backend.loads)
        assert desk.backend.loads[0].model == "demo"


async def test_the_context_meter_grows_with_the_reply() -> None:
    async with sit() as desk:
        request = await desk.ask("q")
        for _ in range(8):
            desk.backend.push(request, "x ")
        await desk.until(lambda: "x x x x x x x x" in desk.screen_text)
        desk.chat.tick()
        await desk.pilot.pause()
        assert " 40/4k " in desk.screen_text  # 32 of the prompt


async def test_what_a_dead_engine_says_is_why_nothing_can_be_asked() -> None:
    async with sit() as desk:
        desk.backend.tell(ModelState("dead", "demo", message="engine error: OSError; load it again"))
        await desk.until(lambda: desk.app.replies.model.status == "dead")
        desk.app._notifications.clear()
        await desk.enter("hello")
        await desk.until(lambda: desk.notices)
        assert desk.notices == "engine error: OSError; load it again"
        assert desk.chat.composer.text == "hello"


async def test_a_reply_that_ended_with_its_model_is_not_done() -> None:
    async with sit() as desk:
        request = await desk.ask("first")
        session = desk.chat.session
        desk.backend.push(request, "half")
        await desk.press("ctrl+n")
        await desk.until(lambda: desk.chat.session is not session)
        desk.backend.finish(request, "cancelled")  # as /unload does it
        await desk.until(lambda: not desk.app.replies.active)
        assert session.turns[-1].status == "interrupted"
        assert "✓" not in desk.screen_text and "■" in desk.screen_text


async def test_what_was_not_measured_is_not_zero() -> None:
    async with sit() as desk:
        await desk.ask("q")
        timings = Timings(queue_s=0.4, ttft_s=0.0, total_s=0.4, prefill_tps=0.0, decode_tps=0.0)
        desk.backend.timings = timings
        await desk.press("escape")  # while it is queued
        await desk.until(lambda: desk.chat.session.turns[-1].stats)
        desk.chat.show_lines()
        await desk.enter("/stats")
        await desk.until(lambda: desk.notices)
        assert "ttft n/a · 0 tok" in desk.screen_text and "0.00s" not in desk.notices
        assert "first token after n/a" in desk.notices and "prefill n/a, decode n/a" in desk.notices


async def test_numbers_of_many_sessions_stand_apart_from_their_titles() -> None:
    async with sit() as desk:
        desk.app.sessions.all += [ChatSession(100 + n, f"Tell me {n}") for n in range(11)]
        desk.chat.sessions_changed()
        await desk.pilot.pause()
        assert "10 Tell me 8" in desk.screen_text and "2  Tell me 0" in desk.screen_text


async def test_copy_is_refused_when_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 21."""
    written: list[str] = []
    monkeypatch.delenv("TMUX", raising=False)
    async with sit() as desk:
        await desk.answer("text\n\n```\ncode\n```")
        monkeypatch.setattr(desk.app._driver, "write", written.append)
        await desk.press("escape", "y", "i")
        await desk.enter("/copy code")
        await desk.until(lambda: len(written) == 2)
        assert written == ["\x1b]52;c;dGV4dAoKYGBgCmNvZGUKYGBg\a", "\x1b]52;c;Y29kZQ==\a"]
        desk.chat.session.turns[-1].text = "x" * 1_000_000
        await desk.enter("/copy")
        await desk.until(lambda: "the limit is 1 MB" in desk.notices)
        assert len(written) == 2


# --- the way out -----------------------------------------------------------------------------------------------


async def test_quit_asks_while_generating_and_keeps_the_text(tmp_path: Path) -> None:
    """Check 16."""
    path = tmp_path / "h.db"
    async with sit(history=path) as desk:
        request = await desk.ask("q")
        desk.backend.push(request, "half")
        await desk.until(lambda: "half" in desk.screen_text)
        await desk.press("ctrl+q")
        assert isinstance(desk.app.screen, Ask)
        await desk.press("escape")
        assert desk.app._leaving is None
        desk.chat.composer.text = "draft"
        await desk.press("ctrl+q", "s")
        await desk.until(lambda: desk.app._exit)
        assert desk.backend.cancelled == [request] and desk.backend.closed
    async with sit(history=path) as desk:
        await desk.press("ctrl+right_square_bracket")
        await desk.until(lambda: "half" in desk.screen_text)
        assert "interrupted" in desk.screen_text and desk.chat.composer.text == "draft"


async def test_ctrl_c_twice_quits_when_nothing_is_selected() -> None:
    async with sit() as desk:
        await desk.press("ctrl+c")
        await desk.until(lambda: "press ^c again" in desk.notices)
        assert desk.app._leaving is None
        await desk.press("ctrl+c")
        await desk.until(lambda: desk.app._exit)


async def test_foreign_history_ends_the_program_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "dir.db").mkdir()
    app = LmtopApp(AppOptions(backend=FakeBackend(), telemetry=FakeTelemetry(), history=tmp_path / "dir.db"))
    async with app.run_test() as pilot:
        await wait_until(pilot, lambda: app._exit)
    assert app.return_code == 4 and "is a directory" in str(app.failure)


async def test_bug_saves_and_ends(tmp_path: Path) -> None:
    """Reliability T14: no traceback, the conversation is kept."""
    with pytest.raises(ZeroDivisionError):
        async with sit(history=tmp_path / "h.db") as desk:
            request = await desk.ask("q")
            desk.backend.push(request, "half")
            await desk.until(lambda: "half" in desk.screen_text)
            desk.app.actions.stats_show = lambda argument: 1 / 0  # type: ignore[method-assign]
            await desk.enter("/stats")
            await desk.until(lambda: desk.app.failure)
            assert desk.app._exit_renderables == []
    async with sit(history=tmp_path / "h.db") as desk:
        await desk.press("ctrl+right_square_bracket")
        await desk.until(lambda: "half" in desk.screen_text)
        assert "interrupted" in desk.screen_text


async def test_low_bandwidth_slows_the_drain() -> None:
    async with sit() as desk:
        await desk.enter("/lowbw on")
        await desk.until(lambda: desk.app.wire.low)
        assert desk.app._bridge.interval == pytest.approx(1 / 6)
        assert desk.chat.transcript.jump_scroll
        await desk.enter("/lowbw auto")
        await desk.until(lambda: not desk.app.wire.low)
        assert desk.app._bridge.interval == pytest.approx(1 / 12)


async def test_ten_thousand_sessions_cost_what_is_in_view() -> None:
    """Reliability T21."""
    async with sit() as desk:
        desk.app.sessions.all += [ChatSession(10_000 + n, f"old {n}") for n in range(10_000)]
        await desk.chat.show(desk.app.sessions.all[7000])
        await desk.pilot.pause()
        assert "▸7001" in desk.screen_text and "sessions 10001" in desk.screen_text
        best = 1.0
        for _ in range(5):
            start = time.process_time()
            desk.chat._show_sessions()
            best = min(best, time.process_time() - start)
        assert best < 0.03
        await desk.press("f2", "k")
        assert desk.chat.session_list.cursor == desk.app.sessions.all[6999].id


@pytest.mark.parametrize("key", ["ctrl+g", "f1"])
async def test_escape_twice_closes_a_dialog_and_nothing_below_it(key: str) -> None:
    async with sit() as desk:
        await desk.press(key)
        await desk.until(lambda: isinstance(desk.app.screen, (HelpScreen, MenuScreen)))
        dialog = desk.app.screen
        dialog.dismiss()
        dialog.dismiss()  # the second escape of a slow line, while the first one's frame is still to come
        await desk.until(lambda: desk.app.screen is desk.chat)
        await desk.press("x")
        assert desk.chat.composer.text == "x"
