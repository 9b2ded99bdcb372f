import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import clean_environment, command_line, run_lmtop
from support.hub_server import Hub
from support.llama import write_llama

from lmtop.engine import hub as hub_module
from lmtop.engine import models
from lmtop.engine.spec import read_spec
from lmtop.engine.types import Cancelled, DeviceError, ModelError, RemoteError

NAME = "owner/tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1.5 MB, so that the weights come in several parts."""
    path = write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=256)
    assert (path / "model.safetensors").stat().st_size > 4 * hub_module.CHUNK
    return path


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        server.add(NAME, tiny)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


class Watcher:
    """Keeps what is reported; cancels once `until` of all bytes have come."""

    def __init__(self, until: float = 2.0) -> None:
        self.shares: list[float] = []
        self.texts: list[str] = []
        self.until = until

    def progress(self, share: float, text: str) -> None:
        self.shares.append(share)
        self.texts.append(text)

    def cancelled(self) -> bool:
        return bool(self.shares) and self.shares[-1] >= self.until


def locate(watcher: Watcher | None = None) -> Path:
    watcher = watcher or Watcher()
    return models.locate(NAME, watcher.progress, watcher.cancelled)


def refusal(kind: type[Exception], name: str = NAME) -> str:
    with pytest.raises(kind) as caught:
        models.locate(name)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300
    return text


def test_a_download_tells_its_progress_and_is_then_found_without_the_hub(hub: Hub) -> None:
    hub.repositories[NAME] |= {
        "pytorch_model.bin": b"\x80\x04", "README.md": b"#", "onnx/config.json": b"{}", "../../evil.json": b"{}",
    }  # fmt: skip
    watcher = Watcher()
    path = locate(watcher)
    assert read_spec(path).family == "llama"
    assert watcher.shares == sorted(watcher.shares)
    assert watcher.shares[0] == 0.0 and watcher.shares[-1] == 1.0
    assert len({share for share in watcher.shares if 0.1 < share < 0.95}) >= 3
    assert NAME in watcher.texts[-1] and "MiB" in watcher.texts[-1]
    assert hub.fetched() == [
        *sorted(hub.fetched()[:-1], key=lambda n: len(hub.repositories[NAME][n])),
        "model.safetensors",
    ]
    assert set(hub.fetched()) == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    }
    hub.status = 500
    assert locate() == path
    assert {item.name for item in models.discover()} == {"demo", NAME}


def test_a_cancelled_download_is_not_taken_for_a_model_and_goes_on_where_it_ended(hub: Hub) -> None:
    with pytest.raises(Cancelled):
        locate(Watcher(until=0.5))
    first = hub.fetched()
    assert first[-1] == "model.safetensors"
    found = {item.name: item for item in models.discover()}
    assert NAME not in found or found[NAME].files is None
    assert not list(models.hub_cache().rglob("*.incomplete"))
    hub.requests.clear()
    assert read_spec(locate()).family == "llama"
    assert hub.fetched() == ["model.safetensors"]


def test_weights_smaller_than_the_tokenizer_still_come_last(hub: Hub) -> None:
    hub.repositories[NAME]["vocab.json"] = b"{" + b" " * (8 << 20) + b"}"
    with pytest.raises(Cancelled):
        locate(Watcher(until=0.4))
    assert hub.fetched()[-1] == "vocab.json"
    assert all(item.files is None for item in models.discover() if item.name == NAME)


@pytest.mark.parametrize("status", [401, 403])
def test_no_access_names_the_login(hub: Hub, status: int) -> None:
    hub.status = status
    text = refusal(RemoteError)
    assert str(status) in text and "hf auth login" in text and NAME in text


def test_an_unknown_model_is_a_model_error(hub: Hub) -> None:
    assert "no such model here or on the hub" in refusal(ModelError, "owner/nothing")
    assert "not a name" in refusal(ModelError, "owner/a--b")


def test_a_hub_in_trouble_or_that_is_none_is_a_remote_error(hub: Hub) -> None:
    hub.status = 503
    assert "HTTP 503" in refusal(RemoteError)
    hub.status = 200
    hub.page = b"<html>\x1b[2JLog in to the hotel's network</html>"
    assert "does not answer as a Hugging Face hub" in refusal(RemoteError)


def test_only_pickled_weights_are_refused_before_anything_is_fetched(hub: Hub) -> None:
    hub.repositories[NAME] = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04"}
    assert "pickle weights are not supported" in refusal(ModelError)
    hub.repositories[NAME] = {"config.json": b"{}", "model.gguf": b""}
    assert "no safetensors weights" in refusal(ModelError)
    assert hub.fetched() == []


def test_refused_connections_say_so_quickly(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@{address}")
    start = time.monotonic()
    text = refusal(RemoteError)
    assert time.monotonic() - start < 15
    assert f"cannot connect to {address}" in text and "refused" in text and "secret" not in text


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr(hub_module, "ANSWER_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer in time" in refusal(RemoteError)


def test_the_token_stays_with_the_hub_when_weights_lie_elsewhere(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    with Hub() as storage:
        storage.repositories = hub.repositories
        hub.storage = storage.url.replace("127.0.0.1", "localhost")
        assert read_spec(locate()).family == "llama"
        assert storage.fetched() == ["model.safetensors"]
        assert any(headers.get("authorization") == "Bearer hf_canary" for _, _, headers in hub.requests)
        assert "hf_canary" not in str(storage.requests)


def test_a_disk_too_small_is_known_before_it_is_full(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    text = refusal(DeviceError)
    assert "MiB on disk" in text and "HF_HOME" in text
    assert hub.fetched() == []


def test_the_command_downloads_and_answers(hub: Hub, tmp_path: Path) -> None:
    arguments = ("generate", NAME, "hi", "--raw", "--greedy", "--max-new-tokens", "4", "--json")
    done = run_lmtop(tmp_path, *arguments, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 4
    assert done.stderr == ""


def test_the_commands_exit_codes_for_a_hub_without_the_model_and_for_no_hub(hub: Hub, tmp_path: Path) -> None:
    done = run_lmtop(tmp_path, "generate", "owner/nothing", "hi", HF_ENDPOINT=hub.url)
    assert (done.returncode, done.stdout) == (3, "")
    done = run_lmtop(tmp_path, "generate", NAME, "hi", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (5, "")
    assert "cannot connect to 127.0.0.1:9" in done.stderr
    done = run_lmtop(tmp_path, "generate", NAME, "hi", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert done.returncode == 5
    assert "HF_HUB_OFFLINE" in done.stderr


def test_ctrl_c_ends_a_download_that_hangs(hub: Hub, tmp_path: Path) -> None:
    hub.pause = threading.Event()
    process = subprocess.Popen(
        command_line("generate", NAME, "hi"),
        env=clean_environment(tmp_path, HF_ENDPOINT=hub.url),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while "model.safetensors" not in hub.fetched():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 15
    assert (process.returncode, out, err) == (130, b"", b"")
