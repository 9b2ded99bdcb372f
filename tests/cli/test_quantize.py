"""`lmtop quantize` and `lmtop lite`, as people type them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Terminal, clean_environment, command_line, run_lmtop
from support.llama import write_llama

from lmtop.engine.checkpoint import read_header
from lmtop.engine.spec import read_spec
from lmtop.engine.types import ModelError

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--calib-samples", "4", "--calib-seqlen", "128")


def test_a_quantised_model_is_made_and_talks(llama: str, tmp_path: Path) -> None:
    done = run_lmtop(tmp_path, "quantize", llama, "--out", "out", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["quantised"].startswith("tiny: 42 matrices, int4, group 32, in ")
    assert lines["calibrated"] == "4 samples, 512 tokens: bundled text"
    assert "->" in lines["size"] and "held-out tokens; mean KL" in lines["perplexity"]
    assert lines["verdict"] and lines["lmtop"] == "chat out"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    said = run_lmtop(tmp_path, "generate", "out", "hello", "--greedy", "--max-new-tokens", "4")
    assert said.returncode == 0 and said.stdout


def test_killed_at_any_moment_it_leaves_nothing_or_what_the_next_run_finishes(
    tmp_path: Path,
) -> None:
    llama = str(write_llama(tmp_path / "three", layers=3))
    command = command_line("quantize", llama, "--out", "out", *SMALL)
    whole = run_lmtop(tmp_path, "quantize", llama, "--out", "whole", *SMALL)
    assert whole.returncode == 0
    chosen, kills = random.Random(3), 0
    folder = tmp_path / "out.partial"
    seen: set[str] = set()
    while not (tmp_path / "out").exists():
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=clean_environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # kill it at some moment after one more file has come, or let it end
        end, patience = time.monotonic() + 60, chosen.random() * 0.15
        while process.poll() is None and time.monotonic() < end:
            now = {name for _, folders, files in os.walk(folder) for name in folders + files}
            if now - seen - {"lock"}:
                seen |= now
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                break
        process.communicate(timeout=60)
        for path in folder.glob("part-*.safetensors"):
            assert read_header(path)
        assert kills < 40
    assert kills >= 2
    if folder.exists():  # killed between the new name and the cleaning up
        assert run_lmtop(tmp_path, "quantize", llama, "--out", "out", "--force", *SMALL).returncode == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not folder.exists()


def test_ctrl_c_says_what_stays_and_the_same_command_goes_on(llama: str, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "quantize", llama, "--out", "out", "--calib-seqlen", "1024")
    terminal.until(b"layer 2 of 6")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert b"the same command goes on from there" in terminal.output and b"Traceback" not in terminal.output
    assert (tmp_path / "out.partial").exists() and not (tmp_path / "out").exists()
    done = run_lmtop(tmp_path, "quantize", llama, "--out", "out", "--calib-seqlen", "1024")
    assert done.returncode == 0 and "going on where an earlier run ended" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "needs --out DIR"),
        (("--out", "a", "--work-dir", "b"), 2, "exclude each other"),
        (("--out", "a", "--w-bits", "8"), 2, "only 4 is supported"),
        (("--out", "a", "--w-group-size", "7"), 2, "must be one of 32, 64, 128"),
        (
            ("--out", "a", "--w-group-size", "128"),
            2,
            "64 inputs are not a multiple of 128; --w-group-size 32 fits",
        ),
        (("--out", "a", "--w-group-size", "x"), 2, "must be an integer"),
        (("--out", "a", "--search", "wide"), 2, "must be one of grid, none"),
        (("--out", "a", "--method", "best"), 2, "must be one of awq, gptq"),
        (("--out", "a", "--w-sym", "perhaps"), 2, "must be true or false"),
        (("--out", "a", "--calib-samples", "-1"), 2, "must be an integer from 0"),
        (("--out", "a", "--calib-dataset", "nothing.txt"), 2, "neither a file nor one of wikitext2, c4"),
        (("--out", "a/b"), 2, "there is no folder"),
        (("--out", "a", "--device", "cuda"), 6, "device = 'cuda'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: tuple[str, ...], code: int, words: str, llama: str, tmp_path: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    got, out, err = run("quantize", llama, *arguments)
    assert (got, out) == (code, "") and words in err and err.count("\n") <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_the_folder_that_is_there_is_left_alone(llama: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    code, _, err = run("quantize", llama, "--out", str(out), *SMALL)
    assert code == 2 and "--force replaces it" in err and (out / "mine").read_text() == "mine"


def test_own_texts_and_conversations_calibrate(llama: str, tmp_path: Path, run: Run) -> None:
    chat = [{"messages": [{"role": "user", "content": f"question {n} " * 8}]} for n in range(5)]
    chat[2] = {"conversations": [{"from": "human", "value": "hello there, how are you"}]}  # type: ignore[dict-item]
    data = tmp_path / "chat.jsonl"
    data.write_text("\n".join(map(json.dumps, chat)))
    code, out, err = run("quantize", llama, "--out", str(tmp_path / "a"), "--calib-dataset", str(data))
    assert code == 0 and "5 samples" in out and ": chat.jsonl" in out
    assert "chat.jsonl gives 5 of the 128 samples asked for" in err
    text = tmp_path / "text.txt"
    text.write_text("some words of my own. " * 100)
    code, out, _ = run(
        "quantize", llama, "--out", str(tmp_path / "b"), "--calib-dataset", str(text), "--calib-seqlen", "64"
    )
    assert code == 0 and ": text.txt" in out
    data.write_text('{"messages": [{"role": "user"}]}\n')
    code, _, err = run("quantize", llama, "--out", str(tmp_path / "c"), "--calib-dataset", str(data))
    assert code == 2 and "chat.jsonl:1: needs" in err
    data.write_text('{"text": "x"}\nnot json\n')
    code, _, err = run("quantize", llama, "--out", str(tmp_path / "c"), "--calib-dataset", str(data))
    assert code == 2 and "chat.jsonl:2: not valid JSON" in err


def test_a_data_set_that_cannot_be_fetched_is_replaced_and_that_is_said(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # as where it is not installed
    code, out, err = run(
        "lite", "auto_awq", llama, "--calib-dataset", "ptb", "--calib-samples", "4", "--calib-seqlen", "64",
        "--w-bits", "4", "--w-group-size", "32", "--batch-size", "1", "--search-scale", "False",
        "--work-dir", str(tmp_path / "tiny-4bit"),
    )  # fmt: skip
    assert code == 0, err
    assert "ptb cannot be fetched (the package `datasets` is not installed): the bundled text is used" in err
    assert "bundled text" in out and read_spec(tmp_path / "tiny-4bit").quantised == "AWQ int4 g32"


def test_lmdeploys_two_steps_with_its_spelling(llama: str, tmp_path: Path, run: Run) -> None:
    work = str(tmp_path / "work_dir")
    code, out, err = run(
        "lite", "calibrate", llama, "--calib_samples", "4", "--calib_seqlen", "64", "--work_dir", work
    )
    assert code == 0 and "lmtop lite auto_awq" in out, err
    assert [path.name for path in Path(work).iterdir()] == ["inputs_stats.safetensors"]
    with pytest.raises(ModelError):
        read_spec(Path(work))
    code, out, err = run(
        "lite",
        "auto_awq",
        llama,
        "--w_bits",
        "4",
        "--w_group_size",
        "32",
        "--w_sym",
        "False",
        "--work_dir",
        work,
    )
    assert code == 0 and "using the statistics in" in err
    assert read_spec(Path(work)).quantised == "AWQ int4 g32"


def test_the_cache_needs_no_parameters_made_beforehand(run: Run, llama: str) -> None:
    code, out, err = run("lite", "kv_qparams", "work_dir", "workspace/triton_models/weights")
    assert (code, out) == (0, "") and "not needed" in err and err.count("\n") == 1
    code, _, err = run("lite", "smooth_quant", llama)
    assert code == 2 and "not offered" in err


def test_help_names_every_flag(run: Run) -> None:
    for command, flags in (
        (
            "quantize",
            "--out --work-dir --search --method --head --calib-dataset --w-group-size --force --device",
        ),
        ("lite", "--work-dir --calib-samples --w-bits --w-sym --search-scale --batch-size"),
    ):
        code, out, _ = run(command, "--help")
        assert code == 0 and all(flag in out for flag in flags.split())
