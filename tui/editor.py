"""The prompt in the user's own editor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from textual.app import App

from ..engine.types import UsageError
from .signals import terminal_lent


async def edit(app: App[Any], text: str) -> str:
    """`text` after $VISUAL or $EDITOR (default: vi) changed it. The screen is handed over meanwhile; replies go
    on being generated and saved. UsageError when the editor cannot be run or fails."""
    if app.is_web:
        raise UsageError("there is no editor in a browser")
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    fd, name = tempfile.mkstemp(prefix="lmtop-", suffix=".md")
    path = Path(name)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        with terminal_lent(), app.suspend(), contextlib.ExitStack() as stack:
            stack.callback(app.refresh, layout=True)
            try:
                process = await asyncio.create_subprocess_exec(*shlex.split(command), name)
                code = await process.wait()
            except (OSError, ValueError) as error:
                raise UsageError(f"$EDITOR {command!r}: {error}") from None
        if code:
            raise UsageError(f"$EDITOR {command!r} ended with code {code}; the prompt is unchanged")
        return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    finally:
        path.unlink(missing_ok=True)
