"""Formats of the KV cache and what they cost. Imports no torch.

Quantised formats are asymmetric per token and head: x = minimum + scale * code, with both in float16, as
LMDeploy's online int8 and int4 caches (the source of the names and of `quant_policy`).
"""

from __future__ import annotations

KV_FORMATS = ("16", "int8", "int4")
PARAMETER_BYTES = 4  # float16 scale and minimum of one head of one token


def kv_bits(kv: str) -> int:
    """Bits of one number of the format; "16" is the model's own type."""
    return {"16": 16, "int8": 8, "int4": 4}[kv]


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, kv: str, width: int = 2) -> int:
    """Bytes of keys and values of one token in all layers. `width`: bytes of a number of the model's type,
    which format "16" stores."""
    head = head_dim * width if kv == "16" else head_dim * kv_bits(kv) // 8 + PARAMETER_BYTES
    return 2 * layers * kv_heads * head
