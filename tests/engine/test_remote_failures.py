"""Servers that cannot be reached, refuse, break off, never end, or attack: one clear line each, nothing lost, and the
key goes to its own server only (R1 to R18)."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.openai_servers import WORDS, Answer, FakeServer
from support.remote import FAST, certificate, desk, needs_openssl

from lmtop.engine.remote_address import Key, parse_address
from lmtop.engine.remote_probe import look_at
from lmtop.engine.servers import Server
from lmtop.engine.text import visible
from lmtop.engine.types import Failed, UsageError

KEY = "sk-canary-0123456789-abcdef"


@pytest.fixture
def key_variable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEST_SERVER_KEY", KEY)
    return "TEST_SERVER_KEY"


# --- R1, R2: no connection ---------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_refused_and_unknown_hosts_are_told_within_seconds() -> None:
    port = unused_port()
    started = time.monotonic()
    assert look_at(Server("", f"127.0.0.1:{port}")).problem == f"cannot connect to 127.0.0.1:{port}: refused"
    assert (
        look_at(Server("", "http://nowhere.invalid:80")).problem
        == "cannot connect to nowhere.invalid:80: no such host"
    )
    assert time.monotonic() - started < 6


def test_a_connection_that_is_never_accepted_times_out() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        full = []
        for _ in range(8):  # the queue of connections nobody accepts
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
            full.append(waiting)
        status = look_at(Server("", f"http://127.0.0.1:{port}"), replace(FAST, connect_s=0.2, document_s=0.2))
        assert status.problem.startswith(f"cannot connect to 127.0.0.1:{port}: no answer within") or (
            "does not answer within" in status.problem
        )
        for waiting in full:
            waiting.close()


@needs_openssl
def test_certificates(tmp_path: Path) -> None:
    """R2: never connect insecurely; an issuer of one's own is trusted by its file."""
    context, file = certificate(tmp_path)
    with FakeServer("vllm", tls=context) as server:
        problem = look_at(Server("", server.url)).problem
        assert "certificate not trusted: self-signed certificate" in problem and "--ca-file" in problem
        assert not server.seen
        assert look_at(Server("", server.url, ca_file=str(file))).found is not None
        with desk(server.url, ca_file=str(file)) as it:
            it.ask()
            it.finished()
        plain = look_at(Server("", server.url.replace("https", "http"))).problem
        assert "the connection broke" in plain
    with FakeServer("vllm") as server:
        problem = look_at(Server("", server.url.replace("http", "https"))).problem
        assert problem.endswith(
            f"does not speak TLS as https needs it; is the address http://127.0.0.1:{server.port}?"
        )


@needs_openssl
def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    context, file = certificate(tmp_path, "elsewhere.example")
    with FakeServer("vllm", tls=context) as server:
        problem = look_at(Server("", server.url, ca_file=str(file))).problem
        assert "certificate not trusted: IP address mismatch" in problem and not server.seen


def test_a_certificate_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "absent.pem"):
        assert (
            "cannot use as certificates"
            in look_at(Server("", "https://h", ca_file=str(tmp_path / name))).problem
        )


# --- R3 to R6: refusals ------------------------------------------------------------------------------------


def test_a_rejected_key_is_not_shown_and_not_tried_again(key_variable: str) -> None:
    def echo(answer: Answer) -> None:
        answer.document({"error": {"message": f"Incorrect API key {KEY} provided"}}, 401)

    with FakeServer("vllm", key="another", pages={"/v1/models": echo}) as server:
        problem = look_at(Server("", server.url, api_key_env=key_variable)).problem
        assert problem == f"127.0.0.1:{server.port}: key rejected (401); the key from $TEST_SERVER_KEY"
        missing = look_at(Server("", server.url)).problem
        assert "no key was given" in missing
        with desk(server.url, ready=False, api_key_env=key_variable) as it:
            assert "key rejected" in it.state("failed").message
            tried = len(server.seen)
            it.ask()
            assert "key rejected" in it.failed()
            assert len(server.seen) == tried


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    """R4."""

    def unknown(answer: Answer) -> None:
        answer.document({"object": "error", "message": "The model `x` does not exist.", "code": 404}, 404)

    with FakeServer("vllm", chat=unknown) as server, desk(server.url) as it:
        it.ask()
        assert it.failed() == (
            f"127.0.0.1:{server.port}: The model `x` does not exist. (404); "
            "this server has Qwen/Qwen3-8B, Qwen/Qwen3-8B-math"
        )


def failing(statuses: list[tuple[int, dict[str, str]]]) -> Callable[[Answer], None]:
    """Answers these, one after the other, and then well."""

    def chat(answer: Answer) -> None:
        if statuses:
            status, headers = statuses.pop(0)
            answer.document({"error": {"message": "busy"}}, status, **headers)
        else:
            answer.reply()

    return chat


def test_too_many_requests_waits_as_long_as_it_is_told() -> None:
    """R5."""
    with FakeServer("vllm", chat=failing([(429, {"Retry-After": "1"})])) as server, desk(server.url) as it:
        started = time.monotonic()
        it.ask()
        it.finished()
        assert 0.9 < time.monotonic() - started < 1.6
        assert any(text.endswith("busy (429); try 2 of 3 in 1 s") for text in it.waits())


def test_waiting_can_be_cancelled_and_too_long_a_wait_is_not_obeyed() -> None:
    with FakeServer("vllm", chat=failing([(429, {"Retry-After": "30"})])) as server, desk(server.url) as it:
        it.ask()
        it.until(lambda: any("try 2 of 3" in text for text in it.waits()))
        it.backend.cancel("r1")
        assert it.finished().reason == "cancelled"
    with (
        FakeServer("vllm", chat=failing([(429, {"Retry-After": "99999"})])) as server,
        desk(server.url) as it,
    ):
        it.ask()
        assert it.failed().endswith("busy (429); it asks to wait 28 h: regenerate to try before")


@pytest.mark.parametrize(("status", "errors"), [(500, 2), (502, 2), (503, 2), (503, 3), (429, 3)])
def test_errors_that_may_pass_are_tried_three_times(status: int, errors: int) -> None:
    """R6."""
    with FakeServer("vllm", chat=failing([(status, {})] * errors)) as server, desk(server.url) as it:
        it.ask()
        if errors < 3:
            assert it.finished().reason == "stop"
        else:
            assert it.failed() == f"127.0.0.1:{server.port}: busy ({status})"
        assert len(server.asked()) == 3


def test_nothing_is_tried_again_once_text_came() -> None:
    def broken(answer: Answer) -> None:
        answer.stream()
        answer.text("half")
        answer.event({"error": {"message": "CUDA out of memory", "code": 500}})

    with FakeServer("vllm", chat=broken) as server, desk(server.url) as it:
        it.ask()
        assert it.failed() == "interrupted: the server says: CUDA out of memory"  # R11
        assert it.text() == "half" and len(server.asked()) == 1


# --- R7 to R13: answers that are none, or never end --------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        ("text/html", b"<html><h1>nginx</h1>\x1b]0;x\x07", "<html><h1>nginx</h1>␛]0;x␇"),
        ("text/html", b"", "it is empty"),
        ("application/json", b'{"status": "ok"}', '{"status": "ok"}'),
        ("application/json", b"[" * 5000, "["),
        ("text/event-stream", b"hello there\n\n", "hello there"),
    ],
)
def test_answers_that_are_none(kind: str, data: bytes, shown: str) -> None:
    """R7."""
    with (
        FakeServer("vllm", chat=lambda answer: answer.data(data, 200, kind)) as server,
        desk(server.url) as it,
    ):
        it.ask()
        assert it.failed().startswith(f"127.0.0.1:{server.port}: not an OpenAI-compatible answer: {shown}")
        assert len(it.failed()) < 160
    with FakeServer("vllm", pages={"/v1/models": lambda answer: answer.data(data, 200, kind)}) as server:
        assert "not an OpenAI-compatible answer" in look_at(Server("", server.url)).problem


def test_a_server_that_does_not_stream() -> None:
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "All at once."}, "finish_reason": "stop"}]
    }
    with FakeServer("plain", chat=lambda answer: answer.document(whole)) as server, desk(server.url) as it:
        it.ask()
        it.finished()
        assert it.text() == "All at once."


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda answer: answer.event(b'{"choices": [{"del'), "interrupted: malformed event"),  # R9
        (lambda answer: answer.event(b"[1, 2]"), "interrupted: malformed event"),
        (lambda answer: None, "interrupted: the connection ended before the reply did"),  # R10
        (lambda answer: answer.reset(), "the connection broke"),
        (
            lambda answer: answer.send(b"data: " + b"x" * (2 << 20)),
            "interrupted: more than 1048576 bytes in one event",
        ),
        (
            lambda answer: answer.event({"choices": [{"delta": {}, "finish_reason": "abort"}]}),
            "ended the reply: abort",
        ),
    ],
)
def test_what_came_before_a_break_is_kept(end: Callable[[Answer], None], why: str) -> None:
    arrived = threading.Event()  # what a reset overtakes would be lost

    def chat(answer: Answer) -> None:
        answer.stream()
        answer.text("Half a ")
        answer.text("reply")
        answer.wait(arrived)
        end(answer)

    with FakeServer("vllm", chat=chat) as server, desk(server.url) as it:
        it.ask()
        it.until(lambda: it.text() == "Half a reply")
        arrived.set()
        assert why in it.failed()
        assert it.text() == "Half a reply"


def test_a_reply_without_done_is_whole_once_it_said_why_it_ended() -> None:
    def chat(answer: Answer) -> None:
        answer.stream()
        answer.event({"choices": [{"delta": {"content": "x"}, "finish_reason": "length"}]})

    with FakeServer("vllm", chat=chat) as server, desk(server.url) as it:
        it.ask()
        assert it.finished().reason == "length"


def test_a_stall_is_told_and_comments_are_life_for_a_while_only() -> None:
    """R12."""
    stop = threading.Event()

    def silent(answer: Answer) -> None:
        answer.stream()
        answer.text("x")
        answer.wait(stop)

    def commenting(answer: Answer) -> None:
        answer.stream()
        answer.text("x")
        while not answer.seen.gone.wait(0.02):
            answer.send(b": still here\n\n")

    for chat in (silent, commenting):
        limits = replace(FAST, idle_s=0.3, silent_s=0.6)
        with FakeServer("vllm", chat=chat) as server, desk(server.url, limits) as it:
            started = time.monotonic()
            it.ask()
            assert it.failed().startswith("stalled: ") and it.text() == "x"
            took = time.monotonic() - started
            assert took < 0.6 if chat is silent else 0.5 < took < 1.5
            assert server.asked()[0].gone.wait(1)


def test_a_server_that_never_begins_is_given_up() -> None:
    stop = threading.Event()

    def chat(answer: Answer) -> None:
        answer.wait(stop)

    with FakeServer("vllm", chat=chat) as server, desk(server.url, replace(FAST, first_s=0.2)) as it:
        it.ask()
        assert it.failed() == f"127.0.0.1:{server.port} did not answer within 0.2 s"
        assert server.asked()[0].gone.wait(1)


def test_endless_and_compressed_answers_stop_at_a_bound() -> None:
    """R13."""

    def endless(answer: Answer) -> None:
        answer.stream()
        while True:
            answer.text("x" * 100_000)

    def bomb(answer: Answer) -> None:
        data = gzip.compress(b"data: {}\n\n" * 20_000_000, 1)
        answer.data(data, 200, "text/event-stream", Content_Encoding="gzip")

    process = psutil.Process()
    with FakeServer("vllm", chat=endless) as server, desk(server.url, replace(FAST, answer=8 << 20)) as it:
        it.ask()
        assert it.failed() == "the reply is larger than 8 MiB: stopped"
        assert server.asked()[0].gone.wait(2)
    with FakeServer("vllm", chat=bomb) as server, desk(server.url) as it:
        it.ask()
        it.until(lambda: server.asked())
        before = process.memory_info().rss
        assert "compressed" in it.failed()
        assert process.memory_info().rss - before < 80 << 20
        assert server.asked()[0].headers["accept-encoding"] == "identity"


# --- R14 to R16: where the key goes ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int, key_variable: str) -> None:
    """R14."""
    with FakeServer("vllm") as other, FakeServer("vllm", key=KEY) as server:

        def away(answer: Answer) -> None:
            answer.data(b"", status, Location=f"{other.url}/v1/chat/completions?k={KEY}")

        server.chat = away
        with desk(server.url, api_key_env=key_variable) as it:
            it.ask()
            assert it.failed() == (
                f"127.0.0.1:{server.port}: server redirects to {other.url}/v1/chat/completions, "
                "which is not followed: use that address"
            )
        server.pages["/v1/models"] = away
        assert "server redirects to" in look_at(Server("", server.url, api_key_env=key_variable)).problem
        assert other.connections == 0


def test_the_key_is_sent_to_its_server_and_is_nowhere_else(
    key_variable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    with caplog.at_level(logging.DEBUG), FakeServer("vllm", key=KEY) as server:
        for fields in ({"api_key_env": key_variable}, {"api_key_file": str(file)}):
            with desk(server.url, **fields) as it:
                it.ask()
                it.finished()
                told = [str(event) for event in it.events] + [repr(it.backend.server), repr(vars(it.backend))]
                assert not [text for text in told if KEY in text]
        assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in server.seen)
        server.chat = lambda answer: answer.document({"error": f"no credit left for {KEY}"}, 402)
        with desk(server.url, api_key_env=key_variable) as it:
            it.ask()
            assert it.failed() == f"127.0.0.1:{server.port}: no credit left for … (402)"
        with desk(server.url, ready=False) as it:
            assert "no key was given" in it.state("failed").message
        assert "authorization" not in server.seen[-1].headers
    assert KEY not in caplog.text
    assert KEY not in " ".join(psutil.Process().cmdline())
    assert KEY not in repr(Key(KEY, "$X")) + str(Key(KEY, "$X"))


def test_proxies_of_the_environment_are_not_used_for_this_machine_or_in_the_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R16."""
    with FakeServer("plain") as proxy, FakeServer("vllm") as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert look_at(Server("", server.url)).found is not None
        assert look_at(Server("", server.url.replace("127.0.0.1", "localhost"))).found is not None
        look_at(Server("", "http://nowhere.invalid"))
        assert proxy.connections == 0
        look_at(Server("", "https://nowhere.invalid"))  # a tunnel, in which the proxy sees no key
        assert proxy.connections == 1 and not proxy.asked("/v1/models")


# --- R15: addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("http://h:8000/v1/chat/completions", "http://h:8000/v1"),
        ("HTTPS://h/", "https://h/v1"),
        ("https://h:443/openai/v1", "https://h/openai/v1"),
        ("http://[::1]:80", "http://[::1]/v1"),
        ("https://h/api", "https://h/api/v1"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert parse_address(text).url == url


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hunter2@h/v1",
        "user:hunter2@h",
        "file:///etc/passwd",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://h:x",
        "http://h/v1?key=hunter2",
        "http://h/ v1",
        "http://h\x1b]0;x\x07",
        "",
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_address(text)
    assert "hunter2" not in str(error.value) and str(error.value).isprintable()


def test_a_path_without_v1_is_looked_for_in_both_places() -> None:
    with FakeServer("plain") as server:
        server.pages["/api/models"] = lambda answer: answer.document(server.listing())
        server.pages["/api/chat/completions"] = Answer.reply
        with desk(f"{server.url}/api") as it:
            it.ask()
            it.finished()
            assert it.text() == "".join(WORDS)


def test_a_server_without_a_list_of_models_needs_a_name() -> None:
    missing = {"/v1/models": lambda answer: answer.document({}, 404)}
    with FakeServer("plain", pages=missing) as server:
        assert "to be told its --model" in look_at(Server("", server.url)).problem
        with desk(server.url, model="mine") as it:
            it.ask()
            it.finished()
            assert server.asked()[0].body["model"] == "mine"


# --- R17: hostile text -------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J[/x][@click=app.quit]\u202e"


def test_hostile_text_reaches_nobody_raw() -> None:
    def chat(answer: Answer) -> None:
        answer.document({"error": {"message": HOSTILE * 100}}, 418)

    with FakeServer("vllm", models=(HOSTILE, "b"), chat=chat) as server, desk(server.url) as it:
        it.ask()
        failed = it.last()
        assert isinstance(failed, Failed)
        assert failed.message == visible(failed.message) and len(failed.message) < 500
        assert server.asked()[0].body["model"] == HOSTILE  # what it is called there
    with FakeServer("vllm", models=()) as server, desk(server.url, ready=False) as it:
        assert "serves no model" in it.state("none").message


def test_five_megabytes_without_a_newline_arrive() -> None:
    def chat(answer: Answer) -> None:
        answer.stream()
        for _ in range(10):
            answer.text("x" * 500_000)
        answer.event(b"[DONE]")

    with FakeServer("vllm", chat=chat) as server, desk(server.url) as it:
        it.ask()
        it.finished()
        assert len(it.text()) == 5_000_000
