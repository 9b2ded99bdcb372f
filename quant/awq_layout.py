"""The tensors in which AWQ checkpoints store a linear layer, version "gemm", as AutoAWQ and LMDeploy write them.

qweight [in, out / 8] int32; qzeros [groups, out / 8] int32; scales [groups, out] float16. Eight neighbouring outputs
share a word: nibble i, from the lowest, holds output ORDER[i] of the eight. `quant.formats_int` reads it.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels.ops import Int4
from .formats_int import pack_words

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PER_WORD = 8


def pack(layer: Int4) -> dict[str, Tensor]:
    """The three tensors of `layer`, on its device. Outputs must be a multiple of 8."""
    return {
        "qweight": _words(layer.codes),
        "qzeros": _words(layer.zeros),
        "scales": layer.scales.t().contiguous(),
    }


def _words(codes: Tensor) -> Tensor:
    """[out, n] of 0..15 -> [n, out / 8] int32."""
    eights = codes.t().reshape(codes.shape[1], -1, PER_WORD)
    return pack_words(eights[..., ORDER].flatten(1), 4)
