"""A one-line choice: a label and a value that left, right, space and the mouse change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.binding import Binding
from textual.message import Message

from ..render.glyphs import UNICODE, Glyphs
from ..render.lines import Row
from .chrome import Chrome


class Choice(Chrome, can_focus=True):
    """`label ‹ value ›`. Posts `Choice.Changed` when the user changes the value."""

    DEFAULT_CSS = "Choice { width: auto; height: 1; }"
    BINDINGS = [
        Binding("left", "step(-1)", show=False),
        Binding("right,space", "step(1)", show=False),
    ]

    @dataclass
    class Changed(Message):
        """The user gave `choice` another value."""

        choice: Choice

        @property
        def control(self) -> Choice:
            return self.choice

    def __init__(
        self,
        label: str,
        options: Sequence[str],
        value: str,
        *,
        glyphs: Glyphs = UNICODE,
        id: str | None = None,
    ) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._label = label
        self._options = list(options)
        self.value = value if value in options else options[0]
        self.styles.width = cell_len(label) + 5 + max(map(cell_len, options))  # whatever is chosen

    def rows(self, width: int, height: int) -> list[Row]:
        g = self.glyphs
        arrow, value = ("key", "selected") if self.has_focus else ("label", "title")
        return [
            [(f"{self._label} ", "label"), (f"{g.left} ", arrow), (self.value, value), (f" {g.right}", arrow)]
        ]

    def action_step(self, step: int) -> None:
        at = (self._options.index(self.value) + step) % len(self._options)
        self.set(self._options[at])
        self.post_message(self.Changed(self))

    def set(self, value: str) -> None:
        """Show `value` as the one chosen."""
        self.value = value
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        self.action_step(-1 if event.x <= cell_len(self._label) + 1 else 1)

    def watch_has_focus(self, focused: bool) -> None:
        super().watch_has_focus(focused)
        self.redraw()
