"""`lmtop web`: the program in a browser's tab. What the page draws is a canvas, so what the server is asked and what the
history holds tell whether it works."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.command import clean_environment, command_line, run_lmtop
from support.openai_servers import WORDS, FakeServer
from support.terminal import last_reply, until

aiohttp = pytest.importorskip("aiohttp", reason="the extra `web` is not installed")
pytest.importorskip("textual_serve", reason="the extra `web` is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEY = "sk-canary-web-1234567"


@contextmanager
def page(home: Path, url: str, *arguments: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The printed address, token included, and the process that serves it."""
    home.mkdir(parents=True, exist_ok=True)
    with FakeServer() as unused:
        port = unused.port
    process = subprocess.Popen(
        command_line("web", url, "--port", str(port), *arguments),
        env=clean_environment(home, **env),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"open (\S+) in a browser", line)
        assert found is not None, line + process.stdout.read()
        yield found[1], process
    finally:
        process.terminate()
        assert process.wait(10) == 0


def tabs(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_only_the_token_opens_it_and_only_its_own_page(tmp_path: Path) -> None:
    async def look(address: str) -> None:
        base, _, token = address.partition("/?token=")
        own, foreign = {"Origin": base}, {"Origin": "http://evil.example"}
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:

            async def status(path: str, **headers: str) -> int:
                async with session.get(base + path, headers=headers, allow_redirects=False) as answer:
                    assert token not in await answer.text()
                    return int(answer.status)

            for path in ("/", "/?token=wrong", "/static/js/textual.js", "/download/x"):
                assert await status(path) == 401, path
            assert await status("/ws", **own) == 401
            assert await status(f"/?token={token}", **foreign) == 403
            async with session.get(address) as answer:  # the cookie comes with it
                assert answer.status == 200 and str(answer.url) == f"{base}/"
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            cookie = next(iter(session.cookie_jar))
            assert cookie["httponly"] and cookie["samesite"] == "Strict"
            assert await status("/") == 200
            assert await status("/", **foreign) == 403
            for headers in (foreign, {}, {"Origin": "null"}):
                with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                    await session.ws_connect(f"{base}/ws", headers=headers)

    with page(tmp_path, "http://127.0.0.1:1") as (address, process):
        asyncio.run(look(address))
        assert not tabs(process)


def test_a_tab_asks_and_when_it_closes_its_process_ends_and_the_text_is_kept(tmp_path: Path) -> None:
    async def talk(address: str, server: FakeServer, process: subprocess.Popen[str]) -> None:
        base = address.partition("/?")[0]
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            await (await session.get(address)).read()
            socket = await session.ws_connect(f"{base}/ws?width=100&height=30", headers={"Origin": base})
            shown = b""
            while b"box" not in shown and b"Qwen3-8B" not in shown:
                shown += (await asyncio.wait_for(socket.receive(), 20)).data
            await socket.send_json(["stdin", "hello there\r"])

            async def drain() -> None:
                async for _ in socket:
                    pass

            draining = asyncio.create_task(drain())
            await asyncio.to_thread(until, lambda: last_reply(tmp_path).get("text"), "text in the history")
            assert len(tabs(process)) >= 1
            assert not any(KEY in " ".join(child.cmdline()) for child in tabs(process))
            await socket.close()
            await draining

    with FakeServer("vllm", key=KEY) as server:
        server.hold.clear()
        with page(tmp_path, server.url, "--api-key-env", "WEB_KEY", WEB_KEY=KEY) as (address, process):
            asyncio.run(talk(address, server, process))
            until(lambda: not tabs(process), "the tab's process gone")
            assert server.asked()[0].body["messages"] == [{"role": "user", "content": "hello there"}]
            assert server.asked()[0].gone.wait(5)
        reply = last_reply(tmp_path)
        assert reply["text"] == "".join(WORDS[:3]) and reply["status"] == "interrupted"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with FakeServer() as taken:
        cases = (
            ((), "name the server"),
            (("http://h", "--port", "0"), "must be an integer from 1 to 65535"),
            (("http://h", "--port", str(taken.port)), f"cannot listen on 127.0.0.1:{taken.port}: Address already in use"),
        )  # fmt: skip
        for arguments, why in cases:
            done = run_lmtop(tmp_path, "web", *arguments)
            assert done.returncode == 2 and why in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_chromium(tmp_path: Path) -> None:
    """Type, get an answer, stop, regenerate, change the three sampling values."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

    with (
        FakeServer("vllm") as server,
        page(tmp_path, server.url) as (address, process),
        playwright.sync_playwright() as browsers,
    ):
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 800})
        asked_elsewhere: list[str] = []
        tab.on(
            "response", lambda got: asked_elsewhere.append(got.url) if "127.0.0.1" not in got.url else None
        )
        drawn: list[bytes] = []
        tab.on(
            "websocket", lambda socket: socket.on("framereceived", lambda data: drawn.append(_bytes(data)))
        )
        tab.goto(address)

        def see(text: str) -> None:
            """Wait until the tab has been sent this text; what came before counts for nothing afterwards."""

            def look() -> bool:
                tab.wait_for_timeout(20)  # the browser's events arrive meanwhile
                return text.encode() in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", b"".join(drawn))

            until(look, f"{text!r} in the tab")
            drawn.clear()

        def enter(text: str) -> None:
            tab.keyboard.type(text)
            tab.keyboard.press("Enter")

        see("2 waiting")
        tab.mouse.click(500, 700)  # a page has the keyboard once it was clicked
        enter("what is a cache?")
        see("7 tok")
        assert last_reply(tmp_path)["text"] == "".join(WORDS)
        server.hold.clear()
        enter("/regen")
        see("esc stop")
        until(lambda: last_reply(tmp_path).get("text") == "".join(WORDS[:3]), "its first words")
        tab.keyboard.press("Escape")
        assert server.asked()[1].gone.wait(5)
        see("stopped")
        server.hold.set()
        tab.keyboard.press("F8")
        see("applies to")
        for value in ("1.5", "0.5", "40"):  # temperature, top p, top k: typing replaces what stands there
            tab.keyboard.type(value)
            tab.keyboard.press("ArrowDown")
        tab.keyboard.press("Enter")
        see("temp 1.5")
        enter("again")
        see("7 tok")
        body = server.asked()[2].body
        assert (body["temperature"], body["top_p"], body["top_k"]) == (1.5, 0.5, 40)
        assert asked_elsewhere == []
        browser.close()
        until(lambda: not tabs(process), "the tab's process gone")


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data
