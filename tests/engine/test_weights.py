"""Loading: what the files say is what the decoder gets; faults while reading; progress, cancel, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import llama_dir
from support.tiny import checkpoint

from lmtop.engine.spec import read_spec
from lmtop.engine.types import Cancelled, ModelError
from lmtop.engine.weights import Weights, load_weights

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return load_weights(read_spec(directory), dtype, CPU, lambda share, text: None, lambda: False)


def test_fused_in_our_order(tmp_path: Path) -> None:
    stored = llama_dir.tensors()
    weights = load(llama_dir.write(tmp_path / "m"))
    at = "model.layers.1."
    layer = weights.layers[1]
    qkv = torch.cat([stored[f"{at}self_attn.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(layer.qkv.weight, qkv)
    assert torch.equal(
        layer.gate_up.weight, torch.cat([stored[f"{at}mlp.{x}_proj.weight"] for x in ("gate", "up")])
    )
    assert torch.equal(layer.down.weight, stored[f"{at}mlp.down_proj.weight"])
    assert layer.qkv.bias is None
    assert torch.equal(weights.head.weight, stored["lm_head.weight"])
    assert weights.nbytes == sum(t.nbytes for t in stored.values())


def test_a_bias_stored_for_some_of_q_k_v_is_zero_for_the_rest(tmp_path: Path) -> None:
    biases = {f"model.layers.{i}.self_attn.q_proj.bias": torch.full((32,), 0.5) for i in range(2)}
    bias = load(llama_dir.write(tmp_path / "m", None, biases)).layers[0].qkv.bias
    assert bias is not None
    assert torch.equal(bias, torch.cat((torch.full((32,), 0.5), torch.zeros(32))))


def test_norm_gains_stay_float32(tmp_path: Path) -> None:
    weights = load(llama_dir.write(tmp_path / "m"), torch.bfloat16)
    assert weights.embed.dtype == torch.bfloat16
    assert weights.final_norm.dtype == weights.layers[0].attn_norm.dtype == torch.float32
    assert torch.equal(weights.embed, llama_dir.tensors()["model.embed_tokens.weight"].bfloat16())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes(tmp_path: Path, stored: torch.dtype) -> None:
    changed = {name: tensor.to(stored) for name, tensor in llama_dir.tensors().items()}
    weights = load(llama_dir.write(tmp_path / "m", None, changed))
    assert torch.equal(weights.embed, changed["model.embed_tokens.weight"].float())


@pytest.mark.parametrize(("chunk", "part"), [(300, 4 << 20), (300, 64), (32 << 20, 1000)])
def test_pieces_smaller_than_a_tensor_read_by_several_threads(
    chunk: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(checkpoint("chatglm2"))
    monkeypatch.setattr("lmtop.engine.reading.CHUNK_BYTES", chunk)
    monkeypatch.setattr("lmtop.engine.reading.PART_BYTES", part)
    pieces = load(checkpoint("chatglm2"))
    assert torch.equal(whole.layers[1].qkv.weight, pieces.layers[1].qkv.weight)
    assert torch.equal(whole.layers[1].down.weight, pieces.layers[1].down.weight)
    assert torch.equal(whole.head.weight, pieces.head.weight)


def test_progress_rises_to_one_and_a_cancel_is_seen(tmp_path: Path) -> None:
    files = read_spec(llama_dir.write(tmp_path / "m"))
    told: list[float] = []
    load_weights(files, torch.float32, CPU, lambda share, text: told.append(share), lambda: False)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    asked = iter([False, False, True])
    with pytest.raises(Cancelled):
        load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: next(asked))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_weights_is_told(tmp_path: Path, value: float) -> None:
    """M18."""
    bad = llama_dir.tensors()["model.layers.1.mlp.up_proj.weight"]
    bad[3, 5] = value
    weights = load(llama_dir.write(tmp_path / "m", None, {"model.layers.1.mlp.up_proj.weight": bad}))
    assert weights.notices == ("The weights hold NaN or infinity in model.layers.1.mlp.up_proj.weight.",)
    assert load(llama_dir.write(tmp_path / "n")).notices == ()


@pytest.mark.parametrize("part", [4 << 20, 100])
def test_a_file_cut_after_its_header_was_read(
    tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M19, while loading."""
    monkeypatch.setattr("lmtop.engine.reading.PART_BYTES", part)
    files = read_spec(llama_dir.write(tmp_path / "m"))
    os.truncate(tmp_path / "m" / "model.safetensors", 4000)
    with pytest.raises(ModelError, match="the file became shorter while it was read"):
        load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: False)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read"):
        load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: False)


def test_a_loaded_model_needs_its_files_no_more(tmp_path: Path) -> None:
    """M19, afterwards: nothing is mapped, so cutting the file changes no number and raises no SIGBUS."""
    weights = load(llama_dir.write(tmp_path / "m"))
    os.truncate(tmp_path / "m" / "model.safetensors", 0)
    assert torch.equal(weights.embed, llama_dir.tensors()["model.embed_tokens.weight"])


def test_no_second_copy_of_the_model(tmp_path: Path) -> None:
    """Peak memory of a load is the model and one staging buffer."""
    big = {"vocab_size": 120_000, "hidden_size": 512, "num_attention_heads": 4, "head_dim": 8}
    changed: dict[str, torch.Tensor | None] = {
        name: tensor.new_zeros(
            [*tensor.shape[:-1], 512] if tensor.shape[-1] == 32 and tensor.dim() == 2 else [512]
        )
        for name, tensor in llama_dir.tensors().items()
    }
    for i in range(2):
        changed[f"model.layers.{i}.self_attn.o_proj.weight"] = torch.zeros(512, 32)
        changed[f"model.layers.{i}.mlp.down_proj.weight"] = torch.zeros(512, 48)
    changed |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), torch.zeros(1))
    changed["model.embed_tokens.weight"] = torch.zeros(120_000, 512)
    changed["lm_head.weight"] = torch.zeros(120_000, 512)
    directory = llama_dir.write(tmp_path / "m", big, changed)
    program = (
        "import resource, sys, torch; from pathlib import Path; from lmtop.engine import spec, weights\n"
        "files = spec.read_spec(Path(sys.argv[1])); torch.zeros(8).sum()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "w = weights.load_weights(files, torch.float32, torch.device('cpu'), lambda a, b: None, lambda: False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, w.nbytes // 1024)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    grown, model = map(int, out.stdout.split())
    assert model > 400_000
    assert grown < model + 64 * 1024
