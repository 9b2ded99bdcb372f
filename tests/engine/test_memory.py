"""What the engine says it holds of its device's memory: readings, or n/a."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.engines import Client, loaded, until
from support.gpus import GIB, FakeNvml, Gpu
from support.llama import write_llama

from lmtop.engine import local, memory, switching
from lmtop.engine.blocks import BlockPool
from lmtop.engine.config import DeviceInfo, EngineConfig
from lmtop.engine.loader import Engine, Prepared, build
from lmtop.engine.local import LocalBackend
from lmtop.engine.memory import Ram, Reading, Vram, given_back
from lmtop.engine.meter import Meter
from lmtop.engine.types import MemorySplit, Notice

PID = os.getpid()
BEFORE = DeviceInfo("cuda", "NVIDIA H200", 141 * GIB, 131 * GIB)  # others hold 10


@pytest.fixture(autouse=True)
def first_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_outside_torch", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "good")


def test_what_the_driver_lists_for_this_process_is_taken() -> None:
    gpu = Gpu(used=32 * GIB, processes=[(7, 9 * GIB), (PID, 21 * GIB), (8, None)])
    vram = Vram(BEFORE, FakeNvml(gpu), lambda: 20 * GIB)
    assert vram.loaded() == 21 * GIB
    assert vram.read() == Reading(141 * GIB, 21 * GIB, 11 * GIB)
    assert vram.name == "GPU0"


@pytest.mark.parametrize(
    "processes",
    [
        None,  # not permitted
        [],  # hidden by a container
        [(PID, None)],  # listed without its memory
        [
            (PID, 9 * GIB)
        ],  # less than torch holds: another's process, whose number is ours outside the container
    ],
)
def test_without_a_list_it_is_torchs_pool_and_what_the_load_took_beside(processes: Any) -> None:
    gpu, pool = Gpu(used=31 * GIB, processes=processes), 20 * GIB
    vram = Vram(BEFORE, FakeNvml(gpu), lambda: pool)
    assert vram.loaded() == 21 * GIB  # 31 less the others' 10
    gpu.used, pool = 40 * GIB, 22 * GIB
    assert vram.read() == Reading(141 * GIB, 23 * GIB, 17 * GIB)
    later = Vram(replace(BEFORE, free=100 * GIB), FakeNvml(gpu), lambda: pool)
    assert later.loaded() == 23 * GIB  # the context is the same


def test_a_lost_gpu_is_not_known_and_is_asked_again() -> None:
    gpu = Gpu(used=31 * GIB)
    vram = Vram(BEFORE, FakeNvml(gpu), lambda: 20 * GIB)
    gpu.lost = True
    assert vram.loaded() is None
    assert vram.read() == Reading(None, 20 * GIB, None)
    gpu.lost = False
    readings = [vram.read() for _ in range(8)]  # after resting
    assert readings[-1].total == 141 * GIB


def test_a_driver_that_is_gone_makes_no_engine_fail() -> None:
    vram = Vram(BEFORE, FakeNvml(fails=RuntimeError("no driver")), lambda: GIB)
    assert (vram.loaded(), vram.read(), vram.name) == (None, Reading(None, GIB, None), "GPU")


def test_the_second_gpu_keeps_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    vram = Vram(BEFORE, FakeNvml(Gpu(used=GIB), Gpu(used=30 * GIB, uuid="GPU-2")), lambda: 0)
    assert (vram.name, vram.loaded()) == ("GPU1", 20 * GIB)


def test_ram_is_the_operating_systems_figures() -> None:
    reading = Ram().read()
    assert reading.total is not None and reading.others is not None
    assert 20 << 20 < reading.own < reading.total
    assert reading.own + reading.others <= reading.total


# --- the gauges --------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(model: Path) -> Iterator[tuple[LocalBackend, Client]]:
    backend, client = loaded(model, session_len=256)
    yield backend, client
    backend.close()


def test_the_parts_of_the_split_add_up_and_the_driver_is_asked_twice_a_second(
    engine: tuple[LocalBackend, Client],
) -> None:
    nvml = FakeNvml(Gpu(used=31 * GIB, processes=[(PID, 21 * GIB)]))
    vram = Vram(BEFORE, nvml, lambda: 20 * GIB)
    vram.loaded()
    assert engine[0]._loop is not None
    on_gpu = replace(engine[0]._loop.engine, memory=vram, weights_bytes=5 * GIB, kv_bytes=12 * GIB)
    meter, now = Meter(lambda: now), 0.0
    nvml.asked.clear()
    for tick in range(21):
        now = tick / 10  # two seconds
        split = meter.snapshot(on_gpu, on_gpu.scheduler, {}, 1, now, False).memory
    assert split is not None
    assert len(nvml.asked) == 4
    assert (split.device, split.total, split.others) == ("GPU0", 141 * GIB, 10 * GIB)
    assert (split.weights, split.kv_used + split.kv_rest) == (5 * GIB, 12 * GIB)
    assert split.workspace == 4 * GIB
    nvml.gpus[0].lost = True
    split = meter.snapshot(on_gpu, on_gpu.scheduler, {}, 1, 9.0, False).memory
    assert split is not None and (split.total, split.others) == (None, None)


def test_what_an_unload_gives_back() -> None:
    ram = MemorySplit("RAM", 64, weights=5, kv_used=1, kv_rest=2, workspace=3, others=4)
    assert given_back(None) == 0
    assert given_back(ram) == 8  # the interpreter stays
    assert given_back(replace(ram, device="GPU0")) == 11  # a plan counts the runtime as well


def test_predicted_and_measured_are_both_told_and_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Engine] = []

    def measured(prepared: Prepared, *more: Any) -> Engine:
        engine = build(prepared, *more)
        assert engine.measured is None  # of RAM, which fills as the cache is used
        plan = replace(engine.plan, total=int(21.3 * GIB))
        kept.append(replace(engine, plan=plan, measured=int(21.1 * GIB)))
        return kept[0]

    monkeypatch.setattr(local, "build", measured)
    backend, client = loaded(model)
    told = [event for event in client.events if isinstance(event, Notice) and "measured" in event.text]
    assert told == [Notice("memory: predicted 21.3 GiB, measured 21.1 GiB", "info")]
    backend.close()


def test_a_load_in_place_of_another_counts_what_that_gives_back(
    engine: tuple[LocalBackend, Client], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, client = engine
    assert backend._loop is not None
    split = backend._loop.latest.memory
    seen: list[int] = []
    real = local.prepare

    def recorded(config: EngineConfig, progress: Any, cancelled: Any, reclaim: int) -> Prepared:
        seen.append(reclaim)
        return real(config, progress, cancelled, reclaim)

    monkeypatch.setattr(local, "prepare", recorded)
    count = len(client.events)
    backend.load(EngineConfig(str(model)))
    until(lambda: bool(seen) and client.state().status == "ready" and len(client.events) > count + 2, "ready")
    assert split is not None and seen == [split.weights + split.kv_used + split.kv_rest]


def test_a_failed_load_holds_nothing_when_it_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt may come at once, and counts what is free."""
    from weakref import ref

    pools: list[ref[BlockPool]] = []
    real = BlockPool.__init__

    def recorded(pool: BlockPool, *arguments: Any) -> None:
        pools.append(ref(pool))
        real(pool, *arguments)

    def failing(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(BlockPool, "__init__", recorded)
    monkeypatch.setattr("lmtop.engine.loader._warm_up", failing)
    told: list[bool] = []
    real_told = LocalBackend._not_loaded

    def not_loaded(backend: LocalBackend, *arguments: Any) -> None:
        told.append(pools[0]() is None)
        real_told(backend, *arguments)

    monkeypatch.setattr(LocalBackend, "_not_loaded", not_loaded)
    backend = LocalBackend()
    assert Client(backend).load(EngineConfig(str(model))).status == "failed"
    assert told == [True]
    backend.close()


# --- turns of threads --------------------------------------------------------------------------------------------


def test_threads_take_quick_turns_while_an_engine_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "_holders", 0)  # another test's engine may still be open
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    try:
        one, two = LocalBackend(), LocalBackend()
        assert sys.getswitchinterval() == pytest.approx(switching.INTERVAL_S)
        one.close()
        one.close()
        assert sys.getswitchinterval() == pytest.approx(switching.INTERVAL_S)
        two.close()
        assert sys.getswitchinterval() == pytest.approx(0.005)
    finally:
        sys.setswitchinterval(before)
