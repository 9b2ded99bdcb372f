import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import Terminal, call_lmtop
from support.llama import write_llama

Run = Callable[..., tuple[int, str, str]]
STATS = re.compile(r"lmtop: (\d+) \+ (\d+) tokens, first after [\d.]+ s, [\d.]+ tok/s, context left (\d+)")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("models") / "tiny", hidden=32))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(model: str, text: str, *more: str, **env: Any) -> tuple[int, str, str]:
        arguments = ("chat", model, "--plain", "--max-new-tokens", "8", "--temperature", "0", *more)
        code = call_lmtop(
            tmp_path, monkeypatch, *arguments, stdin=text.encode("utf-8", "surrogateescape"), **env
        )
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def turns(err: str) -> list[tuple[int, int, int]]:
    return [tuple(map(int, match.groups())) for match in STATS.finditer(err)]  # type: ignore[misc]


def escape_id(model: str) -> int:
    """The token of the byte ESC, which is U+011B in the byte-level alphabet."""
    vocab = json.loads((Path(model) / "tokenizer.json").read_text())["model"]["vocab"]
    return int(vocab["\u011b"])


def test_an_empty_line_sends_the_context_is_kept_and_end_forgets_it(tiny: str, run: Run) -> None:
    code, out, err = run(tiny, "\n\nhi\n\nhi\n\nend\n\nhi\n\ntwo\nlines\n\nexit\n\nnever\n\n")
    assert code == 0
    (first, first_reply, left), second, again, longer = turns(err)
    assert left == 1024 - first - first_reply
    assert second[0] > first + first_reply  # the first turn, its reply, and the second
    assert again[0] == first
    assert longer[0] >= again[0] + again[1] + len("two\nlines")
    assert out.endswith("\n") and "double enter" not in out and "never" not in out
    assert err.splitlines()[0] == "lmtop: tiny: fp32, context 1024 tokens, on CPU"
    assert "lmtop: new conversation" in err.splitlines()


def test_the_end_of_the_input_sends_what_was_typed(tiny: str, run: Run) -> None:
    code, _, err = run(tiny, "hi")
    assert code == 0
    assert len(turns(err)) == 1
    code, out, err = run(tiny, "")
    assert (code, out, turns(err)) == (0, "", [])


def test_the_system_prompt_opens_every_conversation(tiny: str, run: Run) -> None:
    _, _, plain = run(tiny, "hi\n\n")
    _, _, told = run(tiny, "hi\n\nend\n\nhi\n\n", "--meta-instruction", "be brief")
    assert turns(told)[0][0] == turns(told)[1][0] > turns(plain)[0][0]


def test_a_file_gets_the_models_own_bytes(tiny: str, run: Run) -> None:
    _, out, _ = run(tiny, "hi\n\n", "--logit-bias", f"{escape_id(tiny)}=100")
    assert out == "\x1b" * 8 + "\n"


def test_a_prompt_that_does_not_fit_is_said_and_the_chat_goes_on(tiny: str, run: Run) -> None:
    code, _, err = run(tiny, "x" * 2000 + "\n\nhi\n\n")
    assert code == 0
    assert re.search(r"^lmtop: error: .*1024", err, re.MULTILINE)
    assert len(turns(err)) == 1


def test_input_that_is_no_text_is_refused(tiny: str, run: Run) -> None:
    code, _, err = run(tiny, "hi\n\nab\udcff\n\n")
    assert code == 2
    assert len(turns(err)) == 1
    assert err.splitlines()[-1] == "lmtop: error: standard input: not valid UTF-8 at byte 2 of a line"


def test_an_engine_that_dies_ends_the_chat_with_its_reason(tiny: str, run: Run) -> None:
    code, _, err = run(tiny, "hi\n\nhi\n\n", LMTOP_TEST="1", LMTOP_FAULTS="forward@*:raise")
    assert code == 6
    assert "engine error" in err.splitlines()[-1]


def test_on_a_terminal_escapes_are_marks_and_ctrl_c_stops_the_reply_only(tiny: str, tmp_path: Path) -> None:
    bias = f"--logit-bias={escape_id(tiny)}=100"
    terminal = Terminal(tmp_path, "chat", tiny, "--plain", bias, LMTOP_TEST="1", LMTOP_STEP_MS="20")
    terminal.until(b"double enter to end input >>> ")
    terminal.type("hi\n\n")
    terminal.until("\u241b".encode(), 5)
    terminal.type("\x03")
    terminal.until(b"lmtop: stopped")
    terminal.until(b"double enter", 2)
    shown = terminal.output.replace(b"\r\x1b[K", b"")  # the line that shows the loading, and clears it
    assert b"\x1b" not in shown
    terminal.forget()
    terminal.type("again\n\n")
    terminal.until("\u241b".encode(), 3)
    terminal.type("\x03")
    terminal.until(b"double enter")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert b"Traceback" not in terminal.output
