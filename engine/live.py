"""A request while it is answered: its sequence, where its events go, and what was measured so far."""

from __future__ import annotations

from dataclasses import dataclass

from .client import Mailbox
from .detokenize import StopMatcher, StreamDecoder
from .sequence import Sequence
from .types import Request, Timings, Usage


@dataclass(slots=True)
class Live:
    """Owned by the loop's thread once it was submitted. Times are of the loop's clock, in seconds."""

    request: Request
    mailbox: Mailbox
    seq: Sequence
    decoder: StreamDecoder
    matcher: StopMatcher
    submitted: float
    started: float | None = None
    first: float | None = None
    last: float | None = None
    progress: int = -1

    def rest(self) -> str:
        """What decoder and matcher still hold back; a stop string may be completed by it."""
        text, stopped = self.matcher.push(self.decoder.flush())
        return text if stopped else text + self.matcher.flush()

    def decode_tps(self) -> float:
        """Tokens/s since the first token; 0.0 before the second."""
        if self.first is None or self.last is None or self.last <= self.first:
            return 0.0
        return (self.seq.n_generated - 1) / (self.last - self.first)

    def usage(self, context_len: int) -> Usage:
        """Token counts so far."""
        seq = self.seq
        return Usage(
            prompt_tokens=seq.n_prompt,
            completion_tokens=seq.n_generated,
            cached_tokens=seq.cached_tokens,
            context_left=max(0, context_len - len(seq.ids)),
        )

    def timings(self, now: float) -> Timings:
        """Times and rates so far."""
        prefill = 0.0
        if self.first is not None and self.started is not None:
            computed = self.seq.n_prompt - self.seq.cached_tokens
            prefill = computed / max(self.first - self.started, 1e-9)
        return Timings(
            queue_s=(self.started or now) - self.submitted,
            ttft_s=(self.first - self.submitted) if self.first is not None else 0.0,
            total_s=now - self.submitted,
            prefill_tps=prefill,
            decode_tps=self.decode_tps(),
        )
