"""A server's gauges: lmtop's own `/v1/monitor`, else its `/metrics`, else only whether it is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from .monitor import Monitor, from_json
from .remote_http import Channel
from .remote_metrics import Reading, load_of
from .remote_probe import Found, metrics_once
from .samples import History, TelemetrySnapshot
from .sse import EventStream, TooLong
from .telemetry import Histories
from .types import RemoteError, ServerLoad

PRESENCE_S = 10.0  # between two looks at a server without gauges
SILENT_S = 10.0  # without a document
FAILURES = 3  # in a row, until a server counts as gone
DOCUMENT = 8 << 20  # bytes of one monitor document: a block map of a large card
NOT_SAID = "this server does not tell"


class RemoteMachine:
    """A server's sensors with `Telemetry`'s interface. Nothing is sampled here: `tell` brings what it said."""

    interval = 0.5

    def __init__(self) -> None:
        self._latest = TelemetrySnapshot(notice=NOT_SAID)
        self._histories = Histories()

    def start(self) -> None:
        """Nothing to start."""

    def stop(self, timeout: float = 2.0) -> None:
        """Nothing to stop."""

    def snapshot(self) -> TelemetrySnapshot:
        """The newest sample."""
        return self._latest

    def histories(self) -> Mapping[int, History]:
        """What it said so far, by device."""
        return self._histories.all()

    def tell(self, snapshot: TelemetrySnapshot) -> None:
        """One sample more."""
        if snapshot.time > self._latest.time:
            self._histories.add(snapshot)
            self._latest = snapshot


class Watch:
    """Follows one server's gauges. `load` and `monitor` are the newest, `beats` counts the answers; `told` is called
    with each monitor document."""

    def __init__(self, machine: RemoteMachine, told: Callable[[Monitor], None]) -> None:
        self.load = ServerLoad()
        self.monitor: Monitor | None = None
        self.beats = 0
        self._machine = machine
        self._told = told

    async def follow(self, channel: Channel, found: Found) -> None:
        """Run until the server cannot be reached any more, which is a RemoteError."""
        self.load, self.monitor = found.load or ServerLoad(), None
        self.beats += 1
        if found.gauges == "monitor":
            if found.monitor is not None:
                self._take(found.monitor)
            await self._stream(channel, found.root)
        else:
            await self._poll(channel, found)

    def _take(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.beats += 1
        self._machine.tell(monitor.machine)
        self._told(monitor)

    async def _stream(self, channel: Channel, root: str) -> None:
        events = EventStream(DOCUMENT)
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(SILENT_S) as clock,
                channel.open("GET", f"{root}/v1/monitor", accept="text/event-stream") as response,
            ):
                if response.status_code != 200:
                    raise await channel.refusal(response)
                async for chunk in channel.chunks(response):
                    for event in events.feed(chunk):
                        self._take(from_json(_object(event.data), time.monotonic()))
                        clock.reschedule(loop.time() + SILENT_S)
        except TimeoutError:
            raise RemoteError(f"{channel.address.place}: no gauges for {SILENT_S:g} s") from None
        except TooLong as error:
            raise RemoteError(f"{channel.address.place}: /v1/monitor: {error}") from None
        raise RemoteError(f"{channel.address.place}: the connection of the gauges ended")

    async def _poll(self, channel: Channel, found: Found) -> None:
        failures = 0
        before: Reading | None = None
        while True:
            await asyncio.sleep(channel.limits.metrics_s if found.gauges else PRESENCE_S)
            try:
                if found.gauges:
                    reading = await metrics_once(channel, found.root)
                    self.load = load_of(reading, before) if reading is not None else ServerLoad()
                    before = reading
                else:
                    await channel.document(f"{found.path}/models")
            except RemoteError:
                failures += 1
                if failures == FAILURES:
                    raise
            else:
                failures = 0
                self.beats += 1


def _object(data: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise RemoteError("/v1/monitor: the answer is no JSON") from None
