"""`lmtop serve` in a process of its own."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path

from support.command import clean_environment, command_line

DEADLINE_S = 60.0


class Process:
    """`lmtop serve` with these arguments, on a free port. `said` is its standard error."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self.said = ""
        self._home = home
        self.popen = subprocess.Popen(
            command_line("serve", *arguments, "--port", "0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=clean_environment(home, **env),
            cwd=home,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.said += line.decode()

    def until(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self.said)) is None:
            assert time.monotonic() < end and (self.popen.poll() is None or self._reader.is_alive()), (
                self.said
            )
            time.sleep(0.01)
        return found

    @property
    def url(self) -> str:
        return self.until(r"listening on (\S+);")[1]

    def end(self, number: int) -> tuple[int, float]:
        """(exit code, seconds) after a signal."""
        started = time.monotonic()
        self.popen.send_signal(number)
        code = self.popen.wait(DEADLINE_S)
        self._reader.join(5)
        assert "Traceback" not in self.said, self.said
        return code, time.monotonic() - started
