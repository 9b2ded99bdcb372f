"""Driving a real LocalBackend from tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lmtop.engine.client import Mailbox
from lmtop.engine.config import EngineConfig
from lmtop.engine.faults import NONE, Faults
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import Delta, Event, Failed, Finished, ModelState, Request

DEADLINE_S = 60.0


def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll `condition` until it holds; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.002)


class Client:
    """A consumer that keeps every event."""

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend
        self.mailbox: Mailbox = backend.open()
        self.events: list[Event] = []
        self._ended: set[str] = set()

    def pump(self) -> None:
        fresh = self.mailbox.drain()
        self._ended.update(event.id for event in fresh if isinstance(event, (Finished, Failed)))
        self.events += fresh

    def state(self) -> ModelState:
        self.pump()
        return [event for event in self.events if isinstance(event, ModelState)][-1]

    def load(self, config: EngineConfig) -> ModelState:
        """Load and wait for ready or failed."""
        seen = len(self.events)
        self.backend.load(config)

        def settled() -> bool:
            self.pump()
            states = [event for event in self.events[seen:] if isinstance(event, ModelState)]
            return any(state.status in ("ready", "failed") for state in states)

        until(settled, f"loading {config.model}")
        return self.state()

    def submit(self, *requests: Request) -> None:
        for request in requests:
            self.backend.submit(request, self.mailbox)

    def of(self, request_id: str) -> list[Event]:
        self.pump()
        return [event for event in self.events if getattr(event, "id", None) == request_id]

    def last(self, request_id: str) -> Finished | Failed | None:
        ends = [event for event in self.of(request_id) if isinstance(event, (Finished, Failed))]
        assert len(ends) <= 1, f"{request_id} ended {len(ends)} times"
        return ends[0] if ends else None

    def wait(self, request_ids: Iterable[str], deadline_s: float = DEADLINE_S) -> None:
        ids = set(request_ids)

        def ended() -> bool:
            self.pump()
            return ids <= self._ended

        until(ended, f"the end of {len(ids)} requests", deadline_s)

    def ids(self, request_id: str) -> list[int]:
        return [
            token for event in self.of(request_id) if isinstance(event, Delta) for token in event.token_ids
        ]

    def text(self, request_id: str) -> str:
        return "".join(event.text for event in self.of(request_id) if isinstance(event, Delta))


def loaded(directory: Path, faults: Faults = NONE, **config: object) -> tuple[LocalBackend, Client]:
    """A backend with the model of `directory` ready."""
    backend = LocalBackend(faults)
    client = Client(backend)
    state = client.load(EngineConfig(str(directory), **config))  # type: ignore[arg-type]
    assert state.status == "ready", state.message
    return backend, client


def ledger(backend: LocalBackend) -> bool:
    """Idle, and every block accounted for."""
    kv = backend.snapshot().kv
    snapshot = backend.snapshot()
    return (
        kv is not None
        and not snapshot.slots
        and not snapshot.queue
        and kv.used == 0
        and kv.free + kv.cached == kv.total - 1
    )
