"""Check 22, cases T1 to T3 and T8: text from models, people, files and disks changes nothing but the visible text."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.parrot import prose, write_parrot
from support.terminal import Tmux, needs_tmux, rows

pytestmark = needs_tmux

SEQUENCES = (
    "\x1b[2J\x1b[31m\x1b[?1049l\x1b[?1000l\x1b]0;OWNED\x07\x1b]2;OWNED\x1b\\\x1b]52;c;T1dORUQ=\x07"
    "\x1b]8;;http://evil/\x1b\\link\x1b]8;;\x1b\\\x1bPtmux;\x1b\x1b]52;c;T1dORUQ=\x07\x1b\\\x1b_apc\x1b\\\x1b^pm\x1b\\"
    "\x1bkOWNED\x1b\\\x1bc\x9b2J\x9d0;OWNED\x9c\x90q\x9c\x07\x08\r"
)
MARKUP = (
    "[/x] [@click=app.quit]press[/] [red]red[/red] [link=file:///etc/passwd]l[/link] [type=x, v={'a[0]'}]"
)
REPLY = (
    f"start {SEQUENCES} {MARKUP} \u202eesrever\u202c and an unterminated \x1b]0;OWNED" + " end of it all\n"
)
NAME = "dir [@click=app.quit][red]\x1b]0;OWNED\x07\x9b2J"  # of a directory: anything but a slash
ESCAPES = re.compile(rb"\x1b(?:\[[<-?]?[0-9;:]*[ -/]*[@-~]|[^\[])", re.DOTALL)

POINTER = re.compile(rb"\x1b\]22;[a-z]+\x07")  # the one string sequence that Textual writes by itself


def kinds(written: bytes) -> set[bytes]:
    """What sorts of control sequences there are: of CSI the private mark, for modes their number, and the final."""
    found = set()
    for sequence in ESCAPES.findall(written):
        keep = sequence if sequence[-1:] in b"hl" else re.sub(rb"[0-9;:]+", b"", sequence)
        found.add(keep)
    return found


def harmless(written: bytes, known: set[bytes]) -> None:
    """Nothing but what a benign run writes, and no string sequence or C1 control in any form."""
    assert kinds(written) <= known
    written = POINTER.sub(b"", written)
    assert not re.search(rb"\x1b[\]P_^XkNOc]", written)
    text = written.decode("utf-8", "strict")
    assert not re.search("[\x07\x80-\x9f\u202a-\u202e]", text)


def transcript(screen: str) -> str:
    """The middle column without white space: what is said there, however it was wrapped."""
    cells = [line.split("││")[1] for line in screen.splitlines() if line.count("││") == 2]
    return "".join("".join(cells).split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    replies = {"benign": "Hello there.\n", "attack": REPLY, "endless": prose(700) + "\n\n"}
    return write_parrot(tmp_path_factory.mktemp("hostile") / NAME, replies, ("endless",))


@pytest.fixture(scope="module")
def tmux(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Tmux]:
    with closing(Tmux(tmp_path_factory.mktemp("home"), MODEL=str(model))) as tmux:
        yield tmux


@pytest.fixture(scope="module")
def known(tmux: Tmux) -> set[bytes]:
    """The kinds of control sequences of a run in which nobody means harm, with dialogs and notices in it."""
    (tmux.home / "plain").symlink_to(Path(tmux("show-environment", "-g", "MODEL").split("=", 1)[1]))
    tmux.raw.write_bytes(b"")
    tmux.start("chat", "plain")
    tmux.enter("benign")
    tmux.see(r"Hello there\.")
    tmux.enter("/rename other")
    tmux.see("─ other ─")
    tmux.enter("/nonsense")
    tmux.see("no command")
    for key, seen in (("C-u", ""), ("F2", "n new"), ("Escape", "enter send"), ("C-q", "")):
        tmux.keys(key)
        tmux.see(seen)
    assert tmux.ended() == 0
    return kinds(tmux.raw.read_bytes())


def start(tmux: Tmux) -> None:
    tmux.raw.write_bytes(b"")
    tmux.enter('clear; LMTOP_TEST=1 LMTOP_STEP_MS=20 lmtop chat "$MODEL"')
    tmux.see("●local")


def test_reply_paste_title_and_directory(tmux: Tmux, known: set[bytes]) -> None:
    title, buffers = tmux.format("#{pane_title}"), tmux("list-buffers")
    start(tmux)
    header = tmux.see(r"dir \[@click")
    assert "[red]␛]0" in header.splitlines()[0]
    tmux.paste(f"attack {SEQUENCES} {MARKUP}")
    tmux.see(r"❯ attack +│\n│ *␛\[2J␛")
    tmux.keys("Enter")
    screen = tmux.see("end of it all")
    for shown in (
        "␛[2J␛[31m",
        "[/x]",
        "[@click=app.quit]press[/]",
        "[red]red[/red]",
        "<U+009B>2J",
        "<U+202E>",
    ):
        assert shown.replace(" ", "") in transcript(screen), shown
    assert "─ attack ␛[2J" in screen  # the session's title
    assert tmux.format("#{pane_title}") == title and tmux("list-buffers") == buffers
    harmless(tmux.raw.read_bytes(), known)


def test_click_on_markup_does_nothing(tmux: Tmux, known: set[bytes]) -> None:
    """The text "[@click=app.quit]press" is text."""
    rows_shown = tmux.screen().splitlines()
    y, line = next((y, line) for y, line in enumerate(rows_shown, 1) if "press[" in line)
    x = line.index("press") + 2
    tmux.type(f"\x1b[<0;{x};{y}M\x1b[<0;{x};{y}m")
    tmux.see("y copy")  # the click gave the transcript the focus, and that is all
    tmux.keys("i")
    tmux.see("enter send")


def test_paste_that_ends_early_meets_a_question(tmux: Tmux, known: set[bytes]) -> None:
    """T8: keys smuggled behind the end of a paste cannot end the program while a reply is generated."""
    tmux.keys("C-n")
    tmux.see("─ new chat ─")
    tmux.enter("endless")
    tmux.see("esc stop")
    tmux.paste("evil\x1b[201~\x11")
    tmux.see("A reply is being generated")
    tmux.keys("Escape")
    tmux.lose("A reply is being generated")
    tmux.see("evil")
    tmux.keys("Escape")
    tmux.see("stopped")
    tmux.keys("C-u", "C-q")
    assert tmux.ended() == 0


def test_history_from_disk(tmux: Tmux, known: set[bytes]) -> None:
    title = tmux.format("#{pane_title}")
    bad = f"{SEQUENCES} {MARKUP}"
    with closing(sqlite3.connect(tmux.home / "data" / "lmtop" / "history.db")) as db:
        db.execute(
            "UPDATE sessions SET title = ?, system = ?, draft = ?, model = ?",
            (f"T {bad}", bad, f"D {bad}", bad),
        )
        db.execute(
            "UPDATE messages SET model = ?, stats = ?", (bad, '{"error": "\\u001b]0;OWNED\\u0007[/x]"}')
        )
        db.commit()
    assert rows(tmux.home, "SELECT title FROM sessions")[0]["title"].startswith("T \x1b")
    start(tmux)
    for _ in range(2):
        tmux.keys("C-]")
        tmux.see("─ T ␛")
        tmux.see(r"❯ D +│\n│ *␛\[2J␛")
    tmux.see("end of it all|zofa")
    tmux.keys("Up", "Up", "F2")
    tmux.see("n new")
    tmux.keys("r")
    tmux.see("title")
    tmux.keys("Escape", "Escape")
    tmux.enter("/system")
    tmux.see("system prompt")
    tmux.keys("Escape", "C-q")
    assert tmux.ended() == 0
    assert tmux.format("#{pane_title}") == title
    harmless(tmux.raw.read_bytes(), known)
