"""A small Hugging Face hub on 127.0.0.1: one revision per repository, as much as huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves and what it was asked. `status` refuses everything; `storage` is the base URL that
    weights are redirected to, as the real hub does; `pause` holds weights back after their first part."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int = 200
    storage: str = ""
    page: bytes = b""
    pause: threading.Event | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    _server: ThreadingHTTPServer | None = None

    def add(self, name: str, directory: Path) -> None:
        self.repositories[name] = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [
            path.rsplit("/", 1)[-1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.pause is not None:
            self.pause.set()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that cancels
                self._answer(body=True)

        def _answer(self, body: bool) -> None:
            hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            path = self.path.split("?")[0]
            if hub.status != 200:
                self._send(hub.status, b"{}", {}, body)
            elif hub.page:
                self._send(200, hub.page, {"Content-Type": "text/html"}, body)
            elif path.startswith("/api/models/"):
                self._info(path.removeprefix("/api/models/"), body)
            elif "/resolve/" in path:
                self._file(path, body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def _info(self, name: str, body: bool) -> None:
            files = hub.repositories.get(name)
            if files is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                return
            siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
            info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)

        def _file(self, path: str, body: bool) -> None:
            repository, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            data = hub.repositories.get(repository, {}).get(name)
            if data is None or revision not in (COMMIT, "main"):
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            if hub.storage and name.endswith(".safetensors"):
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
                headers["Location"] = hub.storage + path
                self._send(302, b"", headers, body)
                return
            start = 0
            if asked := self.headers.get("Range"):
                start = int(asked.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206 if asked else 200, data[start:], headers, body, slow=name.endswith(".safetensors"))

        def _send(
            self, status: int, data: bytes, headers: dict[str, str], body: bool, slow: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            first = len(data) // 2 if slow and hub.pause is not None else len(data)
            self.wfile.write(data[:first])
            self.wfile.flush()
            if first < len(data) and hub.pause is not None:
                deadline = time.monotonic() + 30
                while not hub.pause.wait(0.05) and time.monotonic() < deadline:
                    pass
                self.wfile.write(data[first:])

    return Handler
