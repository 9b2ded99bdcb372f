"""One line to type into, in a dialog."""

from __future__ import annotations

from textual.widgets import Input

from ...engine.text import visible


class Field(Input):
    """Whatever comes in, by keys, paste or program, is made visible first."""

    DEFAULT_CSS = """
    Field {
        background: $panel;
        & > .input--placeholder { color: $foreground 68%; }
        &:ansi {
            text-style: underline;
            & > .input--cursor { color: $foreground; background: $background; text-style: reverse; }
        }
    }
    """

    def __init__(
        self, value: str = "", *, placeholder: str = "", id: str | None = None, disabled: bool = False
    ) -> None:
        super().__init__(value, placeholder=placeholder, id=id, compact=True, disabled=disabled)
        self.cursor_blink = False  # an idle screen writes nothing

    def validate_value(self, value: str) -> str:
        return visible(value)
