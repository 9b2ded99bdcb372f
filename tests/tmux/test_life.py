"""The program in a terminal that is detached, resized, suspended, lent to an editor and pasted into.

One program serves most of the file, so its tests are one story and run in order.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.parrot import said
from support.terminal import SHELL, Modes, Tmux, family, last_reply, needs_tmux, rows, until

pytestmark = needs_tmux

RUNNING = Modes(alternate=True, mouse=True, cursor=False)
SIZES = ((1, 1), (2, 1), (500, 200), (80, 24), (40, 10), (120, 40))
SLOW = {"LMTOP_TEST": "1", "LMTOP_STEP_MS": "20"}


@pytest.fixture(scope="module")
def tmux(tmp_path_factory: pytest.TempPathFactory, parrot: Path) -> Iterator[Tmux]:
    home = tmp_path_factory.mktemp("life")
    editor = home / "editor"
    editor.write_text('#!/bin/sh\necho EDITOR RUNS; read line; printf "%s" " $line" >> "$1"\n')
    editor.chmod(0o755)
    with closing(Tmux(home, EDITOR=str(editor))) as tmux:
        tmux.start("chat", str(parrot), **SLOW)
        yield tmux


def words(tmux: Tmux) -> int:
    return said(str(last_reply(tmux.home).get("text", "")))


def has_modes(tmux: Tmux, modes: Modes) -> None:
    until(lambda: tmux.modes() == modes, lambda: f"{tmux.modes()}\n{tmux.screen()}")


def ask(tmux: Tmux, text: str = "talk") -> None:
    tmux.keys("C-n")
    tmux.see("─ new chat ─")
    tmux.enter(text)
    until(lambda: said(tmux.screen()) > 10, tmux.screen)


def stop(tmux: Tmux) -> None:
    tmux.keys("Escape")
    tmux.see("stopped")


def test_detach_and_reattach_at_another_size(tmux: Tmux) -> None:
    """Check 32: the pane shrinks and grows while nobody looks; generation goes on, and all is drawn again."""
    ask(tmux)
    before = words(tmux)
    tmux("resize-window", "-x", "90", "-y", "30")
    until(lambda: words(tmux) > before + 40, "generation goes on")
    screen = tmux.see(r"(?m)^.{1,90}$")
    assert all(len(line) <= 90 for line in screen.splitlines())
    tmux.see("\\^g menu")
    tmux("resize-window", "-x", "120", "-y", "40")
    tmux.see("throughput")
    until(lambda: len(tmux.screen().splitlines()[1]) == 120, tmux.screen)
    until(lambda: said(tmux.screen()) > before + 40, tmux.screen)


def test_resize_storm_while_streaming(tmux: Tmux) -> None:
    """Case T9: fifty sizes, one cell among them."""
    at = said(tmux.screen())
    for number in range(50):
        width, height = SIZES[number % len(SIZES)]
        tmux("resize-window", "-x", str(width), "-y", str(height))
    tmux("resize-window", "-x", "120", "-y", "40")
    until(lambda: said(tmux.screen()) > at + 40, tmux.screen)
    assert re.search(r"┌ sessions ─+┐┌─ talk ─+┐┌ ", tmux.screen())
    has_modes(tmux, RUNNING)


def test_streams_on_under_a_dialog(tmux: Tmux) -> None:
    tmux.keys("C-g")
    at = said(tmux.see("─ menu ─"))
    until(lambda: said(tmux.screen()) > at + 30, tmux.screen)
    assert "─ menu ─" in tmux.screen()
    tmux.keys("Escape")
    tmux.lose("─ menu ─")
    until(lambda: said(tmux.screen()) > at + 60, tmux.screen)
    stop(tmux)


def test_suspended_and_continued(tmux: Tmux) -> None:
    """Case T13: the shell is usable, `fg` brings all back, and generation went on or goes on."""
    ask(tmux)
    started = tmux.raw.read_bytes().count(b"\x1b[?1049h")
    tmux.enter("")  # the composer is empty: nothing is sent
    shell = int(tmux.format("#{pane_pid}"))
    child = family(shell)[2]
    tmux("run-shell", f"kill -TSTP {child.pid}")
    tmux.see(r"Stopped[\s\S]*exit=147 \$")
    has_modes(tmux, SHELL)
    tmux.enter("echo the shell $((6 * 7))")
    tmux.see("the shell 42")
    before = words(tmux)
    tmux.enter("fg")
    has_modes(tmux, RUNNING)
    until(lambda: said(tmux.screen()) > before + 20, tmux.screen)
    assert tmux.raw.read_bytes().count(b"\x1b[?1049h") == started + 1
    tmux.type("x")
    tmux.see("❯ x ")  # one key, one character: there is one reader
    tmux.keys("BSpace")
    stop(tmux)


def test_editor_and_back(tmux: Tmux) -> None:
    """Check 25; an interrupt typed while the editor has the terminal is not for us."""
    tmux.type("the draft")
    tmux.see("❯ the draft")
    tmux.keys("C-o")
    tmux.see("EDITOR RUNS")
    has_modes(tmux, SHELL)
    tmux.enter("was edited")
    tmux.see("❯ the draft was edited")
    has_modes(tmux, RUNNING)
    tmux.keys("C-o")
    tmux.see(r"EDITOR RUNS\nwas edited\nEDITOR RUNS")
    tmux.keys("C-c")
    tmux.see(r"ended with code -?\d+; the prompt is unchanged")
    tmux.see("❯ the draft was edited")
    has_modes(tmux, RUNNING)
    tmux.keys("C-u")


def test_large_paste_does_not_send(tmux: Tmux) -> None:
    """Case T7: a megabyte with line ends, then one that fits."""
    asked = len(rows(tmux.home, "SELECT id FROM messages"))
    tmux.paste("seven words are on each such line\n" * 31_000)
    tmux.see(r"not pasted: 1,054,000")
    tmux.paste("first line\n" * 2000 + "the end")
    tmux.see("the end", 3.0)
    tmux.type("!")
    tmux.see("the end!")
    assert len(rows(tmux.home, "SELECT id FROM messages")) == asked
    tmux.keys("C-q")
    assert tmux.ended() == 0
    drafts = rows(tmux.home, "SELECT draft FROM sessions WHERE draft <> ''")
    assert [len(row["draft"]) for row in drafts] == [22_008]


def test_crash_is_one_line_and_a_private_log(tmux: Tmux, parrot: Path) -> None:
    """Check 34, case T14; the fault point `command` raises in the handler of any command."""
    secret = "hf_0123456789abcdef"
    tmux.start("chat", str(parrot), **SLOW, LMTOP_FAULTS="command@2:raise", HF_TOKEN=secret)
    ask(tmux, "will this be kept?")  # ctrl+n is the first command
    seen = said(tmux.screen())
    tmux.keys("F8")
    assert tmux.ended() == 70
    has_modes(tmux, SHELL)
    shown = " ".join(tmux.screen().split())
    assert shown.count("internal error: RuntimeError: fault injected at command; details in") == 1
    assert "Traceback" not in shown and "│" not in shown
    log = next((tmux.home / "state").rglob("crash-*.log"))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    text = log.read_text()
    assert "fault injected at command" in text and secret not in text and str(tmux.home) not in text
    reply = last_reply(tmux.home)
    assert said(reply["text"]) >= seen and reply["status"] == "interrupted"


def test_full_disk_is_told_and_made_up_for(tmux: Tmux, parrot: Path) -> None:
    """Case T17: a commit fails as on a full disk; the chat goes on in memory, and is saved later."""
    tmux.start("chat", str(parrot), **SLOW, LMTOP_FAULTS="db.commit@3:full")
    tmux.enter("greeting to a full disk")
    tmux.see(r"not saved: .*full")
    tmux.see(r"Hello there\.")
    assert not rows(tmux.home, "SELECT id FROM messages WHERE text LIKE 'greeting%'")
    tmux.see("saved again")
    saved = rows(tmux.home, "SELECT role, text FROM messages ORDER BY id DESC LIMIT 2")
    assert [row["text"].strip() for row in saved] == ["Hello there.", "greeting to a full disk"]
    tmux.keys("C-q")
    assert tmux.ended() == 0
