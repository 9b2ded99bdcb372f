"""`lmtop serve` as a process: what it says, how it ends, what others on the machine can see of it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.command import call_lmtop, run_lmtop
from support.serve_process import DEADLINE_S, Process

KEY = "sk-canary-4711"


@pytest.fixture
def process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(tmp_path, *request.param)
    yield process
    process.popen.kill()
    process.popen.wait()


@pytest.mark.parametrize(
    "process",
    [("api_server", "demo", "--api-keys", KEY, "--api_keys=second", "--log-requests")],
    indirect=True,
)
def test_its_life(process: Process, tmp_path: Path) -> None:
    url = process.url
    early = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert early.status_code == 200  # the port answers while the model loads
    process.until(r"demo is ready on .*context 2048 tokens, 64 slots")
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer second"}) as client:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        said = client.post(
            "/v1/chat/completions", json={"messages": "x", "max_tokens": 2, "user": "a\x1b[2Jb\n"}
        )
        assert said.status_code == 200
        client.get("/x%1b%0a")
        process.until(r"GET /x%1b%0a 404 ")
        # nobody sees the keys
        seen = psutil.Process(process.popen.pid).cmdline()
        assert KEY not in " ".join(seen) and "second" not in " ".join(seen)
        assert "serve" in seen and "demo" in seen
        assert KEY not in process.said
        assert "\x1b" not in process.said

        # open replies may end, and do
        body = {"messages": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.popen.send_signal(signal.SIGTERM)
            process.until("SIGTERM: open replies may end")
            assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert process.popen.wait(DEADLINE_S) == 0
    port = int(url.rpartition(":")[2])
    with socket.socket() as again:  # free at once
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text("latin-1")]


@pytest.mark.parametrize("process", [("demo", "--drain", "30")], indirect=True)
def test_ctrl_c_ends_it_and_a_second_signal_at_once(process: Process) -> None:
    url = process.url
    process.until("demo is ready")
    body = {"messages": "x", "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
        process.popen.send_signal(signal.SIGINT)
        process.until("SIGINT: open replies may end")
        code, seconds = process.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert seconds < 2.5  # of which the interpreter takes its part


@pytest.mark.parametrize("process", [("demo",)], indirect=True)
def test_idle_it_ends_at_once(process: Process) -> None:
    process.until("demo is ready")
    code, seconds = process.end(signal.SIGINT)
    assert code == 0
    assert seconds < 2.5


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path) -> None:
    done = run_lmtop(tmp_path, "serve", str(tmp_path / "missing"), "--port", "0")
    assert done.returncode == 3
    assert "no such model directory" in done.stderr


def test_a_port_in_use_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert call_lmtop(tmp_path, monkeypatch, "serve", "demo", "--server-port", port) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve",), "MODEL"),
        (("serve", "demo", "--server-name", "0.0.0.0"), "refusing to listen beyond loopback"),
        (("serve", "demo", "--server-port", "70000"), "from 0 to 65535"),
        (("serve", "gradio", "demo"), "serve gradio"),
    ],
)
def test_usage(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call_lmtop(tmp_path, monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_every_setting_has_a_key_and_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmtop.engine.arguments import parse

    (tmp_path / "config.toml").write_text(
        '[server]\nserver_port = 8000\nmax_queue = 3\nallow_hosts = ["a"]\n'
    )
    monkeypatch.setenv("LMTOP_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("LMTOP_MAX_QUEUE", "5")
    values = parse(["serve", "demo"]).values
    assert (values["server_port"], values["max_queue"], values["allow_hosts"]) == (8000, 5, ("a",))
    assert values["max_batch_size"] == 64
    assert parse(["serve", "demo", "--max-batch-size", "4"]).values["max_batch_size"] == 4
    assert parse(["chat", "demo"]).values["max_batch_size"] == 8
