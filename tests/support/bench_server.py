"""The server's bars at full size, on the built-in model or any other: `python tests/support/bench_server.py [PART ...]`.

overhead  tokens/s of 1 and 64 streams with HTTP (a real `lmtop serve`) and without (the engine alone, same requests)
load      64 streams of 64 tokens: loop gaps, first events; 300 long requests at once: who is refused, how fast
soak      2,000 mixed requests, 10 % cancelled, 5 % invalid: blocks, threads, descriptors, memory
leave     100 clients that go away: how long until their blocks are free, with steps of 20 ms

Also `--model MODEL`, `--streams 1,64`, `--tokens 256`; on a GPU the overhead is that of bar 4.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import selectors
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # this folder's `server` is not that of the tests

import httpx
import psutil
from support.engines import Client, until
from support.serve_process import Process
from support.server import Server, many, post, stream_text

from lmtop.engine.config import EngineConfig
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import GREEDY, Message, Request


def body(number: int, tokens: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"Tell me about number {number}."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


def without_http(model: str, streams: int, tokens: int) -> float:
    from dataclasses import replace

    backend = LocalBackend()
    client = Client(backend)
    assert client.load(EngineConfig(model, max_batch_size=64)).status == "ready"
    sampling = replace(GREEDY, max_new_tokens=tokens, ignore_eos=True)

    def once() -> float:
        requests = [
            Request(
                f"{time.monotonic()}-{i}", (Message("user", f"Tell me about number {i}."),), sampling=sampling
            )
            for i in range(streams)
        ]
        started = time.perf_counter()
        client.submit(*requests)
        client.wait([request.id for request in requests], 300)
        return streams * tokens / (time.perf_counter() - started)

    once()
    best = max(once() for _ in range(3))
    backend.close()
    return best


def with_http(model: str, streams: int, tokens: int) -> float:
    with tempfile.TemporaryDirectory() as home:
        process = Process(Path(home), model)
        url = process.url
        process.until("is ready on")

        async def once() -> float:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

                async def one(number: int) -> None:
                    asked = body(number, tokens) | {"stream": True}
                    async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                        async for _ in response.aiter_raw():
                            pass

                started = time.perf_counter()
                await asyncio.gather(*(one(number) for number in range(streams)))
                return streams * tokens / (time.perf_counter() - started)

        asyncio.run(once())
        best = max(asyncio.run(once()) for _ in range(3))
        process.popen.terminate()
        process.popen.wait(30)
        return best


def overhead(options: argparse.Namespace) -> None:
    for streams in map(int, options.streams.split(",")):
        alone = without_http(options.model, streams, options.tokens)
        served = with_http(options.model, streams, options.tokens)
        print(
            f"overhead: {streams:3} streams: {alone:8.1f} tok/s alone, {served:8.1f} served: {served / alone:.1%}"
        )


def load(options: argparse.Namespace) -> None:
    server = Server(model=options.model)
    with server.gaps() as gaps:
        texts = many(server, [body(number, 64) for number in range(64)])
    gaps.sort()
    same = sum(
        server.client.post("/v1/chat/completions", json=body(number, 64)).json()["choices"][0]["message"][
            "content"
        ]
        == text
        for number, (text, _) in enumerate(texts)
    )
    print(
        f"load: 64 streams: {same} equal alone, first event {max(first for _, first in texts):.2f} s at most, "
        f"loop gap p99 {1e3 * gaps[int(len(gaps) * 0.99)]:.1f} ms, most {1e3 * gaps[-1]:.1f} ms"
    )

    connections = {server.connect(): 0.0 for _ in range(300)}
    chooser = selectors.DefaultSelector()
    for number, connection in enumerate(connections):
        connection.sendall(post("/v1/chat/completions", json.dumps(body(number, 200)).encode()))
        connections[connection] = time.monotonic()
        chooser.register(connection, selectors.EVENT_READ)
    answers: list[tuple[int, float]] = []
    while len(answers) < 300:
        for key, _ in chooser.select():
            chooser.unregister(key.fileobj)
            status = int(key.fileobj.recv(4096).split()[1])  # type: ignore[union-attr]
            answers.append((status, time.monotonic() - connections[key.fileobj]))  # type: ignore[index]
    refused = sorted(seconds for status, seconds in answers if status == 503)
    print(
        f"load: 300 at once: {sum(status == 200 for status, _ in answers)} answered, {len(refused)} refused, "
        f"half of them within {1e3 * statistics.median(refused):.0f} ms, all within {1e3 * refused[-1]:.0f} ms"
    )
    server.settled()
    server.close()


def soak(options: argparse.Namespace) -> None:
    server = Server(model=options.model)
    process = psutil.Process()

    async def mixed(count: int) -> dict[int, int]:
        random.seed(7)
        statuses: dict[int, int] = {}
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            turn = asyncio.Semaphore(48)

            async def one(number: int) -> None:
                asked = body(number, random.randint(1, 24))
                async with turn:
                    status = 200
                    if number % 20 == 3:
                        answer = await client.post("/v1/chat/completions", json=asked | {"temperature": 5})
                        status = answer.status_code
                    elif number % 10 == 7:
                        async with client.stream(
                            "POST", "/v1/chat/completions", json=asked | {"stream": True, "max_tokens": 200}
                        ) as response:
                            status = response.status_code  # leaves
                    elif number % 2:
                        await stream_text(client, asked)
                    else:
                        status = (await client.post("/v1/chat/completions", json=asked)).status_code
                statuses[status] = statuses.get(status, 0) + 1

            await asyncio.gather(*(one(number) for number in range(count)))
        return statuses

    def state() -> tuple[int, int, float]:
        server.settled()
        until(lambda: server.service.connections() <= 1, "connections are closed")
        return process.num_fds(), threading.active_count(), process.memory_info().rss / 2**20

    asyncio.run(mixed(200))
    before, started = state(), time.monotonic()
    statuses = asyncio.run(mixed(2000))
    seconds, after = time.monotonic() - started, state()
    print(
        f"soak: 2,000 requests in {seconds:.0f} s: {statuses}; all blocks free; descriptors {before[0]} -> {after[0]}, "
        f"threads {before[1]} -> {after[1]}, RSS {before[2]:.1f} -> {after[2]:.1f} MiB (client included)"
    )
    server.close()


def leave(options: argparse.Namespace) -> None:
    server = Server(model=options.model, step_ms=20)
    times = []
    for number in range(100):
        asked = body(number, 400) | {"stream": bool(number % 2)}
        connection = server.connect()
        connection.sendall(post("/v1/chat/completions", json.dumps(asked).encode()))
        wanted = number % 5
        until(
            lambda wanted=wanted: any(s.generated >= wanted for s in server.backend.snapshot().slots),
            "it runs",
        )
        time.sleep(random.random() * 0.02)  # at any moment of a step
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        left = time.monotonic()
        # `_live` and not the snapshot, which is up to 100 ms old
        until(lambda: not server.backend._loop._live, "it is free", 5)
        times.append(1e3 * (time.monotonic() - left))
    server.settled()
    times.sort()
    print(
        f"leave: 100 clients gone, steps of 20 ms: free after {statistics.median(times):.0f} ms (median), "
        f"p99 {times[98]:.0f} ms, at most {times[-1]:.0f} ms"
    )
    server.close()


PARTS = {"overhead": overhead, "load": load, "soak": soak, "leave": leave}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--streams", default="1,64")
    parser.add_argument("--tokens", type=int, default=256)
    chosen = parser.parse_args()
    for part in chosen.parts:
        PARTS[part](chosen)
