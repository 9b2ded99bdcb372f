"""Bars of an exact width in cells."""

from __future__ import annotations

from collections.abc import Sequence

from .glyphs import Glyphs
from .rows import Row, fit

WARN, BAD = 0.60, 0.85  # shares of a resource from which a gauge turns yellow, red


def apportion(values: Sequence[float], cells: int) -> list[int]:
    """`cells` shared out in proportion to `values`, by largest remainder; the result sums to `cells` (to 0
    when nothing is positive). Each positive value gets at least one cell where there are enough."""
    sizes = [max(0.0, float(value)) for value in values]
    total = sum(sizes)
    if total <= 0 or cells <= 0:
        return [0] * len(sizes)
    exact = [value * cells / total for value in sizes]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: cells - sum(shares)]:
        shares[i] += 1
    unseen = [i for i, value in enumerate(sizes) if value > 0 and shares[i] == 0]
    for i in unseen:
        richest = max(range(len(shares)), key=lambda j: (shares[j], sizes[j]))
        if shares[richest] < 2:
            break
        shares[richest] -= 1
        shares[i] = 1
    return shares


def stacked(parts: Sequence[tuple[float, str, str]], width: int, total: float | None) -> Row:
    """(value, glyph, style) parts side by side on an axis from 0 to `total` (their own sum where it is not
    known or too small); the rest of the axis is blank. Exactly `width` cells."""
    values = [max(0.0, value) for value, _, _ in parts]
    rest = max(0.0, (total or 0) - sum(values))
    cells = apportion([*values, rest], width)
    row = [(glyph * n, style) for (_, glyph, style), n in zip(parts, cells, strict=False) if n]
    return fit(row, width, "bar.free")


def level_style(fraction: float | None) -> str:
    """The style of a fill level: calm, then warning, then alarm."""
    if fraction is None:
        return "dim"
    return "ok" if fraction < WARN else "warn" if fraction < BAD else "bad"


def meter(fraction: float | None, width: int, glyphs: Glyphs, style: str | None = None) -> Row:
    """A bar between two caps, `width` cells in all, filled to an eighth of a cell; None is an empty one."""
    inner = max(0, width - 2)
    row = [(glyphs.cap_left, "frame")]
    eighths = 0 if fraction is None else round(min(1.0, max(0.0, fraction)) * inner * 8)
    if fraction and not eighths:
        eighths = 1  # a little is not nothing
    whole, part = divmod(eighths, 8)
    filled = glyphs.full * whole + (glyphs.eighths[part] if part else "")
    row.append((filled, style or level_style(fraction)))
    return [*fit(row, inner + 1), (glyphs.cap_right, "frame")]
