from __future__ import annotations

import base64
from collections import Counter

import pytest
from textual.binding import Binding

from lmtop.engine.types import UsageError
from lmtop.tui import clipboard
from lmtop.tui.commands import BY_SLASH, COMMANDS, WHERE_TITLES, complete_slash, literal, parse_slash
from lmtop.tui.keys import bindings, key_label
from lmtop.tui.screens.help import help_rows

# what tmux, legacy terminals or the tmux and screen prefixes take away (research: keys)
LOST = {"ctrl+h", "ctrl+i", "ctrl+m", "ctrl+left_square_bracket", "ctrl+b", "ctrl+a", "ctrl+at", "alt+enter"}


def test_table_has_no_duplicates() -> None:
    for name in ("id", "slash", "menu"):
        counts = Counter(value for c in COMMANDS if (value := getattr(c, name)))
        assert [value for value, n in counts.items() if n > 1] == []
    for where in WHERE_TITLES:
        keys = Counter(key for c in COMMANDS if c.where in (where, "app", "chat") for key in c.keys)
        assert [key for key, n in keys.items() if n > 1] == [], where


def test_no_key_is_one_that_terminals_lose() -> None:
    """Check 23, as far as the table goes."""
    keys = {key for c in COMMANDS for key in c.keys}
    assert not keys & LOST
    assert not any(key.startswith("alt+") for key in keys)


def test_every_slash_command_is_in_the_menu_or_takes_an_argument() -> None:
    missing = [c.id for c in COMMANDS if c.slash and not c.menu]
    assert missing == ["sampling.set"]  # it is nothing without its argument


def test_bindings_are_those_of_the_table() -> None:
    """Check 40."""
    bound = [b for where in WHERE_TITLES for b in bindings(where) if isinstance(b, Binding)]
    assert {b.id for b in bound} == {c.id for c in COMMANDS if c.keys and not c.native}
    assert all(b.action == f"app.command({b.id!r})" for b in bound)


@pytest.mark.parametrize("where", WHERE_TITLES)
def test_help_lists_each_key_and_command_once(where: str) -> None:
    """Check 40."""
    rows = list(help_rows(where))  # type: ignore[arg-type]
    assert rows[0] == ("", WHERE_TITLES[where])  # type: ignore[index]
    entries = [keys for keys, _ in rows if keys]
    assert len(entries) == sum(bool(c.keys) for c in COMMANDS) + len(BY_SLASH)
    for command in BY_SLASH.values():
        assert f"/{command.slash} {command.usage}".rstrip() in entries


def test_slash_lines() -> None:
    line = parse_slash("/rename  my  title ")
    assert line is not None and line.command is BY_SLASH["rename"] and line.argument == "my  title"
    assert parse_slash("hello /new") is None
    assert parse_slash("//etc") is None and literal("//etc/hosts") == "/etc/hosts" and literal("a") == "a"
    wrong = parse_slash("/stosp")
    assert wrong is not None and wrong.command is None and wrong.suggestion == "stop"
    short = parse_slash("/ren x")
    assert short is not None and short.command is BY_SLASH["rename"]
    several = parse_slash("/s")
    assert several is not None and several.command is None


def test_slash_completion() -> None:
    assert [c.slash for c in complete_slash("/re")] == ["regen", "rename"]
    assert len(complete_slash("/")) == len(BY_SLASH)
    assert complete_slash("//") == complete_slash("/new x") == complete_slash("re") == []


def test_key_labels() -> None:
    assert [
        key_label(k) for k in ("ctrl+right_square_bracket", "f12", "less_than_sign", "G", "shift+enter")
    ] == [
        "^]",
        "F12",
        "<",
        "G",
        "shift+enter",
    ]


def test_osc52_holds_the_visible_text_exactly() -> None:
    """Check 21, without a terminal."""
    text = "naïve\x1b]0;x\a 你好"
    plain = clipboard.sequence(text)
    assert plain.startswith("\x1b]52;c;") and plain.endswith("\a")
    assert base64.b64decode(plain[7:-1]).decode() == "naïve␛]0;x␇ 你好"
    wrapped = clipboard.sequence("a", "wrapped")
    assert wrapped == "\x1bPtmux;\x1b\x1b]52;c;YQ==\a\x1b\\"
    with pytest.raises(UsageError, match="1 MB"):
        clipboard.sequence("x" * 1_000_000)
