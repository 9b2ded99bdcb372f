"""From the command table to Textual bindings, and from key names to what a user reads."""

from __future__ import annotations

from textual.binding import Binding, BindingType

from .commands import COMMANDS, Command, Where

_LABELS = {
    "enter": "enter",
    "escape": "esc",
    "slash": "/",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "pagedown": "pgdn",
    "pageup": "pgup",
}


def key_label(key: str) -> str:
    """A key as people write it: "ctrl+right_square_bracket" -> "^]", "f1" -> "F1", "shift+enter" stays."""
    *modifiers, name = key.split("+")
    name = _LABELS.get(name, name)
    if name[0] == "f" and name[1:].isdigit():
        name = name.upper()
    if modifiers == ["ctrl"]:
        return f"^{name}"
    return "+".join([*modifiers, name])


def keys_label(command: Command) -> str:
    """All keys of a command, "F4 ^l"."""
    return " ".join(key_label(key) for key in command.keys)


def bindings(where: Where) -> list[BindingType]:
    """Textual bindings of the commands at `where`; their ids are the commands' (for a user's keymap)."""
    return [
        Binding(
            ",".join(command.keys),
            f"app.command({command.id!r})",
            command.title,
            show=False,
            priority=command.priority,
            id=command.id,
        )
        for command in COMMANDS
        if command.where == where and command.keys and not command.native
    ]
