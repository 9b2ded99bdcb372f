"""The transcript widget: what is shown, where it stays, what it costs."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from itertools import pairwise

import pytest
from rich.segment import Segment
from rich.style import Style
from support.markdown_docs import document
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.pilot import Pilot
from textual.selection import Selection
from textual.strip import Strip

from lmtop.tui.render.entry import Entry, difference
from lmtop.tui.render.heights import Heights
from lmtop.tui.render.lines import Line
from lmtop.tui.widgets.transcript import Transcript, mark

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


class Host(App[None]):
    def __init__(self, ascii: bool = False) -> None:
        super().__init__()
        self.ascii = ascii

    def compose(self) -> ComposeResult:
        yield Transcript(id="t")

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)


def reply(number: int, text: str, status: str = "complete", **more: str) -> Entry:
    return Entry(number, "assistant", "demo", "18:40", text, status, **more)  # type: ignore[arg-type]


def asked(number: int, text: str) -> Entry:
    return Entry(number, "user", "you", "18:40", text)


def talk(messages: int) -> list[Entry]:
    words = "Decode is bound by **bytes** moved per token, `twice`. " * 6
    return [
        asked(n, f"question {n}?") if n % 2 == 0 else reply(n, f"answer {n}: {words}")
        for n in range(messages)
    ]


def shown(transcript: Transcript) -> list[str]:
    return [transcript.render_line(y).text.rstrip() for y in range(transcript.container_size.height)]


def top(transcript: Transcript) -> tuple[int, int]:
    index, row = transcript._heights.find(round(transcript.scroll_y))
    return transcript.entries[index].id, row


async def settled(pilot: Pilot[None], transcript: Transcript) -> None:
    deadline = time.monotonic() + 20
    while transcript._slices is not None:
        assert time.monotonic() < deadline
        await pilot.pause(0.01)
    await pilot.pause()


async def test_a_message_looks_as_designed() -> None:
    async with Host().run_test(size=(60, 15)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(
            [
                asked(1, "why *so*?\n  keep"),
                reply(
                    2,
                    "In **two** parts:\n1. a\n```c\nint x;\n```",
                    stats="ttft 0.21s · 71 t/s",
                    variant="‹2/3›",
                ),
                reply(3, "half", "stopped"),
            ]
        )
        await pilot.pause()
        assert shown(transcript) == [
            " you 18:40",
            "   why *so*?",
            "     keep",
            "",
            " demo 18:40 ‹2/3›                      ttft 0.21s · 71 t/s",
            "   In two parts:",
            "    1. a",
            "   ┌ c ──────────────────────────────────────────────────┐",
            "   │ int x;                                              │",
            "   └─────────────────────────────────────────────────────┘",
            "",
            " demo 18:40",
            "   half",
            "   ■ stopped",
            "",
        ]


async def test_ascii_and_every_theme_and_no_colour_keep_the_text() -> None:
    async with Host(ascii=True).run_test(size=(60, 14)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(
            [reply(1, "- a\n> b\n```c\nx\n```", "failed", stats="device lost"), reply(2, "", "streaming")]
        )
        await pilot.pause()
        first = shown(transcript)
        assert all(line.isascii() for line in first)
        assert "   x failed: device lost" in first
        before = {segment.style for y in range(8) for segment in transcript.render_line(y)}
        pilot.app.theme = "textual-light"
        await pilot.pause()
        assert shown(transcript) == first
        assert {segment.style for y in range(8) for segment in transcript.render_line(y)} != before


async def test_hostile_text_draws_marks_and_keeps_the_columns() -> None:
    evil = (
        "\x1b]52;c;aGk=\x07 [red]x[/] [@click=app.quit]y[/] \x9b2J \u202eabc\u2066 \U000e0041 e"
        + "\u0301" * 500
    )
    entries = [
        Entry(1, "user", "you\x1b[2J", "18:40\x07", evil),
        reply(
            2,
            f"{evil}\n```c{evil}\n{evil}\n```\n| a | {evil} |\n|-|-|\n| مرحبا | 🇩🇪 |",
            stats=evil,
            variant="\x1b",
        ),
        reply(3, evil, "failed", stats=evil),
        reply(4, "", "streaming"),
    ]
    async with Host().run_test(size=(70, 90)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(entries)
        transcript.set_waiting(4, evil)
        await pilot.pause()
        for y in range(90):
            strip = transcript.render_line(y)
            assert not CONTROL.search(strip.text)
            assert strip.cell_length == 69
        text = "\n".join(shown(transcript))
        for part in ("␛]52;c;aGk=␇", "[red]x[/]", "[@click=app.quit]y[/]", "<U+202E>abc"):
            assert part in text
        frame = [line for line in shown(transcript) if line.startswith(("   ┌", "   └", "   │"))]
        assert len(frame) > 3
        assert {
            transcript.render_line(y).crop(67, 68).text for y in range(90) if shown(transcript)[y] in frame
        } <= set("┐│┘")


async def test_streaming_equals_the_finished_message() -> None:
    async with Host().run_test(size=(80, 60)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        for seed in (3, 5, 8, 13):
            text = document(seed).replace("\r\n", "\n")
            transcript.set_entries([asked(0, "q")])
            transcript.begin(reply(1, "", "streaming"))
            for start in range(0, len(text), 7):
                transcript.stream(1, text[start : start + 7])
            transcript.end(1, status="complete", stats="done")
            await pilot.pause()
            streamed = [transcript.row_at(y) for y in range(transcript.total_rows)]
            entry = transcript.entry(1)
            assert entry is not None and entry.text == text
            transcript.set_entries([asked(0, "q"), entry])
            await pilot.pause()
            assert [transcript.row_at(y) for y in range(transcript.total_rows)] == streamed


async def test_only_changed_rows_are_painted() -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries([asked(0, "q")])
        transcript.begin(reply(1, "", "streaming"))
        await pilot.pause()
        painted: list[int] = []
        original = transcript.render_line
        transcript.render_line = lambda y: (painted.append(y), original(y))[1]  # type: ignore[method-assign]
        transcript.stream(1, "Hello")
        await pilot.pause()
        transcript.stream(1, " there")
        await pilot.pause()
        assert painted == [4, 4]


async def test_waiting_line_goes_when_text_comes() -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.begin(reply(1, "", "streaming"))
        transcript.set_waiting(1, "prefill 43 %")
        await pilot.pause()
        assert shown(transcript)[1] == "   prefill 43 %"
        transcript.stream(1, "Hi")
        assert shown(transcript)[1] == "   Hi▌"
        transcript.end(1, status="complete", stats="")
        assert shown(transcript)[1] == "   Hi"


async def test_scrolled_up_stays_while_fragments_arrive() -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(talk(40))
        transcript.begin(reply(99, "", "streaming"))
        await settled(pilot, transcript)
        transcript.action_page_up()
        await pilot.pause()
        assert not transcript.follow
        place, rows = transcript.scroll_y, shown(transcript)
        for n in range(100):
            transcript.stream(99, f"fragment {n} of many words. " + "\n\n" * (n % 5 == 0))
            if n % 10 == 0:
                await pilot.pause()
            assert transcript.scroll_y == place
        assert shown(transcript) == rows
        assert transcript.new_below > 20
        transcript.action_end()
        await pilot.pause()
        assert transcript.follow and transcript.new_below == 0
        assert "fragment 99" in "\n".join(shown(transcript))
        transcript.stream(99, "\n\nlast words\n\n" * 20)
        await pilot.pause()
        assert any(line.endswith(("last words▌", "last words")) for line in shown(transcript))


@pytest.mark.parametrize(("slow", "moves"), [(False, 14), (True, 8)])
async def test_following_jumps_instead_of_creeping(slow: bool, moves: int) -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.jump_scroll = slow
        transcript.begin(reply(1, "", "streaming"))
        places = []
        for n in range(80):
            transcript.stream(1, f"- item {n}\n")
            places.append(transcript.scroll_y)
            assert any(f"item {n}" in line for line in shown(transcript))
        assert sum(a != b for a, b in pairwise(places)) <= moves


async def test_thousand_messages_open_fast_and_the_scrollbar_is_right() -> None:
    async with Host().run_test(size=(120, 40)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        entries = talk(1000)
        begin = time.perf_counter()
        transcript.set_entries(entries)
        await pilot.pause()
        assert time.perf_counter() - begin < 0.5
        assert "answer 999" in "\n".join(shown(transcript))
        assert len(pilot.app.query("*")) <= 150
        await settled(pilot, transcript)
        exact = sum(transcript._view(i).height for i in range(1000))
        assert transcript.total_rows == exact == transcript.virtual_size.height
        assert "answer 999" in "\n".join(shown(transcript))
        begin = time.perf_counter()
        transcript.action_home()
        await pilot.pause()
        assert time.perf_counter() - begin < 0.5
        assert shown(transcript)[1] == "   question 0?"


async def test_scrolling_into_unmeasured_messages_never_jumps() -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries([reply(n, document(n % 50) or "x") for n in range(400)])
        if transcript._slices is not None:  # no measuring ahead: heights are estimates
            transcript._slices.stop()
        await pilot.pause()
        for _ in range(60):
            before = shown(transcript)
            transcript.action_line_up()
            assert shown(transcript)[1:] == before[:-1]


@pytest.mark.parametrize("streaming", [False, True])
async def test_resize_keeps_the_message(streaming: bool) -> None:
    async with Host().run_test(size=(200, 50)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(talk(200))
        if streaming:
            transcript.begin(reply(999, "", "streaming"))
        await settled(pilot, transcript)
        transcript.select(101)
        transcript.scroll_to(y=transcript._heights.start(101) + 1, animate=False)
        await pilot.pause()
        assert top(transcript) == (101, 1)
        for size in ((80, 24), (200, 60), (80, 24), (200, 50)):
            if streaming:
                transcript.stream(999, "more words " * 30)
            await pilot.resize_terminal(*size)
            await settled(pilot, transcript)
            assert top(transcript)[0] == 101
            assert transcript.cursor == 101
        assert top(transcript) == (101, 1)


async def test_resize_storm_while_streaming() -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(talk(20))
        transcript.begin(reply(99, "", "streaming"))
        text = document(7) * 3
        for n in range(50):
            await pilot.resize_terminal(*[(1, 1), (2, 1), (500, 200), (80, 24), (3, 9)][n % 5])
            transcript.stream(99, text[n * 20 : n * 20 + 20])
        await pilot.resize_terminal(80, 24)
        await settled(pilot, transcript)
        transcript.end(99, status="stopped", stats="")
        await pilot.pause()
        assert transcript.follow
        assert any("stopped" in line for line in shown(transcript))
        entry = transcript.entry(99)
        assert entry is not None and entry.text == text[:1000]


async def test_cursor_code_blocks_and_copy() -> None:
    async with Host().run_test(size=(80, 12)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(
            [*talk(10), reply(50, "a\n```py\nx = 1\n```\n" + "b\n\n" * 20 + "```\ny\n```\n"), *talk(10)[:1]]
        )
        await settled(pilot, transcript)
        assert transcript.selected is None
        assert transcript.code_blocks(50) == ["x = 1", "y"]
        transcript.action_next_block()
        assert (transcript.cursor, transcript.block, transcript.selected_text()) == (10, 0, "x = 1")
        assert any(
            segment.text.startswith("┌") and segment.style and segment.style.bold
            for y in range(12)
            for segment in transcript.render_line(y)
        )
        transcript.action_next_block()
        assert transcript.selected_text() == "y"
        assert any(line.strip("▌ ").startswith("│ y") for line in shown(transcript))
        transcript.action_cursor_prev()
        assert transcript.selected is not None and transcript.selected.id == 9
        assert any(line.startswith("▌demo") for line in shown(transcript))
        assert transcript.selected_text() == transcript.entries[9].text


async def test_find_marks_and_walks() -> None:
    entries = talk(300)
    entries[10] = reply(10, "the Needle is **here**\n\nand another needle")
    entries[200] = asked(200, "NEEDLE")
    async with Host().run_test(size=(80, 20)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(entries)
        await pilot.pause()
        assert transcript.find("needle") == 2
        places = []
        for _ in range(4):
            assert any("needle" in line.casefold() for line in shown(transcript))
            places.append((transcript.cursor, transcript._hit))
            transcript.action_find_next()
        assert [index for index, _ in places] == [10, 10, 200, 10]
        assert places[0] == places[3] != places[1]
        transcript.action_find_previous()
        transcript.action_find_previous()
        assert transcript.cursor == 200
        assert any(
            s.text == "NEEDLE" and s.style and s.style.reverse
            for y in range(20)
            for s in transcript.render_line(y)
        )
        assert transcript.find("nowhere") == 0
        transcript.find("")
        transcript.action_find_next()


async def test_update_drop_and_unknown_ids() -> None:
    async with Host().run_test(size=(80, 20)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(talk(6))
        await settled(pilot, transcript)
        transcript.update(reply(3, "short"))
        assert any(line == "   short" for line in shown(transcript))
        transcript.drop(5)
        assert not any("answer 5" in line for line in shown(transcript))
        transcript.stream(77, "x")
        transcript.end(77)
        transcript.drop(77)
        transcript.set_waiting(77, "x")
        for entry in list(transcript.entries):
            transcript.drop(entry.id)
        assert "Ask something." in "".join(shown(transcript))  # how to begin
        transcript.begin(asked(1, "again"))
        assert shown(transcript)[1] == "   again"


async def test_huge_message_is_laid_out_in_slices() -> None:
    text = "word " * 200_000
    async with Host().run_test(size=(80, 20)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        ticks = [time.process_time()]
        transcript.set_entries([reply(1, text)])
        while transcript._slices is not None:
            await asyncio.sleep(0)
            ticks.append(time.process_time())
        slices = [b - a for a, b in pairwise(ticks)]
        assert len(slices) > 8 and max(slices) < max(
            0.2, sum(slices) / 4
        )  # a part of the work, on any machine
        await settled(pilot, transcript)
        assert transcript.total_rows > 12_000
        assert transcript.follow and shown(transcript)[-2].strip().startswith("word")


async def test_mouse_selection_gives_the_text() -> None:
    async with Host().run_test(size=(60, 14)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries([asked(1, "one two\nthree")])
        await pilot.pause()
        found = transcript.get_selection(Selection.from_offsets(Offset(7, 1), Offset(6, 2)))
        assert found == ("two\n   thr", "\n")


async def test_streaming_costs_little_and_keys_stay_quick() -> None:
    async with Host().run_test(size=(120, 40)) as pilot:
        transcript = pilot.app.query_one(Transcript)
        transcript.set_entries(talk(1000))
        await settled(pilot, transcript)
        transcript.begin(reply(5000, "", "streaming"))
        text = "".join(document(seed).replace("\r", "") for seed in range(12))[:12_000]
        times = []
        for start in range(0, len(text), 5):
            begin = time.process_time()
            transcript.stream(5000, text[start : start + 5])
            times.append(time.process_time() - begin)
        assert statistics.median(times) < 0.0015
        assert sorted(times)[-3] < 0.030


def cells(strip: Strip) -> list[tuple[str, bool]]:
    return [(char, bool(char != " " and style and style.italic)) for text, style, _ in strip for char in text]


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_painting_the_difference_gives_the_new_row(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        rows = []
        for _ in range(2):
            parts = [
                (rng.choice(["a", "ab", "中", "e\u0301", "a b", ""]), rng.choice(["text", "em"]))
                for _ in range(4)
            ]
            rows.append(Line(tuple(parts[: rng.randrange(5)])))
        old, new = rows
        start, end = difference(old, new)
        size = 20
        before, after = (
            Strip([Segment(t, Style(italic=s == "em")) for t, s in line.segments]) for line in rows
        )
        before, after = before.adjust_cell_length(size), after.adjust_cell_length(size)
        painted = Strip.join([before.crop(0, start), after.crop(start, end), before.crop(end, size)])
        assert cells(painted) == cells(after)


def test_heights() -> None:
    heights = Heights([3, 1, 4])
    assert (heights.total, heights.start(2), heights.find(3), heights.find(99)) == (8, 4, (1, 0), (2, 3))
    heights[1] = 5
    heights.append(2)
    assert (heights.total, heights.find(8), heights.find(12)) == (14, (2, 0), (3, 0))
    heights.pop(0)
    assert (heights.total, heights.find(0), heights.find(5)) == (11, (0, 0), (1, 0))


def test_mark_splits_segments() -> None:
    assert mark([("ab", "text"), ("cABc", "strong")], "bc") == [
        ("a", "text"),
        ("b", "found"),
        ("c", "found"),
        ("A", "strong"),
        ("Bc", "found"),
    ]
