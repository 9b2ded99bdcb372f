"""The conversations that /v1/chat/interactive remembers."""

from __future__ import annotations

from collections import OrderedDict

from ..types import Message
from .limits import SESSIONS_LIMIT


class Conversations:
    """What was said in each session, the least recently used forgotten first. `busy`: is being answered."""

    def __init__(self) -> None:
        self._turns: OrderedDict[int, tuple[Message, ...]] = OrderedDict()
        self.busy: set[int] = set()

    def turns(self, session: int) -> tuple[Message, ...]:
        return self._turns.get(session, ())

    def keep(self, session: int, turns: tuple[Message, ...]) -> None:
        self._turns[session] = turns
        self._turns.move_to_end(session)
        while len(self._turns) > SESSIONS_LIMIT:
            self._turns.popitem(last=False)

    def end(self, session: int) -> None:
        self._turns.pop(session, None)
