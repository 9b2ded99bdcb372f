"""Where each entry of a long list starts, when entries have different heights that change."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate


class Heights:
    """Row counts and their running sums. Changing the last entry costs O(1), any other one O(entries after)."""

    def __init__(self, heights: Iterable[int] = ()) -> None:
        self._heights = list(heights)
        self._starts = [0]  # start of entry i, as far as summed

    def __len__(self) -> int:
        return len(self._heights)

    def __getitem__(self, index: int) -> int:
        return self._heights[index]

    def __setitem__(self, index: int, height: int) -> None:
        if self._heights[index] != height:
            self._heights[index] = height
            del self._starts[index + 1 :]

    def append(self, height: int) -> None:
        self._heights.append(height)

    def pop(self, index: int) -> None:
        del self._heights[index]
        del self._starts[index + 1 :]

    @property
    def total(self) -> int:
        """Rows of all entries."""
        return self.start(len(self._heights))

    def start(self, index: int) -> int:
        """Row at which an entry starts; `index` may be one past the last."""
        self._sum()
        return self._starts[index]

    def find(self, row: int) -> tuple[int, int]:
        """(entry, row within it) of a row; the nearest end where it is outside. There must be an entry."""
        self._sum()
        index = min(max(bisect_right(self._starts, row) - 1, 0), len(self._heights) - 1)
        return index, min(max(row - self._starts[index], 0), self._heights[index] - 1)

    def _sum(self) -> None:
        done = len(self._starts) - 1
        if done < len(self._heights):
            last = self._starts.pop()
            self._starts += accumulate(self._heights[done:], initial=last)
