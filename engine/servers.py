"""The servers that a user saved: `servers.toml` beside config.toml. A key is never in it, only where the key is."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli

from .remote_address import Address, Key, key_from_environment, key_from_file, parse_address
from .settings import CONFIG_LIMIT, config_path
from .text import one_line
from .types import UsageError

LOCAL = "local"  # the name of this machine
NAME = re.compile(r"[\w.-]{1,40}")
MOST = 256
HEADER = """# The servers of `lmtop connect` and F9, written by lmtop: comments are not kept.
# A key is not written here: api_key_env names an environment variable, api_key_file a file with mode 0600.
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One server. `name` is empty while it is not saved; `model` is the one to use, empty for its first. UsageError
    for what cannot be."""

    name: str
    url: str
    api_key_env: str = ""
    api_key_file: str = ""
    ca_file: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise UsageError(
                f"{one_line(self.name, 40)!r}: a server's name has letters, digits, '.', '_' and '-', at most 40"
            )
        if self.name == LOCAL:
            raise UsageError(f"{LOCAL!r} is the name of this machine: choose another")
        if self.api_key_env and self.api_key_file:
            raise UsageError("a server has one key: give api_key_env or api_key_file, not both")
        _ = self.address

    @property
    def address(self) -> Address:
        return parse_address(self.url)

    @property
    def label(self) -> str:
        """What people call it: its name, else its address."""
        return self.name or self.address.place

    def key(self) -> Key | None:
        """Its key, read now. UsageError where it cannot be, or would go over the line unasked in the clear."""
        if not (self.api_key_env or self.api_key_file):
            return None
        address = self.address
        if not address.typed_scheme and not address.loopback:
            raise UsageError(f"{address.place}: with a key, write http:// or https:// in front of it")
        return (
            key_from_environment(self.api_key_env) if self.api_key_env else key_from_file(self.api_key_file)
        )


FIELDS = tuple(field.name for field in dataclasses.fields(Server) if field.name != "name")


def servers_path() -> Path:
    """The file, in the folder of config.toml."""
    return config_path().with_name("servers.toml")


def read_servers(path: Path | None = None) -> tuple[Server, ...]:
    """The saved servers, in the file's order; none where there is no file. UsageError names what is wrong in it."""
    path = path or servers_path()
    name = one_line(str(path), 120)
    try:
        if not path.exists():
            return ()
        if not path.is_file() or path.stat().st_size > CONFIG_LIMIT:
            raise UsageError(f"{name}: cannot read: not a file, or larger than {CONFIG_LIMIT >> 20} MiB")
        document = tomli.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not valid UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot read: {error.strerror}") from None
    except (tomli.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name}: {one_line(str(error), 160)}") from None
    servers = []
    for server, table in document.items():
        where = f"{name}: [{one_line(server, 40)}]"
        if not isinstance(table, dict) or not isinstance(table.get("url"), str):
            raise UsageError(f'{where}: must be a table with url = "http://..."')
        for key, value in table.items():
            if key not in FIELDS or not isinstance(value, str):
                raise UsageError(
                    f"{where}: {one_line(key, 40)}: must be one of {', '.join(FIELDS)}, and text"
                )
        try:
            servers.append(Server(server, **table))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    return tuple(servers)


def write_servers(servers: Sequence[Server], path: Path | None = None) -> None:
    """Keep these, in place of what the file held; readable by its owner only. UsageError where it cannot be written."""
    path = path or servers_path()
    if len(servers) > MOST:
        raise UsageError(f"more than {MOST} servers")
    text = HEADER
    for server in servers:
        text += f"\n[{_quoted(server.name)}]\n"
        text += "".join(f"{key} = {_quoted(value)}\n" for key in FIELDS if (value := getattr(server, key)))
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".servers-")  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise UsageError(f"{one_line(str(path), 120)}: cannot write: {error.strerror}") from None


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def saved(server: Server, before: str = "", path: Path | None = None) -> tuple[Server, ...]:
    """Keep `server` in place of the one that is called `before`, or as a new one; returns all. UsageError where
    another one has its name."""
    known = list(read_servers(path))
    if not server.name:
        raise UsageError("a name is missing")
    if server.name != before and any(other.name == server.name for other in known):
        raise UsageError(f"there is a server {server.name!r} already")
    names = [other.name for other in known]
    if before in names:
        known[names.index(before)] = server
    else:
        known.append(server)
    write_servers(known, path)
    return tuple(known)


def removed(name: str, path: Path | None = None) -> tuple[Server, ...]:
    """Forget the server called `name`; returns the others."""
    known = tuple(server for server in read_servers(path) if server.name != name)
    write_servers(known, path)
    return known


def find(text: str, servers: Sequence[Server]) -> Server:
    """The saved server of that name, else the one at that address. UsageError where it is neither."""
    for server in servers:
        if server.name == text:
            return server
    if "://" in text or ":" in text or "." in text or text == "localhost":
        return Server("", text)
    names = [server.name for server in servers]
    close = difflib.get_close_matches(text, names, 1)
    known = f"; did you mean {close[0]!r}?" if close else f"; saved: {', '.join(names)}" if names else ""
    raise UsageError(f"no saved server {one_line(text, 40)!r}{known}; an address is http://HOST:PORT")
