"""What `lmtop connect` and `lmtop web` take of their own: which server, where its key is, where the page is."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .types import UsageError

NAMES = (
    "server",
    "connect_key_env",
    "connect_key_file",
    "connect_ca_file",
    "connect_model",
    "web_host",
    "web_port",
)


class _NoKey(argparse.Action):
    """A key on the command line: refused, and not repeated."""

    def __call__(self, *arguments: object, **more: object) -> NoReturn:
        raise UsageError(
            "every user of this machine can read a key on the command line: "
            "give --api-key-env NAME or --api-key-file PATH"
        )


def add_connect(command: argparse.ArgumentParser) -> None:
    """The arguments of `connect`."""
    command.add_argument(
        "server", metavar="SERVER", nargs="?", help="a saved name or an address; without it, choose (F9)"
    )
    flags = (
        ("--api-key-env", "connect_key_env", "NAME", "the environment variable that holds the server's key"),
        ("--api-key-file", "connect_key_file", "PATH", "the file that holds it, with mode 0600"),
        ("--ca-file", "connect_ca_file", "FILE", "trust the certificates that these ones issued, too"),
        ("--model", "connect_model", "NAME", "which of the server's models (its first)"),
    )
    for flag, dest, metavar, text in flags:
        command.add_argument(flag, dest=dest, metavar=metavar, help=text)
    command.add_argument("--api-key", action=_NoKey, help=argparse.SUPPRESS)


def add_web(command: argparse.ArgumentParser) -> None:
    """The arguments of `web`."""
    add_connect(command)
    command.add_argument("--host", dest="web_host", metavar="HOST", help="address of the page (127.0.0.1)")
    command.add_argument("--port", dest="web_port", metavar="N", help="its port (23334)")
