"""Faults on purpose, for tests: without them an engine that runs out of memory cannot be tested on a laptop.

`LMTOP_FAULTS=point@nth:action[,...]` makes the nth call of `fault(point)` act; `nth` counts from 1 and may be `*`.

| point | where | actions of its own |
|---|---|---|
| `alloc` | before the memory of a model is taken | |
| `kernels` | before the kernels of a GPU are compiled | `fail`: they do not compile |
| `alloc.kv` | before the KV cache is taken | |
| `forward` | before each step of the engine | |
| `logits` | after each step's logits | `nan`: the first row is not a number |
| `command` | at each key or palette command of the chat screen | |
| `db.commit` | before each transaction of the history is committed | `full`: the disk is full |
| `db.backup` | after the copy that precedes a migration | |
| `db.migrate` | after each statement of a migration | |
| `db.migrated` | before a migration is committed | |

Actions of every point: `raise` (RuntimeError), `oom` (MemoryError), `hang` or `hang=SECONDS`, `exit` (as SIGKILL
would). `LMTOP_STEP_MS` makes each engine step take at least so long, `LMTOP_FAKE_GPU` names a file that plays the
GPU. All are refused unless `LMTOP_TEST=1`.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from .types import UsageError

VARIABLES = ("LMTOP_FAULTS", "LMTOP_STEP_MS", "LMTOP_FAKE_GPU")
ACTIONS = ("raise", "oom", "hang", "exit")
# Every point, with the actions that only it understands.
POINTS: dict[str, tuple[str, ...]] = {
    "alloc": (),
    "kernels": ("fail",),
    "alloc.kv": (),
    "forward": (),
    "logits": ("nan",),
    "command": (),
    "db.commit": ("full",),
    "db.backup": (),
    "db.migrate": (),
    "db.migrated": (),
}


class Faults:
    """The faults of one process. Thread-safe; costs one attribute look-up when none are set."""

    def __init__(self, text: str = "", step_ms: float = 0.0) -> None:
        self.step_ms = step_ms
        self._rules: dict[str, list[tuple[int | None, str]]] = {}
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()
        for item in filter(None, text.split(",")):
            point, nth, action = _rule(item)
            self._rules.setdefault(point, []).append((nth, action))

    def __bool__(self) -> bool:
        """Whether any fault is set."""
        return bool(self._rules)

    @classmethod
    def from_environment(cls) -> Faults:
        """Read the variables; UsageError when one is set without LMTOP_TEST=1."""
        if os.environ.get("LMTOP_TEST") != "1":
            for name in VARIABLES:
                if os.environ.get(name):
                    raise UsageError(f"{name} is set: test hooks need LMTOP_TEST=1")
            return cls()
        step_ms = os.environ.get("LMTOP_STEP_MS") or "0"
        try:
            return cls(os.environ.get("LMTOP_FAULTS", ""), float(step_ms))
        except ValueError:
            raise UsageError(f"LMTOP_STEP_MS = {step_ms!r}: must be a number of milliseconds") from None

    def __call__(self, point: str) -> str:
        """Count one call of `point`; act, or return the name of the action for the caller ("" is none)."""
        if not self._rules or point not in self._rules:
            return ""
        with self._lock:
            count = self._calls[point] = self._calls.get(point, 0) + 1
        for nth, action in self._rules[point]:
            if nth is None or nth == count:
                return self._act(point, action)
        return ""

    @staticmethod
    def _act(point: str, action: str) -> str:
        name, _, value = action.partition("=")
        if name == "raise":
            raise RuntimeError(f"fault injected at {point}")
        if name == "oom":
            raise MemoryError(f"fault injected at {point}")
        if name == "hang":
            time.sleep(float(value or 10))
        if name == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        return action


def _rule(item: str) -> tuple[str, int | None, str]:
    """(point, nth, action) of one rule. UsageError names what is wrong with it."""
    try:
        point, rest = item.split("@")
        nth, action = rest.split(":")
        count = None if nth == "*" else int(nth)
    except ValueError:
        raise UsageError(f"LMTOP_FAULTS: {item!r} is not point@nth:action") from None
    if point not in POINTS:
        raise UsageError(f"LMTOP_FAULTS: {item!r}: unknown point; known: {', '.join(POINTS)}")
    known = (*ACTIONS, *POINTS[point])
    name, equals, seconds = action.partition("=")
    if name not in known or (equals and (name != "hang" or not seconds.replace(".", "", 1).isdecimal())):
        raise UsageError(f"LMTOP_FAULTS: {item!r}: unknown action; {point} knows {', '.join(known)}")
    if count is not None and count < 1:
        raise UsageError(f"LMTOP_FAULTS: {item!r}: calls are counted from 1")
    return point, count, action


NONE = Faults()
