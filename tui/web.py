"""`lmtop web`: the terminal program in a browser tab, as a client of one server. Each tab is a process of its own.

textual-serve does the work. What is added is who may come in: whoever opens the printed address, whose token becomes a
cookie, from a page of this server itself. Without that, any web page that a user visits could type into the program.
"""

from __future__ import annotations

import secrets
import shlex
import socket
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..engine.settings import UI
from ..engine.text import one_line
from ..engine.types import UsageError

if TYPE_CHECKING:
    from aiohttp import web

    from ..engine.arguments import Options

TABS = 16  # open at the same time
POLICY = (  # nothing is fetched from elsewhere: the page works offline, and nobody learns of it
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' ws: wss:; frame-ancestors 'none'"
)


def run_web(options: Options) -> int:
    """Serve until a signal comes; the exit code. UsageError where the server, the port or textual-serve is missing."""
    from .link import server_of

    server = server_of(options)
    if server is None:
        raise UsageError(
            "lmtop web SERVER: name the server whose model is talked to, such as http://127.0.0.1:23333"
        )
    host, port = options.extra["web_host"] or "127.0.0.1", _port(options.extra["web_port"] or "23334")
    try:
        guarded = _server_class()
    except ModuleNotFoundError:
        raise UsageError("lmtop web needs textual-serve: pip install 'lmtop[web]'") from None
    listener = listen(host, port)
    guarded(tab_command(options), host, port, secrets.token_urlsafe(24)).run(listener)
    return 0


def tab_command(options: Options) -> str:
    """The shell command of a tab. It names where a key is, never the key."""
    extra = options.extra
    words = [sys.executable, "-m", "lmtop", "connect", extra["server"]]
    for flag in ("key_env", "key_file", "ca_file", "model"):
        if (value := extra[f"connect_{flag}"]) is not None:
            words += [f"--{'api-' if flag.startswith('key') else ''}{flag.replace('_', '-')}", value]
    names = {setting.name: setting for setting in UI}
    if options.values["theme"] != names["theme"].default:
        words += ["--theme", options.values["theme"]]
    return shlex.join(words)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise UsageError(f"--port = {one_line(text, 20)!r}: must be an integer from 1 to 65535")
    return int(text)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at this address. UsageError where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        return listener
    except OSError as error:
        raise UsageError(f"cannot listen on {one_line(host, 60)}:{port}: {error.strerror}") from None


def _server_class() -> Any:
    """textual-serve's server behind the token; imported when it is needed, as it is an extra."""
    from aiohttp import web
    from textual_serve.server import Server

    class GuardedServer(Server):
        def __init__(self, command: str, host: str, port: int, token: str) -> None:
            shown = (
                socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            )
            super().__init__(command, host, port, "lmtop", f"http://{shown}:{port}")
            self.token = token
            self.cookie = f"lmtop-{port}"
            self.tabs = 0

        def run(self, listener: socket.socket) -> None:
            """Serve at `listener` until INT or TERM."""
            print(f"lmtop: open {self.public_url}/?token={self.token} in a browser; ^C ends", flush=True)
            web.run_app(self._make_app(), sock=listener, print=None, access_log=None)

        async def on_startup(self, app: web.Application) -> None:
            """Instead of textual-serve's banner: the line above says it."""

        async def _make_app(self) -> web.Application:
            @web.middleware
            async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
                return await self.guard(request, handler)

            app = await super()._make_app()
            app.middlewares.append(guard)
            return app

        async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
            """Let those in who know the token; a page of another origin never."""
            origin = request.headers.get("Origin")
            foreign = origin is not None and urlsplit(origin).netloc != request.host
            if foreign or (request.path == "/ws" and origin is None):
                return web.Response(status=403, text="only from this server's own page")
            if request.path == "/" and _same(request.query.get("token", ""), self.token):
                entered: web.StreamResponse = web.Response(status=302, headers={"Location": "/"})
                entered.set_cookie(self.cookie, self.token, httponly=True, samesite="Strict")
                return entered
            if not _same(request.cookies.get(self.cookie, ""), self.token):
                return web.Response(status=401, text="open the address that lmtop printed, with its token")
            if request.path == "/ws":
                return await self.tab(request, handler)
            response: web.StreamResponse = await handler(request)
            if not response.prepared:
                response.headers["Content-Security-Policy"] = POLICY
                response.headers["Referrer-Policy"] = "no-referrer"
            return response

        async def tab(self, request: web.Request, handler: Any) -> web.StreamResponse:
            if self.tabs >= TABS:
                return web.Response(status=503, text=f"{TABS} tabs are open already")
            self.tabs += 1
            try:
                opened: web.StreamResponse = await handler(request)
                return opened
            finally:
                self.tabs -= 1

    return GuardedServer


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())
