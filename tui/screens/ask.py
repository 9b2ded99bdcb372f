"""Two small dialogs: a question with a few answers, and one text to edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static, TextArea

from ...engine.text import visible
from .dialog import Dialog


class Ask(Dialog[str]):
    """A question. `answers` are (key, what it does); the result is the key, "" after escape."""

    CSS_PATH = "ask.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "answer('')", show=False)]

    def __init__(self, question: str, answers: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._question = question
        self._answers = answers
        for key, _ in answers:
            self._bindings.bind(key, f"answer({key!r})", show=False)

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Content(visible(self._question)), id="question")
            for key, text in self._answers:
                yield Static(Content.assemble((f" {key} ", "bold $accent"), f" {text}"))
            yield Static(Content.assemble((" esc ", "bold $accent"), " cancel"))

    def action_answer(self, key: str) -> None:
        self.dismiss(key)


class EditText(Dialog[str | None]):
    """One text to change: enter keeps it, ctrl+j is a new line where there may be more than one, escape gives up.

    The result is the text, None after escape.
    """

    CSS_PATH = "ask.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "keep", show=False, priority=True),
        Binding("ctrl+j", "newline", show=False, priority=True),
        Binding("escape", "dismiss(None)", show=False, priority=True),
    ]

    def __init__(self, title: str, text: str, multiline: bool = False) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._multiline = multiline

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Content(self._title), id="question")
            area = TextArea(self._text, compact=True, classes="-many" if self._multiline else "-one")
            area.cursor_blink = False
            yield area
            keys: list[str | tuple[str, str]] = [(" enter ", "bold $accent"), " keep  "]
            if self._multiline:
                keys += [(" ^j ", "bold $accent"), " new line  "]
            yield Static(Content.assemble(*keys, (" esc ", "bold $accent"), " cancel"))

    def on_mount(self) -> None:
        area = self.query_one(TextArea)
        area.move_cursor(area.document.end)

    def action_keep(self) -> None:
        self.after_typing(self._keep)

    def _keep(self) -> None:
        text = self.query_one(TextArea).text
        self.dismiss(text if self._multiline else " ".join(text.split()))

    def action_newline(self) -> None:
        if self._multiline:
            self.after_typing(lambda: self.query_one(TextArea).insert("\n"))
