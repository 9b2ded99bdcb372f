"""Quantised checkpoints on a GPU: unpacked and computed there, against the CPU's reading of the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import llama, quantised
from support.quantised import KINDS
from support.tiny import checkpoint

from lmtop.engine.config import EngineConfig, resolve
from lmtop.engine.devices import device_info
from lmtop.engine.hardware import open_hardware
from lmtop.engine.loader import sizes_of
from lmtop.engine.model import Decoder
from lmtop.engine.spec import read_spec
from lmtop.engine.weights import Weights, load_weights
from lmtop.kernels import reference
from lmtop.kernels.cuda.ops import Packed

BLOCK = 16
FUSED = ["internlm2", "chatglm2", "qwen2", "phi3"]
CPU = torch.device("cpu")


def plain(directory: Path, hidden: int = 256, inner: int = 416) -> Path:
    of = llama.config(hidden=hidden, inner=inner)
    return llama.write(directory, of, llama.tensors(of))


def on_gpu(directory: Path, dtype: str, weights: str = "auto") -> tuple[Decoder, Weights]:
    files = read_spec(directory)
    config = EngineConfig(
        str(directory), device="cuda", dtype=dtype, weights=weights, cache_max_entry_count=64
    )
    plan = resolve(config, sizes_of(files), device_info("cuda"))
    hardware = open_hardware(config, plan, files, "cuda", lambda share, text: None, lambda: False)
    loaded = load_weights(
        files,
        getattr(torch, plan.dtype),
        hardware.device,
        lambda share, text: None,
        lambda: False,
        hardware.layer,
    )
    if not loaded.plain:  # small matrices are padded to whole tiles
        assert loaded.nbytes == pytest.approx(plan.weights, rel=0.5 if plan.own else 0.03)
    return Decoder(files.spec, loaded, hardware.ops), loaded


def on_cpu(directory: Path) -> Decoder:
    """Computes in float32 with weights that are exact."""
    files = read_spec(directory)
    weights = load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: False)
    return Decoder(files.spec, weights, reference)


def logits_of(decoder: Decoder, device: str, decoded: int = 6) -> torch.Tensor:
    """Of a prompt in two chunks, then token by token; through the kernels for many rows and for few."""
    index = torch.int64 if device == "cpu" else torch.int32
    ids = torch.randint(3, 100, (70,), generator=torch.Generator().manual_seed(4)).to(device)
    cache = decoder.new_cache(12, BLOCK)
    table = torch.tensor([7, 3, 9, 1, 5, 2, 8, 4], dtype=index, device=device)
    prompt = len(ids) - decoded
    parts = [decoder.prefill(ids[:30], 0, table, cache), decoder.prefill(ids[30:prompt], 30, table, cache)]
    for at in range(prompt, len(ids)):
        position = torch.tensor([at], dtype=index, device=device)
        parts.append(decoder.decode(ids[at : at + 1], position, table[None], cache))
    return torch.cat([decoder.logits(part.contiguous()) for part in parts]).cpu()


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 6e-3), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("name", KINDS)
def test_every_format_gives_the_logits_of_the_cpu(
    tmp_path: Path, name: str, dtype: str, bound: float
) -> None:
    directory = quantised.write(plain(tmp_path / "plain"), tmp_path / "q", KINDS[name])
    want = logits_of(on_cpu(directory), "cpu")
    decoder, weights = on_gpu(directory, dtype)
    assert relative(logits_of(decoder, "cuda"), want) <= bound
    for layer in weights.layers:
        assert isinstance(layer.o, Packed) is (
            KINDS[name].kept or name in ("gptq_act_apart", "ct_fp32_scales")
        )
        if "act" in name and isinstance(layer.o, Packed):
            assert layer.o.order is not None


@pytest.mark.parametrize("name", ["awq", "gptq_act", "ct_asym", "nf4"])
@pytest.mark.parametrize("family", FUSED)
def test_fused_and_interleaved_layouts(tmp_path: Path, family: str, name: str) -> None:
    directory = quantised.write(checkpoint(family), tmp_path / "q", KINDS[name])
    want = logits_of(on_cpu(directory), "cpu")
    assert relative(logits_of(on_gpu(directory, "float16")[0], "cuda"), want) <= 6e-3


@pytest.mark.parametrize("name", ["awq", "gptq_act"])
def test_dequantised_on_request(tmp_path: Path, name: str) -> None:
    directory = quantised.write(plain(tmp_path / "plain"), tmp_path / "q", KINDS[name])
    want = logits_of(on_cpu(directory), "cpu")
    decoder, weights = on_gpu(directory, "float16", "16")
    assert isinstance(weights.layers[0].o.weight, torch.Tensor)
    assert relative(logits_of(decoder, "cuda"), want) <= 6e-3


def test_parts_that_differ_within_one_model(tmp_path: Path) -> None:
    skip: Callable[[str], bool] = lambda name: "0.self_attn.k" in name or "1.mlp.down" in name
    directory = quantised.write(plain(tmp_path / "plain"), tmp_path / "q", KINDS["awq"], skip)
    want = logits_of(on_cpu(directory), "cpu")
    decoder, weights = on_gpu(directory, "float16")
    packed = [
        [isinstance(x, Packed) for x in (one.qkv, one.o, one.gate_up, one.down)] for one in weights.layers
    ]
    assert packed == [[False, True, True, True], [True, True, True, False]]
    assert relative(logits_of(decoder, "cuda"), want) <= 6e-3
