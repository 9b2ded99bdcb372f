"""Safetensors files, shards and indexes that lie: cases M5-M12 of the reliability notes, and mutated files."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import llama_dir
from support.llama_dir import refused

from lmtop.engine.spec import read_spec
from lmtop.engine.types import ModelError
from lmtop.engine.weights import load_weights

# --- M5-M9: safetensors ------------------------------------------------------------------------------------


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(dtype: Any = "F32", shape: Any = (2,), span: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"1234567", "not a safetensors file"),
        (b"\0" * 8, "not a safetensors file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git-LFS pointer: fetch the real file",
        ),
        (struct.pack("<Q", 1 << 62), "at most 32 MiB"),
        (struct.pack("<Q", 100 << 20) + b"{}", "at most 32 MiB"),
        (struct.pack("<Q", 20) + b"{}", "file does not match its header"),
        (struct.pack("<Q", 2) + b"{]", "header: not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "header: must be a JSON object"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    directory = llama_dir.write(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(content)
    assert message in refused(directory)


@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_less_or_more(tmp_path: Path, change: int) -> None:
    directory = llama_dir.write(tmp_path / "m")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if change < 0 else path.read_bytes() + b"\0")
    assert "model.safetensors: file does not match its header" in refused(directory)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"bad": entry(span=(8, 0))}, "tensor bad: data_offsets"),
        ({"bad": entry(span=(0, 4))}, "tensor bad: shape [2] of F32 needs 8 bytes, data_offsets give 4"),
        ({"bad": entry(shape=(2**40, 2**40))}, "tensor bad: shape"),
        ({"bad": entry(shape=(2**63,))}, "tensor bad: shape"),
        ({"bad": entry(shape=(-2,))}, "tensor bad: shape"),
        ({"bad": entry(shape=(True, 2))}, "tensor bad: shape"),
        ({"bad": entry(shape="2")}, "tensor bad: shape"),
        ({"bad": entry(dtype="F99")}, "tensor bad: unknown dtype F99"),
        ({"bad": entry(dtype=3)}, "tensor bad: unknown dtype"),
        ({"bad": entry(span=(0,))}, "tensor bad: data_offsets"),
        ({"bad": entry(span=None)}, "tensor bad: data_offsets"),
        ({"bad": [1]}, "tensor bad: must be described"),
        ({"a": entry(), "bad": entry()}, "tensor bad: data_offsets leave a gap or overlap"),
        ({"bad": entry(span=(8, 16))}, "tensor bad: data_offsets leave a gap or overlap"),
        (b'{"bad": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "bad": {}}', "bad is there twice"),
        ({"__metadata__": 3}, "__metadata__ must be an object"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, message: str) -> None:
    directory = llama_dir.write(tmp_path / "m")
    raw_file(directory / "model.safetensors", header, b"\0" * 8)
    assert message in refused(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.weight": None}, "tensors missing: lm_head.weight"),
        ({"model.layers.1.mlp.up_proj.weight": None}, "tensors missing: layers.1.up.weight"),
        (
            {"lm_head.weight": None, "model.norm.weight": None, "x": torch.zeros(1)},
            "claims: x; tensors missing: final_norm.weight, lm_head.weight",
        ),
        ({f"x{i}": torch.zeros(1) for i in range(7)}, "x0, x1, x2, x3, x4 and 2 more (7 in all)"),
        (
            {"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)},
            "claims: model.layers.2.mlp.up_proj.weight",
        ),
        (
            {"model.layers.0.input_layernorm.bias": torch.zeros(32)},
            "claims: model.layers.0.input_layernorm.bias",
        ),
        (
            {"model.layers.0.self_attn.q_norm.weight": torch.zeros(8)},
            "claims: model.layers.0.self_attn.q_norm",
        ),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, "missing: layers.1.q.bias"),
        ({"model.norm.weight": torch.zeros(33)}, "model.norm.weight is [33], expected [32]"),
        (
            {"model.layers.0.self_attn.k_proj.weight": torch.zeros(32, 32)},
            "model.layers.0.self_attn.k_proj.weight is [32, 32], expected [16, 32]",
        ),
        ({"model.layers.0.mlp.gate_proj.weight": torch.zeros(49, 32)}, "is [49, 32], expected [48, 32]"),
        (
            {"model.layers.0.mlp.down_proj.weight": torch.zeros(3)},
            "down_proj.weight is [3], expected [32, 0]",
        ),
        ({"embed_tokens.weight": torch.zeros(64, 32)}, "play the same role"),
        (
            {"model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32, dtype=torch.int8)},
            "q_proj.weight (I8) is quantised, but no quantization_config says how",
        ),
    ],
)
def test_m9_tensors_that_do_not_fit(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    assert message in refused(llama_dir.write(tmp_path / "m", None, change))


# --- M10-M12: index and shards -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "",
        3,
        None,
        "x.bin",
        "a\\b.safetensors",
        "a\0.safetensors",
    ],
)
def test_shard_names_that_leave_the_directory(tmp_path: Path, shard: Any) -> None:
    directory = llama_dir.write(tmp_path / "m")
    os.mkfifo(tmp_path / "x.safetensors")  # opening it would hang
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": shard}})
    )
    assert "shard name must be a plain file name" in refused(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "model.safetensors.index.json: must be a JSON object"),
        ({}, "weight_map: must be an object"),
        ({"weight_map": [1]}, "weight_map: must be an object"),
        ({"weight_map": {"lm_head.weight": "gone.safetensors"}}, "shards missing: gone.safetensors"),
        ({"weight_map": {"ghost.weight": "model.safetensors"}}, "not in the shard it names: ghost.weight"),
    ],
)
def test_index_that_does_not_fit(tmp_path: Path, index: Any, message: str) -> None:
    directory = llama_dir.write(tmp_path / "m")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refused(directory)


def test_special_files_are_refused_without_hanging(tmp_path: Path) -> None:
    directory = llama_dir.write(tmp_path / "m")
    path = directory / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    assert "model.safetensors: not a regular file" in refused(directory)
    path.unlink()
    path.mkdir()
    assert "model.safetensors: not a regular file" in refused(directory)
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert "model.safetensors: not a regular file" in refused(directory)


# --- anything ----------------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from([*llama_dir.CONFIG, "head_dim", "rope_scaling", "sliding_window", "x"]),
    value=JSON_VALUES,
)
def test_any_config_value_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    directory = llama_dir.write(tmp_path_factory.getbasetemp() / "config", {key: value})
    with contextlib.suppress(ModelError):
        loads(directory)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mutated_header_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = llama_dir.write(tmp_path_factory.getbasetemp() / "header")
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(ModelError):
        loads(directory)


def loads(directory: Path) -> None:
    load_weights(read_spec(directory), torch.float32, torch.device("cpu"), lambda a, b: None, lambda: False)
