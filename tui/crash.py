"""What a bug leaves behind: one line on the terminal and a log file without anybody's secrets."""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import platformdirs

from ..engine.text import one_line, visible

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text` without the values of environment variables that look like secrets, and without the home's name."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(name):
            text = text.replace(value, "[redacted]")
    return text.replace(str(Path.home()), "~")


def write_log(error: BaseException) -> Path | None:
    """Write where `error` came from, without local variables, to a file only the user can read; None where
    that is not possible."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    text = f"lmtop {version('lmtop')}, Python {sys.version.split()[0]}, {sys.platform}\n{''.join(lines)}"
    try:
        folder = Path(platformdirs.user_log_dir("lmtop"))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(visible(redacted(text)))
    except OSError:
        return None
    return path


def crash_line(error: BaseException, log: Path | None) -> str:
    """The one line for the terminal."""
    where = f"; details in {log}" if log is not None else ""
    return f"lmtop: internal error: {type(error).__name__}: {one_line(redacted(str(error)), 120)}{where}"
