"""Where a server is and what opens it: `Address` from what a user typed, `Key` that never shows itself."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .text import one_line
from .types import UsageError

PORTS = {"http": 80, "https": 443}
KEY_LIMIT = 8192  # bytes of a key file


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address. `paths` are where its API may lie, the likeliest first; `typed_scheme`: the user chose it."""

    scheme: str
    host: str
    port: int
    paths: tuple[str, ...]
    typed_scheme: bool = True

    @property
    def place(self) -> str:
        """HOST:PORT, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a key is for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == PORTS[self.scheme] else f":{self.port}")

    @property
    def url(self) -> str:
        """The whole address, as it is shown and kept."""
        return self.origin + self.paths[0]

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """`http://host:port`, with or without `/v1` or another path; without a scheme it is http. UsageError, which never
    repeats a password, for anything else."""
    text = text.strip()
    typed = "://" in text
    if typed and not re.match(r"https?://", text, re.IGNORECASE):
        raise UsageError(
            f"{one_line(text.split('://')[0], 20)}://: a server's address begins with http:// or https://"
        )
    try:
        parts = urlsplit(text if typed else f"http://{text}")
        port, host = parts.port, parts.hostname
    except ValueError:
        raise UsageError("the server's address is wrong: write http://HOST:PORT") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "a user name or password in the address would be seen by others; "
            "give the key by --api-key-env NAME or --api-key-file PATH"
        )
    if parts.query or parts.fragment:
        raise UsageError(f"{one_line(host or '', 60)}: a server's address has no ? and no #")
    if not host or not re.fullmatch(r"[\w.:%-]+", host) or not re.fullmatch(r"[\x21-\x7e]*", parts.path):
        raise UsageError(f"{one_line(text, 60)!r} is no address of a server: write http://HOST:PORT")
    scheme = parts.scheme.lower()
    return Address(scheme, host, PORTS[scheme] if port is None else port, _paths(parts.path), typed)


def _paths(path: str) -> tuple[str, ...]:
    path = re.sub(r"/+", "/", path).rstrip("/")
    path = re.sub(r"(/chat/completions|/completions|/models)$", "", path)  # a whole endpoint was pasted
    if path.endswith("/v1"):
        return (path,)
    return (f"{path}/v1", path) if path else ("/v1",)


class Key:
    """A server's key. `source` says where it came from; no way of printing it shows the key."""

    __slots__ = ("_secret", "source")

    def __init__(self, secret: str, source: str) -> None:
        """UsageError where `secret` cannot be a key."""
        if not re.fullmatch(r"[\x21-\x7e]+", secret):
            raise UsageError(f"{source}: not a key: it must be one line without blanks, and not empty")
        self._secret = secret
        self.source = source

    def __repr__(self) -> str:
        return f"Key(from {self.source})"

    def __reduce__(self) -> str:
        raise TypeError("a key is not copied out of the process")

    @property
    def header(self) -> dict[str, str]:
        """The HTTP header that shows the key to its server."""
        return {"Authorization": f"Bearer {self._secret}"}

    def redact(self, text: str) -> str:
        """`text` of a server without the key, which some repeat in their errors."""
        return text.replace(self._secret, "…")


def key_from_environment(name: str) -> Key:
    """The key in variable `name`. UsageError where there is none."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UsageError("--api-key-env takes the name of an environment variable, not the key itself")
    value = os.environ.get(name)
    if value is None:
        raise UsageError(f"${name} is not set: it should hold the server's key")
    return Key(value.strip(), f"${name}")


def key_from_file(path: str) -> Key:
    """The key in a file that only its owner can read. UsageError where there is none."""
    name = one_line(path, 120)
    try:
        descriptor = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{name}: not a file")
            if status.st_mode & 0o077:
                raise UsageError(f"{name}: other users may read this key: chmod 600 {name}")
            data = file.read(KEY_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{name}: cannot read: {error.strerror}") from None
    if len(data) > KEY_LIMIT:
        raise UsageError(f"{name}: larger than a key can be")
    return Key(data.decode("ascii", "replace").strip(), name)
