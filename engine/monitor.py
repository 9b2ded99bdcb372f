"""The document of `GET /v1/monitor`: what a server's gauges show, as JSON and back. Pure; no torch.

Server-sent events at 2 Hz, each `data: ` and one document; `?once=true` answers with a single document as plain
JSON. Version 1:

    {"object": "lmtop.monitor", "version": 1,
     "model":   ModelState: status, name, progress, message, info (ModelInfo, or null),
     "engine":  EngineSnapshot, with `age_s` in place of `time`,
     "machine": TelemetrySnapshot, with `age_s` in place of `time`}

Names and units are those of `engine.types` and `engine.samples`. The block map's `owners` and `shared` are zlib and
base64 of the same bytes. `age_s` is how old a measurement was when it was sent: clocks of two machines are never
compared. Paths, command lines and users of processes are not sent: they may hold secrets.

A reader ignores fields it does not know, so fields may be added without a new version.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import math
import types
import typing
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .samples import TelemetrySnapshot
from .text import one_line, visible
from .types import EngineSnapshot, ModelState, RemoteError

OBJECT = "lmtop.monitor"
VERSION = 1
INTERVAL_S = 0.5
BLOCKS_LIMIT = 1 << 24  # entries of a block map that a reader accepts
TEXT_LIMIT = 4096
ITEMS_LIMIT = 4096  # of any list but the block map


@dataclass(frozen=True, slots=True)
class Monitor:
    """Everything that one document tells. `time` fields are of the reader's own monotonic clock."""

    model: ModelState
    engine: EngineSnapshot
    machine: TelemetrySnapshot


def to_json(monitor: Monitor, now: float) -> dict[str, Any]:
    """The document, of JSON's own types only. `now`: the clock that `time` was read from."""
    model = _plain(replace(monitor.model, error=None))
    del model["error"]
    if model["info"] is not None:
        del model["info"]["path"]
    engine, machine = _plain(monitor.engine), _plain(monitor.machine)
    for part in (engine, machine):
        part["age_s"] = round(max(0.0, now - part.pop("time")), 4)
    processes = [
        *(machine["cpu"] or {}).get("processes", ()),
        *(process for gpu in machine["gpus"] for process in gpu["processes"] or ()),
    ]
    for process in processes:
        process["user"], process["command"] = None, ""
    return {"object": OBJECT, "version": VERSION, "model": model, "engine": engine, "machine": machine}


def from_json(document: Any, now: float) -> Monitor:
    """The document of a server, which may send anything: RemoteError names the field that is wrong. All text is
    `visible`."""
    if not isinstance(document, Mapping) or document.get("object") != OBJECT:
        raise RemoteError("/v1/monitor: the answer is not a monitor document")
    version = document.get("version")
    if version != VERSION:
        raise RemoteError(
            f"/v1/monitor: version {one_line(str(version), 20)} is not {VERSION}, the one that this lmtop reads"
        )
    parts = {}
    for name in ("engine", "machine"):
        part = document.get(name)
        if not isinstance(part, Mapping):
            raise RemoteError(f"/v1/monitor: {name} is missing")
        parts[name] = {**part, "time": now - _value(float, part.get("age_s"), f"{name}.age_s")}
    model = document.get("model")
    if isinstance(model, Mapping):
        info = model.get("info")
        model = {**model, "info": {"path": "", **info} if isinstance(info, Mapping) else None, "error": None}
    return Monitor(
        model=_value(ModelState, model, "model"),
        engine=_value(EngineSnapshot, parts["engine"], "engine"),
        machine=_value(TelemetrySnapshot, parts["machine"], "machine"),
    )


def _plain(value: Any) -> Any:
    """`value` in JSON's types. Numbers that JSON lacks become null: they were not measured."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(zlib.compress(value, 1)).decode("ascii") if value else ""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`, or RemoteError."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if typing.get_origin(kind) is tuple:
        return _items(kind, value, where)
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
    elif kind is bytes:
        return _bytes(value, where)
    elif kind is str:
        if isinstance(value, str) and len(value) <= TEXT_LIMIT:
            return visible(value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if kind is float and math.isfinite(value) and abs(value) < 1e300:
            return float(value)
        if kind is int and isinstance(value, int) and abs(value) < 1 << 63:
            return value
    raise RemoteError(f"/v1/monitor: {where} = {one_line(repr(value), 40)} is not what it should be")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise RemoteError(f"/v1/monitor: {where} is not an object")
    hints = _hints(kind)
    given = {}
    for field in dataclasses.fields(kind):
        if field.name not in value:
            if field.default is dataclasses.MISSING:
                raise RemoteError(f"/v1/monitor: {where}.{field.name} is missing")
            continue
        if field.name != "error":  # an exception has no JSON
            given[field.name] = _value(hints[field.name], value[field.name], f"{where}.{field.name}")
    return kind(**given)


def _items(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > ITEMS_LIMIT:
        raise RemoteError(f"/v1/monitor: {where} is not a list of at most {ITEMS_LIMIT}")
    inner = typing.get_args(kind)
    if inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise RemoteError(f"/v1/monitor: {where} has not {len(inner)} values")
        return tuple(_value(each, item, where) for each, item in zip(inner, value, strict=True))
    return tuple(_value(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))


def _bytes(value: Any, where: str) -> bytes:
    if value == "":
        return b""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(value, validate=True), 2 * BLOCKS_LIMIT)
    except (TypeError, ValueError, binascii.Error, zlib.error):
        raise RemoteError(f"/v1/monitor: {where} is not base64 of zlib data") from None
    if not unpacker.eof:
        raise RemoteError(f"/v1/monitor: {where} is cut short, or larger than any block map")
    return data
