"""A server's load as rows, where it tells totals only: what it does not say is `n/a`."""

from __future__ import annotations

from ...engine.types import EngineSnapshot, ServerLoad
from .bars import level_style, meter
from .format import NA, number, percent, rate
from .gauge_rows import Section
from .glyphs import Glyphs
from .rows import Row


def rates(engine: EngineSnapshot) -> tuple[float | None, float | None]:
    """Tokens/s of decode and of prefill; None where nobody measures them."""
    if engine.status != "ready":
        return None, None
    if engine.load is not None:
        return engine.load.decode_tps, engine.load.prefill_tps
    return engine.decode_tps, engine.prefill_tps


def load_text(load: ServerLoad, between: str) -> str:
    """What is known of it, for one line; empty where nothing is."""
    parts = [f"{load.running} running"] if load.running is not None else []
    parts += [f"{load.waiting} waiting"] if load.waiting else []
    parts += [f"{rate(load.decode_tps)} t/s"] if load.decode_tps is not None else []
    return between.join(parts)


def load_kv_section(load: ServerLoad, width: int, glyphs: Glyphs) -> Section:
    """How full the KV cache is; which blocks are whose cannot be seen from here."""
    share = load.kv_share
    held = percent(None if share is None else share * 100)
    title: Row = [("KV ", "title"), (held, level_style(share))]
    body: Row = [(NA, "dim")] if share is None else meter(share, width, glyphs)
    return Section("kv", title, 1, 1, 1, lambda rows: [body])


def load_batch_section(load: ServerLoad, glyphs: Glyphs) -> Section:
    """How many requests run and wait."""
    title: Row = [
        ("running ", "title"),
        (number(load.running), "value"),
        (f" {glyphs.dot} waiting ", "label"),
        (number(load.waiting), "notice" if load.waiting else "value"),
    ]
    return Section("batch", title, 2, 0, 0, lambda rows: [])
