"""Progress of a command that makes something: a bar with the time left on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any, Self

from tqdm import tqdm

from .answer import say


class Bar:
    """Called with (stage, steps done, steps in all); `describe` makes of them what stands before the bar."""

    def __init__(self, describe: Callable[[str, float, int], str] = lambda stage, done, total: stage) -> None:
        self._describe = describe
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str, done: float, total: int) -> None:
        text = self._describe(stage, done, total)
        if stage != self._stage:
            self.__exit__()
            self._stage = stage
            self._bar = _bar(text, total, done)
            if not sys.stderr.isatty():
                say(stage)
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def say(self, text: str) -> None:
        """One line for the person, above the bar."""
        if self._bar is not None:
            self._bar.clear()
        say(text)


def _bar(text: str, total: int, done: float) -> tqdm[Any]:
    return tqdm(
        desc=text,
        total=total,
        initial=done,
        leave=False,
        disable=not sys.stderr.isatty(),
        bar_format="lmtop: {desc} {percentage:3.0f}% {bar:24} {remaining} left",
        ascii=" #" if (sys.stderr.encoding or "").lower() != "utf-8" else None,
        # given here, since tqdm shows nothing in a terminal that says it has no size
        ncols=min(100, shutil.get_terminal_size().columns),
        nrows=20,
        mininterval=0.1,
    )
