"""Pictures of the chat screen (checks 1 and 2): `pytest tests/tui/test_chat_snapshots.py --snapshot-update`
accepts what is drawn now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_backend import FakeBackend, FakeTelemetry
from support.waiting import wait_until
from textual.pilot import Pilot

from lmtop.tui.app import AppOptions, LmtopApp

REPLY = """Decode is bound by bytes moved per token, in two parts:

1. **weights**, read once per step for the whole batch
2. KV, read once per sequence, growing with its length

```python
bytes_step = w_bytes + sum(
    2 * L * kv_h * d * b for s in S)
```

| context | weights | KV bf16 |
|---------|---------|---------|
| 4k      | 4.9 G   | 0.6 G   |
| 32k     | 4.9 G   | 4.8 G   |

With a short context the first term wins, so"""


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("TERM", "tmux-256color")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Scene:
    """Four sessions: one that streams and is shown, one in prefill, one in the queue, one answered."""

    def __init__(self, **options: Any) -> None:
        self.backend = FakeBackend()
        self.app = LmtopApp(
            AppOptions(
                backend=self.backend, telemetry=FakeTelemetry(), clock=lambda: 1_700_000_000.0, **options
            )
        )

    async def play(self, pilot: Pilot[Any]) -> None:
        backend, chat = self.backend, self.app.chat
        await wait_until(pilot, lambda: chat.session is not None)

        async def ask(text: str) -> str:
            known = len(backend.requests)
            chat.composer.text = text
            await pilot.press("enter")
            await wait_until(pilot, lambda: len(backend.requests) > known)
            return backend.last()

        shown = await ask("Why does int8 KV halve the cache but not the latency?")
        session = chat.session
        assert session is not None
        backend.push(shown, REPLY)
        await pilot.press("ctrl+n")
        backend.start(await ask("notes on zh-翻译"), done=12)
        await pilot.press("ctrl+n")
        await ask("essay")
        await pilot.press("ctrl+n")
        answered = await ask("sql plan")
        backend.push(answered, "Use an index.")
        backend.finish(answered)
        await wait_until(pilot, lambda: session.turns[-1].text == REPLY)
        await chat.show(session)
        chat.composer.text = "and what changes at 32k context?\nshow a table"
        await self.settle(pilot)

    async def settle(self, pilot: Pilot[Any]) -> None:
        """The same half second in every run."""
        await wait_until(pilot, lambda: self.app._bridge is not None and not self.app._bridge._armed)
        self.app.chat._ticks = 0
        self.app.chat.tick()
        self.app.chat._ticker.pause()
        await pilot.pause()


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_chat(size: tuple[int, int], snap_compare: Any) -> None:
    scene = Scene()
    assert snap_compare(scene.app, terminal_size=size, run_before=scene.play)


@pytest.mark.parametrize("key", ["f1", "ctrl+g"])
def test_help_and_menu(key: str, snap_compare: Any) -> None:
    scene = Scene()

    async def play(pilot: Pilot[Any]) -> None:
        await wait_until(pilot, lambda: scene.app.chat.session is not None)
        await scene.settle(pilot)
        await pilot.press(key)

    assert snap_compare(scene.app, terminal_size=(80, 24), run_before=play)
