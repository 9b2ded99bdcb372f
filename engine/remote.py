"""A server as a `Backend`: OpenAI-compatible HTTP in a thread of its own. No torch.

The thread, `lmtop-remote`, runs one event loop with a task for each reply and one that finds the server, follows its
gauges, and finds it again after it was gone. Everything else only reads what that thread wrote whole.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from .client import Audience, Capabilities, Mailbox
from .config import EngineConfig
from .monitor import Monitor
from .remote_http import Channel, Limits, Refused
from .remote_kinds import UNKNOWN, not_understood
from .remote_probe import Found, probe
from .remote_reply import RemoteReply, Source
from .remote_snapshot import empty, of_monitor
from .remote_watch import RemoteMachine, Watch
from .servers import Server
from .text import one_line
from .types import (
    NOT_TOLD,
    EngineSnapshot,
    Failed,
    Finished,
    ModelState,
    Notice,
    RemoteError,
    Request,
    ServerLoad,
    Timings,
    Usage,
    UsageError,
)

CHANGED_S = 0.2  # until a server that has another model is looked at again
REJECTED_S = 30.0  # between two tries with a key that was rejected
ELSEWHERE = "F9 chooses another server"


class _Changed(Exception):
    """The server serves another model now: look at it again."""


class RemoteBackend:
    """Implements `Backend` over `server`. UsageError where its address, key or certificates cannot be used."""

    def __init__(self, server: Server, limits: Limits | None = None) -> None:
        self.server = server
        self.machine = RemoteMachine()
        self._limits = limits or Limits()
        self._address = server.address
        # refuses what cannot be used before anything starts
        self._channel = Channel(self._address, server.key(), server.ca_file, self._limits)
        self._open: dict[str, tuple[RemoteReply, asyncio.Task[None]]] = {}
        self._model = server.model
        self._found: Found | None = None
        self._source: Source | None = None
        connecting = f"connecting to {self._address.place}"
        self._audience = Audience(ModelState("loading", "", 0.0, connecting, place=self.label))
        self._watch = Watch(self.machine, self._monitored)
        self._named: set[str] = set()  # what was said once
        self._keeper: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="lmtop-remote", daemon=True)
        self._thread.start()

    @property
    def label(self) -> str:
        """What people call the server."""
        return self.server.label

    @property
    def capabilities(self) -> Capabilities:
        found = self._found
        told = found is not None and found.gauges == "monitor"
        return Capabilities(
            can_load=False,
            prefill_progress=told,
            kv_map=told,
            token_ids=False,
            models=found.models if found is not None else (),
            sampling=(found.kind if found is not None else UNKNOWN).understood,
        )

    # --- Backend -------------------------------------------------------------------------------------------

    def open(self, wake: Callable[[], None] | None = None) -> Mailbox:
        return self._audience.open(wake)

    def close_mailbox(self, mailbox: Mailbox) -> None:
        self._audience.close(mailbox)
        self._call(self._orphan, mailbox)

    def submit(self, request: Request, mailbox: Mailbox) -> None:
        if not self._call(self._begin, request, mailbox):
            mailbox.put(Failed(request.id, "no_model", f"not connected to {self.label} any more"))

    def cancel(self, request_id: str) -> None:
        self._call(self._cancel, request_id)

    def load(self, config: EngineConfig) -> None:
        """Use another of the server's models. UsageError where it has none of that name."""
        found = self._found
        if found is None:
            raise UsageError(self._audience.state.message or f"not connected to {self.label}")
        if config.model not in found.models:
            names = ", ".join(one_line(name, 40) for name in found.models[:5])
            raise UsageError(
                f"{self.label} has no model {one_line(config.model, 60)!r}; it has {names or 'none'}. "
                "F9 goes back to this machine"
            )
        self._call(self._choose, config.model)

    def cancel_load(self) -> None:
        """Nothing is loaded here."""

    def unload(self) -> None:
        raise UsageError(f"the model belongs to {self.label}; F9 goes back to this machine")

    def snapshot(self, kv_map: bool = False) -> EngineSnapshot:
        state, watch = self._audience.state, self._watch
        if state.status != "ready":
            return empty(state.status, 0, None)
        if (monitor := watch.monitor) is not None:
            replies = [reply for reply, _ in list(self._open.values())]
            return replace(of_monitor(monitor.engine, replies), heartbeat=watch.beats)
        gauged = self._found is not None and self._found.gauges
        # a server without gauges shows no life that could stand still
        beats = watch.beats if gauged else int(time.monotonic())
        return empty("ready", beats, watch.load if gauged else ServerLoad())

    def close(self, timeout: float = 2.0) -> None:
        self._call(self._stop)
        self._thread.join(timeout)

    # --- from other threads --------------------------------------------------------------------------------

    def _call(self, action: Callable[..., None], *arguments: object) -> bool:
        """Run it in the thread; False where that has ended."""
        try:
            self._loop.call_soon_threadsafe(action, *arguments)
        except RuntimeError:
            return False
        return True

    def _announce(self, state: ModelState) -> None:
        if state != self._audience.state:
            self._audience.announce(state)

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        channel = self._channel
        self._keeper = asyncio.create_task(self._keep(channel))
        try:
            await self._keeper
        except asyncio.CancelledError:
            pass
        finally:
            tasks = [task for _, task in self._open.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await channel.close()

    def _stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()

    async def _keep(self, channel: Channel) -> None:
        """Find the server, follow it until it is gone, and begin again."""
        failures = 0
        while True:
            try:
                found = await probe(channel, self._model)
                failures = 0
                self._arrived(channel, found)
                await self._watch.follow(channel, found)
            except _Changed:
                await asyncio.sleep(CHANGED_S)
            except RemoteError as error:
                rejected = isinstance(error, Refused) and error.status in (401, 403)
                if self._audience.state.status != "ready" or failures:
                    self._gone(f"{error}; trying again, {ELSEWHERE}")
                wait = (
                    REJECTED_S
                    if rejected
                    else self._limits.retry_s[min(failures, len(self._limits.retry_s) - 1)]
                )
                failures += 1
                await asyncio.sleep(wait if self._audience.state.status != "ready" else 0.2)
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._gone(f"internal error: {type(error).__name__}; {ELSEWHERE}")
                await asyncio.sleep(self._limits.retry_s[-1])

    def _arrived(self, channel: Channel, found: Found) -> None:
        model = self._model
        if model not in found.models and found.models:
            if model:
                self._audience.tell(
                    Notice(f"{self.label} has no model {one_line(model, 60)!r} now", "warning")
                )
            model = found.models[0]
        elif not found.models:
            model = ""
        self._found = found
        self._source = Source(channel, found.path, found.kind, model, found.models, None, self.label)
        self._choose(model)

    def _choose(self, model: str) -> None:
        """Use `model` from the next request on."""
        found = self._found
        if found is None or self._source is None:
            return
        context = found.contexts.get(model)
        self._source = replace(self._source, model=model, context_len=context)
        told = found.monitor.model if found.monitor is not None else None
        if told is not None and told.status != "ready":
            self._busy(told)
        elif not model:
            message = f"{self.label} serves no model; {ELSEWHERE}"
            self._announce(ModelState("none", message=message, place=self.label))
        else:
            self._model = model
            info = told.info if told is not None else None
            self._announce(ModelState("ready", model, 1.0, info=info, place=self.label, context_len=context))

    def _monitored(self, monitor: Monitor) -> None:
        """An lmtop server told of its model. Raises _Changed when it has another one than was found."""
        found, model = self._found, monitor.model
        if model.status != "ready":
            self._busy(model)
        elif (
            found is None
            or found.monitor is None
            or found.monitor.model.name != model.name
            or not found.models
            or self._audience.state.status != "ready"
        ):
            raise _Changed

    def _busy(self, model: ModelState) -> None:
        """The server's model is loaded, or is not there, as its state says."""
        message = model.message or f"{self.label} has no model loaded; {ELSEWHERE}"
        self._announce(replace(model, message=one_line(message, 300), place=self.label))

    def _gone(self, text: str) -> None:
        self._found = self._source = None
        self._announce(ModelState("failed", self._model, message=one_line(text, 400), place=self.label))

    # --- replies -------------------------------------------------------------------------------------------

    def _begin(self, request: Request, mailbox: Mailbox) -> None:
        source = self._source
        if source is None or not source.model:
            mailbox.put(Failed(request.id, "no_model", self._audience.state.message or "not connected"))
            return
        for name in not_understood(request.sampling, source.kind):
            if name not in self._named:
                self._named.add(name)
                text = f"{source.kind.title} does not understand {name.replace('_', ' ')}: it is not sent"
                self._audience.tell(Notice(text, "warning"))
        reply = RemoteReply(request, mailbox, source, self._audience.tell)
        task = self._loop.create_task(reply.run())
        self._open[request.id] = (reply, task)
        task.add_done_callback(lambda task: self._done(reply, task))

    def _done(self, reply: RemoteReply, task: asyncio.Task[None]) -> None:
        self._open.pop(reply.request.id, None)
        if task.cancelled():  # before its first step, when it could not yet say so itself
            none = Usage(NOT_TOLD, NOT_TOLD, NOT_TOLD, NOT_TOLD)
            timings = Timings(NOT_TOLD, 0.0, 0.0, 0.0, 0.0)
            reply.mailbox.put(Finished(reply.request.id, "cancelled", none, timings))

    def _cancel(self, request_id: str) -> None:
        if (entry := self._open.get(request_id)) is not None:
            entry[1].cancel()

    def _orphan(self, mailbox: Mailbox) -> None:
        for reply, task in list(self._open.values()):
            if reply.mailbox is mailbox:
                task.cancel()
