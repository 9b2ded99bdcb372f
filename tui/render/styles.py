"""The style names of gauges and monitor, and what each means in terms of a theme.

One place: a render function names a meaning, this table turns it into theme variables, so any Textual theme
fits. Colour is never the only channel: letters, glyphs and numbers say the same.
"""

from __future__ import annotations

OWNERS = (
    "$primary",
    "$success",
    "$warning",
    "$secondary",
    "$error",
    "$accent",
    "$text-primary",
    "$text-success",
    "$text-warning",
    "$text-secondary",
    "$text-error",
    "$text-accent",
)

GAUGE_STYLES: dict[str, str] = {
    "": "",
    "frame": "$foreground 40%",
    "title": "bold",
    "label": "$foreground 82%",
    "value": "",
    "dim": "$foreground 68%",
    "accent": "$accent",
    "key": "bold $accent",
    "notice": "bold $warning",
    "selected": "bold reverse",
    "ok": "$success",
    "warn": "$warning",
    "bad": "bold $error",
    "bar.weights": "$primary",
    "bar.kv_used": "$success",
    "bar.kv_rest": "$success 70%",
    "bar.workspace": "$warning",
    "bar.others": "$foreground 45%",
    "bar.free": "$foreground 30%",
    "kv.cached": "$foreground 68%",
    "kv.free": "$foreground 30%",
    "series.decode": "$primary",
    "series.prefill": "$secondary",
    "series.util": "$primary",
    "series.memory": "$success",
    "series.power": "$warning",
    **{f"owner.{i}": spec for i, spec in enumerate(OWNERS)},
}
