"""The server picker (F9): where the model runs, and how each saved server is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message

from ...engine.servers import Server, read_servers, removed, saved
from ...engine.text import one_line
from ...engine.types import LmtopError
from ..render.lines import Row, wrap_text
from ..render.server_rows import Place, detail_rows, place_row
from ..widgets.hints import Hints
from ..widgets.panel import Panel
from ..widgets.row_list import RowList
from .ask import Ask
from .dialog import Dialog
from .server_form import ServerForm

if TYPE_CHECKING:
    from ...engine.remote_probe import Status
    from ..app import LmtopApp

ROWS = 12  # of places, at most
DETAILS = 3


class PlaceList(RowList[Place]):
    """This machine and the servers."""

    def item_row(self, item: Place, width: int) -> Row:
        return place_row(item, width, self.glyphs)


class ServerPicker(Dialog[None]):
    """Choose, add, change and remove servers. Each is looked at when the picker opens, and again with t."""

    CSS_PATH = "servers.tcss"
    BINDINGS = [
        Binding("escape,f9,q", "dismiss(None)", show=False),
        Binding("enter", "use", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("up,k", "move(-1)", show=False),
        Binding("a", "add", show=False),
        Binding("e", "edit", show=False),
        Binding("x,delete", "remove", show=False),
        Binding("t", "look", show=False),
    ]

    app: LmtopApp

    @dataclass
    class Looked(Message):
        """A server was looked at."""

        server: Server
        status: Status

    def __init__(self) -> None:
        super().__init__(id="servers")
        self._places: list[Place] = []
        self._problem = ""

    def compose(self) -> ComposeResult:
        glyphs = self.app.glyphs
        with Vertical(id="dialog"):
            yield PlaceList(glyphs=glyphs, id="places")
            yield Panel(glyphs=glyphs, id="details")
            yield Hints(
                [
                    ("enter", "use", "use"),
                    ("a", "add", "add"),
                    ("e", "edit", "edit"),
                    ("x", "remove", "remove"),
                    ("t", "test", "look"),
                    ("esc", "close", "dismiss(None)"),
                ],
                glyphs=glyphs,
            )

    def on_mount(self) -> None:
        self.query_one("#dialog").border_title = Content("servers: where the model runs")
        self._read()
        self.app.model_signal.subscribe(self, lambda state: self._model_changed())

    # --- the list ------------------------------------------------------------------------------------------

    def _read(self, at: Server | None = None) -> None:
        """List what is saved, and look at each."""
        current = self.app.link.server
        try:
            servers: Sequence[Server] = read_servers()
            self._problem = ""
        except LmtopError as error:
            servers, self._problem = (), str(error)
        if current is not None and not any(_same(server, current) for server in servers):
            servers = (*servers, current)
        here = [] if self.app.is_web else [self._local()]
        self._places = [*here, *(Place(server, current=_same(server, current)) for server in servers)]
        shown = at or current
        marked = next((i for i, it in enumerate(self._places) if shown and _same(it.server, shown)), 0)
        places = self.query_one(PlaceList)
        places.styles.height = max(2, min(len(self._places), ROWS, self.app.size.height - DETAILS - 8))
        places.show(self._places, at=marked)
        self.action_look()

    def _local(self) -> Place:
        model = self.app.replies.model if self.app.link.server is None else None
        return Place(None, current=model is not None, model=model.name if model is not None else "")

    def _model_changed(self) -> None:
        if self._places and self._places[0].server is None:
            self._places[0] = self._local()
            self.query_one(PlaceList).redraw()

    @on(PlaceList.Marked)
    def _show_details(self) -> None:
        panel, marked = self.query_one("#details", Panel), self.query_one(PlaceList).marked
        width = max(20, panel.size.width)
        if self._problem:
            panel.show(wrap_text(one_line(self._problem, 300), width, "bad"))
        elif marked is not None:
            panel.show(detail_rows(marked, width, self.app.glyphs))

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_details)

    # --- looking -------------------------------------------------------------------------------------------

    def action_look(self) -> None:
        """Look at every server, each on a thread of its own."""
        for place in self._places:
            if place.server is not None:
                self._change(place.server, None)
                self._look(place.server)

    @work(thread=True)
    def _look(self, server: Server) -> None:
        from ...engine.remote_probe import look_at

        self.post_message(self.Looked(server, look_at(server)))

    @on(Looked)
    def _looked(self, event: Looked) -> None:
        self._change(event.server, event.status)

    def _change(self, server: Server, status: Status | None) -> None:
        for place in self._places:
            if place.server == server:
                place.status = status
        self.query_one(PlaceList).redraw()
        self._show_details()

    # --- what can be done ----------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        self.query_one(PlaceList).move(step)

    @on(PlaceList.Chosen)
    async def action_use(self) -> None:
        """Talk to the marked one from now on."""
        marked = self.query_one(PlaceList).marked
        if marked is None:
            return
        if marked.current:
            self.dismiss()
            return
        try:
            await self.app.link.switch(marked.server)
        except LmtopError as error:
            self._problem = str(error)
            self._show_details()
            self._problem = ""
            return
        self.dismiss()

    def action_add(self) -> None:
        current = self.app.link.server
        unsaved = current if current is not None and not current.name else None
        self._edit(unsaved, "")

    def action_edit(self) -> None:
        marked = self.query_one(PlaceList).marked
        if marked is not None and marked.server is not None:
            self._edit(marked.server, marked.server.name)

    def _edit(self, server: Server | None, before: str) -> None:
        def done(kept: Server | None) -> None:
            if kept is not None:
                self._keep(kept, before)

        self.app.push_screen(ServerForm(server), done)

    def _keep(self, server: Server, before: str) -> None:
        try:
            saved(server, before)
        except LmtopError as error:
            self.app.chat.notice(str(error), "warning")
        else:
            current = self.app.link.server
            if current is not None and (before == current.name or current.url == server.url):
                self.app.link.server = replace(current, name=server.name)
        self._read(server)

    def action_remove(self) -> None:
        marked = self.query_one(PlaceList).marked
        server = marked.server if marked is not None else None
        if server is None or not server.name:
            return

        def answered(answer: str | None) -> None:
            if answer == "r":
                try:
                    removed(server.name)
                except LmtopError as error:
                    self.app.chat.notice(str(error), "warning")
                self._read()

        self.app.push_screen(
            Ask(f"Forget the server {server.name!r}? Conversations and key files stay.", [("r", "remove")]),
            answered,
        )


def _same(one: Server | None, other: Server | None) -> bool:
    """Whether they are one server: by name, or by address where one is not saved."""
    if one is None or other is None:
        return one is other
    return one.name == other.name if one.name and other.name else one.address == other.address


def open(app: LmtopApp) -> None:
    """Show the picker."""
    app.push_screen(ServerPicker())
