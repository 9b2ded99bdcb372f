"""The real `lmtop` command, in a process of its own with an environment of its own."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE_S = 60.0


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment less all that could reach lmtop, its folders under `home`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LMTOP_", "HF_", "XDG_", "HUGGINGFACE_", "COV_", "PYTHONUNBUFFERED"))
        and name.lower() not in ("http_proxy", "https_proxy", "all_proxy")
    }
    return kept | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "LMTOP_CONFIG": str(home / "config.toml"),
        "HF_HOME": str(home / "hf"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def command_line(*arguments: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "lmtop", *arguments]


def run_lmtop(
    home: Path, *arguments: str | bytes, stdin: bytes = b"", deadline_s: float = DEADLINE_S, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end. Checks what holds for every run: no traceback, and an error is the last line, alone."""
    done = subprocess.run(
        command_line(*arguments),
        input=stdin,
        check=False,
        capture_output=True,
        timeout=deadline_s,
        env=clean_environment(home, **env),
        cwd=home,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in out + err, err
    assert "Exception ignored" not in err, err
    errors = [line for line in err.splitlines() if line.startswith("lmtop: error:")]
    internal = [line for line in err.splitlines() if line.startswith("lmtop: internal error:")]
    assert len(errors) + len(internal) == (1 if done.returncode not in (0, 1, 130, 141) else 0), err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


class Terminal:
    """`lmtop` on a pseudo-terminal that is its controlling one, so that Ctrl-C means what it means to a person."""

    def __init__(self, home: Path, *arguments: str, dumb: bool = False, **env: str) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            os.chdir(home)
            env["TERM"] = "dumb" if dumb else "xterm"
            os.execve(sys.executable, command_line(*arguments), clean_environment(home, **env))
        self.pid = pid
        self.output = b""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, word: bytes, count: int = 1) -> bytes:
        """Everything shown so far, once `word` was shown `count` times since the last `forget`."""
        end = time.monotonic() + DEADLINE_S
        while self.output.count(word) < count:
            left = end - time.monotonic()
            assert left > 0 and self._read(left), f"no {word!r} in {self.output!r}"
        return self.output

    def forget(self) -> None:
        self.output = b""

    def wait(self) -> int:
        """Its exit code, 128 + n for signal n; everything it showed is in `output`."""
        while self._read(DEADLINE_S):
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _read(self, timeout: float) -> bool:
        if not select.select([self._fd], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            return False
        self.output += data
        return bool(data)


def call_lmtop(
    home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: bytes = b"", **env: str
) -> int:
    """Run in this process, which has torch already: a tenth of the time. Output goes to pytest's capture."""
    from lmtop.__main__ import main

    for name in list(os.environ):
        if name.startswith(("LMTOP_", "HF_")):
            monkeypatch.delenv(name)
    for name, value in clean_environment(home, **env).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    return main(arguments)
