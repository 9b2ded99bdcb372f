"""What a pipeline stands on: a loaded model in this process, and requests that any thread may have
answered."""

from __future__ import annotations

import itertools
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar

from . import score
from .answer import debug_log, show_loading
from .client import Mailbox
from .config import EngineConfig
from .generate import KINDS
from .local import LocalBackend
from .messages import Response
from .pipeline_answers import Ask
from .types import (
    DeviceError,
    Event,
    Failed,
    Finished,
    LmtopError,
    ModelInfo,
    ModelState,
    Notice,
    Request,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm

    from .loader import Engine
    from .template import ChatTemplate
    from .tokenizer import Tokenizer

T = TypeVar("T")
# Pieces are taken in lots: waking for every token would cost a small model a third of its speed.
SETTLE_S = 0.01
LOST = ("no_model", "engine_dead", "loading")  # nobody will answer the other prompts either
AHEAD = 4  # prompts handed over, in multiples of the batch: the next ones are encoded while a batch runs

log = logging.getLogger("lmtop")


class Host:
    """One loaded model and its threads. `tokenizer` and `template` are the model's, `session_len` its context
    in tokens, `info` says what is loaded. Ends with `close`, its `with` block, its last reference, or
    Python."""

    def __init__(self, config: EngineConfig) -> None:
        self._backend = LocalBackend(log=debug_log)
        self._numbers = itertools.count(1)
        self._process = os.getpid()
        self._close = weakref.finalize(self, _end, self._backend, self._process)
        try:
            self.info: ModelInfo = self._load(config)
            engine = self._backend.engine
            if engine is None:
                raise LmtopError("the model was unloaded while it was loaded")
            self.tokenizer: Tokenizer = engine.tokenizer
            self.template: ChatTemplate = engine.template
            self.session_len: int = engine.plan.context_len
            self._window = AHEAD * engine.plan.max_batch
        except BaseException:
            self._close()
            raise

    def _load(self, config: EngineConfig) -> ModelInfo:
        mailbox = self._backend.open()
        self._backend.load(config)
        while True:
            mailbox.wait()
            for event in mailbox.drain():
                tell(event)
                if not isinstance(event, ModelState):
                    continue
                show_loading(event)
                if event.status == "ready" and event.info is not None:
                    self._backend.close_mailbox(mailbox)
                    return event.info
                if event.status == "failed":
                    raise event.error if event.error is not None else LmtopError(event.message)

    # --- the engine's own requests --------------------------------------------------------------------------

    def answer_requests(self, requests: Iterable[Request]) -> list[Response]:
        """The answers to the engine's own requests, in their order; ids must be unique."""
        numbered = enumerate(requests)
        return self._answers([Ask(it, Response("", 0, 0, i, index=i)) for i, it in numbered], alone=False)

    def stream_request(self, request: Request) -> Iterator[Response]:
        """The answer to one of the engine's own requests, in pieces; its id must be unique."""
        ask = Ask(request, Response("", 0, 0, next(self._numbers)))
        return (piece for _, piece in self._pieces([ask], alone=True))

    def compute(self, parts: Callable[[Engine], Generator[None, None, T]]) -> Future[T]:
        """`LocalBackend.compute`: work on the engine's thread, beside the requests."""
        self.require_open()
        return self._backend.compute(parts)

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End what is open and free the model's memory. Calling it again does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require_open(self) -> None:
        """UsageError when this cannot answer any more, or not here."""
        if os.getpid() != self._process:
            raise UsageError("this pipeline belongs to the process that made it: make one in this process")
        if not self._close.alive:
            raise UsageError("the pipeline is closed")

    # --- waiting for answers --------------------------------------------------------------------------------

    def _answers(self, asks: list[Ask], alone: bool, use_tqdm: bool = False) -> list[Response]:
        with _progress_bar(len(asks)) if use_tqdm else nullcontext() as bar:
            for ask, event in self._events(asks, alone, patient=True):
                ask.piece(event)
                if bar is not None and isinstance(event, (Finished, Failed)):
                    bar.update()
        return [self._finished(ask) for ask in asks]

    def _pieces(self, asks: list[Ask], alone: bool) -> Iterator[tuple[Ask, Response]]:
        for ask, event in self._events(asks, alone, patient=not alone):
            if (piece := ask.piece(event)) is not None:
                yield ask, piece

    def _events(self, asks: list[Ask], alone: bool, patient: bool) -> Iterator[tuple[Ask, Event]]:
        """Submit, a window of the batch at a time, and yield what comes until every request has ended.
        `patient`: nobody waits for single tokens, so take them in larger lots."""
        self.require_open()
        mailbox = self._backend.open()
        waiting, running = deque(asks), dict[str, Ask]()
        try:
            while waiting or running:
                self._submit(waiting, running, mailbox)
                mailbox.wait()
                if patient:
                    time.sleep(SETTLE_S)
                for event in mailbox.drain():
                    tell(event)
                    raise_if_lost(event, alone)
                    ask = running.get(getattr(event, "id", ""))
                    if ask is None:
                        continue
                    if isinstance(event, (Finished, Failed)):
                        del running[ask.request.id]
                    yield ask, event
        finally:
            self._backend.close_mailbox(mailbox)

    def _submit(self, waiting: deque[Ask], running: dict[str, Ask], mailbox: Mailbox) -> None:
        while waiting and len(running) < self._window:
            ask = waiting.popleft()
            running[ask.request.id] = ask
            self._backend.submit(ask.request, mailbox)

    def _finished(self, ask: Ask) -> Response:
        """The whole answer, with the logits that were asked for."""
        answer = ask.whole()
        if ask.logits is not None and ask.prompt_ids and answer.finish_reason != "error":
            ids = [*ask.prompt_ids, *answer.token_ids][: self.session_len]
            (logits,) = self._score(score.logits, [ids])
            # the row before a token is the one that it was drawn from
            answer.logits = logits if ask.logits == "all" else logits[len(ask.prompt_ids) - 1 : len(ids) - 1]
        return answer

    def _score(
        self, what: Callable[[Engine, list[int]], Generator[None, None, T]], lists: list[list[int]]
    ) -> list[T]:
        """`what` of each list of tokens; after a failure those that have not begun are spared."""

        def job(ids: list[int]) -> Future[T]:
            return self.compute(lambda engine: what(engine, ids))

        futures = [job(ids) for ids in lists]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def _end(backend: LocalBackend, process: int) -> None:
    if os.getpid() == process:  # a fork has a copy of the memory, but none of the threads
        backend.close()


def tell(event: Event) -> None:
    """Log what the engine has to say."""
    if isinstance(event, Notice):
        log.log(logging.INFO if event.level == "info" else logging.WARNING, event.text)


def raise_if_lost(event: Event, alone: bool) -> None:
    """Raise what ends the whole call: of a single prompt any failure, of a list that of the engine."""
    if isinstance(event, Failed) and (alone or event.code in LOST):
        kind = DeviceError if event.code in LOST else KINDS.get(event.code, LmtopError)
        raise kind(event.message)


def _progress_bar(total: int) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=total, unit="prompt")
