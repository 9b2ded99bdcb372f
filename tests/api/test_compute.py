"""`LocalBackend.compute`: work on the engine's thread beside the requests, whatever becomes of either."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from support.engines import Client, ledger, loaded, until
from support.llama import write_llama

from lmtop.engine.loader import Engine
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import GREEDY, LmtopError, Message, Request, UsageError


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[LocalBackend, Client]]:
    backend, client = loaded(write_llama(tmp_path / "model"), session_len=256)
    yield backend, client
    backend.close()


def count(engine: Engine) -> Generator[None, None, int]:
    for _ in range(5):
        yield
    return engine.plan.context_len


def test_the_result_comes_while_requests_run(engine: tuple[LocalBackend, Client]) -> None:
    backend, client = engine
    client.submit(Request("a", messages=(Message("user", "hello"),), sampling=GREEDY))
    assert backend.compute(count).result(10) == 256
    client.wait(["a"])
    assert backend.compute(count).result(10) == 256  # and when none does
    until(lambda: ledger(backend), "idle")


def test_a_failure_is_the_jobs_own(engine: tuple[LocalBackend, Client]) -> None:
    backend, client = engine

    def broken(engine: Engine) -> Generator[None, None, None]:
        yield
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        backend.compute(broken).result(10)
    client.submit(Request("b", messages=(Message("user", "hello"),), sampling=GREEDY))
    client.wait(["b"])
    assert backend.compute(count).result(10) == 256


def test_a_job_that_nobody_waits_for_any_more_is_not_begun(engine: tuple[LocalBackend, Client]) -> None:
    backend, _ = engine
    entered, go = threading.Event(), threading.Event()

    def waits(engine: Engine) -> Generator[None, None, None]:
        entered.set()
        assert go.wait(10)
        yield

    first, begun = backend.compute(waits), []
    assert entered.wait(10)

    def other(engine: Engine) -> Generator[None, None, None]:
        begun.append(1)
        yield

    second = backend.compute(other)
    assert second.cancel()
    go.set()
    first.result(10)
    assert backend.compute(count).result(10) == 256
    assert not begun


def test_unloading_ends_jobs_and_lets_them_clean_up(engine: tuple[LocalBackend, Client]) -> None:
    backend, _ = engine
    entered, closed = threading.Event(), threading.Event()

    def endless(engine: Engine) -> Generator[None, None, None]:
        try:
            while True:
                entered.set()
                yield
        finally:
            closed.set()

    running, waiting = backend.compute(endless), backend.compute(count)
    assert entered.wait(10)
    backend.unload()
    for future in (running, waiting):
        with pytest.raises(LmtopError, match="stopped"):
            future.result(10)
    assert closed.is_set()
    until(lambda: backend.engine is None, "unloaded")
    with pytest.raises(UsageError, match="no model is loaded"):
        backend.compute(count).result(10)
    backend.close()
    with pytest.raises(UsageError, match="no model is loaded"):
        backend.compute(count).result(10)
