"""`lmtop serve MODEL`: a model on HTTP until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from socket import socket
from typing import TYPE_CHECKING, Any

from ..answer import debug_log, say, show_loading
from ..telemetry import Telemetry
from ..types import LmtopError, ModelInfo, ModelState, Notice
from .access import Access, from_settings, listen
from .limits import Limits

if TYPE_CHECKING:
    from ..arguments import Options
    from ..local import LocalBackend
    from .gate import Application, Receive, Scope, Send
    from .http_server import HttpServer

ENGINE_CLOSE_S = 2.0


def run_serve(options: Options) -> int:
    """Serve until SIGTERM or Ctrl-C; 0 then, or 128 + n when a second signal cut it short. LmtopError when the model
    cannot be loaded or the address cannot be had."""
    logging.getLogger("uvicorn.error").addHandler(_Log())
    logging.getLogger("uvicorn.error").propagate = False
    with served(options) as parts:
        return asyncio.run(_serve(options, parts))


@dataclass(frozen=True, slots=True)
class Parts:
    """What a server is made of, before it serves."""

    access: Access
    listener: socket
    limits: Limits
    backend: LocalBackend
    telemetry: Telemetry

    def server(
        self,
        options: Options,
        changed: Callable[[ModelState], None],
        noticed: Callable[[Notice], None],
        wrap: Callable[[Application], Application] = lambda application: application,
    ) -> HttpServer:
        """The server that these options ask for. It calls `changed` and `noticed` on its own thread."""
        from .http_server import HttpServer
        from .service import Setup

        return HttpServer(
            self.backend,
            Setup(
                engine=replace(options.engine_config(), max_queue=options.values["max_queue"]),
                name=options.values["model_name"] or "",
                limits=self.limits,
                telemetry=self.telemetry.snapshot,
                changed=changed,
                noticed=noticed,
            ),
            self.access,
            self.listener,
            drain_s=options.values["drain"],
            wrap=wrap,
        )


@contextmanager
def served(options: Options) -> Iterator[Parts]:
    """Listen, and hold an engine without a model; both end with the context. UsageError before anything slow when the
    address cannot be had."""
    access, limits = from_settings(options.values), Limits()
    listener = listen(access, limits)
    telemetry = Telemetry(processes=True)
    from ..local import LocalBackend

    backend = LocalBackend(log=debug_log)
    telemetry.start()
    try:
        yield Parts(access, listener, limits, backend, telemetry)
    finally:
        listener.close()
        telemetry.stop(0.5)
        backend.close(ENGINE_CLOSE_S)


async def _serve(options: Options, parts: Parts) -> int:
    teller = _Teller()
    wrap = _logged if options.values["log_requests"] else lambda application: application
    server = teller.server = parts.server(options, teller.changed, teller.noticed, wrap)
    signals = _Signals(server)
    signals.install()
    say(f"listening on {parts.access.url(server.port)}; loading {options.model}")
    parts.backend.load(server.setup.engine)
    await server.run()
    if teller.failure is not None:
        raise teller.failure
    return signals.code


class _Signals:
    """The first signal drains, a second one ends at once."""

    def __init__(self, server: HttpServer) -> None:
        self.code = 0
        self._server = server
        self._count = 0

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._came, number)

    def _came(self, number: signal.Signals) -> None:
        self._count += 1
        if self._count == 1:
            say(f"{number.name}: open replies may end, then the server does; once more ends it now")
            self._server.stop()
        else:
            self.code = 128 + number
            self._server.abort()


class _Teller:
    """Says on standard error what becomes of the model. A first load that fails ends the server."""

    def __init__(self) -> None:
        self.server: HttpServer | None = None
        self.failure: LmtopError | None = None
        self._loaded = False

    def changed(self, state: ModelState) -> None:
        show_loading(state)
        info = state.info
        if state.status == "ready" and info is not None:
            self._loaded = True
            say(ready_text(info))
        elif state.status in ("failed", "dead"):
            error = state.error or LmtopError(state.message)
            if self._loaded or self.server is None:
                say(str(error))
            else:
                self.failure = error
                self.server.abort()

    def noticed(self, notice: Notice) -> None:
        say(notice.text)


def ready_text(info: ModelInfo) -> str:
    """One line about a model that is ready."""
    return (
        f"{info.name} is ready on {info.device}: {info.parameters / 1e6:,.0f} M parameters, weights {info.weights}, "
        f"KV cache {info.kv}, context {info.context_len} tokens, {info.max_batch} slots"
    )


class _Log(logging.Handler):
    """What uvicorn has to say is for those who debug it."""

    def emit(self, record: logging.LogRecord) -> None:
        debug_log(self.format(record))


def hide_keys() -> None:
    """A key on the command line is in everybody's `ps`: start again with it in the environment, which is not."""
    arguments, keys = [sys.executable], []
    given = iter(sys.orig_argv[1:])
    for argument in given:
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == "--api-keys":
            keys.append(value if equals else next(given, ""))
        else:
            arguments.append(argument)
    if keys:
        os.execve(sys.executable, arguments, os.environ | {"LMTOP_API_KEYS": ",".join(keys)})


def _logged(application: Application) -> Application:
    """One line for each request, when it has been answered."""

    async def logging_application(scope: Scope, receive: Receive, send: Send) -> None:
        status, started = 0, time.monotonic()

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await application(scope, receive, sending)
        finally:
            path = scope["raw_path"].decode("ascii", "replace")
            seconds = time.monotonic() - started
            say(f"{scope['method']} {path} {status or 'disconnected'} {seconds:.3f} s")

    return logging_application
