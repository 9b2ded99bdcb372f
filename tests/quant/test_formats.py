"""Packed codes survive packing and unpacking, whatever their shape; and other people's packers agree with ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import quantised
from support.tiny import SHARED, checkpoint, load
from torch import Tensor

from lmtop.quant import formats_headers
from lmtop.quant.formats import FormatError, Packed, Scheme
from lmtop.quant.formats_dense import dequantise
from lmtop.quant.formats_int import column_order, half_scales, pack_words, read_codes, regroup, unpack_words

ANY = Scheme("any", ("awq", "gptq", "pack", "int8", "fp8", "mxfp4", "nvfp4", "bnb4", "bnb8"), zero_offset=1)
DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class Told:
    dtype: str
    shape: tuple[int, ...]


def headers(tensors: Mapping[str, Tensor]) -> dict[str, Told]:
    return {name: Told(DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def recognise(tensors: Mapping[str, Tensor], weight: Tensor, scheme: Scheme = ANY) -> Packed:
    return formats_headers.recognise(headers(tensors), *weight.shape, scheme)


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


# --- round trips -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_words_hold_what_was_packed(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).byte()
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack_words(words, bits)[:, :columns], codes)
    assert not unpack_words(words, bits)[:, columns:].any()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["awq", "gptq", "gptq_v2", "gptq_8bit", "ct", "ct_asym", "ct_asym_plain", "ct_8bit"]),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([8, 16, 32, 64, 128, -1]),
    st.integers(0, 2**31),
)
def test_codes_come_back(name: str, tall: int, wide: int, group: int, seed: int) -> None:
    """Every layout gives the codes, scales and zero points that went in, exactly."""
    rows, columns = 8 * tall, max(group, 8) * wide
    weight = noise(rows, columns, seed)
    bits = 8 if "8bit" in name else 4
    make = {
        "awq": lambda: quantised.awq(weight, group),
        "gptq": lambda: quantised.gptq(weight, group, bits),
        "gptq_v2": lambda: quantised.gptq(weight, group, bits, v2=True),
        "ct": lambda: quantised.compressed(weight, group, bits),
        "ct_asym": lambda: quantised.compressed(weight, group, bits, False),
        "ct_asym_plain": lambda: quantised.compressed(weight, group, bits, False, packed_zeros=False),
    }
    tensors, value = make[name.removesuffix("_8bit")]()
    scheme = Scheme("any", ANY.formats, zero_offset=0 if name == "gptq_v2" else 1, groups=(group,))
    packed = recognise(tensors, weight, scheme)
    assert packed.group == (columns if group == -1 else group)
    codes = read_codes(packed, tensors)
    assert codes.index is None
    assert torch.equal(dequantise(packed, tensors, torch.float32), value)
    signed = quantised.grid(
        weight,
        group,
        bits,
        name in ("ct", "ct_8bit"),
        dtype=torch.bfloat16 if "ct" in name else torch.float16,
    )
    assert torch.equal(codes.codes.long(), signed.codes)
    assert torch.equal(codes.zeros.long(), signed.zeros)
    assert torch.equal(codes.scales, signed.scales)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.sampled_from([8, 32, 40]), st.integers(0, 2**31))
def test_act_order_sorts_into_whole_groups(wide: int, group: int, seed: int) -> None:
    weight = noise(16, group * wide, seed)
    tensors, value = quantised.gptq(weight, group, act_order=seed)
    codes = read_codes(recognise(tensors, weight), tensors)
    assert torch.equal(dequantise(recognise(tensors, weight), tensors, torch.float32), value)
    if codes.index is None:  # the drawn order happened to be the natural one
        return
    order = column_order(codes)
    assert order is not None
    assert torch.equal(order.sort().values, torch.arange(group * wide))
    scales, zeros = (x.float().repeat_interleave(group, 1) for x in (codes.scales, codes.zeros))
    assert torch.equal((codes.codes[:, order] - zeros) * scales, value[:, order])


def test_groups_of_unequal_size_have_no_order() -> None:
    weight = noise(8, 64)
    tensors, _ = quantised.gptq(weight, 32, act_order=1)
    tensors["g_idx"] = torch.tensor([0] * 30 + [1] * 34, dtype=torch.int32)
    assert column_order(read_codes(recognise(tensors, weight), tensors)) is None


def test_compressed_tensors_says_no_order_by_minus_one() -> None:
    weight = noise(8, 64)
    tensors, value = quantised.compressed(weight)
    tensors["weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    packed = recognise(tensors, weight)
    assert read_codes(packed, tensors).index is None
    assert torch.equal(dequantise(packed, tensors, torch.float32), value)


@settings(deadline=None)
@given(st.sampled_from([32, 64, 128, 256, 96, 160]), st.integers(1, 5), st.booleans())
def test_repeated_scales_mean_the_same(group: int, groups: int, whole: bool) -> None:
    columns = group * groups
    values = noise(3, 1 if whole else groups)
    size = columns if whole else group
    packed = Packed("awq", "", 3, columns, ANY, 4, size)
    smaller = packed.kernel_group
    assert smaller in (32, 64, 128)
    spread = regroup(values, size, smaller, columns).repeat_interleave(smaller, 1)[:, :columns]
    assert torch.equal(spread, values.repeat_interleave(size, 1)[:, :columns])


def test_scales_in_half_precision() -> None:
    exact = torch.tensor([[0.5, 2.0**-24, -3.0]])
    rounded = torch.tensor([[0.1]])
    lost = torch.tensor([[2.0**-30]])
    wide = torch.tensor([[70000.0]])
    assert half_scales(exact, torch.float32) is not None
    assert half_scales(rounded, torch.float32) is None
    assert half_scales(rounded, torch.bfloat16) is not None
    assert half_scales(lost, torch.float16) is None
    assert half_scales(wide, torch.float16) is None
    assert torch.equal(rounded, torch.tensor([[0.1]]))  # left as it is


@pytest.mark.parametrize("group", [16, 8, 40])
def test_groups_that_no_kernel_has(group: int) -> None:
    assert Packed("awq", "", 8, 5 * group, ANY, 4, group).kernel_group == 0


# --- dequantising in pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in quantised.KINDS.items() if name != "gptq_act_apart"])
def test_some_rows_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = quantised.KINDS[name]
    weight = noise(72, 96)
    tensors, value = kind.make(weight)
    block = tuple(kind.config.get("weight_block_size", (128, 128)))
    offset = 0 if name == "gptq_v2" else 1
    packed = recognise(tensors, weight, Scheme("any", ANY.formats, zero_offset=offset, block=block))
    monkeypatch.setattr("lmtop.quant.formats_dense.NUMBERS", 1000)
    got = dequantise(packed, tensors, torch.float32)
    assert torch.allclose(got, value, rtol=1e-6, atol=1e-7)
    half = dequantise(packed, tensors, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, got.bfloat16())


# --- what other packages write -----------------------------------------------------------------------------


def test_compressed_tensors_packs_alike() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    weight = noise(16, 64)
    for bits in (4, 8):
        middle = 1 << (bits - 1)
        tensors, _ = quantised.compressed(weight, 32, bits, False)
        codes = read_codes(recognise(tensors, weight), tensors)
        words = helpers.pack_to_int32((codes.codes.short() - middle).to(torch.int8), bits)
        assert torch.equal(words, tensors["weight_packed"])
        zeros = helpers.pack_to_int32((codes.zeros.short() - middle).to(torch.int8), bits, packed_dim=0)
        assert torch.equal(zeros, tensors["weight_zero_point"])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_reads_alike(kind: str, nested: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes.functional")
    weight = noise(96, 128)  # rows of whole blocks: on a CPU, its reader takes each row's end for a block's
    data, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
    tensors = {"weight": data, **{f"weight.{name}": x for name, x in state.as_dict(packed=True).items()}}
    packed = recognise(tensors, weight)
    assert packed.label == f"bitsandbytes {kind}"
    want = bnb.dequantize_4bit(data, state)
    assert torch.allclose(dequantise(packed, tensors, torch.float32), want, atol=1e-5)


def test_the_reference_packers_agree() -> None:
    """The scripts beside the repository, which were compared with AutoAWQ's and AutoGPTQ's own packers."""
    path = SHARED / "reference" / "quant_layouts.py"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository")
    spec = importlib.util.spec_from_file_location("quant_layouts", path)
    assert spec is not None and spec.loader is not None
    layouts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layouts)
    grid = quantised.grid(noise(64, 96), 32)
    args = (grid.codes, grid.scales.float(), grid.zeros)
    for made, theirs in (
        (quantised.awq(noise(64, 96))[0], layouts.pack_awq(*args)),
        (quantised.gptq(noise(64, 96))[0], layouts.pack_gptq(*args)),
        (quantised.gptq(noise(64, 96), v2=True)[0], layouts.pack_gptq(*args, v2=True)),
        (
            quantised.compressed(noise(64, 96), symmetric=False, dtype=torch.float16)[0],
            layouts.pack_ct(*args),
        ),
    ):
        assert made.keys() == theirs.keys()
        assert all(torch.equal(made[name], theirs[name]) for name in made)


@pytest.mark.parametrize("name", ["ct", "ct_row", "fp8_channel"])
def test_transformers_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    directory = quantised.write(checkpoint("llama_gqa"), tmp_path / "q", quantised.KINDS[name])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.arange(3, 43)
    with torch.no_grad():
        want = model(ids[None], use_cache=False).logits[0]
    decoder = load(directory)
    cache = decoder.new_cache(8, 16)
    got = decoder.logits(decoder.prefill(ids, 0, torch.arange(1, 8), cache))
    assert (got - want).abs().max().item() <= 2e-5


def test_transformers_reads_mxfp4_alike() -> None:
    module = pytest.importorskip("transformers.integrations.mxfp4")
    tensors, value = quantised.mxfp4(noise(64, 96))
    blocks, scales = tensors["weight_blocks"][None], tensors["weight_scales"][None]
    want = module._convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)[0].t()
    assert torch.equal(want, value)


def test_a_tensor_of_no_known_format_is_named() -> None:
    with pytest.raises(FormatError, match="no known format: other"):
        formats_headers.recognise({"other": Told("I32", (2, 2))}, 2, 16, ANY)
    with pytest.raises(FormatError, match="is U8 without scales"):
        formats_headers.recognise({"weight": Told("U8", (2, 2))}, 2, 16, ANY)
