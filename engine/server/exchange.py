"""Between the engine's threads and the server's event loop: one mailbox for all requests, one stream for each.

The engine only sets a flag and, when the loop sleeps, wakes it once. What comes within `gap` seconds of the last
delivery is delivered together, and the gap grows with the number of open streams: 64 streams of 10 ms steps would
otherwise cost the engine's thread the interpreter lock 6,400 times a second.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence

from ..client import Backend
from ..types import Delta, Event, Failed, Finished, ModelState, Notice, Request

GAP_EACH_S = 0.0004
GAP_MOST_S = 0.025


class Stream:
    """The events of one answer, which may be made of several requests (parts), for one task."""

    def __init__(self, exchange: Exchange, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.ends: list[Finished | Failed | None] = [None] * len(self.requests)
        self.why_cut = "request_cancelled"  # what to say when a part ends as cancelled
        self._exchange = exchange
        self._events: list[tuple[int, Event]] = []
        self._ready = asyncio.Event()

    def put(self, part: int, event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            self.ends[part] = event
        newest = self._events[-1] if self._events else None
        if newest is not None and newest[0] == part and isinstance(event, Delta):
            before = newest[1]
            if isinstance(before, Delta):  # the reader is slow
                text, ids = before.text + event.text, before.token_ids + event.token_ids
                joined = Delta(event.id, text, ids, before.logprobs + event.logprobs)
                self._events[-1] = (part, joined)
                return
        self._events.append((part, event))
        self._ready.set()

    async def events(self) -> list[tuple[int, Event]]:
        """(part, event) since the last call; waits until there is something. The last of a part is Finished or
        Failed."""
        await self._ready.wait()
        self._ready.clear()
        events, self._events = self._events, []
        return events

    def cancel(self, why: str = "request_cancelled") -> None:
        """End every part; each gets Finished "cancelled"."""
        self.why_cut = why
        self._exchange.cancel(self)

    def close(self) -> None:
        """Nobody reads it any more: what has not ended is cancelled."""
        self._exchange.drop(self)


class Exchange:
    """Lives on the event loop that made it. `changed` hears of each state of the model, `noticed` each Notice."""

    def __init__(
        self,
        backend: Backend,
        changed: Callable[[ModelState], None] = lambda state: None,
        noticed: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self.state = ModelState("none")
        self._backend = backend
        self._changed = changed
        self._noticed = noticed
        self.loop = asyncio.get_running_loop()
        self._routes: dict[str, tuple[Stream, int]] = {}
        self._armed = False
        self._delivered = 0.0
        self._numbers = itertools.count(1)
        self._mailbox = backend.open(self._wake)
        self._wake()

    @property
    def streams(self) -> list[Stream]:
        """The open ones."""
        return list(dict.fromkeys(stream for stream, _ in self._routes.values()))

    def new_id(self) -> str:
        """An id that nobody can guess, for an answer; its parts are named after it."""
        return f"{next(self._numbers)}-{secrets.token_hex(12)}"

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Hand the requests of one answer to the engine."""
        stream = Stream(self, requests)
        for part, request in enumerate(requests):
            self._routes[request.id] = (stream, part)
        for request in requests:
            self._backend.submit(request, self._mailbox)
        return stream

    def cancel(self, stream: Stream) -> None:
        """Cancel the parts of `stream` that have not ended."""
        for request, end in zip(stream.requests, stream.ends, strict=True):
            if end is None:
                self._backend.cancel(request.id)

    def drop(self, stream: Stream) -> None:
        """Cancel, and forget."""
        if any(self._routes.pop(request.id, None) is not None for request in stream.requests):
            for request in stream.requests:
                self._routes.pop(request.id, None)
            self.cancel(stream)

    def close(self) -> None:
        """Cancel everything."""
        self._armed = True
        self._backend.close_mailbox(self._mailbox)

    # --- delivery ------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Any thread, once per event."""
        if not self._armed:
            self._armed = True
            self.loop.call_soon_threadsafe(self._arm)

    def _arm(self) -> None:
        gap = min(GAP_MOST_S, GAP_EACH_S * len(self._routes))
        due = self._delivered + gap
        if due <= self.loop.time():
            self._deliver()
        else:
            self.loop.call_at(due, self._deliver)

    def _deliver(self) -> None:
        self._armed = False
        self._delivered = self.loop.time()
        for event in self._mailbox.drain():
            if isinstance(event, ModelState):
                self.state = event
                self._changed(event)
            elif isinstance(event, Notice):
                self._noticed(event)
            elif (route := self._routes.get(event.id)) is not None:
                route[0].put(route[1], event)
