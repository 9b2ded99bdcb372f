"""A remote backend and everything it says, for tests that wait for conditions."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmtop.engine.remote import RemoteBackend
from lmtop.engine.remote_http import Limits
from lmtop.engine.servers import Server
from lmtop.engine.types import (
    Delta,
    Event,
    Failed,
    Finished,
    Message,
    ModelState,
    Notice,
    Request,
    SamplingParams,
    Waiting,
)

DEADLINE_S = 10.0
FAST = Limits(backoff_s=0.01, metrics_s=0.05, retry_s=(0.05,))
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


class Desk:
    """One consumer of a `RemoteBackend`; `events` is all that it was told."""

    def __init__(self, backend: RemoteBackend) -> None:
        self.backend = backend
        self.events: list[Event] = []
        self.mailbox = backend.open()

    def until(self, there: Callable[[], Any]) -> Any:
        """What `there` gives once it is true."""
        end = time.monotonic() + DEADLINE_S
        while not (found := there()):
            assert time.monotonic() < end, self.events
            self.mailbox.wait(0.01)
            self.events += self.mailbox.drain()
        return found

    def state(self, status: str) -> ModelState:
        """The newest state, once it is `status`."""

        def there() -> ModelState | None:
            last = [event for event in self.events if isinstance(event, ModelState)][-1:]
            return last[0] if last and last[0].status == status else None

        found = self.until(there)
        assert isinstance(found, ModelState)
        return found

    def ask(self, text: str = "hello", id: str = "r1", **sampling: Any) -> str:
        """Submit a request for one reply."""
        self.backend.submit(
            Request(
                id, (Message("user", text),), sampling=SamplingParams(**sampling), session="7", label="chat"
            ),
            self.mailbox,
        )
        return id

    def last(self, id: str = "r1") -> Finished | Failed:
        """The reply's last event."""
        found = self.until(
            lambda: [e for e in self.events if isinstance(e, Finished | Failed) and e.id == id]
        )
        assert len(found) == 1
        return found[0]  # type: ignore[no-any-return]

    def failed(self, id: str = "r1") -> str:
        last = self.last(id)
        assert isinstance(last, Failed), last
        assert "\n" not in last.message and last.message.isprintable()
        return last.message

    def finished(self, id: str = "r1") -> Finished:
        last = self.last(id)
        assert isinstance(last, Finished), last
        return last

    def text(self, id: str = "r1") -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta) and event.id == id)

    def waits(self, id: str = "r1") -> list[str]:
        return [event.text for event in self.events if isinstance(event, Waiting) and event.id == id]

    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


@contextmanager
def desk(url: str, limits: Limits = FAST, ready: bool = True, **fields: Any) -> Iterator[Desk]:
    """A backend of the server at `url`, connected unless `ready` is False."""
    backend = RemoteBackend(Server("", url, **fields), limits)
    try:
        made = Desk(backend)
        if ready:
            made.state("ready")
        yield made
    finally:
        backend.close()


def certificate(folder: Path, host: str = "127.0.0.1", days: int = 2) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a certificate that nobody else issued, and its file."""
    name = f"IP:{host}" if host[0].isdigit() else f"DNS:{host}"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", str(days),
         "-subj", "/CN=test", "-addext", f"subjectAltName={name}"],
        check=True, capture_output=True, timeout=30, env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, folder / "cert.pem"
