"""The connection below the application: what uvicorn leaves open to slow or greedy clients.

uvicorn has no deadline for headers, counts no connections of its own accord, and waits for a stalled reader for ever;
its own errors are plain text. This subclass of its h11 protocol adds a deadline, a count and the error form, and
hands the application a way to cut the connection, as `scope["extensions"]["lmtop"]`.
"""

from __future__ import annotations

import asyncio
import http
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import RETRY_AFTER_S, error_body
from .limits import Limits

DISCARD_S = 5.0


class Connection(H11Protocol):
    """One connection. `limits` is set on the subclass that `limited` makes."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        application = self.app

        async def with_extension(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})["lmtop"] = self
            await application(scope, receive, send)

        self.app = with_extension
        self._deadline: asyncio.TimerHandle | None = None
        self._discarding = False

    def abort(self) -> None:
        """Cut the connection; what was not sent is dropped."""
        self.transport.abort()

    @property
    def full(self) -> bool:
        """Whether a further write would wait for the reader."""
        return self.flow.write_paused

    # --- uvicorn's protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections are open", "too_many_connections")
            return
        self._expect_headers(self.limits.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.our_state is h11.ERROR or self.transport.is_closing():
            return
        before = self.cycle
        if self.timeout_keep_alive_task is not None and not self._discarding:
            self._expect_headers(self.limits.header_s)  # the first bytes of a further request
        super().data_received(data)
        if self.cycle is not before:
            self._headers_came()
        elif self._discarding and self.conn.their_state is h11.IDLE:
            self._discarding = False
            self._expect_headers(self.limits.keep_alive_s)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and (
            self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        ):
            self._refuse(400, "this is no valid HTTP request, or its headers are too large", "invalid_http")
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        # A body that was refused is read on and dropped for a while: a connection closed with bytes unread resets,
        # and the client would never see why.
        if self.cycle.more_body and self.conn.their_state is h11.SEND_BODY:
            self._discarding = True
            self._expect_headers(DISCARD_S)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the last answer was never read
        else:
            super().timeout_keep_alive_handler()

    # --- ours --------------------------------------------------------------------------------------------------

    def _expect_headers(self, seconds: float) -> None:
        self._headers_came()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _headers_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self._discarding:
            self.transport.abort()
        elif not self.transport.is_closing():
            self._refuse(408, "the headers did not arrive in time", "timeout")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """An answer without the application, and the end."""
        body = json.dumps(error_body(status, message, code)).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            *([("retry-after", RETRY_AFTER_S)] if status == 503 else []),
        ]
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers)]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()


def limited(limits: Limits) -> type[Connection]:
    """The protocol class with these limits."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
