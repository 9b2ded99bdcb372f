"""Whether the program draws in a browser's tab, where textual-serve has started it, or in a terminal."""

from __future__ import annotations

import os

DRIVER = "textual.drivers.web_driver:WebDriver"


def in_tab() -> bool:
    """Whether this process draws in a browser's tab."""
    return os.environ.get("TEXTUAL_DRIVER") == DRIVER
