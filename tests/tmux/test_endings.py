"""However the program ends: what was said is kept, the terminal is left as it was found, and nothing stays behind."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.parrot import said
from support.terminal import SHELL, Tmux, alive, last_reply, needs_tmux, rows, until

pytestmark = needs_tmux

KILLED = ("child", "parent", "child", "child", "parent")
# set and reset forms of everything Textual switches on, except what no program can read back
MODES = (b"?1049", b"?1000", b"?1003", b"?1006", b"?1015", b"?1004", b"?2004")


class Desk:
    """A user who asks for the endless reply, in one home, again and again."""

    def __init__(self, home: Path, model: Path) -> None:
        self.tmux = Tmux(home)
        self.home = home
        self._model = str(model)

    def start(self, **env: str) -> float:
        """Run the program, unless it runs; seconds until it is ready."""
        if self.tmux.program():
            return 0.0
        self.tmux.raw.write_bytes(b"")
        return self.tmux.start("chat", self._model, LMTOP_TEST="1", LMTOP_STEP_MS="20", **env)

    def ask(self, question: str) -> None:
        """Ask, and wait until a good part of the reply is on the screen."""
        self.tmux.keys("C-n")
        self.tmux.see(r"new chat ─")
        self.tmux.enter(question)
        until(lambda: said(self.tmux.screen()) > 40, self.tmux.screen, 8.0)

    def left_clean(self) -> None:
        """The shell has its terminal back, and every mode that was set was reset after it."""
        until(lambda: self.tmux.modes() == SHELL, lambda: f"{self.tmux.modes()}\n{self.tmux.screen()}")
        written = self.tmux.raw.read_bytes()
        for mode in MODES:
            assert written.rfind(b"\x1b[" + mode + b"l") > written.rfind(b"\x1b[" + mode + b"h") >= 0, mode
        assert written.rfind(b"\x1b[?25h") > written.rfind(b"\x1b[?25l")
        assert written.count(b"\x1b[<u") >= len(re.findall(rb"\x1b\[>\d+u", written)) > 0  # kitty's stack
        self.tmux.enter("stty -a | grep -o ' echo ' | tr ' ' '<'")
        self.tmux.see(r"<echo<")  # no raw mode either


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, parrot: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("endings"), parrot)
    yield desk
    desk.tmux.close()


def shown_a_second_ago(desk: Desk) -> int:
    """Words that were on the screen, once they have been there for a second."""
    words, then = said(desk.tmux.screen()), time.monotonic()
    until(lambda: time.monotonic() >= then + 1.0, "a second")
    return words


@pytest.mark.parametrize(("number", "victim"), enumerate(KILLED), ids=str)
def test_killed_mid_answer_and_restarted(desk: Desk, number: int, victim: str) -> None:
    """Check 17, case T12; five rounds of it are a small L10."""
    desk.start()
    desk.ask(f"round {number}")
    words, processes = shown_a_second_ago(desk), desk.tmux.program()
    processes[["parent", "child"].index(victim)].kill()
    until(lambda: not any(map(alive, processes)), "no orphan")
    if victim == "parent":
        desk.tmux.keys("Enter")  # the shell was faster than the child: its prompt was on the other screen
    assert desk.tmux.ended() == 137
    desk.left_clean()
    assert said(last_reply(desk.home)["text"]) >= words > 0
    desk.start()
    desk.tmux.keys("C-]")
    assert f"round {number}" in desk.tmux.see("interrupted")
    asked = rows(desk.home, "SELECT text FROM messages WHERE role = 'user' ORDER BY id")
    assert [row["text"] for row in asked] == [f"round {n}" for n in range(number + 1)]
    statuses = rows(desk.home, "SELECT DISTINCT status FROM messages WHERE role = 'assistant'")
    assert statuses == [{"status": "interrupted"}]
    assert rows(desk.home, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@pytest.mark.parametrize(
    ("number", "target", "code"),
    [
        (signal.SIGHUP, 0, 129),
        (signal.SIGTERM, 0, 143),
        (signal.SIGTERM, 1, 143),
        (signal.SIGINT, 0, 130),
    ],
    ids=["HUP", "TERM", "TERM-child", "INT-twice"],
)
def test_signal_saves_restores_and_ends_in_two_seconds(
    desk: Desk, number: signal.Signals, target: int, code: int
) -> None:
    """Checks 33 and 34, case T10."""
    desk.start()
    desk.ask(f"what of {number.name}?")
    words, processes = said(desk.tmux.screen()), desk.tmux.program()
    sent = time.monotonic()
    processes[target].send_signal(number)
    if number is signal.SIGINT:
        processes[target].send_signal(number)
    assert desk.tmux.ended() == code
    assert time.monotonic() - sent <= 2.0
    assert not any(map(alive, processes))
    desk.left_clean()
    reply = last_reply(desk.home)
    assert said(reply["text"]) >= words and reply["status"] == "interrupted"


def test_quitting_asks_and_keeps_the_reply(desk: Desk) -> None:
    """Checks 16 and 34: ctrl+q while generating."""
    desk.start()
    desk.ask("shall we stop?")
    words = said(desk.tmux.screen())
    desk.tmux.keys("C-q")
    desk.tmux.see("A reply is being generated")
    desk.tmux.keys("s")
    assert desk.tmux.ended() == 0
    desk.left_clean()
    assert said(last_reply(desk.home)["text"]) >= words


def test_terminal_gone_saves_and_ends_in_two_seconds(desk: Desk) -> None:
    """Check 33, case T11; the last of this file, since it ends the tmux server."""
    desk.start()
    desk.ask("is the line cut?")
    words, processes = said(desk.tmux.screen()), desk.tmux.program()
    desk.tmux("kill-server")
    until(lambda: not any(map(alive, processes)), "both processes gone", 2.0)
    reply = last_reply(desk.home)
    assert said(reply["text"]) >= words and reply["status"] == "interrupted"
