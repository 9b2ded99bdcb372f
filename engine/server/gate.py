"""What every request passes first: key, Host, Origin, size and kind. Everything is refused that is not known good.

It looks at the raw path, so that no spelling of a path goes round it. Only `/health` needs no key.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from ..types import UsageError
from .errors import ApiError, error_response
from .limits import Limits

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATH = b"/health"
CORS_METHODS = "GET, POST, OPTIONS"
CORS_HEADERS = "Authorization, Content-Type"


class Keys:
    """The accepted keys, as hashes. Comparing takes the same time for every wrong key."""

    def __init__(self, keys: Iterable[str]) -> None:
        """UsageError for a key that nobody could send."""
        self._hashes = [self._hash(checked_key(key).encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    @staticmethod
    def _hash(key: bytes) -> bytes:
        return hashlib.sha256(key).digest()

    def accept(self, authorization: list[str]) -> bool:
        """Whether these Authorization headers are one `Bearer` and a known key."""
        if len(authorization) != 1:
            return False
        scheme, _, key = authorization[0].partition(" ")
        given = self._hash(key.encode("latin-1"))
        known = [hmac.compare_digest(given, each) for each in self._hashes]  # all, whichever is right
        return any(known) and scheme.lower() == "bearer"


def checked_key(key: str) -> str:
    """`key`, or UsageError: an empty key must never mean "no key"."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            "an API key is empty, or has spaces or characters beyond ASCII; use letters, digits, - and _"
        )
    return key


class Gate:
    """ASGI middleware. `hosts` are names that a Host header may have beside IP addresses and localhost; `local`:
    only this machine can connect. Foreign Hosts are refused wherever no key protects from a page that rebinds its
    name to this server; foreign Origins always."""

    def __init__(
        self,
        application: Application,
        *,
        keys: Keys,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        local: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self._application = application
        self._keys = keys
        self._hosts = {host.lower().rstrip(".") for host in hosts} | {"localhost"}
        self._origins = set(origins)
        self._check_host = local or not keys
        self._limits = limits if limits is not None else Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_size(scope, headers)
            allowed = self._check_origin(headers, scope["scheme"])
            if (
                origin is not None
                and scope["method"] == "OPTIONS"
                and "access-control-request-method" in headers
            ):
                await self._preflight(origin)(scope, receive, send)
                return
            if (
                self._keys
                and scope["raw_path"] != OPEN_PATH
                and not self._keys.accept(headers.getlist("authorization"))
            ):
                raise ApiError(
                    401,
                    "this server needs an API key: Authorization: Bearer KEY",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            self._check_hosts(headers)
            self._check_type(scope, headers)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if origin is not None and allowed:
            send = _with_headers(send, self._cors(origin))
        await self._application(scope, receive, send)

    # --- checks --------------------------------------------------------------------------------------------

    def _check_size(self, scope: Scope, headers: Headers) -> None:
        lines = scope["headers"]
        if (
            len(lines) > self._limits.header_lines
            or sum(len(name) + len(value) for name, value in lines) > self._limits.headers
        ):
            raise ApiError(431, "the request's headers are too large", "headers_too_large")
        length = headers.get("content-length", "0")
        if "content-length" in headers and "transfer-encoding" in headers:
            raise ApiError(
                400,
                "a body has a length or comes in chunks, not both",
                "invalid_http",
                headers={"Connection": "close"},  # where the next request begins is in doubt
            )
        if not length.isdecimal() or int(length[:20]) > self._limits.body:
            raise ApiError(413, f"the body is larger than {self._limits.body} bytes", "body_too_large")

    def _check_hosts(self, headers: Headers) -> None:
        if not self._check_host:
            return
        name = host_name(headers.get("host", ""))
        if name is None or not (name in self._hosts or _is_address(name)):
            raise ApiError(
                403, "this Host is not served here; --allow-hosts names those that are", "forbidden_host"
            )

    def _check_origin(self, headers: Headers, scheme: str) -> bool:
        """Whether the page that sent this may read the answer; 403 for a page from elsewhere."""
        origin = headers.get("origin")
        if origin is None or origin == f"{scheme}://{headers.get('host', '')}":
            return False  # no page, or one of ours, which needs no permission
        if origin in self._origins or ("*" in self._origins and self._keys):
            return True
        raise ApiError(
            403,
            "pages of this Origin may not use the server; --allow-origins names those that may",
            "forbidden_origin",
        )

    @staticmethod
    def _check_type(scope: Scope, headers: Headers) -> None:
        if scope["method"] != "POST":
            return
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415, "the body must be JSON: Content-Type: application/json", "unsupported_media_type"
            )

    # --- CORS ----------------------------------------------------------------------------------------------

    @staticmethod
    def _cors(origin: str) -> dict[str, str]:
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}

    def _preflight(self, origin: str) -> Response:
        more = {
            "Access-Control-Allow-Methods": CORS_METHODS,
            "Access-Control-Allow-Headers": CORS_HEADERS,
            "Access-Control-Max-Age": "600",
        }
        return Response(status_code=204, headers=self._cors(origin) | more)


def host_name(host: str) -> str | None:
    """The name of a Host header, without port and brackets, lower case; None when it is not one."""
    name, port = host, ""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        port = port[1:]
    elif ":" in host:
        name, _, port = host.partition(":")
    if (port and not port.isdecimal()) or not name or any(c in name for c in "/?#@\\ "):
        return None
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send, extra: dict[str, str]) -> Send:
    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in extra.items()]

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *lines]}
        await send(message)

    return sending
