from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtop.engine.remote_address import key_from_environment, key_from_file
from lmtop.engine.servers import Server, find, read_servers, removed, saved, write_servers
from lmtop.engine.types import UsageError

H100 = Server("h100", "http://h100:8000/v1", api_key_env="H100_KEY", model="Qwen/Qwen3-8B")
LAB = Server("lab", "https://lab/v1", api_key_file="~/keys/lab", ca_file="/etc/lab.pem")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMTOP_CONFIG", str(tmp_path / "conf" / "config.toml"))
    return tmp_path / "conf" / "servers.toml"


def test_servers_are_kept_changed_and_removed(path: Path) -> None:
    assert read_servers() == ()
    assert saved(H100) == (H100,) and saved(LAB) == (H100, LAB)
    assert read_servers() == (H100, LAB)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    renamed = Server("h200", H100.url)
    assert saved(renamed, before="h100") == (renamed, LAB)
    with pytest.raises(UsageError, match="there is a server 'lab' already"):
        saved(Server("lab", "http://x"), before="h200")
    assert removed("h200") == (LAB,) and removed("nobody") == (LAB,)
    assert [entry.name for entry in path.parent.iterdir()] == ["servers.toml"]


@given(st.text(min_size=1, max_size=20), st.sampled_from(["ca_file", "api_key_file", "model"]))
def test_any_text_survives_the_file(text: str, name: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    path = Path(tempfile.gettempdir()) / f"lmtop-servers-{os.getpid()}.toml"
    try:
        server = Server("a.b-c", "http://h", **{name: text})
        write_servers([server], path)
        assert read_servers(path) == (server,)
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a]\nurl = ", "servers.toml: Invalid value"),
        ("[a]\nurl = 5", "must be a table with url"),
        ("a = 1", "must be a table with url"),
        ('[a]\nurl = "http://h"\napi_key = "sk-1"', "api_key: must be one of url, api_key_env"),
        ('[a]\nurl = "http://u:hunter2@h"', "user name or password"),
        ('["a b"]\nurl = "http://h"', "a server's name has letters"),
        ('[local]\nurl = "http://h"', "the name of this machine"),
        ('[a]\nurl = "http://h"\napi_key_env = "X"\napi_key_file = "y"', "one key"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_named_and_left_alone(path: Path, text: str, why: str) -> None:
    path.parent.mkdir()
    path.write_bytes(data := text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=why) as error:
        read_servers()
    assert "hunter2" not in str(error.value) and "servers.toml" in str(error.value)
    with pytest.raises(UsageError):
        saved(H100)
    assert path.read_bytes() == data


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    path.parent.write_text("in the way")
    with pytest.raises(UsageError, match="cannot write"):
        write_servers([H100])


def test_names_and_addresses() -> None:
    known = (H100, LAB)
    assert find("lab", known) is LAB
    assert find("gpu-box:8000", known) == Server("", "gpu-box:8000")
    assert find("localhost", known).address.url == "http://localhost/v1"
    with pytest.raises(UsageError, match="did you mean 'h100'"):
        find("h10", known)
    with pytest.raises(UsageError, match="saved: h100, lab"):
        find("zzz", known)
    assert (H100.label, Server("", "http://h").label) == ("h100", "h:80")


def test_keys_by_reference_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOD", " sk-1 ")
    monkeypatch.setenv("EMPTY", " ")
    assert key_from_environment("GOOD").header == {"Authorization": "Bearer sk-1"}
    for name, why in (("EMPTY", "not a key"), ("ABSENT", "is not set"), ("sk-abc-123", "not the key itself")):
        with pytest.raises(UsageError, match=why) as error:
            key_from_environment(name)
        assert "sk-abc" not in str(error.value)
    file = tmp_path / "key"
    file.write_text("sk-2\n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match="other users may read this key: chmod 600"):
        key_from_file(str(file))
    file.chmod(0o600)
    assert key_from_file(str(file)).header == {"Authorization": "Bearer sk-2"}
    file.write_text("two\nlines")
    for bad in (file, tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError) as error:
            key_from_file(str(bad))
        assert "two" not in str(error.value)


def test_a_key_does_not_go_in_the_clear_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", "sk-1")
    with pytest.raises(UsageError, match="write http:// or https:// in front of it"):
        Server("", "gpu-box:8000", api_key_env="K").key()
    assert Server("", "http://gpu-box:8000", api_key_env="K").key() is not None
    assert Server("", "localhost:8000", api_key_env="K").key() is not None
