"""Which engine the program talks to: this machine's, or a server's.

This machine's is made when it is first needed, and kept while a server is talked to: its model stays loaded.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from ..engine.client import Backend
from ..engine.config import EngineConfig
from ..engine.servers import LOCAL, Server, find, read_servers, saved
from ..engine.text import one_line
from ..engine.types import UsageError

if TYPE_CHECKING:
    from ..engine.arguments import Options
    from ..engine.remote import RemoteBackend
    from ..engine.telemetry import Telemetry
    from .app import LmtopApp

CLOSE_S = 1.0  # what a server's connections get to end in


def server_of(options: Options) -> Server | None:
    """The server of `lmtop connect`, None where none is named. UsageError where it, or its key, cannot be used."""
    extra = options.extra
    if extra["server"] is None:
        return None
    server = find(extra["server"], read_servers())
    if extra["connect_key_env"] or extra["connect_key_file"]:
        server = replace(
            server,
            api_key_env=extra["connect_key_env"] or "",
            api_key_file=extra["connect_key_file"] or "",
        )
    if extra["connect_ca_file"]:
        server = replace(server, ca_file=extra["connect_ca_file"])
    if extra["connect_model"]:
        server = replace(server, model=extra["connect_model"])
    server.key()
    return server


class Link:
    """`server` is the one talked to, None for this machine. `backend` and `telemetry` stand for this machine's in
    tests."""

    def __init__(
        self, app: LmtopApp, backend: Backend | None = None, telemetry: Telemetry | None = None
    ) -> None:
        self.server: Server | None = None
        self._app = app
        self._local = backend
        self._sensors = telemetry
        self._sampling = False  # whether the sensors are being read
        self._remote: RemoteBackend | None = None
        self._closing: set[asyncio.Future[None]] = set()

    @staticmethod
    def named(text: str) -> Server | None:
        """The server that `text` names, by a saved name or an address; None for this machine. Raises UsageError."""
        return None if text == LOCAL else find(text, read_servers())

    async def switch(self, server: Server | None) -> None:
        """Like `use`, but asks before it ends replies, and says what was done."""
        from .screens.ask import Ask

        generating = self._app.sessions.generating
        if not generating:
            await self._switched(server)
            return

        async def answered(answer: str | None) -> None:
            if answer == "s":
                await self._switched(server)

        count = "A reply is" if len(generating) == 1 else f"{len(generating)} replies are"
        question = f"{count} being generated. Switching ends it; its text is kept."
        self._app.push_screen(Ask(question, [("s", "stop and switch")]), answered)

    async def _switched(self, server: Server | None) -> None:
        await self.use(server)
        where = (
            "this machine" if server is None else f"{one_line(server.label, 60)} ({server.address.origin})"
        )
        self._app.chat.notice(f"now on {where}; the conversations stay")

    async def use(self, server: Server | None) -> None:
        """Talk to `server`, or to this machine. UsageError where its key or certificates cannot be used; then nothing
        changes."""
        before = self._remote
        if server is None and self._app.is_web:
            raise UsageError("in a browser the model runs on a server: each tab would load one of its own")
        if server is None:
            self._remote = None
            self._local = self._local or _local_backend()
            self.server = None
            self._app.attach(self._local, self._own_sensors())
        else:
            remote = await asyncio.get_running_loop().run_in_executor(None, _remote_backend, server)
            self._remote, self.server = remote, server
            self._app.attach(remote, remote.machine)
        if before is not None:
            closed = asyncio.get_running_loop().run_in_executor(None, before.close, CLOSE_S)
            self._closing.add(closed)
            closed.add_done_callback(self._closing.discard)

    def choose(self, model: str) -> None:
        """Use another of the server's models; of a saved server, also the next time. Raises UsageError."""
        if self.server is None or self._remote is None:
            raise UsageError("no server is talked to")
        self._remote.load(EngineConfig(model))
        if self.server.name:
            self.server = replace(self.server, model=model)
            saved(self.server, self.server.name)

    def _own_sensors(self) -> Telemetry:
        if self._sensors is None:
            from ..engine.telemetry import Telemetry

            self._sensors = Telemetry(processes=True)
        if not self._sampling:
            self._sensors.start()
            self._sampling = True
        return self._sensors

    async def close(self, timeout: float) -> None:
        """End both engines' threads, in at most about `timeout` seconds."""
        loop = asyncio.get_running_loop()
        if self._sensors is not None and self._sampling:
            self._sensors.stop()
        backends = [backend for backend in (self._local, self._remote) if backend is not None]
        closing = [loop.run_in_executor(None, backend.close, timeout) for backend in backends]
        if closing:
            await asyncio.wait(closing, timeout=timeout + 0.2)


def _local_backend() -> Backend:
    from ..engine.local import LocalBackend

    return LocalBackend()


def _remote_backend(server: Server) -> RemoteBackend:
    from ..engine.remote import RemoteBackend

    return RemoteBackend(server)
