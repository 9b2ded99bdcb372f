"""Graphs over time on a fixed axis: the same value always has the same height."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from .glyphs import Glyphs
from .rows import Row


class Axis:
    """An axis from 0 that grows along 1-2-5 steps to hold the largest value seen, and never shrinks."""

    def __init__(self, low: float = 10.0) -> None:
        self.high = low

    def cover(self, value: float) -> float:
        """Make room for `value`; the axis' maximum."""
        if math.isfinite(value) and value > self.high:
            decade = 10.0 ** math.floor(math.log10(value))
            self.high = next(step * decade for step in (1, 2, 5, 10) if step * decade >= value)
        return self.high


class TimeSeries:
    """A value sampled now and then, kept as the mean of each second for the last `seconds`."""

    def __init__(self, seconds: int = 300) -> None:
        self._seconds: deque[tuple[int, float, int]] = deque(maxlen=seconds)  # (second, sum, samples)

    def add(self, time: float, value: float) -> None:
        """Times must not go back."""
        second = math.floor(time)
        if self._seconds and self._seconds[-1][0] == second:
            _, total, samples = self._seconds.pop()
            self._seconds.append((second, total + value, samples + 1))
        else:
            self._seconds.append((second, value, 1))

    def values(self, span: int, cells: int, now: float) -> list[float | None]:
        """`cells` means over the `span` seconds that end with the cell of `now`; None where none was taken.

        Cells begin at whole multiples of their length, so that a graph moves by whole cells.
        """
        length = span / max(1, cells)
        last = math.floor(now / length)
        sums = [0.0] * cells
        samples = [0] * cells
        for second, total, taken in self._seconds:
            at = cells - 1 - (last - math.floor(second / length))
            if 0 <= at < cells:
                sums[at] += total
                samples[at] += taken
        return [total / taken if taken else None for total, taken in zip(sums, samples, strict=True)]


def _steps(value: float | None, low: float, high: float, rows: int) -> int:
    """Eighths of the graph's height: 0 for no value, at least 1 for one."""
    if value is None or not math.isfinite(value):
        return 0
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return max(1, round(share * rows * 8))


def chart(
    values: Sequence[float | None],
    width: int,
    height: int,
    low: float,
    high: float,
    glyphs: Glyphs,
    style: str,
) -> list[Row]:
    """`height` rows of `width` cells, the newest value at the right; no value leaves its column blank, a value
    at or below `low` shows as the lowest step. Raises ValueError when high <= low."""
    if high <= low:
        raise ValueError(f"axis from {low} to {high}")
    shown = list(values)[-width:] if width > 0 else []
    steps = [0] * (width - len(shown)) + [_steps(value, low, high, height) for value in shown]
    rows: list[Row] = []
    for row in range(height - 1, -1, -1):
        text = "".join(glyphs.levels[min(8, max(0, step - 8 * row))] for step in steps)
        rows.append([(text, style)])
    return rows


def sparkline(
    values: Sequence[float | None], width: int, low: float, high: float, glyphs: Glyphs, style: str
) -> Row:
    """A chart of one row."""
    return chart(values, width, 1, low, high, glyphs, style)[0]
