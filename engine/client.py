"""The `Backend` protocol: the one way in which screens, commands and servers reach an engine.

A backend never blocks its caller and never waits for a consumer. Events arrive in a `Mailbox` that the
consumer drains on its own clock; text of one request that was not drained yet is joined, so a stalled
consumer costs bytes, not engine time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .config import EngineConfig
from .types import Delta, EngineSnapshot, Event, ModelState, Notice, Progress, Request, Waiting

FOREIGN = "other:"  # how the session of another client's request begins, in a server's snapshot


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do and tell; what it cannot is greyed out, never guessed. `can_load`: it takes models of this
    machine, else `models` names the ones that it offers. `sampling`: the fields of SamplingParams that it
    understands, None for all."""

    can_load: bool = True
    prefill_progress: bool = True
    kv_map: bool = True
    token_ids: bool = True
    models: tuple[str, ...] = ()
    sampling: frozenset[str] | None = None


class _Growing:
    """The Delta of one request that nobody has drained yet, in parts."""

    __slots__ = ("id", "logprobs", "texts", "token_ids")

    def __init__(self, event: Delta) -> None:
        self.id = event.id
        self.texts = [event.text]
        self.token_ids = list(event.token_ids)
        self.logprobs = list(event.logprobs)

    def add(self, event: Delta) -> None:
        self.texts.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs

    def event(self) -> Delta:
        return Delta(self.id, "".join(self.texts), tuple(self.token_ids), tuple(self.logprobs))


class Mailbox:
    """Events for one consumer, in order. Any thread may put; one thread drains.

    A consumer whose `wake` raises is gone: the mailbox closes, and the engine ends what it was waiting for.
    """

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self._items: list[Event | _Growing] = []
        self._last: dict[str, int] = {}  # request id -> place of its newest item
        self._ready = threading.Condition()
        self._wake = wake
        self.closed = False

    def put(self, event: Event) -> None:
        """Append; a Delta joins, a Progress or Waiting replaces, the request's newest item where that is of its
        kind."""
        with self._ready:
            if isinstance(event, (Delta, Progress, Waiting)):
                at = self._last.get(event.id)
                newest = self._items[at] if at is not None else None
                if isinstance(event, Delta):
                    if isinstance(newest, _Growing):
                        newest.add(event)
                    else:
                        self._append(event.id, _Growing(event))
                elif at is not None and type(newest) is type(event):
                    self._items[at] = event
                else:
                    self._append(event.id, event)
            elif isinstance(event, (ModelState, Notice)):
                self._items.append(event)
            else:
                self._append(event.id, event)
            self._ready.notify_all()
        if self._wake is not None and not self.closed:
            try:
                self._wake()
            except Exception:  # noqa: BLE001 - foreign code: its failure must not reach the engine's thread
                self.closed = True

    def _append(self, request_id: str, item: Event | _Growing) -> None:
        self._last[request_id] = len(self._items)
        self._items.append(item)

    def drain(self) -> list[Event]:
        """Everything since the last drain; never blocks for longer than a put takes."""
        with self._ready:
            items, self._items = self._items, []
            self._last.clear()
        return [item.event() if isinstance(item, _Growing) else item for item in items]

    def wait(self, timeout: float | None = None) -> bool:
        """Block until something is there or `timeout` seconds passed; for command-line consumers."""
        with self._ready:
            return self._ready.wait_for(lambda: bool(self._items), timeout)


class Audience:
    """The mailboxes of a backend, and the state that each is told first. Any thread may call any method."""

    def __init__(self, state: ModelState) -> None:
        self.state = state
        self._mailboxes: list[Mailbox] = []
        self._lock = threading.Lock()

    def open(self, wake: Callable[[], None] | None = None) -> Mailbox:
        """A new mailbox, with the present state in it."""
        mailbox = Mailbox(wake)
        with self._lock:
            self._mailboxes.append(mailbox)
            state = self.state
        mailbox.put(state)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        """Tell it nothing more."""
        mailbox.closed = True
        with self._lock:
            self._mailboxes = [other for other in self._mailboxes if other is not mailbox]

    def announce(self, state: ModelState) -> None:
        """A new state, for those here and those to come."""
        with self._lock:
            self.state = state
        self.tell(state)

    def tell(self, event: ModelState | Notice) -> None:
        """Something for all that are here."""
        with self._lock:
            mailboxes = list(self._mailboxes)
        for mailbox in mailboxes:
            mailbox.put(event)


class Backend(Protocol):
    """An engine in this process, or a server. Every method returns at once unless it says otherwise."""

    @property
    def capabilities(self) -> Capabilities: ...

    def open(self, wake: Callable[[], None] | None = None) -> Mailbox:
        """A new mailbox. It gets the current ModelState at once, all later ModelState and Notice events, and
        the events of the requests submitted with it. `wake` is called from another thread after each put."""
        ...

    def close_mailbox(self, mailbox: Mailbox) -> None:
        """Stop delivering to it, and cancel its open requests."""
        ...

    def submit(self, request: Request, mailbox: Mailbox) -> None:
        """Queue a request. Its last event is Finished or Failed, always."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request at the next step; it finishes with reason "cancelled". Unknown ids are ignored."""
        ...

    def load(self, config: EngineConfig) -> None:
        """Replace the loaded model; open requests end as cancelled first. ModelState events tell."""
        ...

    def cancel_load(self) -> None:
        """Stop a load in progress and free what it took."""
        ...

    def unload(self) -> None:
        """Free the model and its cache."""
        ...

    def snapshot(self, kv_map: bool = False) -> EngineSnapshot:
        """The newest measurements; with `kv_map` also the owner of each block."""
        ...

    def close(self, timeout: float = 2.0) -> None:
        """Cancel everything, free, and join the engine's threads. Blocks up to `timeout` seconds."""
        ...
