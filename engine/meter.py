"""What the gauges show of a running engine: rates over the last second, step times, slots, queue, memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .types import EngineSnapshot, KVSnapshot, MemorySplit, QueueSnapshot, SlotSnapshot

if TYPE_CHECKING:
    from .live import Live
    from .loader import Engine
    from .memory import Reading
    from .scheduler import Scheduler

WINDOW_S = 1.0
FULL_CHUNK_S = 0.01  # a chunk that was expected to take this long is a full one
MEMORY_S = 0.5  # between two readings of the memory


class Meter:
    """Counts steps. One thread only. Rates are tokens/s over the last `WINDOW_S` seconds of wall time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recent: deque[tuple[float, int, int]] = deque()  # time, decoded, prefilled
        self._steps_ms: deque[float] = deque(maxlen=256)
        self._memory: tuple[float, Reading] | None = None
        self.steps = 0
        self.prefill_rate = 0.0  # tokens/s of prefill alone, for sizing the next chunk

    def step(self, now: float, *, seconds: float, decoded: int, prefilled: int, prefill_s: float) -> None:
        """Record one finished step. `prefill_s` is the measured time of its prefill part."""
        self.steps += 1
        self._steps_ms.append(seconds * 1e3)
        self._recent.append((now, decoded, prefilled))
        self._trim(now)
        if prefilled >= 16 and prefill_s > 0:
            self._prefilled(prefilled, prefilled / prefill_s)

    def _prefilled(self, tokens: int, rate: float) -> None:
        """Chunks grow dearer along a long prompt, so a slower one counts at once; but a short prompt, which is all
        overhead, does not tell how slow a full chunk would be."""
        if rate >= self.prefill_rate:
            self.prefill_rate += (rate - self.prefill_rate) * (0.3 if self.prefill_rate else 1.0)
        elif tokens >= self.prefill_rate * FULL_CHUNK_S:
            self.prefill_rate = rate

    def _trim(self, now: float) -> None:
        while self._recent and not 0 <= now - self._recent[0][0] <= WINDOW_S:
            self._recent.popleft()

    def snapshot(
        self,
        engine: Engine,
        scheduler: Scheduler,
        live: Mapping[int, Live],
        heartbeat: int,
        now: float,
        kv_map: bool,
    ) -> EngineSnapshot:
        """Everything the gauges show, frozen. `kv_map` adds the owner of each block."""
        self._trim(now)
        ordered = sorted(self._steps_ms)
        kv = scheduler.pool.snapshot(kv_map)
        return EngineSnapshot(
            time=now,
            status="ready",
            heartbeat=heartbeat,
            steps=self.steps,
            memory=self._split(engine, kv, now),
            kv=kv,
            slots=tuple(self._slots(scheduler, live, now)),
            max_batch=engine.plan.max_batch,
            queue=tuple(
                QueueSnapshot(
                    request=seq.request_id,
                    session=seq.session,
                    label=seq.label,
                    prompt_tokens=seq.n_prompt,
                    waited_s=now - seq.arrival,
                    reason=seq.wait_reason,
                )
                for seq in scheduler.waiting
            ),
            decode_tps=sum(item[1] for item in self._recent) / WINDOW_S,
            prefill_tps=sum(item[2] for item in self._recent) / WINDOW_S,
            step_ms_p50=ordered[len(ordered) // 2] if ordered else 0.0,
            step_ms_p99=ordered[int(len(ordered) * 0.99)] if ordered else 0.0,
        )

    @staticmethod
    def _slots(scheduler: Scheduler, live: Mapping[int, Live], now: float) -> list[SlotSnapshot]:
        slots = []
        for seq in scheduler.running:
            item = live.get(seq.id)
            if item is None:
                continue
            generated = seq.n_generated
            slots.append(
                SlotSnapshot(
                    row=seq.row,
                    request=seq.request_id,
                    session=seq.session,
                    label=seq.label,
                    phase="decode" if generated or seq.state == "decode" else "prefill",
                    prompt_tokens=seq.n_prompt,
                    computed=min(seq.n_computed, seq.n_prompt),
                    generated=generated,
                    blocks=len(seq.blocks),
                    tokens_per_s=item.decode_tps(),
                    ttft_s=item.first - item.submitted if item.first is not None else None,
                    temperature=seq.sampling.temperature,
                )
            )
        return sorted(slots, key=lambda slot: slot.row)

    def _split(self, engine: Engine, kv: KVSnapshot, now: float) -> MemorySplit:
        """The device's memory, read at most twice a second: weights and cache as allocated; what else this process
        holds is workspace."""
        if self._memory is None or now - self._memory[0] > MEMORY_S:
            self._memory = (now, engine.memory.read())
        reading = self._memory[1]
        weights, cache = engine.weights_bytes, engine.kv_bytes
        used = cache * kv.used // max(kv.total, 1)
        return MemorySplit(
            device=engine.memory.name,
            total=reading.total,
            weights=weights,
            kv_used=used,
            kv_rest=cache - used,
            workspace=max(0, reading.own - weights - cache),
            others=reading.others,
        )
