"""One layer from 16 to 4 bits: which matrices can be, how they are smoothed, and what is stored in their place.

Smoothing multiplies the inputs of a matrix by s and divides what produces them by s, which changes nothing before
rounding: a norm's gain in front of q|k|v and gate|up, the rows of v in front of o, the rows of up in front of down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.ops import Dense, Int4
from ..quant.awq import Pool, Scheme, half_rule, quantise, search, unpooled
from ..quant.awq_layout import PER_WORD, pack
from ..quant.calibrate import InputStats
from ..quant.gptq import round_with_feedback
from .quantize_layers import MATRICES, Layer, places_of, stored_rows
from .roles import FUSED, Placed
from .spec import ModelFiles, Spec

# What is stored in place of other types: 16 bits, as every reader of such checkpoints expects.
KEPT = {"F64": torch.float16, "F32": torch.float16, "F16": torch.float16, "BF16": torch.bfloat16}
NORM_OF = {"qkv": "attn_norm", "gate_up": "mlp_norm"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How matrices are rounded. search: "grid" or "none" (LMDeploy's rule); method: "awq" rounds each weight to the
    nearest code, "gptq" hands its error on to the next. Without statistics all are rounded to nearest."""

    scheme: Scheme
    search: str = "grid"
    method: str = "awq"

    @property
    def needs_gram(self) -> bool:
        return self.search == "grid" or self.method == "gptq"


@dataclass(slots=True)
class LayerReport:
    """What happened in a layer. errors: relative output error of each smoothed matrix as (chosen, LMDeploy's rule,
    none); kept: why a matrix stays at 16 bits, by role."""

    errors: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def misfit(files: ModelFiles, role: str, group: int) -> str:
    """Why the matrices of `role` cannot be stored with this group size; empty when they can."""
    stored = [
        place
        for place in files.placed
        if FUSED.get(place.role, place.role) == role and place.part == "weight"
    ]
    for place in stored:
        outputs, inputs = place.shape
        if group != -1 and inputs % group:
            return f"its {inputs} inputs are not a multiple of {group}"
        if outputs % PER_WORD:
            return f"its {outputs} outputs are not a multiple of {PER_WORD}"
    return ""


def quantise_layer(
    files: ModelFiles, layer: Layer, stats: Mapping[str, InputStats], recipe: Recipe
) -> tuple[dict[str, Tensor], LayerReport]:
    """What is stored in place of a layer, by tensor name, on the layer's device. `stats` by role; empty where there
    was nothing to calibrate with."""
    report = LayerReport()
    for role in MATRICES:
        if reason := _unfit(files, layer, role, stats, recipe):
            report.kept[role] = reason
    scales = _chosen(files.spec, layer, stats, recipe, report)
    matrices, gains = _smoothed(files.spec, layer, scales)
    rounded = {
        role: _rounded(matrices[role].weight, _scaled_gram(stats, role, scales), recipe)
        for role in MATRICES
        if role not in report.kept
    }
    return _stored(files, layer.index, matrices, gains, rounded), report


def _unfit(
    files: ModelFiles, layer: Layer, role: str, stats: Mapping[str, InputStats], recipe: Recipe
) -> str:
    if reason := misfit(files, role, recipe.scheme.group):
        return reason
    if not bool(torch.isfinite(layer.matrices[role].weight).all()):
        return "it holds NaN or infinity"
    if role in stats and not stats[role].usable:
        return "its inputs were NaN or infinite in calibration"
    return ""


def _chosen(
    spec: Spec, layer: Layer, stats: Mapping[str, InputStats], recipe: Recipe, report: LayerReport
) -> dict[str, Tensor]:
    """Smoothing scales [in] float32 by role, of the matrices that get any."""
    chosen = {}
    for role in MATRICES:
        if role in report.kept or role not in stats:
            continue
        weight, pool = layer.matrices[role].weight, _pool(spec) if role == "o" else unpooled
        if recipe.search == "none":
            scales = half_rule(weight, stats[role].absmax, recipe.scheme, pool)
        else:
            found = search(weight, stats[role], recipe.scheme, pool)
            report.errors[role] = (found.error, found.error_half, found.error_plain)
            scales = found.scales
        chosen[role] = scales
    return chosen


def _pool(spec: Spec) -> Pool:
    """Query heads that read one value head share its scale: mean over them, each number of a head on its own."""

    def pool(values: Tensor) -> Tensor:
        shared = values.view(spec.kv_heads, -1, spec.head_dim).mean(1, keepdim=True)
        return shared.expand(-1, spec.heads // spec.kv_heads, -1).reshape(-1)

    return pool


def _smoothed(
    spec: Spec, layer: Layer, scales: dict[str, Tensor]
) -> tuple[dict[str, Dense], dict[str, Tensor]]:
    """Matrices and gains with the scales worked in. Where a gain is stored in 16 bits, `scales` become what the
    rounded gain really divides by."""
    weights = {role: layer.matrices[role].weight.float() for role in MATRICES}
    biases = {role: bias.float() for role in MATRICES if (bias := layer.matrices[role].bias) is not None}
    gains = dict(layer.gains)
    for role, norm in NORM_OF.items():
        if role in scales:
            gains[norm], scales[role] = _fold(layer.gains[norm], scales[role])
    for role, factors in scales.items():
        weights[role] = weights[role] * factors
    if "o" in scales:
        values = scales["o"].view(spec.kv_heads, -1, spec.head_dim)[:, 0].reshape(-1)
        _divide_last(weights, biases, "qkv", values)
    if "down" in scales:
        _divide_last(weights, biases, "gate_up", scales["down"])
    return {role: Dense(weights[role], biases.get(role)) for role in MATRICES}, gains


def _fold(gain: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The gain that will be stored for gain / scales, and the scales that it stands for. 16 bits of the narrower
    range: both types hold such a number."""
    folded = (gain / scales).half().bfloat16().float()
    fits = torch.isfinite(folded) & (folded != 0)
    return torch.where(fits, folded, gain), torch.where(fits, gain / folded, 1.0)


def _divide_last(weights: dict[str, Tensor], biases: dict[str, Tensor], role: str, scales: Tensor) -> None:
    """Divide the last rows of a matrix, which produce what is multiplied by `scales`."""
    for parts in (weights, biases):
        if role in parts:
            part = parts[role].clone()
            part[-len(scales) :] /= scales.view(-1, *[1] * (part.dim() - 1))
            parts[role] = part


def _rounded(weight: Tensor, gram: Tensor | None, recipe: Recipe) -> Int4:
    layer = quantise(weight, None, recipe.scheme, gram if recipe.search == "grid" else None)
    return layer if gram is None or recipe.method == "awq" else round_with_feedback(weight, layer, gram)


def _scaled_gram(stats: Mapping[str, InputStats], role: str, scales: dict[str, Tensor]) -> Tensor | None:
    """The Gram matrix of the smoothed inputs; None where there is none."""
    if role not in stats or (gram := stats[role].gram) is None:
        return None
    if role not in scales:
        return gram
    return gram / scales[role] / scales[role].unsqueeze(1)


def _stored(
    files: ModelFiles,
    index: int,
    matrices: dict[str, Dense],
    gains: dict[str, Tensor],
    rounded: dict[str, Int4],
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for place in places_of(files, index):
        name, role = place.tensor.name, FUSED.get(place.role, place.role)
        if place.role.endswith("norm"):
            out[name] = kept(gains[place.role], place)
            continue
        device = matrices[role].weight.device
        rows = stored_rows(files, place).to(device)
        if place.part == "bias":
            bias = matrices[role].bias
            assert bias is not None
            out[name] = kept(bias[rows], place)
        elif role in rounded:
            layer = rounded[role]
            part = Int4(layer.codes[rows], layer.scales[rows], layer.zeros[rows], layer.group)
            out |= {f"{module_of(name)}.{key}": tensor for key, tensor in pack(part).items()}
        else:
            out[name] = kept(matrices[role].weight[rows], place)
    return out


def module_of(name: str) -> str:
    """A tensor's module: its name without the last part."""
    return name.rpartition(".")[0]


def kept(tensor: Tensor, place: Placed) -> Tensor:
    """A tensor that is not quantised, in 16 bits; wider only where those cannot hold it."""
    narrow = tensor.to(KEPT[place.tensor.dtype])
    if bool((torch.isfinite(narrow) == torch.isfinite(tensor)).all()):
        return narrow.contiguous()
    return tensor.float().contiguous()


def layer_bytes(files: ModelFiles, index: int, group: int) -> int:
    """Bytes of what will be stored for a layer."""
    total = 0
    for place in places_of(files, index):
        count = math.prod(place.shape)
        role = FUSED.get(place.role, place.role)
        if place.part == "weight" and role in MATRICES and not misfit(files, role, group):
            outputs, inputs = place.shape
            groups = 1 if group == -1 else inputs // group
            total += count // 2 + outputs * groups * 2 + outputs * groups // 2
        else:
            total += 2 * count
    return total
