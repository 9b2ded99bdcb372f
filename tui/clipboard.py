"""Copying to the clipboard of the terminal the user sits at, by OSC 52, also from inside tmux."""

from __future__ import annotations

import base64
import os
import subprocess
from typing import Literal

from ..engine.text import visible
from ..engine.types import UsageError
from .render import format

LIMIT = 1_000_000  # bytes; terminals cut or refuse longer sequences, some without a word
TIMEOUT_S = 1.0

Route = Literal["plain", "wrapped", "tmux"]


def tmux_option(name: str) -> str:
    """A global tmux option's value, "" where tmux does not answer."""
    try:
        result = subprocess.run(
            ["tmux", "show-options", "-gv", name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def find_route() -> Route:
    """How a copy reaches the terminal: as it is; through tmux, which by default ignores OSC 52 from programs
    (`set-clipboard external`), by its passthrough; or as a tmux buffer that tmux itself sends on."""
    if not os.environ.get("TMUX") or tmux_option("set-clipboard") == "on":
        return "plain"
    return "wrapped" if tmux_option("allow-passthrough") in ("on", "all") else "tmux"


def sequence(text: str, route: Route = "plain") -> str:
    """The OSC 52 sequence that copies `visible(text)`, wrapped for tmux on that route.

    Raises: UsageError when the text is too long for terminals.
    """
    data = visible(text).encode()
    if len(data) >= LIMIT:
        raise UsageError(
            f"not copied: {format.size(len(data))} is more than a terminal takes; the limit is 1 MB"
        )
    plain = f"\x1b]52;c;{base64.b64encode(data).decode()}\a"
    return "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\" if route == "wrapped" else plain


def to_tmux(text: str) -> None:
    """Make `visible(text)` a tmux buffer and let tmux send it to its clients' terminals. Blocks up to 1 s."""
    subprocess.run(
        ["tmux", "load-buffer", "-w", "-"], input=visible(text).encode(), timeout=TIMEOUT_S, check=False
    )
