"""What stands at an address: which kind of server, which models, which gauges, how far away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .monitor import Monitor, from_json
from .remote_http import Channel, Limits, Refused
from .remote_kinds import KINDS, UNKNOWN, Kind, kind_of
from .remote_metrics import Reading, load_of, read_metrics
from .servers import Server
from .text import one_line
from .types import LmtopError, RemoteError, ServerLoad

MODELS = 2000  # names that are kept
NAME_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Found:
    """A server that answers. `path` is that of its API, `root` of the rest; `contexts`: model -> tokens, where it
    says so. `gauges`: where they come from, "monitor", "metrics" or "" for nowhere."""

    path: str
    kind: Kind
    models: tuple[str, ...]
    contexts: Mapping[str, int]
    latency_s: float
    gauges: str = ""
    load: ServerLoad | None = None
    monitor: Monitor | None = None

    @property
    def root(self) -> str:
        return self.path.removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Status:
    """A server's state in one look: what was found, or in `problem` one line why not."""

    found: Found | None = None
    problem: str = ""


@dataclass(slots=True)
class _Models:
    names: list[str] = field(default_factory=list)
    contexts: dict[str, int] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)


async def probe(channel: Channel, model: str = "") -> Found:
    """Ask for models and gauges. RemoteError where there is no server, or one that speaks otherwise; `model` names the
    one to use with a server that does not list any."""
    path, listed, seconds = await _models(channel, model)
    found = Found(path, UNKNOWN, tuple(listed.names), listed.contexts, seconds)
    found = replace(found, kind=kind_of(listed.owners))
    if found.kind in (UNKNOWN, KINDS["lmtop"]):
        monitor = await _attempt(lambda: monitor_once(channel, found.root))
        if monitor is not None:
            return replace(found, kind=KINDS["lmtop"], gauges="monitor", monitor=monitor)
    reading = await _attempt(lambda: metrics_once(channel, found.root))
    if reading is not None:
        kind = found.kind if found.kind is not UNKNOWN else kind_of((), reading.values)
        found = replace(found, kind=kind, gauges="metrics", load=load_of(reading))
    if found.kind is KINDS["llamacpp"] and len(found.models) == 1:
        found = replace(found, contexts=await _llamacpp_context(channel, found))
    return found


async def _models(channel: Channel, model: str) -> tuple[str, _Models, float]:
    """The API's path, its models, and the seconds that the answer took."""
    paths = channel.address.paths
    for path in paths:
        started = time.monotonic()
        try:
            document = await channel.document(f"{path}/models")
        except Refused as error:
            if error.status in (404, 405) and path is not paths[-1]:
                continue
            if error.status in (404, 405) and model:
                return paths[0], _Models([model]), time.monotonic() - started
            if error.status in (404, 405):
                raise RemoteError(
                    f"{channel.address.place}: no {paths[0]}/models: no OpenAI-compatible server, or one to be "
                    "told its --model"
                ) from None
            raise
        return path, _listed(document, channel), time.monotonic() - started
    raise AssertionError("an address has a path")


def _listed(document: Any, channel: Channel) -> _Models:
    data = document.get("data") if isinstance(document, dict) else document
    if not isinstance(data, list):
        raise RemoteError(channel.strange(str(document)[:400].encode("utf-8", "replace")))
    models = _Models()
    for entry in data[:MODELS]:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            continue
        name = entry["id"]
        if not name or len(name) > NAME_LIMIT or name in models.names:
            continue
        models.names.append(name)
        meta = entry.get("meta")
        length = entry.get("max_model_len", entry.get("context_length", entry.get("context_len")))
        if length is None and isinstance(meta, dict):
            length = meta.get("n_ctx")
        if isinstance(length, int) and 0 < length < 1 << 32:
            models.contexts[name] = length
        if isinstance(entry.get("owned_by"), str):
            models.owners.append(entry["owned_by"])
    return models


async def _llamacpp_context(channel: Channel, found: Found) -> Mapping[str, int]:
    """llama.cpp's context of one request, which /props tells."""
    props = await _attempt(lambda: channel.document(f"{found.root}/props"))
    settings = props.get("default_generation_settings") if isinstance(props, dict) else None
    length = settings.get("n_ctx") if isinstance(settings, dict) else None
    return {found.models[0]: length} if isinstance(length, int) and length > 0 else found.contexts


async def monitor_once(channel: Channel, root: str) -> Monitor:
    """One document of lmtop's own `/v1/monitor`."""
    document = await channel.document(f"{root}/v1/monitor?once=true")
    return from_json(document, time.monotonic())


async def metrics_once(channel: Channel, root: str) -> Reading | None:
    """What `/metrics` says; None where it says nothing that is known."""
    try:
        page = await channel.document(f"{root}/metrics", "text")
    except Refused as error:
        if not 300 <= error.status < 400:
            raise
        page = await channel.document(f"{root}/metrics/", "text")  # where it is a mounted application
    return read_metrics(page, time.monotonic())


async def _attempt(ask: Callable[[], Any]) -> Any:
    """The answer, or None where there is none."""
    try:
        return await ask()
    except RemoteError:
        return None


def look_at(server: Server, limits: Limits | None = None) -> Status:
    """Probe a saved server; blocks for some seconds at most, and never raises."""

    async def ask() -> Found:
        channel = Channel(server.address, server.key(), server.ca_file, limits)
        try:
            return await probe(channel, server.model)
        finally:
            await channel.close()

    try:
        return Status(asyncio.run(ask()))
    except LmtopError as error:
        return Status(problem=one_line(str(error), 300))
