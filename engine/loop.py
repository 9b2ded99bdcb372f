"""The engine's loop: one thread, one loaded model.

Contract
    Owner     Only the loop's thread touches the scheduler, the pool, the runner and `_live`. Others reach it
              through `submit` and `cancel` (a locked inbox) and read `latest`, a frozen snapshot.
    Step      inbox -> plan(n+1) -> launch -> collect(n) -> commit(n) -> events. With overlap one step is in
              flight while the next is planned; the plan advances by counts only and never waits for a token.
    Ending    Every submitted request gets exactly one last event, Finished or Failed, whatever happens.
    Epochs    Finish, cancel and preempt bump a sequence's epoch and free at once; results that come late
              carry the old epoch and are dropped in `Scheduler.commit`.
    Failure   A failed row ends one request; three in a row, the engine. Out of memory sends all others back to the queue (recompute is
              exact) and ends the youngest. Any other exception ends all open requests and resets the rows.
    Idle      Nothing running: the block ledger is checked, free + cached + used = total, garbage is collected,
              and the thread sleeps until something arrives.

If code and contract disagree, it is a bug.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .faults import NONE, Faults
from .live import Live
from .loader import Engine
from .meter import Meter
from .scheduler import Committed
from .types import (
    Accepted,
    Delta,
    EngineSnapshot,
    Failed,
    Finished,
    FinishReason,
    LmtopError,
    Progress,
    RowOutput,
    Started,
    StepPlan,
    TokenLogprob,
    TopLogprob,
)

if TYPE_CHECKING:
    from .runner import Launched

# A prefill chunk that delays nobody still bounds how late a cancel is seen.
AIM = 0.7  # of the time a chunk may take: the next one lies deeper in the prompt and is a little dearer
ALONE_MS = 150.0
PUBLISH_S = 0.1
BAD_ROWS = 3  # rows in a row that are not finite, across requests, before the engine counts as broken


class Unhealthy(Exception):
    """The model computes nothing but NaN: no request can be answered any more."""


class Job:
    """Work beside the requests: a generator on the loop's thread, one part of which runs between two steps."""

    def __init__(self, parts: Callable[[Engine], Generator[None, None, Any]]) -> None:
        self.future: Future[Any] = Future()
        self._make = parts
        self._parts: Generator[None, None, Any] | None = None

    def advance(self, engine: Engine) -> bool:
        """Run the next part; True when there is none left. A failure is the job's own."""
        try:
            if self._parts is None:
                if not self.future.set_running_or_notify_cancel():
                    return True
                self._parts = self._make(engine)
            next(self._parts)
        except StopIteration as end:
            self.future.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the result
            self.future.set_exception(error)
        else:
            return False
        self._parts = None
        return True

    def give_up(self, error: Exception) -> None:
        """Free what it holds and fail it."""
        if self._parts is not None:
            self._parts.close()
            self._parts = None
        elif not self.future.set_running_or_notify_cancel():
            return
        self.future.set_exception(error)


class EngineLoop:
    """Runs one `Engine` (a loaded model). `run` is the thread's body; `step` alone hosts it inline."""

    def __init__(
        self,
        engine: Engine,
        *,
        ended: Callable[[str], None] = lambda request_id: None,
        faults: Faults = NONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.scheduler = engine.scheduler
        self.runner = engine.runner
        self._ended = ended
        self._faults = faults
        self._clock = clock
        self._inbox: deque[Live | str | Job] = deque()
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._live: dict[int, Live] = {}  # by sequence number
        self._by_request: dict[str, Live] = {}
        self._flight: deque[tuple[StepPlan, Launched, float]] = deque()
        self._bad_rows = 0
        self._stopping = False
        self._closed = False
        self._meter = Meter(clock)
        self._published = 0.0
        self._checked = 0  # steps done when the ledger was last checked
        self._map_wanted = 0.0
        self.heartbeat = 0
        self.latest: EngineSnapshot = self._snapshot()

    # --- any thread ----------------------------------------------------------------------------------------

    def submit(self, live: Live | Job) -> bool:
        """Hand over an encoded request, or a job; False when the loop has ended and will not answer it."""
        with self._wake:
            if self._closed:
                return False
            self._inbox.append(live)
            self._wake.notify()
            return True

    def cancel(self, request_id: str) -> None:
        """End a request at the next step. Unknown ids are ignored."""
        with self._wake:
            self._inbox.append(request_id)
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """Whether a request submitted now would be answered."""
        return not self._closed and not self._stopping

    def stop(self) -> None:
        """Let `run` return after the current step; open requests end as cancelled."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def want_map(self) -> None:
        """The next snapshots carry the block owners, for two seconds."""
        fresh = self._clock() - self._map_wanted > 1.0
        self._map_wanted = self._clock()
        if fresh:
            with self._wake:
                self._wake.notify()

    # --- the loop's thread ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Step until `stop`. Exceptions of a step propagate; after `abort` it may be called again."""
        while not self._stopping:
            if not self.step():
                self._idle()
        self.abort("cancelled", final=True)

    def step(self) -> bool:
        """One iteration; False when there was nothing to do."""
        started = self._clock()
        self._take_inbox()
        self.heartbeat += 1
        plan = self.scheduler.plan(started, self._chunk())
        self._fail_unservable()
        if plan is not None:
            try:
                self._faults("forward")
                handle = self.runner.launch(plan)
            except MemoryError:
                self._out_of_memory()
                return True
            self._tell_started(plan, started)
            self._flight.append((plan, handle, started))
        depth = 1 if self.engine.overlap and plan is not None else 0
        worked = plan is not None or bool(self._flight)
        while len(self._flight) > depth:
            self._finish_step(*self._flight.popleft())
        if self._jobs:
            worked = True
            if self._jobs[0].advance(self.engine):
                self._jobs.popleft()
        if worked and self._faults.step_ms:
            time.sleep(max(0.0, self._faults.step_ms / 1e3 - (self._clock() - started)))
        if worked and self._clock() - self._published > PUBLISH_S:
            self._publish()
        return worked

    def abort(self, code: str, message: str = "", final: bool = False) -> None:
        """End every open request (as Finished "cancelled", or Failed with `code`) and reset rows and blocks.
        After a `final` one `submit` refuses."""
        with self._wake:
            self._closed = self._closed or final
        self._take_inbox()
        self._flight.clear()
        while self._jobs:
            self._jobs.popleft().give_up(LmtopError(message or "the engine was stopped"))
        self.scheduler.abandon()
        for live in list(self._live.values()):
            self.scheduler.cancel(live.seq.id)
            if code == "cancelled":
                self._end(live, "cancelled")
            else:
                self._fail(live, code, message)
        self.runner.reset()
        self.scheduler.check()
        self._publish()

    def _take_inbox(self) -> None:
        if not self._inbox:  # mostly; what comes this instant is taken at the next step
            return
        with self._wake:
            items = list(self._inbox)
            self._inbox.clear()
        for item in items:
            if isinstance(item, Live):
                self._admit(item)
            elif isinstance(item, Job):
                self._jobs.append(item)
            elif (live := self._by_request.get(item)) is not None:
                self.scheduler.cancel(live.seq.id)
                self._end(live, "cancelled")

    def _admit(self, live: Live) -> None:
        try:
            self.scheduler.add(live.seq)
        except LmtopError as error:
            self._ended(live.request.id)
            live.mailbox.put(Failed(live.request.id, "context_length_exceeded", str(error)))
            return
        self._live[live.seq.id] = live
        self._by_request[live.request.id] = live
        live.mailbox.put(
            Accepted(live.request.id, tuple(live.seq.ids[: live.seq.n_prompt]), self.engine.plan.context_len)
        )

    def _chunk(self) -> int:
        """Prompt tokens for the next chunk: bounded by time, tightly while others decode."""
        limit = self.engine.config.max_prefill_token_num
        if self.engine.config.reproducible:
            return limit
        target = self.engine.config.step_ms_target if self.scheduler.decoding else ALONE_MS
        rate = self._meter.prefill_rate
        if rate <= 0:
            return min(limit, 256)
        return max(16, min(limit, int(AIM * rate * target / 1e3)))

    def _tell_started(self, plan: StepPlan, now: float) -> None:
        for start in plan.starts:
            live = self._live.get(start.seq)
            if live is not None and live.started is None:
                live.started = now
                live.mailbox.put(Started(live.request.id, live.seq.cached_tokens))

    def _finish_step(self, plan: StepPlan, handle: Launched, launched: float) -> None:
        output = self.runner.collect(handle)
        now = self._clock()
        self._meter.step(
            now,
            seconds=now - launched,
            decoded=len(output.rows),
            prefilled=sum([work.count for work in plan.prefill]),
            prefill_s=output.prefill_s,
        )
        for work in plan.prefill:
            self._tell_progress(work.seq, work.epoch, work.start + work.count)
        for committed in self.scheduler.commit(output):
            live = self._live.get(committed.seq.id)
            if live is not None:
                self._deliver(live, committed, now)

    def _tell_progress(self, seq: int, epoch: int, computed: int) -> None:
        live = self._live.get(seq)
        if live is None or live.seq.epoch != epoch or live.first is not None:
            return
        if computed > live.progress:
            live.progress = computed
            total = live.seq.n_prompt
            live.mailbox.put(Progress(live.request.id, min(computed, total), total))

    def _deliver(self, live: Live, committed: Committed, now: float) -> None:
        if live.mailbox.closed:
            self.scheduler.cancel(live.seq.id)
            self._end(live, "cancelled")
            return
        self._bad_rows = self._bad_rows + 1 if committed.failed else 0
        if committed.failed:
            self._fail(
                live, "nonfinite_logits", "the model's output was not a number; try again, or another model"
            )
            if self._bad_rows >= BAD_ROWS:
                raise Unhealthy("the model's output was not a number three times in a row; load it again")
            return
        if live.first is None:
            live.first = now
        live.last = now
        reason = committed.finished
        text, stopped = "", False
        if reason != "stop":  # a stop token has no text
            text, stopped = live.matcher.push(live.decoder.push(committed.row.token))
        if stopped:
            self.scheduler.finish(live.seq.id, "stop")
            reason = "stop"
        elif reason is not None:
            text += live.rest()
        live.mailbox.put(Delta(live.request.id, text, (committed.row.token,), self._logprobs(committed.row)))
        if reason is not None:
            self._end(live, reason, flushed=True)

    def _logprobs(self, row: RowOutput) -> tuple[TokenLogprob, ...]:
        if row.logprob is None:
            return ()
        text = self.engine.tokenizer.token_text
        top = tuple(TopLogprob(token, text(token), value) for token, value in row.top)
        return (TokenLogprob(TopLogprob(row.token, text(row.token), row.logprob), top),)

    def _end(self, live: Live, reason: FinishReason, flushed: bool = False) -> None:
        if not flushed and live.first is not None and (text := live.rest()):
            live.mailbox.put(Delta(live.request.id, text))
        self._forget(live)
        live.mailbox.put(
            Finished(
                live.request.id, reason, live.usage(self.engine.plan.context_len), live.timings(self._clock())
            )
        )

    def _fail(self, live: Live, code: str, message: str) -> None:
        self._forget(live)
        live.mailbox.put(Failed(live.request.id, code, message))

    def _forget(self, live: Live) -> None:
        self._ended(live.request.id)
        self._live.pop(live.seq.id, None)
        if self._by_request.get(live.request.id) is live:
            del self._by_request[live.request.id]

    def _fail_unservable(self) -> None:
        for seq, reason in self.scheduler.take_failures():
            live = self._live.get(seq.id)
            if live is not None:
                self._fail(live, "out_of_memory", reason)

    def _out_of_memory(self) -> None:
        """Send everybody back to the queue and end the youngest: what remains is recomputed."""
        self._flight.clear()
        youngest = max(self.scheduler.running, key=lambda seq: seq.order, default=None)
        self.scheduler.abandon()
        self.runner.reset()
        gc.collect()
        live = self._live.get(youngest.id) if youngest is not None else None
        if live is not None:
            self.scheduler.cancel(live.seq.id)
            self._fail(
                live, "out_of_memory", "the device ran out of memory; shorten the context or the batch"
            )

    def _idle(self) -> None:
        if self._checked != self._meter.steps:
            self._checked = self._meter.steps
            self.scheduler.check()
            gc.collect(0)
        self._publish()
        with self._wake:
            if not self._inbox and not self._stopping:
                asked = self._map_wanted
                self._wake.wait_for(
                    lambda: bool(self._inbox) or self._stopping or self._map_wanted != asked, 1.0
                )
        self.heartbeat += 1

    # --- snapshots -----------------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._published = self._clock()
        self.latest = self._snapshot()

    def _snapshot(self) -> EngineSnapshot:
        now = self._clock()
        wanted = now - self._map_wanted < 2.0
        return self._meter.snapshot(self.engine, self.scheduler, self._live, self.heartbeat, now, wanted)
