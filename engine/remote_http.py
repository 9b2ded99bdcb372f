"""HTTP to one server, bounded: what may be read, how long it may take, and every failure as one clear line.

No redirect is followed, so that key and conversation go to the configured origin only. A proxy of the environment
is used for https alone, where it sees neither; never for this machine. Nothing compressed is accepted, as a few
bytes could become gigabytes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from .remote_address import Address, Key
from .text import one_line
from .types import RemoteError, UsageError

SHOWN = 80  # characters of a wrong answer


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes. `first_s`: until the first byte of a reply, as some servers load the model then; `idle_s`:
    between two bytes; `silent_s`: between two events, if only comments come; `metrics_s`: between two looks at /metrics; `retry_s`: until a server that
    is gone is looked for again, each time."""

    connect_s: float = 5.0
    document_s: float = 5.0
    first_s: float = 300.0
    idle_s: float = 60.0
    silent_s: float = 600.0
    event: int = 1 << 20
    answer: int = 64 << 20
    document: int = 4 << 20
    tries: int = 3
    wait_most_s: float = 60.0  # of a Retry-After that is obeyed without asking
    backoff_s: float = 0.5
    metrics_s: float = 1.0
    retry_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0)


class Refused(RemoteError):
    """The server answered, with an error. `after_s`: its Retry-After; `param`: the field it names."""

    def __init__(self, text: str, status: int, param: str = "", after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.param = param
        self.after_s = after_s


class Lost(RemoteError):
    """The connection was made, and broke before an answer began: often one that was kept open too long."""


class Channel:
    """Requests to one server. Belongs to the event loop that uses it; `close` it there."""

    def __init__(
        self, address: Address, key: Key | None, ca_file: str = "", limits: Limits | None = None
    ) -> None:
        """UsageError where the certificates of `ca_file`, or the environment's proxy, cannot be used."""
        self.address = address
        self.key = key
        self.limits = limits or Limits()
        secure = address.scheme == "https"
        try:
            self._client = httpx.AsyncClient(
                verify=_certificates(ca_file),
                trust_env=secure and not address.loopback,
                follow_redirects=False,
                timeout=httpx.Timeout(None, connect=self.limits.connect_s, write=self.limits.idle_s),
                headers={"Accept-Encoding": "identity", "User-Agent": "lmtop", **(key.header if key else {})},
            )
        except (ImportError, ValueError) as error:
            raise UsageError(f"the proxy of the environment cannot be used: {one_line(str(error))}") from None

    async def close(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, accept: str = "application/json"
    ) -> AsyncIterator[httpx.Response]:
        """The response to a request for `path` (from the root), its body still to be read. Leaving the block closes
        the connection if the body was not read whole. RemoteError where the server cannot be reached."""
        request = self._client.build_request(
            method, self.address.origin + path, json=body, headers={"Accept": accept}
        )
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            raise Lost(self.explain(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise RemoteError(self.explain(error)) from None
        try:
            yield response
        finally:
            await response.aclose()

    async def document(self, path: str, kind: str = "json") -> Any:
        """The body of `GET path` as JSON (`kind` "json") or text. RemoteError, Refused where it is an error."""
        try:
            async with (
                asyncio.timeout(self.limits.connect_s + self.limits.document_s),
                self.open(
                    "GET", path, accept="application/json" if kind == "json" else "text/plain, */*"
                ) as got,
            ):
                if got.status_code != 200:
                    raise await self.refusal(got)
                data = await self.read(got, self.limits.document)
        except TimeoutError:
            raise RemoteError(
                f"{self.address.place} does not answer within {self.limits.document_s:g} s"
            ) from None
        if kind == "text":
            return data.decode("utf-8", "replace")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise RemoteError(self.strange(data)) from None

    async def read(self, response: httpx.Response, limit: int) -> bytes:
        """The whole body. RemoteError where it is larger than `limit`, compressed, or breaks off."""
        data = bytearray()
        async for chunk in self.chunks(response):
            data += chunk
            if len(data) > limit:
                raise RemoteError(f"{self.address.place}: the answer is larger than {limit >> 20} MiB")
        return bytes(data)

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body as it arrives. RemoteError where it is compressed, or breaks off."""
        if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise RemoteError(f"{self.address.place}: the answer is compressed, which was not asked for")
        try:
            async for chunk in response.aiter_raw():
                yield chunk
        except (httpx.HTTPError, OSError) as error:
            raise RemoteError(self.explain(error)) from None

    def strange(self, data: bytes) -> str:
        """That an answer is not what a server of this kind sends, and how it begins."""
        start = one_line(self._safe(data[:400].decode("utf-8", "replace")), SHOWN) or "it is empty"
        return f"{self.address.place}: not an OpenAI-compatible answer: {start}"

    async def refusal(self, response: httpx.Response) -> Refused:
        """The error that a response tells."""
        status, place = response.status_code, self.address.place
        if 300 <= status < 400:
            to = urlsplit(urljoin(str(response.request.url), response.headers.get("location", "")))
            where = one_line(self._safe(f"{to.scheme}://{to.hostname or ''}{_port(to.netloc)}{to.path}"), 120)
            return Refused(
                f"{place}: server redirects to {where}, which is not followed: use that address", status
            )
        try:
            data = await self.read(response, 1 << 16)
        except RemoteError:
            data = b""
        text, param = _told(data)
        text = one_line(self._safe(text), 300)
        after = _seconds(response.headers.get("retry-after", ""))
        if status in (401, 403):
            how = (
                f"the key from {self.key.source}"
                if self.key
                else "no key was given: use --api-key-env NAME or F9"
            )
            return Refused(f"{place}: key rejected ({status}); {how}", status)
        fallback = {429: "too many requests", 404: "not found"}.get(status, "")
        return Refused(f"{place}: {text or fallback or 'error'} ({status})", status, param, after)

    def explain(self, error: BaseException) -> str:
        """Why there is no answer, in one line."""
        place, causes = self.address.place, list(_causes(error))
        for cause in causes:
            if isinstance(cause, ssl.SSLCertVerificationError):
                reason = one_line(cause.verify_message or str(cause), 120)
                return f"{place}: certificate not trusted: {reason}; --ca-file FILE trusts its issuer"
            if isinstance(cause, ssl.SSLError):
                return f"{place} does not speak TLS as https needs it; is the address http://{place}?"
            if isinstance(cause, socket.gaierror):
                return f"cannot connect to {place}: no such host"
            if isinstance(cause, ConnectionRefusedError):
                return f"cannot connect to {place}: refused"
            if isinstance(cause, httpx.ProxyError):
                return f"cannot connect to {place}: the proxy says {one_line(str(cause), 80)}"
        if isinstance(error, httpx.ConnectTimeout):
            return f"cannot connect to {place}: no answer within {self.limits.connect_s:g} s"
        known = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), "")
        if isinstance(error, httpx.ConnectError):
            return f"cannot connect to {place}: {one_line(known or str(error) or 'failed', 120)}"
        return f"{place}: the connection broke{f' ({one_line(known, 80)})' if known else ''}"

    def _safe(self, text: str) -> str:
        return self.key.redact(text) if self.key else text


def _certificates(ca_file: str) -> ssl.SSLContext:
    """The system's certificates, those that come with httpx, and `ca_file`'s."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if ca_file:
        try:
            context.load_verify_locations(Path(ca_file).expanduser())
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "holds no certificate"
            raise UsageError(
                f"{one_line(ca_file, 120)}: cannot use as certificates: {one_line(reason)}"
            ) from None
    return context


def _causes(error: BaseException | None, depth: int = 8) -> Iterator[BaseException]:
    """The error and all that led to it."""
    if error is None or depth == 0:
        return
    yield error
    for group in getattr(error, "exceptions", ()):
        yield from _causes(group, depth - 1)
    yield from _causes(error.__cause__ or error.__context__, depth - 1)


def _told(data: bytes) -> tuple[str, str]:
    """Message and named field of an error body, in any of the shapes that servers use."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return data[:200].decode("utf-8", "replace"), ""
    return error_text(body)


def error_text(body: Any) -> tuple[str, str]:
    """Message and named field of an error object; the message is "" where there is none."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        return "", ""
    text = error.get("message", error.get("detail", ""))
    param = error.get("param")
    if isinstance(text, list):  # FastAPI's validation errors
        place = text[0] if text and isinstance(text[0], dict) else {}
        loc = place.get("loc")
        param = str(loc[-1]) if isinstance(loc, list) and loc else ""
        text = f"{place.get('msg', 'refused')}: {param}"
    return str(text), param if isinstance(param, str) else ""


def _port(netloc: str) -> str:
    host, colon, port = netloc.rpartition(":")
    return f":{port}" if colon and host and port.isdigit() else ""


def _seconds(header: str) -> float | None:
    """A Retry-After in seconds; its other form, a date, is not obeyed."""
    try:
        value = float(header)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None
