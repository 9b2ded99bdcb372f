"""What the chat screen costs the engine: one reply on the real screen, the same through a backend without one.

    python tests/gpu/bench_screen.py [model] [tokens] [rounds] [device]

`model` is a directory, or a shape, of which a checkpoint with random weights is written to the temporary folder. Both programs stay loaded and take
turns. The screen is 120 by 40, on a pty; its event loop is watched from inside: a frame is a stretch of work between two
sleeps of the loop that lasts 2 ms or more. At the end one more reply is generated while stacks are sampled.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.checkpoints import ENDING, write_checkpoint
from support.engines import Client
from support.terminal import Pty, rows, until

from lmtop.engine.config import EngineConfig
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import Finished, Message, Request, SamplingParams
from lmtop.kernels.nvrtc import cache_directory

BLOCKS = 2000
NEW_SESSION = "\x0e"  # ctrl+n
FRAME_MS = 2.0
DEADLINE_S = 60.0
# Becomes `sitecustomize` of the program on the pty. Appends to files in its folder, which no exit can lose.
PROBE = """
import os, selectors, sys, threading, time
_folder = os.environ.get("SCREEN_PROBE")
_select = selectors.EpollSelector.select
_woke, _bursts = [0.0], []

def _timed(self, timeout=None):
    if timeout is not None and timeout <= 0 or threading.current_thread() is not threading.main_thread():
        return _select(self, timeout)
    now = time.perf_counter()
    if _woke[0]:
        _bursts.append((now - _woke[0]) * 1e3)
        if len(_bursts) >= 50:
            with open(_folder + "/bursts", "a") as file:
                file.write("".join(f"{value:.3f}\\n" for value in _bursts))
            _bursts.clear()
    events = _select(self, timeout)
    _woke[0] = time.perf_counter()
    return events

def _name(frame):
    at = frame.f_code
    return f"{os.path.basename(at.co_filename)}:{at.co_name}"

def _sample():
    while True:
        while not os.path.exists(_folder + "/stacks-on"):
            time.sleep(0.2)
        lines = []
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        while len(lines) < 600:
            time.sleep(0.002)
            sample = {}
            for ident, frame in sys._current_frames().items():
                if names.get(ident) in ("MainThread", "lmtop-engine"):
                    chain = []
                    while frame is not None:
                        chain.append(_name(frame))
                        frame = frame.f_back
                    sample[names[ident]] = " ".join(chain)
            if "_idle" not in sample.get("lmtop-engine", "_idle"):
                lines += [f"{name} {chain}" for name, chain in sample.items()]
        with open(_folder + "/stacks", "a") as file:
            file.write("\\n".join(lines) + "\\n")

if _folder:
    selectors.EpollSelector.select = _timed
    os.register_at_fork(after_in_child=lambda: threading.Thread(target=_sample, daemon=True).start())
"""


class Screen:
    """The chat on a pty; its replies are read from the history."""

    def __init__(self, home: Path, model: Path, sampling: SamplingParams, device: str, weights: str) -> None:
        self._home = home
        self.probe = home / "probe"
        self.probe.mkdir(parents=True)
        (self.probe / "sitecustomize.py").write_text(PROBE)
        self.pty = Pty(
            home, "chat", str(model), "--device", device, "--weights", weights,
            "--cache-max-entry-count", str(BLOCKS), "--session-len", "4096",
            "--max-new-tokens", str(sampling.max_new_tokens), "--logit-bias", f"{ENDING}=-100",
            "--temperature", str(sampling.temperature), "--top-p", str(sampling.top_p),
            PYTHONPATH=f"{self.probe}:{os.environ.get('PYTHONPATH', '')}", SCREEN_PROBE=str(self.probe),
            LMTOP_CACHE_DIR=str(cache_directory().parent),
        )  # fmt: skip
        self._asked = 0

    def ready(self) -> float:
        return self.pty.see("●local", deadline_s=DEADLINE_S) - self.pty.started

    def reply(self, text: str) -> dict[str, float]:
        """Statistics of the reply to `text` in a new session."""
        if self._asked:
            self.pty.write(NEW_SESSION)
            time.sleep(0.5)  # what is typed belongs to the new one
        self._asked += 1
        self.pty.write(text)
        time.sleep(0.3)
        self.pty.write("\r")
        until(lambda: len(self._done()) == self._asked, lambda: self._tail(), DEADLINE_S)
        stats = self._done()[-1]["stats"]
        result: dict[str, float] = json.loads(stats) if isinstance(stats, str) else stats
        return result

    def _done(self) -> list[dict[str, object]]:
        query = "SELECT * FROM messages WHERE role = 'assistant' AND status != 'streaming' ORDER BY created"
        return rows(self._home, query)  # type: ignore[return-value]

    def _tail(self) -> str:
        return repr(self.pty.data[-1500:])


def bare(client: Client, text: str, name: str, sampling: SamplingParams) -> Finished:
    """The same request, its events taken twelve times a second and thrown away."""
    client.submit(Request(name, messages=(Message("user", text),), sampling=sampling))
    while (end := client.last(name)) is None:
        time.sleep(1 / 12)
    assert isinstance(end, Finished), end
    return end


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def report_frames(probe: Path, since: int) -> int:
    """Print the frames after the first `since` lines of the probe; how many lines there are."""
    bursts = [float(line) for line in (probe / "bursts").read_text().split()]
    frames = [value for value in bursts[since:] if value >= FRAME_MS]
    if frames:
        print(
            f"  {len(frames)} frames: p50 {percentile(frames, 0.5):.1f} ms, p90 {percentile(frames, 0.9):.1f}, "
            f"p99 {percentile(frames, 0.99):.1f}, max {max(frames):.1f} (bar 50); "
            f"shorter ones: {len(bursts) - since - len(frames)}",
            flush=True,
        )
    return len(bursts)


def report_stacks(probe: Path) -> None:
    path = probe / "stacks"
    if not path.exists():
        return
    for thread in ("MainThread", "lmtop-engine"):
        chains = [line.split()[1:] for line in path.read_text().splitlines() if line.startswith(thread)]
        own = Counter(chain[0] for chain in chains)
        within = Counter(name for chain in chains for name in set(chain))
        total = max(len(chains), 1)
        print(
            f"  {thread}, {total} samples; innermost:",
            [(n, round(c / total, 3)) for n, c in own.most_common(14)],
        )
        print("    anywhere:", [(n, round(c / total, 3)) for n, c in within.most_common(45)], flush=True)


def main(
    model: str = "internlm2-1.8b", tokens: str = "2000", rounds: str = "4", device: str = "cuda"
) -> None:
    weights = "int4" if device == "cuda" else "16"
    sampling = SamplingParams(
        temperature=1.0, top_p=1.0, max_new_tokens=int(tokens), logit_bias=((ENDING, -100.0),)
    )
    with tempfile.TemporaryDirectory(prefix="lmtop-screen-") as folder:
        directory = Path(model) if Path(model).is_dir() else write_checkpoint(Path(folder, "model"), model)
        screen = Screen(Path(folder, "home"), directory, sampling, device, weights)
        backend = LocalBackend()
        try:
            print(f"  screen ready after {screen.ready():.2f} s", flush=True)
            client = Client(backend)
            state = client.load(
                EngineConfig(
                    str(directory),
                    device=device,
                    weights=weights,
                    session_len=4096,
                    cache_max_entry_count=BLOCKS,
                )
            )
            assert state.status == "ready", state.message
            compare(screen, backend, client, sampling, int(rounds))
        finally:
            screen.pty.close()
            backend.close()


def compare(
    screen: Screen, backend: LocalBackend, client: Client, sampling: SamplingParams, rounds: int
) -> None:
    alone, shown = [], []
    seen = 0
    for number in range(rounds + 1):
        text = f"round {number} tell me a long story"
        end = bare(client, text, f"r{number}", sampling)
        snapshot = backend.snapshot()
        stats = screen.reply(text)
        print(
            f"  round {number}: alone {end.timings.decode_tps:.0f} tok/s, on the screen {stats['decode_tps']:.0f}; "
            f"{end.usage.completion_tokens} and {stats['completion_tokens']} tokens; "
            f"steps alone p50 {snapshot.step_ms_p50:.3f} ms p99 {snapshot.step_ms_p99:.3f}; "
            f"cpu of the screen {screen.pty.cpu_s():.1f} s",
            flush=True,
        )
        if number:  # the first one warms up
            alone.append(end.timings.decode_tps)
            shown.append(stats["decode_tps"])
        seen = report_frames(screen.probe, seen)
    cost = 1 - statistics.median(shown) / statistics.median(alone)
    print(
        f"median alone {statistics.median(alone):.0f}, on the screen {statistics.median(shown):.0f}: "
        f"the screen costs {cost:.1%} (bar 5 %)",
        flush=True,
    )
    (screen.probe / "stacks-on").touch()
    time.sleep(0.3)
    screen.reply("once more with samples")
    until(lambda: (screen.probe / "stacks").exists(), "samples", 5)
    report_stacks(screen.probe)


if __name__ == "__main__":
    main(*sys.argv[1:])
