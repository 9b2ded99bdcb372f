"""`lmtop doctor`: what this machine offers, what is missing, and a real answer from the engine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from ..engine import settings
from ..engine.arguments import installed_version
from ..engine.text import one_line
from ..engine.types import LmtopError

if TYPE_CHECKING:
    from ..engine.arguments import Options

PACKAGES = (
    "torch",
    "textual",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "transformers",
    "nvidia-ml-py",
)
MARKS = {"ok": "ok ", "note": "-- ", "bad": "!! "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `bad` means that something will not work."""

    topic: str
    state: Literal["ok", "note", "bad"]
    text: str


def run_doctor(options: Options) -> int:
    """Print the report (--json: as one document); 1 when something is bad, else 0."""
    findings = []
    as_json = options.values["json"]
    for finding in _examine(options):
        findings.append(finding)
        if not as_json:
            print(_shown(finding), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    bad = sum(finding.state == "bad" for finding in findings)
    if not as_json:
        print(
            f"{bad} of these will not work" if bad else "all is well: `lmtop chat demo` starts a conversation"
        )
    return 1 if bad else 0


def _shown(finding: Finding) -> str:
    line = f"{MARKS[finding.state]}{finding.topic:<10} {one_line(finding.text, 1000)}"
    if not sys.stdout.isatty():
        return line
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, subsequent_indent=" " * 14, break_on_hyphens=False)


def _examine(options: Options) -> Iterator[Finding]:
    yield Finding(
        "lmtop", "ok", f"{installed_version()}, Python {platform.python_version()}, {platform.platform()}"
    )
    yield from _packages()
    memory = psutil.virtual_memory()
    yield Finding(
        "machine",
        "ok",
        f"{psutil.cpu_count()} cores, {memory.total / 2**30:.1f} GiB RAM, {memory.available / 2**30:.1f} available",
    )
    from .doctor_gpu import gpu_findings

    yield from gpu_findings()
    yield from _terminal()
    yield from _files(options)
    yield _engine()


def _packages() -> Iterator[Finding]:
    have, missing = [], []
    for name in PACKAGES:
        try:
            have.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", "ok", ", ".join(have))
    if missing:
        yield Finding("packages", "bad", f"missing: {', '.join(missing)}; install lmtop again")


def _terminal() -> Iterator[Finding]:
    term = os.environ.get("TERM", "")
    size = shutil.get_terminal_size()
    tty = sys.stdout.isatty()
    wide = "utf" in (sys.stdout.encoding or "").lower()
    colours = os.environ.get("COLORTERM") or ("256 colours" if "256" in term else "16 colours")
    inside = "tmux" if os.environ.get("TMUX") else "ssh" if os.environ.get("SSH_CONNECTION") else "local"
    state: Literal["ok", "note"] = "ok" if tty and term not in ("", "dumb") else "note"
    text = f"{term or 'TERM unset'}, {size.columns}x{size.lines}, {colours}, {inside}"
    if not tty:
        text += "; not a terminal now: only generate, list, doctor and chat --plain work here"
    if not wide:
        text += f"; encoding {sys.stdout.encoding}: use --ascii"
    yield Finding("terminal", state, text)


def _files(options: Options) -> Iterator[Finding]:
    path = settings.config_path()
    yield Finding(
        "config",
        "ok" if path.exists() else "note",
        f"{path}{'' if path.exists() else ' (none)'}",
    )
    from .history import default_path, journal_mode

    history = Path(options.values["history_file"] or default_path())
    about = f"{history}, SQLite {sqlite3.sqlite_version}, journal {journal_mode()}"
    if _writable(history):
        yield Finding("history", "ok", about)
    else:
        yield Finding("history", "bad", f"{about}: cannot be written, conversations will not be saved")
    from ..engine.models import DEMO, discover, missing

    folders = options.values["folders"]
    found = discover(folders)
    broken = [
        item for item in found if item.files is None and item.name != DEMO
    ]  # the engine line tells of it
    loadable = sum(item.files is not None for item in found)
    yield Finding("models", "ok", f"{loadable} that can be loaded; `lmtop list` names them")
    for item in broken:
        yield Finding("models", "note", f"{one_line(item.name)} cannot be loaded: {one_line(item.problem)}")
    for folder in missing(folders):
        yield Finding("models", "bad", f"{folder}: no such directory (models.folders)")


def _writable(path: Path) -> bool:
    """Whether a file could be written at `path`, whose folders may have to be made first."""
    if path.exists():
        return path.is_file() and os.access(path, os.W_OK)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _engine() -> Finding:
    """Load the built-in model and let it answer: the whole path, with its speed."""
    from ..engine.answer import answer, debug_log, load_and_wait
    from ..engine.config import EngineConfig
    from ..engine.local import LocalBackend
    from ..engine.types import GREEDY, Finished, Message, Request

    backend = LocalBackend(log=debug_log)
    try:
        mailbox = backend.open()
        started = time.monotonic()
        load_and_wait(backend, mailbox, EngineConfig(model="demo"), lambda state: None)
        loaded = time.monotonic() - started
        request = Request("doctor", messages=(Message("user", "Hello, who are you?"),), sampling=GREEDY)
        for event in answer(backend, mailbox, request):
            if isinstance(event, Finished):
                timings = event.timings
                return Finding(
                    "engine",
                    "ok",
                    f"demo loaded in {loaded:.1f} s, first token {timings.ttft_s * 1e3:.0f} ms, "
                    f"{timings.decode_tps:.0f} tok/s",
                )
        return Finding("engine", "bad", "the built-in model gave no answer")
    except LmtopError as error:
        return Finding("engine", "bad", one_line(str(error)))
    finally:
        backend.close()
