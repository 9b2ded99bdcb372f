"""The prompt: several lines, a history of what was sent, and a word to the screen when a command is typed."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.widgets import TextArea

from ...engine.text import visible

LIMIT = 262_144  # characters; beyond that the editor would hold up the screen, so a paste is refused
_NEWLINE_KEYS = frozenset({"ctrl+j", "shift+enter", "alt+enter"})


class Composer(TextArea):
    """enter sends, ctrl+j starts a new line (shift+enter and alt+enter too, where the terminal tells them
    from enter), up in the first row and down in the last go through `prompts`, oldest first.

    Text comes in only through keys, `paste` and `load_text`; the latter two make it visible first.
    """

    DEFAULT_CSS = """
    Composer {
        height: auto;
        min-height: 3;
        max-height: 10;
        border: none;
        padding: 0;
        background: transparent;
        &:focus { border: none; }
        & .text-area--cursor-line { background: transparent; }
    }
    """

    @dataclass
    class Submitted(Message):
        """The text was sent, and the prompt is empty now."""

        text: str

    class Escaped(Message):
        """Escape was pressed."""

    @dataclass
    class SlashChanged(Message):
        """The text starts with "/" and changed; "" once when it no longer does."""

        text: str

    def __init__(self, *, placeholder: str = "", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(
            placeholder=placeholder,
            id=id,
            classes=classes,
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            highlight_cursor_line=False,
        )
        self.prompts: list[str] = []
        self._recalled: int | None = None  # index into `prompts` of what is shown, None for the draft
        self._draft = ""
        self._slash = False

    def load_text(self, text: str) -> None:
        """Replace the text; the cursor goes to its end."""
        super().load_text(visible(_newlines(text)))
        self.move_cursor(self.document.end)

    def complete(self, text: str) -> None:
        """Put a chosen command in place of what was typed."""
        self.load_text(text)

    # --- keys ------------------------------------------------------------------------------------------------

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            self._submit()
        elif event.key in _NEWLINE_KEYS:
            self._replace_via_keyboard("\n", *self.selection)
        elif event.key == "escape":
            self.post_message(self.Escaped())
        else:
            return
        event.stop()
        event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = visible(_newlines(event.text))
        length = sum(map(len, self.document.lines)) + self.document.line_count - len(self.selected_text)
        if length + len(text) > LIMIT:
            self.notify(
                f"not pasted: {len(text):,} characters, and the prompt holds {LIMIT:,}",
                severity="warning",
                markup=False,
            )
            return
        if result := self._replace_via_keyboard(text, *self.selection):
            self.move_cursor(result.end_location)

    def _submit(self) -> None:
        text = self.text
        if not text.strip():
            return
        if not self.prompts or self.prompts[-1] != text:
            self.prompts.append(text)
        self._recalled = None
        self.load_text("")
        self.post_message(self.Submitted(text))

    # --- earlier prompts -------------------------------------------------------------------------------------

    def action_cursor_up(self, select: bool = False) -> None:
        if not select and self.navigator.is_first_wrapped_line(self.cursor_location) and self.prompts:
            at = len(self.prompts) if self._recalled is None else self._recalled
            self._recall(at - 1)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        last = self.navigator.is_last_wrapped_line(self.cursor_location)
        if not select and last and self._recalled is not None:
            self._recall(self._recalled + 1)
        else:
            super().action_cursor_down(select)

    def _recall(self, index: int) -> None:
        if index < 0:
            return
        if self._recalled is None:
            self._draft = self.text
        if index < len(self.prompts):
            self._recalled = index
            self.load_text(self.prompts[index])
        else:
            self._recalled = None
            self.load_text(self._draft)

    # --- commands --------------------------------------------------------------------------------------------

    def on_text_area_changed(self) -> None:
        slash = self.document.get_line(0).startswith("/")
        if slash or self._slash:
            self._slash = slash
            self.post_message(self.SlashChanged(self.text if slash else ""))


def _newlines(text: str) -> str:
    """Line ends as terminals send them in a paste, and as files have them, to "\\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
