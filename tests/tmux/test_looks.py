"""Check 31: few colours, none, or ASCII alone; and how long it takes until something can be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.terminal import Tmux, needs_tmux

import lmtop

pytestmark = needs_tmux

DEMO = Path(lmtop.__file__).parent / "engine" / "demo" / "model" / "model.safetensors"
COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
EXTENDED = re.compile(rb"\x1b\[(?:[0-9;]*;)?[34]8;[25];[0-9;]*m")


@pytest.fixture(scope="module")
def tmux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tmux]:
    with closing(Tmux(tmp_path_factory.mktemp("looks"))) as tmux:
        yield tmux


@pytest.mark.parametrize(
    ("arguments", "env"),
    [((), {"TERM": "xterm"}), ((), {"NO_COLOR": "1"}), (("--ascii",), {})],
    ids=["TERM=xterm", "NO_COLOR", "--ascii"],
)
def test_all_is_told_in_text(
    tmux: Tmux, parrot: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> None:
    """Numbers, session letters and states; no colours beyond what was asked for, no byte beyond ASCII."""
    ascii = "--ascii" in arguments
    tmux.raw.write_bytes(b"")
    tmux.start("chat", str(parrot), *arguments, ready="local CPU", LMTOP_TEST="1", LMTOP_STEP_MS="20", **env)
    tmux.enter("talk")
    tmux.see(r"1 active")
    screen = tmux.see(r"(?m)A [1-9]\d* .*free \d+")  # the KV map's legend: session A, its blocks
    for told in (
        r"1 talk +\S+ +\d+t/s",  # a session, its state and speed
        r"A [1-9]\d* blk",
        r"batch 1/8",
        r"queue 0",
        r"KV [1-9]\d*/1024 blk",
        r"dec +\d[\d.]* t/s",
        r"RAM [\d.]+ / [\d.]+ GiB",
        r"[\d.]+k?/8k \d+%",
        r"esc stop",
        r"temp 0\.7",
    ):
        assert re.search(told, screen), f"no {told!r} on\n{screen}"
    tmux.keys("Escape")
    tmux.see("stopped")
    tmux.keys("F1")
    tmux.see("esc closes")
    tmux.keys("Escape", "C-q")
    assert tmux.ended() == 0
    written = tmux.raw.read_bytes()
    drawn = written[written.index(b"\x1b[?1049h") : written.rindex(b"\x1b[?1049l")]
    if ascii:
        assert screen.isascii() and drawn.isascii()
    if "TERM" in env:
        assert COLOUR.search(drawn) and not EXTENDED.search(drawn)
    if "NO_COLOR" in env:
        assert not COLOUR.search(drawn)


def test_monitor_is_there_within_a_second(tmux: Tmux) -> None:
    seconds = tmux.start("top", ready="sort: ")
    print(f"  lmtop top, first frame after {seconds:.2f} s (bar 1)")
    tmux.see("RAM|no NVIDIA GPU|%")
    assert seconds < 1.0
    tmux.keys("q")
    assert tmux.ended() == 0


@pytest.mark.skipif(not DEMO.exists(), reason="the built-in model is not in this checkout")
def test_demo_is_ready_and_answers(tmux: Tmux) -> None:
    seconds = tmux.start("chat", "demo")
    print(f"  lmtop chat demo, ready to type after {seconds:.2f} s (bar 5)")
    assert seconds < 5.0
    tmux.enter("hello")
    tmux.see(r"ttft 0\.\d+s · ")
    tmux.keys("C-q")
    assert tmux.ended() == 0
