"""Adding or changing a saved server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Label

from ...engine.servers import Server
from ...engine.text import one_line
from ...engine.types import LmtopError, UsageError
from ..widgets.field import Field
from ..widgets.hints import Hints
from ..widgets.panel import Panel
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import LmtopApp

FIELDS = (
    ("name", "name", "letters, digits, . _ -"),
    ("url", "address", "http://HOST:PORT"),
    ("api_key_env", "key variable", "name of the variable that holds the key"),
    ("api_key_file", "or key file", "a file with mode 0600"),
    ("ca_file", "certificates", "for https with an issuer of one's own"),
)


class ServerForm(Dialog[Server | None]):
    """The result is the server as typed, None after escape. A key itself is never typed here."""

    CSS_PATH = "servers.tcss"
    BINDINGS = [
        Binding("escape", "dismiss(None)", show=False, priority=True),
        Binding("enter", "keep", show=False, priority=True),
        Binding("down,tab", "app.focus_next", show=False, priority=True),
        Binding("up,shift+tab", "app.focus_previous", show=False, priority=True),
    ]
    AUTO_FOCUS = "#name"

    app: LmtopApp

    def __init__(self, server: Server | None) -> None:
        super().__init__(id="server-form")
        self._server = server

    def compose(self) -> ComposeResult:
        glyphs = self.app.glyphs
        with Vertical(id="dialog"):
            for name, label, hint in FIELDS:
                with Horizontal(classes="field"):
                    yield Label(label, classes="name")
                    yield Field(getattr(self._server, name, ""), placeholder=hint, id=name)
            yield Panel(glyphs=glyphs, id="status")
            yield Hints(
                [("enter", "keep", "keep"), ("up down", "fields", ""), ("esc", "cancel", "dismiss(None)")],
                glyphs=glyphs,
            )

    def on_mount(self) -> None:
        title = "add a server" if self._server is None or not self._server.name else "change a server"
        self.query_one("#dialog").border_title = Content(title)

    @on(Field.Changed)
    def _check(self) -> None:
        """Say at once what cannot be."""
        problem = ""
        if self.query_one("#url", Field).value.strip():
            try:
                self._typed()
            except LmtopError as error:
                problem = str(error)
        self.query_one("#status", Panel).show([[(one_line(problem, 300), "bad")]])

    def _typed(self) -> Server:
        values = {name: self.query_one(f"#{name}", Field).value.strip() for name, _, _ in FIELDS}
        server = Server(**values, model=self._server.model if self._server is not None else "")
        if not server.name:
            raise UsageError("a name is missing")
        return server

    def action_keep(self) -> None:
        self.after_typing(self._keep)

    def _keep(self) -> None:
        try:
            server = self._typed()
        except LmtopError as error:
            self.query_one("#status", Panel).show([[(one_line(str(error), 300), "bad")]])
            return
        self.dismiss(server)
