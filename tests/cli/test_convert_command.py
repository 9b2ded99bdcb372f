"""`lmtop convert`, as people type it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Terminal, clean_environment, command_line, run_lmtop
from support.llama import write_llama

Run = Callable[..., tuple[int, str, str]]
ASK = ("hello", "--greedy", "--max-new-tokens", "8")


def test_a_converted_model_is_made_checked_listed_and_talks(llama: str, tmp_path: Path, run: Run) -> None:
    done = run_lmtop(tmp_path, "convert", llama, "--out", "out", "--weights", "int4")
    assert done.returncode == 0, done.stderr
    first, size, last = done.stdout.splitlines()
    assert (
        first.startswith("converted    tiny: lmtop int4, in ") and " -> " in size and last == "lmtop chat out"
    )
    assert done.stderr.splitlines() == ["lmtop: converting", "lmtop: checksums"]
    out = tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "lmtop-00001.safetensors",
        "lmtop.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    code, text, _ = run("convert", "--check", str(out))
    assert code == 0 and "whole: lmtop int4, " in text and "in 1 shard, made from tiny" in text
    code, text, _ = run("list", "--json", "--folders", str(tmp_path))
    (listed,) = [item for item in json.loads(text) if item["name"] == str(out)]
    assert code == 0 and listed["weights"] == "lmtop int4" and listed["family"] == "llama"
    told = [run("generate", model, *ASK, "--weights", "int4")[1] for model in (llama, str(out))]
    assert told[0] == told[1] and told[0]


def test_sixteen_bits_by_default_and_the_same_text(llama: str, tmp_path: Path, run: Run) -> None:
    code, text, _ = run("convert", llama, "--out", str(tmp_path / "out"))
    assert code == 0 and text.startswith("converted    tiny: fp32, in ")
    assert run("generate", llama, *ASK)[1] == run("generate", str(tmp_path / "out"), *ASK)[1]


def test_lmdeploys_words(llama: str, tmp_path: Path, run: Run) -> None:
    code, _, err = run("convert", "internlm-chat-7b", llama, "--dst-path", str(tmp_path / "workspace"))
    assert code == 0 and "internlm-chat-7b: the kind of model is read from its files" in err
    assert run("convert", "--check", str(tmp_path / "workspace"))[0] == 0


@pytest.mark.parametrize(
    "arguments,code,told",
    [
        ((), 2, "convert needs a MODEL"),
        (("demo",), 2, "convert needs --out DIR"),
        (("demo", "--out", "x", "--weights", "8"), 2, "--weights"),
        (("demo", "--check", "x"), 2, "--check takes no MODEL"),
        (("--check", "nowhere"), 3, "nowhere: no such model directory"),
        (("demo", "--out", "no/such/folder"), 2, "there is no folder"),
        (("nowhere", "--out", "x"), 3, "nowhere: no such model directory"),
    ],
)
def test_refusals(run: Run, arguments: tuple[str, ...], code: int, told: str) -> None:
    got, _, err = run("convert", *arguments)
    assert got == code and told in err.splitlines()[-1]


def test_damage_is_named(llama: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run("convert", "--check", llama)[0] == 3
    assert run("convert", llama, "--out", str(out))[0] == 0
    code, _, err = run("convert", str(out), "--out", str(tmp_path / "again"))
    assert code == 3 and "out: is converted already" in err
    code, _, err = run("quantize", str(out), "--out", str(tmp_path / "again"))
    assert code == 3 and "out: was made by lmtop convert; start from the original" in err
    path = out / "lmtop-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = run("convert", "--check", str(out))
    assert code == 3 and "lmtop-00001.safetensors: its contents are not what was written" in err
    path.unlink()
    for command in (("generate", str(out), "hello"), ("convert", "--check", str(out))):
        code, _, err = run(*command)
        assert code == 3 and "shards missing: lmtop-00001.safetensors" in err


def test_ctrl_c_and_kill_leave_no_model(tmp_path: Path) -> None:
    llama = str(write_llama(tmp_path / "large", layers=16, hidden=1024))
    terminal = Terminal(tmp_path, "convert", llama, "--out", "out", "--weights", "int4")
    terminal.until(b"converting")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert b"stopped; nothing was kept" in terminal.output and b"Traceback" not in terminal.output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []
    command = command_line("convert", llama, "--out", "out", "--weights", "int4")
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        end = time.monotonic() + 60
        while not any((tmp_path / "out.converting").glob("model/lmtop-*")) and time.monotonic() < end:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert run_lmtop(tmp_path, *map(str, command[3:])).returncode == 0
    assert run_lmtop(tmp_path, "convert", "--check", "out").returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]
