"""What a decoder is: `Spec`, every choice that changes a number, and how config.json tells it.

Standard library only. Two generations of files are read: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` (before), besides the keys of the families' original code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .families import FAMILIES, Family
from .hfconfig import ConfigReader, quoted, shown
from .types import ModelError

MIN_CONTEXT = 16  # tokens; a shorter one holds no question and answer
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: the first `dim` numbers of a head are rotated, in the rotate-half order.

    original: the length before stretching (dynamic: where stretching begins). attention_factor multiplies cos
    and sin. `dynamic` and `longrope` choose frequencies by length, see `engine.rope`. Formulas:
    transformers/modeling_rope_utils.py.
    """

    dim: int
    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original: int = 0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def salt(self, prompt_len: int) -> int:
        """What besides tokens decides the cached keys of a prompt of this length: part of a prefix-cache key.

        0 unless frequencies depend on the length (see `engine.rope`)."""
        if self.kind not in ("dynamic", "longrope") or prompt_len <= self.original:
            return 0
        return prompt_len if self.kind == "dynamic" else 1

    def regime(self, length: int) -> int:
        """Which set of frequencies all keys of a sequence of this length have. When it changes while a reply
        grows, everything is computed anew (see `engine.rope`)."""
        return int(self.kind == "longrope" and length > self.original)


@dataclass(frozen=True, slots=True)
class Spec:
    """One decoder: RMS pre-norm blocks, rotary GQA attention, SwiGLU. Sizes in elements, lengths in tokens.

    window[i]: key j is visible to query i only if i - j < window; None is all. qk_norm: RMS over each head
    of q and k before rotary. tied: logits use the embedding. norm_head: rows of the head are normalised.
    max_position: the context the model was made for.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    max_position: int
    rope: Rope
    window: tuple[int | None, ...]
    attn_scale: float
    qk_norm: bool = False
    tied: bool = False
    norm_head: bool = False


def refuse(architecture: str, why: str) -> ModelError:
    names = (model_type for family in FAMILIES for model_type in family.model_types)
    supported = ", ".join(sorted(names, key=str.casefold))
    return ModelError(f"architecture {shown(architecture)} not supported{why}; supported: {supported}")


def spec_from_config(reader: ConfigReader, family: Family, notices: list[str]) -> Spec:
    """The spec as far as the config tells; `tied` is left to the tensors. Appends what the user should know."""
    layers = reader.integer("num_hidden_layers", "n_layers", "num_layers", high=1024)
    hidden = reader.integer("hidden_size", "d_model", high=1 << 17)
    heads = reader.integer("num_attention_heads", "n_heads", high=4096)
    head_dim = _head_dim(reader, hidden, heads)
    kv_heads = _kv_heads(reader, heads)
    act = reader.string("hidden_act", "activation_function", default="silu")
    if act not in ("silu", "swish"):
        reader.fail("hidden_act", f"{quoted(act)} is not supported; only silu is")
    norm_head = _size_rules(reader, family, layers)
    lengths: tuple[str, ...] = ("max_position_embeddings", "max_seq_len", "seq_length", "model_max_length")
    if family.name == "QWen":
        lengths = ("seq_length", *lengths)
    max_position = reader.integer(*lengths, default=2048, low=MIN_CONTEXT)
    rope = _rope(reader, family, head_dim, max_position)
    return Spec(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=reader.integer("vocab_size", "padded_vocab_size"),
        eps=reader.number(
            "rms_norm_eps",
            "layer_norm_epsilon",
            "layernorm_epsilon",
            "norm_eps",
            default=family.eps,
            high=1.0,
        ),
        max_position=_context(reader, family, rope, max_position, notices),
        rope=rope,
        window=_windows(reader, family, layers),
        attn_scale=head_dim**-0.5,
        qk_norm=family.qk_norm,
        norm_head=norm_head,
    )


def _head_dim(reader: ConfigReader, hidden: int, heads: int) -> int:
    if reader.raw("head_dim", "kv_channels")[1] is None and hidden % heads:
        reader.fail("num_attention_heads", f"{heads} heads do not divide hidden_size {hidden}")
    return reader.integer("head_dim", "kv_channels", default=hidden // heads, high=1024)


def _kv_heads(reader: ConfigReader, heads: int) -> int:
    keys = ["num_key_value_heads", "num_kv_heads"]
    if reader.boolean("multi_query_attention"):
        keys.append("multi_query_group_num")
    else:
        reader.raw("multi_query_group_num")
    kv_heads = reader.integer(*keys, default=heads, high=4096)
    if heads % kv_heads:
        reader.fail(keys[0], f"{kv_heads} key-value heads do not divide num_attention_heads {heads}")
    return kv_heads


def _size_rules(reader: ConfigReader, family: Family, layers: int) -> bool:
    """Is the head normalised? Baichuan tells its variants by sizes alone: 40 layers use ALiBi, the vocabulary of
    version 2 comes with NormHead. `spec_overrides` says the same for a checkpoint of other sizes."""
    overrides = reader.mapping("spec_overrides") or {}
    choice = ConfigReader(overrides, "config.json: spec_overrides")
    baichuan = family.name == "Baichuan"
    position = choice.string("pos", default="alibi" if baichuan and layers == 40 else "rope")
    norm_head = choice.boolean("norm_head", baichuan and reader.raw("vocab_size")[1] == 125696)
    choice.audit((), {})
    if position != "rope":
        raise refuse(
            family.model_types[0], f" with {shown(position, 20)} positions (the 13B sizes of Baichuan)"
        )
    return norm_head


def _windows(reader: ConfigReader, family: Family, layers: int) -> tuple[int | None, ...]:
    none: tuple[int | None, ...] = (None,) * layers
    if family.window == "none":
        if reader.raw("sliding_window")[1] is not None and reader.boolean("use_sliding_window", True):
            reader.fail("sliding_window", f"not supported for {family.name}")
        return none
    size: int | None = None
    if reader.has("sliding_window") or family.window_default is None:
        if reader.raw("sliding_window")[1] is not None:
            size = reader.integer("sliding_window")
    else:
        size = family.window_default
    if family.window == "upper":
        first = reader.integer("max_window_layers", default=28, low=0)
        size = size if reader.boolean("use_sliding_window") else None
        types = tuple("sliding_attention" if i >= first else "full_attention" for i in range(layers))
    else:
        types = ("sliding_attention",) * layers
    if family.window in ("types", "upper"):
        types = _layer_types(reader, layers, types)
    return tuple(size if kind == "sliding_attention" else None for kind in types)


def _layer_types(reader: ConfigReader, layers: int, default: tuple[str, ...]) -> tuple[str, ...]:
    _, value = reader.raw("layer_types")
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != layers:
        reader.fail("layer_types", f"must be a list of {layers}")
    for kind in value:
        if kind not in ("sliding_attention", "full_attention"):
            reader.fail("layer_types", f"{quoted(kind, 40)} is not supported")
    return tuple(value)


_ROPE_KINDS: dict[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
    "origin": "default",
}
_ROPE_KEYS = [
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
]


def _rope(reader: ConfigReader, family: Family, head_dim: int, max_position: int) -> Rope:
    where, stored = "rope_parameters", reader.mapping("rope_parameters", "rope_scaling")
    if family.name == "InternLM" and (rotary := reader.mapping("rotary")) is not None:
        where = "rotary"
        stored = {"factor": 1.0, **rotary}
        stored["rope_theta"] = stored.pop("base", None)
        stored["factor"] = stored.pop("scaling_factor", stored["factor"])
    inner = ConfigReader(stored or {}, f"config.json: {where}")
    name = inner.string("rope_type", "type", default="default")
    if name not in _ROPE_KINDS:
        inner.fail("rope_type", f"{quoted(name, 40)} is not supported")
    kind = _ROPE_KINDS[name]
    theta = inner.number(
        "rope_theta", default=reader.number("rope_theta", "rotary_emb_base", default=10000.0)
    )
    if family.name == "ChatGLM":
        theta *= reader.number("rope_ratio", default=1.0)
    share = inner.number(
        "partial_rotary_factor",
        default=reader.number("partial_rotary_factor", "rotary_pct", default=family.rotary, high=1.0),
        high=1.0,
    )
    dim = int(head_dim * share)
    if dim < 4 or dim % 2:
        reader.fail("partial_rotary_factor", f"rotates {dim} of {head_dim} numbers; an even count is needed")
    outer = reader.integer("original_max_position_embeddings", default=max_position)
    original = inner.integer("original_max_position_embeddings", default=outer)
    if reader.raw("original_max_position_embeddings")[1] is not None:
        original = outer  # Phi-3 keeps the true one there
    inner.raw(*_ROPE_KEYS)
    inner.audit(("finetuned",), {"short_mscale": (1,), "long_mscale": (1,)})
    return _stretched(inner, kind, dim, theta, original, max_position)


def _stretched(
    inner: ConfigReader, kind: RopeKind, dim: int, theta: float, original: int, length: int
) -> Rope:
    """The parameters of each kind; `length` is max_position_embeddings."""
    if kind == "default":
        return Rope(dim, theta)
    if kind in ("linear", "dynamic"):
        return Rope(dim, theta, kind, inner.number("factor"), length)
    if kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if low >= high:
            inner.fail("high_freq_factor", f"{high:g} must be above low_freq_factor {low:g}")
        factor = inner.number("factor")
        return Rope(dim, theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    factor = inner.number("factor", default=length / original)
    if kind == "yarn":
        if theta <= 1:
            inner.fail("rope_theta", "must be above 1 for yarn")
        return Rope(
            dim,
            theta,
            kind,
            factor,
            original,
            attention_factor=inner.number("attention_factor", default=_yarn_attention(inner, factor)),
            beta_fast=inner.number("beta_fast", default=32.0),
            beta_slow=inner.number("beta_slow", default=1.0),
            truncate=inner.boolean("truncate", True),
        )
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return Rope(
        dim,
        theta,
        kind,
        factor,
        original,
        attention_factor=inner.number("attention_factor", default=attention),
        short_factor=inner.numbers("short_factor", dim // 2),
        long_factor=inner.numbers("long_factor", dim // 2),
    )


def _yarn_attention(inner: ConfigReader, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    upper, lower = (inner.number(key, default=0.0, low=-1.0) for key in ("mscale", "mscale_all_dim"))
    return mscale(upper) / mscale(lower) if upper and lower else mscale(1.0)


def _context(reader: ConfigReader, family: Family, rope: Rope, length: int, notices: list[str]) -> int:
    """The context the model was made for, in tokens. `length`: the config's own figure before stretching."""
    if family.name == "QWen":
        for key in ("use_dynamic_ntk", "use_logn_attn"):
            reader.boolean(key)  # both act beyond seq_length only
        if reader.integer("max_position_embeddings", default=length) > length:
            notices.append(
                f"QWen v1: the context ends at {length:,} tokens; its longer mode is not supported."
            )
    elif rope.kind == "dynamic":
        length = max(length, int(length * rope.factor))
    elif rope.kind == "yarn":
        length = max(length, int(rope.original * rope.factor))
    elif rope.kind == "linear":
        length = max(length, reader.integer("max_sequence_length", default=length))
    chunked = reader.mapping("dual_chunk_attention_config")
    if chunked is not None:
        inner = ConfigReader(chunked, "config.json: dual_chunk_attention_config")
        chunk = inner.integer("original_max_position_embeddings", "chunk_size", low=MIN_CONTEXT)
        length = min(length, chunk)
        notices.append(f"The context ends at {length:,} tokens; dual chunk attention is not supported.")
    return length
