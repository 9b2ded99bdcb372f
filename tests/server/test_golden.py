"""The bytes of the streams. Only ids and times differ from one answer to the next."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.engines import until
from support.server import ScriptedBackend, Server

from lmtop.engine.types import Delta, TokenLogprob, TopLogprob


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(ScriptedBackend())
    yield server
    server.close()


class Answer:
    """The bytes of an answer, while the test plays the engine."""

    def __init__(self, server: Server, path: str, body: dict[str, Any]) -> None:
        self.server = server
        self.backend: ScriptedBackend = server.backend
        self.data = b""
        known = set(self.backend.requests)
        self._thread = threading.Thread(target=self._read, args=(path, body))
        self._thread.start()
        wanted = body.get("n", 1)
        until(lambda: len(self.backend.requests) == len(known) + wanted, "the requests came")
        self.ids = [name for name in self.backend.requests if name not in known]
        if path.startswith("/v1/chat/completions"):
            until(lambda: b"\n" in self.data, "the stream began")

    def _read(self, path: str, body: dict[str, Any]) -> None:
        with self.server.client.stream("POST", path, json=body) as response:
            self.type = response.headers["content-type"]
            for part in response.iter_bytes():
                self.data += part

    def push(self, part: int, text: str, **more: Any) -> None:
        """One token, and wait until the client has got it."""
        before = len(self.data)
        self.backend._running.setdefault(self.ids[part], 0)
        self.backend._running[self.ids[part]] += 1
        self.backend._routes[self.ids[part]].put(Delta(self.ids[part], text, (1,), **more))
        if before:
            until(lambda: len(self.data) > before, "the client has it")

    def finish(self, *reasons: str) -> str:
        for name, reason in zip(self.ids, reasons, strict=True):
            before = len(self.data)
            self.backend.finish(name, reason)
            if before:
                until(lambda before=before: len(self.data) > before, "the client has it")
        self._thread.join(10)
        text = self.data.decode()
        text = re.sub(r'"id":"(chatcmpl|cmpl)-\d+-[0-9a-f]{24}"', r'"id":"\1-ID"', text)
        return re.sub(r'"created":\d+', '"created":0', text)


CHAT = '{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"demo","choices":['
TEXT = '{"id":"cmpl-ID","object":"text_completion","created":0,"model":"demo","choices":['


def test_chat(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    answer = Answer(server, "/v1/chat/completions", body)
    answer.push(0, 'é "')
    answer.push(0, "\n\u2028")
    got = answer.finish("stop")
    assert answer.type == "text/event-stream; charset=utf-8"
    assert got == (
        f'data: {CHAT}{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {CHAT}{{"index":0,"delta":{{"content":"é \\""}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {CHAT}{{"index":0,"delta":{{"content":"\\n\u2028"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {CHAT}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_chat_with_usage_logprobs_and_two_choices(server: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 1,
        "n": 2,
    }
    answer = Answer(server, "/v1/chat/completions", body)
    token = TopLogprob(5, "a", -0.5)
    answer.push(1, "a", logprobs=(TokenLogprob(token, (token,)),))
    byte = list(server.backend.tokenizer.token_bytes(5))
    got = answer.finish("length", "stop")
    start = (
        '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
    )
    told = json.dumps({"token": "a", "logprob": -0.5, "bytes": byte}, separators=(",", ":"))[:-1]
    assert got == (
        f'data: {CHAT}{{"index":0,{start}'
        f'data: {CHAT}{{"index":1,{start}'
        f'data: {CHAT}{{"index":1,"delta":{{"content":"a"}},"logprobs":{{"content":[{told},"top_logprobs":[{told}}}]}}],'
        '"refusal":null},"finish_reason":null}],"usage":null}\n\n'
        f'data: {CHAT}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"length"}}],"usage":null}}\n\n'
        f'data: {CHAT}{{"index":1,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],"usage":null}}\n\n'
        f'data: {CHAT}],"usage":{{"prompt_tokens":32,"completion_tokens":1,"total_tokens":33,'
        '"prompt_tokens_details":{"cached_tokens":16}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_completion(server: Server) -> None:
    answer = Answer(server, "/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 9})
    answer.push(0, "one")
    until(lambda: b"one" in answer.data, "the client has it")
    got = answer.finish("length")
    assert got == (
        f'data: {TEXT}{{"index":0,"text":"one","logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {TEXT}{{"index":0,"text":"","logprobs":null,"finish_reason":"length"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_failure_within_a_stream_is_its_last_event(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    answer = Answer(server, "/v1/chat/completions", body)
    answer.push(0, "half")
    server.backend.fail(answer.ids[0], "it broke")
    answer._thread.join(10)
    events = answer.data.decode().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"] == {
        "message": "it broke",
        "type": "server_error",
        "param": None,
        "code": "internal",
    }
    assert b"[DONE]" not in answer.data


def test_interactive_is_one_object_per_line(server: Server) -> None:
    body = {"prompt": "x", "stream": True, "session_id": 9}
    answer = Answer(server, "/v1/chat/interactive", body)
    answer.push(0, "hey")
    until(lambda: b"hey" in answer.data, "the client has it")
    assert answer.finish("stop") == (
        '{"text":"hey","tokens":1,"input_tokens":32,"history_tokens":0,"finish_reason":null}\n'
        '{"text":"","tokens":1,"input_tokens":16,"history_tokens":16,"finish_reason":"stop"}\n'
    )
