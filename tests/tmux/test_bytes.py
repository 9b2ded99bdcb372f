"""What goes over the wire, how fast, and what a terminal that does not read does to the engine: nothing.

One program on one pty, which answers no queries; the tests are one story and run in order. Figures are printed (-s).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.parrot import PLACES
from support.terminal import CSI, Pty, last_reply, until

KIB = 1024
ECHOES = 16


def report(what: str, value: float, unit: str, bar: float) -> None:
    print(f"  {what}: {value:.1f} {unit} (bar {bar:g})")


def pass_seconds(seconds: float) -> float:
    """Let the program alone for a while: what is measured here is a rate. Returns when this began."""
    begun = time.monotonic()
    until(lambda: time.monotonic() >= begun + seconds, "time", seconds + 5)
    return begun


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bytes")


@pytest.fixture(scope="module")
def pty(home: Path, parrot: Path) -> Iterator[Pty]:
    pty = Pty(home, "chat", str(parrot), LMTOP_TEST="1", LMTOP_STEP_MS="20")
    yield pty
    pty.close()


def test_ready_to_type_and_first_token(pty: Pty) -> None:
    ready = pty.see("●local") - pty.started
    report("ready to type after", ready, "s", 5)
    sent = pty.write("the greeting\r")
    first = pty.see("Hell", after=sent) - sent
    report("first token after", first, "s", 1)
    pty.see(r"Hello there\.", after=sent)
    assert ready < 5 and first < 1


def test_idle_writes_and_computes_nothing(pty: Pty) -> None:
    """Check 27, over 5 s: at most 200 bytes and 1 % of a processor, gauges hidden."""
    sent = pty.write("\x14")  # ctrl+t
    until(lambda: time.monotonic() - max(sent, pty.chunks[-1][0]) > 0.7, "quiet")
    busy = pty.cpu_s()
    begun = pass_seconds(5.0)
    written, busy = pty.since(begun), pty.cpu_s() - busy
    report("idle for 5 s", len(written), "bytes", 200)
    report("idle for 5 s", 100 * busy / 5, "% of a processor", 1)
    assert len(written) <= 200
    assert busy / 5 <= 0.01


def echoes(pty: Pty, first: int) -> list[float]:
    """Milliseconds from pressing a key to its character on the pty, for characters that occur nowhere else."""
    times = []
    for number in range(ECHOES):
        key = chr(first + number)
        sent = pty.write(key)
        until(lambda key=key, sent=sent: key.encode() in CSI.sub(b"", pty.since(sent)), f"echo of {key}")
        at = next(at for at, data in pty.chunks if at >= sent and key.encode() in data)
        times.append(1000 * (at - sent))
    pty.write("\x7f" * ECHOES)
    return sorted(times)


def test_streaming_bytes_and_key_echo(pty: Pty) -> None:
    """Checks 28 and 9: 50 tokens/s at 120x40 with gauges."""
    base = echoes(pty, 0x410)
    pty.write("\x14")
    pty.see("throughput")
    sent = pty.write("talk\r")
    began = pty.see("baba", after=sent)
    pass_seconds(2.0)
    start = pass_seconds(5.0)
    rate = len(pty.since(start, start + 5.0)) / 5 / KIB
    report("streaming at 50 tokens/s, seconds 2 to 7", rate, "KiB/s", 20)
    busy = echoes(pty, 0x430)
    for name, at in (("p50", ECHOES // 2), ("p95", int(ECHOES * 0.95))):
        report(f"key echo {name}, idle {base[at]:.1f}, streaming", busy[at], "ms", base[at] + 30)
    pty.write("\x07")
    pty.see("─ menu ─", after=start)
    pass_seconds(0.5)  # the dialog itself is drawn
    below = pass_seconds(2.0)
    under = len(pty.since(below, below + 2.0)) / 2 / KIB
    report("the same under a dialog", under, "KiB/s", 20)
    pty.write("\x1b")
    assert began - sent < 1.0
    assert rate <= 20 and under <= 20
    assert statistics.median(busy) - statistics.median(base) <= 30


def test_unread_terminal_holds_up_nothing(pty: Pty, home: Path) -> None:
    """Check 30: 5 s in which nobody reads; tokens go on, and afterwards the screen is complete."""
    pty.pause()
    pty.write("\x1bOP" * 40)  # help, opened and closed: more than any buffer between us holds
    before = len(last_reply(home)["text"])
    begun = pass_seconds(5.0)
    grown = len(last_reply(home)["text"]) - before
    report("tokens in 5 s unread", grown / 5, "tokens", 250)
    assert grown / 5 > 150
    pty.resume()
    pty.see("low bandwidth", after=begun)  # so it did notice
    sent = pty.write("\x1b")
    pty.see("stopped", after=sent)
    until(lambda: last_reply(home)["status"] == "stopped", "saved")
    words = last_reply(home)["text"].split()[:-1]  # the last may be cut
    assert [PLACES[word] for word in words] == list(range(len(words)))  # each word, once, in order
    sent = pty.write("\x0c")  # any dialog, closed again: the screen is drawn as a whole
    pty.see("enter load", after=sent)
    sent = pty.write("\x1b")
    assert pty.see(words[-1], after=sent)
    pty.write("\x11")
    assert pty.wait() == 0
