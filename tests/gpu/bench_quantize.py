"""How long `lmtop quantize` takes on a GPU, and how much of its memory.

    python tests/gpu/bench_quantize.py [SHAPE] [--method gptq] [--samples N] [--seqlen N]

SHAPE is a built-in one (llama-3-8b, the default) or a config.json; the checkpoint has random weights and is written to
a temporary folder first (16 GB for 8B, and twice the result's size beside it), which is not part of the time.
"""

from __future__ import annotations

import argparse
import random
import string
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.checkpoints import write_checkpoint

from lmtop.engine.devices import device_info
from lmtop.engine.quantize import quantise_model
from lmtop.engine.quantize_job import Job

TARGET_S = 600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="llama-3-8b")
    parser.add_argument("--method", default="awq", choices=("awq", "gptq"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    asked = parser.parse_args()
    device = device_info("auto")
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        source = write_checkpoint(Path(folder) / "source", asked.shape)
        data = _text(Path(folder) / "text.txt", asked.samples * asked.seqlen)
        print(f"wrote the checkpoint in {time.monotonic() - begun:.0f} s", flush=True)
        if device.kind == "cuda":
            torch.set_float32_matmul_precision("high")
        stages: dict[str, float] = {}
        begun = time.monotonic()

        def stage(name: str, done: int, total: int) -> None:
            stages.setdefault(name, time.monotonic() - begun)
            if done % 8 == 0:
                print(f"{time.monotonic() - begun:7.1f} s  {name} {done}/{total}", flush=True)

        job = Job(
            source,
            Path(folder) / "out",
            method=asked.method,
            data=str(data),
            samples=asked.samples,
            seqlen=asked.seqlen,
            device=device.kind,
            free=device.free,
        )
        with torch.inference_mode():
            outcome = quantise_model(job, stage, lambda text: print(text, flush=True))
        took = time.monotonic() - begun
    print(f"stages began at {', '.join(f'{name} {at:.1f} s' for name, at in stages.items())}")
    print(
        f"{outcome.before / 2**30:.2f} GiB -> {outcome.after / 2**30:.2f} GiB, {outcome.windows.tokens:,} tokens"
    )
    print(f"perplexity {outcome.comparison.before:.4g} -> {outcome.comparison.after:.4g}, "
          f"mean KL {outcome.comparison.divergence:.3g}, error {outcome.gain}, better {outcome.better}")  # fmt: skip
    if device.kind == "cuda":
        print(f"most GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(f"{took:.0f} s on {device.name}; at most {TARGET_S} s: {'met' if took <= TARGET_S else 'MISSED'}")
    return 0 if took <= TARGET_S else 1


def _text(path: Path, tokens: int) -> Path:
    """Random words, enough for so many tokens."""
    chosen = random.Random(0)
    words = ["".join(chosen.choices(string.ascii_lowercase, k=chosen.randint(2, 8))) for _ in range(5000)]
    lines = (" ".join(chosen.choices(words, k=12)) for _ in range(tokens // 12 + 1))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
