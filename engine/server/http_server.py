"""A server on a socket: uvicorn around the application, the engine behind it, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from socket import socket

import uvicorn

from .access import Access
from .app import create_app
from .gate import Application, Gate, Keys
from .limits import Limits
from .protocol import limited
from .service import ModelBackend, Service, Setup

CLOSE_S = 1.0  # for connections to take their last bytes


class _Uvicorn(uvicorn.Server):
    """Signals are the command's business, not uvicorn's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """`run` serves until `stop` or `abort`, which any thread may call. `wrap` puts another layer of ASGI in front."""

    def __init__(
        self,
        backend: ModelBackend,
        setup: Setup,
        access: Access,
        listener: socket,
        *,
        drain_s: float = 5.0,
        wrap: Callable[[Application], Application] = lambda application: application,
    ) -> None:
        self.setup = setup
        self.port = int(listener.getsockname()[1])
        self.service: Service | None = None
        self._backend = backend
        self._access = access
        self._listener = listener
        self._drain_s = drain_s
        self._wrap = wrap
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._uvicorn: _Uvicorn | None = None
        self._aborted = False

    async def run(self) -> None:
        """Serve; returns after the end."""
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        service = self.service = Service(self._backend, self.setup)
        gate = Gate(
            create_app(service),
            keys=Keys(self._access.keys),
            hosts=self._access.hosts,
            origins=self._access.origins,
            local=self._access.local,
            limits=self.setup.limits,
        )
        server = self._uvicorn = _Uvicorn(_config(self._wrap(gate), self.setup.limits, self._access))
        service.connections = lambda: len(server.server_state.connections)
        ending = asyncio.ensure_future(self._end(service, server))
        try:
            await server.serve(sockets=[self._listener])
        finally:
            ending.cancel()
            service.close()
            self._listener.close()

    def stop(self) -> None:
        """Take no more requests, let open replies end for the drain time, then end."""
        self._tell(lambda: self._stopping.set() if self._stopping else None)

    def abort(self) -> None:
        """End now."""

        def end() -> None:
            self._aborted = True
            if self._stopping is not None:
                self._stopping.set()
            if self._uvicorn is not None:
                self._cut(self._uvicorn)

        self._tell(end)

    def _tell(self, action: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(action)

    async def _end(self, service: Service, server: _Uvicorn) -> None:
        assert self._stopping is not None
        await self._stopping.wait()
        if not self._aborted:
            await service.drain(self._drain_s)
            end = time.monotonic() + CLOSE_S
            while service.exchange.streams and time.monotonic() < end:
                await asyncio.sleep(0.01)
        server.should_exit = True
        await asyncio.sleep(CLOSE_S)
        self._cut(server)

    @staticmethod
    def _cut(server: _Uvicorn) -> None:
        server.should_exit = server.force_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()


def _config(application: Application, limits: Limits, access: Access) -> uvicorn.Config:
    key, certificate = access.certificate or (None, None)
    config = uvicorn.Config(
        application,
        http=limited(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client may not say who it is
        h11_max_incomplete_event_size=limits.headers,
        timeout_keep_alive=int(limits.keep_alive_s),
        timeout_graceful_shutdown=int(CLOSE_S) + 1,
        ssl_keyfile=key,
        ssl_certfile=certificate,
    )
    config.load()
    return config
