"""The picture in README.md. What the model says there, the built-in one says (greedily)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.dialogs import program, same_everywhere
from support.fake_backend import INFO, READY, FakeBackend
from support.machine import GIB, gpu_entry, machine_file
from support.waiting import wait_until
from textual.pilot import Pilot

from lmtop.engine.telemetry import Telemetry
from lmtop.engine.types import EngineSnapshot, MemorySplit

DEMO = replace(INFO, parameters=7_474_944, layers=7, context_len=2048)
MIB = 1 << 20

LOAD = """Press `F4` or type `/load`, pick one and press load. Or start lmtop with it:

```sh
lmtop chat MODEL
```

MODEL is a local Hugging Face directory or a hub id."""
CACHE = """The **KV cache** keeps the keys and values of all tokens so far, so that the model does not compute them \
again for each new token. It grows by"""
STORY = "There was once a small fox by the sea. Everybody called the fox Paul."
CHINESE = "从前，湖边住着一个叫小明的小猫。小明很想有一个朋友。"


class Working(FakeBackend):
    """The scripted engine, with the built-in model's sizes, and speeds that rise and fall."""

    def __init__(self) -> None:
        super().__init__(replace(READY, info=DEMO), blocks_each=7)
        self.second = 0

    def snapshot(self, kv_map: bool = False) -> EngineSnapshot:
        told = super().snapshot(kv_map)
        busy = (0, 0, 150, 290, 330, 310, 340, 420, 460, 430, 470, 455)[self.second // 5]
        split = MemorySplit("RAM", 256 * GIB, 29 * MIB, 21 * MIB, 89 * MIB, 371 * MIB, 44 * GIB)
        each = busy / max(1, len(told.slots))
        return replace(
            told,
            time=1000.0 + self.second,
            memory=split,
            slots=tuple(replace(slot, tokens_per_s=each) for slot in told.slots),
            max_batch=3,
            decode_tps=float(busy),
            prefill_tps=2900.0 if self.second % 9 == 4 else 0.0,
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    """An H200, always the same."""
    host = {"percent": 12.0, "cores": 64, "load": [7.6, 6.1, 4.0], "ram_total": 256 * GIB}
    path = machine_file(tmp_path / "machine.json", [gpu_entry(0)], cpu=host)
    monkeypatch.setenv("LMTOP_TEST", "1")
    monkeypatch.setenv("LMTOP_FAKE_GPU", str(path))
    telemetry = Telemetry()
    telemetry.sample()
    monkeypatch.setattr(telemetry, "start", lambda: None)
    return telemetry


def test_picture(machine: Telemetry, snap_compare: Any) -> None:
    backend = Working()

    def say(request: str, text: str) -> None:
        for token in re.findall(r"\w+\W*|\W+|[\u4e00-\u9fff]", text):
            backend.push(request, token)

    async def ask(pilot: Pilot[Any], text: str) -> str:
        known = len(backend.requests)
        pilot.app.chat.composer.text = text  # type: ignore[attr-defined]
        await pilot.press("enter")
        await wait_until(pilot, lambda: len(backend.requests) > known)
        return backend.last()

    with same_everywhere():
        app = program(backend, telemetry=machine)

        async def play(pilot: Pilot[Any]) -> None:
            chat = app.chat
            await wait_until(pilot, lambda: chat.session is not None)
            first = await ask(pilot, "How do I load a real model?")
            shown = chat.session
            assert shown is not None
            backend.start(first)
            say(first, LOAD)
            backend.finish(first)
            await wait_until(pilot, lambda: not app.replies.active)
            say(await ask(pilot, "And what is the KV cache?"), CACHE)
            for question, text in (("Tell me a story about a fox", STORY), ("给我讲一个短故事。", CHINESE)):
                await pilot.press("ctrl+n")
                say(await ask(pilot, question), text)
            await pilot.press("ctrl+n")
            await ask(pilot, "What does temperature do?")
            await wait_until(pilot, lambda: app._bridge is not None and not app._bridge._armed)
            await chat.show(shown)
            chat._ticker.pause()
            for backend.second in range(60):
                chat.gauge_panel._readings.add(backend.snapshot(), _busy_gpu(machine, backend.second))
            chat._ticks = 0
            chat.tick()
            chat._ticker.pause()
            await pilot.pause()

        assert snap_compare(app, terminal_size=(120, 36), run_before=play)


def _busy_gpu(machine: Telemetry, second: int) -> Any:
    snapshot = machine.snapshot()
    busy = 35.0 + (second * 7) % 50
    gpus = tuple(replace(gpu, util=busy) for gpu in snapshot.gpus)
    return replace(snapshot, time=snapshot.time - 60 + second, gpus=gpus)


def test_readme_shows_it() -> None:
    """A wheel has no README beside it."""
    readme = Path(__file__).parents[2] / "README.md"
    picture = Path(__file__).parent / "__snapshots__" / "test_readme" / "test_picture.svg"
    assert f"]({picture.relative_to(readme.parent)})" in readme.read_text()
