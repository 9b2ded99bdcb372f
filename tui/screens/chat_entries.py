"""From a session's turns to what the transcript shows."""

from __future__ import annotations

import time

from ...engine.text import one_line
from ...engine.types import EngineSnapshot
from ..render import format
from ..render.entry import Entry, Status
from ..sessions import ChatSession, Turn

STATUS: dict[str, Status] = {
    "complete": "complete",
    "streaming": "streaming",
    "stopped": "stopped",
    "failed": "failed",
    "interrupted": "partial",
}


def entry_for(turn: Turn) -> Entry:
    """`turn` as the transcript takes it."""
    return Entry(
        id=turn.key,
        role=turn.role,
        author="you" if turn.role == "user" else one_line(turn.model, 40) or "model",
        time=time.strftime("%H:%M", time.localtime(turn.created)),
        text=turn.text,
        status=STATUS[turn.status],
        stats=reply_figures(turn),
        variant=_variant(turn),
    )


def _variant(turn: Turn) -> str:
    if len(turn.siblings) < 2:
        return ""
    at = turn.siblings.index(turn.id) + 1 if turn.id in turn.siblings else len(turn.siblings)
    return f"‹{at}/{len(turn.siblings)}›"


def context_used(session: ChatSession, snapshot: EngineSnapshot | None) -> int | None:
    """Tokens of the context that the session fills: what its reply has got to, else what its last one did. None where
    a server did not say."""
    reply, slots = session.reply, snapshot.slots if snapshot is not None else ()
    slot = next((slot for slot in slots if reply is not None and slot.request == reply.request), None)
    if slot is not None:
        return slot.computed + slot.generated
    last = session.last_reply
    untold = last is not None and "ttft_s" in last.stats and "prompt_tokens" not in last.stats
    return None if untold else session.context_used


def reply_figures(turn: Turn) -> str:
    """The statistics that stand beside a reply."""
    stats = turn.stats
    if "error" in stats:
        return one_line(str(stats["error"]), 160)
    if "ttft_s" not in stats:
        return ""
    parts = [f"ttft {format.duration(stats['ttft_s'] or None)}"]
    if stats.get("decode_tps"):
        parts.append(f"{format.rate(stats['decode_tps'])} t/s")
    if "completion_tokens" in stats:
        parts.append(f"{stats['completion_tokens']} tok")
    return " · ".join(parts)


def reply_statistics(turn: Turn) -> str:
    """Everything measured about a reply, for /stats."""
    stats = turn.stats
    if "ttft_s" not in stats:
        return one_line(str(stats.get("error", "")), 400)

    def count(name: str) -> str:
        return str(stats.get(name, format.NA))

    return (
        f"{count('prompt_tokens')} prompt tokens, {count('cached_tokens')} of them from the prefix cache; "
        f"{count('completion_tokens')} generated, ended by {stats['finish']}; {count('context_left')} left\n"
        f"waited {format.duration(stats.get('queue_s'))}, "
        f"first token after {format.duration(stats['ttft_s'] or None)}, "
        f"total {format.duration(stats['total_s'] or None)}; "
        f"prefill {_speed(stats['prefill_tps'])}, decode {_speed(stats['decode_tps'])}"
    )


def _speed(measured: float) -> str:
    """A rate of `Timings`, where 0 stands for nothing measured."""
    return f"{format.rate(measured)} t/s" if measured else format.NA
