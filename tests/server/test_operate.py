"""What watches and operates the server: health, metrics, monitor, abort, sleep, sessions."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.engines import until
from support.server import USER, ScriptedBackend, Server, is_error

from lmtop.engine import monitor
from lmtop.engine.types import ModelState

ENDLESS = {"messages": USER, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(step_ms=4)
    yield server
    server.close()


@pytest.fixture
def scripted() -> Iterator[Server]:
    server = Server(ScriptedBackend())
    yield server
    server.close()


def background(
    server: Server, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> list[httpx.Response]:
    """Ask in a thread; the answer is in the list once it is there. Returns when it runs."""
    answers: list[httpx.Response] = []
    server.settled()  # snapshots are a moment old: what ended just now may still be in them
    threading.Thread(target=lambda: answers.append(server.client.post(path, json=body)), daemon=True).start()
    until(lambda: len(server.backend.snapshot().slots) > 0, "it runs")
    return answers


def test_health_follows_the_engine_not_the_server(scripted: Server) -> None:
    def get() -> httpx.Response:
        return scripted.client.get("/health")

    assert get().json() == {"status": "healthy"}
    backend: ScriptedBackend = scripted.backend
    backend.stalled = True  # the heartbeat stands still
    service = scripted.service
    service._beat = (0, time.monotonic() - 5.5)  # as if for 5.5 s
    is_error(get(), 503, "engine_stalled")
    backend.stalled = False
    until(lambda: get().status_code == 200, "it is healthy again")
    backend.tell(ModelState("loading", "demo", 0.5))
    until(lambda: get().status_code == 503, "it loads")
    refused = scripted.client.post("/v1/chat/completions", json={"messages": USER})
    is_error(refused, 503, "loading")
    assert refused.headers["retry-after"] == "1"
    assert scripted.client.get("/v1/models").json()["data"] == []
    backend.tell(ModelState("dead", "demo", message="it broke"))
    until(lambda: get().json().get("error", {}).get("code") == "engine_dead", "it is dead")
    is_error(scripted.client.post("/v1/chat/completions", json={"messages": USER}), 503, "engine_dead")


def test_metrics_by_both_names(server: Server) -> None:
    for _ in range(2):
        server.chat(max_tokens=5, messages=[{"role": "user", "content": "lamp " * 100}], ignore_eos=True)
    until(lambda: server.backend.snapshot().kv.cached > 0 and server.idle(), "the gauges have followed")
    text = server.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    value = {
        sample.name: sample.value
        for family in families.values()
        for sample in family.samples
        if not sample.labels
    }
    for ours, theirs in (
        ("lmtop_kv_usage_ratio", "lmdeploy:gpu_cache_usage_perc"),
        ("lmtop_requests_running", "lmdeploy:num_requests_running"),
        ("lmtop_requests_waiting", "lmdeploy:num_requests_waiting"),
        ("lmtop_generation_tokens_total", "lmdeploy:generation_tokens_total"),
        ("lmtop_prompt_tokens_total", "lmdeploy:prompt_tokens_total"),
        ("lmtop_cached_tokens_total", "lmdeploy:cached_tokens_total"),
    ):
        assert value[ours] == value[theirs], ours
    assert value["lmtop_generation_tokens_total"] == 10
    assert value["lmtop_cached_tokens_total"] >= 64
    blocks = {sample.labels["state"]: sample.value for sample in families["lmtop_kv_blocks"].samples}
    kv = server.backend.snapshot().kv
    assert (blocks["free"], blocks["cached"], blocks["used"]) == (kv.free, kv.cached, kv.used)
    ttft = families["lmtop_time_to_first_token_seconds"].samples
    assert next(s.value for s in ttft if s.name.endswith("_count")) == 2
    assert 0 < next(s.value for s in ttft if s.name.endswith("_sum")) < 5
    states = {sample.labels["state"]: sample.value for sample in families["lmtop_engine_state"].samples}
    assert states["ready"] == 1 and sum(states.values()) == 1


def test_the_monitor_tells_what_the_engine_says(server: Server) -> None:
    answers = background(server, ENDLESS)
    seen: list[monitor.Monitor] = []
    times: list[float] = []
    with server.client.stream("GET", "/v1/monitor") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        for line in response.iter_lines():
            if line.startswith("data: "):
                seen.append(monitor.from_json(json.loads(line[6:]), time.monotonic()))
                times.append(time.monotonic())
            if len(seen) == 3:
                break
    assert 0.8 < times[2] - times[0] < 1.6  # 2 Hz
    newest = seen[-1]
    local = server.backend.snapshot()
    assert newest.model.info is not None and newest.model.info.name == "demo"
    assert newest.model.info.path == ""
    assert newest.engine.max_batch == local.max_batch
    assert [slot.phase for slot in newest.engine.slots] == ["decode"]
    assert newest.engine.kv is not None and len(newest.engine.kv.owners) == 2 * newest.engine.kv.total
    assert newest.engine.steps > seen[0].engine.steps
    assert abs(newest.engine.time - time.monotonic()) < 2
    server.client.post("/abort_request", json={"abort_all": True})
    until(lambda: bool(answers), "it ended")


def test_abort_by_id_by_session_and_all(server: Server) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=ENDLESS | {"stream": True}) as response:
        lines = response.iter_lines()
        answer_id = json.loads(next(lines)[6:])["id"]
        aborted = server.client.post("/abort_request", json={"request_id": answer_id})
        assert aborted.json() == {"success": True, "aborted": 1}
        rest = [line for line in lines if line]
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "abort"
    assert rest[-1] == "data: [DONE]"
    for body, abort in (({"session_id": 7}, {"session_id": 7}), ({"n": 2}, {"abort_all": True})):
        answers = background(server, ENDLESS | body)
        assert server.client.post("/abort_request", json={"request_id": "nope"}).json()["aborted"] == 0
        assert server.client.post("/abort_request", json=abort).json()["aborted"] == 1
        until(lambda answers=answers: bool(answers), "it ended")
        assert answers[0].json()["choices"][0]["finish_reason"] == "abort"
    server.settled()


def test_sleep_frees_and_wakeup_answers_as_before(server: Server) -> None:
    before = server.chat().json()["choices"]
    cut = background(server, ENDLESS)
    assert server.client.post("/sleep", params={"level": 2}).json() == {"success": True}
    until(lambda: bool(cut), "what ran was cut")
    assert cut[0].json()["choices"][0]["finish_reason"] == "abort"
    until(lambda: server.backend.snapshot().kv is None, "the memory is free")
    assert server.client.get("/is_sleeping").json() == {"is_sleeping": True}
    assert server.client.get("/health").json() == {"status": "sleeping"}
    is_error(server.chat(), 503, "sleeping")
    assert server.client.post("/wakeup?tags=weights&tags=kv_cache").json() == {"success": True}
    assert server.client.get("/is_sleeping").json() == {"is_sleeping": False}
    assert server.chat().json()["choices"] == before


# --- sessions ----------------------------------------------------------------------------------------------


def interact(server: Server, **body: Any) -> httpx.Response:
    return server.client.post("/v1/chat/interactive", json={"temperature": 0, "request_output_len": 6} | body)


def test_a_session_remembers_until_it_is_ended(server: Server) -> None:
    first = interact(server, prompt="Tell me about the lamp.", session_id=5, interactive_mode=True).json()
    second = interact(server, prompt="And the key?", session_id=5, interactive_mode=True).json()
    turns = [
        {"role": "user", "content": "Tell me about the lamp."},
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "And the key?"},
    ]
    same = server.chat(messages=turns, max_tokens=6).json()
    assert second["text"] == same["choices"][0]["message"]["content"]
    assert second["input_tokens"] + second["history_tokens"] == same["usage"]["prompt_tokens"]
    ended = interact(server, prompt="", session_id=5, request_output_len=0).json()
    assert (ended["text"], ended["tokens"]) == ("", 0)
    fresh = interact(server, prompt="And the key?", session_id=5).json()
    assert fresh["input_tokens"] + fresh["history_tokens"] < second["input_tokens"] + second["history_tokens"]
    once = interact(server, prompt="And the key?", session_id=5).json()  # not interactive: nothing was kept
    assert once["text"] == fresh["text"]


def test_a_session_is_answered_once_at_a_time_and_can_be_cancelled(server: Server) -> None:
    body = {"prompt": "x", "session_id": 6, "ignore_eos": True, "temperature": 0}
    answers = background(server, body, "/v1/chat/interactive")
    is_error(interact(server, prompt="y", session_id=6), 409, "request_conflict")
    assert interact(server, prompt="", session_id=6, cancel=True).status_code == 200
    until(lambda: bool(answers), "it ended")
    assert answers[0].json()["finish_reason"] == "abort"
    assert interact(server, prompt="y", session_id=6).status_code == 200


def test_both_schemas_of_generate(server: Server) -> None:
    post = server.client.post
    new = post(
        "/generate", json={"prompt": "A story", "max_tokens": 4, "temperature": 0, "return_logprob": True}
    )
    assert len(new.json()["output_ids"]) == 4
    assert [pair[1] for pair in new.json()["meta_info"]["output_token_logprobs"]] == new.json()["output_ids"]
    ids = post("/v1/encode", json={"input": "A story"}).json()["input_ids"]
    same = post("/generate", json={"input_ids": ids, "max_tokens": 4, "temperature": 0})
    assert same.json()["text"] == new.json()["text"]
    streamed = server.events("/generate", prompt="A story", max_tokens=4, temperature=0)
    assert "".join(event["text"] for event in streamed) == new.json()["text"]
    assert [i for event in streamed for i in event["output_ids"]] == new.json()["output_ids"]
    old = post("/generate", json={"prompt": "Hello", "request_output_len": 4, "session_id": 8})
    assert set(old.json()) == {"text", "tokens", "input_tokens", "history_tokens", "finish_reason"}


def test_encode_and_perplexity(server: Server) -> None:
    post = server.client.post
    one = post("/v1/encode", json={"input": "A story"}).json()
    assert one["length"] == len(one["input_ids"])
    both = post("/v1/encode", json={"input": ["A story", "x"], "do_preprocess": True}).json()
    assert both["length"] == [len(ids) for ids in both["input_ids"]]
    assert both["length"][0] > one["length"]
    text = post("/get_ppl", json={"input": "A story about a lamp."}).json()["ppl"]
    assert 0 < text < 15
    ids = post("/v1/encode", json={"input": "A story about a lamp."}).json()["input_ids"]
    assert post("/get_ppl", json={"input": [ids, ids]}).json()["ppl"] == [text, text]
    is_error(post("/get_ppl", json={"input": [1]}), 400)


def test_the_models_own_sampling_defaults_apply(scripted: Server, tmp_path: Any) -> None:
    service = scripted.service
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7, "top_p": 0.8}')
    backend: ScriptedBackend = scripted.backend
    backend.tell(
        dataclasses.replace(backend.state, info=dataclasses.replace(backend.state.info, path=str(tmp_path)))
    )
    until(lambda: service.defaults.top_k == 7, "the file was read")

    def sampling(**body: Any) -> Any:
        known = len(backend.requests)
        threading.Thread(
            target=lambda: scripted.client.post("/v1/chat/completions", json={"messages": USER} | body),
            daemon=True,
        ).start()
        until(lambda: len(backend.requests) > known, "it came")
        request = backend.requests[backend.last()]
        backend.finish(request.id)
        return request.sampling

    plain = sampling()
    assert (plain.temperature, plain.top_k, plain.top_p, plain.min_p) == (0.3, 7, 0.8, 0.0)
    given = sampling(temperature=1, top_k=-1, min_p=0.1)
    assert (given.temperature, given.top_k, given.top_p, given.min_p) == (1, 0, 0.8, 0.1)
    assert sampling(top_k=5).top_k == 5
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "top_p": 0.8}')
    backend.tell(backend.state)
    until(lambda: service.defaults.temperature == 0.0, "the file was read")
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    backend.tell(backend.state)
    until(lambda: service.defaults.temperature == 0.7, "a broken file is passed over")


def test_no_error_tells_of_the_inside(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("secret at /home/somebody 0xdeadbeef")

    monkeypatch.setattr(server.service, "ready", broken)
    response = server.client.post("/v1/chat/completions", json={"messages": USER})
    error = is_error(response, 500, "internal_error")
    assert not re.search("secret|home|RuntimeError", error["message"])
