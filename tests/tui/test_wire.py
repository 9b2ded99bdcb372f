from __future__ import annotations

import itertools
import queue
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate
from textual.drivers._writer_thread import MAX_QUEUED_WRITES
from textual.strip import Strip

from lmtop.tui import paint
from lmtop.tui.wire import TerminalDriver, Wire


class FakeThread:
    """A writer whose terminal reads only when the test says so."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_WRITES)

    def is_alive(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self._queue.put_nowait(text)  # raises where the real one would block

    def read(self) -> str:
        return "".join(str(self._queue.get()) for _ in range(self._queue.qsize()))


def driver(wire: Wire) -> tuple[TerminalDriver, FakeThread]:
    made = TerminalDriver.__new__(TerminalDriver)
    thread = FakeThread()
    made.wire, made._writer_thread, made._open, made._lost = wire, thread, True, False  # type: ignore[assignment]
    made._app = SimpleNamespace(call_later=lambda *args, **kwargs: None)  # type: ignore[assignment]
    return made, thread


async def test_stalled_terminal_never_blocks_and_gets_a_full_repaint() -> None:
    """Check 30, without a terminal."""
    wire = Wire()
    made, thread = driver(wire)
    repaints: list[Any] = []
    made._app = SimpleNamespace(  # type: ignore[assignment]
        call_later=lambda *args, **kwargs: repaints.append(kwargs), refresh=None
    )
    for n in range(100):
        made.write(f"{n}\n")
    assert wire.low and repaints == []
    sent = thread.read()
    assert sent.startswith("0\n1\n") and sent.count("\n") < MAX_QUEUED_WRITES
    made._poll()
    assert repaints == [{"layout": True}]
    made.write("again")
    assert thread.read() == "again"


def test_ascii_run_sends_only_ascii() -> None:
    """Check 31."""
    made, thread = driver(Wire(ascii=True))
    made.write("\x1b[2;3H┌─ 你好 ─┐ naïve ███ ✓")
    sent = thread.read()
    assert sent.isascii() and "+- ???? -+ na?ve ### v" in sent
    assert made.wire.total == len(sent)


def test_low_bandwidth_comes_with_congestion_and_goes_after_a_while() -> None:
    now = 0.0
    wire = Wire(clock=lambda: now)
    flips: list[bool] = []
    wire.changed = lambda: flips.append(wire.low)
    wire.sent(4000)
    assert not wire.low and wire.rate() == 2000.0
    wire.sent(100, congested=True)
    assert wire.low
    now = 9.0
    wire.sent(100)
    assert wire.low and wire.rate() == 50.0
    now = 11.0
    wire.sent(100)
    assert flips == [True, False] and wire.total == 4300
    wire.set_mode("on")
    wire.set_mode("off")
    wire.sent(1, congested=True)
    assert flips == [True, False, True, False]


# --- painting --------------------------------------------------------------------------------------------------


def styles() -> list[Style]:
    """Fresh ones: rich keeps a style's codes for the first colour system that it meets."""
    return [
        Style(),
        Style(color="red"),
        Style(color="#102030", bgcolor="blue"),
        Style(bold=True, color="red"),
        Style(bold=True, italic=True, bgcolor="#445566"),
        Style(reverse=True),
    ]


Cell = tuple[str, str]


class Screen:
    """Understands what a painter writes: cursor moves, SGR, text."""

    def __init__(self, width: int, height: int) -> None:
        self.cells: list[list[Cell]] = [[(" ", "")] * width for _ in range(height)]
        self.written = 0

    def feed(self, data: str) -> None:
        x = y = 0
        state: dict[str, str] = {}
        for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[^\x1b]", data):
            if part.endswith("H") and part[0] == "\x1b":
                y, x = (int(n) - 1 for n in part[2:-1].split(";"))
            elif part.endswith("m") and part[0] == "\x1b":
                self._style(state, part[2:-1] or "0")
            elif part == "\n":
                y += 1
            else:
                self.cells[y][x] = (part, ",".join(f"{k}={v}" for k, v in sorted(state.items())))
                self.written += 1
                x += 1

    @staticmethod
    def _style(state: dict[str, str], codes: str) -> None:
        numbers = codes.split(";")
        while numbers:
            code = int(numbers.pop(0))
            if code == 0:
                state.clear()
            elif code in (38, 48):
                take = 4 if numbers[0] == "2" else 2
                state["fg" if code == 38 else "bg"] = ";".join(numbers[:take])
                del numbers[:take]
            elif code in (39, 49):
                state.pop("fg" if code == 39 else "bg", None)
            elif 30 <= code <= 37 or 90 <= code <= 97:
                state["fg"] = str(code)
            elif 40 <= code <= 47 or 100 <= code <= 107:
                state["bg"] = str(code)
            else:
                state[f"a{code}"] = "on"


def random_update(chance: random.Random, looks: list[Style], width: int = 40, height: int = 6) -> ChopsUpdate:
    chops: list[dict[int, Strip | None]] = []
    ends: list[list[int]] = []
    for _ in range(height):
        cuts = [0, *sorted(chance.sample(range(1, width), 3)), width]
        row: dict[int, Strip | None] = {}
        for left, right in itertools.pairwise(cuts):
            text = [Segment(chance.choice("abcxyz"), chance.choice(looks)) for _ in range(right - left)]
            row[left] = Strip(text, right - left)
        chops.append(row)
        ends.append(cuts[1:])
    spans = []
    for y in sorted(chance.sample(range(height), 3)):
        left = chance.randrange(width - 1)
        spans.append((y, left, chance.randrange(left + 1, width + 1)))
    return ChopsUpdate(chops, spans, ends)


@pytest.mark.parametrize("system", ["truecolor", "256", "standard", None])
def test_painter_shows_what_textual_shows_with_fewer_bytes(system: Any) -> None:
    console = Console(color_system=system, force_terminal=True, legacy_windows=False)
    chance, looks = random.Random(28), styles()
    paint.sgr.cache_clear()
    for _ in range(200):
        update = random_update(chance, looks)
        theirs, ours = Screen(40, 6), Screen(40, 6)
        before = ChopsUpdate.render_segments(update, console)
        after = paint.render_segments(update, console)
        theirs.feed(before)
        ours.feed(after)
        for y, left, right in update.spans:
            assert ours.cells[y][left:right] == theirs.cells[y][left:right]
        assert ours.written == sum(right - left for _, left, right in update.spans)
        assert len(after) <= len(before)
