"""Whatever a quantised checkpoint's headers, contents and configuration hold: it loads, or is refused in one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import llama, quantised
from support.quantised import KINDS

from lmtop.engine.spec import read_spec
from lmtop.engine.types import ModelError
from lmtop.engine.weights import load_weights

NAMES = sorted(KINDS)
DTYPES = [
    torch.int32,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
]
KEYS = [
    "quant_method",
    "bits",
    "group_size",
    "version",
    "sym",
    "desc_act",
    "checkpoint_format",
    "dynamic",
    "format",
    "config_groups",
    "ignore",
    "weight_block_size",
    "fmt",
    "activation_scheme",
    "packing_format",
    "extra_config",
    "load_in_4bit",
    "quant_algo",
    "sparsity_config",
    "transform_config",
    "pack_dtype",
    "w_bit",
    "q_group_size",
    "backend",
    "data_type",
    "is_marlin_format",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([-1, 0, 1, 4, 8, 32, 64, 128])
    | st.floats()
    | st.sampled_from(["awq", "gptq", "weights", "group", "pack-quantized", "float-quantized"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["group_0", "weights", "num_bits", "group_size"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
ANYTHING = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, of one small layer."""
    folder = tmp_path_factory.mktemp("hostile")
    of = llama.config(hidden=64, inner=64, layers=1, vocab=32, context=64)
    source = llama.write(folder / "plain", of, llama.tensors(of))
    for name in NAMES:
        quantised.write(source, folder / name, KINDS[name])
    return folder


def try_to_load(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    with contextlib.suppress(ModelError):
        files = read_spec(directory)
        load_weights(files, torch.float32, torch.device("cpu"), lambda share, text: None, lambda: False)


def stored(checkpoints: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = json.loads((checkpoints / name / "config.json").read_text())
    return config, load_file(checkpoints / name / "model.safetensors")


@ANYTHING
@given(name=st.sampled_from(NAMES), key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_in_the_configuration(checkpoints: Path, name: str, key: str, value: Any) -> None:
    config, tensors = stored(checkpoints, name)
    config["quantization_config"][key] = value
    try_to_load(checkpoints / "changed", config, tensors)


@ANYTHING
@given(name=st.sampled_from(NAMES), other=st.sampled_from(NAMES), data=st.data())
def test_any_tensor_of_any_shape_and_type(
    checkpoints: Path, name: str, other: str, data: st.DataObject
) -> None:
    """Tensors are dropped, reshaped, cast, filled with other numbers, and mixed with those of another format."""
    config, tensors = stored(checkpoints, name)
    foreign = stored(checkpoints, other)[1]
    for _ in range(data.draw(st.integers(1, 3))):
        some = data.draw(st.sampled_from(sorted({*tensors, *foreign})))
        tensor = tensors.pop(some, foreign.get(some, torch.zeros(1)))
        match data.draw(st.sampled_from(["drop", "shape", "type", "fill", "keep"])):
            case "shape":
                shape = data.draw(st.lists(st.integers(0, 70), max_size=3))
                tensors[some] = torch.zeros(shape, dtype=tensor.dtype)
            case "type":
                tensors[some] = tensor.float().to(data.draw(st.sampled_from(DTYPES)))
            case "fill":
                bytes_ = data.draw(st.integers(0, 255))
                tensors[some] = torch.full_like(tensor.view(-1).view(torch.uint8), bytes_).view(tensor.dtype)
                tensors[some] = tensors[some].view(tensor.shape)
            case "keep":
                tensors[some] = tensor
    try_to_load(checkpoints / "changed", config, tensors)
