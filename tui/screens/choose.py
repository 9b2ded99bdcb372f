"""Choosing one of a server's models (F4 while it is talked to)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content

from ...engine.text import one_line
from ...engine.types import LmtopError, UsageError
from ..render.lines import Row
from ..render.rows import cut
from ..widgets.field import Field
from ..widgets.hints import Hints
from ..widgets.row_list import RowList
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import LmtopApp

ROWS = 16  # of models, at most


class NameList(RowList[str]):
    """Names of models."""

    def item_row(self, item: str, width: int) -> Row:
        return [(cut(one_line(item), width, self.glyphs), "value")]


class ChooseDialog(Dialog[str | None]):
    """The result is a name of `models`, None after escape."""

    CSS_PATH = "servers.tcss"
    BINDINGS = [
        Binding("escape", "dismiss(None)", show=False, priority=True),
        Binding("enter", "use", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("pagedown", "move(8)", show=False, priority=True),
        Binding("pageup", "move(-8)", show=False, priority=True),
    ]
    AUTO_FOCUS = "#filter"

    app: LmtopApp

    def __init__(self, title: str, models: Sequence[str], chosen: str) -> None:
        super().__init__(id="choose")
        self._title = title
        self._models = models
        self._chosen = chosen
        self._listed = ""

    def compose(self) -> ComposeResult:
        glyphs = self.app.glyphs
        with Vertical(id="dialog"):
            yield Field(placeholder="filter", id="filter")
            yield NameList(glyphs=glyphs, id="names")
            yield Hints(
                [("enter", "use", "use"), ("up down", "choose", ""), ("esc", "cancel", "dismiss(None)")],
                glyphs=glyphs,
            )

    def on_mount(self) -> None:
        dialog = self.query_one("#dialog")
        dialog.border_title = Content(one_line(self._title, 50))
        count = len(self._models)
        dialog.border_subtitle = Content(f"{count} model{'' if count == 1 else 's'}")
        self.query_one("#names").styles.height = max(1, min(count, ROWS, self.app.size.height - 8))
        self._list()

    @on(Field.Changed, "#filter")
    def _list(self) -> None:
        query = self._listed = self.query_one("#filter", Field).value.strip()
        words = query.lower().split()
        names = [name for name in self._models if all(word in name.lower() for word in words)]
        at = names.index(self._chosen) if self._chosen in names and not query else 0
        self.query_one(NameList).show(names, "no model of that name", at)

    def action_move(self, step: int) -> None:
        self.query_one(NameList).move(step)

    @on(NameList.Chosen)
    def action_use(self) -> None:
        self.after_typing(self._use)

    def _use(self) -> None:
        if self.query_one("#filter", Field).value.strip() != self._listed:
            self._list()
        if (name := self.query_one(NameList).marked) is not None:
            self.dismiss(name)


def open(app: LmtopApp) -> None:
    """Show the models of the server that is talked to. UsageError where it offers none."""
    backend, server = app.backend, app.link.server
    models = backend.capabilities.models if backend is not None else ()
    if server is None or not models:
        raise UsageError(app.replies.model.message or "this server offers no models")

    def done(name: str | None) -> None:
        if name is not None:
            try:
                app.link.choose(name)
            except LmtopError as error:  # it went away meanwhile
                app.chat.notice(str(error), "warning")

    app.push_screen(ChooseDialog(f"models of {server.label}", models, app.replies.model.name), done)
