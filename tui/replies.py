"""Replies being generated: from a session's path to requests, and from engine events to text of the right session.

The user's message is committed before generation starts; the growing reply is saved at least every half second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from ..engine.client import Backend, Mailbox
from ..engine.text import one_line
from ..engine.types import (
    NOT_TOLD,
    Accepted,
    Delta,
    EngineSnapshot,
    Event,
    Failed,
    Finished,
    Message,
    ModelState,
    Notice,
    Progress,
    Request,
    Started,
    Waiting,
)
from .sessions import TITLE_LENGTH, ChatSession, Reply, Sessions, Turn

SAVE_EVERY_S = 0.4
NO_MODEL = "no model is loaded: choose one with F4 or type /load demo"


def refusal(session: ChatSession, model: ModelState) -> str:
    """Why nothing can be asked now; empty when it can."""
    if session.reply is not None:
        return "a reply is being generated: esc stops it, ^n opens another session"
    return "" if model.status in ("ready", "loading") else unusable(model)


def unusable(model: ModelState) -> str:
    """What is wrong with a model in this state, and what to do."""
    return model.message if model.message and (model.status == "dead" or model.place) else NO_MODEL


class Replies:
    """Asks the backend and takes its events; `use` must say which before the first request."""

    def __init__(self, sessions: Sessions, clock: Callable[[], float] = time.time) -> None:
        self.model = ModelState("none")
        self.mailbox: Mailbox
        self._sessions = sessions
        self._backend: Backend
        self._clock = clock
        self._open: dict[str, tuple[ChatSession, Reply]] = {}
        self._held: dict[str, Request] = {}  # until the model is loaded
        self._stopped: dict[str, tuple[ChatSession, Turn]] = {}  # their statistics are still to come
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> bool:
        """Whether any reply is being generated."""
        return bool(self._open)

    def use(self, backend: Backend, mailbox: Mailbox) -> None:
        """Ask `backend` from now on. What is open on the one before ends, with the text that it has."""
        self.interrupt()
        self._held.clear()
        self._stopped.clear()
        self.model = ModelState("none")
        self._backend, self.mailbox = backend, mailbox

    # --- asking --------------------------------------------------------------------------------------------

    def send(self, session: ChatSession, text: str) -> None:
        """Add the user's message and start a reply. The view has both before this returns."""
        user = Turn(self._sessions.new_key(), "user", text, "complete", self._clock())
        session.turns.append(user)
        self._sessions.view.turn_added(session, user)
        if not session.title:
            self._sessions.update(session, title=one_line(text, TITLE_LENGTH))
        self._begin(session, ())

    def regenerate(self, session: ChatSession, turn: Turn | None = None) -> bool:
        """Answer again: a sibling of `turn` (the last reply by default) takes its place on the path."""
        if session.reply is not None or not session.turns:
            return False
        if turn is None and session.turns[-1].role == "assistant":
            turn = session.turns[-1]
        siblings: tuple[int, ...] = ()
        if turn is not None:
            siblings = turn.siblings or ((turn.id,) if turn.id is not None else ())
            del session.turns[session.turns.index(turn) :]
            self._sessions.view.turns_changed(session)
        self._begin(session, siblings)
        return True

    def _begin(self, session: ChatSession, siblings: tuple[int, ...]) -> None:
        turn = Turn(self._sessions.new_key(), "assistant", "", "streaming", self._clock(), self.model.name)
        turn.siblings = (*siblings, 0) if siblings else ()  # 0: its id is not known yet
        reply = Reply(f"{session.id}-{turn.key}", turn)
        session.turns.append(turn)
        session.reply = reply
        self._open[reply.request] = (session, reply)
        self._sessions.view.turn_added(session, turn)
        self._sessions.view.sessions_changed()
        self._spawn(self._start(session, reply))

    async def _start(self, session: ChatSession, reply: Reply) -> None:
        request = self._request(session, reply)
        await self._commit(session, reply.turn)
        if session.reply is not reply:  # stopped meanwhile, and never submitted
            self._stopped.pop(reply.request, None)
            self._save(reply.turn)
        elif self.model.status == "ready":
            self._backend.submit(request, self.mailbox)
        elif self.model.status == "loading":
            self._held[reply.request] = request
            reply.phase = "held"
            self._wait(
                session, reply, self.model.message if self.model.place else "waiting for the model to load"
            )
        else:
            reply.turn.stats = {"error": unusable(self.model)}
            self._end(session, reply, "failed")

    async def _commit(self, session: ChatSession, turn: Turn) -> None:
        """Write the question, and the reply's empty row, before anything is generated."""
        at = session.turns.index(turn)
        user, before = session.turns[at - 1], session.turns[at - 2] if at > 1 else None
        store, add = self._sessions.store, self._sessions.store.history.add_message
        if session.id < 0 or (before is not None and before.id is None):
            return
        if user.id is None:
            parent = before.id if before is not None else None
            user.id = await store.attempt(add, session.id, parent, "user", user.text, "complete")
        if user.id is not None:
            turn.id = await store.attempt(
                add, session.id, user.id, "assistant", "", "streaming", model=turn.model
            )
        if turn.id is not None and turn.siblings:
            turn.siblings = (*turn.siblings[:-1], turn.id)

    def _request(self, session: ChatSession, reply: Reply) -> Request:
        messages = [Message("system", session.system)] if session.system else []
        for turn in session.turns:
            if not turn.text:
                continue
            if messages and messages[-1].role == turn.role:  # templates insist on turns that alternate
                messages[-1] = Message(turn.role, f"{messages[-1].content}\n\n{turn.text}")
            else:
                messages.append(Message(turn.role, turn.text))
        return Request(
            reply.request,
            messages=tuple(messages),
            sampling=session.sampling,
            session=str(session.id),
            label=session.name,
        )

    def stop(self, session: ChatSession) -> bool:
        """End the session's reply now and keep its text; False when there is none."""
        reply = session.reply
        if reply is None:
            return False
        if self._held.pop(reply.request, None) is None:
            self._stopped[reply.request] = (session, reply.turn)
            self._backend.cancel(reply.request)
        self._end(session, reply, "stopped")
        return True

    def interrupt(self) -> None:
        """The program ends: keep what was generated, marked as interrupted."""
        for session, reply in list(self._open.values()):
            self._backend.cancel(reply.request)
            self._end(session, reply, "interrupted")

    # --- events --------------------------------------------------------------------------------------------

    def deliver(self, events: list[Event]) -> None:
        """Take what the bridge drained."""
        for event in events:
            if isinstance(event, ModelState):
                self._model_changed(event)
            elif isinstance(event, Notice):
                self._sessions.view.notice(event.text, event.level)
            elif event.id in self._open:
                self._take(event, *self._open[event.id])
            elif isinstance(event, Finished | Failed) and event.id in self._stopped:
                _, turn = self._stopped.pop(event.id)
                if isinstance(event, Finished):
                    turn.stats = _stats(event)
                    self._save(turn)

    def _take(self, event: Event, session: ChatSession, reply: Reply) -> None:
        match event:
            case Delta(text=text):
                if reply.phase != "decode":
                    reply.phase = "decode"
                    self._sessions.view.sessions_changed()
                reply.turn.text += text
                self._save_soon(reply)
                self._sessions.view.reply_text(session, reply.turn, text)
            case Waiting(text=text):
                self._wait(session, reply, text)
            case Accepted(prompt_ids=ids):
                reply.total = len(ids)
            case Started(cached_tokens=cached):
                reply.phase, reply.done, reply.place = "prefill", cached, 0
                self._wait(session, reply, f"reading {reply.total} tokens")
            case Progress(done=done, total=total):
                reply.phase, reply.done, reply.total = "prefill", done, total
                self._wait(session, reply, f"reading {total} tokens: {100 * done // max(total, 1)} %")
            case Finished():
                reply.turn.stats = _stats(event)
                # not asked for by the user, who would have ended the reply at once: the model went away
                self._end(session, reply, "interrupted" if event.reason == "cancelled" else "complete")
            case Failed(message=message):
                reply.turn.stats = {"error": message}
                self._end(session, reply, "failed")

    def _wait(self, session: ChatSession, reply: Reply, text: str) -> None:
        self._sessions.view.reply_waiting(session, reply.turn, text)
        self._sessions.view.sessions_changed()

    def _end(self, session: ChatSession, reply: Reply, status: str) -> None:
        if reply.saver is not None:
            reply.saver.cancel()
        del self._open[reply.request]
        session.reply = None
        session.unseen = True
        reply.turn.status = status
        self._save(reply.turn)
        self._sessions.view.reply_ended(session, reply.turn)
        self._sessions.view.sessions_changed()

    def _model_changed(self, state: ModelState) -> None:
        self.model = state
        held, self._held = self._held, {}
        if state.status == "loading":
            self._held = held
        for name, request in held.items() if state.status != "loading" else ():
            session, reply = self._open[name]
            if state.status == "ready":
                reply.phase, reply.turn.model = "queued", state.name
                self._backend.submit(request, self.mailbox)
            else:
                reply.turn.stats = {"error": state.message or NO_MODEL}
                self._end(session, reply, "failed")
        self._sessions.view.model_changed(state)

    def measure(self, snapshot: EngineSnapshot) -> None:
        """Take speeds and places in the queue from the gauges' snapshot."""
        rates = {slot.request: slot.tokens_per_s for slot in snapshot.slots}
        for request, (_, reply) in self._open.items():
            reply.tps = rates.get(request, 0.0)
        for place, waiting in enumerate(snapshot.queue, 1):
            if waiting.request in self._open:
                session, reply = self._open[waiting.request]
                if (reply.place, reply.reason) != (place, waiting.reason):
                    reply.place, reply.reason = place, waiting.reason
                    self._wait(session, reply, f"number {place} in the queue: {waiting.reason}")

    # --- saving --------------------------------------------------------------------------------------------

    def _save_soon(self, reply: Reply) -> None:
        if reply.saver is None:
            reply.saver = asyncio.get_running_loop().call_later(SAVE_EVERY_S, self._save_partial, reply)

    def _save_partial(self, reply: Reply) -> None:
        reply.saver = None
        if reply.turn.id is not None:
            store = self._sessions.store
            store.post(store.history.update_message, reply.turn.id, text=reply.turn.text)

    def _save(self, turn: Turn) -> None:
        if turn.id is not None:
            store = self._sessions.store
            store.post(
                store.history.update_message, turn.id, text=turn.text, status=turn.status, stats=turn.stats
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler({"message": "a reply's task failed", "exception": error})


def _stats(event: Finished) -> dict[str, Any]:
    """What a reply's statistics line and the history keep, as far as it is known: token counts, seconds, tokens/s, how
    it ended."""
    figures = {**asdict(event.usage), **asdict(event.timings)}
    return {**{name: value for name, value in figures.items() if value != NOT_TOLD}, "finish": event.reason}
