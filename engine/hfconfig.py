"""Reading a model directory's JSON files without trusting them: size caps, types, ranges, and an audit of keys.

Standard library only. Every failure is a `ModelError` that names file and key.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from .text import one_line
from .types import ModelError

MIB = 1 << 20
CONFIG_CAP = 1 * MIB
INDEX_CAP = 16 * MIB
MAX_INT = 1 << 24  # above every size, id count or length of a real model
_HARMLESS_ENDINGS = ("_token_id", "_token_ids", "_dropout", "_pdrop", "_dropout_prob")


def shown(value: object, limit: int = 80) -> str:
    """A value out of a file, for an error line: one line, cut, nothing a terminal would act on."""
    text = value if isinstance(value, str) else repr(value)
    return one_line(text[: limit * 4], limit)


def quoted(value: object, limit: int = 80) -> str:
    """`shown`, with quotes around text: "64" is not 64, and nothing is not an empty text."""
    return f'"{shown(value, limit)}"' if isinstance(value, str) else shown(value, limit)


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading; symlinks are followed (hub caches are made of them), but only a regular file
    is accepted. Never blocks: a FIFO is opened non-blocking and refused. Raises ModelError."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise ModelError(f"{shown(path.name)}: cannot read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ModelError(f"{shown(path.name)}: not a regular file")
    return os.fdopen(fd, "rb", buffering=0)


def read_json(path: Path, cap: int) -> dict[str, Any]:
    """The JSON object in `path`, of at most `cap` bytes. Raises ModelError for anything else."""
    name = shown(path.name)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > cap:
            raise ModelError(f"{name}: {size:,} bytes; at most {cap // MIB} MiB are accepted")
        data = file.read(cap)
    return parse_json(data, name)


def parse_json(data: bytes, name: str, unique: bool = False) -> dict[str, Any]:
    """The JSON object in `data`; `name` is what an error calls it. `unique`: refuse a key stored twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            counts = Counter(key for key, _ in items)
            raise ModelError(f"{name}: {shown(counts.most_common(1)[0][0])} is there twice")
        return result

    try:
        value = json.loads(data.decode(), object_pairs_hook=pairs if unique else None)
    except RecursionError:
        raise ModelError(f"{name}: nested too deeply") from None
    except UnicodeDecodeError:
        raise ModelError(f"{name}: not valid UTF-8") from None
    except ValueError as error:
        raise ModelError(f"{name}: not valid JSON: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{name}: must be a JSON object, not {type(value).__name__}")
    return value


class ConfigReader:
    """Typed access to config.json. What was asked for counts as understood; `audit` refuses the rest.

    Each getter takes the names under which a value may be stored (first present and not null wins, all count
    as understood), and returns `default` when none is there; a missing default raises ModelError.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self._config = config
        self.where = where
        self._known: set[str] = set()

    def fail(self, key: str, what: str) -> NoReturn:
        raise ModelError(f"{self.where}: {shown(key)}: {what}")

    def raw(self, *keys: str) -> tuple[str, Any]:
        """(name, value) of the first of `keys` that is present and not null, else (first name, None)."""
        self._known.update(keys)
        for key in keys:
            if self._config.get(key) is not None:
                return key, self._config[key]
        return keys[0], None

    def has(self, key: str) -> bool:
        """Is the key there, be it null?"""
        self._known.add(key)
        return key in self._config

    def integer(self, *keys: str, default: int | None = None, low: int = 1, high: int = MAX_INT) -> int:
        key, value = self.raw(*keys)
        if value is None:
            value = default
        if value is None:
            self.fail(" or ".join(keys), "missing")
        if isinstance(value, float) and value.is_integer() and abs(value) <= high:
            value = int(value)  # a few hub files write 4096.0
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"must be an integer from {low} to {high}, not {quoted(value, 40)}")
        return value

    def number(self, *keys: str, default: float | None = None, low: float = 0.0, high: float = 1e15) -> float:
        """A finite number with low < value <= high."""
        key, value = self.raw(*keys)
        if value is None:
            value = default
        if value is None:
            self.fail(" or ".join(keys), "missing")
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ok or not low < value <= high:  # NaN compares false
            self.fail(key, f"must be a number above {low:g} and at most {high:g}, not {quoted(value, 40)}")
        return float(value)

    def boolean(self, key: str, default: bool = False) -> bool:
        _, value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, not {quoted(value, 40)}")
        return value

    def string(self, *keys: str, default: str) -> str:
        key, value = self.raw(*keys)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, f"must be a string, not {quoted(value, 40)}")
        return value

    def mapping(self, *keys: str) -> dict[str, Any] | None:
        key, value = self.raw(*keys)
        if value is not None and not isinstance(value, dict):
            self.fail(key, f"must be an object, not {quoted(value, 40)}")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` positive finite numbers."""
        _, value = self.raw(key)
        if not isinstance(value, list) or len(value) != length:
            got = f"a list of {len(value)}" if isinstance(value, list) else quoted(value, 40)
            self.fail(key, f"must be a list of {length} numbers, not {got}")
        for item in value:
            ok = isinstance(item, (int, float)) and not isinstance(item, bool)
            if not ok or not 0 < item < 1e15:
                self.fail(key, f"must hold positive numbers, not {quoted(item, 40)}")
        return tuple(float(item) for item in value)

    def ids(self, *keys: str) -> tuple[int, ...]:
        """Token ids stored as one integer or a list; () when there are none."""
        key, value = self.raw(*keys)
        items = value if isinstance(value, list) else [] if value is None else [value]
        for item in items:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < MAX_INT:
                self.fail(key, f"must hold token ids, not {quoted(item, 40)}")
        return tuple(dict.fromkeys(items))

    def audit(self, harmless: Iterable[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse what changes numbers and was not understood: a key of `neutral` with another value, and any
        unknown key whose value is a number, a bool, a list or an object. Strings and nulls pass."""
        skip = self._known.union(harmless)
        unknown = []
        for key, value in self._config.items():
            if key in skip or value is None:
                continue
            if key in neutral:
                if value not in neutral[key]:
                    self.fail(key, f"{quoted(value, 40)} changes the numbers and is not supported")
            elif not isinstance(value, str) and not key.endswith(_HARMLESS_ENDINGS):
                unknown.append(key)
        if unknown:
            raise ModelError(f"{self.where}: not understood: {name_some(unknown)}")


def name_some(names: Iterable[str]) -> str:
    """At most 5 of the names, in order, and how many there are in all when more."""
    names = list(names)
    listed = ", ".join(shown(name) for name in names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more ({len(names)} in all)"
