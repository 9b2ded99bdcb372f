"""Check 23: each key of the command table, pressed in tmux, does what the table says.

One program serves the whole file, so its tests are one story and run in order. `Story.press` insists that the effect
was not there before the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from support.parrot import prose, write_parrot
from support.terminal import Tmux, needs_tmux, rows, until

from lmtop.tui.commands import COMMANDS

pytestmark = needs_tmux

TMUX_NAMES = {
    "enter": "Enter", "escape": "Escape", "tab": "Tab", "up": "Up", "down": "Down", "pageup": "PPage",
    "pagedown": "NPage", "home": "Home", "end": "End", "slash": "/", "ctrl+right_square_bracket": "C-]",
    "left_square_bracket": "[", "right_square_bracket": "]", "less_than_sign": "<", "greater_than_sign": ">",
}  # fmt: skip
BYTES = {"shift+enter": "\x1b[13;2u"}  # as terminals with the kitty protocol send it; tmux by itself does not
DOCUMENTED = {(command.where, key) for command in COMMANDS for key in command.keys}


def page() -> str:
    """Sixty numbered lines, three needles, two code blocks."""
    parts = []
    for n in range(1, 61):
        parts.append(f"line {n:02d} of the long page.{f' Here is needle {n}.' if n in (5, 30, 55) else ''}")
        if n in (20, 40):
            parts.append(f"```\nprint({n})\n```")
    return "\n\n".join(parts) + "\n"


class Story:
    def __init__(self, tmux: Tmux) -> None:
        self.tmux = tmux
        self.pressed: set[tuple[str, str]] = set()

    def press(self, where: str, key: str, appears: str = "", vanishes: str = "") -> str:
        """Press a key whose effect is that a pattern appears or vanishes; returns the screen."""
        before = self.tmux.screen()
        assert not appears or not re.search(appears, before), f"{appears!r} before {key}:\n{before}"
        assert not vanishes or re.search(vanishes, before), f"no {vanishes!r} before {key}:\n{before}"
        self.send(where, key)
        return self.tmux.see(appears) if appears else self.tmux.lose(vanishes)

    def moves(self, where: str, key: str, look: Callable[[], int], step: int) -> None:
        """Press a key that moves what `look` measures: to `step` more, or at least some way for +-100."""
        before = look()
        self.send(where, key)
        far = abs(step) == 100

        def moved() -> bool:
            way = look() - before
            return way * step > 0 if far else way == step

        until(moved, lambda: f"{key}: {before} to {look()}, expected {step}\n{self.tmux.screen()}")

    def send(self, where: str, key: str) -> None:
        self.pressed.add((where, key))
        if key in BYTES:
            self.tmux.type(BYTES[key])
        else:
            self.tmux.keys(
                TMUX_NAMES.get(key) or key.replace("ctrl+", "C-").replace("f", "F", key[1:].isdigit())
            )

    def row(self) -> int:
        """How far the transcript is scrolled: the number of the line in its first row that has one, twice, less
        how far down that is."""
        for at, line in enumerate(self.tmux.screen().splitlines()):
            if found := re.search(r"line (\d\d) of", line):
                return 2 * int(found[1]) - at
        return 0


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("keys")
    model = write_parrot(home / "model", {"page": page(), "endless": prose(900) + "\n\n"}, ("endless",))
    editor = home / "editor"
    editor.write_text("#!/bin/sh\nprintf ' and edited' >> \"$1\"\n")
    editor.chmod(0o755)
    with closing(Tmux(home, 120, 34, EDITOR=str(editor))) as tmux:
        tmux.start("chat", str(model), LMTOP_TEST="1", LMTOP_STEP_MS="2")
        yield Story(tmux)


def test_no_key_is_the_tmux_prefix() -> None:
    assert not any(key in ("ctrl+b", "ctrl+a") for _, key in DOCUMENTED)


def test_prompt_keys(story: Story) -> None:
    """Checks 23 and 24."""
    tmux = story.tmux
    tmux.type("a page")
    story.press("prompt", "enter", appears="line 60 of")
    story.press("prompt", "up", appears=r"│[❯ ]*a page +│\n│ +│")
    story.press("prompt", "down", vanishes=r"│[❯ ]*a page +│\n│ +│")
    tmux.keys("C-n")
    tmux.see("─ new chat ─")
    tmux.type("one")
    tmux.see("│[❯ ]*one ")
    story.send("prompt", "ctrl+j")
    tmux.type("two")
    tmux.see(r"│[❯ ]*one +│\n│ *two ")
    story.send("prompt", "shift+enter")
    tmux.type("three")
    tmux.see(r"│[❯ ]*one +│\n│ *two +│\n│ *three ")
    tmux.keys("M-Enter")  # in tmux the same as enter
    asked = "SELECT 1 FROM messages WHERE text = 'one\ntwo\nthree'"
    until(lambda: rows(tmux.home, asked), "the three lines in the history")
    tmux.see("esc stop")
    tmux.keys("Escape")
    tmux.see("stopped")
    tmux.enter("/delete")
    tmux.see("Delete 'one")
    tmux.keys("d")
    tmux.see("─ a page ─")
    tmux.type("/reg")
    story.press("prompt", "tab", appears="│[❯ ]*/regen ")
    tmux.keys("C-u")
    story.press("prompt", "escape", appears="y copy")


def test_transcript_keys(story: Story) -> None:
    tmux, here = story.tmux, "transcript"
    story.press(here, "g", appears="line 01 of")
    story.press(here, "G", appears="line 60 of")
    story.press(here, "home", appears="line 01 of")
    story.press(here, "end", appears="line 60 of")
    for key in ("k", "up"):
        story.moves(
            here, key, story.row, -100 if key == "k" else -1
        )  # the first leaves the space below the end
    for key in ("j", "down"):
        story.moves(here, key, story.row, 1)
    story.moves(here, "ctrl+u", story.row, -100)
    story.moves(here, "pageup", story.row, -100)
    story.moves(here, "ctrl+d", story.row, 100)
    story.moves(here, "pagedown", story.row, 100)
    story.press(here, "left_square_bracket", appears="▌model ")
    tmux.keys("[")
    tmux.see("▌you ")
    story.press(here, "right_square_bracket", appears="▌model ")
    story.press(here, "tab", appears=r"print\(20\)")
    story.press(here, "y", appears="copied 9 characters")
    assert tmux("show-buffer") == "print(20)"
    story.press(here, "Y", appears=rf"copied {len(page())} characters")
    assert tmux("show-buffer").strip() == page().strip()
    story.press(here, "slash", appears="find in this session")
    tmux.keys(*"needle", "Enter")  # in one packet, as a slow line delivers them
    until(
        lambda: re.search(r"is \x1b\[[\d;:]+mneedle", tmux("capture-pane", "-p", "-e")),
        lambda: tmux("capture-pane", "-p", "-e"),
    )
    story.press(here, "n", appears="needle 55")
    story.press(here, "N", appears="needle 30")
    story.press(here, "r", appears=r"2/2")
    tmux.see("line 60 of")
    tmux.lose("esc stop")
    story.press(here, "less_than_sign", appears="1/2")
    story.press(here, "greater_than_sign", appears="2/2")
    story.press(here, "i", vanishes="y copy")
    tmux.keys("Escape")
    tmux.see("y copy")
    story.press(here, "enter", vanishes="y copy")
    tmux.enter("talk")
    tmux.see("esc stop")
    tmux.keys("Tab")
    tmux.see("y copy")
    story.press(here, "escape", appears="stopped")
    tmux.keys("i")
    tmux.see("enter send")


def test_chat_keys(story: Story) -> None:
    tmux, here = story.tmux, "chat"
    tmux.type("draft")
    tmux.see("│[❯ ]*draft ")
    story.press(here, "ctrl+o", appears="│[❯ ]*draft and edited")
    tmux.keys("C-u")
    story.press(here, "ctrl+n", appears="─ new chat ─")
    story.press(here, "ctrl+right_square_bracket", appears="─ a page ─")
    story.press(here, "f4", appears="enter load")
    tmux.keys("Escape")
    tmux.lose("enter load")
    story.press(here, "ctrl+l", appears="enter load")
    tmux.keys("Escape")
    tmux.lose("enter load")
    story.press(here, "f8", appears="temperature ")
    tmux.keys("Escape")
    tmux.lose("temperature ")
    story.press(here, "f9", appears="where the model runs")
    tmux.keys("Escape")
    tmux.lose("where the model runs")
    story.press(here, "ctrl+t", vanishes="throughput")
    tmux.keys("C-t")
    tmux.see("throughput")
    story.press(here, "f2", appears="n new  r rename")


def test_session_list_keys(story: Story) -> None:
    """The cursor is told by what F2's commands would do to what it points at."""
    tmux, here = story.tmux, "sessions"

    def pointed() -> int:
        """1 for "new chat", 2 for "a page", in the order of the list."""
        tmux.keys("d")
        shown = tmux.see(r"Delete '(new chat|a page)'")
        tmux.keys("Escape")
        tmux.lose("Delete '")
        return 1 + ("Delete 'a page'" in shown)

    tmux.keys("k", "k")
    until(lambda: pointed() == 1, "the first session")
    for key in ("j", "down"):
        story.moves(here, key, pointed, 1)
        story.moves(here, {"j": "k", "down": "up"}[key], pointed, -1)
    story.press(here, "enter", appears="─ new chat ─")
    tmux.keys("F2")
    tmux.see("n new  r rename")
    story.press(here, "r", appears="title")
    tmux.enter("renamed")
    tmux.see("─ renamed ─")
    story.press(here, "d", appears="Delete 'renamed'")
    tmux.keys("Escape")
    tmux.lose("Delete '")
    story.press(here, "escape", vanishes="n new  r rename")
    tmux.keys("F2")
    tmux.see("n new  r rename")
    story.press(here, "i", vanishes="n new  r rename")
    tmux.keys("F2")
    tmux.see("n new  r rename")
    story.press(here, "n", appears="─ new chat ─")


def test_keys_anywhere_and_that_none_was_left_out(story: Story) -> None:
    tmux, here = story.tmux, "app"
    story.press(here, "f1", appears="esc closes")
    tmux.keys("Escape")
    tmux.lose("esc closes")
    story.press(here, "ctrl+g", appears="─ menu ─")
    tmux.keys("Escape")
    tmux.lose("─ menu ─")
    story.press(here, "f3", appears="sort: ")
    tmux.keys("q")
    tmux.see("─ new chat ─")
    story.press(here, "ctrl+c", appears="press \\^c again to quit")
    story.send(here, "ctrl+q")
    assert tmux.ended() == 0
    assert story.pressed == DOCUMENTED
