"""`lmtop kernels` compiles what the wrappers will ask for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lmtop.kernels import catalog, nvrtc
from lmtop.kernels.cuda import attn_decode, gemm, matvec, ops

# heads, key-value heads, head size, hidden, MLP width, vocabulary
LLAMA_8B = (32, 8, 128, 4096, 14336, 128256)
INTERNLM2_1_8B = (16, 8, 128, 2048, 8192, 92544)
QWEN3_0_6B = (16, 8, 128, 1024, 3072, 151936)
QWEN2_0_5B = (14, 2, 64, 896, 4864, 151936)
PHI_3_MINI = (32, 32, 96, 3072, 8192, 32064)
DEMO = (8, 2, 64, 256, 768, 4096)


def shape(
    model: tuple[int, ...], dtype: torch.dtype, kv: str, packed: bool, qk_norm: bool = False
) -> ops.Shape:
    heads, kv_heads, dim, hidden, width, vocab = model
    group = 128 if packed else 0
    return ops.Shape(
        dtype=dtype,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        rope_dim=dim,
        qk_norm=qk_norm,
        windows=(None,),
        matrices=(
            ops.Matrix((heads + 2 * kv_heads) * dim, hidden, group),
            ops.Matrix(hidden, heads * dim, group),
            ops.Matrix(2 * width, hidden, group, True),
            ops.Matrix(hidden, width, group),
            ops.Matrix(vocab, hidden, group),
        ),
        kv=kv,
        block_size=64,
        batches=(1, 2, 4, 8, 16, 32, 64),
        capacity=8192,
    )


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """What the wrappers read of an H200."""
    facts = SimpleNamespace(
        name="NVIDIA H200",
        major=9,
        minor=0,
        multi_processor_count=132,
        shared_memory_per_multiprocessor=228 << 10,
        shared_memory_per_block_optin=227 << 10,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for cached in (matvec._device, gemm.device_of):
        cached.cache_clear()
    for name in ("_processors", "_major"):
        monkeypatch.setattr(attn_decode, name, lambda device, name=name: 132 if name == "_processors" else 9)
    return torch.device("meta")


@pytest.mark.parametrize("model", [LLAMA_8B, INTERNLM2_1_8B, QWEN2_0_5B, PHI_3_MINI, DEMO])
@pytest.mark.parametrize("kv", ["16", "int8", "int4"])
def test_the_catalogue_has_what_models_ask_for(hopper: torch.device, model: tuple[int, ...], kv: str) -> None:
    listed = set(catalog.units("90a"))
    for dtype in (torch.float16, torch.bfloat16):
        for packed in (False, True):
            wanted = set(ops.units(shape(model, dtype, kv, packed), hopper))
            assert not {str(item) for item in wanted - listed}


def test_the_catalogue_has_normed_heads(hopper: torch.device) -> None:
    wanted = set(ops.units(shape(QWEN3_0_6B, torch.float16, "16", False, qk_norm=True), hopper))
    assert not {str(item) for item in wanted - set(catalog.units("90a"))}


def test_the_catalogue_names_every_source_and_no_unit_twice() -> None:
    listed = {arch: catalog.units(arch) for arch in nvrtc.ARCHITECTURES}
    assert {item.source for units in listed.values() for item in units} == {
        path.name for path in nvrtc.SOURCES.glob("*.cu")
    }
    assert all(len(units) == len(set(units)) for units in listed.values())
    assert not [item for item in listed["75"] if ("DTYPE_BF16", "1") in item.defines]


def test_a_chip_that_is_not_listed_is_taken_for_the_nearest_older_one() -> None:
    assert catalog.units("87") == catalog.units("86")
    assert set(catalog.units("121")) == set(catalog.units("120"))
