"""The dialogs that commands open, imported when they are first needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import LmtopApp

# command id -> module below `screens`, whose function `open(app)` shows the dialog
DIALOGS = {
    "model.load": "load",
    "model.choose": "choose",
    "sampling.open": "sampling",
    "servers.open": "servers",
}


def open_dialog(app: LmtopApp, command: str, **options: Any) -> None:
    """Open the dialog of a command."""
    import_module(f".screens.{DIALOGS[command]}", __package__).open(app, **options)
