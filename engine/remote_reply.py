"""One reply of a server: asked for, tried again where that may help, streamed as events, ended by exactly one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from .client import Mailbox
from .remote_chat import OPTIONAL, ReplyReader, body_of
from .remote_http import Channel, Lost, Refused
from .remote_kinds import Kind
from .sse import EventStream, TooLong
from .text import one_line
from .types import (
    NOT_TOLD,
    Delta,
    Failed,
    Finished,
    FinishReason,
    LmtopError,
    Notice,
    RemoteError,
    Request,
    Timings,
    Usage,
    Waiting,
)

BUSY = (429, 500, 502, 503, 504)
AFTER_FINISH_S = 5.0  # for the usage that may follow the last text
TELL_S = 0.25
SLOW_S = 3.0  # from when on the seconds are shown


@dataclass(slots=True)
class Source:
    """Where replies come from: a server that was found, as `RemoteBackend` keeps it."""

    channel: Channel
    path: str  # of its API
    kind: Kind
    model: str
    models: tuple[str, ...]
    context_len: int | None
    label: str
    refused: set[str] = field(default_factory=set)  # fields that it turned out not to take


class RemoteReply:
    """`run` answers `request` into `mailbox`. `server_id` is what the server calls it, once that is known."""

    def __init__(
        self, request: Request, mailbox: Mailbox, source: Source, notice: Callable[[Notice], None]
    ) -> None:
        self.request = request
        self.mailbox = mailbox
        self._source = source
        self._limits = source.channel.limits
        self._notice = notice
        self._reader = ReplyReader()
        self._submitted = time.monotonic()
        self._first_text = 0.0
        self._last_text = 0.0
        self._again_at = 0.0  # when the next try begins
        self._busy = ""

    @property
    def server_id(self) -> str:
        return self._reader.id

    async def run(self) -> None:
        """Cancelling it closes the connection, and ends the reply as cancelled."""
        teller = asyncio.create_task(self._tell())
        last: Finished | Failed
        try:
            await self._answer(teller)
            last = self._finished("length" if self._reader.finish == "length" else "stop")
        except asyncio.CancelledError:
            last = self._finished("cancelled")
        except LmtopError as error:
            last = Failed(self.request.id, "remote", str(error))
        except Exception as error:  # noqa: BLE001 - a reply must end, whatever happened
            last = Failed(self.request.id, "internal_error", f"internal error: {type(error).__name__}")
        finally:
            teller.cancel()
        self.mailbox.put(last)

    # --- trying --------------------------------------------------------------------------------------------

    async def _answer(self, teller: asyncio.Task[None]) -> None:
        tries, lost = 1, False
        while True:
            try:
                await self._attempt(teller)
                return
            except Lost:
                if lost:
                    raise
                lost = True
            except Refused as error:
                if (name := self._blamed(error)) is not None:
                    self._give_up(name)
                    continue
                if error.status not in BUSY or tries == self._limits.tries:
                    raise self._final(error) from None
                await self._pause(error, tries)
                tries += 1

    def _blamed(self, error: Refused) -> str | None:
        """The optional field that the server does not take, if that is what its error says."""
        if error.status not in (400, 422):
            return None
        _, body = body_of(self.request, self._source.model, self._source.kind, self._source.refused)
        given = [name for name in body if name not in ("model", "messages", "prompt", "stream")]
        named = error.param or next((name for name in given if f"'{name}'" in str(error)), "")
        return named if named in given else None

    def _give_up(self, name: str) -> None:
        self._source.refused.add(name)
        if name not in OPTIONAL:
            text = f"{self._source.label} does not take the {name} that is set: its own applies"
            self._notice(Notice(text, "warning"))
        elif name == "max_completion_tokens":
            self._notice(Notice(f"{self._source.label} takes no longest length of a reply", "warning"))

    def _final(self, error: Refused) -> RemoteError:
        """The error as it is shown when nothing is tried again."""
        if error.status == 404 and self._source.models:
            names = ", ".join(one_line(name, 40) for name in self._source.models[:5])
            more = f" and {len(self._source.models) - 5} more" if len(self._source.models) > 5 else ""
            return RemoteError(f"{error}; this server has {names}{more}")
        return error

    async def _pause(self, error: Refused, tries: int) -> None:
        """Wait as long as the server asks, or a little; RemoteError where it asks for too much."""
        wait = error.after_s
        if wait is None:
            wait = self._limits.backoff_s * 2 ** (tries - 1) * random.uniform(0.75, 1.25)
        if wait > self._limits.wait_most_s:
            raise RemoteError(f"{error}; it asks to wait {_long(wait)}: regenerate to try before")
        self._busy = f"{one_line(str(error), 120)}; try {tries + 1} of {self._limits.tries}"
        self._again_at = time.monotonic() + wait
        await asyncio.sleep(wait)
        self._again_at = 0.0

    async def _tell(self) -> None:
        """Say what is waited for, until there is text."""
        shown = ""
        while True:
            now = time.monotonic()
            if self._again_at:
                text = f"{self._busy} in {max(1, round(self._again_at - now))} s"
            else:
                waited = now - self._submitted
                text = f"waiting for {one_line(self._source.label, 60)}"
                text += f": {waited:.0f} s" if waited >= SLOW_S else ""
            if text != shown:
                shown = text
                self.mailbox.put(Waiting(self.request.id, text))
            await asyncio.sleep(TELL_S)

    # --- one try -------------------------------------------------------------------------------------------

    async def _attempt(self, teller: asyncio.Task[None]) -> None:
        source, limits = self._source, self._limits
        endpoint, body = body_of(self.request, source.model, source.kind, source.refused)
        reader = self._reader = ReplyReader()
        began = False
        try:
            async with (
                asyncio.timeout(limits.first_s) as clock,
                source.channel.open("POST", source.path + endpoint, body, "text/event-stream") as response,
            ):
                if response.status_code != 200:
                    raise await source.channel.refusal(response)
                began = True
                await self._read(response, reader, clock, teller)
        except TimeoutError:
            if reader.ended:
                return
            if self._first_text or began:
                raise RemoteError(f"stalled: {source.label} sent nothing for {limits.idle_s:g} s") from None
            raise RemoteError(f"{source.label} did not answer within {limits.first_s:g} s") from None
        if not reader.ended:
            raise RemoteError("interrupted: the connection ended before the reply did")
        if reader.finish in ("abort", "error", "cancelled"):
            raise RemoteError(f"interrupted: {source.label} ended the reply: {reader.finish}")
        if reader.finish == "content_filter":
            self._notice(Notice(f"{source.label} ended the reply by its content filter", "warning"))

    async def _read(
        self,
        response: httpx.Response,
        reader: ReplyReader,
        clock: asyncio.Timeout,
        teller: asyncio.Task[None],
    ) -> None:
        channel, limits, loop = self._source.channel, self._limits, asyncio.get_running_loop()
        kind = response.headers.get("content-type", "").lower()
        if "json" in kind or "html" in kind:  # a server that does not stream, or none at all
            data = await channel.read(response, limits.document)
            text = ""
            with contextlib.suppress(RemoteError):
                text = reader.take(data.decode("utf-8", "replace")) if "json" in kind else ""
            if not reader.ended:
                raise RemoteError(channel.strange(data))
            self._put(text, teller)
            return
        stream, size, events, start = EventStream(limits.event), 0, 0, b""
        silent_at = loop.time() + limits.silent_s
        async for chunk in channel.chunks(response):
            size += len(chunk)
            start = start or chunk[:400]
            if size > limits.answer:
                raise RemoteError(f"the reply is larger than {limits.answer >> 20} MiB: stopped")
            try:
                told = stream.feed(chunk)
            except TooLong as error:
                raise RemoteError(f"interrupted: {error}") from None
            for event in told:
                events += 1
                self._put(reader.take(event.data), teller)
            if told:
                silent_at = loop.time() + limits.silent_s
            if reader.done:
                return
            idle = AFTER_FINISH_S if reader.finish is not None else limits.idle_s
            clock.reschedule(min(loop.time() + idle, silent_at))
        if not events:
            raise RemoteError(channel.strange(start))

    def _put(self, text: str, teller: asyncio.Task[None]) -> None:
        if not text:
            return
        self._last_text = time.monotonic()
        if not self._first_text:
            teller.cancel()
            self._first_text = self._last_text
        self.mailbox.put(Delta(self.request.id, text))

    # --- the end -------------------------------------------------------------------------------------------

    def _finished(self, reason: FinishReason) -> Finished:
        counts, now = self._reader.counts, time.monotonic()
        known = NOT_TOLD not in (counts.prompt, counts.completion) and self._source.context_len is not None
        left = (self._source.context_len or 0) - counts.prompt - counts.completion
        usage = Usage(counts.prompt, counts.completion, counts.cached, max(0, left) if known else NOT_TOLD)
        streamed = self._last_text - self._first_text
        measured = (counts.completion - 1) / streamed if counts.completion > 1 and streamed > 0.05 else 0.0
        timings = Timings(
            queue_s=NOT_TOLD,
            ttft_s=self._first_text - self._submitted if self._first_text else 0.0,
            total_s=now - self._submitted,
            prefill_tps=counts.prefill_tps or 0.0,
            decode_tps=counts.decode_tps or measured,
        )
        return Finished(self.request.id, reason, usage, timings)


def _long(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )
