import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import call_lmtop, clean_environment, command_line, run_lmtop
from support.llama import write_llama

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, **more: Any) -> tuple[int, str, str]:
        code = call_lmtop(tmp_path, monkeypatch, "generate", *arguments, **more)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def document(run: Run, tiny: str, *arguments: str, **more: Any) -> dict[str, Any]:
    code, out, err = run(tiny, "--json", *arguments, **more)
    assert (code, err, out.count("\n")) == (0, "", 1)
    return json.loads(out)  # type: ignore[no-any-return]


def test_the_process_streams_text_and_nothing_else(tiny: str, tmp_path: Path) -> None:
    done = run_lmtop(tmp_path, "generate", tiny, "hello", "--greedy", "--max-new-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 1 and done.stdout.endswith("\n")


def test_json_holds_text_ids_reason_usage_and_timings(tiny: str, run: Run) -> None:
    code, text, _ = run(tiny, "hello", "--greedy", "--max-new-tokens", "12")
    assert code == 0
    answer = document(run, tiny, "hello", "--greedy", "--max-new-tokens", "12")
    assert list(answer) == ["text", "prompt_token_ids", "token_ids", "finish_reason", "usage", "timings"]
    assert answer["text"] == text.removesuffix("\n")
    assert answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == 12
    usage = answer["usage"]
    assert (
        usage["prompt_tokens"] == len(answer["prompt_token_ids"]) > len("hello")
    )  # the chat template's share
    assert (usage["completion_tokens"], usage["context_left"]) == (12, 1024 - usage["prompt_tokens"] - 12)
    assert {"queue_s", "ttft_s", "total_s", "prefill_tps", "decode_tps"} == set(answer["timings"])
    assert 0 < answer["timings"]["ttft_s"] <= answer["timings"]["total_s"]


def test_raw_skips_the_template_and_ids_stand_for_text(tiny: str, run: Run) -> None:
    raw = document(run, tiny, "hello", "--raw", "--greedy", "--max-new-tokens", "6")
    assert len(raw["prompt_token_ids"]) == len("hello")
    ids = ",".join(map(str, raw["prompt_token_ids"]))
    by_ids = document(run, tiny, "--prompt-ids", ids, "--greedy", "--max-new-tokens", "6")
    assert by_ids["token_ids"] == raw["token_ids"]
    templated = document(run, tiny, "hello", "--greedy", "--max-new-tokens", "6")
    system = document(run, tiny, "hello", "--system", "be brief", "--greedy", "--max-new-tokens", "6")
    assert len(system["prompt_token_ids"]) > len(templated["prompt_token_ids"]) > len(raw["prompt_token_ids"])


def test_seed_fixes_the_draw_and_greedy_needs_none(tiny: str, run: Run) -> None:
    def tokens(*more: str) -> tuple[int, ...]:
        arguments = (tiny, "hello", "--max-new-tokens", "16", "--temperature", "1.5", "--top-p", "1")
        return tuple(document(run, *arguments, *more)["token_ids"])

    assert tokens("--seed", "7") == tokens("--seed", "7") != tokens("--seed", "8")
    assert tokens("--greedy") == tokens("--greedy", "--seed", "5")
    assert len({tokens() for _ in range(3)}) > 1


def test_stop_cuts_the_text_before_it(tiny: str, run: Run) -> None:
    whole = document(run, tiny, "hello", "--raw", "--greedy", "--max-new-tokens", "40")["text"]
    stop = next(
        whole[i : i + 2] for i in range(5, len(whole)) if whole[i : i + 2].isascii() and len(whole) > i + 2
    )
    cut = document(
        run, tiny, "hello", "--raw", "--greedy", "--max-new-tokens", "40", "--stop", "no", f"--stop={stop}"
    )
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_the_prompt_may_come_from_standard_input(tiny: str, run: Run) -> None:
    flags = ("--raw", "--greedy", "--max-new-tokens", "3")
    piped = document(run, tiny, *flags, stdin="grüße\n".encode())
    assert piped["prompt_token_ids"] == document(run, tiny, "grüße\n", *flags)["prompt_token_ids"]
    literal = document(run, tiny, *flags, "--", "--no_flag")
    assert len(literal["prompt_token_ids"]) == len("--no_flag")
    assert literal["prompt_token_ids"] == document(run, tiny, *flags, stdin=b"--no_flag")["prompt_token_ids"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["hi", "--prompt-ids", "1,2"], 2, "exclude each other"),
        (["--prompt-ids", "1,\x1bx"], 2, "integers like 1,2,3"),
        (["--prompt-ids", ""], 2, "the prompt is empty"),
        (["--prompt-ids", "5,99999"], 2, "99999 is not a token; the vocabulary has 261"),
        (["--prompt-ids", "-1"], 2, "-1 is not a token"),
        (["", "--raw"], 2, "the prompt is empty"),
        (["\udcff"], 2, "PROMPT: not valid UTF-8"),
        (["hi", "--system", "\udcff"], 2, "--meta-instruction"),
        (["x" * 3000], 2, "1024"),
        (["x" * 70000], 2, "the prompt has 70000 characters; the context is 1024 tokens"),
        (["hi", "--stop", ""], 2, "stop"),
        (["hi", "--logit-bias", "7"], 2, "--logit-bias"),
        (["hi", "--device", "cuda"], 6, "cpu"),
        (["hi", "--session-len", "1024", "--cache-max-entry-count", "2"], 6, "the largest context that would fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_its_code(
    tiny: str, run: Run, arguments: list[str], code: int, words: str
) -> None:
    got, out, err = run(tiny, *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert err.startswith("lmtop: error: ") and err.count("\n") == 1
    assert err.strip().isprintable()


@pytest.mark.parametrize("data", [b"", b"\n", b" \t\r\n"])
def test_without_a_prompt_nothing_is_generated(tiny: str, run: Run, data: bytes) -> None:
    code, out, err = run(tiny, stdin=data)
    assert (code, out) == (2, "")
    assert err.startswith("lmtop: error: no prompt: ") and err.count("\n") == 1


def test_switches_come_from_variables_too(tiny: str, run: Run) -> None:
    code, out, _ = run(tiny, "hi", "--max-new-tokens", "2", LMTOP_JSON="1", LMTOP_RAW="1", LMTOP_GREEDY="1")
    assert (code, len(json.loads(out)["prompt_token_ids"])) == (0, len("hi"))


def test_input_that_is_no_text_is_refused(tiny: str, run: Run) -> None:
    code, out, err = run(tiny, stdin=b"abc\xff")
    assert (code, out) == (2, "")
    assert err == "lmtop: error: standard input: not valid UTF-8 at byte 3\n"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("alloc@1:oom", 6, "out of memory"),
        ("alloc@1:raise", 70, "internal error: RuntimeError"),
        ("forward@3:raise", 70, "engine error: RuntimeError"),
        ("forward@*:oom", 6, "out of memory"),
        ("logits@3:nan", 3, "not a number"),
    ],
)
def test_faults_have_their_codes_and_a_banner(tiny: str, run: Run, fault: str, code: int, words: str) -> None:
    got, _, err = run(tiny, "hi", "--max-new-tokens", "9", LMTOP_TEST="1", LMTOP_FAULTS=fault)
    assert got == code
    banner, *rest = err.splitlines()
    assert banner == f"lmtop: TEST: LMTOP_FAULTS={fault}"
    assert rest[-1].startswith("lmtop: error: ") and words in rest[-1]


@pytest.mark.parametrize("debug", [True, False])
def test_the_cause_of_an_engine_error_is_told_to_who_asks(tiny: str, tmp_path: Path, debug: bool) -> None:
    environment = clean_environment(tmp_path, LMTOP_TEST="1", LMTOP_FAULTS="forward@1:raise")
    done = subprocess.run(
        command_line("generate", tiny, "hi"),
        env=environment | ({"LMTOP_DEBUG": "1"} if debug else {}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("RuntimeError: fault injected at forward" in done.stderr) == debug
    assert ('loop.py", line' in done.stderr) == debug


def test_hooks_for_tests_are_refused_outside_of_them(tiny: str, run: Run) -> None:
    code, out, err = run(tiny, "hi", LMTOP_STEP_MS="5")
    assert (code, out) == (2, "")
    assert "LMTOP_STEP_MS" in err and "LMTOP_TEST=1" in err


def slow(tiny: str, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command_line("generate", tiny, "hi", "--raw"),
        env=clean_environment(home, LMTOP_TEST="1", LMTOP_STEP_MS="20"),
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_ctrl_c_stops_at_once(tiny: str, tmp_path: Path) -> None:
    process = slow(tiny, tmp_path)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 1.5
    assert (process.returncode, err) == (130, b"lmtop: TEST: LMTOP_STEP_MS=20\n")


def test_a_reader_that_goes_away_ends_it_silently(tiny: str, tmp_path: Path) -> None:
    process = slow(tiny, tmp_path)
    assert process.stdout is not None and process.stderr is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b"lmtop: TEST: LMTOP_STEP_MS=20\n"
    process.stderr.close()
