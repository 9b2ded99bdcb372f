"""Which role each stored tensor plays, and the check that roles, shapes and dtypes are those of the spec."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..quant import formats
from ..quant.formats import FormatError, Packed, Scheme
from ..quant.formats_headers import recognise
from .architecture import Spec
from .checkpoint import StoredTensor
from .families import Family, role_of
from .hfconfig import name_some, shown
from .types import ModelError

_ROLE = re.compile(r"(?:L\.(0|[1-9]\d{0,3})\.)?(\w+)\.([\w.]+)")
# Scales of a quantised KV cache, beside the attention's linear layers; the cache here has its own.
_CACHE_SCALE = re.compile(r"L\.\d+\.(?:[qkv]|kv|prob)_scale")
_LAYER_ROLES = frozenset(
    ["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "attn_norm", "mlp_norm"]
)
_GLOBAL_ROLES = frozenset(["embed", "final_norm", "lm_head"])
_WITH_BIAS = frozenset(["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "lm_head"])


# Roles whose matrices the decoder keeps as one.
FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
_MATRICES = frozenset([*FUSED, "qkv", "o", "gate_up", "down", "lm_head", "embed"])
_BESIDE = frozenset(["weight", "bias", *formats.IGNORED])  # tensors that a plain linear layer may have


@dataclass(frozen=True, slots=True)
class Placed:
    """What is stored and its place: `layer` is -1 outside the blocks, `role` as in `engine.families`, `part`
    is "weight" or "bias". A quantised matrix has several tensors, `parts` by their last name, and `packed` says how
    they are read; `tensor` is the largest of them."""

    tensor: StoredTensor
    layer: int
    role: str
    part: str
    packed: Packed | None = None
    parts: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight or bias itself, however it is stored."""
        return self.tensor.shape if self.packed is None else (self.packed.rows, self.packed.columns)

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(self.parts.values()) if self.packed is not None else (self.tensor,)


def assign_roles(
    spec: Spec,
    family: Family,
    tensors: Iterable[StoredTensor],
    tie: bool | None,
    scheme: Scheme | None = None,
) -> tuple[tuple[Placed, ...], Spec]:
    """Place every tensor; returns the places in file order and the spec with `tied` decided. `scheme` is what the
    configuration says of quantised weights.

    A head in the files is used whatever the config says, since old remote classes store `tie_word_embeddings`
    without meaning it; without one the embedding serves, unless `tie` is False. Raises ModelError for tensors
    that nobody claims, that are missing, or whose shape or dtype is not the spec's.
    """
    layers, unclaimed = _by_layer(spec, family, tensors)
    widths = _widths(spec, layers)
    placed: list[Placed] = []
    for (layer, role), parts in layers.items():
        if _quantised(role, parts):
            placed.append(_packed_place(spec, layer, role, parts, widths.get(layer, 0), scheme))
        elif "weight" in parts:
            placed.append(_plain_place(layer, role, "weight", parts))
            unclaimed += [tensor.name for part, tensor in parts.items() if part not in _BESIDE]
        if "bias" in parts:
            placed.append(_plain_place(layer, role, "bias", parts))
    taken = {(place.layer, place.role, place.part) for place in placed}
    tied = (-1, "lm_head", "weight") not in taken and tie is not False
    missing = _missing(spec, taken, tied)
    problems = []
    if unclaimed:
        problems.append(
            f"tensors that nothing in the {family.name} architecture claims: {name_some(unclaimed)}"
        )
    if missing:
        problems.append(f"tensors missing: {name_some(missing)}")
    if problems:
        raise ModelError("; ".join(problems))
    _check_shapes(spec, placed)
    return tuple(placed), replace(spec, tied=tied)


_Layers = dict[tuple[int, str], dict[str, StoredTensor]]


def _by_layer(spec: Spec, family: Family, tensors: Iterable[StoredTensor]) -> tuple[_Layers, list[str]]:
    """The tensors of each (layer, role) by their last name, in file order, and the names that nobody claims."""
    layers: _Layers = {}
    unclaimed = []
    for tensor in tensors:
        name = role_of(family, tensor.name)
        if name is None or _CACHE_SCALE.fullmatch(name):
            continue
        key = _key(spec, name)
        if key is None:
            unclaimed.append(tensor.name)
            continue
        layer, role, part = key
        parts = layers.setdefault((layer, role), {})
        if part in parts:
            raise ModelError(f"tensors {shown(parts[part].name)} and {shown(tensor.name)} play the same role")
        parts[part] = tensor
    return layers, unclaimed


def _key(spec: Spec, name: str) -> tuple[int, str, str] | None:
    """(layer, role, part) of a canonical name; None for one that the spec has no place for."""
    match = _ROLE.fullmatch(name)
    if match is None:
        return None
    layer, role, part = match[1], match[2], match[3]
    allowed = _GLOBAL_ROLES if layer is None else _LAYER_ROLES
    if layer is not None and spec.qk_norm:
        allowed |= {"q_norm", "k_norm"}
    beyond = layer is not None and int(layer) >= spec.layers
    known = part == "weight" or (part == "bias" and role in _WITH_BIAS)
    known |= part != "bias" and role in _MATRICES and formats.is_part(part)
    if role not in allowed or beyond or not known:
        return None
    return -1 if layer is None else int(layer), role, part


def _widths(spec: Spec, layers: _Layers) -> dict[int, int]:
    """Each layer's MLP width: the inputs of a plain down projection, else the outputs of what comes before it."""
    widths: dict[int, int] = {}
    for (layer, role), parts in layers.items():
        plain = parts.get("weight")
        if role == "down" and plain and not formats.is_quantised(parts) and len(plain.shape) == 2:
            widths[layer] = plain.shape[1]
        elif role in ("gate", "up", "gate_up"):
            rows = formats.outputs(parts, spec.hidden)
            widths.setdefault(layer, rows // 2 if role == "gate_up" else rows)
    return widths


def _quantised(role: str, parts: Mapping[str, StoredTensor]) -> bool:
    return role in _MATRICES and formats.is_quantised(parts) and bool(parts.keys() - (_BESIDE - {"weight"}))


def _plain_place(layer: int, role: str, part: str, parts: Mapping[str, StoredTensor]) -> Placed:
    tensor = parts[part]
    if tensor.dtype not in ("F16", "BF16", "F32", "F64"):
        raise ModelError(f"tensor {shown(tensor.name)} is {tensor.dtype}; only matrices may be quantised")
    return Placed(tensor, layer, role, part)


def _packed_place(
    spec: Spec,
    layer: int,
    role: str,
    parts: Mapping[str, StoredTensor],
    width: int,
    scheme: Scheme | None,
) -> Placed:
    some = next(iter(parts.values()))
    if scheme is None:
        raise ModelError(
            f"tensor {shown(some.name)} ({some.dtype}) is quantised, but no quantization_config says how"
        )
    rows, columns = _shape(spec, role, width)
    try:
        packed = recognise(parts, rows, columns, scheme)
    except FormatError as error:
        raise wrong_part(parts, error) from None
    used = {part: parts[part] for part in formats.used(parts)}
    return Placed(next(iter(used.values())), layer, role, "weight", packed, used)


def wrong_part(parts: Mapping[str, StoredTensor], error: FormatError) -> ModelError:
    """`error` as what the user is told: file, tensor, what is wrong."""
    tensor = parts.get(error.part) or next(iter(parts.values()))
    name = tensor.name if error.part in parts else tensor.name.rpartition(".")[0]
    return ModelError(f"{shown(tensor.path.name)}: {shown(name)} {error}")


def _missing(spec: Spec, taken: set[tuple[int, str, str]], tied: bool) -> list[str]:
    """Names of required roles that no tensor plays; a bias that one layer has is required of all layers."""
    missing = []

    def need(layer: int, role: str, part: str = "weight") -> None:
        if (layer, role, part) not in taken:
            missing.append(f"layers.{layer}.{role}.{part}" if layer >= 0 else f"{role}.{part}")

    need(-1, "embed")
    need(-1, "final_norm")
    if not tied:
        need(-1, "lm_head")
    biased = {role for layer, role, part in taken if part == "bias" and layer >= 0}
    for layer in range(spec.layers):
        roles = ["attn_norm", "mlp_norm", "o", "down"]
        roles += ["qkv"] if (layer, "qkv", "weight") in taken else ["q", "k", "v"]
        roles += ["gate_up"] if (layer, "gate_up", "weight") in taken else ["gate", "up"]
        roles += ["q_norm", "k_norm"] if spec.qk_norm else []
        for role in roles:
            need(layer, role)
        for role in sorted(biased):
            need(layer, role, "bias")
    return missing


def _check_shapes(spec: Spec, placed: list[Placed]) -> None:
    width = {
        place.layer: place.shape[1]
        for place in placed
        if place.role == "down" and place.part == "weight" and len(place.shape) == 2
    }
    wrong = []
    for place in placed:
        expected = _shape(spec, place.role, width.get(place.layer, 0))
        if place.part == "bias":
            expected = expected[:1]
        shape = place.shape
        if place.role == "embed" and shape[1:] == expected[1:] and shape != expected:
            raise ModelError(
                f"config.json: vocab_size: {spec.vocab}, but {shown(place.tensor.name)} has {shape[0]} rows"
            )
        if shape != expected:
            wrong.append(f"{place.tensor.name} is {list(shape)}, expected {list(expected)}")
    if wrong:
        raise ModelError(f"tensors of the wrong shape: {name_some(wrong)}")


def _shape(spec: Spec, role: str, width: int) -> tuple[int, ...]:
    """[out, in] of a weight. `width` is the layer's MLP width, taken from its down projection."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    outputs = {
        "embed": spec.vocab,
        "lm_head": spec.vocab,
        "q": queries,
        "k": keys,
        "v": keys,
        "qkv": queries + 2 * keys,
        "gate": width,
        "up": width,
        "gate_up": 2 * width,
    }
    if role in outputs:
        return (outputs[role], spec.hidden)
    inputs = {"o": queries, "down": width}
    if role in inputs:
        return (spec.hidden, inputs[role])
    return (spec.head_dim,) if role in ("q_norm", "k_norm") else (spec.hidden,)
