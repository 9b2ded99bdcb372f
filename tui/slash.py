"""The list of slash commands that fit what was typed, above the prompt."""

from __future__ import annotations

from .commands import Command, complete_slash
from .render.glyphs import UNICODE, Glyphs
from .render.rows import Row
from .widgets.chrome import Chrome

MOST = 8


class SlashMenu(Chrome):
    """Hidden unless the prompt holds the beginning of a command."""

    DEFAULT_CSS = "SlashMenu { display: none; }"

    def __init__(self, *, glyphs: Glyphs = UNICODE, id: str | None = None) -> None:
        super().__init__(glyphs=glyphs, id=id)
        self._matches: list[Command] = []

    @property
    def first(self) -> Command | None:
        """What tab completes to."""
        return self._matches[0] if self._matches else None

    def show(self, text: str) -> None:
        """List the commands that `text` begins; none hides the list."""
        self._matches = complete_slash(text)
        self.display = bool(self._matches)
        self.styles.height = min(MOST, len(self._matches))
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        shown = self._matches[:height]
        more = len(self._matches) - len(shown)
        rows: list[Row] = []
        for i, command in enumerate(shown):
            name = f"/{command.slash} {command.usage}".rstrip()
            tail = f"  (+{more})" if more and i == len(shown) - 1 else ""
            mark = "tab" if i == 0 else ""
            rows.append(
                [
                    (f" {mark:>3} ", "key"),
                    (f"{name:<28} ", "value"),
                    (command.help or command.title, "label"),
                    (tail, "dim"),
                ]
            )
        return rows
