"""The server picker's rows: one for each place, and the details of the marked one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...engine.servers import LOCAL, Server
from ...engine.text import one_line
from .bars import level_style, meter
from .format import NA, number, percent, rate
from .format import share as fraction
from .glyphs import Glyphs
from .kvmap import usable
from .lines import wrap_text
from .rows import Row, left, right

if TYPE_CHECKING:
    from ...engine.remote_probe import Found, Status

NAME, PING, MODELS = 14, 9, 8  # cells
WORDS = {  # of a problem, shortest first match
    "key rejected": "key?",
    "is not set": "key?",
    "may read this key": "key?",
    "no answer": "timeout",
    "not answer": "timeout",
    "certificate": "TLS",
    "TLS": "TLS",
    "refused": "refused",
    "no such host": "no host",
    "redirects": "redirect",
}


@dataclass(slots=True, eq=False)
class Place:
    """A row: this machine (`server` None) or a server. `status` None: it is being looked at."""

    server: Server | None
    current: bool = False
    status: Status | None = None
    model: str = ""


def place_row(place: Place, width: int, glyphs: Glyphs) -> Row:
    """State, name, address, latency, number of models."""
    server, status = place.server, place.status
    room = max(8, width - NAME - PING - MODELS - 5)
    now = f"{glyphs.done} " if place.current else "  "
    if server is None:
        model = one_line(place.model, 60)
        return [
            (now, "accent"),
            (f"{glyphs.online} ", "ok"),
            (left(LOCAL, NAME, glyphs), "value"),
            (left(f"this machine{f': {model}' if model else ''}", room, glyphs), "label"),
        ]
    mark, style = glyphs.queued, "dim"
    ping, models = "", ""
    if status is not None and status.found is not None:
        mark, style = glyphs.online, "ok"
        ping, models = f"{status.found.latency_s * 1000:.0f} ms", str(len(status.found.models))
    elif status is not None:
        word = next((word for text, word in WORDS.items() if text in status.problem), "error")
        mark, style = (glyphs.offline, "warn") if word == "key?" else (glyphs.failed, "bad")
        ping = word
    return [
        (now, "accent"),
        (f"{mark} ", style),
        (left(one_line(server.label, NAME) if server.name else "(not saved)", NAME, glyphs), "value"),
        (left(server.address.url, room, glyphs), "label"),
        (right(ping, PING, glyphs), "value"),
        (right(f"{models} mod" if models else "", MODELS, glyphs), "label"),
    ]


def detail_rows(place: Place, width: int, glyphs: Glyphs) -> list[Row]:
    """What is known of the marked place, in three rows."""
    if place.server is None:
        text = "The engine in this program: models of this machine, F4 loads one."
        return wrap_text(text, width, "label")
    if place.status is None:
        return [[("looking", "dim")]]
    if (found := place.status.found) is None:
        return wrap_text(glyphs.plain(place.status.problem), width, "bad")
    names = ", ".join(one_line(name, 40) for name in found.models[:4]) or "no model"
    more = f" and {len(found.models) - 4} more" if len(found.models) > 4 else ""
    return [
        [(found.kind.title, "title"), (f" {glyphs.dot} gauges: {_gauges(found)}", "label")],
        _load_row(found, glyphs),
        [(left(f"{names}{more}", width, glyphs), "value")],
    ]


def _gauges(found: Found) -> str:
    return {"monitor": "everything", "metrics": "/metrics"}.get(found.gauges, "n/a from this server")


def _load_row(found: Found, glyphs: Glyphs) -> Row:
    share = running = waiting = speed = None
    if found.monitor is not None:
        engine = found.monitor.engine
        share = fraction(engine.kv.used, usable(engine.kv)) if engine.kv is not None else None
        running, waiting, speed = len(engine.slots), len(engine.queue), engine.decode_tps
    elif found.load is not None:
        load = found.load
        share, running, waiting, speed = load.kv_share, load.running, load.waiting, load.decode_tps
    held = percent(None if share is None else share * 100)
    row: Row = [("KV ", "label"), *meter(share, 10, glyphs), (f" {held}", level_style(share))]
    row += [("  run ", "label"), (number(running), "value"), ("  wait ", "label"), (number(waiting), "value")]
    tokens = f"{rate(speed)} t/s" if speed is not None else NA
    return [*row, ("  speed ", "label"), (tokens, "value")]
