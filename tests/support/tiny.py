"""Tiny random checkpoints of every family, with reference logits, made once per test run beside the repository.

The generator lives in ../shared/reference and is not part of the repository: without it these tests skip.
`LMTOP_TINY` names a folder that was generated before, for machines whose transformers is too old to generate.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from lmtop.engine.model import Decoder
from lmtop.engine.spec import read_spec
from lmtop.engine.weights import load_weights
from lmtop.kernels import reference

SHARED = Path(__file__).parents[2].parent / "shared"
GENERATOR = SHARED / "reference" / "make_tiny_checkpoints.py"
SEEDS = (0, 1, 2)
NATIVE = [
    "llama_mha",
    "llama_gqa",
    "llama_linear",
    "llama_dynamic",
    "llama_yarn",
    "llama3",
    "code_llama",
    "llama_bias",
    "internlm3",
    "mistral",
    "mistral_full",
    "ministral",
    "qwen2",
    "qwen2_tied",
    "qwen2_swa",
    "qwen3",
    "seed_oss",
    "phi3",
    "phi3_longrope",
    "phi4mini",
    "glm",
]
REMOTE = ["internlm_7b", "internlm2", "baichuan_7b", "baichuan2_7b", "qwen_v1", "chatglm2"]
WAVE1 = [*NATIVE, *REMOTE]
LATER = ["mixtral", "gemma", "falcon_7b", "olmo2", "granite", "cohere", "deepseek_v2_lite", "baichuan_13b"]

# Runs in its own process, so that transformers is imported once and not into the tests. The older style of
# config.json differs from the newer in that file alone: its folders link to the weights.
_DRIVER = """
import importlib.util, json, pathlib, sys
script, out, seeds, wave1, later = sys.argv[1:]
spec = importlib.util.spec_from_file_location("tiny", script)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
for seed in seeds.split(","):
    names = wave1 + ("," + later if seed == "0" else "")
    sys.argv = [script, "--out", f"{out}/{seed}", "--seed", seed, "--refs", "--only", names]
    assert tiny.main() == 0
    for source in pathlib.Path(out, seed).iterdir():
        target = pathlib.Path(out, seed + "-hub", source.name)
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != "config.json":
                (target / file.name).symlink_to(file)
        config = json.loads((source / "config.json").read_text())
        if source.name not in tiny.TWINS:
            config = tiny.hub_config(config)
        (target / "config.json").write_text(json.dumps(config))
"""


@functools.cache
def _generated() -> Path:
    if ready := os.environ.get("LMTOP_TINY"):
        return Path(ready)
    root = Path(tempfile.mkdtemp(prefix="lmtop-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    lists = [",".join(map(str, items)) for items in (SEEDS, WAVE1, LATER)]
    subprocess.run(
        [sys.executable, "-c", _DRIVER, str(GENERATOR), str(root), *lists],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    return root


def checkpoint(name: str, seed: int = 0, style: str = "v5") -> Path:
    """Directory of a checkpoint; `style` "v5" or "hub" is the generation of its config.json. Read only."""
    if not GENERATOR.exists() and "LMTOP_TINY" not in os.environ:
        pytest.skip(f"{GENERATOR.name} is not beside the repository")
    return _generated() / (f"{seed}" if style == "v5" else f"{seed}-hub") / name


def copy_of(name: str, target: Path) -> Path:
    """A private copy of a checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint(name), target / "model"))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    files = read_spec(directory)
    weights = load_weights(files, dtype, torch.device("cpu"), lambda share, text: None, lambda: False)
    return Decoder(files.spec, weights, reference)
