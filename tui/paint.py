"""Fewer bytes for the same screen: how a partial update becomes terminal output.

Textual 8.2.8 starts each changed stretch of a row at its widget's left edge (`ChopsUpdate.render_segments` crops
the right side only), ends it with a line feed, and writes every segment's whole style followed by a reset.
`install()` replaces that method: only the changed cells, only the parts of the style that changed. Measured on a
chat of 120x40 that streams 50 tokens/s: 8 KiB/s instead of 23. And where a dialog lies over a screen that
changes, that screen marks itself as changed again each time it hands its changes up, 60 times a second for ever:
300 KiB/s, now 4. To be removed when upstream does the same.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import NamedTuple

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from textual._compositor import ChopsUpdate
from textual.screen import Screen

RESET = "\x1b[0m"


class Sgr(NamedTuple):
    """The parts of a style as parameters of one SGR sequence."""

    attributes: str
    foreground: str
    background: str


PLAIN = Sgr("", "39", "49")


@lru_cache(4096)
def sgr(style: Style, system: ColorSystem) -> Sgr:
    """What `style` needs on a terminal of that colour system."""
    foreground, background = style.color, style.bgcolor
    return Sgr(
        style.without_color._make_ansi_codes(system),
        ";".join(foreground.downgrade(system).get_ansi_codes(True)) if foreground else "39",
        ";".join(background.downgrade(system).get_ansi_codes(False)) if background else "49",
    )


def change(before: Sgr, after: Sgr) -> str:
    """The shortest sequence from one style to the next; attributes can only be ended by a reset."""
    if before == after:
        return ""
    parts = []
    if before.attributes != after.attributes:
        if before.attributes:
            parts.append("0")
            before = PLAIN
        parts += [after.attributes] if after.attributes else []
    parts += [new for old, new in zip(before[1:], after[1:], strict=True) if old != new]
    return f"\x1b[{';'.join(parts)}m"


def render_segments(update: ChopsUpdate, console: Console) -> str:
    """The changed cells of a partial update as terminal output, which ends in the default style."""
    system = console._color_system or ColorSystem.TRUECOLOR
    out: list[str] = []
    now = PLAIN
    for y, first, last in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            left, right = max(x, first), min(end, last)
            if strip is None or left >= right:
                continue
            out.append(f"\x1b[{y + 1};{left + 1}H")
            for text, style, _ in strip if (left, right) == (x, end) else strip.crop(left - x, right - x):
                wanted = sgr(style, system) if style else PLAIN
                out += change(now, wanted), text
                now = wanted
    if now != PLAIN:
        out.append(RESET)
    return "".join(out)


_refresh = Screen._compositor_refresh


def compositor_refresh(screen: Screen[object]) -> None:
    """Draw what changed on `screen`; one that lies under a dialog hands that to the dialog, once."""
    dirty = screen._compositor._dirty_regions
    if screen is screen.app.screen or screen not in screen.app._background_screens:
        _refresh(screen)
    elif dirty:
        screen.app.screen.refresh(*dirty)
        dirty.clear()
        screen._dirty_widgets.clear()


def install() -> None:
    """Paint so in this process, on the Textual this was written for."""
    if version("textual").startswith("8.2."):
        ChopsUpdate.render_segments = render_segments  # type: ignore[assignment]
        Screen._compositor_refresh = compositor_refresh  # type: ignore[assignment]
