"""A server as a backend: real HTTP on loopback, against servers that answer as the known kinds do."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.machine import engine_snapshot
from support.openai_servers import WORDS, Answer, FakeServer
from support.remote import desk

from lmtop.engine.config import EngineConfig
from lmtop.engine.monitor import Monitor, to_json
from lmtop.engine.remote_chat import ReplyReader, body_of
from lmtop.engine.remote_kinds import KINDS
from lmtop.engine.remote_metrics import load_of, read_metrics
from lmtop.engine.samples import CpuSample, GpuSample, TelemetrySnapshot
from lmtop.engine.sse import EventStream, ServerEvent, TooLong
from lmtop.engine.types import (
    NOT_TOLD,
    Failed,
    Message,
    ModelInfo,
    ModelState,
    Request,
    SamplingParams,
    ServerLoad,
    UsageError,
)

ALL = ("vllm", "sglang", "lmdeploy", "llamacpp", "ollama", "plain")
SAMPLING = {
    "temperature": 0.5,
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "seed": 7,
    "stop": ("END",),
}


@pytest.mark.parametrize("kind", ALL)
def test_a_reply_of_every_kind(kind: str) -> None:
    with FakeServer(kind) as server, desk(server.url) as it:
        state = it.state("ready")
        assert (state.name, state.place) == (server.served[0], f"127.0.0.1:{server.port}")
        it.ask("what is a cache?")
        done = it.finished()
        assert it.text() == "".join(WORDS) and done.reason == "stop"
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (21, 7)
        assert done.timings.ttft_s > 0 and done.timings.total_s >= done.timings.ttft_s
        body = server.asked()[0].body
        assert body["messages"] == [{"role": "user", "content": "what is a cache?"}]
        assert body["stream"] is True and body["model"] == server.served[0]


@pytest.mark.parametrize(
    ("kind", "context", "load"),
    [
        ("vllm", 32768, ServerLoad(4, 2, 0.51)),
        ("sglang", 32768, ServerLoad(4, 2, 0.51)),
        ("lmdeploy", None, ServerLoad(4, 2, 0.51)),
        ("llamacpp", 8192, ServerLoad(4, 2, None)),
        ("ollama", None, ServerLoad()),
        ("plain", None, ServerLoad()),
    ],
)
def test_context_and_gauges_are_what_the_server_says(
    kind: str, context: int | None, load: ServerLoad
) -> None:
    with FakeServer(kind) as server, desk(server.url) as it:
        assert it.state("ready").context == context
        seen = it.backend.snapshot()
        assert seen.load == load and seen.kv is None and seen.memory is None and not seen.slots
        if load.running is not None:
            it.until(lambda: it.backend.snapshot().load.decode_tps)  # type: ignore[union-attr]
            rates = it.backend.snapshot().load
            assert rates is not None and rates.prefill_tps == pytest.approx(
                3 * (rates.decode_tps or 0), rel=0.01
            )


def test_metrics_of_a_mounted_application_are_found() -> None:
    server = FakeServer(
        "sglang", pages={"/metrics": lambda answer: answer.data(b"", 307, Location="/metrics/")}
    )
    server.pages["/metrics/"] = lambda answer: answer.data(server.metrics().encode())
    with server, desk(server.url) as it:
        assert it.backend.snapshot().load == ServerLoad(4, 2, 0.51)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vllm", {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2}),
        ("llamacpp", {"top_k": 40, "min_p": 0.1, "repeat_penalty": 1.2}),
        ("ollama", {}),
    ],
)
def test_only_what_the_server_understands_is_sent_and_the_rest_is_named_once(
    kind: str, names: dict[str, float]
) -> None:
    with FakeServer(kind) as server, desk(server.url) as it:
        for request in ("r1", "r2"):
            it.ask(id=request, **SAMPLING)
            it.finished(request)
        body = server.asked()[1].body
        sent = {name: body[name] for name in body.keys() - {"model", "messages", "stream", "stream_options"}}
        assert sent == names | {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"]}
        told = [text for text in it.notices() if "does not understand" in text]
        assert len(told) == (0 if names else 3)
        missing = {"top_k", "min_p", "repetition_penalty"} if not names else set()
        assert (it.backend.capabilities.sampling or frozenset()) & {
            "top_k",
            "min_p",
            "repetition_penalty",
        } == ({"top_k", "min_p", "repetition_penalty"} - missing)


def test_switched_off_filters_are_sent_as_the_server_writes_off() -> None:
    off = Request("r", (Message("user", "x"),), sampling=SamplingParams(top_k=0))
    assert body_of(off, "m", KINDS["vllm"])[1]["top_k"] == -1
    assert body_of(off, "m", KINDS["llamacpp"])[1]["top_k"] == 0
    assert "top_k" not in body_of(off, "m", KINDS["ollama"])[1]


def test_a_field_that_is_refused_is_left_out_from_then_on() -> None:
    def picky(answer: Answer) -> None:
        if "stream_options" in answer.seen.body:
            answer.document({"detail": [{"loc": ["body", "stream_options"], "msg": "extra field"}]}, 422)
        elif "max_tokens" in answer.seen.body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            answer.document({"error": {"message": text, "param": "max_tokens"}}, 400)
        elif "temperature" in answer.seen.body:
            error = {
                "message": "only the default (1) is supported",
                "param": "temperature",
                "code": "unsupported_value",
            }
            answer.document({"error": error}, 400)
        else:
            answer.reply()

    with FakeServer("plain", chat=picky) as server, desk(server.url) as it:
        it.ask(max_new_tokens=5)
        assert it.finished().usage.prompt_tokens == NOT_TOLD
        assert server.asked()[-1].body["max_completion_tokens"] == 5
        assert [text for text in it.notices() if "temperature" in text]
        it.ask(id="r2")
        it.finished("r2")
        assert len(server.asked()) == 5


def test_several_replies_at_once_each_get_their_own_text() -> None:
    def echo(answer: Answer) -> None:
        answer.stream()
        for character in answer.seen.body["messages"][-1]["content"]:
            answer.text(character)
        answer.event(b"[DONE]")

    texts = {f"r{i}": f"{i} " * 60 for i in range(8)}
    with FakeServer("plain", chat=echo) as server, desk(server.url) as it:
        for id, text in texts.items():
            it.ask(text, id)
        for id, text in texts.items():
            it.finished(id)
            assert it.text(id) == text


def test_cancel_closes_the_connection_at_once() -> None:
    """R18."""
    with FakeServer("vllm") as server, desk(server.url) as it:
        server.hold.clear()
        it.ask()
        it.until(it.text)
        started = time.monotonic()
        it.backend.cancel("r1")
        assert server.asked()[0].gone.wait(0.2)
        assert time.monotonic() - started < 0.2
        done = it.finished()
        assert done.reason == "cancelled" and it.text() == "".join(WORDS[:3])
        assert done.usage.completion_tokens == NOT_TOLD  # nobody counted


def test_cancel_before_an_answer_began_and_of_unknown_ids() -> None:
    quiet = threading.Event()
    with (
        FakeServer("vllm", chat=lambda answer: (answer.wait(quiet), None)[1]) as server,
        desk(server.url) as it,
    ):
        it.backend.cancel("nobody")
        it.ask()
        it.until(lambda: server.asked())
        it.backend.cancel("r1")
        it.backend.cancel("r1")
        assert it.finished().reason == "cancelled"
        assert server.asked()[0].gone.wait(1)


def test_closing_a_mailbox_or_the_backend_ends_its_replies() -> None:
    with FakeServer("vllm") as server, desk(server.url) as it:
        server.hold.clear()
        it.ask()
        it.until(it.text)
        it.backend.close_mailbox(it.mailbox)
        assert server.asked()[0].gone.wait(1)
        it.ask(id="r2")
        it.until(lambda: it.text("r2"))
        it.backend.close()
        assert server.asked()[1].gone.wait(1)
        assert not it.backend._thread.is_alive()
        box = it.backend.open()
        it.backend.submit(Request("r3", (Message("user", "x"),)), box)
        assert [event.code for event in box.drain() if isinstance(event, Failed)] == ["no_model"]


@pytest.mark.parametrize("kind", ["vllm", "ollama"])  # reasoning_content and reasoning
def test_reasoning_is_shown_and_not_sent_back(kind: str) -> None:
    with FakeServer(kind, thoughts=("Let me ", "see.")) as server, desk(server.url) as it:
        it.ask()
        it.finished()
        text = it.text()
        assert text == f"<think>\nLet me see.\n</think>\n\n{''.join(WORDS)}"
        turns = (Message("user", "a"), Message("assistant", text), Message("user", "b"))
        it.backend.submit(Request("r2", turns), it.mailbox)
        it.finished("r2")
        assert server.asked()[1].body["messages"][1] == {"role": "assistant", "content": "".join(WORDS)}


def test_another_model_can_be_chosen() -> None:
    with FakeServer("vllm") as server, desk(server.url) as it:
        assert it.backend.capabilities.models == server.served
        with pytest.raises(
            UsageError, match=r"has no model 'gpt-9'; it has Qwen/Qwen3-8B, Qwen/Qwen3-8B-math"
        ):
            it.backend.load(EngineConfig("gpt-9"))
        it.backend.load(EngineConfig("Qwen/Qwen3-8B-math"))
        it.until(lambda: it.events[-1:] and getattr(it.events[-1], "name", "") == "Qwen/Qwen3-8B-math")
        it.ask()
        it.finished()
        assert server.asked()[0].body["model"] == "Qwen/Qwen3-8B-math"
        with pytest.raises(UsageError, match="the model belongs to"):
            it.backend.unload()


def test_a_server_that_was_gone_is_found_again() -> None:
    server = FakeServer("vllm")
    with server, desk(server.url) as it:
        it.ask()
        it.finished()
        server.stop()
        message = it.state("failed").message
        assert f"cannot connect to 127.0.0.1:{server.port}: refused" in message and "trying again" in message
        it.ask(id="r2")
        assert "refused" in it.failed("r2")
        with FakeServer("vllm", port=server.port):
            it.events.clear()
            it.state("ready")
            it.ask(id="r3")
            it.finished("r3")


def test_everything_as_if_local_from_an_lmtop_server() -> None:
    """The gauges of /v1/monitor; our own requests carry our own names, and others' cannot be taken for them."""
    info = ModelInfo("demo", "", "llama", 4_000_000, 6, 4096, "cpu", "fp32", "fp32", 8, True)
    machine = TelemetrySnapshot(0.0, (GpuSample(0, "NVIDIA H200", "G", util=83.0),), CpuSample(percent=25.0))
    engine = engine_snapshot()
    told = replace(
        engine, slots=(replace(engine.slots[0], request="1-abcdef0123/0", session="s9"), engine.slots[1])
    )
    stop = threading.Event()

    def monitor(answer: Answer) -> None:
        document = to_json(Monitor(ModelState("ready", "demo", info=info), told, machine), 1000.0)
        if "once" in answer.seen.path:
            answer.document(document)
            return
        answer.stream()
        answer.event(document)
        answer.wait(stop)

    def chat(answer: Answer) -> None:
        answer.stream()
        answer.event({"id": "chatcmpl-1-abcdef0123", "choices": [{"delta": {"content": "a"}}]})
        answer.wait(stop)

    server = FakeServer("plain", models=("demo",), chat=chat, pages={"/v1/monitor": monitor})
    with server, desk(server.url) as it:
        assert it.state("ready").info == info
        assert it.backend.capabilities.kv_map
        it.ask()
        it.until(it.text)
        seen = it.backend.snapshot(kv_map=True)
        assert seen.load is None and seen.memory == engine.memory and seen.decode_tps == engine.decode_tps
        ours, other = seen.slots
        assert (ours.request, ours.session, ours.label) == ("r1", "7", "chat")
        assert other.session == "other:api#41"
        assert seen.kv is not None and engine.kv is not None and seen.kv.owners == engine.kv.owners
        assert all(name.startswith("other:") for name in seen.kv.sessions)
        assert it.backend.machine.snapshot().gpus[0].util == 83.0
        assert 0 in it.backend.machine.histories()
        stop.set()


# --- the wire ----------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.lists(
        st.lists(TEXTS.map(lambda t: t.replace("\r", "").replace("\n", "")), min_size=1, max_size=3),
        max_size=6,
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.booleans(),
)
def test_events_are_the_same_however_they_were_cut(
    events: list[list[str]], newline: str, cuts: list[int], mark: bool
) -> None:
    """R8."""
    lines = []
    for data in events:
        lines += [": a comment", "id: 4", "unknown", *(f"data: {line}" for line in data), ""]
    wire = ("\ufeff" * mark + "".join(line + newline for line in lines)).encode()
    stream, seen, at, turn = EventStream(), [], 0, 0
    while at < len(wire):
        seen += stream.feed(wire[at : at + cuts[turn % len(cuts)]])
        at += cuts[turn % len(cuts)]
        turn += 1
    assert seen == [ServerEvent("\n".join(data)) for data in events]


def test_events_are_bounded() -> None:
    with pytest.raises(TooLong):
        EventStream(100).feed(b"data: " + b"x" * 200)
    stream = EventStream(100)
    with pytest.raises(TooLong):
        for _ in range(20):
            stream.feed(b"data: 0123456789\n")


def test_chunks_of_every_odd_shape() -> None:
    """R8, the rest."""
    reader = ReplyReader()
    chunks = [
        {"choices": [{"delta": None}]},
        {"choices": []},
        {"choices": None, "usage": {"prompt_tokens": True, "completion_tokens": 3}},
        {"choices": [{"index": 1, "delta": {"content": "other"}}, {"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"delta": {"content": None, "role": "assistant"}}], "unknown": {"x": 1}},
        {"choices": [{"delta": {"content": [{"type": "text", "text": "b"}]}}]},
        {"choices": [{"delta": {"content": "\ud83d"}}]},
        {"choices": [{"text": "c", "finish_reason": "length"}]},
    ]
    text = "".join(reader.take(json.dumps(chunk)) for chunk in chunks)
    assert text == "ab\ufffdc" and reader.finish == "length"
    assert (reader.counts.prompt, reader.counts.completion) == (NOT_TOLD, 3)


def test_metrics_add_up_over_engines_and_survive_a_restart() -> None:
    page = 'vllm:num_requests_running{engine="0"} 1\nvllm:num_requests_running{engine="1"} 2\n'
    page += (
        'vllm:gpu_cache_usage_perc{a="}"} 0.2\nvllm:gpu_cache_usage_perc 0.4\nvllm:num_requests_waiting NaN\n'
    )
    before = read_metrics(page + "vllm:generation_tokens_total 100", 1.0)
    after = read_metrics(page + "vllm:generation_tokens_total 1.3e2", 3.0)
    assert before is not None and after is not None
    assert load_of(after, before) == ServerLoad(3, None, pytest.approx(0.3), 15.0, None)
    assert load_of(before, after).decode_tps is None
    assert read_metrics("python_gc_objects 3\nnonsense", 1.0) is None
