"""The prompt: keys, paste, history, command completion, cursor cells."""

from __future__ import annotations

import time

import pytest
from rich.cells import cell_len
from support.waiting import until
from textual import events
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from lmtop.tui.widgets.composer import LIMIT, Composer


class Host(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def compose(self) -> ComposeResult:
        yield Composer(placeholder="ask", id="c")

    def on_composer_submitted(self, event: Composer.Submitted) -> None:
        self.seen.append(f"sent {event.text}")

    def on_composer_escaped(self) -> None:
        self.seen.append("escaped")

    def on_composer_slash_changed(self, event: Composer.SlashChanged) -> None:
        self.seen.append(f"slash {event.text}")


def composer(pilot: Pilot[None]) -> Composer:
    return pilot.app.query_one(Composer)


async def paste(pilot: Pilot[None], text: str) -> None:
    composer(pilot).post_message(events.Paste(text))
    await pilot.pause()


async def test_enter_sends_and_newline_keys_do_not() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press("enter", *"one", "ctrl+j", *"two", "shift+enter", *"three", "alt+enter", *"four")
        assert composer(pilot).text == "one\ntwo\nthree\nfour"
        await pilot.press("enter", "enter")
        assert app.seen == ["sent one\ntwo\nthree\nfour"]
        assert composer(pilot).text == ""
        await pilot.press("escape")
        assert app.seen[-1] == "escaped"


async def test_paste_never_sends_and_shows_control_characters() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await paste(pilot, "a\r\nb\rc\n\x1b[31m\x07\u202e[red]x[/]")
        assert composer(pilot).text == "a\nb\nc\n␛[31m␇<U+202E>[red]x[/]"
        assert app.seen == []
        composer(pilot).text = "\x1b]0;x\x07"
        assert composer(pilot).text == "␛]0;x␇"


async def test_large_paste_is_shown_and_a_larger_one_refused_whole() -> None:
    app = Host()
    async with app.run_test() as pilot:
        begin = time.perf_counter()
        await paste(pilot, "line of text\n" * (LIMIT // 13))
        assert time.perf_counter() - begin < 3
        kept = composer(pilot).text
        await paste(pilot, "x" * 1_000_000)
        assert composer(pilot).text == kept
        await until(lambda: app._notifications)
        assert "262,144" in next(iter(app._notifications)).message
        await pilot.press("enter")
        assert app.seen == [f"sent {kept}"]


async def test_up_and_down_at_the_edges_walk_through_earlier_prompts() -> None:
    app = Host()
    async with app.run_test(size=(20, 12)) as pilot:
        c = composer(pilot)
        c.prompts = ["first", "second\nwith two rows"]
        await pilot.press(*"draft", "up")
        assert c.text == "second\nwith two rows"
        await pilot.press("up")
        assert c.text == "second\nwith two rows"  # the cursor was in its last row
        await pilot.press("up")
        assert c.text == "first"
        await pilot.press("up")
        assert c.text == "first"
        await pilot.press("down", "down")
        assert c.text == "draft"
        await pilot.press("down", "enter")
        assert app.seen == ["sent draft"]
        assert c.prompts[-1] == "draft"


async def test_slash_is_told_until_it_is_gone() -> None:
    app = Host()
    async with app.run_test() as pilot:
        await pilot.press("a", "backspace", "/", "h")
        composer(pilot).complete("/help ")
        await pilot.pause()
        assert composer(pilot).cursor_location == (0, 6)
        composer(pilot).text = "x"
        await pilot.press("y")
        assert app.seen == ["slash /", "slash /h", "slash /help ", "slash "]


async def test_grows_from_three_to_ten_rows() -> None:
    async with Host().run_test(size=(40, 24)) as pilot:
        assert composer(pilot).size.height == 3
        await paste(pilot, "\n" * 5)
        assert composer(pilot).size.height == 6
        await paste(pilot, "\n" * 50)
        assert composer(pilot).size.height == 10


@pytest.mark.parametrize(
    "text", ["abc", "中文测试", "a中b文", "e\u0301tude", "日本語 text", "👍🏽", "👩\u200d💻x"]
)
async def test_cursor_stands_after_the_cells_of_the_text(text: str) -> None:
    async with Host().run_test(size=(40, 12)) as pilot:
        c = composer(pilot)
        start = c.cursor_screen_offset.x
        await paste(pilot, text)
        assert c.cursor_screen_offset.x - start == cell_len(text)
        assert c.text == text
