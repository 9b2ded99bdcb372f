"""Loading beside a model that works: what fails before it costs memory leaves everything as it is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import llama
from support.engines import Client, loaded, until

from lmtop.engine.config import EngineConfig
from lmtop.engine.faults import Faults
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import GREEDY, Finished, ModelState, Notice, Request

LONG = replace(GREEDY, max_new_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama.write_llama(tmp_path_factory.mktemp("llama") / "good")


@pytest.fixture
def engine(model: Path) -> Iterator[tuple[LocalBackend, Client]]:
    backend, client = loaded(model, Faults(step_ms=5), session_len=256)
    yield backend, client
    backend.close()


def states(client: Client) -> list[ModelState]:
    client.pump()
    return [event for event in client.events if isinstance(event, ModelState)]


def test_a_model_that_cannot_be_loaded_leaves_the_present_one_and_its_replies(
    engine: tuple[LocalBackend, Client], tmp_path: Path
) -> None:
    backend, client = engine
    client.submit(Request("long", prompt_ids=(9, 8, 7), sampling=LONG))
    until(lambda: bool(client.ids("long")), "the reply to begin")
    broken = llama.config()
    bad = llama.write(tmp_path / "bad", broken, {**llama.tensors(broken), "extra.weight": torch.zeros(1)})
    seen = len(states(client))
    backend.load(EngineConfig(str(bad)))
    until(lambda: any(state.status == "failed" for state in states(client)[seen:]), "the failure")
    until(lambda: states(client)[-1].status == "ready", "the model before")
    (failed,) = [state for state in states(client)[seen:] if state.status == "failed"]
    assert "extra.weight" in failed.message
    assert states(client)[-1].name == "good"
    client.wait(["long"])
    end = client.last("long")
    assert isinstance(end, Finished)
    assert end.reason == "length"
    assert backend.snapshot().status == "ready"


def test_a_cancelled_load_leaves_the_present_model(
    engine: tuple[LocalBackend, Client], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, client = engine
    seen = len(states(client))
    real = backend._progress

    def cancelling(name: str) -> object:
        def tell(share: float, text: str) -> None:
            backend.cancel_load()
            real(name)(share, text)

        return tell

    monkeypatch.setattr(backend, "_progress", cancelling)
    backend.load(EngineConfig(str(model)))
    until(lambda: states(client)[-1].status == "ready" and len(states(client)) > seen + 1, "the model before")
    assert "loading was cancelled" in [state.message for state in states(client)[seen:]]
    client.submit(Request("after", prompt_ids=(9, 8, 7), sampling=replace(LONG, max_new_tokens=3)))
    client.wait(["after"])
    assert isinstance(client.last("after"), Finished)


def test_m18_weights_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    good = llama.write_llama(tmp_path / "nan")
    of = llama.config()
    weights = llama.tensors(of)
    weights["model.layers.0.mlp.up_proj.weight"][:] = torch.nan
    llama.write(good, of, weights)
    backend, client = loaded(good)
    notices = [event.text for event in client.events if isinstance(event, Notice)]
    assert any("up_proj" in text for text in notices), notices
    backend.close()


def test_e1_less_memory_than_planned_gives_a_smaller_cache_and_says_so(model: Path) -> None:
    backend = LocalBackend(faults=Faults("alloc.kv@1:oom,alloc.kv@2:oom"))
    client = Client(backend)
    state = client.load(EngineConfig(str(model), session_len=256, max_batch_size=8))
    assert state.status == "ready"
    kv = backend.snapshot().kv
    assert kv is not None
    assert kv.total - 1 == 8  # of 32 blocks
    assert any("reduced to 512 tokens" in e.text for e in client.events if isinstance(e, Notice))
    backend.close()


def test_e1_not_even_one_context_is_a_failure_that_names_the_way_out(model: Path) -> None:
    backend = LocalBackend(faults=Faults("alloc.kv@*:oom"))
    client = Client(backend)
    state = client.load(EngineConfig(str(model)))
    assert state.status == "failed"
    assert state.error is not None
    assert state.error.exit_code == 6
    assert "smaller" in state.message
    backend.close()


def test_load_anyway_of_what_no_machine_has_is_one_line(model: Path) -> None:
    backend = LocalBackend()
    client = Client(backend)
    state = client.load(EngineConfig(str(model), cache_bytes=20 << 40, force=True))
    assert state.status == "failed"
    assert state.error is not None
    assert state.error.exit_code == 6
    backend.close()


@pytest.mark.parametrize("words", [["cache_size", "1 B"], ["cache_size", "1.0 TiB"]])
def test_a_cache_size_that_cannot_work_is_named(model: Path, words: list[str]) -> None:
    backend = LocalBackend()
    client = Client(backend)
    size = 1 if words[1] == "1 B" else 1 << 40
    state = client.load(EngineConfig(str(model), cache_bytes=size, session_len=1024))
    assert state.status == "failed"
    for word in words:
        assert word in state.message
    backend.close()
