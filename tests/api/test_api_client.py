"""`serve`, `client` and `APIClient`: against a real server, and against ones on loopback that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from support.command import clean_environment

import lmtop
from lmtop import APIClient, TurbomindEngineConfig
from lmtop.engine.types import LmtopError, RemoteError, UsageError

KEY = "sk-canary-5f2e"
ASK = [{"role": "user", "content": "Hi, pls intro yourself"}]
INTRO = "I am demo, a toy model built into lmtop. I know little, but I run on the real engine."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clean_environment(path).items():
            patch.setenv(name, value)
        yield path


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[APIClient]:
    config = TurbomindEngineConfig(session_len=384, quant_policy=8)
    with lmtop.serve("demo", "toy", backend_config=config, server_port=0, api_keys=[KEY]) as client:
        yield client


def test_a_served_model_answers(server: APIClient) -> None:
    assert server.healthy
    assert server.available_models[0] == "toy"
    (whole,) = server.chat_completions_v1("toy", ASK, temperature=0)
    assert whole["choices"][0]["message"]["content"] == INTRO
    pieces = list(server.chat_completions_v1("toy", ASK, temperature=0, stream=True))
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == INTRO
    assert len(list(server.completions_v1("toy", "Once", max_tokens=4, stream=True))) > 2
    ids, length = server.encode("Hi there")
    assert len(ids) == length == 2


def test_a_session_on_the_server(server: APIClient) -> None:
    for _ in server.chat("My name is Bob", session_id=5, temperature=0.0, top_k=1):
        pass
    pieces = list(server.chat("What is 2+3?", session_id=5, stream=True, temperature=0.0, top_k=1))
    assert "".join(text for text, _, _ in pieces).startswith("2 + 3 = 5")
    assert pieces[-1][2] == "stop"
    (turn,) = server.chat_interactive_v1("And 1+1?", session_id=5, interactive_mode=True, top_k=1)
    assert turn["input_tokens"] + turn["history_tokens"] > 60
    server.end_session(5)
    (turn,) = server.chat_interactive_v1("Hi", session_id=5, interactive_mode=True, top_k=1)
    assert turn["input_tokens"] + turn["history_tokens"] < 20
    server.end_session(5)


def test_the_servers_own_words(server: APIClient) -> None:
    with pytest.raises(RemoteError, match="400: nonsense"):
        list(server.chat_completions_v1("toy", ASK, nonsense=1))
    with pytest.raises(RemoteError, match="404"):
        list(server.chat_completions_v1("other", ASK, stream=True))
    with pytest.raises(RemoteError, match="401"), lmtop.client(server.api_server_url) as stranger:
        _ = stranger.available_models


def test_the_key_is_in_no_process_list(server: APIClient) -> None:
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("lmtop serve" in line for line in lines)
    assert KEY not in " ".join(lines)


def test_a_closed_client_and_its_server_are_gone(home: Path) -> None:
    before = threading.active_count()
    client = lmtop.serve("demo", server_port=0)
    (child,) = [process for process in psutil.Process().children() if "toy" not in process.cmdline()]
    client.close()
    assert not child.is_running()
    assert threading.active_count() == before
    assert not client.healthy
    for call in (
        lambda: client.available_models,
        lambda: list(client.completions_v1("demo", "x", stream=True)),
    ):
        with pytest.raises(RemoteError, match="this client is closed"):
            call()
    client.close()


def test_a_server_that_does_not_start_says_why(home: Path, tmp_path: Path) -> None:
    with pytest.raises(LmtopError, match=r"the server ended: .*no such model directory"):
        lmtop.serve(tmp_path / "none", server_port=0)
    with pytest.raises(LmtopError, match=r"the server ended: .*key"):
        lmtop.serve("demo", server_name="0.0.0.0", server_port=0)
    with pytest.raises(UsageError, match="backend = 'vllm'"):
        lmtop.serve("demo", backend="vllm")
    with pytest.raises(UsageError, match="chat_template_config"):
        lmtop.serve("demo", chat_template_config=lmtop.ChatTemplateConfig())
    assert not [process for process in psutil.Process().children() if "none" in " ".join(process.cmdline())]


# --- servers that misbehave -----------------------------------------------------------------------------------


@contextmanager
def answering(
    status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
) -> Iterator[str]:
    """A server that says the same to everything; `cut`: and promises more than it sends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) + (10 if cut else 0)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"<html>", "500: Internal Server Error"),
        (400, b'{"error": {"message": "no\\u001b[2J way"}}', "400: no"),
        (400, b'{"object": "error", "message": "too long", "code": 400}', "400: too long"),
        (200, b"<html>hello</html>", "not a JSON object; is it an API server"),
        (200, b"[1]", "not a JSON object"),
        (200, b"[" * 100_000, "not a JSON object"),
    ],
)
def test_whatever_a_server_says_is_one_line(status: int, body: bytes, said: str) -> None:
    with answering(status, body) as url, APIClient(url) as client:
        with pytest.raises(RemoteError, match=said) as caught:
            _ = client.available_models
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with (
        answering(200, b'{"data": []}') as other,
        answering(307, b"", {"Location": other}) as url,
        APIClient(url, KEY) as client,
        pytest.raises(RemoteError, match=r"307: redirects to .* which is not followed"),
    ):
        _ = client.available_models


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'data: {"a": 1}\n\ndata: nonsense\n\n', "stream is not JSON: nonsense"),
        (
            b'data: {"a": 1}\n\ndata: {"error": {"message": "engine died"}}\n\n',
            "ended the answer: engine died",
        ),
    ],
)
def test_a_stream_that_goes_wrong(body: bytes, said: str) -> None:
    with answering(200, body) as url, APIClient(url) as client:
        pieces = client.completions_v1("m", "x", stream=True)
        assert next(pieces) == {"a": 1}
        with pytest.raises(RemoteError, match=said):
            next(pieces)


def test_a_stream_that_is_cut_off() -> None:
    with (
        answering(200, b'data: {"a": 1}\n\n', cut=True) as url,
        APIClient(url) as client,
        pytest.raises(RemoteError, match="cannot be reached"),
    ):
        list(client.completions_v1("m", "x", stream=True))


def test_both_forms_of_a_stream_and_everything_between() -> None:
    body = b': ping\r\nevent: x\r\ndata:{"n": 1}\r\n\r\n{"n": 2}\n\n\ndata: {"n": 3}\n\ndata: [DONE]\n\ndata: {"n": 4}\n'
    with answering(200, body) as url, APIClient(url) as client:
        assert [piece["n"] for piece in client.completions_v1("m", "x", stream=True)] == [1, 2, 3]


def test_addresses() -> None:
    assert APIClient("localhost:23333").api_server_url == "http://localhost:23333"
    assert APIClient("https://user:secret@host/base/").api_server_url == "https://host/base"
    assert lmtop.client().api_server_url == "http://127.0.0.1:23333"
    for wrong in ("ftp://host", "http://", ""):
        with pytest.raises(UsageError, match="must be like"):
            APIClient(wrong)
    begun = time.monotonic()
    with APIClient("127.0.0.1:1") as client, pytest.raises(RemoteError, match="cannot be reached"):
        _ = client.available_models
    assert time.monotonic() - begun < 5
    assert not client.healthy
