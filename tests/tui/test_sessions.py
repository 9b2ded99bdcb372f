from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from support.fake_backend import NO_MODEL, FakeBackend
from support.waiting import until

from lmtop.engine.types import ModelState, SamplingParams, UsageError
from lmtop.tui import sampling
from lmtop.tui.bridge import Bridge
from lmtop.tui.history import History
from lmtop.tui.replies import Replies
from lmtop.tui.sessions import ChatSession, NullView, Sessions, Turn
from lmtop.tui.store import Store


@dataclass
class FakeView(NullView):
    texts: dict[int, str] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)
    ended: list[Turn] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def reply_waiting(self, session: ChatSession, turn: Turn, text: str) -> None:
        self.waits.append(text)

    def reply_text(self, session: ChatSession, turn: Turn, text: str) -> None:
        self.texts[session.id] = self.texts.get(session.id, "") + text

    def reply_ended(self, session: ChatSession, turn: Turn) -> None:
        self.ended.append(turn)

    def notice(self, text: str, level: str = "info") -> None:
        self.told.append(text)


@dataclass
class House:
    backend: FakeBackend
    store: Store
    sessions: Sessions
    replies: Replies
    bridge: Bridge
    view: FakeView

    async def new(self, title: str) -> ChatSession:
        return await self.sessions.create(title)

    async def ask(self, session: ChatSession, text: str) -> str:
        """Send and wait until the engine has the request; its id."""
        known = len(self.backend.requests)
        self.replies.send(session, text)
        await until(lambda: len(self.backend.requests) > known)
        return self.backend.last()

    async def saved(self, session: ChatSession) -> list[tuple[str, str, str]]:
        rows = await self.store.call(self.store.history.path, session.id)
        return [(row.role, row.text, row.status) for row in rows]


async def build(path: object = None, backend: FakeBackend | None = None) -> House:
    backend = backend or FakeBackend()
    view = FakeView()
    store = Store(path, view.told.append)  # type: ignore[arg-type]
    await store.open()
    sessions = Sessions(store, SamplingParams())
    sessions.view = view
    replies = Replies(sessions)
    bridge = Bridge(backend, replies.deliver)
    bridge.start()
    replies.use(backend, bridge.mailbox)
    await until(lambda: replies.model is backend.state)
    return House(backend, store, sessions, replies, bridge, view)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = await build()
    yield house
    house.bridge.stop()
    await house.store.close()


async def test_question_is_committed_before_the_engine_is_asked(house: House) -> None:
    session = await house.new("a")
    asked: list[list[tuple[str, str, str]]] = []
    submit = house.backend.submit

    def spy(request, mailbox):  # type: ignore[no-untyped-def]
        rows = house.store._executor.submit(house.store.history.path, session.id).result()
        asked.append([(row.role, row.text, row.status) for row in rows])
        submit(request, mailbox)

    house.backend.submit = spy  # type: ignore[method-assign]
    await house.ask(session, "why?")
    assert asked == [[("user", "why?", "complete"), ("assistant", "", "streaming")]]


async def test_partial_text_is_saved_while_it_grows(house: House) -> None:
    session = await house.new("a")
    request = await house.ask(session, "q")
    house.backend.push(request, "half an ans")
    await until(lambda: session.turns[-1].text)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while (await house.saved(session))[-1][1] != "half an ans":
        assert loop.time() - start < 0.6
        await asyncio.sleep(0.01)


async def test_two_sessions_get_only_their_own_text(house: House) -> None:
    """Check 15."""
    sessions = [await house.new("a"), await house.new("b")]
    requests = [await house.ask(session, "q") for session in sessions]
    chance = random.Random(15)
    sent = ["", ""]
    for n in range(10_000):
        which = chance.randrange(2)
        fragment = f"{which}:{n} "
        sent[which] += fragment
        house.backend.push(requests[which], fragment)
        if n % 500 == 0:
            await asyncio.sleep(0)
    for request in requests:
        house.backend.finish(request)
    await until(lambda: not house.replies.active)
    for session, text in zip(sessions, sent, strict=True):
        digest = hashlib.sha256(text.encode()).digest()
        assert hashlib.sha256(house.view.texts[session.id].encode()).digest() == digest
        assert (await house.saved(session))[-1] == ("assistant", text, "complete")


async def test_burst_costs_one_wake_and_few_drains(house: House) -> None:
    session = await house.new("a")
    request = await house.ask(session, "q")
    await asyncio.sleep(0.2)  # let the bridge go to sleep
    calls = 0
    soon = house.bridge._loop.call_soon_threadsafe

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return soon(*args, **kwargs)

    house.bridge._loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    drains = house.bridge.drains
    try:
        for _ in range(2000):
            house.backend.push(request, "x")
    finally:
        del house.bridge._loop.call_soon_threadsafe
    await until(lambda: len(session.turns[-1].text) == 2000)
    assert calls == 1
    assert house.bridge.drains - drains <= 2


async def test_first_fragment_comes_at_once_later_ones_wait_for_the_tick(house: House) -> None:
    """Check 5, without the painting."""
    session = await house.new("a")
    request = await house.ask(session, "q")
    await until(lambda: not house.bridge._armed)
    loop = asyncio.get_running_loop()
    times: list[float] = []
    house.view.reply_text = lambda *rest: times.append(loop.time())  # type: ignore[method-assign]
    start = loop.time()
    for _ in range(30):
        house.backend.push(request, "x")
        await asyncio.sleep(0.01)
    await until(lambda: len(session.turns[-1].text) == 30)
    assert times[0] - start < 0.02
    assert all(b - a >= house.bridge.interval * 0.9 for a, b in itertools.pairwise(times))


async def test_idle_bridge_runs_nothing(house: House) -> None:
    await until(lambda: not house.bridge._armed)
    assert house.bridge._timer is None


async def test_stop_keeps_the_text_and_takes_statistics_later(house: House) -> None:
    session = await house.new("a")
    request = await house.ask(session, "q")
    house.backend.push(request, "so far")
    await until(lambda: session.turns[-1].text)
    assert house.replies.stop(session)
    assert (session.reply, session.turns[-1].status) == (None, "stopped")
    assert house.backend.cancelled == [request]
    await until(lambda: session.turns[-1].stats)
    assert (await house.saved(session))[-1] == ("assistant", "so far", "stopped")
    assert not house.replies.stop(session)


async def test_regenerate_makes_a_sibling_and_both_persist(house: House) -> None:
    """Check 12."""
    session = await house.new("a")
    for n, answer in enumerate(("first", "second")):
        if n:
            assert house.replies.regenerate(session)
            await until(lambda: len(house.backend.requests) == 2)
        request = house.backend.last() if n else await house.ask(session, "q")
        house.backend.push(request, answer)
        house.backend.finish(request)
        await until(lambda: not house.replies.active)
    turn = session.turns[-1]
    assert turn.siblings.index(turn.id) == 1 and len(turn.siblings) == 2  # type: ignore[arg-type]
    assert await house.sessions.switch_variant(session, turn, -1)
    assert [t.text for t in session.turns] == ["q", "first"]
    assert not await house.sessions.switch_variant(session, session.turns[-1], -1)
    assert await house.sessions.switch_variant(session, session.turns[-1], 1)
    assert [t.text for t in session.turns] == ["q", "second"]
    last = list(house.backend.requests.values())[-1]
    assert [message.content for message in last.messages or ()] == ["q"]


async def test_request_carries_system_prompt_and_merges_unanswered_turns(house: House) -> None:
    """Check 20."""
    session = await house.new("a")
    house.sessions.update(session, system="be brief", sampling=SamplingParams(temperature=0.0, seed=7))
    request = await house.ask(session, "one")
    house.backend.fail(request, "boom")
    await until(lambda: not house.replies.active)
    assert session.turns[-1].status == "failed" and session.turns[-1].stats == {"error": "boom"}
    asked = house.backend.requests[await house.ask(session, "two")]
    assert [(m.role, m.content) for m in asked.messages or ()] == [
        ("system", "be brief"),
        ("user", "one\n\ntwo"),
    ]
    assert asked.sampling == SamplingParams(temperature=0.0, seed=7)


async def test_question_asked_while_loading_is_held_until_the_model_is_there() -> None:
    house = await build(backend=FakeBackend(ModelState("loading", "demo")))
    session = await house.new("a")
    house.replies.send(session, "hello")
    await until(lambda: "waiting for the model to load" in house.view.waits)
    assert not house.backend.requests
    house.backend.loaded()
    await until(lambda: house.backend.requests)
    house.bridge.stop()
    await house.store.close()


async def test_load_that_fails_ends_what_waited_for_it() -> None:
    house = await build(backend=FakeBackend(ModelState("loading", "demo")))
    session = await house.new("a")
    house.replies.send(session, "hello")
    await until(lambda: house.view.waits)
    house.backend.tell(ModelState("failed", "demo", message="no config.json"))
    await until(lambda: not house.replies.active)
    assert session.turns[-1].stats == {"error": "no config.json"}
    house.bridge.stop()
    await house.store.close()


async def test_without_a_model_the_reply_says_what_to_do() -> None:
    house = await build(backend=FakeBackend(NO_MODEL))
    session = await house.new("a")
    house.replies.send(session, "hello")
    await until(lambda: not house.replies.active)
    assert "/load demo" in session.turns[-1].stats["error"]
    house.bridge.stop()
    await house.store.close()


async def test_interrupted_reply_is_there_after_a_restart(tmp_path) -> None:  # type: ignore[no-untyped-def]
    house = await build(tmp_path / "h.db")
    session = await house.new("")
    house.replies.send(session, "tell me\nmore")
    await until(lambda: house.backend.requests)
    house.backend.push(house.backend.last(), "once upon")
    await until(lambda: session.turns[-1].text)
    house.sessions.update(session, draft="next quest", system="s", sampling=SamplingParams(top_k=5))
    house.replies.interrupt()
    house.bridge.stop()
    await house.store.close()

    again = await build(tmp_path / "h.db")
    await again.sessions.open()
    session = again.sessions.all[0]
    assert (session.title, session.draft, session.system) == ("tell me more", "next quest", "s")
    assert session.sampling == SamplingParams(top_k=5)
    await again.sessions.load(session)
    assert [(t.text, t.status) for t in session.turns] == [
        ("tell me\nmore", "complete"),
        ("once upon", "interrupted"),
    ]
    again.bridge.stop()
    await again.store.close()


async def test_delete_removes_and_an_empty_session_is_used_again(house: House) -> None:
    first = await house.sessions.create()
    assert await house.sessions.create() is first
    named = await house.new("named")
    assert named is not first and house.sessions.all[0] is named
    await house.sessions.delete(named)
    assert house.sessions.all == [first]
    rows = await house.store.call(house.store.history.sessions)
    assert [row.id for row in rows] == [first.id]


async def test_history_that_fails_does_not_stop_the_chat(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await house.new("a")

    def broken(*rest: object, **fields: object) -> int:
        raise OSError("no space")

    monkeypatch.setattr(History, "add_message", broken)
    request = await house.ask(session, "q")
    house.backend.push(request, "answer")
    house.backend.finish(request)
    await until(lambda: not house.replies.active)
    assert session.turns[-1].text == "answer"
    assert house.view.told == ["not saved: no space"]


def test_settings_are_typed_as_people_write_them() -> None:
    base = SamplingParams()
    params = sampling.apply_settings("temp=.3 top-p=0.5 max=64 seed=none stop=END", base)
    assert params == SamplingParams(temperature=0.3, top_p=0.5, max_new_tokens=64, stop=("END",))
    assert sampling.from_dict(sampling.to_dict(params), base) == params
    assert sampling.from_dict({"top_p": 7, "temperature": "x", "top_k": 3}, base) == SamplingParams(top_k=3)
    for text, named in (
        ("temp", "name=value"),
        ("temp=hot", "temperature"),
        ("top_p=0", "top_p"),
        ("x=1", "'x=1'"),
    ):
        with pytest.raises(UsageError, match=named):
            sampling.apply_settings(text, base)
    assert "seed 7" in sampling.summary(SamplingParams(seed=7), 80)
