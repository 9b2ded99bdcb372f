"""Whether the engine still works: what a stalled one said last is no measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ..engine.types import EngineSnapshot

STALL_S = 5.0  # an idle engine beats once a second
NO_ANSWER = "engine does not answer"


class Pulse:
    """Watches the heartbeat. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.stalled = False
        self._clock = clock
        self._beat = -1
        self._since = 0.0

    def check(self, snapshot: EngineSnapshot) -> EngineSnapshot:
        """The snapshot as it may be shown: with status "dead" once the heartbeat has stood still for `STALL_S`
        while a model is ready, and without figures whenever nobody measures them."""
        now = self._clock()
        ready = snapshot.status == "ready"
        if snapshot.heartbeat != self._beat or not ready:
            self._beat, self._since = snapshot.heartbeat, now
        self.stalled = now - self._since > STALL_S
        if ready and not self.stalled:
            return snapshot
        status = "dead" if self.stalled else snapshot.status
        return replace(snapshot, status=status, memory=None, kv=None, slots=(), queue=(), load=None)
