"""Which format the tensors of a linear layer are, from headers alone; imports no torch.

Name, type and shape of every tensor are checked against the matrix [out, in] that the model needs, and against what
the configuration says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .formats import BNB_STATE, IGNORED, NAMES, OWN_CODES, FormatError, Header, Packed, Parts, Scheme

SCALES = ("F16", "BF16", "F32")


_BESIDE = IGNORED | {"bias"}
_TENSORS = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "pack": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "int8": ("weight", "weight_scale", "weight_zero_point"),
    "fp8": ("weight", "weight_scale", "weight_scale_inv"),
    "mxfp4": ("weight_packed", "weight_scale", "weight_blocks", "weight_scales", "weight_shape"),
    "nvfp4": (
        "weight_packed",
        "weight_scale",
        "weight_global_scale",
        "weight",
        "weight_scale_2",
        "weight_shape",
    ),
    "bnb4": (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
    ),
    "bnb8": ("weight", "SCB", "weight_format"),
    "lmtop": (*OWN_CODES, "scales", "zeros", "order"),
}


def recognise(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    """The format of the matrix [rows, columns] that `parts` hold. Raises FormatError naming the tensor that does not
    fit."""
    kind = _kind(parts)
    if kind not in scheme.formats:
        raise FormatError("", f"is stored as {NAMES[kind]}, but the configuration says {scheme.method}")
    for name in parts:
        if name not in _TENSORS[kind] and name not in _BESIDE and not name.startswith(BNB_STATE):
            raise FormatError(name, f"does not belong to a matrix in {NAMES[kind]}")
    return _CHECKS[kind](parts, rows, columns, scheme)


def _kind(parts: Parts) -> str:
    if not OWN_CODES.keys().isdisjoint(parts):
        return "lmtop"
    if "qweight" in parts and "scales" in parts:
        across, scales = (_axis(parts[name], 1) for name in ("qweight", "scales"))
        return "gptq" if across == scales else "awq"
    if "weight_packed" in parts:
        if parts["weight_packed"].dtype == "I32":
            return "pack"
        return "mxfp4" if parts.get("weight_scale", parts["weight_packed"]).dtype == "U8" else "nvfp4"
    if "weight_blocks" in parts:
        return "mxfp4"
    weight = parts.get("weight")
    if weight is None:
        raise FormatError("", f"tensors of no known format: {', '.join(sorted(parts))}")
    if weight.dtype.startswith("F8"):
        return "fp8"
    if weight.dtype == "I8":
        return "bnb8" if "SCB" in parts else "int8"
    if weight.dtype == "U8" and "weight.absmax" in parts:
        return "bnb4"
    if weight.dtype == "U8" and "weight_scale_2" in parts:
        return "nvfp4"
    raise FormatError("weight", f"is {weight.dtype} without scales: of no known format")


# --- one check per format -----------------------------------------------------------------------------------------


def _awq(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    if rows % 8:
        raise FormatError("qweight", f"{rows} outputs cannot be packed eight to a word")
    groups = _axis(parts["scales"], 0)
    _expect(parts, "qweight", ("I32",), (columns, rows // 8))
    _expect(parts, "scales", SCALES, (groups, rows))
    _expect(parts, "qzeros", ("I32",), (groups, rows // 8))
    group = _group("scales", columns, groups, scheme)
    return _packed("awq", rows, columns, scheme, 4, group)


def _gptq(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    groups = _axis(parts["scales"], 0)
    if "qzeros" not in parts:
        raise FormatError("qweight", "comes without qzeros")
    bits = 32 * _axis(parts["qzeros"], 1) // max(1, rows)
    if bits not in (4, 8):
        raise FormatError(
            "qzeros", f"{bits or 'fewer than 1'}-bit GPTQ is not supported; only 4 and 8 bits are"
        )
    _agreed_bits("qweight", bits, scheme)
    if columns * bits % 32 or rows * bits % 32:
        raise FormatError("qweight", f"[{rows}, {columns}] cannot be packed {32 // bits} to a word")
    _expect(parts, "qweight", ("I32",), (columns * bits // 32, rows))
    _expect(parts, "scales", SCALES, (groups, rows))
    _expect(parts, "qzeros", ("I32",), (groups, rows * bits // 32))
    if "g_idx" in parts:
        _expect(parts, "g_idx", ("I32", "I64"), (columns,))
    elif scheme.act_order:
        raise FormatError("qweight", "comes without g_idx, but the configuration says desc_act")
    return _packed("gptq", rows, columns, scheme, bits, _group("scales", columns, groups, scheme))


def _pack(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    words = _axis(parts["weight_packed"], 1)
    widths = [bits for bits in (4, 8) if -(-columns * bits // 32) == words]
    if not widths:
        raise FormatError(
            "weight_packed", f"is {[*parts['weight_packed'].shape]}, expected [{rows}, {-(-columns // 8)}]"
        )
    bits = next((bits for bits in widths if bits in scheme.bits), widths[0])
    _agreed_bits("weight_packed", bits, scheme)
    _expect(parts, "weight_packed", ("I32",), (rows, words))
    groups = _axis(parts.get("weight_scale"), 1)
    _expect(parts, "weight_scale", SCALES, (rows, groups))
    if "weight_shape" in parts:
        _expect(parts, "weight_shape", ("I64", "I32"), (2,))
    if "weight_g_idx" in parts:
        _expect(parts, "weight_g_idx", ("I32", "I64"), (columns,))
    zeros = parts.get("weight_zero_point")
    if zeros is not None and zeros.dtype == "I32":
        _expect(parts, "weight_zero_point", ("I32",), (-(-rows * bits // 32), groups))
    elif zeros is not None:
        _expect(parts, "weight_zero_point", ("I8",), (rows, groups))
    if scheme.symmetric is not None and scheme.symmetric is not (zeros is None):
        has = "has no" if zeros is None else "has"
        says = "symmetric" if scheme.symmetric else "asymmetric"
        raise FormatError("weight_packed", f"{has} zero points, but the configuration says {says}")
    return _packed("pack", rows, columns, scheme, bits, _group("weight_scale", columns, groups, scheme))


def _int8(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    _expect(parts, "weight", ("I8",), (rows, columns))
    scale = parts.get("weight_scale")
    group = columns
    if scale is not None and scale.shape[:1] == (rows,) and len(scale.shape) == 2:
        group = _group("weight_scale", columns, scale.shape[1], scheme)
        _expect(parts, "weight_scale", SCALES, scale.shape)
    else:
        _expect(parts, "weight_scale", SCALES, (rows,), (1,), ())
    if "weight_zero_point" in parts:
        _expect(parts, "weight_zero_point", ("I8",), *(() if scale is None else (scale.shape,)))
    return _packed("int8", rows, columns, scheme, 8, group)


def _fp8(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    _expect(parts, "weight", ("F8_E4M3",), (rows, columns))
    name = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    tall, wide = scheme.block
    blocks = (-(-rows // tall), -(-columns // wide))
    _expect(parts, name, SCALES, (), (1,), (1, 1), (rows, 1), (rows,), blocks)
    label = f"FP8 {tall}x{wide}" if parts[name].shape == blocks and math.prod(blocks) > 1 else "FP8"
    return Packed("fp8", label, rows, columns, scheme, 8)


def _mxfp4(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    if columns % 32:
        raise FormatError("", f"{columns} inputs are no multiple of MXFP4's 32")
    if "weight_blocks" in parts:
        _expect(parts, "weight_blocks", ("U8",), (rows, columns // 32, 16))
        _expect(parts, "weight_scales", ("U8",), (rows, columns // 32))
    else:
        _expect(parts, "weight_packed", ("U8",), (rows, columns // 2))
        _expect(parts, "weight_scale", ("U8",), (rows, columns // 32))
    return Packed("mxfp4", "MXFP4", rows, columns, scheme, 4, 32)


def _nvfp4(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    if columns % 16:
        raise FormatError("", f"{columns} inputs are no multiple of NVFP4's 16")
    packed, scale = (
        ("weight_packed", "weight_global_scale") if "weight_packed" in parts else ("weight", "weight_scale_2")
    )
    _expect(parts, packed, ("U8",), (rows, columns // 2))
    _expect(parts, "weight_scale", ("F8_E4M3",), (rows, columns // 16))
    _expect(parts, scale, ("F32",), (1,), ())
    return Packed("nvfp4", "NVFP4", rows, columns, scheme, 4, 16)


def _bnb4(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    size = -(-rows * columns // 2)
    _expect(parts, "weight", ("U8",), (size, 1), (1, size), (size,))
    _expect(parts, "weight.quant_map", ("F32",), (16,))
    nested = "weight.nested_absmax" in parts
    absmax = parts["weight.absmax"]
    _expect(parts, "weight.absmax", ("U8",) if nested else ("F32",), (math.prod(absmax.shape),))
    if nested:
        _expect(parts, "weight.nested_quant_map", ("F32",), (256,))
        _expect(parts, "weight.nested_absmax", ("F32",), (_axis(parts["weight.nested_absmax"], 0),))
    state = [name for name in parts if name.startswith(BNB_STATE)]
    if len(state) != 1:
        raise FormatError("weight", f"needs one {BNB_STATE}*, has {len(state)}")
    kind = state[0].removeprefix(BNB_STATE)
    if kind not in ("nf4", "fp4"):
        raise FormatError(state[0], "is neither nf4 nor fp4")
    _expect(parts, state[0], ("U8",), (_axis(parts[state[0]], 0),))
    return Packed("bnb4", f"bitsandbytes {kind}", rows, columns, scheme, 4)


def _bnb8(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    _expect(parts, "weight", ("I8",), (rows, columns))
    _expect(parts, "SCB", ("F32",), (rows,))
    return Packed("bnb8", "bitsandbytes int8", rows, columns, scheme, 8)


def _own(parts: Parts, rows: int, columns: int, scheme: Scheme) -> Packed:
    name, *more = (name for name in OWN_CODES if name in parts)
    if more:
        raise FormatError(more[0], f"stands beside {name}")
    group = OWN_CODES[name]
    groups = -(-columns // group)
    _expect(parts, name, ("U8",), (rows, -(-columns // 2)))
    _expect(parts, "scales", ("F16",), (rows, groups))
    _expect(parts, "zeros", ("U8",), (rows, groups))
    if "order" in parts:
        _expect(parts, "order", ("I32",), (columns,))
    return _packed("lmtop", rows, columns, scheme, 4, group)


_CHECKS: dict[str, Callable[[Parts, int, int, Scheme], Packed]] = {
    "awq": _awq,
    "gptq": _gptq,
    "pack": _pack,
    "int8": _int8,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "bnb4": _bnb4,
    "bnb8": _bnb8,
    "lmtop": _own,
}
# --- helpers ------------------------------------------------------------------------------------------------------


def _packed(kind: str, rows: int, columns: int, scheme: Scheme, bits: int, group: int) -> Packed:
    size = "" if group >= columns else f" g{group}"
    return Packed(kind, f"{NAMES[kind]} int{bits}{size}", rows, columns, scheme, bits, group)


def _axis(header: Header | None, axis: int) -> int:
    return header.shape[axis] if header is not None and len(header.shape) > axis else 0


def _expect(parts: Parts, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    """FormatError unless `name` is there, of one of the types and of one of the shapes."""
    header = parts.get(name)
    if header is None:
        raise FormatError("", f"comes without {name}")
    if header.dtype not in dtypes:
        raise FormatError(name, f"is {header.dtype}, expected {' or '.join(dtypes)}")
    if tuple(header.shape) not in shapes:
        expected = " or ".join(str([*shape]) for shape in dict.fromkeys(shapes))
        raise FormatError(name, f"is {[*header.shape]}, expected {expected}")


def _agreed_bits(part: str, bits: int, scheme: Scheme) -> None:
    if scheme.bits and bits not in scheme.bits and not scheme.mixed:
        said = " or ".join(map(str, scheme.bits))
        raise FormatError(part, f"holds {bits}-bit codes, but the configuration says {said} bits")


def _group(part: str, columns: int, groups: int, scheme: Scheme) -> int:
    """Columns per scale, from how many there are: as the configuration says, or as it must be."""
    for said in scheme.groups:
        size = columns if said == -1 else said
        if -(-columns // size) == groups:
            return size
    if groups and columns % groups == 0 and (scheme.mixed or not scheme.groups):
        return columns // groups
    sizes = " or ".join(map(str, scheme.groups)) or "no size that divides them"
    raise FormatError(
        part, f"{groups} scales for {columns} inputs, but the configuration says groups of {sizes}"
    )
