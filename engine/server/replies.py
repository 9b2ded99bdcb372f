"""One HTTP answer from one or several requests to the engine, streamed or whole.

A `Form` says what the bytes are; this says when: nothing is sent before the engine has accepted every part, so that
what cannot be answered is a plain error; a client that goes away, or takes nothing for too long, ends the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from starlette.responses import Response

from ..types import Event, Failed, Finished, Request
from .errors import ApiError, error_response, from_failed
from .exchange import Exchange, Stream
from .gate import Receive, Scope, Send
from .limits import Limits

SSE = b"text/event-stream; charset=utf-8"
STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
Ends = Sequence[Finished | Failed | None]


class Form(Protocol):
    """Turns events into bytes. `part` is the place of the request among those of one answer."""

    content_type: bytes  # of a stream

    def take(self, part: int, event: Event) -> bytes:
        """What a stream says of `event`. Also called, and the result dropped, for an answer in one piece."""
        ...

    def closing(self) -> bytes:
        """What a stream that was answered in full ends with."""
        ...

    def error(self, error: ApiError) -> bytes:
        """What a stream that failed ends with."""
        ...

    def whole(self) -> Any:
        """The answer in one piece, for JSON, once every part has finished."""
        ...


class Reply(Response):
    """Runs `requests` and answers in `form`. `ended` is called once, with the last event of each part (None: the
    client went away before)."""

    def __init__(
        self,
        exchange: Exchange,
        requests: Sequence[Request],
        form: Form,
        *,
        stream: bool,
        limits: Limits,
        ended: Callable[[Ends], None] = lambda ends: None,
    ) -> None:
        super().__init__()
        self._exchange = exchange
        self._requests = requests
        self._form = form
        self._streamed = stream
        self._limits = limits
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        stream = self._exchange.submit(self._requests)
        gone = asyncio.ensure_future(_disconnected(receive))
        work = asyncio.ensure_future(self._answer(stream, scope, receive, send))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            gone.cancel()
            work.cancel()
            stream.close()
            self._ended(stream.ends)

    async def _answer(self, stream: Stream, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            early = await self._accepted(stream)
            if self._streamed:
                await self._send_stream(stream, early, scope, send)
                return
            async for batch in self._batches(stream, early):
                for part, event in batch:
                    self._form.take(part, event)
            answer = Response(encoded(self._form.whole()), media_type="application/json")
        except ApiError as error:
            answer = error_response(error)
        await answer(scope, receive, send)

    async def _accepted(self, stream: Stream) -> list[tuple[int, Event]]:
        """The first events, once there is one of each part. ApiError when a part was refused."""
        early: list[tuple[int, Event]] = []
        while len({part for part, _ in early}) < len(self._requests):
            early += await stream.events()
            _raise_failure(stream, early)
        return early

    async def _batches(
        self, stream: Stream, batch: list[tuple[int, Event]]
    ) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """`batch` and all that follow; an empty one when nothing came for `ping_s`. ApiError when a part fails."""
        left = len(self._requests)
        while True:
            yield batch
            left -= sum(isinstance(event, Finished) for _, event in batch)
            if left == 0:
                return
            batch = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.ping_s):
                    batch = await stream.events()
            _raise_failure(stream, batch)

    async def _send_stream(
        self, stream: Stream, early: list[tuple[int, Event]], scope: Scope, send: Send
    ) -> None:
        form = self._form
        headers = [(b"content-type", form.content_type), *STREAM_HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        ping = b": waiting\n\n" if form.content_type == SSE else b""
        try:
            async for batch in self._batches(stream, early):
                data = b"".join([form.take(part, event) for part, event in batch]) if batch else ping
                if data:
                    await self._write(scope, send, data)
            last = form.closing()
        except ApiError as error:
            last = form.error(error)
        await self._write(scope, send, last, more=False)

    async def _write(self, scope: Scope, send: Send, data: bytes, more: bool = True) -> None:
        """Send, or cut a connection whose reader takes nothing for `stall_s`."""
        connection = scope["extensions"]["lmtop"]
        message = {"type": "http.response.body", "body": data, "more_body": more}
        if not connection.full:
            await send(message)  # does not wait
            return
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await send(message)
        except TimeoutError:
            connection.abort()
            raise asyncio.CancelledError from None


def encoded(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _raise_failure(stream: Stream, events: Sequence[tuple[int, Event]]) -> None:
    for _, event in events:
        if isinstance(event, Failed):
            raise from_failed(event)
        if isinstance(event, Finished) and event.reason == "cancelled" and stream.why_cut == "shutting_down":
            raise ApiError(503, "the server is shutting down", "shutting_down")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
