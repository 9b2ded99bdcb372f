"""A server's measurements as the snapshot that the gauges show. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from .client import FOREIGN
from .remote_reply import RemoteReply
from .types import EngineSnapshot, ModelStatus, QueueSnapshot, Request, ServerLoad, SlotSnapshot

ID_LENGTH = 6  # characters that make an id unmistakable


def empty(status: ModelStatus, heartbeat: int, load: ServerLoad | None) -> EngineSnapshot:
    """A snapshot that knows nothing, or totals only."""
    return EngineSnapshot(
        time.monotonic(), status, heartbeat, 0, None, None, (), 0, (), 0.0, 0.0, 0.0, 0.0, load
    )


def of_monitor(engine: EngineSnapshot, replies: Sequence[RemoteReply]) -> EngineSnapshot:
    """A server's snapshot in which our own requests carry our own names, and no other can be taken for one."""
    ours = {reply.server_id: reply.request for reply in replies if len(reply.server_id) >= ID_LENGTH}
    sessions: dict[str, str] = {}

    def own(request: str) -> Request | None:
        name = request.partition("/")[
            0
        ]  # of several replies to one request, lmtop's server counts behind the slash
        if len(name) < ID_LENGTH:
            return None
        return next((mine for server_id, mine in ours.items() if server_id.endswith(name)), None)

    def slot(it: SlotSnapshot) -> SlotSnapshot:
        if (mine := own(it.request)) is not None:
            sessions[it.session] = mine.session
            return replace(it, request=mine.id, session=mine.session, label=mine.label)
        return replace(it, session=FOREIGN + (it.session or it.request))

    def waiting(it: QueueSnapshot) -> QueueSnapshot:
        if (mine := own(it.request)) is not None:
            return replace(it, request=mine.id, session=mine.session, label=mine.label)
        return replace(it, session=FOREIGN + (it.session or it.request))

    slots, queue, kv = tuple(map(slot, engine.slots)), tuple(map(waiting, engine.queue)), engine.kv
    if kv is not None:
        kv = replace(kv, sessions=tuple(sessions.get(name, FOREIGN + name) for name in kv.sessions))
    return replace(engine, slots=slots, queue=queue, kv=kv)
