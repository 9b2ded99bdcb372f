"""What a model directory says of its quantised weights, as a `quant.formats.Scheme`; standard library only.

The tensors decide how each matrix is read; the configuration tells what they do not (GPTQ's version, the size of FP8
blocks), must not contradict them, and names what cannot be read before a tensor is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..quant.formats import Scheme
from .architecture import Spec
from .hfconfig import CONFIG_CAP, ConfigReader, quoted, read_json, shown
from .roles import FUSED, Placed
from .types import ModelError

READABLE = "AWQ, GPTQ, AutoRound, compressed-tensors, FP8, MXFP4, NVFP4, bitsandbytes"
# Files that older writers put beside config.json: (name, what wrote it).
SIDE_FILES = (("quantize_config.json", "gptq"), ("quant_config.json", "awq"))
_WHERE = "config.json: quantization_config"


def read_scheme(config: Mapping[str, Any], directory: Path | None = None) -> Scheme | None:
    """The scheme that config.json tells, or a side file in `directory`; None where no weight is said to be
    quantised. Raises ModelError for what cannot be loaded."""
    outer = ConfigReader(config)
    told = outer.mapping("quantization_config", "compression_config")
    if told is not None:
        return _scheme(ConfigReader(told, _WHERE), "")
    for name, method in SIDE_FILES:
        path = None if directory is None else directory / name
        if path is not None and path.exists():
            return _scheme(ConfigReader(read_json(path, CONFIG_CAP), name), method)
    return None


def label_of(placed: Iterable[Placed]) -> str:
    """What most quantised matrices are called, by their size; empty where none is quantised."""
    sizes: Counter[str] = Counter()
    for place in placed:
        if place.packed is not None:
            sizes[place.packed.label] += math.prod(place.shape)
    return sizes.most_common(1)[0][0] if sizes else ""


def own_groups(placed: Iterable[Placed], spec: Spec) -> dict[tuple[int, str], int]:
    """(layer, role) of each fused matrix that can be computed with the checkpoint's own four-bit codes, and the group
    size for that: all that is fused into it is stored so. Layer -1 is the head's."""
    groups: dict[tuple[int, str], int] = {}
    for place in placed:
        if place.part != "weight" or place.role == "embed" or (place.role == "lm_head" and spec.norm_head):
            continue
        own = 0 if place.packed is None else place.packed.kernel_group
        key = (place.layer, FUSED.get(place.role, place.role))
        groups[key] = min(own, groups.get(key, own))
    return {key: group for key, group in groups.items() if group}


def _scheme(reader: ConfigReader, default: str) -> Scheme:
    method = reader.string("quant_method", default=default).lower().replace("_", "-")
    if not method and (reader.boolean("load_in_4bit") or reader.boolean("load_in_8bit")):
        method = "bitsandbytes"
    if not method and reader.raw("config_groups")[1] is not None:
        method = "compressed-tensors"
    read = _METHODS.get(method.removeprefix("intel/"))
    if read is None:
        raise ModelError(
            f"{reader.where}: {shown(method or 'unnamed', 40)} weights are not supported; "
            f"supported: {READABLE}; use another checkpoint of this model"
        )
    return read(reader)


def _integer_groups(reader: ConfigReader, *names: str) -> tuple[int, ...]:
    """The group size, -1 for a whole row; () where none is named."""
    _, value = reader.raw(*names)
    if value is None:
        return ()
    if value == -1 and not isinstance(value, bool):
        return (-1,)
    return (reader.integer(*names),)


def _four_bits(reader: ConfigReader, allowed: tuple[int, ...], *names: str) -> tuple[int, ...]:
    bits = reader.integer(*names, default=4)
    if bits not in allowed:
        reader.fail(
            names[0], f"{bits}-bit weights are not supported; only {' and '.join(map(str, allowed))} bits are"
        )
    return (bits,)


def _awq(reader: ConfigReader) -> Scheme:
    version = reader.string("version", "checkpoint_format", "format", default="gemm").lower()
    if version not in ("gemm", "exllama"):
        reader.fail("version", f"{quoted(version, 20)} is another layout than gemm; use a gemm checkpoint")
    if reader.string("backend", default="autoawq").lower() == "llm-awq":
        reader.fail("backend", "llm-awq stores another layout than gemm; use a gemm checkpoint")
    return Scheme(
        "AWQ",
        ("awq",),
        _four_bits(reader, (4,), "bits", "w_bit"),
        _integer_groups(reader, "group_size", "q_group_size"),
    )


def _gptq(reader: ConfigReader) -> Scheme:
    layout = reader.string("checkpoint_format", "format", default="gptq").lower()
    if layout not in ("gptq", "gptq_v2") or reader.boolean("is_marlin_format"):
        name = "marlin" if reader.boolean("is_marlin_format") else layout
        reader.fail("checkpoint_format", f"{quoted(name, 20)} is not supported; gptq and gptq_v2 are")
    if reader.string("pack_dtype", default="int32") != "int32":
        reader.fail("pack_dtype", "only int32 is supported")
    if reader.raw("adapter")[1]:
        reader.fail("adapter", "adapters beside the weights are not supported")
    return Scheme(
        "GPTQ",
        ("gptq",),
        _four_bits(reader, (4, 8), "bits", "w_bit"),
        _integer_groups(reader, "group_size"),
        reader.boolean("sym") or None,  # asymmetric weights may have their zero points in the middle as well
        zero_offset=1 if layout == "gptq" else 0,
        act_order=reader.boolean("desc_act"),
        mixed=bool(reader.mapping("dynamic")),
    )


def _auto_round(reader: ConfigReader) -> Scheme:
    packing = reader.string("packing_format", default="auto_round:auto_gptq").lower()
    if reader.string("data_type", default="int") not in ("int", "int_sym", "int_asym"):
        reader.fail("data_type", f"{quoted(reader.raw('data_type')[1], 20)} is not supported; only int is")
    bits = _four_bits(reader, (4, 8), "bits")
    groups, mixed = _integer_groups(reader, "group_size"), bool(reader.mapping("extra_config"))
    if "awq" in packing:
        return Scheme("AutoRound (AWQ)", ("awq",), bits, groups, mixed=mixed)
    if "gptq" not in packing:
        reader.fail("packing_format", f"{quoted(packing, 40)} is not supported; auto_gptq and auto_awq are")
    symmetric = reader.boolean("sym", True)
    return Scheme("AutoRound (GPTQ)", ("gptq",), bits, groups, symmetric or None, zero_offset=1, mixed=mixed)


_CT_FORMATS = {
    "pack-quantized": ("pack",),
    "int-quantized": ("int8",),
    "naive-quantized": ("int8", "fp8"),
    "float-quantized": ("fp8",),
    "mxfp4-pack-quantized": ("mxfp4",),
    "nvfp4-pack-quantized": ("nvfp4",),
    "mixed-precision": ("pack", "int8", "fp8", "mxfp4", "nvfp4"),
    "dense": (),
}


def _compressed_tensors(reader: ConfigReader) -> Scheme:
    """Groups of layers may differ; what each has must fit one of them."""
    layout = reader.string("format", default="dense")
    if layout not in _CT_FORMATS:
        reader.fail("format", f"{quoted(layout, 40)} is not supported; {', '.join(_CT_FORMATS)} are")
    if reader.raw("transform_config")[1]:
        reader.fail("transform_config", "weights that need rotated activations are not supported")
    sparsity = reader.mapping("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        reader.fail("sparsity_config", "sparse weights are not supported")
    bits: set[int] = set()
    groups: set[int] = set()
    symmetric: set[bool] = set()
    block = (128, 128)
    for name, group in (reader.mapping("config_groups") or {}).items():
        outer = ConfigReader({name: group}, f"{reader.where}: config_groups").mapping(name) or {}
        weights = ConfigReader(outer, f"{reader.where}: config_groups: {shown(name, 40)}").mapping("weights")
        if weights is None:
            continue
        inner = ConfigReader(weights, f"{reader.where}: config_groups: {shown(name, 40)}: weights")
        bits.add(inner.integer("num_bits", default=8))
        if inner.raw("strategy")[1] in ("group", "tensor_group"):
            groups.update(_integer_groups(inner, "group_size"))
        else:
            groups.add(-1)
        symmetric.add(inner.boolean("symmetric", True))
        block = _block(inner, "block_structure", block)
    return Scheme(
        "compressed-tensors",
        _CT_FORMATS[layout],
        tuple(sorted(bits)),
        tuple(sorted(groups, reverse=True)),
        symmetric.pop() if len(symmetric) == 1 else None,
        block=block,
    )


def _block(reader: ConfigReader, key: str, default: tuple[int, int]) -> tuple[int, int]:
    _, value = reader.raw(key)
    if value is None:
        return default
    sizes = value if isinstance(value, list) else []
    if len(sizes) != 2 or not all(type(size) is int and 0 < size <= 1 << 20 for size in sizes):
        reader.fail(key, f"must be two sizes, not {quoted(value, 40)}")
    return sizes[0], sizes[1]


def _fp8(reader: ConfigReader) -> Scheme:
    kind = reader.string("fmt", default="e4m3")
    if kind != "e4m3":
        reader.fail("fmt", f"{quoted(kind, 20)} is not supported; only e4m3 is")
    return Scheme("FP8", ("fp8",), block=_block(reader, "weight_block_size", (128, 128)))


def _bitsandbytes(reader: ConfigReader) -> Scheme:
    return Scheme("bitsandbytes", ("bnb4", "bnb8"))


def _mxfp4(reader: ConfigReader) -> Scheme:
    return Scheme("MXFP4", ("mxfp4",))


def _modelopt(reader: ConfigReader) -> Scheme:
    algorithm = reader.string("quant_algo", default="")
    formats = {"FP8": ("fp8",), "NVFP4": ("nvfp4",), "MIXED_PRECISION": ("fp8", "nvfp4")}.get(algorithm)
    if formats is None:
        reader.fail("quant_algo", f"{quoted(algorithm, 20)} is not supported; FP8 and NVFP4 are")
    return Scheme(f"ModelOpt {algorithm}", formats)


_METHODS = {
    "awq": _awq,
    "gptq": _gptq,
    "gptqmodel": _gptq,
    "auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm-fp8": _fp8,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "bitsandbytes": _bitsandbytes,
}
