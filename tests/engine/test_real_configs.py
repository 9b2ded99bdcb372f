"""config.json files as the model hubs serve them (written from memory of their keys, not copied): each must be
understood completely, and mean what the family means."""

from __future__ import annotations

from typing import Any

import pytest

from lmtop.engine.spec import Spec, interpret
from lmtop.engine.types import ModelError

COMMON = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}
LLAMA = COMMON | {
    "_name_or_path": "somewhere/else",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2 = LLAMA | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "use_mrope": False,
    "vocab_size": 152064,
}
PHI3 = LLAMA | {
    "architectures": ["Phi3ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "model_type": "phi3",
    "hidden_size": 3072,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "pad_token_id": 32000,
    "vocab_size": 32064,
}
CHATGLM = COMMON | {
    "_name_or_path": "THUDM/x",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "classifier_dropout": None,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "interleaved_qkv": False,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "pre_seq_len": None,
    "prefix_projection": False,
    "quantization_bit": 0,
    "rmsnorm": True,
    "seq_length": 32768,
    "tie_word_embeddings": False,
}
INTERNLM = LLAMA | {
    "architectures": ["InternLMForCausalLM"],
    "auto_map": {"AutoModel": "modeling_internlm.InternLMForCausalLM"},
    "model_type": "internlm",
    "bias": True,
    "pad_token_id": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "vocab_size": 103168,
}
BAICHUAN = COMMON | {
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig"},
    "model_type": "baichuan",
    "_from_model_config": True,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_max_length": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "tokenizer_class": "BaichuanTokenizer",
    "z_loss_weight": 0,
    "vocab_size": 125696,
}
QWEN1 = COMMON | {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
    "model_type": "qwen",
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": False,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 32768,
    "no_bias": True,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 8192,
    "softmax_in_fp32": False,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "use_cache_kernel": False,
    "use_cache_quantization": False,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": 151936,
}
LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LONG = {"short_factor": [1.05] * 48, "long_factor": [1.5] * 48}

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama 1": (LLAMA | {"max_sequence_length": 2048, "pad_token_id": -1}, {"kv_heads": 32, "head_dim": 128}),
    "llama 2": (LLAMA | {"pad_token_id": 0}, {"max_position": 4096}),
    "llama 3.2 1b": (
        LLAMA
        | {
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_size": 2048,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_key_value_heads": 8,
            "rope_scaling": LLAMA3_ROPE,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        {"head_dim": 64, "kv_heads": 8, "max_position": 131072},
    ),
    "code llama": (
        LLAMA | {"max_position_embeddings": 16384, "rope_theta": 1000000},
        {"max_position": 16384},
    ),
    "vicuna 16k": (
        LLAMA | {"max_sequence_length": 16384, "rope_scaling": {"factor": 4.0, "type": "linear"}},
        {"max_position": 16384},
    ),
    "deepseek coder": (
        LLAMA
        | {
            "max_position_embeddings": 16384,
            "rope_theta": 100000,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
        {"max_position": 16384},
    ),
    "smollm2": (
        LLAMA
        | {
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "tie_word_embeddings": True,
        },
        {},
    ),
    "mistral 0.1": (
        LLAMA | {"model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 4096},
        {"window": (4096,) * 32},
    ),
    "mistral 0.3": (LLAMA | {"model_type": "mistral", "sliding_window": None}, {"window": (None,) * 32}),
    "mistral without the key": (LLAMA | {"model_type": "mistral"}, {"window": (4096,) * 32}),
    "internlm 7b": (INTERNLM, {"max_position": 2048}),
    "internlm 20b": (
        INTERNLM | {"bias": False, "rotary": {"base": 10000, "type": "dynamic"}},
        {"max_position": 2048},
    ),
    "internlm2": (
        INTERNLM
        | {
            "model_type": "internlm2",
            "attn_implementation": "eager",
            "max_position_embeddings": 32768,
            "num_key_value_heads": 8,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": 1000000,
        },
        {"max_position": 65536, "kv_heads": 8},
    ),
    "internlm3": (
        LLAMA
        | {
            "model_type": "internlm3",
            "bias": False,
            "qkv_bias": False,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 2,
            "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
            "rope_theta": 50000000,
        },
        {"kv_heads": 2},
    ),
    "qwen v1": (QWEN1, {"max_position": 8192, "eps": 1e-6}),
    "qwen2.5": (QWEN2, {"window": (None,) * 28}),
    "qwen2 with a window": (
        QWEN2 | {"use_sliding_window": True, "max_window_layers": 21},
        {"window": (None,) * 21 + (131072,) * 7},
    ),
    "qwen2.5 yarn": (
        QWEN2 | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
        {"max_position": 131072},
    ),
    "qwen2.5 1m": (
        QWEN2
        | {
            "max_position_embeddings": 1010000,
            "dual_chunk_attention_config": {
                "chunk_size": 262144,
                "local_size": 8192,
                "original_max_position_embeddings": 262144,
            },
        },
        {"max_position": 262144},
    ),
    "qwen3": (QWEN2 | {"model_type": "qwen3", "head_dim": 128, "sliding_window": None}, {"qk_norm": True}),
    "baichuan 7b": (BAICHUAN | {"vocab_size": 64000}, {"norm_head": False}),
    "baichuan2 7b": (BAICHUAN, {"norm_head": True}),
    "chatglm2": (CHATGLM, {"kv_heads": 2, "max_position": 32768, "layers": 28}),
    "glm-4-9b": (
        CHATGLM
        | {"num_hidden_layers": 40, "num_layers": 40, "rope_ratio": 500, "layernorm_epsilon": 1.5625e-07},
        {"eps": 1.5625e-07, "layers": 40},
    ),
    "glm-4-9b-hf": (
        LLAMA | {"model_type": "glm", "attention_bias": True, "head_dim": 128, "partial_rotary_factor": 0.5},
        {"head_dim": 128},
    ),
    "phi-3 4k": (PHI3, {"window": (2047,) * 32}),
    "phi-3 128k": (
        PHI3
        | {
            "max_position_embeddings": 131072,
            "rope_scaling": {**LONG, "type": "su"},
            "sliding_window": 262144,
        },
        {"max_position": 131072},
    ),
    "phi-4-mini": (
        PHI3
        | {
            "max_position_embeddings": 131072,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {**LONG, "type": "longrope"},
            "interpolate_factor": None,
            "lm_head_bias": False,
            "full_attn_mod": 1,
            "mlp_bias": False,
        },
        {"head_dim": 128, "kv_heads": 8},
    ),
    "seed-oss": (
        LLAMA
        | {"model_type": "seed_oss", "attention_out_bias": False, "head_dim": 128, "residual_dropout": 0.1},
        {"head_dim": 128},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_understood(name: str) -> None:
    config, expected = CONFIGS[name]
    spec: Spec = interpret(config).spec
    assert {key: getattr(spec, key) for key in expected} == expected


def test_details() -> None:
    spec = interpret(CONFIGS["glm-4-9b"][0]).spec
    assert (spec.rope.theta, spec.rope.dim) == (5e6, 64)
    assert interpret(CONFIGS["glm-4-9b-hf"][0]).spec.rope.dim == 64
    assert interpret(CONFIGS["phi-4-mini"][0]).spec.rope.dim == 96
    assert interpret(CONFIGS["phi-3 128k"][0]).spec.rope.attention_factor == pytest.approx(1.190238)
    assert interpret(CONFIGS["llama 3.2 1b"][0]).eos_ids == (128001, 128008, 128009)
    assert any("8,192" in notice for notice in interpret(QWEN1).notices)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BAICHUAN | {"num_hidden_layers": 40, "num_attention_heads": 40, "hidden_size": 5120},
            "alibi positions",
        ),
        (CHATGLM | {"post_layer_norm": False}, "post_layer_norm: False changes the numbers"),
        (CHATGLM | {"quantization_bit": 4}, "quantization_bit: 4 changes the numbers"),
        (CHATGLM | {"pre_seq_len": 128}, "pre_seq_len: 128 changes the numbers"),
        (QWEN1 | {"scale_attn_weights": False}, "scale_attn_weights: False changes the numbers"),
        (LLAMA | {"model_type": "gemma"}, "architecture gemma not supported"),
    ],
)
def test_neighbours_that_compute_otherwise(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message.split(":")[0]):
        interpret(config)
