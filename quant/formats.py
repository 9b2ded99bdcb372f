"""How checkpoints store quantised matrices: what their configuration says, and what was found.

Imports no torch. `quant.formats_headers` tells the format of a matrix from its tensors' headers, `quant.formats_int`
and `quant.formats_dense` read the contents. Layouts: AWQ and GPTQ as written by AutoAWQ, AutoGPTQ and GPTQModel;
compressed-tensors as by vllm-project/compressed-tensors; FP8 as by DeepSeek-V3 (blocks) and fbgemm (channels); MXFP4
as in the OCP microscaling specification, and in gpt-oss's two tensors; 4 and 8 bit as by bitsandbytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KERNEL_GROUPS = (128, 64, 32)  # group sizes that four-bit kernels exist for
OWN_CODES = {f"codes_g{group}": group for group in KERNEL_GROUPS}  # as `lmtop convert` names them
INTEGER = ("awq", "gptq", "pack", "lmtop")  # formats of integer codes
# Tensors beside a linear layer's weight that say how to quantise activations or the KV cache: not used here.
IGNORED = _words(
    """
    input_scale input_scale_ub input_zero_point input_global_scale output_scale output_zero_point
    k_scale v_scale q_scale kv_scale prob_scale
    """
)
BNB_STATE = "weight.quant_state.bitsandbytes__"


class FormatError(ValueError):
    """A quantised matrix that cannot be read. `part` names the tensor ("scales"), or is empty."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


class Header(Protocol):
    """What a file's header tells of a tensor: safetensors' name of its type, and its shape."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a checkpoint's configuration says of its matrices; the tensors must agree.

    formats: which they may be in. bits, groups: allowed widths, and inputs per scale (-1: a whole row); empty where
    it does not say. symmetric: the zero points it announces, None where it leaves that to the tensors.
    zero_offset: what GPTQ's first version took off its stored zero points. block: rows and columns per FP8 scale.
    mixed: single layers may differ from `bits` and `groups`.
    """

    method: str
    formats: tuple[str, ...]
    bits: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    symmetric: bool | None = None
    zero_offset: int = 0
    act_order: bool = False
    block: tuple[int, int] = (128, 128)
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """How one matrix [rows, columns] is stored. group: columns per scale, 0 where scales do not run along columns;
    label: what people call it, e.g. "GPTQ int4 g128"."""

    format: str
    label: str
    rows: int
    columns: int
    scheme: Scheme
    bits: int = 0
    group: int = 0

    @property
    def int4(self) -> bool:
        """Whether it is made of integer codes of four bits."""
        return self.bits == 4 and self.format in INTEGER

    @property
    def kernel_group(self) -> int:
        """The group size in which four-bit kernels can run it with its own scales, repeated where need be; 0 where
        none can."""
        if self.format == "lmtop":
            return self.group
        if not self.int4 or self.columns % 8:
            return 0
        if self.group >= self.columns:
            return KERNEL_GROUPS[0]
        return next((size for size in KERNEL_GROUPS if self.group % size == 0), 0)


Parts = Mapping[str, Header]
NAMES = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "pack": "compressed-tensors",
    "int8": "compressed-tensors",
    "fp8": "FP8",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "bnb4": "bitsandbytes 4-bit",
    "bnb8": "bitsandbytes 8-bit",
    "lmtop": "lmtop",
}
_PARTS = (
    IGNORED
    | OWN_CODES.keys()
    | _words(
        """
    weight bias qweight qzeros scales zeros order g_idx weight_packed weight_scale weight_shape weight_zero_point
    weight_g_idx weight_scale_inv weight_scale_2 weight_global_scale weight_blocks weight_scales SCB weight_format
    weight.absmax weight.quant_map weight.nested_absmax weight.nested_quant_map
    """
    )
)


def is_quantised(parts: Parts) -> bool:
    """Whether these tensors of a linear layer, by name, are anything but a plain weight."""
    weight = parts.get("weight")
    return weight is None or weight.dtype not in ("F16", "BF16", "F32", "F64")


def is_part(name: str) -> bool:
    """Whether a linear layer may have a tensor of this name."""
    return name in _PARTS or name.startswith(BNB_STATE)


def used(parts: Parts) -> tuple[str, ...]:
    """Names of the tensors that are needed to read the matrix, largest first."""
    names = [name for name in parts if name not in IGNORED and name != "bias"]
    return tuple(sorted(names, key=lambda name: -math.prod(parts[name].shape)))


def outputs(parts: Parts, columns: int) -> int:
    """Rows of a matrix with `columns` inputs, from its tensors; 0 where they do not tell."""
    for name, axis in (
        *((name, 0) for name in OWN_CODES),
        ("scales", -1),
        ("weight_packed", 0),
        ("weight_blocks", 0),
    ):
        if name in parts and parts[name].shape:
            return parts[name].shape[axis]
    weight = parts.get("weight")
    if weight is None or not weight.shape:
        return 0
    return 2 * math.prod(weight.shape) // columns if "weight.absmax" in parts else weight.shape[0]
