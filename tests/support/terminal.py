"""The real program in a real terminal: a pane of a private tmux server, or a bare pty whose bytes are counted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from support.command import clean_environment

T = TypeVar("T")
DEADLINE_S = 20.0
POLL_S = 0.02
PROMPT = re.compile(r"exit=(\d+) \$")
CSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")

needs_tmux = pytest.mark.skipif(
    not (shutil.which("tmux") and shutil.which("bash")), reason="tmux or bash is not installed"
)


def until(look: Callable[[], T], what: str | Callable[[], str], deadline_s: float = DEADLINE_S) -> T:
    """What `look` returns once that is true; fails with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)
    return seen


def family(pid: int) -> list[psutil.Process]:
    """The process and all below it that are alive."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True, slots=True)
class Modes:
    """What tmux thinks a pane's program has switched on."""

    alternate: bool
    mouse: bool
    cursor: bool


SHELL = Modes(alternate=False, mouse=False, cursor=True)


class Tmux:
    """A tmux server of its own without configuration, and one pane in it, in which bash shows each exit code in
    its prompt and `lmtop` is this checkout. Everything the pane's programs write is kept in `raw`."""

    def __init__(self, home: Path, width: int = 120, height: int = 40, **env: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.raw = home / "raw"
        self._folder = tempfile.TemporaryDirectory(prefix="lmtop-")  # a socket's path must be short
        self._socket = f"{self._folder.name}/tmux"
        command = home / "bin" / "lmtop"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lmtop "$@"\n')
        command.chmod(0o755)
        rc = home / "bashrc"
        rc.write_text("PS1='exit=$? $ '\nunset HISTFILE\nbind 'set enable-bracketed-paste off'\n")
        self._env = clean_environment(home, **env) | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
        for name in ("TMUX", "TMUX_PANE", "COLORTERM", "NO_COLOR", "EDITOR", "VISUAL", "SSH_CONNECTION"):
            if name not in env:
                self._env.pop(name, None)
        shell = shlex.join(["bash", "--noprofile", "--rcfile", str(rc), "-i"])
        self("new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(home), shell)
        self("set", "-g", "default-terminal", "tmux-256color")
        self("pipe-pane", "-O", f"cat >> {shlex.quote(str(self.raw))}")
        try:
            self.see(r"exit=0 \$")
        except AssertionError:
            self.close()
            raise

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *arguments],
            env=self._env, capture_output=True, text=True, check=False, timeout=DEADLINE_S, cwd=self.home,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"tmux {arguments}: {done.stderr}"
        return done.stdout.removesuffix("\n")

    def close(self) -> None:
        """End the server and whatever still runs in it."""
        left = self.processes()
        self("kill-server", check=False)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: not any(map(alive, left)), "all of the pane's processes gone")
        self._folder.cleanup()

    # --- keys ----------------------------------------------------------------------------------------------

    def keys(self, *names: str) -> None:
        """Press keys, by tmux's names."""
        self("send-keys", *names)

    def type(self, text: str) -> None:
        self("send-keys", "-l", "--", text)

    def enter(self, text: str) -> None:
        self.type(text)
        self.keys("Enter")

    def paste(self, text: str, bracketed: bool = True) -> None:
        """As a terminal pastes: one stretch, between brackets where the program asked for them."""
        file = self.home / "paste"
        file.write_text(text)
        self("load-buffer", "-b", "paste", str(file))
        self("paste-buffer", *(["-p"] if bracketed else []), "-r", "-d", "-b", "paste")

    # --- looking -------------------------------------------------------------------------------------------

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def format(self, text: str) -> str:
        return self("display-message", "-p", text)

    def modes(self) -> Modes:
        return Modes(
            *(x == "1" for x in self.format("#{alternate_on} #{mouse_any_flag} #{cursor_flag}").split())
        )

    def see(self, pattern: str, deadline_s: float = DEADLINE_S) -> str:
        """The screen, once `pattern` is somewhere on it."""
        shown = ""

        def look() -> bool:
            nonlocal shown
            shown = self.screen()
            return re.search(pattern, shown) is not None

        until(look, lambda: f"{pattern!r} on\n{shown}", deadline_s)
        return shown

    def lose(self, pattern: str, deadline_s: float = DEADLINE_S) -> str:
        """The screen, once `pattern` is nowhere on it."""
        shown = ""

        def look() -> bool:
            nonlocal shown
            shown = self.screen()
            return re.search(pattern, shown) is None

        until(look, lambda: f"{pattern!r} still on\n{shown}", deadline_s)
        return shown

    # --- the program ---------------------------------------------------------------------------------------

    def start(self, *arguments: str, ready: str = r"●local", **env: str) -> float:
        """Run `lmtop`; seconds until `ready` is on the screen."""
        self.enter("clear")
        self.see(r"\A\s*exit=\d+ \$\s*\Z")
        words = [*(f"{name}={shlex.quote(value)}" for name, value in env.items()), "lmtop"]
        started = time.monotonic()
        self.enter(" ".join([*words, *map(shlex.quote, arguments)]))
        self.see(rf"lmtop {re.escape(arguments[0])}|{ready}")  # typed, and maybe already running
        shown = self.see(rf"{ready}|failed: |{PROMPT.pattern}\s*\Z")
        assert re.search(ready, shown), shown
        return time.monotonic() - started

    def processes(self) -> list[psutil.Process]:
        """The shell and all below it."""
        pid = self("display-message", "-p", "#{pane_pid}", check=False)
        return family(int(pid)) if pid else []

    def program(self) -> list[psutil.Process]:
        """lmtop's parent and its child, in this order."""
        return self.processes()[1:3]

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code of what ran, once the shell asks for the next command."""

        def look() -> re.Match[str] | None:
            lines = self.screen().rstrip().splitlines()
            return re.search(rf"{PROMPT.pattern}$", lines[-1].rstrip()) if lines else None

        return int(until(look, lambda: f"the shell's prompt on\n{self.screen()}", deadline_s)[1])


class Pty:
    """A program on a bare pty that answers no queries. A thread reads; `pause` makes it stop."""

    def __init__(self, home: Path, *arguments: str, width: int = 120, height: int = 40, **env: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        leader = (
            "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "os.execv(sys.executable, [sys.executable, '-m', 'lmtop', *sys.argv[1:]])"
        )
        environment = clean_environment(home, TERM="xterm-256color", COLORTERM="truecolor", **env)
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-c", leader, *arguments], stdin=slave, stdout=slave, stderr=slave,
            env=environment, cwd=home,
        )  # fmt: skip
        os.close(slave)
        self.chunks: list[tuple[float, bytes]] = []
        self._reading = threading.Event()
        self._reading.set()
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closed:
            if not self._reading.wait(0.1) or not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            self.chunks.append((time.monotonic(), data))

    def pause(self) -> None:
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def write(self, text: str) -> float:
        """Press keys; when."""
        now = time.monotonic()
        os.write(self._master, text.encode())
        return now

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.chunks)

    def since(self, start: float, end: float = float("inf")) -> bytes:
        """What arrived between two times."""
        return b"".join(data for at, data in self.chunks if start <= at < end)

    def see(self, pattern: str, after: float = 0.0, deadline_s: float = DEADLINE_S) -> float:
        """When `pattern` had arrived, with control sequences left out."""
        found = until(
            lambda: re.search(pattern.encode(), CSI.sub(b"", self.since(after))) and self.chunks[-1][0],
            lambda: f"{pattern!r} in {CSI.sub(b'', self.since(after))[-2000:]!r}",
            deadline_s,
        )
        assert isinstance(found, float)
        return found

    @property
    def processes(self) -> list[psutil.Process]:
        return family(self._process.pid)

    def cpu_s(self) -> float:
        """Processor seconds of all processes so far."""
        return sum(t.user + t.system for t in (p.cpu_times() for p in self.processes))

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        return self._process.wait(deadline_s)

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(5)
        self._closed = True
        self._thread.join(5)
        os.close(self._master)


def rows(home: Path, query: str) -> list[dict[str, Any]]:
    """Rows of the history of the user whose home this is; [] while there is none. Not read-only: what a killed
    process left half written must be rolled back first."""
    path = home / "data" / "lmtop" / "history.db"
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=5)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query)]
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise


def last_reply(home: Path) -> dict[str, Any]:
    """The newest reply in the history."""
    found = rows(home, "SELECT * FROM messages WHERE role = 'assistant' ORDER BY created DESC LIMIT 1")
    return found[0] if found else {}
