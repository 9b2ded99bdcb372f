"""Running one request to its end from a command: wait for the model, submit, pass events on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator

from .client import Backend, Mailbox
from .config import EngineConfig
from .text import one_line, visible
from .types import (
    Delta,
    DeviceError,
    Event,
    Failed,
    Finished,
    LmtopError,
    ModelInfo,
    ModelState,
    Notice,
    Request,
)

# Text is taken in batches once it flows: waking for every token would cost a small model a third of its speed.
SETTLE_S = 0.01


def say(text: str) -> None:
    """One line for the person, beside the program's output."""
    print(f"lmtop: {one_line(text, 500)}", file=sys.stderr, flush=True)


def debug_log(text: str) -> None:
    """The engine's own tracebacks, which users are spared: with `LMTOP_DEBUG=1` they go to standard error."""
    if os.environ.get("LMTOP_DEBUG") == "1":
        print(visible(text), file=sys.stderr, flush=True)


def show_loading(state: ModelState) -> None:
    """How far the load is, on one line of the terminal that is gone when it ends; nothing in a pipe."""
    if not sys.stderr.isatty():
        return
    text = f"lmtop: loading {state.progress:4.0%} {one_line(state.message, 60)}"
    print(f"\r\x1b[K{text if state.status == 'loading' else ''}", end="", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A model's text for standard output: a file gets what the model wrote, a terminal what is safe to show."""
    return visible(text) if sys.stdout.isatty() else text


def load_and_wait(
    backend: Backend, mailbox: Mailbox, config: EngineConfig, show: Callable[[ModelState], None]
) -> ModelInfo:
    """Load `config` and block until it is ready. Raises the engine's own reason when it fails."""
    backend.load(config)
    while True:
        mailbox.wait()
        for event in mailbox.drain():
            if isinstance(event, Notice):
                say(event.text)
            if not isinstance(event, ModelState):
                continue
            show(event)
            if event.status == "ready" and event.info is not None:
                return event.info
            if event.status == "failed":
                raise _failure(event)


def _failure(state: ModelState) -> LmtopError:
    return state.error if state.error is not None else LmtopError(state.message)


def answer(backend: Backend, mailbox: Mailbox, request: Request) -> Generator[Event, None, None]:
    """Submit `request` and yield its events; the last is Finished or Failed. Closing the generator (or an
    exception in its body, Ctrl-C included) cancels the request and waits until it has ended."""
    backend.submit(request, mailbox)
    started = ended = False
    try:
        while not ended:
            mailbox.wait()
            if started:
                time.sleep(SETTLE_S)
            for event in mailbox.drain():
                if isinstance(event, Notice):
                    say(event.text)
                elif isinstance(event, ModelState) and event.status in ("dead", "failed"):
                    ended = True  # with the engine
                    raise DeviceError(event.message)
                elif getattr(event, "id", None) == request.id:
                    started = started or isinstance(event, Delta)
                    ended = isinstance(event, (Finished, Failed))
                    yield event
    finally:
        if not ended:
            backend.cancel(request.id)
            while not any(isinstance(e, (Finished, Failed)) for e in mailbox.drain()) and mailbox.wait(2.0):
                pass
