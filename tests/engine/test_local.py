"""The whole engine on a real (tiny, random) model, through the Backend protocol."""

import gc
import inspect
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file
from support.engines import Client, ledger, loaded, until
from support.llama import write_llama

from lmtop.engine import loader, local
from lmtop.engine.client import Mailbox
from lmtop.engine.config import EngineConfig
from lmtop.engine.faults import Faults
from lmtop.engine.live import Live
from lmtop.engine.local import LocalBackend, encode_request
from lmtop.engine.loop import EngineLoop
from lmtop.engine.types import (
    GREEDY,
    Accepted,
    Delta,
    Failed,
    Finished,
    Message,
    ModelState,
    Notice,
    Progress,
    Request,
    SamplingParams,
    Started,
    Usage,
)

SEEDED = SamplingParams(temperature=1.0, seed=7, max_new_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def engine(model: Path) -> Iterator[tuple[LocalBackend, Client]]:
    backend, client = loaded(model, max_batch_size=4, session_len=256)
    yield backend, client
    backend.close()


def ask(name: str, length: int = 20, **sampling: object) -> Request:
    rng = random.Random(name)
    params = replace(GREEDY, max_new_tokens=16, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return Request(name, prompt_ids=tuple(rng.randrange(5, 261) for _ in range(length)), sampling=params)


def test_events_come_in_order_and_the_counts_are_right(engine: tuple[LocalBackend, Client]) -> None:
    _backend, client = engine
    client.submit(
        Request("a", messages=(Message("user", "hello"),), sampling=replace(GREEDY, max_new_tokens=5))
    )
    client.wait(["a"])
    kinds = [type(event) for event in client.of("a")]
    assert kinds[0] is Accepted
    assert kinds[1] is Started
    assert kinds[-1] is Finished
    assert set(kinds[2:-1]) <= {Progress, Delta}
    end = client.last("a")
    accepted = client.of("a")[0]
    assert isinstance(end, Finished)
    assert isinstance(accepted, Accepted)
    assert end.usage.completion_tokens == len(client.ids("a")) <= 5
    assert end.usage.prompt_tokens == len(accepted.prompt_ids)
    assert end.usage.context_left == 256 - end.usage.prompt_tokens - end.usage.completion_tokens
    assert 0 <= end.timings.queue_s <= end.timings.ttft_s <= end.timings.total_s


def test_check_06_greedy_is_the_same_alone_and_in_batches_of_1_to_64(model: Path) -> None:
    backend, client = loaded(model, max_batch_size=64, session_len=256, prefix_caching=False)
    lengths = {f"r{n}": 3 + 7 * n % 200 for n in range(64)}
    for name, length in lengths.items():
        client.submit(ask(name, length))
        client.wait([name])
    alone = {name: client.ids(name) for name in lengths}
    for size in (2, 3, 8, 17, 64):
        chosen = random.Random(size).sample(list(lengths), size)
        names = {name: f"{size}{name}" for name in chosen}
        client.submit(*(replace(ask(name, lengths[name]), id=names[name]) for name in chosen))
        client.wait(names.values())
        assert {name: client.ids(names[name]) for name in chosen} == {name: alone[name] for name in chosen}
    backend.close()


@pytest.fixture
def preemptions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the requests so far were sent back to the queue, in all."""
    seen: list[Live] = []

    def recorded(*args: Any) -> Live:
        seen.append(encode_request(*args))
        return seen[-1]

    monkeypatch.setattr(local, "encode_request", recorded)
    return lambda: sum(live.seq.preemptions for live in seen)


def test_check_07_a_seed_decides_in_100_runs_of_any_company_and_overlap(model: Path) -> None:
    rng = random.Random(7)
    sampling = replace(SEEDED, max_new_tokens=12)
    results = []
    for overlap in (False, True):
        backend, client = loaded(model, max_batch_size=8, overlap=overlap, session_len=256)
        for run in range(50):
            company = [
                ask(f"c{run}-{k}", length=rng.randrange(1, 60), temperature=rng.choice([0.0, 1.0]))
                for k in range(rng.randrange(8))
            ]
            place = rng.randrange(len(company) + 1)
            request = Request(f"s{run}", prompt_ids=(9, 8, 7), sampling=sampling)
            client.submit(*company[:place], request, *company[place:])
            client.wait([request.id, *(other.id for other in company)])
            results.append(client.ids(request.id))
        backend.close()
    assert len(results) == 100
    assert len(results[0]) == 12
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("overlap", [False, True])
def test_check_07_a_seed_decides_after_preemption(
    model: Path, overlap: bool, preemptions: Callable[[], int]
) -> None:
    def replies(blocks: float) -> list[list[int]]:
        backend, client = loaded(
            model,
            session_len=128,
            cache_max_entry_count=blocks,
            cache_block_seq_len=16,
            max_batch_size=4,
            overlap=overlap,
        )
        requests = [
            replace(ask(f"p{n}"), sampling=replace(SEEDED, seed=n, max_new_tokens=60)) for n in range(4)
        ]
        client.submit(*requests)
        client.wait([request.id for request in requests])
        backend.close()
        return [client.ids(request.id) for request in requests]

    roomy = replies(400.0)
    assert preemptions() == 0
    assert replies(14.0) == roomy
    assert preemptions() > 0


def counts(usage: Usage) -> tuple[int, int]:
    return usage.prompt_tokens, usage.completion_tokens


def test_check_09_overlap_changes_no_token_reason_or_count(model: Path) -> None:
    outcomes = []
    for overlap in (False, True):
        backend, client = loaded(model, max_batch_size=8, session_len=256, overlap=overlap, max_queue=500)
        rng = random.Random(1)
        requests = [
            Request(
                f"m{n}",
                prompt_ids=tuple(rng.randrange(5, 261) for _ in range(rng.randrange(1, 90))),
                sampling=SamplingParams(
                    temperature=rng.choice([0.0, 1.0]),
                    seed=n,
                    max_new_tokens=rng.randrange(1, 20),
                    stop=("a",),
                ),
            )
            for n in range(500)
        ]
        client.submit(*requests)
        client.wait([request.id for request in requests])
        outcome = []
        for request in requests:
            end = client.last(request.id)
            assert isinstance(end, Finished)
            outcome.append((client.ids(request.id), client.text(request.id), end.reason, counts(end.usage)))
        outcomes.append(outcome)
        backend.close()
    assert outcomes[0] == outcomes[1]


def test_check_10_the_chunk_size_changes_nothing(model: Path) -> None:
    texts = []
    for chunk in (16, 17, 64, 512):
        backend, client = loaded(model, max_prefill_token_num=chunk, session_len=512)
        client.submit(ask("p", length=300))
        client.wait(["p"])
        texts.append(client.ids("p"))
        backend.close()
    assert all(text == texts[0] for text in texts)


def test_check_11_a_prefix_hit_gives_the_same_reply_and_says_how_much_was_cached(model: Path) -> None:
    """Hits of 0, 63, 64, 65, n - 1 and n tokens, in prompts that end before, at and after a block's end."""
    for length in (1, 63, 64, 65, 127, 128, 129, 150):
        cold, reference = loaded(model, session_len=256, prefix_caching=False)
        warm, client = loaded(model, session_len=256)
        for hit in sorted({0, 63, 64, 65, length - 1, length} & set(range(length + 1))):
            request = ask(f"hit{length}-{hit}", length=length)
            ids = request.prompt_ids or ()
            other = tuple(5 + (token - 4) % 256 for token in ids[hit:])
            reference.submit(request)
            reference.wait([request.id])
            client.submit(replace(request, id=f"first{hit}", prompt_ids=ids[:hit] + other))
            client.wait([f"first{hit}"])
            client.submit(request)
            client.wait([request.id])
            end = client.last(request.id)
            assert isinstance(end, Finished)
            assert end.usage.cached_tokens == min(hit, length - 1) // 64 * 64
            assert client.ids(request.id) == reference.ids(request.id), (length, hit)
        cold.close()
        warm.close()


def test_check_13_preemption_changes_no_reply(model: Path, preemptions: Callable[[], int]) -> None:
    """200 requests; 8 of them want about 42 blocks."""

    def run(blocks: float) -> list[list[int]]:
        backend, client = loaded(
            model, session_len=128, cache_max_entry_count=blocks, cache_block_seq_len=16, max_batch_size=8
        )
        requests = [
            replace(ask(f"q{n}", length=10 + n % 30), sampling=replace(SEEDED, seed=n, max_new_tokens=60))
            for n in range(200)
        ]
        client.submit(*requests)
        client.wait([request.id for request in requests])
        until(lambda: ledger(backend), "an idle ledger")
        backend.close()
        return [client.ids(request.id) for request in requests]

    roomy = run(400.0)
    assert preemptions() == 0
    assert run(14.0) == roomy
    assert preemptions() > 20


def mixed(rng: random.Random, name: str, kind: float) -> Request:
    """A short request; one whose `kind` is below 0.05 does not fit the context."""
    length = 200 if kind < 0.05 else rng.randrange(1, 60)
    return Request(
        name,
        prompt_ids=tuple(rng.randrange(5, 261) for _ in range(length)),
        sampling=SamplingParams(temperature=rng.choice([0.0, 0.9]), max_new_tokens=rng.randrange(1, 8)),
    )


def test_check_15_10000_mixed_requests_leak_nothing(model: Path) -> None:
    """20 % cancelled at random times, 5 % too long; after 500 that warm the allocators up."""
    process = psutil.Process(os.getpid())
    backend, client = loaded(model, max_batch_size=64, session_len=128, max_queue=1000)
    threads, files = threading.active_count(), process.num_fds()
    rng = random.Random(5)

    def serve(total: int) -> int:
        """Send and await `total` requests; resident bytes afterwards."""
        sent = 0
        open_ids: set[str] = set()
        to_cancel: list[str] = []
        while sent < total or open_ids:
            while sent < total and len(open_ids) < 200:
                name, kind = f"{total}-{sent}", rng.random()
                client.submit(mixed(rng, name, kind))
                if 0.05 <= kind < 0.25:
                    to_cancel.append(name)
                open_ids.add(name)
                sent += 1
                if rng.random() < 0.3:
                    while to_cancel:
                        backend.cancel(to_cancel.pop())
            client.mailbox.wait(1.0)
            for event in client.mailbox.drain():
                if isinstance(event, (Finished, Failed)):
                    assert event.id in open_ids, f"{event.id} ended twice"
                    open_ids.remove(event.id)
        until(lambda: ledger(backend), "an idle ledger")
        gc.collect()
        return process.memory_info().rss

    warm = serve(500)
    drift = serve(int(os.environ.get("LMTOP_MANY", "10000"))) - warm
    assert (threading.active_count(), process.num_fds()) == (threads, files)
    assert drift < 20e6, f"{drift / 1e6:.1f} MB more than after the first 500"
    backend.close()
    until(lambda: threading.active_count() == threads - 2, "the engine's threads to end")


def test_check_17_what_can_never_fit_is_refused_at_once_with_both_numbers(
    engine: tuple[LocalBackend, Client],
) -> None:
    _, client = engine
    client.submit(ask("long", length=400), ask("short"))
    client.wait(["long", "short"])
    failed = client.last("long")
    assert isinstance(failed, Failed)
    assert failed.code == "context_length_exceeded"
    assert "400" in failed.message
    assert "256" in failed.message
    assert isinstance(client.last("short"), Finished)


def test_check_20_stop_strings_cut_the_text_wherever_the_tokens_end(
    engine: tuple[LocalBackend, Client],
) -> None:
    _, client = engine
    base = replace(ask("free"), sampling=replace(SEEDED, max_new_tokens=60))
    client.submit(base)
    client.wait(["free"])
    whole = client.text("free")
    assert len(whole) > 8
    stop = whole[4:7]
    for include in (False, True):
        name = f"stop{include}"
        client.submit(
            replace(base, id=name, sampling=replace(base.sampling, stop=(stop,), include_stop=include))
        )
        client.wait([name])
        end = client.last(name)
        assert isinstance(end, Finished)
        assert end.reason == "stop"
        assert client.text(name) == whole[: whole.index(stop) + (len(stop) if include else 0)]


def test_check_22_logprobs_are_sorted_and_include_the_chosen_token(
    engine: tuple[LocalBackend, Client],
) -> None:
    _, client = engine
    client.submit(ask("lp", logprobs=5))
    client.wait(["lp"])
    entries = [entry for event in client.of("lp") if isinstance(event, Delta) for entry in event.logprobs]
    assert [entry.chosen.token_id for entry in entries] == client.ids("lp")
    for entry in entries:
        values = [top.logprob for top in entry.top]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert entry.top[0].token_id == entry.chosen.token_id  # greedy
        assert entry.top[0].logprob == pytest.approx(entry.chosen.logprob, abs=1e-5)


def test_cancel_ends_a_request_in_the_queue_in_prefill_and_while_it_decodes(model: Path) -> None:
    backend = LocalBackend(faults=Faults(step_ms=5))
    client = Client(backend)
    client.load(EngineConfig(str(model), max_batch_size=1, max_prefill_token_num=16, session_len=512))
    client.submit(replace(ask("decoding"), sampling=replace(SEEDED, max_new_tokens=400)))
    client.submit(ask("queued"))
    until(lambda: bool(client.text("decoding")), "text")
    backend.cancel("queued")
    client.wait(["queued"])
    backend.cancel("decoding")
    client.wait(["decoding"])
    client.submit(ask("prefill", length=400))
    until(lambda: any(isinstance(e, Progress) for e in client.of("prefill")), "progress")
    backend.cancel("prefill")
    client.wait(["prefill"])
    for name in ("queued", "decoding", "prefill"):
        end = client.last(name)
        assert isinstance(end, Finished), end
        assert end.reason == "cancelled"
    assert client.text("decoding")
    until(lambda: ledger(backend), "free blocks")
    backend.cancel("prefill")  # E14: again, and after the end
    backend.cancel("never heard of")
    client.submit(ask("after"))
    client.wait(["after"])
    backend.close()


def test_e2_a_row_that_is_not_finite_ends_alone(model: Path) -> None:
    backend, client = loaded(model)
    names = [f"r{n}" for n in range(4)]
    client.submit(*(ask(name) for name in names))
    client.wait(names)
    clean = {name: client.ids(name) for name in names}
    backend.close()
    backend = LocalBackend(faults=Faults("logits@8:nan"))
    client = Client(backend)
    client.load(EngineConfig(str(model)))
    client.submit(*(ask(name) for name in names))
    client.wait(names)
    ends = {name: client.last(name) for name in names}
    failed = [name for name, end in ends.items() if isinstance(end, Failed)]
    assert len(failed) == 1
    end = ends[failed[0]]
    assert isinstance(end, Failed)
    assert end.code == "nonfinite_logits"
    assert {n: client.ids(n) for n in names if n not in failed} == {
        n: clean[n] for n in names if n not in failed
    }
    until(lambda: ledger(backend), "an idle ledger")
    backend.close()


def test_e3_nothing_but_nan_makes_the_engine_unhealthy(model: Path) -> None:
    backend = LocalBackend(faults=Faults("logits@*:nan"))
    client = Client(backend)
    client.load(EngineConfig(str(model), max_batch_size=1))
    names = [f"r{n}" for n in range(4)]
    client.submit(*(ask(name) for name in names))
    client.wait(names)
    codes = [getattr(client.last(name), "code", "") for name in names]
    assert codes[:3] == ["nonfinite_logits"] * 3
    assert codes[3] == "engine_dead"
    assert client.state().status == "dead"
    assert "load it again" in client.state().message
    backend.close()


def test_e7_out_of_memory_in_a_step_ends_the_newest_and_recomputes_the_others(model: Path) -> None:
    backend, client = loaded(model)
    names = [f"r{n}" for n in range(3)]
    client.submit(*(ask(name) for name in names))
    client.wait(names)
    clean = {name: client.ids(name) for name in names}
    backend.close()
    backend = LocalBackend(faults=Faults("forward@9:oom", step_ms=5))
    client = Client(backend)
    client.load(EngineConfig(str(model)))
    client.submit(*(ask(name) for name in names))
    client.wait(names)
    failed = [name for name in names if isinstance(client.last(name), Failed)]
    assert failed == ["r2"]
    assert all(client.ids(name) == clean[name] for name in names[:2])
    backend.close()


@pytest.mark.parametrize("step", [1, 2, 7])
def test_e9_an_exception_in_the_loop_ends_what_is_open_and_the_engine_goes_on_once(
    model: Path, step: int
) -> None:
    backend = LocalBackend(faults=Faults(f"forward@{step}:raise,forward@{step + 90}:raise"))
    client = Client(backend)
    client.load(EngineConfig(str(model)))
    client.submit(*(ask(f"a{n}") for n in range(3)))
    client.wait([f"a{n}" for n in range(3)])
    assert {getattr(client.last(f"a{n}"), "code", "") for n in range(3)} & {"engine_error"}
    client.submit(ask("b"))
    client.wait(["b"])
    assert isinstance(client.last("b"), Finished)
    client.submit(*(replace(ask(f"c{n}"), sampling=replace(SEEDED, max_new_tokens=100)) for n in range(3)))
    client.wait([f"c{n}" for n in range(3)])
    until(lambda: client.state().status == "dead", "the engine to be dead")
    client.submit(ask("d"))
    client.wait(["d"])
    end = client.last("d")
    assert isinstance(end, Failed)
    assert end.code == "engine_dead"
    assert client.load(EngineConfig(str(model))).status == "ready"  # a fresh load is the way out
    client.submit(ask("e"))
    client.wait(["e"])
    assert isinstance(client.last("e"), Finished)
    backend.close()


def test_e1_no_memory_at_load_is_a_failed_load_with_numbers(model: Path) -> None:
    backend = LocalBackend()
    client = Client(backend)
    state = client.load(EngineConfig(str(model), cache_max_entry_count=1e12))
    assert state.status == "failed"
    assert state.error is not None
    assert state.error.exit_code == 6
    assert "GiB" in state.message
    assert client.load(EngineConfig(str(model))).status == "ready"
    backend.close()


def test_a_load_can_be_cancelled_and_replaced(model: Path, tmp_path: Path) -> None:
    backend = LocalBackend()
    client = Client(backend)
    backend.load(EngineConfig(str(tmp_path / "nowhere")))
    backend.load(EngineConfig(str(model)))
    until(lambda: client.state().status == "ready", "ready")
    client.submit(replace(ask("x"), sampling=replace(SEEDED, max_new_tokens=900)))
    backend.unload()
    client.wait(["x"])
    until(lambda: client.state().status == "none", "unloaded")
    client.submit(ask("y"))
    client.wait(["y"])
    assert getattr(client.last("y"), "code", "") == "no_model"
    backend.close()


def test_a_consumer_that_stalls_costs_nothing_and_gets_everything(
    engine: tuple[LocalBackend, Client],
) -> None:
    backend, client = engine
    client.submit(replace(ask("slow"), sampling=replace(SEEDED, max_new_tokens=200)))
    until(lambda: backend.snapshot().steps > 0 and not backend.snapshot().slots, "the end, undrained")
    events = client.mailbox.drain()
    deltas = [event for event in events if isinstance(event, Delta)]
    assert len(deltas) == 1
    assert len(deltas[0].token_ids) == 200
    assert isinstance(events[-1], Finished)


def test_closing_a_mailbox_cancels_what_it_waits_for(model: Path) -> None:
    backend, _ = loaded(model, Faults(step_ms=10), session_len=256)
    other = backend.open()
    backend.submit(replace(ask("gone"), sampling=replace(SEEDED, max_new_tokens=230)), other)
    until(lambda: bool(backend.snapshot().slots), "it to run")
    backend.close_mailbox(other)
    until(lambda: ledger(backend), "its blocks to be free")
    assert backend.snapshot().steps < 200, "it ended by itself"
    backend.close()


def test_e11_a_consumer_that_fails_loses_its_requests_and_nobody_elses(model: Path) -> None:
    backend, client = loaded(model, Faults(step_ms=2), session_len=256)

    def wake() -> None:
        if backend.snapshot().steps > 3:
            raise RuntimeError("the consumer's own")

    other = backend.open(wake)
    backend.submit(replace(ask("gone"), sampling=replace(SEEDED, max_new_tokens=230)), other)
    client.submit(ask("stays"))
    client.wait(["stays"])
    assert isinstance(client.last("stays"), Finished)
    until(lambda: ledger(backend), "the other's blocks to be free")
    assert backend.snapshot().steps < 200, "it ended by itself"
    backend.close()


def test_e12_no_memory_while_a_prompt_is_encoded_ends_that_request_alone(
    engine: tuple[LocalBackend, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, client = engine
    tokenizer = backend._loop.engine.tokenizer  # type: ignore[union-attr]
    encode, calls = tokenizer.encode, itertools.count()

    def short_of_memory(text: str, **options: bool) -> list[int]:
        if next(calls) == 1:
            raise MemoryError
        return encode(text, **options)

    monkeypatch.setattr(
        type(tokenizer), "encode", lambda self, text, **options: short_of_memory(text, **options)
    )
    names = ["before", "victim", "after"]
    client.submit(*(replace(ask(name), prompt_ids=None, prompt="some text") for name in names))
    client.wait(names)
    ends = {name: client.last(name) for name in names}
    failed = ends.pop("victim")
    assert isinstance(failed, Failed)
    assert "memory" in failed.message.lower()
    assert all(isinstance(end, Finished) for end in ends.values())
    assert client.ids("before") == client.ids("after")
    assert client.state().status == "ready"
    until(lambda: ledger(backend), "an idle ledger")


@pytest.mark.parametrize("jump", [2, 3, 10, 60])
def test_e13_a_clock_that_jumps_back_gives_no_negative_rate_and_no_hang(model: Path, jump: int) -> None:
    looks = itertools.count()

    def clock() -> float:
        """Half a second per look, and an hour back at one of them."""
        look = next(looks)
        return 10_000 + look / 2 - (3600 if look >= jump else 0)

    loop = EngineLoop(loader.load(EngineConfig(str(model), session_len=256)), clock=clock)
    mailbox = Mailbox()
    request = replace(ask("jump"), sampling=replace(SEEDED, max_new_tokens=60))
    loop.submit(encode_request(loop.engine, request, mailbox, 1, clock()))
    rates = []
    for _ in range(200):
        worked = loop.step()
        loop._publish()
        rates += [loop.latest.decode_tps, loop.latest.prefill_tps]
        rates += [slot.tokens_per_s for slot in loop.latest.slots]
        if not worked:
            break
    (end,) = [event for event in mailbox.drain() if isinstance(event, (Finished, Failed))]
    assert isinstance(end, Finished)
    assert end.usage.completion_tokens == 60
    assert min(*rates, end.timings.prefill_tps, end.timings.decode_tps) >= 0


def test_e13_the_engine_takes_its_times_from_a_clock_that_never_jumps() -> None:
    assert inspect.signature(EngineLoop).parameters["clock"].default is time.monotonic


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_m18_weights_that_are_not_numbers_are_told_to_the_user(tmp_path: Path, value: float) -> None:
    directory = write_llama(tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(directory / "model.safetensors")
    weights[name][3, 5] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    backend, client = loaded(directory)
    notices = [event for event in client.events if isinstance(event, Notice)]
    backend.close()
    assert [name in notice.text for notice in notices] == [True]
    assert "NaN or infinity" in notices[0].text


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("bad", prompt_ids=(1, 999)), "999 is not a token"),
        (Request("bad", prompt_ids=()), "empty"),
        (Request("bad", prompt="x" * 100_000), "characters"),
    ],
)
def test_an_impossible_prompt_is_refused_by_name(
    engine: tuple[LocalBackend, Client], request_: Request, words: str
) -> None:
    _, client = engine
    client.submit(request_)
    client.wait(["bad"])
    end = client.last("bad")
    assert isinstance(end, Failed)
    assert end.code == ("context_length_exceeded" if words == "characters" else "invalid_request")
    assert words in end.message


def test_the_snapshot_adds_up(model: Path) -> None:
    backend, client = loaded(model, Faults(step_ms=10), session_len=256)
    request = replace(ask("s"), session="one", label="One", sampling=replace(SEEDED, max_new_tokens=200))
    client.submit(request)
    snapshots = []

    def mapped() -> bool:
        snapshots.append(backend.snapshot(kv_map=True))
        kv = snapshots[-1].kv
        return bool(snapshots[-1].slots) and kv is not None and bool(kv.owners)

    until(mapped, "a map")
    snapshot = snapshots[-1]
    kv, memory = snapshot.kv, snapshot.memory
    assert kv is not None
    assert memory is not None
    assert kv.free + kv.cached + kv.used == kv.total - 1
    owners = [int.from_bytes(kv.owners[i : i + 2], "little") for i in range(0, len(kv.owners), 2)]
    assert sum(owner >= 2 for owner in owners) == kv.used
    assert "one" in kv.sessions
    assert memory.kv_used + memory.kv_rest == backend._loop.engine.kv_bytes  # type: ignore[union-attr]
    backend.cancel("s")
    client.wait(["s"])
    backend.close()


def test_the_state_is_told_to_every_new_mailbox(engine: tuple[LocalBackend, Client]) -> None:
    backend, _ = engine
    (state,) = backend.open().drain()
    assert isinstance(state, ModelState)
    assert state.status == "ready"
    assert state.info is not None
    assert state.info.context_len == 256
