"""The real server on a port of its own, in a thread of this process; with the real engine or a scripted one."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import httpx
from support.engines import until
from support.fake_backend import FakeBackend

from lmtop.engine.config import EngineConfig
from lmtop.engine.faults import NONE, Faults
from lmtop.engine.local import LocalBackend
from lmtop.engine.models import demo_path
from lmtop.engine.server.access import Access, listen
from lmtop.engine.server.http_server import HttpServer
from lmtop.engine.server.limits import Limits
from lmtop.engine.server.service import Service, Setup
from lmtop.engine.template import load_template
from lmtop.engine.tokenizer import load_tokenizer

USER = [{"role": "user", "content": "Tell me a story."}]


class ScriptedBackend(FakeBackend):
    """`FakeBackend` with the demo's tokenizer and a template of the test's choice."""

    def __init__(self, template: str | None = None) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(demo_path(), "llama", 4096)
        self.template = load_template(demo_path(), "llama", self.tokenizer)
        if template is not None:
            self.template = type(self.template)(template, self.tokenizer, name="test")

    def compute(self, parts: Callable[[Any], Generator[None, None, Any]]) -> Future[Any]:
        future: Future[Any] = Future()
        running = parts(self)
        try:
            while True:
                next(running)
        except StopIteration as end:
            future.set_result(end.value)
        return future


class Server:
    """Serves from construction until `close`. `step_ms`: each step of the engine takes at least so long."""

    def __init__(
        self,
        backend: Any = None,
        *,
        model: str = "demo",
        keys: tuple[str, ...] = (),
        local: bool = True,
        origins: tuple[str, ...] = (),
        limits: Limits | None = None,
        step_ms: float = 0.0,
        drain_s: float = 5.0,
        name: str = "",
        certificate: tuple[str, str] | None = None,
        **engine: Any,
    ) -> None:
        limits = limits or Limits()
        faults = Faults(step_ms=step_ms) if step_ms else NONE
        self.backend = backend if backend is not None else LocalBackend(faults)
        config = EngineConfig(model, **{"max_batch_size": 64, "threads": 1, **engine})
        access = Access("127.0.0.1", 0, local, keys=keys, origins=origins, certificate=certificate)
        self.http = HttpServer(
            self.backend,
            Setup(config, name=name, limits=limits),
            access,
            listen(access, limits),
            drain_s=drain_s,
        )
        self.url = access.url(self.http.port)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.http.run()), daemon=True)
        self._thread.start()
        self.backend.load(config) if backend is None else None
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        trust = ssl.create_default_context(cafile=certificate[1]) if certificate else True
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=trust)
        until(lambda: self.client.get("/health").status_code == 200, "the server is ready")

    @property
    def service(self) -> Service:
        assert self.http.service is not None
        return self.http.service

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.service.exchange.loop

    def chat(self, **more: Any) -> httpx.Response:
        """A short greedy reply, in one piece."""
        body = {"messages": USER, "temperature": 0, "max_tokens": 8} | more
        return self.client.post("/v1/chat/completions", json=body)

    def events(self, path: str = "/v1/chat/completions", **body: Any) -> list[Any]:
        """The JSON of every event of a stream that ended well."""
        with self.client.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        return [json.loads(line) for line in data[:-1]]

    def idle(self) -> bool:
        """Nothing runs or waits, and every block is accounted for."""
        snapshot = self.backend.snapshot()
        kv = snapshot.kv
        return (
            kv is not None
            and not snapshot.slots
            and not snapshot.queue
            and kv.used == 0
            and kv.free + kv.cached == kv.total - 1
            and not self.service.exchange.streams
        )

    def settled(self) -> None:
        until(self.idle, "all blocks are free")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.http.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """What the server says to these bytes until it closes, or 20 s."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    @contextmanager
    def gaps(self) -> Iterator[list[float]]:
        """How late the server's event loop came to a task that sleeps 5 ms at a time, in seconds."""
        found: list[float] = []
        stop = threading.Event()

        async def measure() -> None:
            while not stop.is_set():
                before = time.monotonic()
                await asyncio.sleep(0.005)
                found.append(time.monotonic() - before - 0.005)

        done = asyncio.run_coroutine_threadsafe(measure(), self.loop)
        yield found
        stop.set()
        done.result(10)

    def close(self) -> None:
        self.client.close()
        self.http.stop()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not end"
        self.backend.close()


async def stream_text(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, float]:
    """The text of a stream that ended well, and the seconds to its first text."""
    started, first, parts, done = time.monotonic(), 0.0, [], False
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                text = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if text:
                    first = first or time.monotonic() - started
                    parts.append(text)
    assert done
    return "".join(parts), first


def many(server: Server, bodies: list[dict[str, Any]]) -> list[tuple[str, float]]:
    async def run() -> list[tuple[str, float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(stream_text(client, body) for body in bodies))

    return asyncio.run(run())


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except (ConnectionResetError, TimeoutError):
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def post(
    path: str, body: bytes, *headers: str, host: str = "localhost", kind: str = "application/json"
) -> bytes:
    """A POST request as bytes, with a correct length unless `headers` say otherwise."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}"]
    if kind:
        lines.append(f"Content-Type: {kind}")
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, *headers]).encode("latin-1") + b"\r\n\r\n" + body


def is_error(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check the form of an error; its inner object."""
    assert response.status_code == status, (response.status_code, response.text)
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert code is None or error["code"] == code, error
    for word in ("Traceback", "0x", "/site-packages", "Error(", "object at"):
        assert word not in response.text, response.text
    return error
