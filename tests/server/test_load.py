"""Many clients at once, and clients that go away: everything accepted ends, everything left behind is freed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from support.engines import until
from support.server import USER, Server, is_error, many, post, read_all, stream_text

from lmtop.engine.server.limits import Limits

STEP_MS = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def slow() -> Iterator[Server]:
    """Each step takes 20 ms; 4 slots, 8 waiting."""
    server = Server(step_ms=STEP_MS, max_batch_size=4, max_queue=8, max_prefill_token_num=16)
    yield server
    server.close()


def test_64_streams_say_what_each_says_alone(server: Server) -> None:
    words = (
        "lamp",
        "key",
        "lock",
        "river",
        "winter",
        "boat",
        "story",
        "token",
        "cache",
        "block",
        "bread",
        "rain",
    )
    bodies = [
        {
            "messages": [
                {"role": "user", "content": f"Tell me about {words[i % 12]} and {words[i % 7]} {i}"}
            ],
            "temperature": 0,
            "max_tokens": 24,
        }
        for i in range(64)
    ]
    with server.gaps() as gaps:
        together = many(server, bodies)
    gaps.sort()
    assert gaps[int(len(gaps) * 0.99)] <= 0.1
    alone = [server.client.post("/v1/chat/completions", json=body).json() for body in bodies]
    assert [text for text, _ in together] == [one["choices"][0]["message"]["content"] for one in alone]
    server.settled()


def test_what_the_queue_cannot_hold_is_refused_at_once(slow: Server) -> None:
    async def run() -> list[tuple[int, float, httpx.Response]]:
        async with httpx.AsyncClient(base_url=slow.url, timeout=60) as client:

            async def one() -> tuple[int, float, httpx.Response]:
                started = time.monotonic()
                response = await client.post(
                    "/v1/chat/completions", json={"messages": USER, "max_tokens": 20}
                )
                return response.status_code, time.monotonic() - started, response

            return await asyncio.gather(*(one() for _ in range(30)))

    answers = asyncio.run(run())
    assert sorted(status for status, _, _ in answers) == [200] * 12 + [503] * 18
    for status, seconds, response in answers:
        if status == 503:
            is_error(response, 503, "queue_full")
            assert response.headers["retry-after"] == "1"
            assert seconds < 0.5  # of which the 30 connections take most
        else:
            assert response.json()["usage"]["completion_tokens"] > 0
    slow.settled()


# --- clients that go away ----------------------------------------------------------------------------------


def abandon(
    server: Server, body: dict[str, Any], when: Callable[[], bool], path: str = "/v1/chat/completions"
) -> float:
    """Send, close the connection once `when` holds; seconds until everything is free."""
    with server.connect() as connection:
        connection.sendall(post(path, json.dumps(body).encode()))
        until(when, "the moment to leave")
        # a reset, as from a process that was killed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left = time.monotonic()
    until(server.idle, "everything is free", 5)
    return time.monotonic() - left


def snapshot(server: Server) -> Any:
    return server.backend.snapshot()


ENDLESS = {"messages": USER, "ignore_eos": True, "temperature": 0}
LONG = {"messages": [{"role": "user", "content": "lamp and key " * 300}], "max_tokens": 50}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(slow: Server, stream: bool) -> None:
    for body, generated in ((ENDLESS, True), (LONG, False)):  # while it decodes, while its prompt is read

        def running(generated: bool = generated) -> bool:
            slots = snapshot(slow).slots
            return bool(slots) and (slots[0].generated >= 3 if generated else slots[0].computed >= 16)

        seconds = abandon(slow, body | {"stream": stream}, running)
        # a step, 50 ms, and 100 ms for the snapshot's own clock
        assert seconds <= STEP_MS / 1e3 + 0.05 + 0.1, seconds


def test_a_client_that_leaves_the_queue_leaves_it(slow: Server) -> None:
    connections = [slow.connect() for _ in range(4)]
    for connection in connections:
        connection.sendall(post("/v1/chat/completions", json.dumps(ENDLESS | {"stream": True}).encode()))
    until(lambda: len(snapshot(slow).slots) == 4, "all slots are taken")
    for stream in (True, False):
        with slow.connect() as waiting:
            waiting.sendall(post("/v1/chat/completions", json.dumps(ENDLESS | {"stream": stream}).encode()))
            until(lambda: len(snapshot(slow).queue) == 1, "it waits")
        left = time.monotonic()
        until(lambda: not snapshot(slow).queue, "it is gone from the queue")
        assert time.monotonic() - left <= 0.2
        assert len(snapshot(slow).slots) == 4
    for connection in connections:
        connection.close()
    slow.settled()


def test_every_part_of_an_answer_is_freed(slow: Server) -> None:
    abandon(slow, ENDLESS | {"n": 3}, lambda: len(snapshot(slow).slots) == 3)
    abandon(slow, {"prompt": ["a", "b"], "max_tokens": 500, "ignore_eos": True},
            lambda: len(snapshot(slow).slots) == 2, "/v1/completions")  # fmt: skip


def test_nothing_leaks(server: Server) -> None:
    process = psutil.Process()
    random.seed(5)

    async def mixed(count: int) -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            turn = asyncio.Semaphore(24)

            async def one(number: int) -> int:
                kind = number % 20
                body: dict[str, Any] = {"messages": USER, "max_tokens": random.randint(1, 12)}
                if kind == 3:
                    body["temperature"] = 5
                async with turn:
                    if kind in (7, 13):
                        async with client.stream(
                            "POST", "/v1/chat/completions", json=body | {"stream": True, "ignore_eos": True}
                        ) as response:
                            return response.status_code  # leaves while it runs
                    if number % 2:
                        await stream_text(client, body | ({} if kind != 3 else {"temperature": 1}))
                        return 200
                    return (await client.post("/v1/chat/completions", json=body)).status_code

            return await asyncio.gather(*(one(number) for number in range(count)))

    asyncio.run(mixed(60))  # whatever is made once
    server.settled()
    until(lambda: server.service.connections() <= 1, "connections are closed")
    before = process.num_fds(), threading.active_count()
    statuses = asyncio.run(mixed(200))
    assert set(statuses) <= {200, 400}
    server.settled()
    until(lambda: server.service.connections() <= 1, "connections are closed")
    assert process.num_fds() <= before[0]
    assert threading.active_count() <= before[1]


def test_a_reader_that_stalls_is_cut_off() -> None:
    # small buffers, so that a short stream fills them
    server = Server(limits=Limits(stall_s=0.5, send_buffer=4096), session_len=2048)
    try:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.http.port))
        body = {"prompt": "x", "n": 8, "max_tokens": 1900, "ignore_eos": True, "stream": True, "logprobs": 20}
        connection.sendall(post("/v1/completions", json.dumps(body).encode()))
        until(lambda: len(snapshot(server).slots) == 8, "it runs")
        until(server.idle, "it was cut off", 15)
        assert server.service.metrics.ended["disconnected"] + server.service.metrics.ended["cancelled"] == 8
        until(lambda: server.service.connections() <= 1, "the connection is gone", 5)
        assert b"[DONE]" not in read_all(connection)
        connection.close()
    finally:
        server.close()


def test_stopping_lets_replies_end_then_cuts_the_rest() -> None:
    server = Server(step_ms=10, drain_s=0.6)
    lines: list[str] = []

    def read() -> None:
        with server.client.stream(
            "POST", "/v1/chat/completions", json=ENDLESS | {"stream": True}
        ) as response:
            lines.extend(line for line in response.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(snapshot(server).slots) == 1, "it runs")
    short = threading.Thread(target=lambda: answers.append(server.chat(max_tokens=10)))
    answers: list[httpx.Response] = []
    short.start()
    until(lambda: len(snapshot(server).slots) == 2, "both run")
    started = time.monotonic()
    server.http.stop()
    until(lambda: server.service.draining, "it drains")
    with httpx.Client(base_url=server.url) as late:
        is_error(late.post("/v1/chat/completions", json={"messages": USER}), 503, "shutting_down")
        is_error(late.get("/health"), 503, "shutting_down")
    short.join(10)
    assert answers[0].status_code == 200  # it ended in time
    reader.join(10)
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    server.close()
    assert time.monotonic() - started < 0.6 + 1.5
