"""Help (F1) and the which-key menu (ctrl+g), both made from the command table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ..commands import BY_MENU, COMMANDS, WHERE_TITLES, Command, Where
from ..keys import keys_label
from .dialog import Dialog


def help_rows(where: Where) -> Iterable[tuple[str, str]]:
    """(keys, text) rows: what works where the focus is, then the rest, then the slash commands."""
    order = sorted(WHERE_TITLES, key=lambda name: name != where)
    for name in order:
        yield "", WHERE_TITLES[name]
        for command in COMMANDS:
            if command.where == name and command.keys:
                yield keys_label(command), _text(command)
    yield "", "commands (// sends a message that starts with /)"
    for command in sorted((c for c in COMMANDS if c.slash), key=lambda c: c.slash):
        yield f"/{command.slash} {command.usage}".rstrip(), _text(command)


def _text(command: Command) -> str:
    return f"{command.title}: {command.help}" if command.help else command.title


class HelpScreen(Dialog[None]):
    """Keys and commands; those of the focused pane first."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss", show=False),
        Binding("j,down", "line(1)", show=False),
        Binding("k,up", "line(-1)", show=False),
    ]

    def __init__(self, where: Where) -> None:
        super().__init__()
        self._where = where

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            for keys, text in help_rows(self._where):
                if keys:
                    with Horizontal():
                        yield Static(Content(keys), classes="key")
                        yield Static(Content(text))
                else:
                    yield Static(Content(text), classes="place")

    def on_mount(self) -> None:
        self.query_one("#help").border_title = Content("help")
        self.query_one("#help").border_subtitle = Content("esc closes")

    def action_line(self, step: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)


class MenuScreen(Dialog[str]):
    """Every command of the menu by one key. The result is the command's id, a digit for a session, or ""."""

    CSS_PATH = "help.tcss"

    def compose(self) -> ComposeResult:
        with Vertical(id="menu"):
            yield Static(self._table())

    def _table(self) -> Content:
        commands = sorted(BY_MENU.values(), key=lambda command: command.menu)
        cells = [
            Content.assemble((f" {command.menu} ", "bold $accent"), f"{command.title:<20}")
            for command in commands
        ]
        cells.append(Content.assemble((" 1-9 ", "bold $accent"), f"{'session':<18}"))
        columns = 3 if self.app.size.width >= 80 else 2
        height = -(-len(cells) // columns)
        rows = [Content("").join(cells[row::height]) for row in range(height)]
        return Content("\n").join(rows)

    def on_mount(self) -> None:
        self.query_one("#menu").border_title = Content("menu")

    def on_key(self, event: events.Key) -> None:
        event.stop()
        key = event.character or ""
        if key.isdigit() and key != "0":
            self.dismiss(key)
        else:
            command = BY_MENU.get(key)
            self.dismiss(command.id if command else "")
