"""The engine in this process: `Backend` over one background thread that loads models and runs the loop.

Three failure classes: a request's own (it ends, others go on), the engine's (all open requests end, the loop
restarts once; a second time within a minute it stays down), and the device's (the process must be replaced;
none on the CPU).
"""

from __future__ import annotations

import gc
import itertools
import json
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakSet, ref

from .client import Audience, Capabilities, Mailbox
from .config import EngineConfig
from .detokenize import StopMatcher, StreamDecoder
from .faults import Faults
from .hardware import release_pool, settle
from .live import Live
from .loader import Engine, Prepared, build, prepare
from .loop import EngineLoop, Job, Unhealthy
from .memory import given_back
from .scheduler import Sequence
from .switching import hasten, relax
from .types import (
    Cancelled,
    ContextExceeded,
    DeviceError,
    EngineSnapshot,
    Failed,
    LmtopError,
    ModelState,
    Notice,
    Request,
    TemplateRefused,
    UsageError,
)

T = TypeVar("T")
GIB = 1 << 30
RESTART_WINDOW_S = 60.0
CHARACTERS_PER_TOKEN = 64  # no text is denser than this; refuse before encoding megabytes


@dataclass(slots=True)
class _Build:
    prepared: Prepared
    cancel: threading.Event


@dataclass(slots=True)
class _Unload:
    pass


class LocalBackend:
    """Implements `Backend`. Threads: one runs the engine, one encodes prompts; both are daemons."""

    capabilities = Capabilities()

    def __init__(self, faults: Faults | None = None, log: Callable[[str], None] = lambda text: None) -> None:
        self._faults = faults if faults is not None else Faults.from_environment()
        self._log = log
        self._lock = threading.Lock()
        self._audience = Audience(ModelState("none"))
        self._routes: dict[str, Mailbox] = {}  # open requests
        self._commands: queue.SimpleQueue[_Build | _Unload | None] = queue.SimpleQueue()
        self._intake: queue.SimpleQueue[tuple[Request, Mailbox, float] | None] = queue.SimpleQueue()
        self._loop: EngineLoop | None = None
        self._loading = threading.Event()  # set: the newest load is cancelled
        self._preparing = threading.Lock()
        self._early_cancels: set[str] = set()
        self._numbers = itertools.count(1)
        self._closed = False
        self._crashes: list[float] = []
        self._told: WeakSet[EngineLoop] = WeakSet()  # whose chat template's notices were told
        self._threads = [
            threading.Thread(target=self._run, name="lmtop-engine", daemon=True),
            threading.Thread(target=self._encode_all, name="lmtop-intake", daemon=True),
        ]
        hasten()
        for thread in self._threads:
            thread.start()

    # --- Backend -------------------------------------------------------------------------------------------

    def open(self, wake: Callable[[], None] | None = None) -> Mailbox:
        return self._audience.open(wake)

    def close_mailbox(self, mailbox: Mailbox) -> None:
        self._audience.close(mailbox)
        with self._lock:
            orphans = [id for id, owner in self._routes.items() if owner is mailbox]
        for request_id in orphans:
            self.cancel(request_id)

    def submit(self, request: Request, mailbox: Mailbox) -> None:
        loop = self._loop
        if loop is None or not loop.alive:
            code = {"loading": "loading", "dead": "engine_dead"}.get(self._audience.state.status, "no_model")
            text = {"loading": "the model is still loading", "engine_dead": self._audience.state.message}.get(
                code, "no model is loaded"
            )
            mailbox.put(Failed(request.id, code, text))
            return
        with self._lock:
            if len(self._routes) >= loop.engine.config.max_queue + loop.engine.plan.max_batch:
                mailbox.put(
                    Failed(request.id, "queue_full", f"{len(self._routes)} requests are open already")
                )
                return
            self._routes[request.id] = mailbox
        self._intake.put((request, mailbox, time.monotonic()))
        if self._closed:
            self._reject_waiting()

    @property
    def engine(self) -> Engine | None:
        """The loaded model, for its immutable parts: tokenizer, template, plan. The rest is the engine thread's."""
        loop = self._loop
        return None if loop is None else loop.engine

    def compute(self, parts: Callable[[Engine], Generator[None, None, T]]) -> Future[T]:
        """Run `parts(engine)` on the engine's thread, one part of the generator between two steps, beside the
        requests; the future gets what it returns or raises. A model that is unloaded meanwhile fails it."""
        job = Job(parts)
        if (loop := self._loop) is None or not loop.submit(job):
            job.give_up(UsageError("no model is loaded"))
        return job.future

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if request_id not in self._routes:
                return
            self._early_cancels.add(request_id)
        if (loop := self._loop) is not None:
            loop.cancel(request_id)

    def load(self, config: EngineConfig) -> None:
        self._loading.set()
        cancel = self._loading = threading.Event()
        threading.Thread(target=self._prepare, args=(config, cancel), name="lmtop-load", daemon=True).start()

    def cancel_load(self) -> None:
        self._loading.set()

    def unload(self) -> None:
        self._loading.set()
        self._loading = threading.Event()
        self._stop_loop()
        self._commands.put(_Unload())

    def snapshot(self, kv_map: bool = False) -> EngineSnapshot:
        loop = self._loop
        if loop is None:
            return EngineSnapshot(
                time.monotonic(), self._audience.state.status, 0, 0, None, None, (), 0, (), 0.0, 0.0, 0.0, 0.0
            )
        if kv_map:
            loop.want_map()
        status = "ready" if loop.alive else self._audience.state.status
        return replace(loop.latest, status=status, heartbeat=loop.heartbeat)

    def close(self, timeout: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + timeout
        self._loading.set()
        self._stop_loop()
        self._commands.put(None)
        self._intake.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():  # the collector may end a forgotten backend anywhere
                thread.join(max(0.0, deadline - time.monotonic()))
        self._reject_waiting()
        relax()

    # --- the engine's thread -------------------------------------------------------------------------------

    def _stop_loop(self) -> None:
        if (loop := self._loop) is not None:
            loop.stop()

    def _run(self) -> None:
        while (command := self._commands.get()) is not None:
            self._free()
            if isinstance(command, _Build):
                self._build_and_serve(command.prepared, command.cancel)
        self._free(hurried=True)

    def _prepare(self, config: EngineConfig, cancel: threading.Event) -> None:
        """Everything of a load that needs no memory, on a thread of its own: the model that is loaded goes on
        answering, and stays if this one cannot be loaded."""
        loop = self._loop
        reclaim = given_back(loop.latest.memory) if loop is not None else 0
        with self._preparing:  # one at a time; the one before was cancelled
            try:
                if cancel.is_set():
                    raise Cancelled
                prepared = prepare(config, self._progress(config.model), cancel.is_set, reclaim)
            except Exception as error:  # noqa: BLE001 - told to the user
                self._not_loaded(config.model, error, cancel)
                return
            if not cancel.is_set():
                self._stop_loop()
                self._commands.put(_Build(prepared, cancel))
                return
        self._not_loaded(config.model, Cancelled(), cancel)

    def _build_and_serve(self, prepared: Prepared, cancel: threading.Event) -> None:
        name = prepared.config.model
        try:
            engine = build(prepared, self._progress(name), cancel.is_set, self._faults)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it
            _drop_frames(error)  # what was allocated is free before the user hears of it, and tries again
            release_pool()
            self._not_loaded(name, error, cancel)
            return
        loop = self._loop = EngineLoop(engine, ended=self._ended, faults=self._faults)
        for text in engine.notices:
            self._audience.tell(Notice(text, "warning"))
        if engine.measured is not None:
            figures = f"predicted {engine.plan.total / GIB:.1f} GiB, measured {engine.measured / GIB:.1f} GiB"
            self._audience.tell(Notice(f"memory: {figures}", "info"))
        self._audience.announce(ModelState("ready", engine.info.name, 1.0, info=engine.info))
        self._serve(loop)

    def _not_loaded(self, name: str, error: Exception, cancel: threading.Event) -> None:
        """Say why, and what is loaded instead: the model before, or none."""
        if cancel is not self._loading:
            return  # another load or an unload took over, and says what happens
        if isinstance(error, Cancelled):
            self._audience.announce(ModelState("none", name, message="loading was cancelled"))
        elif isinstance(error, LmtopError):
            self._audience.announce(ModelState("failed", name, message=str(error), error=error))
        elif isinstance(error, MemoryError):
            text = f"out of memory while loading {name}; choose a smaller model, context or KV cache"
            self._audience.announce(ModelState("failed", name, message=text, error=DeviceError(text)))
        else:
            self._log("".join(traceback.format_exception(error)))
            text = f"internal error: {type(error).__name__}"
            self._audience.announce(ModelState("failed", name, message=text))
        if (loop := self._loop) is not None and loop.alive:
            self._audience.announce(ModelState("ready", loop.engine.info.name, 1.0, info=loop.engine.info))

    def _serve(self, loop: EngineLoop) -> None:
        """Run the loop until it is stopped, or has crashed twice within a minute."""
        from .inference import inference  # torch is there by now

        while True:
            try:
                inference(loop.run)()
                return
            except Unhealthy as error:
                self._audience.announce(ModelState("dead", loop.engine.info.name, message=str(error)))
                loop.abort("engine_dead", str(error), final=True)
                return
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._log(traceback.format_exc())
                reason = f"engine error: {type(error).__name__}"
                now = time.monotonic()
                self._crashes = [t for t in self._crashes if now - t < RESTART_WINDOW_S] + [now]
                dead = len(self._crashes) > 1
                if dead:
                    self._audience.announce(
                        ModelState("dead", loop.engine.info.name, message=f"{reason}; load it again")
                    )
                loop.abort("engine_dead" if dead else "engine_error", reason, final=dead)
                if dead:
                    return
                self._audience.tell(Notice(f"{reason}; all open replies ended, the engine goes on", "error"))

    def _progress(self, name: str) -> Callable[[float, str], None]:
        last = (-1.0, "")

        def tell(share: float, text: str) -> None:
            nonlocal last
            if text != last[1] or share - last[0] >= 0.01:
                last = (share, text)
                self._audience.announce(ModelState("loading", name, share, text))

        return tell

    def _free(self, hurried: bool = False) -> None:
        """Drop the loaded model, its weights and its cache. `hurried`: the collector, which takes 0.1 s, runs only if
        they are still there without it."""
        if self._loop is None:
            return
        self._audience.announce(ModelState("unloading", self._loop.engine.info.name))
        settle()
        runner = ref(self._loop.engine.runner)
        self._loop = None
        gc.unfreeze()
        if not hurried or runner() is not None:
            gc.collect()
        release_pool()
        self._audience.announce(ModelState("none"))

    # --- the intake's thread -------------------------------------------------------------------------------

    def _encode_all(self) -> None:
        while (item := self._intake.get()) is not None:
            request, mailbox, submitted = item
            try:
                self._encode(request, mailbox, submitted)
            except TemplateRefused as error:
                self._reject(request, mailbox, "template_failed", str(error))
            except ContextExceeded as error:
                self._reject(request, mailbox, "context_length_exceeded", str(error))
            except LmtopError as error:
                self._reject(request, mailbox, "invalid_request", str(error))
            except Exception as error:  # noqa: BLE001 - the thread must outlive it
                self._log(traceback.format_exc())
                self._reject(request, mailbox, "internal_error", f"internal error: {type(error).__name__}")

    def _encode(self, request: Request, mailbox: Mailbox, submitted: float) -> None:
        loop = self._loop
        if loop is None:
            self._reject(request, mailbox, "no_model", "the model was unloaded")
            return
        engine = loop.engine
        if request.messages is not None and loop not in self._told:
            self._told.add(loop)
            for text in engine.template.notices:
                self._audience.tell(Notice(text, "warning"))
        live = encode_request(engine, request, mailbox, next(self._numbers), submitted)
        if not loop.submit(live):
            self._reject(request, mailbox, "no_model", "the model was unloaded")
            return
        with self._lock:
            cancelled = request.id in self._early_cancels
        if cancelled:  # it came while the prompt was encoded, when the loop did not know the request
            loop.cancel(request.id)

    def _reject_waiting(self) -> None:
        """Answer what came too late for the intake's thread, whose own end stays in the queue."""
        while True:
            try:
                item = self._intake.get_nowait()
            except queue.Empty:
                return
            if item is None:
                self._intake.put(None)
                return
            self._reject(item[0], item[1], "no_model", "the model was unloaded")

    def _reject(self, request: Request, mailbox: Mailbox, code: str, message: str) -> None:
        self._ended(request.id)
        mailbox.put(Failed(request.id, code, message))

    def _ended(self, request_id: str) -> None:
        with self._lock:
            self._routes.pop(request_id, None)
            self._early_cancels.discard(request_id)


def _drop_frames(error: BaseException | None) -> None:
    """Forget the local variables of where `error` and its causes came from."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def encode_request(engine: Engine, request: Request, mailbox: Mailbox, number: int, submitted: float) -> Live:
    """The request as the loop wants it: prompt ids, a drawn seed, decoder and stop matcher.

    UsageError for an empty or impossible prompt; the chat template's own errors pass through.
    """
    context, vocab = engine.plan.context_len, engine.tokenizer.vocab_size
    if request.prompt_ids is not None:
        ids = list(request.prompt_ids)
        wrong = next((token for token in ids if not 0 <= token < vocab), None)
        if wrong is not None:
            raise UsageError(f"prompt_ids: {wrong} is not a token; the vocabulary has {vocab}")
    else:
        length = sum(len(m.content) for m in request.messages or ()) + len(request.prompt or "")
        if length > CHARACTERS_PER_TOKEN * context:
            raise ContextExceeded(f"the prompt has {length} characters; the context is {context} tokens")
        if request.messages is not None:
            tools = json.loads(request.tools) if request.tools else None
            ids = engine.template.render(request.messages, tools=tools, options=request.template_options)
        else:
            ids = engine.tokenizer.encode(request.prompt or "", add_special=True)
    if not ids:
        raise UsageError("the prompt is empty: there is no token to start from")
    sampling = request.sampling
    named = (*(token for token, _ in sampling.logit_bias), *sampling.stop_token_ids)
    if unknown := [token for token in named if not 0 <= token < vocab]:
        raise UsageError(
            f"logit_bias or stop_token_ids: {unknown[0]} is not a token; the vocabulary has {vocab}"
        )
    stops = sampling.stop
    if request.messages is not None:
        stops += tuple(stop for stop in engine.template.stop_strings if stop not in stops)
    seq = Sequence(
        id=number,
        request_id=request.id,
        session=request.session,
        label=request.label,
        ids=ids,
        sampling=sampling,
        seed=sampling.seed if sampling.seed is not None else secrets.randbits(63),
        priority=request.priority,
        arrival=submitted,
    )
    return Live(
        request=request,
        mailbox=mailbox,
        seq=seq,
        decoder=StreamDecoder(engine.tokenizer, sampling.skip_special_tokens),
        matcher=StopMatcher(stops, sampling.include_stop),
        submitted=submitted,
    )
