"""The terminal program runs in a child of this small parent, which puts the terminal right however it ends.

The parent is standard library only and forks before anything heavy is imported. It forwards TERM, HUP and INT,
stops and continues with its child, and restores the terminal when the child was killed. When the parent
itself is killed, a pipe that only it holds open tells the child, which then ends as on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..engine.guard import guarded
from ..engine.types import UsageError
from .tab import in_tab

if TYPE_CHECKING:
    from ..engine.arguments import Options

# CAN ends an escape sequence that the child left half written. Then leave: mouse 1000-1003/1006/1015/1016, focus
# 1004, paste 2004, synchronized output 2026, in-band resize 2048, kitty keys, alternate screen; show the cursor
# and reset colours.
RESTORE = (
    "\x18\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?1004l\x1b[?2004l\x1b[?2026l\x1b[?2048l"
    "\x1b[<u\x1b[?1049l\x1b[?25h\x1b[0m\r"
)


def supervise(options: Options) -> int:
    """Run the terminal program for `options` in a child; returns its exit code, 128 + n for signal n. In a browser's
    tab there is no terminal to put right, and no child."""
    if in_tab():
        return _run(options)
    require_terminal()
    terminal = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
    before = termios.tcgetattr(terminal)
    alive, held = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(held)
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # until the app has its own: nothing is there to save yet
        _end_with_parent(alive)
        code = _run(options)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no atexit of the parent's modules; the app has closed what it opened
    os.close(alive)
    status = _wait(child)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    _restore(terminal, before)
    saved = options.command not in ("top", "serve") and options.values["save"]
    print(
        f"lmtop: ended by {signal.Signals(number).name}"
        f"{'; the conversation was saved up to the last second' if saved else ''}",
        file=sys.stderr,
    )
    return 128 + number


def require_terminal() -> None:
    """UsageError unless keys can be read and a screen drawn. Nothing is written to either."""
    if not sys.stdin.isatty() or not sys.stdout.isatty() or not sys.stderr.isatty():
        raise UsageError(
            "this needs a terminal; in a pipe use `lmtop generate MODEL` or `lmtop chat MODEL --plain`"
        )
    if os.environ.get("TERM", "dumb") in ("dumb", ""):
        raise UsageError(
            "this needs a terminal that can move the cursor; TERM is dumb. Use `lmtop chat MODEL --plain`"
        )


def _run(options: Options) -> int:
    return guarded(lambda: _program(options))


def _program(options: Options) -> int:
    if options.command == "top":
        from .screens.top import run_top

        values = options.values
        return run_top(
            interval=values["interval"],
            ascii=values["ascii"],
            mouse=values["mouse"],
            theme=values["theme"],
        )
    if options.command == "serve":
        from .screens.serving import run_serving

        return run_serving(options)
    from .app import AppOptions, run_app

    return run_app(AppOptions.from_options(options))


def _end_with_parent(alive: int) -> None:
    def watch() -> None:
        os.read(alive, 1)  # returns at end of file, when the parent is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lmtop-parent-watch", daemon=True).start()


def _wait(child: int) -> int:
    """Wait for the child's end, forwarding signals and sharing its stops."""

    def forward(number: int, frame: object) -> None:
        _quietly(lambda: os.kill(child, number))

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, forward)
    for number in (signal.SIGQUIT, signal.SIGTSTP):  # the terminal sends these to the child as well
        signal.signal(number, signal.SIG_IGN)
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)  # let the shell have the terminal; `fg` continues both
            _quietly(lambda: os.kill(child, signal.SIGCONT))
            continue
        return status


def _restore(terminal: int, before: list[object]) -> None:
    _quietly(lambda: os.write(terminal, RESTORE.encode()))
    _quietly(lambda: termios.tcsetattr(terminal, termios.TCSANOW, before))  # type: ignore[arg-type]


def _quietly(action: Callable[[], object]) -> None:
    with suppress(OSError, termios.error):  # the child or the terminal is gone: nothing left to put right
        action()
