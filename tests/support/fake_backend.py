"""A scripted engine and sensors for tests of the screens: nothing happens until the test says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lmtop.engine.client import Capabilities, Mailbox
from lmtop.engine.config import EngineConfig
from lmtop.engine.samples import CpuSample, History, TelemetrySnapshot
from lmtop.engine.types import (
    Accepted,
    Delta,
    EngineSnapshot,
    Event,
    Failed,
    Finished,
    FinishReason,
    KVSnapshot,
    MemorySplit,
    ModelInfo,
    ModelState,
    Progress,
    QueueSnapshot,
    Request,
    SlotSnapshot,
    Started,
    Timings,
    Usage,
)

GIB = 1 << 30
BLOCKS = 96
INFO = ModelInfo(
    name="demo",
    path="demo",
    family="llama",
    parameters=4_000_000,
    layers=6,
    context_len=4096,
    device="cpu",
    weights="fp32",
    kv="fp32",
    max_batch=8,
    has_template=True,
)
READY = ModelState("ready", "demo", 1.0, "", INFO)
NO_MODEL = ModelState("none")


class FakeBackend:
    """Implements `Backend`. Requests wait in `requests` until the test starts, feeds and finishes them."""

    capabilities = Capabilities()

    def __init__(self, state: ModelState = READY, blocks_each: int = 12) -> None:
        self.state = state
        self.requests: dict[str, Request] = {}
        self.cancelled: list[str] = []
        self.loads: list[EngineConfig] = []
        self.snapshots = 0
        self.stalled = False  # the heartbeat stands still
        self.closed = False
        self.timings = Timings(queue_s=0.01, ttft_s=0.21, total_s=3.0, prefill_tps=310.0, decode_tps=71.4)
        self._blocks_each = blocks_each
        self._mailboxes: list[Mailbox] = []
        self._routes: dict[str, Mailbox] = {}
        self._running: dict[str, int] = {}  # request -> generated tokens

    # --- Backend -------------------------------------------------------------------------------------------

    def open(self, wake: Callable[[], None] | None = None) -> Mailbox:
        mailbox = Mailbox(wake)
        self._mailboxes.append(mailbox)
        mailbox.put(self.state)
        return mailbox

    def close_mailbox(self, mailbox: Mailbox) -> None:
        self._mailboxes.remove(mailbox)

    def submit(self, request: Request, mailbox: Mailbox) -> None:
        self.requests[request.id] = request
        self._routes[request.id] = mailbox
        mailbox.put(Accepted(request.id, tuple(range(32)), 4096))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        if request_id in self._routes:
            self.finish(request_id, "cancelled")

    def load(self, config: EngineConfig) -> None:
        self.loads.append(config)
        self.tell(ModelState("loading", config.model))

    def cancel_load(self) -> None:
        self.tell(NO_MODEL)

    def unload(self) -> None:
        self.tell(NO_MODEL)

    def snapshot(self, kv_map: bool = False) -> EngineSnapshot:
        self.snapshots += 1
        running = [self.requests[name] for name in self._running]
        waiting = [self.requests[name] for name in self._routes if name not in self._running]
        used = self._blocks_each * len(running)
        owners = [2 + i for i in range(len(running)) for _ in range(self._blocks_each)]
        owners += [1] * 10 + [0] * (BLOCKS - 10 - used)
        kv = KVSnapshot(
            block_size=64,
            total=BLOCKS,
            free=BLOCKS - 10 - used,
            cached=10,
            used=used,
            owners=b"".join(owner.to_bytes(2, "little") for owner in owners) if kv_map else b"",
            shared=bytes(min(1, owner // 2) for owner in owners) if kv_map else b"",
            sessions=tuple(request.session for request in running),
        )
        return EngineSnapshot(
            time=1000.0,
            status=self.state.status,
            heartbeat=0 if self.stalled else self.snapshots,
            steps=7,
            memory=MemorySplit(
                "RAM", 16 * GIB, GIB // 64, used << 20, (BLOCKS - used) << 20, 32 << 20, 2 * GIB
            ),
            kv=kv if self.state.status == "ready" else None,
            slots=tuple(self._slot(row, request) for row, request in enumerate(running)),
            max_batch=8,
            queue=tuple(
                QueueSnapshot(request.id, request.session, request.label, 32, 0.5, "all slots are taken")
                for request in waiting
            ),
            decode_tps=71.4 * len(running),
            prefill_tps=0.0,
            step_ms_p50=11.0,
            step_ms_p99=19.0,
        )

    def close(self, timeout: float = 2.0) -> None:
        self.closed = True

    # --- the script ----------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """An event for every mailbox."""
        if isinstance(event, ModelState):
            self.state = event
        for mailbox in self._mailboxes:
            mailbox.put(event)

    def last(self) -> str:
        """The newest request's id."""
        return list(self.requests)[-1]

    def start(self, request_id: str, done: int | None = None) -> None:
        """Give it a slot; with `done`, that many of its prompt tokens are computed."""
        self._running.setdefault(request_id, 0)
        self._routes[request_id].put(Started(request_id, 0))
        if done is not None:
            self._routes[request_id].put(Progress(request_id, done, 32))

    def push(self, request_id: str, text: str) -> None:
        """One fragment of text, as one token."""
        self._running[request_id] = self._running.get(request_id, 0) + 1
        self._routes[request_id].put(Delta(request_id, text, (1,)))

    def finish(self, request_id: str, reason: FinishReason = "stop") -> None:
        """The request's last event."""
        tokens = self._running.pop(request_id, 0)
        usage = Usage(
            prompt_tokens=32, completion_tokens=tokens, cached_tokens=16, context_left=4064 - tokens
        )
        self._routes.pop(request_id).put(Finished(request_id, reason, usage, self.timings))

    def fail(self, request_id: str, message: str) -> None:
        self._running.pop(request_id, None)
        self._routes.pop(request_id).put(Failed(request_id, "internal", message))

    def loaded(self, info: ModelInfo = INFO) -> None:
        self.tell(replace(READY, name=info.name, info=info))

    def _slot(self, row: int, request: Request) -> SlotSnapshot:
        return SlotSnapshot(
            row=row,
            request=request.id,
            session=request.session,
            label=request.label,
            phase="decode" if self._running[request.id] else "prefill",
            prompt_tokens=32,
            computed=32,
            generated=self._running[request.id],
            blocks=self._blocks_each,
            tokens_per_s=71.4,
            ttft_s=0.21,
            temperature=request.sampling.temperature,
        )


class FakeTelemetry:
    """A host without a GPU, always the same."""

    interval = 1.0

    def histories(self) -> dict[int, History]:
        return {}

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def snapshot(self) -> TelemetrySnapshot:
        cpu = CpuSample(
            percent=25.0,
            cores=2,
            load=(0.5, 0.4, 0.3),
            ram_total=16 * GIB,
            ram_available=12 * GIB,
            rss=GIB,
        )
        return TelemetrySnapshot(time=1000.0, gpus=(), cpu=cpu, notice="no NVIDIA GPU")
