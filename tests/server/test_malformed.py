"""What no client should send: a clear 4xx in OpenAI's form, at once, while another stream goes on undisturbed."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.engines import until
from support.server import USER, Server, is_error, post, read_all

from lmtop.engine.server.limits import Limits

M = {"messages": USER}
DEEP = b'{"messages":' + b"[" * 100_000
BODIES: list[tuple[str, bytes | dict[str, Any], str | None]] = [  # name, body, param or code
    ("cut", b"{", "invalid_json"),
    ("empty", b"", "missing_required_parameter"),
    ("blank", b"  \n", "invalid_json"),
    ("null", b"null", "invalid_json"),
    ("list", b"[]", "invalid_json"),
    ("text", b'"x"', "invalid_json"),
    ("number", b"42", "invalid_json"),
    ("trailing", b'{"messages":"x"} {}', "invalid_json"),
    ("not utf-8", b'{"messages":"\xff"}', "invalid_json"),
    ("utf-16", '{"messages":"x"}'.encode("utf-16"), "invalid_json"),
    ("bom", b'\xef\xbb\xbf{"messages":"x"}', "invalid_json"),
    ("65 deep", b'{"messages":' + b"[" * 64 + b"]" * 64 + b"}", "too_deep"),
    ("100,000 deep", DEEP, "too_deep"),
    ("5,000 digits", b'{"messages":"x","seed":' + b"1" * 5000 + b"}", "invalid_json"),
    ("nan", b'{"messages":"x","temperature":NaN}', "invalid_json"),
    ("infinity", b'{"messages":"x","temperature":-Infinity}', "invalid_json"),
    ("1e999", b'{"messages":"x","temperature":1e999}', "invalid_json"),
    ("twice", b'{"messages":"x","messages":"y"}', "invalid_json"),
    ("surrogate", b'{"messages":"\\ud800"}', "invalid_unicode"),
    ("surrogate key", b'{"messages":"x","\\uDC00":1}', "invalid_unicode"),
    ("no messages", {}, "messages"),
    ("messages null", {"messages": None}, "messages"),
    ("messages empty", {"messages": []}, "messages"),
    ("messages of numbers", {"messages": [123]}, "messages[0]"),
    ("a message of nothing", {"messages": [{}]}, "messages[0].role"),
    ("role 123", {"messages": [{"role": 123, "content": "x"}]}, "messages[0].role"),
    ("role x", {"messages": [{"role": "x", "content": "x"}]}, "messages[0].role"),
    ("content 123", {"messages": [{"role": "user", "content": 123}]}, "messages[0].content"),
    ("content missing", {"messages": [{"role": "user"}]}, "messages[0].content"),
    (
        "an image",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
            ]
        },
        "messages[0].content[0].type",
    ),
    ("4,097 messages", {"messages": USER * 4097}, "messages"),
    ("model 5", {**M, "model": 5}, "model"),
    *((f"n {n!r}", {**M, "n": n}, "n") for n in (0, -1, 9, 10**9, 2**70, True, "2", 1.5)),
    *((f"max_tokens {n!r}", {**M, "max_tokens": n}, "max_tokens") for n in (0, -1, 1.5, "5", 10**9)),
    ("best_of", {**M, "best_of": 2}, "unsupported_parameter"),
    *((f"temperature {t}", {**M, "temperature": t}, "temperature") for t in (-0.1, 2.1, True, "1")),
    *((f"top_p {p}", {**M, "top_p": p}, "top_p") for p in (0, 1.1)),
    *((f"penalty {p}", {**M, "presence_penalty": p}, "presence_penalty") for p in (-2.1, 2.1)),
    ("top_k -2", {**M, "top_k": -2}, "top_k"),
    ("seed 2^63", {**M, "seed": 2**63}, "seed"),
    ("stop 17", {**M, "stop": ["a"] * 17}, "stop"),
    ("stop empty", {**M, "stop": [""]}, "stop[0]"),
    ("stop long", {**M, "stop": "a" * 257}, "stop"),
    ("stop ints", {**M, "stop": [1]}, "stop"),
    *((f"bias {k} {v}", {**M, "logit_bias": {k: v}}, "logit_bias") for k, v in (("-1", 1), ("abc", 1))),
    ("bias 101", {**M, "logit_bias": {"1": 101}}, "logit_bias.1"),
    ("bias x", {**M, "logit_bias": {"1": "x"}}, "logit_bias.1"),
    ("bias beyond the vocabulary", {**M, "logit_bias": {"99999999": 1}}, "invalid_request"),
    ("bias of 1,025", {**M, "logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
    ("top_logprobs 21", {**M, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("top_logprobs alone", {**M, "top_logprobs": 2}, "top_logprobs"),
    ("response_format", {**M, "response_format": {"type": "json_object"}}, "unsupported_parameter"),
    ("chat_template", {**M, "chat_template": "{{ 1 }}"}, "unsupported_parameter"),
    ("template arguments", {**M, "chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
    ("template messages", {**M, "chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    ("options without a stream", {**M, "stream_options": {"include_usage": True}}, "stream_options"),
    ("stream yes", {**M, "stream": "yes"}, "stream"),
    ("unknown", {**M, "tempreature": 1}, "unsupported_parameter"),
    ("tools of a model without", {**M, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ("tool_choice alone", {**M, "tool_choice": "auto"}, "tool_choice"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(step_ms=5)
    yield server
    server.close()


def test_each_is_told_at_once_and_disturbs_nobody(server: Server) -> None:
    times: list[float] = []

    def read() -> None:
        body = {"messages": USER, "stream": True, "ignore_eos": True, "temperature": 0}
        with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
            for _ in response.iter_lines():
                times.append(time.monotonic())
                if done.is_set():
                    break

    done = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(times) > 20, "the stream runs")
    assert len(BODIES) >= 40
    slow = []
    for name, body, known in BODIES:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        before = time.monotonic()
        response = server.client.post(
            "/v1/chat/completions", content=data, headers={"Content-Type": "application/json"}
        )
        if (seconds := time.monotonic() - before) > 0.2:
            slow.append((name, seconds))
        error = is_error(response, 400)
        assert known in (error["code"], error["param"]), (name, error)
        assert len(error["message"]) < 300, name
    done.set()
    reader.join(10)
    assert not slow
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    assert gaps[-1] < 0.1, gaps[-5:]
    server.settled()


def test_other_endpoints_refuse_as_strictly(server: Server) -> None:
    for path, body, known in (
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": ["x"] * 33}, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt[0]"),
        ("/v1/completions", {"prompt": [10**8]}, "invalid_request"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": "x", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/generate", {"prompt": "x", "input_ids": [1]}, "prompt"),
        ("/generate", {"prompt": "x", "image_data": "y"}, "unsupported_parameter"),
        ("/v1/chat/interactive", {"session_id": 1}, "prompt"),
        ("/v1/encode", {"input": 5}, "input"),
        ("/get_ppl", {"input": "x", "foo": 1}, "foo"),
        ("/abort_request", {}, "request_id"),
        ("/sleep?level=3", {}, "level"),
    ):
        error = is_error(server.client.post(path, json=body), 400)
        assert known in (error["code"], error["param"]), (path, body, error)


def test_methods_paths_and_kinds(server: Server) -> None:
    get = server.client.get("/v1/chat/completions")
    is_error(get, 405, "method_not_allowed")
    assert get.headers["allow"] == "POST"
    for path in ("/nope", "//v1/models", "/V1/models", "/v1/models/", "/v1/models/..%2f..%2fx", "/%00"):
        assert server.client.get(path).status_code == 404, path
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = server.client.post("/v1/completions", content=b"{}", headers={"Content-Type": kind})
        is_error(response, 415, "unsupported_media_type")
    assert b" 415 " in server.raw(post("/v1/completions", b"{}", "Connection: close", kind=""))


def test_bodies_beyond_the_limit(server: Server) -> None:
    big = b'{"messages":"' + b"a" * (8 << 20) + b'"}'
    is_error(server.client.post("/v1/chat/completions", content=big, headers=JSON), 413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(9):
            yield b" " * (1 << 20)

    is_error(
        server.client.post("/v1/chat/completions", content=chunks(), headers=JSON), 413, "body_too_large"
    )
    assert server.chat(max_tokens=1).status_code == 200
    long = {"messages": [{"role": "user", "content": "a" * (8 << 20 - 1)}]}
    error = is_error(server.client.post("/v1/chat/completions", json=long), 400, "context_length_exceeded")
    assert "2048" in error["message"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (
            b"GET /health HTTP/1.1\r\nConnection: close\r\nHost: h\r\nX: " + b"a" * 33_000 + b"\r\n\r\n",
            (400, 431),
        ),
        (
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + b"X: 1\r\n" * 101 + b"\r\n",
            (431,),
        ),
        (post("/v1/completions", b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"), (400,)),
        (post("/v1/completions", b"zz\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), (400,)),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", (400,)),
        (b"GET /health HTTP/1.1\r\n\r\n", (400,)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 30 + b"\r\n\r\n", (400,)),
        (post("/v1/completions", b"{}", "Content-Length: -5"), (400,)),
    ],
    ids=["33 KB", "101 headers", "smuggling", "chunk size", "two hosts", "no host", "TLS", "length -5"],
)
def test_requests_that_are_no_http(server: Server, request_bytes: bytes, status: tuple[int, ...]) -> None:
    answer = server.raw(request_bytes)
    assert int(answer.split(b" ", 2)[1]) in status, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert server.client.get("/health").status_code == 200


def test_a_connection_goes_on_after_an_error(server: Server) -> None:
    with server.connect() as connection:
        good = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
        connection.sendall(post("/v1/completions", b"{") + post("/v1/completions", good, "Connection: close"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"HTTP/1.1 200 OK" in answer


def test_slow_senders_are_cut_off_and_hold_up_nobody() -> None:
    server = Server(limits=Limits(header_s=0.6, body_s=0.6, connections=64))
    try:
        trickles = [server.connect() for _ in range(40)]
        for trickle in trickles:
            trickle.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        started = time.monotonic()
        assert server.client.get("/health").status_code == 200
        assert time.monotonic() - started < 0.5
        for trickle in trickles:
            assert b" 408 " in read_all(trickle)
        assert time.monotonic() - started < 2.6
        with server.connect() as half:
            half.sendall(post("/v1/completions", b"{", "Content-Length: 100"))
            half.settimeout(5)
            assert b" 408 " in half.recv(4096)
        idle = [server.connect() for _ in range(70)]
        until(lambda: server.service.connections() >= 64, "connections are open")
        refused = [connection for connection in idle if _refused(connection)]
        assert len(refused) >= 6
        for connection in idle:
            connection.close()
        until(lambda: server.service.connections() <= 2, "connections are closed")
        assert server.client.get("/health").status_code == 200
    finally:
        server.close()


def _refused(connection: Any) -> bool:
    connection.settimeout(0.05)
    try:
        return b" 503 " in connection.recv(4096)
    except TimeoutError:
        return False
