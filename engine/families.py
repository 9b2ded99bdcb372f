"""Model families as data: what each changes against Llama, and how its checkpoint names its tensors.

Standard library only. Roles (canonical tensor names): `embed`, `final_norm`, `lm_head`, and per layer
`L.<i>.` + `attn_norm`, `q`, `k`, `v` or `qkv`, `o`, `q_norm`, `k_norm`, `mlp_norm`, `gate`, `up` or `gate_up`,
`down`; each with `.weight` or `.bias`. Presence of a tensor decides every bias and the untied head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Deviations from Llama (RMS pre-norm, SwiGLU, rotate-half rope, GQA).

    qkv: row order of a fused attention tensor: `concat` = q|k|v, `group` = per kv head its q heads, k, v.
    window: which layers slide, when the config has a window: `all`, `types` (layer_types), `upper`
    (use_sliding_window, layers >= max_window_layers), `none`. rotary: rotated share of a head where the
    config does not say. eps, window_default: values of keys a config may leave out.
    """

    name: str
    model_types: tuple[str, ...]
    rules: Rules = ()
    qkv: Literal["concat", "group"] = "concat"
    qk_norm: bool = False
    interleaved: bool = False
    window: Literal["none", "all", "types", "upper"] = "none"
    window_default: int | None = None
    rotary: float = 1.0
    eps: float = 1e-6


FAMILIES = (
    Family("Llama", ("llama", "Yi")),
    Family("InternLM", ("internlm",)),
    Family(
        "InternLM2",
        ("internlm2",),
        qkv="group",
        rules=((r"\.w1\.", ".gate."), (r"\.w3\.", ".up."), (r"\.w2\.", ".down.")),
    ),
    Family("InternLM3", ("internlm3",), eps=1e-5),
    Family("Mistral", ("mistral",), window="all", window_default=4096),
    Family("Ministral", ("ministral",), window="types", window_default=4096),
    Family(
        "QWen",
        ("qwen",),
        rules=((r"\.w2\.", ".gate."), (r"\.w1\.", ".up."), (r"\.attn\.c_proj\.", ".o.")),
    ),
    Family("Qwen2", ("qwen2",), window="upper", window_default=4096),
    Family("Qwen3", ("qwen3",), window="upper", window_default=4096, qk_norm=True),
    Family("Baichuan", ("baichuan",)),
    Family(
        "ChatGLM",
        ("chatglm",),
        rules=((r"\.dense_h_to_4h\.", ".gate_up."),),
        interleaved=True,
        rotary=0.5,
        eps=1e-5,
    ),
    Family("GLM-4", ("glm",), interleaved=True, rotary=0.5, eps=1.5625e-07),
    Family("Phi-3", ("phi3",), window="all", eps=1e-5),
    Family("Seed-OSS", ("seed_oss",)),
)

BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}

# What a known architecture needs beyond wave 1, so that its refusal can say so.
LATER = {
    "mixture of experts": "mixtral qwen2_moe qwen3_moe olmoe phimoe granitemoe deepseek gpt_oss ernie4_5_moe dbrx "
    "glm4_moe jamba qwen3_5_moe hunyuan_v1_moe minimax llama4_text",
    "latent attention (MLA)": "deepseek_v2 deepseek_v3 glm4_moe_lite kimi_k2 minicpm3",
    "recurrent or convolutional layers": "qwen3_next qwen3_5_text qwen3_5 lfm2 mamba mamba2 falcon_h1 zamba2",
    "scaled embeddings and offset norms": "gemma gemma2 gemma3_text gemma4_text",
    "LayerNorm or parallel blocks": "falcon RefinedWeb RefinedWebModel phi gpt_neox cohere cohere2 stablelm starcoder2 "
    "gpt2 gptj gpt_bigcode opt bloom",
    "ALiBi positions": "mpt",
    "norms after the blocks": "olmo2 olmo3 exaone4 glm4",
    "layers without rotary": "smollm3",
    "scalar multipliers": "granite minicpm",
    "position-dependent query scale": "ministral3",
    "another MLP or norm order": "arcee apertus hunyuan_v1_dense ernie4_5 nemotron olmo",
    "image or audio input": "llava llava_next deepseek_vl deepseek_vl_hybrid multi_modality qwen2_vl qwen2_5_vl qwen3_vl "
    "phi3_v gemma3 mistral3 internvl_chat internlmxcomposer2 mllama llama4",
}
NEEDS = {model_type: feature for feature, names in LATER.items() for model_type in names.split()}

# --- tensor names ------------------------------------------------------------------------------------------

_COMMON: Rules = (
    (r"^(?:model|transformer)\.", ""),
    (r"^(?:embed_tokens|wte|embedding\.word_embeddings|tok_embeddings)\.", "embed."),
    (r"^(?:norm|ln_f|encoder\.final_layernorm)\.", "final_norm."),
    (r"^(?:output|output_layer)\.", "lm_head."),
    (r"^(?:encoder\.)?(?:layers|h)\.", "L."),
    (r"\.(?:self_attn|self_attention|attention|attn|mlp|feed_forward)\.", "."),
    (r"\.(?:query_key_value|W_pack|qkv_proj|wqkv|c_attn)\.", ".qkv."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.(?:o_proj|dense|wo)\.", ".o."),
    (r"\.gate_up_proj\.", ".gate_up."),
    (r"\.(gate|up|down)_proj\.", r".\1."),
    (r"\.(?:dense_4h_to_h|c_proj)\.", ".down."),
    (r"\.(?:input_layernorm|ln_?1|attention_norm)\.", ".attn_norm."),
    (r"\.(?:post_attention_layernorm|ln_?2|ffn_norm)\.", ".mlp_norm."),
)
# Buffers that old exports carry and that are computed here.
_IGNORED = re.compile(r"\.(?:inv_freq|masked_bias|cos_cached|sin_cached)$|\.attn\.bias$")


def role_of(family: Family, name: str) -> str | None:
    """The role of a checkpoint tensor; None for a buffer to ignore. An unknown name maps to no known role."""
    if _IGNORED.search(name):
        return None
    for pattern, replacement in family.rules + _COMMON:
        name = re.sub(pattern, replacement, name)
    return name


# --- configuration keys ------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys that change no number of the forward pass, or restate what the tensors say.
HARMLESS = _words(
    """
    architectures auto_map model_type transformers_version torch_dtype dtype bf16 fp16 fp32 use_bfloat16
    initializer_range initializer_factor use_cache pretraining_tp attention_bias mlp_bias bias qkv_bias
    attention_out_bias add_qkv_bias add_bias_linear no_bias use_qkv_bias intermediate_size ffn_hidden_size
    hidden_size_per_attention_head attention_softmax_in_fp32 softmax_in_fp32 fp32_residual_connection
    bias_dropout_fusion apply_query_key_layer_scaling attn_implementation _attn_implementation
    _attn_implementation_autoset attn_implementation_internal _flash_attn_2_enabled use_flash_attn use_flash_attention
    use_flash_attention_2 _from_model_config _name_or_path gradient_checkpointing use_gradient_checkpointing onnx_safe
    use_cache_kernel z_loss_weight is_llama_config transformers.js_config unsloth_fixed unsloth_version
    model_max_length tokenizer_class tokenizer_type max_sequence_length max_window_layers name_or_path
    task_specific_params id2label label2id num_labels problem_type finetuning_task return_dict output_attentions
    output_hidden_states output_scores return_dict_in_generate torchscript tf_legacy_loss is_decoder
    chunk_size_feed_forward tie_encoder_decoder attention_dropout hidden_dropout resid_pdrop embd_pdrop
    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty prefix dropout classifier_dropout router_aux_loss_coef
    output_router_logits keys_to_ignore_at_inference use_parallel_embedding train_seq_len pad_vocab_size_multiple
    sep_token chat_format lm_head_bias
    """
)

# Keys that change the numbers: only these values mean what is computed here.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "scale_attn_weights": (True,),
    "use_cache_quantization": (False,),
    "multi_query": (False,),
    "rmsnorm": (True,),
    "post_layer_norm": (True,),
    "apply_residual_connection_post_layernorm": (False,),
    "original_rope": (True,),
    "interleaved_qkv": (False,),
    "pre_seq_len": (0,),
    "quantization_bit": (0,),
    "prefix_projection": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "alibi": (False,),
    "position_embedding_type": ("rope", "rotary"),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "clip_qkv": (),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "no_rope_layers": ([],),
}
