"""How long a start takes: processes that load a checkpoint from disk, phase by phase.

    python tests/gpu/bench_startup.py MODEL [weights] [device] [first] [cold]

`first`: once without any compiled kernel before. `cold`: once with the checkpoint dropped from the page cache. Then, as a
whole, `lmtop generate` of one token.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.checkpoints import drop_from_page_cache
from support.command import clean_environment, command_line

from lmtop.kernels.nvrtc import cache_directory

PHASES = """
import sys, time
begun = float(sys.argv[1])
marks = [("python", time.time())]
import lmtop.engine.generate
from lmtop.engine.config import EngineConfig
from lmtop.engine.loader import build, prepare
marks.append(("import lmtop", time.time()))
def progress(share, text):
    words = text.split(",")[0]
    if words != marks[-1][0]:
        marks.append((words, time.time()))
prepared = prepare(EngineConfig(sys.argv[2], weights=sys.argv[3], device=sys.argv[4]), progress)
import torch
marks.append(("torch imported", time.time()))
if sys.argv[4] == "cuda":
    import cupy
    marks.append(("cupy imported", time.time()))
    torch.zeros(1, device="cuda")
    marks.append(("context", time.time()))
engine = build(prepared, progress)
marks.append(("built", time.time()))
names = [name for name, at in marks]
print(f"total {marks[-1][1] - begun:.2f} s: " + ", ".join(
    f"{name} {at - before:.2f}" for (name, at), before in zip(marks, [begun, *(at for _, at in marks)])))
"""


def environment(home: Path, kernels: Path | None = None) -> dict[str, str]:
    return clean_environment(home, LMTOP_CACHE_DIR=str(kernels or cache_directory().parent))


def phases(home: Path, model: str, weights: str, device: str, kernels: Path | None = None) -> None:
    """Seconds from the phase before to the moment that each phase begins."""
    done = subprocess.run(
        [sys.executable, "-c", PHASES, str(time.time()), model, weights, device],
        capture_output=True, text=True, check=False, env=environment(home, kernels), timeout=120,
    )  # fmt: skip
    print("  ", done.stdout.strip() or done.stderr[-600:], flush=True)


def generate(home: Path, model: str, weights: str, device: str) -> None:
    begun = time.perf_counter()
    done = subprocess.run(
        command_line(
            "generate", model, "hi", "--max-new-tokens", "1", "--json", "--weights", weights, "--device", device
        ),
        capture_output=True, text=True, check=False, env=environment(home), cwd=home, timeout=120,
    )  # fmt: skip
    took = time.perf_counter() - begun
    timings = json.loads(done.stdout)["timings"] if done.returncode == 0 else done.stderr[-600:]
    print(f"   lmtop generate, one token: {took:.2f} s; {timings}; {done.stderr.strip()[-200:]}", flush=True)


def main(model: str, weights: str = "16", device: str = "cuda", *more: str) -> None:
    files = list(Path(model).glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    print(f"{model}, {size / 1e9:.1f} GB, weights {weights}", flush=True)
    with tempfile.TemporaryDirectory(prefix="lmtop-startup-") as folder:
        home = Path(folder)
        if "first" in more:
            print("   no compiled kernels:")
            phases(home, model, weights, device, home / "kernels")
        if "cold" in more:
            print("   not in the page cache:")
            for path in files:
                drop_from_page_cache(path)
            phases(home, model, weights, device)
        phases(home, model, weights, device)
        generate(home, model, weights, device)


if __name__ == "__main__":
    main(*sys.argv[1:])
