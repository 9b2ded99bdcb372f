"""HTTP servers on 127.0.0.1 that answer as vLLM, SGLang, LMDeploy, llama.cpp and Ollama do, and that misbehave when a
test says so. Each connection has a thread; nothing waits for a time, only for the test or the client."""

from __future__ import annotations

import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

DEADLINE_S = 30.0
MODELS = {
    "vllm": ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-math"),
    "sglang": ("meta-llama/Llama-3.1-8B-Instruct",),
    "lmdeploy": ("internlm2-chat-7b",),
    "llamacpp": ("/models/gemma-3-4b-it-Q4_K_M.gguf",),
    "ollama": ("llama3.2:latest", "qwen3:8b"),
    "plain": ("some-model",),
}
METRICS = {
    "vllm": """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="Qwen/Qwen3-8B"}} 4.0
vllm:num_requests_waiting{{engine="0",model_name="Qwen/Qwen3-8B"}} 2.0
vllm:kv_cache_usage_perc{{engine="0",model_name="Qwen/Qwen3-8B"}} 0.51
vllm:prompt_tokens_total{{engine="0",model_name="Qwen/Qwen3-8B"}} {prompt}
vllm:generation_tokens_total{{engine="0",model_name="Qwen/Qwen3-8B"}} {generated}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.001",model_name="Qwen/Qwen3-8B"}} 0.0
""",
    "sglang": """sglang:num_running_reqs{{model_name="m"}} 4.0
sglang:num_queue_reqs{{model_name="m"}} 2.0
sglang:token_usage{{model_name="m"}} 0.51
sglang:prompt_tokens_total{{model_name="m"}} {prompt}
sglang:generation_tokens_total{{model_name="m"}} {generated}
""",
    "lmdeploy": """lmdeploy:num_requests_running{{engine="0",model_name="m"}} 4.0
lmdeploy:num_requests_waiting{{engine="0",model_name="m"}} 2.0
lmdeploy:gpu_cache_usage_perc{{engine="0",model_name="m"}} 0.51
lmdeploy:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}
lmdeploy:generation_tokens_total{{engine="0",model_name="m"}} {generated}
""",
    "llamacpp": """# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {prompt}
llamacpp:tokens_predicted_total {generated}
llamacpp:predicted_tokens_seconds 51.3
llamacpp:requests_processing 4
llamacpp:requests_deferred 2
""",
}
WORDS = ("The ", "KV ", "cache ", "keeps ", "keys ", "and ", "values.")


@dataclass
class Seen:
    """One request that arrived. `gone` is set when its client closed the connection before the answer ended."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any = None
    gone: threading.Event = field(default_factory=threading.Event)


Script = Callable[["Answer"], None]


@dataclass
class FakeServer:
    """`chat` answers chat completions in place of the kind's own way; `words` is what that says, `thoughts` what it
    thinks before. While `hold` is clear the reply stops after `before_hold` words."""

    kind: str = "vllm"
    key: str = ""
    words: tuple[str, ...] = WORDS
    thoughts: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    gauges: bool = True
    chat: Script | None = None
    pages: dict[str, Script] = field(default_factory=dict)  # path -> what answers it instead
    before_hold: int = 3
    hold: threading.Event = field(default_factory=threading.Event)
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        self.hold.set()
        self._stopped = False
        self._tokens = 1000
        self._sockets: set[socket.socket] = set()

    def __enter__(self) -> Self:
        server = self._server = _Server(("127.0.0.1", self.port), _handler(self))
        server.fake = self
        if self.tls is not None:
            server.socket = self.tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = server.server_address[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more connections, and cut those that are open; once."""
        if self._stopped:
            return
        self._stopped = True
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def asked(self, path: str = "/v1/chat/completions") -> list[Seen]:
        """The requests for a path, in order."""
        return [seen for seen in list(self.seen) if seen.path.split("?")[0] == path]

    @property
    def served(self) -> tuple[str, ...]:
        return MODELS[self.kind] if self.models is None else self.models

    def metrics(self) -> str:
        self._tokens += 50
        return METRICS[self.kind].format(prompt=float(self._tokens * 3), generated=float(self._tokens))

    def listing(self) -> dict[str, Any]:
        """`/v1/models` as this kind of server writes it."""
        entries = []
        for name in self.served:
            entry: dict[str, Any] = {"id": name, "object": "model", "created": 1_760_000_000}
            match self.kind:
                case "vllm" | "sglang":
                    entry |= {"owned_by": self.kind, "root": name, "parent": None, "max_model_len": 32768}
                case "lmdeploy":
                    entry |= {"owned_by": "lmdeploy", "root": name, "parent": None, "permission": []}
                case "llamacpp":
                    entry |= {"owned_by": "llamacpp", "meta": {"n_vocab": 262144, "n_ctx_train": 131072}}
                case "ollama":
                    entry |= {"owned_by": "library"}
            entries.append(entry)
        return {"object": "list", "data": entries}

    def chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a reply, as this kind of server writes them."""
        head = {
            "id": "chatcmpl-1f2e3d",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": body["model"],
        }

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return head | {"choices": [choice]}

        thought = "reasoning" if self.kind == "ollama" else "reasoning_content"
        if self.kind != "ollama":
            yield chunk({"role": "assistant", "content": None if self.kind == "llamacpp" else ""})
        for text in self.thoughts:
            yield chunk({thought: text, "content": None})
        role = {"role": "assistant"} if self.kind == "ollama" else {}
        for text in self.words:
            yield chunk(role | {"content": text})
        usage = {
            "prompt_tokens": 21,
            "completion_tokens": len(self.words) + len(self.thoughts),
            "total_tokens": 28,
        }
        last = chunk({}, "stop")
        if self.kind == "llamacpp":
            last["timings"] = {"cache_n": 5, "prompt_n": 16, "prompt_per_second": 812.5, "predicted_n": 7,
                               "predicted_per_second": 51.3}  # fmt: skip
        yield last
        if (body.get("stream_options") or {}).get("include_usage"):
            yield head | {"choices": [], "usage": usage}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or spoke no TLS."""


class Answer:
    """What a script does: write a response, in whatever way."""

    def __init__(self, handler: BaseHTTPRequestHandler, fake: FakeServer, seen: Seen) -> None:
        self.fake = fake
        self.seen = seen
        self._handler = handler

    def document(self, value: Any, status: int = 200, **headers: str) -> None:
        """A JSON response."""
        self.data(json.dumps(value).encode(), status, "application/json", **headers)

    def data(self, data: bytes, status: int = 200, kind: str = "text/plain", **headers: str) -> None:
        self._handler.send_response(status)
        given = {"Content-Type": kind, "Content-Length": str(len(data))}
        for name, value in (given | headers).items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def stream(self, kind: str = "text/event-stream; charset=utf-8", **headers: str) -> None:
        """The head of a response whose end is the connection's."""
        self._handler.send_response(200)
        for name, value in {"Content-Type": kind, "Connection": "close", **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()
        self._handler.close_connection = True

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def event(self, value: Any) -> None:
        """One event."""
        self.send(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    def text(self, text: str) -> None:
        """One event with a piece of the reply."""
        self.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    def reset(self) -> None:
        """Break the connection as a crash does."""
        linger = b"\1\0\0\0\0\0\0\0"
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._handler.connection.close()

    def wait(self, event: threading.Event) -> bool:
        """Until the test sets `event`; False when the client closed the connection before."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if event.wait(0.005):
                return True
            if self.closed():
                self.seen.gone.set()
                return False
        return False

    def closed(self) -> bool:
        connection = self._handler.connection
        if not select.select([connection], [], [], 0)[0]:
            return False
        with suppress(OSError):
            return connection.recv(1, socket.MSG_PEEK) == b""
        return True

    def reply(self) -> None:
        """A good reply, as this kind of server writes it."""
        self.stream()
        texts = 0
        for chunk in self.fake.chunks(self.seen.body):
            spoken = bool(chunk["choices"]) and bool(chunk["choices"][0]["delta"].get("content"))
            if spoken and texts == self.fake.before_hold and not self.wait(self.fake.hold):
                return
            texts += spoken
            self.event(chunk)
        self.event(b"[DONE]")


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            fake.connections += 1
            fake._sockets.add(self.request)
            if isinstance(self.request, ssl.SSLSocket):
                self.request.do_handshake()
            super().setup()

        def finish(self) -> None:
            fake._sockets.discard(self.request)
            with suppress(OSError):
                super().finish()

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, self.path, headers, json.loads(data) if data else None)
            fake.seen.append(seen)
            answer, path = Answer(self, fake, seen), self.path.split("?")[0]
            try:
                if path in fake.pages:
                    fake.pages[path](answer)
                elif fake.key and headers.get("authorization") != f"Bearer {fake.key}":
                    answer.document({"error": "Unauthorized"}, 401)
                elif path == "/v1/chat/completions":
                    (fake.chat or Answer.reply)(answer)
                elif path == "/v1/models":
                    answer.document(fake.listing())
                elif path == "/metrics" and fake.gauges and fake.kind in METRICS:
                    answer.data(fake.metrics().encode())
                elif path == "/props" and fake.kind == "llamacpp":
                    answer.document({"default_generation_settings": {"n_ctx": 8192}})
                else:
                    answer.document({"detail": "Not Found"}, 404)
            except OSError:  # the client went away
                seen.gone.set()
                self.close_connection = True

    return Handler
