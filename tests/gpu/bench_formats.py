"""What four-bit checkpoints cost: an 8B of random codes in AWQ, in GPTQ, and in GPTQ with act-order, loaded and run.

    python tests/gpu/bench_formats.py [SHAPE] [FOLDER]

Writes each checkpoint (5.7 GB for 8B) into FOLDER, and lets `lmtop bench` load it as it is, and dequantised.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.checkpoints import write_quantised
from support.command import clean_environment, command_line

from lmtop.kernels.nvrtc import cache_directory

KINDS = {
    "AWQ g128": ("awq", False),
    "GPTQ g128": ("gptq", False),
    "GPTQ g128, act-order": ("gptq", True),
}


def main(shape: str = "llama-3-8b", folder: str = "") -> None:
    with tempfile.TemporaryDirectory(prefix="lmtop-formats-", dir=folder or None) as name:
        home = Path(name)
        environment = clean_environment(home, LMTOP_CACHE_DIR=str(cache_directory().parent))
        for at, (label, (method, act_order)) in enumerate(KINDS.items()):
            directory = write_quantised(home / method, shape, method, act_order=act_order)
            done = subprocess.run(
                command_line(
                    "bench", str(directory), "--weights", "16,int4" if at == 0 else "int4", "--batch", "1,8", "--dtype", "bfloat16",  # random codes overflow half
                    "--prompt", "64", "--new-tokens", "128", "--json",
                ),
                capture_output=True, text=True, check=False, env=environment, cwd=home, timeout=300,
            )  # fmt: skip
            print(label, json.dumps(json.loads(done.stdout)) if done.returncode == 0 else done.stderr[-600:])
            sys.stdout.flush()
            shutil.rmtree(directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
