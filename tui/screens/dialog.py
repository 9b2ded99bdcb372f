"""What all dialogs are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen

Result = TypeVar("Result")


class Dialog(ModalScreen[Result], Generic[Result]):
    """A modal screen that closes once. A key that arrives while it closes (escape twice over a slow line) would
    else close the screen below: Textual pops whatever is on top."""

    def dismiss(self, result: Result | None = None) -> AwaitComplete:
        return super().dismiss(result) if self.is_current else AwaitComplete()

    def after_typing(self, action: Callable[[], object]) -> None:
        """Call `action` once the focused field has taken all that was typed before. A key with priority overtakes
        what is still on its way to the field: text and enter in one packet would lose the end of the text."""
        (self.focused or self).call_later(action)
