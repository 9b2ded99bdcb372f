"""The outermost layer of a command: every failure becomes one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from .text import one_line
from .types import LmtopError


def guarded(action: Callable[[], int]) -> int:
    """`action`'s exit code, or its failure's. `LMTOP_DEBUG=1` lets the traceback through."""
    debug = os.environ.get("LMTOP_DEBUG") == "1"
    try:
        code = _code(action)
        sys.stdout.flush()  # here, where a reader that went away is no traceback
        return code
    except LmtopError as error:
        if debug:
            raise
        print(f"lmtop: error: {one_line(str(error), 500)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away: not our failure, and no place to say so
        _silence_output()
        return 141
    except Exception as error:  # the last line of defence: one line, never a traceback
        if debug:
            raise
        _silence_output()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"lmtop: error: cannot write: {error.strerror}", file=sys.stderr)
            return LmtopError.exit_code
        print(
            f"lmtop: internal error: {type(error).__name__}: {one_line(str(error), 200)} "
            "(LMTOP_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        return LmtopError.exit_code


def _code(action: Callable[[], int]) -> int:
    try:
        return action()
    except SystemExit as end:  # --help and --version
        return end.code if isinstance(end.code, int) else 0


def _silence_output() -> None:
    """Output that cannot be written goes nowhere: at exit it would fail once more, in a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
