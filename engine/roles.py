"""Which role each stored tensor plays, and the check that roles, shapes and dtypes are those of the spec."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .architecture import Spec
from .checkpoint import StoredTensor
from .families import Family, role_of
from .hfconfig import name_some, shown
from .types import ModelError

_ROLE = re.compile(r"(?:L\.(0|[1-9]\d{0,3})\.)?(\w+)\.(weight|bias)")
_LAYER_ROLES = frozenset(
    ["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "attn_norm", "mlp_norm"]
)
_GLOBAL_ROLES = frozenset(["embed", "final_norm", "lm_head"])
_WITH_BIAS = frozenset(["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "lm_head"])


@dataclass(frozen=True, slots=True)
class Placed:
    """A stored tensor and its place: `layer` is -1 outside the blocks, `role` as in `engine.families`, `part`
    is "weight" or "bias"."""

    tensor: StoredTensor
    layer: int
    role: str
    part: str


def assign_roles(
    spec: Spec, family: Family, tensors: Iterable[StoredTensor], tie: bool | None
) -> tuple[tuple[Placed, ...], Spec]:
    """Place every tensor; returns the places in file order and the spec with `tied` decided.

    A head in the files is used whatever the config says, since old remote classes store `tie_word_embeddings`
    without meaning it; without one the embedding serves, unless `tie` is False. Raises ModelError for tensors
    that nobody claims, that are missing, or whose shape or dtype is not the spec's.
    """
    placed, unclaimed, quantised = [], [], []
    taken: dict[tuple[int, str, str], str] = {}
    for tensor in tensors:
        name = role_of(family, tensor.name)
        if name is None:
            continue
        place = _place(spec, tensor, name)
        if place is None:
            unclaimed.append(tensor.name)
            continue
        key = (place.layer, place.role, place.part)
        if key in taken:
            raise ModelError(f"tensors {shown(taken[key])} and {shown(tensor.name)} play the same role")
        taken[key] = tensor.name
        placed.append(place)
        if tensor.dtype not in ("F16", "BF16", "F32", "F64"):
            quantised.append(f"{tensor.name} ({tensor.dtype})")
    if quantised and not unclaimed:
        raise ModelError(f"quantised weights cannot be loaded yet: {name_some(quantised)}")
    tied = (-1, "lm_head", "weight") not in taken and tie is not False
    missing = _missing(spec, set(taken), tied)
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


def _place(spec: Spec, tensor: StoredTensor, name: str) -> Placed | None:
    match = _ROLE.fullmatch(name)
    if match is None:
        return None
    layer, role, part = match[1], match[2], match[3]
    allowed = _GLOBAL_ROLES if layer is None else _LAYER_ROLES
    if layer is not None and spec.qk_norm:
        allowed |= {"q_norm", "k_norm"}
    beyond = layer is not None and int(layer) >= spec.layers
    if role not in allowed or beyond or (part == "bias" and role not in _WITH_BIAS):
        return None
    return Placed(tensor, -1 if layer is None else int(layer), role, part)


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
        place.layer: place.tensor.shape[1]
        for place in placed
        if place.role == "down" and place.part == "weight" and len(place.tensor.shape) == 2
    }
    wrong = []
    for place in placed:
        expected = _shape(spec, place.role, width.get(place.layer, 0))
        if place.part == "bias":
            expected = expected[:1]
        shape = place.tensor.shape
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
