"""What is read from a model directory, and what is refused: cases M1-M4, M12, M13, M20, M21 of the reliability notes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import llama_dir
from support.llama_dir import refused
from support.tiny import LATER, WAVE1, checkpoint

from lmtop.engine.spec import read_spec

# --- what loads --------------------------------------------------------------------------------------------


def test_sizes_from_headers(tmp_path: Path) -> None:
    files = read_spec(llama_dir.write(tmp_path / "m"))
    spec = files.spec
    assert (spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim) == (2, 32, 4, 2, 8)
    assert (spec.vocab, spec.max_position, spec.tied, spec.window) == (64, 128, False, (None, None))
    assert files.family == "llama"
    assert files.parameters == sum(t.numel() for t in llama_dir.tensors().values())
    assert files.stored_bytes == 4 * files.parameters
    assert files.dtype == "float32"
    assert files.widest == 96
    assert files.eos_ids == (2,)
    assert files.notices == ()


def test_eos_is_the_union_of_both_files(tmp_path: Path) -> None:
    directory = llama_dir.write(tmp_path / "m", {"eos_token_id": [2, 9]})
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, 2, 99999]}')
    assert read_spec(directory).eos_ids == (2, 9, 5)


def test_a_bad_eos_in_generation_config_is_named_with_its_file(tmp_path: Path) -> None:
    directory = llama_dir.write(tmp_path / "m")
    (directory / "generation_config.json").write_text('{"eos_token_id": [5, "x"]}')
    assert refused(directory) == 'generation_config.json: eos_token_id: must hold token ids, not "x"'


def test_yi_under_its_first_name_and_its_first_names_of_norms(tmp_path: Path) -> None:
    stored = llama_dir.tensors()
    change: dict[str, torch.Tensor | None] = {}
    for old, new in (("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2")):
        for name in [name for name in stored if old in name]:
            change |= {name: None, name.replace(old, new): stored[name]}
    assert len(change) == 8
    files = read_spec(llama_dir.write(tmp_path / "m", {"model_type": "Yi"}, change))
    assert (files.family, files.spec.layers) == ("llama", 2)


def test_tied_by_absence(tmp_path: Path) -> None:
    without = {"lm_head.weight": None}
    assert read_spec(llama_dir.write(tmp_path / "a", {"tie_word_embeddings": True}, without)).spec.tied
    assert read_spec(llama_dir.write(tmp_path / "b", {"tie_word_embeddings": ...}, without)).spec.tied
    assert not read_spec(llama_dir.write(tmp_path / "c", {"tie_word_embeddings": True})).spec.tied
    assert "lm_head.weight" in refused(llama_dir.write(tmp_path / "d", None, without))


def test_code_of_the_model_is_ignored_with_one_notice(tmp_path: Path) -> None:
    auto = {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "configuration_x.X"}
    directory = llama_dir.write(tmp_path / "m", {"auto_map": auto})
    for name in ("modeling_x.py", "configuration_x.py", "setup.py"):
        (directory / name).write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    assert [n for n in read_spec(directory).notices if "never run" in n]
    assert not (tmp_path / "marker").exists()


def test_ignored_buffers_and_metadata(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.rotary_emb.inv_freq": torch.zeros(4),
    }
    assert read_spec(llama_dir.write(tmp_path / "m", None, extra)).spec.layers == 2


def test_shards_through_symlinks(tmp_path: Path) -> None:
    """M12: what a hub cache looks like."""
    directory = llama_dir.write(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    names = sorted(llama_dir.tensors())
    (tmp_path / "blobs").mkdir()
    weight_map = {}
    for shard, part in enumerate((names[:7], names[7:])):
        name = f"model-0000{shard + 1}-of-00002.safetensors"
        save_file({n: llama_dir.tensors()[n] for n in part}, tmp_path / "blobs" / str(shard))
        (directory / name).symlink_to(tmp_path / "blobs" / str(shard))
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "consolidated.safetensors").write_text("another layout of the same weights: not looked at")
    assert read_spec(directory).parameters == sum(t.numel() for t in llama_dir.tensors().values())
    weight_map["lm_head.weight"] = (
        "model-0000" + ("2" if "1-of" in weight_map["lm_head.weight"] else "1") + "-of-00002.safetensors"
    )
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "lm_head.weight" in refused(directory)


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "a\nb", "x" * 255, "[bold]", b"bad\xff".decode("utf-8", "surrogateescape")]
)
def test_any_directory_name_loads(tmp_path: Path, name: str) -> None:
    """M20."""
    directory = llama_dir.write(tmp_path / name)
    assert read_spec(directory).spec.layers == 2
    (directory / "model.safetensors").unlink()
    refused(directory)


def test_quick(tmp_path: Path) -> None:
    directory = llama_dir.write(tmp_path / "m")
    started = time.thread_time()
    read_spec(directory)
    assert time.thread_time() - started < 0.05


# --- M1, M13, M21: not a model -----------------------------------------------------------------------------


def test_not_a_model_directory(tmp_path: Path) -> None:
    assert "no such model directory" in refused(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    assert "no such model directory" in refused(tmp_path / "file")
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04")
    assert "archives are not accepted; unpack it" in refused(tmp_path / "x.zip")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_named_and_left_alone(tmp_path: Path, name: str) -> None:
    directory = llama_dir.write(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / name)
    assert refused(directory) == "pickle weights are not supported; convert to safetensors"
    (directory / name).unlink()
    assert "no model.safetensors" in refused(directory)


# --- M2-M4: config.json ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: not valid JSON"),
        ("[]", "config.json: must be a JSON object, not list"),
        ('"x"', "must be a JSON object"),
        ("[" * 5000, "config.json: nested too deeply"),
        ('{"a": ' * 5000, "config.json: nested too deeply"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "config.json: not valid JSON"),
        ("\x00", "config.json: not valid JSON"),
        (" " * ((1 << 20) + 1), "at most 1 MiB"),
        ("{}", "config.json: model_type: missing"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_config_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    directory = llama_dir.write(tmp_path / "m")
    (directory / "config.json").write_text(text)
    assert message in refused(directory)


def test_config_in_other_encodings_or_no_file(tmp_path: Path) -> None:
    directory = llama_dir.write(tmp_path / "m")
    (directory / "config.json").write_bytes(b'{"a": "\xff"}')
    assert "config.json: not valid UTF-8" in refused(directory)
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    assert "config.json: not a regular file" in refused(directory)
    (directory / "config.json").rmdir()
    with (directory / "config.json").open("wb") as file:
        file.truncate(200 << 20)
    assert "at most 1 MiB" in refused(directory)


@pytest.mark.parametrize("value", ["64", 0, -1, 1e9, 2**70, float("inf"), float("nan"), 3.5, True, [32], {}])
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "head_dim"]
)
def test_sizes_of_the_wrong_kind(tmp_path: Path, key: str, value: Any) -> None:
    config = {"hidden_size": 32, key: value}
    directory = llama_dir.write(tmp_path / "m", config)
    message = refused(directory)
    low = 16 if key == "max_position_embeddings" else 1
    assert message.startswith(f"config.json: {key}: must be an integer from {low} to ")
    assert message.endswith(', not "64"') == (value == "64")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_position_embeddings": 1}, "max_position_embeddings: must be an integer from 16 to"),
        ({"max_position_embeddings": 16}, None),
        ({"eos_token_id": [2, "x"]}, 'config.json: eos_token_id: must hold token ids, not "x"'),
        ({"eos_token_id": 10**12}, "config.json: eos_token_id: must hold token ids, not 1000000000000"),
        ({"eos_token_id": True}, "eos_token_id: must hold token ids, not True"),
        ({"eos_token_id": [[2]]}, "eos_token_id: must hold token ids, not [2]"),
        ({"eos_token_id": None}, None),
        ({"rms_norm_eps": ""}, 'rms_norm_eps: must be a number above 0 and at most 1, not ""'),
        ({"hidden_size": ...}, "config.json: hidden_size or d_model: missing"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 heads do not divide hidden_size 32"),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads: 3 key-value heads do not divide num_attention_heads 4",
        ),
        ({"vocab_size": 65}, "vocab_size: 65, but model.embed_tokens.weight has 64 rows"),
        ({"hidden_act": "gelu"}, 'hidden_act: "gelu" is not supported'),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: must be a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: must be a number above 0"),
        ({"frobnication": float("nan")}, "not understood: frobnication"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: must be a number above 0"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: must be true or false"),
        ({"rope_scaling": [1]}, "rope_scaling: must be an object"),
        ({"rope_scaling": {"type": "magic", "factor": 2}}, 'rope_type: "magic" is not supported'),
        ({"rope_scaling": {"type": "linear"}}, "factor: missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor: must be a number above 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "wobble": 2}}, "not understood: wobble"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "a list of 4 numbers",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "not understood: full_attention"),
        ({"partial_rotary_factor": 0.1}, "partial_rotary_factor: rotates 0 of 8"),
        ({"sliding_window": 16}, "sliding_window: not supported for Llama"),
        ({"quantization_config": {"quant_method": "eetq"}}, "quantization_config: eetq weights are not"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 2}, "not understood: layer_types"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types: must be a list of 2"),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "conv"]},
            'layer_types: "conv" is not supported',
        ),
        ({"spec_overrides": {"norm": "ln"}}, None),
        ({"spec_overrides": {"softcap": 30.0}}, "not understood: softcap"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0 changes the numbers"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier: 12.0 changes the numbers"),
        ({"rope_interleaved": True}, "rope_interleaved: True changes the numbers"),
        ({"frobnication": 0.5}, "config.json: not understood: frobnication"),
        ({"frobnicate": False}, "not understood: frobnicate"),
        ({"frob": [1]}, "not understood: frob"),
        ({"x\x1b[2J": {"a": 1}}, "not understood: x"),
        ({f"k{i}": i for i in range(9)}, "k0, k1, k2, k3, k4 and 4 more (9 in all)"),
        ({"frobnication": None, "comment": "any text"}, None),
        ({"pretraining_tp": 4, "attention_dropout": 0.1, "new_token_id": 5, "mlp_bias": False}, None),
    ],
)
def test_check_03_config_keys_that_change_numbers(
    tmp_path: Path, config: dict[str, Any], message: str | None
) -> None:
    directory = llama_dir.write(tmp_path / "m", config)
    if message is None:
        assert read_spec(directory).spec.layers == 2
    else:
        assert message in refused(directory)


@pytest.mark.parametrize(
    ("model_type", "feature"),
    [
        ("mixtral", "mixture of experts"),
        ("gemma2", "offset norms"),
        ("deepseek_v3", "MLA"),
        ("glm4", "norms"),
        ("x", ""),
    ],
)
def test_other_architectures_are_named_with_what_they_need(
    tmp_path: Path, model_type: str, feature: str
) -> None:
    message = refused(llama_dir.write(tmp_path / "m", {"model_type": model_type}))
    assert message.startswith(f"architecture {model_type} not supported")
    assert feature in message
    assert "; supported: baichuan, chatglm, glm, internlm" in message


@pytest.mark.parametrize("name", LATER)
def test_later_families_are_refused(name: str) -> None:
    assert "not supported" in refused(checkpoint(name))


@pytest.mark.parametrize("style", ["v5", "hub"])
@pytest.mark.parametrize("name", WAVE1)
def test_check_03_an_unknown_tensor_is_refused_in_every_family(tmp_path: Path, name: str, style: str) -> None:
    source = checkpoint(name, 0, style)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    assert read_spec(tmp_path).parameters > 0
    save_file({"model.layers.0.self_attn.sinks": torch.zeros(4)}, tmp_path / "extra")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (tmp_path / "model.safetensors").rename(tmp_path / first)
    (tmp_path / "extra").rename(tmp_path / second)
    assert "model.layers.0.self_attn.sinks" in refused(tmp_path)
