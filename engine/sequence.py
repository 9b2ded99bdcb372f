"""The mutable state of one request inside the scheduler, and what a committed step says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .types import FinishReason, RowOutput, SamplingParams

SequenceState = Literal["waiting", "prefill", "decode", "done"]


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way through the batch. The caller fills the first group of fields and hands it to
    `Scheduler.add`; from then on only the scheduler writes, others read.

    `ids` is the prompt and every committed token. `n_planned` positions were given to steps, `n_computed` of
    them by steps that committed, `n_published` full blocks of those were offered to the prefix index.
    `inflight` tokens are being drawn by steps not committed yet. `epoch` rises with finish, cancel, fail and
    preempt; results of older epochs are dropped. `seed` is drawn once, so a resumed reply repeats itself.
    """

    id: int
    request_id: str
    ids: list[int]
    sampling: SamplingParams
    seed: int
    session: str = ""
    label: str = ""
    priority: int = 0
    arrival: float = 0.0  # monotonic seconds, for the gauges; the order of arrival is `order`

    state: SequenceState = field(default="waiting", init=False)
    epoch: int = field(default=0, init=False)
    n_prompt: int = field(default=0, init=False)
    rope_len: int = field(default=0, init=False)  # the length that length-dependent frequencies start from
    regime: int = field(default=0, init=False)  # the set of frequencies its keys have
    salt: int = field(default=0, init=False)  # what decides its keys besides tokens
    n_planned: int = field(default=0, init=False)
    n_computed: int = field(default=0, init=False)
    n_published: int = field(default=0, init=False)
    inflight: int = field(default=0, init=False)
    blocks: list[int] = field(default_factory=list, init=False)
    row: int = field(default=-1, init=False)
    cached_tokens: int = field(default=0, init=False)  # of the prompt, when it first took a row
    started: float | None = field(default=None, init=False)  # `now` of that plan
    preemptions: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)  # later arrivals that took a row first
    finish_reason: FinishReason | None = field(default=None, init=False)
    wait_reason: str = field(default="", init=False)  # refreshed by Scheduler.waiting
    order: int = field(default=0, init=False)
    limit: int = field(default=0, init=False)  # prompt + reply may not grow longer
    stop_ids: frozenset[int] = field(default=frozenset(), init=False)
    need: int = field(default=0, init=False)  # blocks missing at the last attempt to admit
    reserve: int = field(default=0, init=False)  # blocks that attempt left to the running rows

    def __post_init__(self) -> None:
        self.n_prompt = self.rope_len = len(self.ids)

    @property
    def n_generated(self) -> int:
        """Committed tokens of the reply."""
        return len(self.ids) - self.n_prompt

    @property
    def owner(self) -> str:
        """What its blocks are counted under on the gauges."""
        return self.session or self.request_id

    @property
    def name(self) -> str:
        """What it is called in a sentence. Text from users: make it visible before it is shown."""
        return self.label or self.session or self.request_id


class Committed(NamedTuple):
    """One token that counts. `finished` is set with a sequence's last token. `failed`: the logits were not
    finite, `token` is meaningless and the sequence is over."""

    seq: Sequence
    token: int
    finished: FinishReason | None
    row: RowOutput
    failed: bool = False
