"""The commands that work on every screen: help, menu, monitor, palette, copying, quitting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from textual.widgets import TextArea

from ..engine.types import UsageError

if TYPE_CHECKING:
    from .app import LmtopApp

AGAIN_S = 2.0


class AppActions:
    """One method per command id, with "." as "_"."""

    def __init__(self, app: LmtopApp) -> None:
        self.app = app
        self._asked_to_quit = float("-inf")

    def perform(self, command: str, argument: str) -> Any:
        """Carry out a command of the table."""
        return getattr(self, command.replace(".", "_"))(argument)

    def help_open(self, argument: str) -> None:
        from .screens.help import HelpScreen

        self.app.push_screen(HelpScreen(self.app.chat.where))

    def menu_open(self, argument: str) -> None:
        from .screens.help import MenuScreen

        async def chosen(key: str | None) -> None:
            if key and key.isdigit():
                await self.app.actions.open_number(int(key))
            elif key:
                self.app.run_command(key)

        self.app.push_screen(MenuScreen(), chosen)

    def monitor_open(self, argument: str) -> None:
        from .screens.top import TopScreen

        seen = self.app.telemetry.snapshot()
        server = self.app.link.server
        if server is not None and not seen.gpus and seen.cpu is None:
            raise UsageError(f"{server.label} does not tell about its machine; `lmtop top` shows this one")
        if not isinstance(self.app.screen, TopScreen):
            self.app.push_screen(TopScreen(self.app.telemetry, self.app.glyphs))

    def palette_open(self, argument: str) -> None:
        self.app.action_command_palette()

    def copy_selection(self, argument: str) -> None:
        """Copy what is selected; with nothing selected, the second time within two seconds quits."""
        focused = self.app.focused
        text = focused.selected_text if isinstance(focused, TextArea) else ""
        text = text or self.app.screen.get_selected_text() or ""
        now = time.monotonic()
        if text:
            self.app.copy(text)
        elif now - self._asked_to_quit < AGAIN_S:
            self.app_quit("")
        else:
            self._asked_to_quit = now
            self.app.chat.notice("nothing is selected; press ^c again to quit")

    def app_quit(self, argument: str) -> None:
        from .screens.ask import Ask

        if isinstance(self.app.screen, Ask):
            return
        generating = [s for s in self.app.sessions.all if s.reply is not None]
        if not generating:
            self.app.leave(0)
            return

        def answered(answer: str | None) -> None:
            if answer == "s":
                self.app.leave(0)

        count = "A reply is" if len(generating) == 1 else f"{len(generating)} replies are"
        question = f"{count} being generated. What there is will be kept."
        self.app.push_screen(Ask(question, [("s", "stop and quit")]), answered)
