"""Server-sent events (the WHATWG's `text/event-stream`) from bytes as they arrive, in a bounded buffer."""

from __future__ import annotations

from dataclasses import dataclass

EVENT_LIMIT = 1 << 20  # bytes of one line, and of one event's data


class TooLong(ValueError):
    """A line or an event above the limit."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its type ("message" where none is named) and its data lines, joined."""

    data: str
    type: str = "message"


class EventStream:
    """Feed it the body's bytes, however they were cut; lines end in CR, LF or CRLF. Comments, `id`, `retry` and
    unknown fields are skipped; an event without data is none."""

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._limit = limit
        self._line = bytearray()  # the open line
        self._data: list[str] = []
        self._size = 0
        self._type = ""
        self._after_cr = False
        self._first = True

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that `chunk` completes. Raises TooLong."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":  # the second half of a CRLF
                chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        *complete, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events = []
        for end in complete:
            self._line += end
            self._check(len(self._line))
            line, self._line = bytes(self._line), bytearray()
            if (event := self._take(line)) is not None:
                events.append(event)
        self._line += rest
        self._check(len(self._line))
        return events

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise TooLong(f"more than {self._limit} bytes in one event")

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._first:
            self._first, line = False, line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            data, kind = self._data, self._type or "message"
            self._data, self._size, self._type = [], 0, ""
            return ServerEvent("\n".join(data), kind) if data else None
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            self._size += len(value) + 1
            self._check(self._size)
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        return None
