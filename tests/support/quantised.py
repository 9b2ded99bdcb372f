"""Checkpoints in the formats that people have, made from plain ones, with the weights that they stand for.

The packers are written for clarity, apart from the product's: 64-bit integers, one rule per format. Layouts as in
`lmtop.quant.formats`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmtop.engine.spec import read_spec

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word holds this column of its eight
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
Made = tuple[dict[str, Tensor], Tensor]  # the tensors by their last name, and the weight they stand for


def pack(codes: Tensor, bits: int, order: list[int] | None = None) -> Tensor:
    """Unsigned codes [..., n] -> int32 [..., n * bits / 32], the first in the lowest bits."""
    words = codes.long().unflatten(-1, (-1, 32 // bits))
    if order:
        words = words[..., order]
    value = (words << (torch.arange(32 // bits) * bits)).sum(-1)
    return torch.where(value >= 2**31, value - 2**32, value).int()


@dataclass(frozen=True)
class Grid:
    """Integer codes [out, in] with scales and zero points [out, groups]; group of column c is index[c]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    index: Tensor

    @property
    def weight(self) -> Tensor:
        return (self.codes - self.zeros[:, self.index]) * self.scales[:, self.index].float()


def grid(
    weight: Tensor,
    group: int,
    bits: int = 4,
    symmetric: bool = False,
    index: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Grid:
    """Round to nearest in groups of columns; `index` names other groups than neighbours."""
    rows, columns = weight.shape
    size = columns if group == -1 else group
    index = torch.arange(columns) // size if index is None else index
    top, groups = (1 << bits) - 1, -(-columns // size)
    low, high = torch.zeros(rows, groups), torch.zeros(rows, groups)
    for g in range(groups):
        members = weight[:, index == g]
        low[:, g], high[:, g] = members.amin(1).clamp_max(0), members.amax(1).clamp_min(0)
    if symmetric:
        scales = torch.maximum(-low, high) / (top // 2)
        zeros = torch.full_like(scales, (top + 1) // 2)
    else:
        scales = (high - low) / top
        zeros = (-low / scales.clamp_min(1e-6)).round().clamp(0, top)
    scales = scales.clamp_min(1e-5).to(dtype)
    codes = (weight / scales.float()[:, index] + zeros[:, index]).round().clamp(0, top)
    return Grid(codes.long(), scales, zeros.long(), index)


def awq(weight: Tensor, group: int = 32) -> Made:
    g = grid(weight, group)
    tensors = {
        "qweight": pack(g.codes.t().contiguous(), 4, AWQ_ORDER),
        "qzeros": pack(g.zeros.t().contiguous(), 4, AWQ_ORDER),
        "scales": g.scales.t().contiguous(),
    }
    return tensors, g.weight


def gptq(
    weight: Tensor,
    group: int = 32,
    bits: int = 4,
    symmetric: bool = False,
    v2: bool = False,
    act_order: int | None = None,
) -> Made:
    """`act_order` is the seed of a pretended order of importance."""
    columns, index = weight.shape[1], None
    if act_order is not None:
        ranks = torch.randperm(columns, generator=torch.Generator().manual_seed(act_order))
        index = ranks // (columns if group == -1 else group)
    g = grid(weight, group, bits, symmetric, index)
    stored = g.zeros if v2 else (g.zeros - 1) & ((1 << bits) - 1)
    tensors = {
        "qweight": pack(g.codes, bits).t().contiguous(),
        "qzeros": pack(stored.t().contiguous(), bits),
        "scales": g.scales.t().contiguous(),
        "g_idx": g.index.int(),
    }
    return tensors, g.weight


def compressed(
    weight: Tensor,
    group: int = 32,
    bits: int = 4,
    symmetric: bool = True,
    act_order: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    packed_zeros: bool = True,
) -> Made:
    """compressed-tensors, pack-quantized. `packed_zeros`: zero points packed along the outputs, or plain int8."""
    rows, columns = weight.shape
    index = None
    if act_order is not None:
        index = torch.randperm(columns, generator=torch.Generator().manual_seed(act_order)) // group
    g = grid(weight, group, bits, symmetric, index, dtype)
    each, middle = 32 // bits, 1 << (bits - 1)
    tensors = {
        "weight_packed": pack(F.pad(g.codes, (0, -columns % each)), bits),
        "weight_scale": g.scales,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if index is not None:
        tensors["weight_g_idx"] = index.int()
    if not symmetric and packed_zeros:
        tall = F.pad(g.zeros, (0, 0, 0, -rows % each), value=middle)
        tensors["weight_zero_point"] = pack(tall.t().contiguous(), bits).t().contiguous()
    elif not symmetric:
        tensors["weight_zero_point"] = (g.zeros - middle).to(torch.int8)
    return tensors, g.weight


def int8(weight: Tensor) -> Made:
    """compressed-tensors, int-quantized: a scale per output."""
    g = grid(weight, -1, 8, True, dtype=torch.float32)
    return {"weight": (g.codes - 128).to(torch.int8), "weight_scale": g.scales}, g.weight


def fp8(weight: Tensor, block: tuple[int, int] | None = None, per: str = "block") -> Made:
    """`per` block (scale_inv [out / b, in / b]), channel ([out, 1]) or tensor ([])."""
    rows, columns = weight.shape
    tall, wide = block or ((1, columns) if per == "channel" else (rows, columns))
    padded = F.pad(weight, (0, -columns % wide, 0, -rows % tall))
    tiles = padded.view(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide)
    scale = (tiles.abs().amax((1, 3)) / 448).clamp_min(1e-6)
    spread = scale.repeat_interleave(tall, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    stored = (weight / spread).to(torch.float8_e4m3fn)
    name = "weight_scale_inv" if per == "block" else "weight_scale"
    shaped = scale.view(()) if per == "tensor" else scale
    tensors = {"weight": stored, name: shaped}
    if per == "tensor":
        tensors["input_scale"] = torch.tensor(0.5)
    return tensors, stored.float() * spread


def mxfp4(weight: Tensor, blocks: bool = True) -> Made:
    rows, columns = weight.shape
    parts = weight.view(rows, -1, 32)
    exponent = torch.floor(torch.log2(parts.abs().amax(-1).clamp_min(1e-30))) - 2
    near = (parts / torch.exp2(exponent)[..., None])[..., None] - E2M1
    index = near.abs().argmin(-1)
    data = (index[..., ::2] | index[..., 1::2] << 4).to(torch.uint8)
    scales = (exponent + 127).to(torch.uint8)
    weight = (E2M1[index] * torch.exp2(exponent)[..., None]).view(rows, columns)
    if blocks:
        return {"weight_blocks": data, "weight_scales": scales}, weight
    return {"weight_packed": data.view(rows, -1), "weight_scale": scales}, weight


def nvfp4(weight: Tensor, modelopt: bool = False) -> Made:
    rows, columns = weight.shape
    parts = weight.view(rows, -1, 16)
    overall = 448 * 6 / weight.abs().max()
    scales = (parts.abs().amax(-1) / 6 * overall).to(torch.float8_e4m3fn)
    spread = (scales.float() / overall)[..., None]
    index = (parts / spread.clamp_min(1e-12))[..., None].sub(E2M1).abs().argmin(-1).view(rows, columns)
    data = (index[:, ::2] | index[:, 1::2] << 4).to(torch.uint8)
    weight = (E2M1[index].view(rows, -1, 16) * spread).view(rows, columns)
    if modelopt:
        return {"weight": data, "weight_scale": scales, "weight_scale_2": 1 / overall.view(())}, weight
    return {"weight_packed": data, "weight_scale": scales, "weight_global_scale": overall.view(1)}, weight


NF4 = (
    torch.tensor([-8, -5.57, -4.2, -3.16, -2.28, -1.48, -0.73, 0, 0.64, 1.29, 1.97, 2.7, 3.53, 4.5, 5.78, 8])
    / 8
)


def bnb4(weight: Tensor, nested: bool = False, kind: str = "nf4", block: int = 64) -> Made:
    flat = F.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
    maxima = flat.abs().amax(1).clamp_min(1e-6)
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": "float32",
        "shape": [*weight.shape],
    }
    tensors: dict[str, Tensor] = {}
    if nested:
        offset, size = maxima.mean(), 256
        table = torch.linspace(-1, 1, 256)
        off = F.pad(maxima - offset, (0, -len(maxima) % size)).view(-1, size)
        outer = off.abs().amax(1)
        codes = ((off / outer[:, None])[..., None] - table).abs().argmin(-1).flatten()[: len(maxima)]
        maxima = table[codes] * outer.repeat_interleave(size)[: len(maxima)] + offset
        state |= {"nested_blocksize": size, "nested_offset": offset.item(), "nested_dtype": "float32"}
        tensors |= {"weight.nested_absmax": outer, "weight.nested_quant_map": table}
        tensors["weight.absmax"] = codes.to(torch.uint8)
    else:
        tensors["weight.absmax"] = maxima
    codes = ((flat / maxima[:, None])[..., None] - NF4).abs().argmin(-1)
    value = (NF4[codes] * maxima[:, None]).flatten()[: weight.numel()].view_as(weight)
    codes = codes.flatten()[: weight.numel()]
    tensors["weight"] = (codes[::2] << 4 | codes[1::2]).to(torch.uint8).view(-1, 1)
    tensors["weight.quant_map"] = NF4.clone()
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors, value


def bnb8(weight: Tensor) -> Made:
    largest = weight.abs().amax(1)
    stored = (weight * 127 / largest[:, None]).round().to(torch.int8)
    tensors = {"weight": stored, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, stored.float() * largest[:, None] / 127


def _ct(layout: str, **weights: Any) -> dict[str, Any]:
    base = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": {**base, **weights}, "input_activations": None}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": groups,
        "kv_cache_scheme": None,
    }


def _awq_config(group: int = 32) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def _gptq_config(group: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False, **more}


@dataclass(frozen=True)
class Kind:
    """A format: how a matrix is packed, and the quantization_config. `label`: as the product calls it; `exact`: kept
    as four-bit codes."""

    make: Callable[[Tensor], Made]
    config: Mapping[str, Any]
    label: str
    kept: bool = False
    fits: Callable[[int, int], bool] = field(
        default=lambda rows, columns: columns % 32 == 0 and rows % 8 == 0
    )


KINDS: dict[str, Kind] = {
    "awq": Kind(awq, _awq_config(), "AWQ int4 g32", True),
    "awq_row": Kind(lambda w: awq(w, -1), _awq_config(-1), "AWQ int4", True),
    "awq_g16": Kind(lambda w: awq(w, 16), _awq_config(16), "AWQ int4 g16"),
    "gptq": Kind(gptq, _gptq_config(), "GPTQ int4 g32", True),
    "gptq_v2": Kind(
        lambda w: gptq(w, v2=True), _gptq_config(checkpoint_format="gptq_v2"), "GPTQ int4 g32", True
    ),
    "gptq_sym": Kind(
        lambda w: gptq(w, symmetric=True),
        _gptq_config(sym=True, checkpoint_format="gptq"),
        "GPTQ int4 g32",
        True,
    ),
    "gptq_act": Kind(
        lambda w: gptq(w, symmetric=True, act_order=w.shape[1]),
        _gptq_config(sym=True, desc_act=True),
        "GPTQ int4 g32",
        True,
    ),
    "gptq_act_apart": Kind(  # each part of a fused matrix in an order of its own
        lambda w: gptq(w, act_order=w.shape[0] + int(w[0, 0] * 1000)),
        _gptq_config(desc_act=True),
        "GPTQ int4 g32",
    ),
    "gptq_row": Kind(lambda w: gptq(w, -1), _gptq_config(-1), "GPTQ int4", True),
    "gptq_8bit": Kind(lambda w: gptq(w, bits=8), _gptq_config(bits=8), "GPTQ int8 g32"),
    "auto_round": Kind(
        lambda w: gptq(w, symmetric=True),
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "data_type": "int"}
        | {"packing_format": "auto_round:auto_gptq"},
        "GPTQ int4 g32",
        True,
    ),
    "ct": Kind(compressed, _ct("pack-quantized"), "compressed-tensors int4 g32", True),
    "ct_asym": Kind(
        lambda w: compressed(w, symmetric=False),
        _ct("pack-quantized", symmetric=False),
        "compressed-tensors int4 g32",
        True,
        lambda rows, columns: columns % 32 == 0,
    ),
    "ct_asym_plain": Kind(
        lambda w: compressed(w, symmetric=False, packed_zeros=False),
        _ct("pack-quantized", symmetric=False),
        "compressed-tensors int4 g32",
        True,
    ),
    "ct_act": Kind(
        lambda w: compressed(w, act_order=w.shape[1]),
        _ct("pack-quantized", actorder="group"),
        "compressed-tensors int4 g32",
        True,
    ),
    "ct_row": Kind(
        lambda w: compressed(w, -1),
        _ct("pack-quantized", strategy="channel", group_size=None),
        "compressed-tensors int4",
        True,
        lambda rows, columns: True,
    ),
    "ct_fp32_scales": Kind(
        lambda w: compressed(w, dtype=torch.float32), _ct("pack-quantized"), "compressed-tensors int4 g32"
    ),
    "ct_8bit": Kind(
        lambda w: compressed(w, bits=8, symmetric=False),
        _ct("pack-quantized", num_bits=8, symmetric=False),
        "compressed-tensors int8 g32",
    ),
    "ct_w8a8": Kind(
        int8, _ct("int-quantized", num_bits=8, strategy="channel", group_size=None), "compressed-tensors int8"
    ),
    "fp8_block": Kind(
        lambda w: fp8(w, (48, 40)),
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 40], "activation_scheme": "dynamic"},
        "FP8 48x40",
        fits=lambda rows, columns: True,
    ),
    "fp8_channel": Kind(
        lambda w: fp8(w, per="channel"),
        _ct("float-quantized", num_bits=8, type="float", strategy="channel", group_size=None),
        "FP8",
        fits=lambda rows, columns: True,
    ),
    "fp8_tensor": Kind(
        lambda w: fp8(w, per="tensor"),
        {"quant_method": "fp8", "activation_scheme": "static"},
        "FP8",
        fits=lambda rows, columns: True,
    ),
    "mxfp4": Kind(mxfp4, {"quant_method": "mxfp4"}, "MXFP4"),
    "mxfp4_ct": Kind(lambda w: mxfp4(w, False), _ct("mxfp4-pack-quantized", type="float"), "MXFP4"),
    "nvfp4": Kind(nvfp4, _ct("nvfp4-pack-quantized", type="float", group_size=16), "NVFP4"),
    "nvfp4_modelopt": Kind(
        lambda w: nvfp4(w, True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"
    ),
    "nf4": Kind(bnb4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes nf4"),
    "nf4_nested": Kind(
        lambda w: bnb4(w, True), {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes nf4"
    ),
    "fp4": Kind(
        lambda w: bnb4(w, kind="fp4"),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes fp4",
    ),
    "bnb8": Kind(bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
}


def write(
    source: Path,
    target: Path,
    kind: Kind,
    skip: Callable[[str], bool] = lambda name: False,
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    head: bool = False,
) -> Path:
    """A quantised copy of the plain checkpoint `source` at `target`, and beside it (`plain_of`) the weights it stands
    for, plain. Matrices that the format cannot hold, or that `skip` names, stay plain; `head`: the last one is
    quantised as well; `change` spoils the tensors."""
    places = [place for place in read_spec(source).placed if len(place.shape) == 2]
    matrices = {
        place.tensor.name for place in places if place.layer >= 0 or (head and place.role == "lm_head")
    }
    stored: dict[str, Tensor] = {}
    for path in sorted(source.glob("model*.safetensors")):
        stored |= load_file(path)
    quantised, plain = {}, dict(stored)
    for name, weight in stored.items():
        if name not in matrices or skip(name) or not kind.fits(*weight.shape):
            quantised[name] = weight
            continue
        tensors, plain[name] = kind.make(weight.float())
        quantised |= {
            name.removesuffix("weight") + part: value.contiguous() for part, value in tensors.items()
        }
    change(quantised)
    config = json.loads((source / "config.json").read_text())
    _write(plain_of(target), source, config, plain)
    return _write(target, source, {**config, "quantization_config": dict(kind.config)}, quantised)


def plain_of(target: Path) -> Path:
    """Where `write` puts the plain weights."""
    return target.with_name(f"{target.name}-plain")


def _write(target: Path, source: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(path, target / path.name)
    (target / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target
