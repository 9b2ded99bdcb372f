"""What the routes share: the engine, the state of its model, and how a request becomes an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..client import Backend
from ..config import EngineConfig
from ..metrics import Gauges, Metrics
from ..monitor import Monitor
from ..samples import TelemetrySnapshot
from ..types import (
    EngineSnapshot,
    Failed,
    Finished,
    LmtopError,
    ModelInfo,
    ModelState,
    Notice,
    Request,
    SamplingParams,
)
from . import sampling
from .conversations import Conversations
from .errors import ApiError, shown
from .exchange import Exchange, Stream
from .limits import Limits
from .replies import Form, Reply
from .schemas import Sampled

if TYPE_CHECKING:
    from ..loader import Engine
    from ..template import ChatTemplate
    from ..tokenizer import Tokenizer

T = TypeVar("T")
BEAT_S = 0.5  # between two looks at the engine's heartbeat
STALLED_S = 5.0  # a heartbeat older than this is no life


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model that answers. Tokenizer and template may be used by any thread."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate


class ModelBackend(Backend, Protocol):
    """A backend that also computes beside the requests, as `LocalBackend` does."""

    def compute(self, parts: Callable[[Engine], Generator[None, None, T]]) -> Future[T]: ...


@dataclass(slots=True)
class Setup:
    """What a server is started with. `name`: what clients call the model (default: its own name)."""

    engine: EngineConfig
    name: str = ""
    limits: Limits = field(default_factory=Limits)
    telemetry: Callable[[], TelemetrySnapshot] = TelemetrySnapshot
    changed: Callable[[ModelState], None] = lambda state: None
    noticed: Callable[[Notice], None] = lambda notice: None


class Service:
    """One server. Made and used on its event loop."""

    def __init__(self, backend: ModelBackend, setup: Setup) -> None:
        self.backend = backend
        self.setup = setup
        self.limits = setup.limits
        self.metrics = Metrics()
        self.defaults = sampling.Defaults()
        self._vocabulary: tuple[Tokenizer, ChatTemplate] | None = None
        self.started = int(time.time())
        self.conversations = Conversations()
        self.sleeping = False
        self.draining = False
        self.closing = asyncio.Event()  # endless streams end
        self.connections: Callable[[], int] = lambda: 0
        self._beat = (-1, time.monotonic())
        self.exchange = Exchange(backend, self._changed, self._noticed)
        self._watch = asyncio.get_running_loop().create_task(self._watch_heartbeat())

    # --- the model -----------------------------------------------------------------------------------------

    @property
    def state(self) -> ModelState:
        return self.exchange.state

    def names(self, info: ModelInfo) -> list[str]:
        """What clients may call the model, the name it is shown by first."""
        return list(dict.fromkeys([self.setup.name or info.name, info.name, self.setup.engine.model]))

    def ready(self, model: str | None = None) -> Loaded:
        """The model, if it answers now and is called `model`. ApiError 503 or 404 otherwise."""
        state = self.state
        if self.draining:
            raise ApiError(503, "the server is shutting down", "shutting_down")
        if self.sleeping:
            raise ApiError(503, "the model is asleep; POST /wakeup loads it again", "sleeping")
        if state.status == "dead":
            raise ApiError(503, "the engine has failed; the server must be restarted", "engine_dead")
        if state.status != "ready" or state.info is None or self._vocabulary is None:
            raise ApiError(503, "the model is still loading", "loading")
        if model is not None and model not in (names := self.names(state.info)):
            raise ApiError(
                404,
                f"the model {shown(model)} does not exist; served here: {names[0]}",
                "model_not_found",
                "model",
            )
        return Loaded(state.info, *self._vocabulary)

    def _changed(self, state: ModelState) -> None:
        if state.status == "ready" and state.info is not None:
            self.defaults, text = sampling.of_model(Path(state.info.path))
            if text:
                self._noticed(Notice(text, "warning"))
            parts = self.backend.compute(_vocabulary)
            parts.add_done_callback(
                lambda done: self.exchange.loop.call_soon_threadsafe(self._prepared, done, state)
            )
            return
        self._vocabulary = None
        self.setup.changed(state)

    def _prepared(self, vocabulary: Future[tuple[Tokenizer, ChatTemplate]], state: ModelState) -> None:
        if vocabulary.cancelled() or vocabulary.exception() is not None:
            return  # unloaded meanwhile, and another state follows
        self._vocabulary = vocabulary.result()
        self.setup.changed(state)

    def _noticed(self, notice: Notice) -> None:
        self.setup.noticed(notice)

    # --- requests ------------------------------------------------------------------------------------------

    def params(self, body: Sampled, info: ModelInfo, **more: Any) -> SamplingParams:
        """The engine's parameters for the fields of `body`."""
        return sampling.params(body, self.defaults, context=info.context_len, **more)

    def reply(
        self,
        requests: Sequence[Request],
        form: Form,
        stream: bool,
        ended: Callable[[Sequence[Finished | Failed | None]], None] = lambda ends: None,
    ) -> Reply:
        """The answer to `requests`."""

        def count(ends: Sequence[Finished | Failed | None]) -> None:
            for end in ends:
                if isinstance(end, Finished):
                    self.metrics.finished(end)
                else:
                    self.metrics.failed(end.code if end is not None else "disconnected")
            ended(ends)

        self.metrics.received += len(requests)
        return Reply(self.exchange, requests, form, stream=stream, limits=self.limits, ended=count)

    async def compute(self, parts: Callable[[Engine], Generator[None, None, T]]) -> T:
        """Run a job of the engine's; ApiError for a failure of it."""
        try:
            return await asyncio.wrap_future(self.backend.compute(parts))
        except LmtopError as error:
            raise ApiError(400 if error.exit_code == 2 else 503, str(error), "invalid_request") from None

    # --- gauges --------------------------------------------------------------------------------------------

    async def _watch_heartbeat(self) -> None:
        while True:
            beat = self.backend.snapshot().heartbeat
            if beat != self._beat[0]:
                self._beat = (beat, time.monotonic())
            await asyncio.sleep(BEAT_S)

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine's loop was last seen turning."""
        return time.monotonic() - self._beat[1]

    def health(self) -> None:
        """ApiError 503 unless requests would be answered, or the model sleeps on purpose."""
        if self.sleeping and not self.draining:
            return
        self.ready()
        if self.heartbeat_age > STALLED_S:
            raise ApiError(503, "the engine does not answer", "engine_stalled")

    def snapshot(self, kv_map: bool = False) -> EngineSnapshot:
        return self.backend.snapshot(kv_map)

    def monitor(self) -> Monitor:
        """Everything the gauges of a remote lmtop show."""
        return Monitor(self.state, self.snapshot(kv_map=True), self.setup.telemetry())

    def gauges(self) -> Gauges:
        state = "sleeping" if self.sleeping else self.state.status
        return Gauges(self.snapshot(), state, self.heartbeat_age, self.connections())

    # --- operation -----------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Free the model's memory; what runs is cut."""
        if not self.sleeping:
            self.sleeping = True
            self.backend.unload()

    async def wake(self) -> None:
        """Load the model again, and wait until it is there."""
        if self.sleeping:
            self.sleeping = False
            self.backend.load(self.setup.engine)
        while self._vocabulary is None and not self.sleeping:
            if self.state.status in ("failed", "dead"):
                raise ApiError(503, "the model could not be loaded again", "engine_dead")
            await asyncio.sleep(0.05)

    def cut(self, matches: Callable[[Stream], bool], why: str = "request_cancelled") -> int:
        """End the open answers that match; how many."""
        streams = [stream for stream in self.exchange.streams if matches(stream)]
        for stream in streams:
            stream.cancel(why)
        return len(streams)

    async def drain(self, seconds: float) -> None:
        """Take no more requests, let open ones end for so long, then cut them."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.exchange.streams and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self.closing.set()
        self.cut(lambda stream: True, "shutting_down")

    def close(self) -> None:
        self._watch.cancel()
        self.closing.set()
        self.exchange.close()


def _vocabulary(engine: Engine) -> Generator[None, None, tuple[Tokenizer, ChatTemplate]]:
    yield
    return engine.tokenizer, engine.template
