"""Who may use a server: its keys, where it listens, and its certificate, from the command line and the environment."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..text import one_line
from ..types import UsageError
from .gate import checked_key
from .limits import Limits

KEY_FILE_LIMIT = 64 << 10
BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Access:
    """`local`: only this machine can connect. `certificate`: key file and certificate file, for TLS."""

    host: str
    port: int
    local: bool
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    certificate: tuple[str, str] | None = None

    def url(self, port: int) -> str:
        """What to type to get there."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{port}"


def from_settings(values: Mapping[str, Any]) -> Access:
    """UsageError for whatever would leave a server open by mistake."""
    host = values["server_name"]
    local = is_local(host)
    keys = tuple(values["api_keys"].split(",")) if values["api_keys"] is not None else ()
    for key in keys:
        checked_key(key)
    if values["api_key_file"] is not None:
        keys += keys_of_file(Path(values["api_key_file"]))
    if keys and not values["auth"]:
        raise UsageError("--no-auth and API keys exclude each other: give only one of them")
    if not local and not keys and values["auth"]:
        raise UsageError(
            f"server_name = {one_line(host, 60)}: refusing to listen beyond loopback without an API key; "
            "give --api-key-file FILE or LMTOP_API_KEYS, or say --no-auth"
        )
    if "*" in values["allow_origins"] and not keys:
        raise UsageError(
            "--allow-origins *: any page could use this server; name the origins, or ask for a key"
        )
    names = [] if local else [host, socket.gethostname(), socket.getfqdn()]
    return Access(
        host=host,
        port=values["server_port"],
        local=local,
        keys=keys,
        hosts=(*values["allow_hosts"], *names),
        origins=tuple(origin.rstrip("/") for origin in values["allow_origins"]),
        certificate=_certificate(values["ssl"]),
    )


def is_local(host: str) -> bool:
    """Whether only this machine reaches `host`. UsageError for a name that means no address."""
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in _addresses(host, 0))


def _addresses(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"server_name = {one_line(host, 60)}: no such address") from None


def keys_of_file(path: Path) -> tuple[str, ...]:
    """The keys in `path`, one on each line; blank lines and those with # in front count for nothing."""
    name = one_line(str(path), 120)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > KEY_FILE_LIMIT:
                raise UsageError(f"{name}: not a small file of keys")
            if status.st_mode & 0o077:
                raise UsageError(f"{name}: others can read it; chmod 600 {name}")
            text = file.read(KEY_FILE_LIMIT).decode("ascii")
    except UnicodeDecodeError:
        raise UsageError(f"{name}: has characters beyond ASCII") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot read: {error.strerror}") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(checked_key(line) for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{name}: holds no key")
    return keys


def _certificate(wanted: bool) -> tuple[str, str] | None:
    key, certificate = os.environ.get("SSL_KEYFILE"), os.environ.get("SSL_CERTFILE")
    if not (wanted or key or certificate):
        return None
    if not key or not certificate:
        missing = "SSL_KEYFILE" if not key else "SSL_CERTFILE"
        raise UsageError(f"{missing} is not set: TLS needs SSL_KEYFILE and SSL_CERTFILE")
    try:
        # a key with a passphrase would ask for it on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"SSL_KEYFILE, SSL_CERTFILE: cannot be used: {one_line(text, 120)}") from None
    return key, certificate


def listen(access: Access, limits: Limits) -> socket.socket:
    """A socket that listens. UsageError when the address is taken or cannot be had."""
    family, kind, protocol, _, address = _addresses(access.host, access.port)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # what a stalled reader can hold up; connections inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {one_line(access.host, 60)} port {access.port}: {(error.strerror or '').lower()}"
        ) from None
    return listener
