"""Models and a device for the load dialog, as values: nothing of it is on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lmtop.engine.architecture import Spec
from lmtop.engine.config import DeviceInfo, ModelSizes
from lmtop.engine.loader import sizes_of
from lmtop.engine.models import Found
from lmtop.engine.spec import ModelFiles
from lmtop.tui.plans import Survey

GIB = 1 << 30
DEVICE = DeviceInfo("cpu", "CPU", 64 * GIB, 50 * GIB)
GPU = DeviceInfo("cuda", "NVIDIA H200", 141 * GIB, 126 * GIB, 90)
SMALL_GPU = DeviceInfo("cuda", "NVIDIA GeForce RTX 3060", 12 * GIB, 11 * GIB, 86)


def model(
    name: str,
    parameters: int,
    *,
    family: str = "llama",
    layers: int = 32,
    hidden: int = 4096,
    kv_heads: int = 8,
    context: int = 32768,
    source: str = "hub cache",
) -> Found:
    """A model that can be loaded."""
    spec = Spec(
        layers=layers,
        hidden=hidden,
        heads=32,
        kv_heads=kv_heads,
        head_dim=hidden // 32,
        vocab=128_256,
        eps=1e-5,
        max_position=context,
        rope=cast(Any, None),
        window=(None,) * layers,
        attn_scale=1.0,
    )
    files = ModelFiles(
        directory=Path(name),
        family=family,
        layout=cast(Any, None),
        spec=spec,
        config={},
        generation={},
        eos_ids=(2,),
        placed=(),
        parameters=parameters,
        stored_bytes=2 * parameters,
        widest=6 * hidden,
        digest=name,
        dtype="bfloat16",
        notices=(),
    )
    return Found(name, Path(name), source, files)


def broken(name: str, problem: str, source: str = "folder") -> Found:
    """One that cannot."""
    return Found(name, Path(name), source, None, problem)


DEMO = model("demo", 7_500_000, layers=8, hidden=256, kv_heads=8, context=2048, source="built in")
MODELS = (
    DEMO,
    model("meta-llama/Llama-3.1-8B-Instruct", 8_030_000_000, context=131072),
    model("Qwen/Qwen2.5-0.5B-Instruct", 494_000_000, family="qwen2", layers=24, hidden=896, kv_heads=2),
    model(
        "/data/checkpoints/team/experiments/2026-11/mistral-large-instruct-2411-merged-and-averaged",
        123_000_000_000,
        family="mistral",
        layers=88,
        hidden=12288,
        context=131072,
        source="folder",
    ),
    broken("mistralai/Mixtral-8x7B", "architecture 'MixtralForCausalLM' not supported", "hub cache"),
    broken("/data/checkpoints/half", "shards missing: model-00002-of-00004.safetensors"),
)


def _sizes(files: ModelFiles) -> ModelSizes:
    """All but embedding and head is matrices of the layers."""
    outside = 2 * files.spec.vocab * files.spec.hidden
    return replace(sizes_of(files), matrices=max(files.parameters - outside, files.parameters // 2))


def survey_of(*models: Found, device: DeviceInfo | None = DEVICE, problem: str = "") -> Survey:
    """What the dialog finds: `MODELS` unless others are given."""
    found = models or MODELS
    sizes = {item.name: _sizes(item.files) for item in found if item.files is not None}
    return Survey(found, sizes, device, problem)
