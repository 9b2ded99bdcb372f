"""The CUDA cache's layout, in torch: what the GPU tests compare with."""

from __future__ import annotations

import pytest
import torch
from support.kv_records import fill_cache, read_cache

from lmtop.kernels.cuda.kv import new_cache, record_bytes
from lmtop.kernels.reference_kv import dequantise, quantise
from lmtop.quant.kv import kv_bytes_per_token


@pytest.mark.parametrize(("kv", "bits"), [("16", 16), ("int8", 8), ("int4", 4)])
def test_a_record_reads_as_the_reference_stores_it(kv: str, bits: int) -> None:
    layer = new_cache(3, 2, 24, block_size=16, bits=bits, device="cpu")
    keys, values = torch.randn(2, 3, 2, 16, 24).half()
    fill_cache(layer, keys, values)
    for stored, given in zip(read_cache(layer), (keys, values), strict=True):
        want = given.float() if bits == 16 else dequantise(*quantise(given, bits), bits)
        assert torch.equal(stored, want)
    assert 2 * record_bytes(24, 16, bits) == 16 * kv_bytes_per_token(1, 2, 24, kv)
