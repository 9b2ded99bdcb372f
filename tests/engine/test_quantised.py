"""Quantised checkpoints: logits equal those of the weights they stand for, and what cannot be read is refused."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import llama, quantised
from support.engines import loaded
from support.quantised import KINDS, plain_of
from support.tiny import checkpoint, load
from torch import Tensor

from lmtop.engine.config import DeviceInfo, EngineConfig, resolve
from lmtop.engine.hardware import Hardware, _matrices
from lmtop.engine.loader import sizes_of
from lmtop.engine.spec import read_spec
from lmtop.engine.types import ModelError, Notice
from lmtop.engine.weights import load_weights
from lmtop.kernels import reference
from lmtop.kernels.cuda.ops import CudaOps, Packed, _in_order
from lmtop.kernels.cuda.w4 import unpack_w4
from lmtop.kernels.ops import Dense, Int4

CPU = torch.device("cpu")
GIB = 1 << 30
GPU = DeviceInfo("cuda", "NVIDIA H200", 141 * GIB, 126 * GIB, 90)
IDS = torch.randint(0, 100, (40,), generator=torch.Generator().manual_seed(3))
FUSED = ["internlm2", "chatglm2", "glm", "baichuan2_7b", "qwen_v1", "qwen2", "phi3", "llama_bias", "qwen3"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain_llama(
    directory: Path, seed: int = 0, hidden: int = 64, inner: int = 160, bias: bool = False
) -> Path:
    of = llama.config(hidden=hidden, inner=inner, context=128)
    weights = llama.tensors(of, seed)
    if bias:
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            weights[name.removesuffix("weight") + "bias"] = torch.randn(weights[name].shape[0]) / 4
    return llama.write(directory, of, weights)


def logits(directory: Path) -> Tensor:
    decoder = load(directory)
    cache = decoder.new_cache(8, 16)
    return decoder.logits(decoder.prefill(IDS, 0, torch.arange(1, 8), cache))


def assert_equal_logits(directory: Path) -> None:
    got, want = logits(directory), logits(plain_of(directory))
    assert (got - want).abs().max().item() <= 2e-6 * max(10.0, want.abs().max().item())


# --- bar 1: the numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_logits_equal_those_of_the_dequantised_weights(tmp_path: Path, name: str, seed: int) -> None:
    source = plain_llama(tmp_path / "plain", seed, bias=seed == 1)
    directory = quantised.write(source, tmp_path / "q", KINDS[name])
    assert read_spec(directory).quantised == KINDS[name].label
    assert_equal_logits(directory)


@pytest.mark.parametrize("hidden,inner", [(72, 52), (96, 204), (264, 136)])
@pytest.mark.parametrize(
    "name", ["ct_row", "ct", "ct_asym", "awq", "gptq", "fp8_block", "fp8_channel", "nf4"]
)
def test_odd_sizes(tmp_path: Path, name: str, hidden: int, inner: int) -> None:
    """Sizes that no group divides; a matrix that the format cannot hold stays plain, as writers do it."""
    source = plain_llama(tmp_path / "plain", 4, hidden, inner)
    assert_equal_logits(quantised.write(source, tmp_path / "q", KINDS[name]))


@pytest.mark.parametrize("name", ["awq", "gptq", "gptq_act", "ct_asym", "fp8_block", "mxfp4", "nf4_nested"])
@pytest.mark.parametrize("family", FUSED)
def test_fused_and_interleaved_layouts(tmp_path: Path, family: str, name: str) -> None:
    assert_equal_logits(quantised.write(checkpoint(family), tmp_path / "q", KINDS[name]))


@pytest.mark.parametrize("name", ["awq", "gptq_act", "fp8_channel"])
def test_a_quantised_head(tmp_path: Path, name: str) -> None:
    kind = replace(KINDS[name], fits=lambda rows, columns: True)
    of = llama.config(vocab=264, context=128)
    source = llama.write(tmp_path / "plain", of, llama.tensors(of))
    directory = quantised.write(source, tmp_path / "q", kind, head=True)
    assert_equal_logits(directory)
    assert ((-1, "lm_head") in read_spec(directory).int4) is kind.kept


@pytest.mark.parametrize("name", KINDS)
def test_which_codes_are_kept(tmp_path: Path, name: str) -> None:
    """Four-bit codes stay as they are wherever kernels can run them, in a group size that they have."""
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS[name])
    weights = load_weights(read_spec(directory), torch.float32, CPU, lambda share, text: None, lambda: False)
    for layer in weights.layers:
        linears = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        for role, linear in linears.items():
            if KINDS[name].kept:
                assert isinstance(linear, Int4)
                assert linear.group in (32, 64, 128)
                assert (linear.order is not None) is ("act" in name)
            elif name == "gptq_act_apart":  # only what is fused has parts that disagree
                assert isinstance(linear, Dense) is (role in ("qkv", "gate_up"))
            else:
                assert isinstance(linear, Dense)


def test_a_layer_whose_parts_differ_becomes_plain_as_a_whole(tmp_path: Path) -> None:
    source = llama.write_llama(tmp_path / "plain")
    directory = quantised.write(source, tmp_path / "q", KINDS["awq"], lambda name: "0.self_attn.k" in name)
    files = read_spec(directory)
    assert sorted({(0, role) for role in ("qkv", "o", "gate_up", "down")} - files.int4.keys()) == [(0, "qkv")]
    assert_equal_logits(directory)
    backend, client = loaded(directory, device="cpu", weights="int4", session_len=64)
    (said,) = [e.text for e in client.events if isinstance(e, Notice) and "no kernel" in e.text]
    backend.close()
    assert "layers.0.self_attn.q_proj, model.layers.0.self_attn.v_proj" in said


def test_groups_of_256_run_in_groups_of_128(tmp_path: Path) -> None:
    kind = replace(KINDS["awq"], make=lambda w: quantised.awq(w, 256), config={"quant_method": "awq"})
    kind = replace(kind, fits=lambda rows, columns: columns % 256 == 0)
    directory = quantised.write(plain_llama(tmp_path / "plain", hidden=256, inner=512), tmp_path / "q", kind)
    assert set(read_spec(directory).int4.values()) == {128}
    assert_equal_logits(directory)


def test_scales_too_small_for_float16_are_not_rounded(tmp_path: Path) -> None:
    def tiny(weight: Tensor) -> quantised.Made:
        tensors, value = quantised.compressed(weight)
        tensors["weight_scale"] *= 2.0**-20
        return tensors, value * 2.0**-20

    kind = replace(KINDS["ct"], make=lambda w: tiny(w) if w.shape == (64, 160) else quantised.compressed(w))
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", kind)
    assert_equal_logits(directory)
    files = read_spec(directory)
    weights = load_weights(files, torch.bfloat16, CPU, lambda share, text: None, lambda: False)
    assert [type(layer.down) for layer in weights.layers] == [Dense, Dense]
    assert isinstance(weights.layers[0].qkv, Int4)
    assert len(weights.plain) == 2


def test_negative_scales_are_numbers_like_others(tmp_path: Path) -> None:
    """As AutoRound's symmetric weights may have."""

    def negative(weight: Tensor) -> quantised.Made:
        tensors, value = quantised.gptq(weight, symmetric=True)
        tensors["scales"] = -tensors["scales"]
        return tensors, -value

    kind = replace(KINDS["auto_round"], make=negative)
    assert_equal_logits(quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", kind))


def test_symmetric_gptq_that_is_mislabelled_as_the_first_version(tmp_path: Path) -> None:
    kind = replace(KINDS["gptq_sym"], make=lambda w: quantised.gptq(w, symmetric=True, v2=True))
    assert_equal_logits(quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", kind))


def test_scales_of_activations_and_of_the_cache_are_passed_over(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
        tensors["model.layers.1.self_attn.v_scale"] = torch.ones(1)
        tensors["model.layers.1.self_attn.k_proj.output_scale"] = torch.ones(1)

    source = plain_llama(tmp_path / "plain")
    assert_equal_logits(quantised.write(source, tmp_path / "q", KINDS["fp8_tensor"], change=add))


# --- the plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["16", "int4"])
@pytest.mark.parametrize("name", ["awq", "gptq_act", "ct_row", "gptq_8bit", "fp8_block", "nf4"])
def test_the_plan_knows_the_bytes(tmp_path: Path, name: str, weights: str) -> None:
    source = plain_llama(tmp_path / "plain", hidden=256, inner=512)
    files = read_spec(quantised.write(source, tmp_path / "q", KINDS[name]))
    config = EngineConfig("m", device="cpu", weights=weights)
    plan = resolve(config, sizes_of(files), DeviceInfo("cpu", "CPU", 64 * GIB, 48 * GIB))
    hardware = Hardware(CPU, reference, plan, config)
    got = load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: False, hardware.layer)
    assert got.nbytes == pytest.approx(plan.weights, rel=0.03)
    own = KINDS[name].kept and weights == "int4"
    assert plan.own == (KINDS[name].label if own else "")
    assert plan.weights_name == (KINDS[name].label if own else "int4 g128" if weights == "int4" else "fp32")
    assert any("dequantised to fp32 at load" in notice for notice in plan.notices) is not own
    if weights == "16":
        assert isinstance(got.layers[0].qkv, Dense)


@pytest.mark.parametrize("weights", ["auto", "16", "int4"])
@pytest.mark.parametrize("name", ["awq", "awq_row", "fp8_block"])
def test_kernels_are_compiled_for_the_matrices_that_are_loaded(
    tmp_path: Path, name: str, weights: str
) -> None:
    """Per matrix: its group is its own, where a checkpoint has codes, and one part of a layer may lack them."""
    source = plain_llama(tmp_path / "plain")
    directory = quantised.write(source, tmp_path / "q", KINDS[name], lambda name: "1.self_attn.k" in name)
    files = read_spec(directory)
    config = EngineConfig("m", weights=weights, dtype="float16")
    plan = resolve(config, sizes_of(files), GPU)
    hardware = Hardware(CPU, reference, plan, config)
    got = load_weights(files, torch.float16, CPU, lambda share, text: None, lambda: False, hardware.layer)
    seen = set()
    for layer in got.layers:
        for role in ("qkv", "o", "gate_up", "down"):
            linear = getattr(layer, role)
            rows, columns = (linear.codes if isinstance(linear, Int4) else linear.weight).shape
            seen.add((rows, columns, linear.group if isinstance(linear, Int4) else 0, role == "gate_up"))
    seen.add((*got.head.weight.shape, 0, False))
    assert {(m.rows, m.columns, m.group, m.gate_up) for m in _matrices(plan, files)} == seen
    if weights != "16" and name == "awq":
        assert {(128, 64, 32, False), (128, 64, 0, False)} < seen  # q|k|v of the two layers


def test_layers_of_other_widths_and_groups(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: what a layer is stored in stands in its tensors."""

    def make(weight: Tensor) -> quantised.Made:
        if weight.shape == (64, 160):
            return quantised.gptq(weight, 32, bits=8)
        return quantised.gptq(weight, 64 if weight.shape[0] == 160 else 32)

    kind = replace(KINDS["gptq"], make=make, config={**KINDS["gptq"].config, "dynamic": {"-:.*": {}}})
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", kind)
    files = read_spec(directory)
    assert {role: group for (_, role), group in files.int4.items()} == {"qkv": 32, "o": 32, "gate_up": 128}
    assert_equal_logits(directory)


def test_nan_among_float8_weights_is_told(tmp_path: Path) -> None:
    """M18: a notice, as for plain weights."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].view(torch.uint8)[3, 5] = 0x7F

    directory = quantised.write(
        plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS["fp8_block"], change=change
    )
    files = read_spec(directory)
    weights = load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: False)
    assert weights.notices == ("The weights hold NaN or infinity in model.layers.1.mlp.up_proj.weight.",)


@pytest.mark.parametrize("name", ["awq_row", "gptq_act", "ct_asym"])
def test_packed_for_a_gpu_they_are_the_same_codes(tmp_path: Path, name: str) -> None:
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS[name])
    weights = load_weights(read_spec(directory), torch.float16, CPU, lambda share, text: None, lambda: False)
    for role in ("qkv", "o", "gate_up", "down"):
        layer = getattr(weights.layers[0], role)
        packed = CudaOps.prepare(None, layer, role == "gate_up")  # type: ignore[arg-type]
        assert isinstance(packed, Packed)
        codes, scales, zeros = unpack_w4(packed.weight)
        assert torch.equal(codes, layer.codes)
        assert torch.equal(scales, layer.scales)
        assert torch.equal(zeros, layer.zeros)
        assert packed.order is layer.order
        x, gain = torch.rand(2, codes.shape[1])
        norm = CudaOps._norm(SimpleNamespace(_norms={}), gain, 1e-5, packed)  # type: ignore[arg-type]
        order = torch.arange(len(gain)) if layer.order is None else layer.order
        assert torch.equal(norm.gain * norm.scale, gain[order])
        assert torch.equal(_in_order(x[None], packed), x[None, order])


def awq_8b(directory: Path, group: int) -> Path:
    """The headers of an 8B Llama in AWQ; its file is a hole."""
    of = llama.config(vocab=128256, hidden=4096, inner=14336, layers=32, context=8192)
    of |= {"num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "float16"}
    of["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    header: dict[str, Any] = {}
    at = 0

    def add(name: str, dtype: str, *shape: int) -> None:
        nonlocal at
        size = math.prod(shape) * (4 if dtype == "I32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size

    for layer in range(32):
        for name, rows, columns in (
            ("self_attn.q_proj", 4096, 4096),
            ("self_attn.k_proj", 1024, 4096),
            ("self_attn.v_proj", 1024, 4096),
            ("self_attn.o_proj", 4096, 4096),
            ("mlp.gate_proj", 14336, 4096),
            ("mlp.up_proj", 14336, 4096),
            ("mlp.down_proj", 4096, 14336),
        ):
            linear = f"model.layers.{layer}.{name}"
            add(f"{linear}.qweight", "I32", columns, rows // 8)
            add(f"{linear}.qzeros", "I32", columns // group, rows // 8)
            add(f"{linear}.scales", "F16", columns // group, rows)
        add(f"model.layers.{layer}.input_layernorm.weight", "F16", 4096)
        add(f"model.layers.{layer}.post_attention_layernorm.weight", "F16", 4096)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        add(name, "F16", 128256, 4096)
    add("model.norm.weight", "F16", 4096)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(of))
    text = json.dumps(header).encode()
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + at)
    return directory


@pytest.mark.parametrize("group", [128, 32])
def test_an_8b_on_a_gpu_needs_what_its_packed_matrices_take(tmp_path: Path, group: int) -> None:
    files = read_spec(awq_8b(tmp_path / "m", group))
    assert files.quantised == f"AWQ int4 g{group}"
    assert files.parameters == 8_030_261_248
    assert files.dtype == "float16"
    plan = resolve(EngineConfig("m"), sizes_of(files), GPU)
    assert (plan.own, plan.weight_format, plan.dtype) == (files.quantised, "int4", "float16")
    some = Int4(
        torch.zeros(1024, 4096, dtype=torch.uint8),
        torch.ones(1024, 4096 // group, dtype=torch.float16),
        torch.zeros(1024, 4096 // group, dtype=torch.uint8),
        group,
    )
    packed = CudaOps.prepare(None, some).nbytes / (1024 * 4096)  # type: ignore[arg-type]
    matrices = files.parameters - 2 * 128256 * 4096 - 65 * 4096
    assert plan.weights == pytest.approx(matrices * packed + 2 * 2 * 128256 * 4096, rel=0.001)
    assert group != 128 or plan.weights <= 5.8 * GIB
    assert resolve(EngineConfig("m", weights="16"), sizes_of(files), GPU).weights == 2 * files.parameters


def test_a_cpu_with_room_makes_four_bit_weights_plain_and_says_so(tmp_path: Path) -> None:
    sizes = sizes_of(read_spec(awq_8b(tmp_path / "m", 128)))
    roomy = resolve(EngineConfig("m"), sizes, DeviceInfo("cpu", "CPU", 256 * GIB, 200 * GIB))
    assert (roomy.weight_format, roomy.dtype) == ("16", "float32")
    assert roomy.notices == (
        "AWQ int4 g128 weights are dequantised to fp32 at load: faster on a CPU; weights = int4 keeps them small",
    )
    tight = resolve(EngineConfig("m"), sizes, DeviceInfo("cpu", "CPU", 16 * GIB, 14 * GIB))
    assert (tight.weight_format, tight.own) == ("int4", "AWQ int4 g128")
    assert tight.fits


def test_a_quantised_model_answers_and_tells_what_it_is(tmp_path: Path) -> None:
    source = llama.write_llama(tmp_path / "plain")
    directory = quantised.write(source, tmp_path / "q", KINDS["gptq_act"])
    backend, client = loaded(directory, device="cpu", weights="int4", session_len=64)
    assert client.state().info is not None
    assert client.state().info.weights == "GPTQ int4 g32"  # type: ignore[union-attr]
    assert client.state().info.stored == "GPTQ int4 g32"  # type: ignore[union-attr]
    backend.close()
    backend, client = loaded(quantised.write(source, tmp_path / "f", KINDS["fp8_block"]), session_len=64)
    texts = [event.text for event in client.events if isinstance(event, Notice)]
    assert [text for text in texts if "FP8" in text] == ["FP8 48x40 weights are dequantised to fp32 at load"]
    backend.close()


# --- what is refused ---------------------------------------------------------------------------------------

At = "model.layers.1.mlp.up_proj."
Change = Callable[[dict[str, Tensor]], None]


def refused(tmp_path: Path, name: str, change: Change, config: dict[str, Any] | None = None) -> str:
    """The one line with which a checkpoint is refused, by its headers or by its contents."""
    kind = KINDS[name]
    if config is not None:
        kind = replace(kind, config={**kind.config, **config})
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", kind, change=change)
    with pytest.raises(ModelError) as error:
        load_weights(read_spec(directory), torch.float32, CPU, lambda share, text: None, lambda: False)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3
    return str(error.value)


def cut(part: str, axis: int, by: int = 1) -> Change:
    """Q5: one column or row less."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[At + part]
        tensors[At + part] = tensor.narrow(axis, 0, tensor.shape[axis] - by).contiguous()

    return change


def spoil(part: str, value: float) -> Change:
    """One number of a tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[At + part].view(-1)[-1] = value

    return change


def drop(*parts: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        for part in parts:
            del tensors[At + part]

    return change


def add(part: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[At + part] = torch.zeros(1)

    return change


def cast(part: str, dtype: torch.dtype) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[At + part] = tensors[At + part].to(dtype)

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("awq", cut("qweight", 1), "up_proj.qweight is [64, 19], expected [64, 20]"),
        ("awq", cut("qweight", 0), "up_proj.qweight is [63, 20], expected [64, 20]"),
        ("awq", cut("qzeros", 1), "up_proj.qzeros is [2, 19], expected [2, 20]"),
        ("awq", cut("scales", 0), "up_proj.qzeros is [2, 20], expected [1, 20]"),
        ("awq", drop("qzeros"), "up_proj comes without qzeros"),
        ("awq", add("g_idx"), "up_proj.g_idx does not belong to a matrix in AWQ"),
        ("awq", drop("scales"), "tensors of no known format: qweight, qzeros"),
        ("awq", cast("scales", torch.int32), "up_proj.scales is I32, expected F16 or BF16 or F32"),
        ("gptq", cut("qweight", 0), "up_proj.qweight is [7, 160], expected [8, 160]"),
        ("gptq", cut("g_idx", 0), "up_proj.g_idx is [63], expected [64]"),
        ("gptq", cut("qzeros", 1), "up_proj.qzeros 3-bit GPTQ is not supported"),
        ("gptq_act", drop("g_idx"), "comes without g_idx, but the configuration says desc_act"),
        ("gptq_act", spoil("g_idx", 9), "up_proj.g_idx names group 9, there are 2"),
        ("gptq_sym", spoil("qzeros", 0x12345678), "up_proj.qzeros the configuration says symmetric"),
        ("ct", cut("weight_packed", 1), "up_proj.weight_packed is [160, 7], expected [160, 8]"),
        ("ct", spoil("weight_shape", 65), "up_proj.weight_shape is [160, 65], expected [160, 64]"),
        ("ct", drop("weight_scale"), "up_proj comes without weight_scale"),
        ("ct_asym", drop("weight_zero_point"), "has no zero points, but the configuration says asymmetric"),
        ("ct_asym_plain", spoil("weight_zero_point", 99), "weight_zero_point is not within -8 to 7"),
        ("ct_act", spoil("weight_g_idx", -3), "weight_g_idx names group -3"),
        ("fp8_block", cut("weight_scale_inv", 0), "weight_scale_inv is [3, 2], expected"),
        ("fp8_block", drop("weight_scale_inv"), "comes without weight_scale"),
        ("fp8_channel", cast("weight", torch.float8_e5m2), "weight is F8_E5M2, expected F8_E4M3"),
        ("mxfp4", cut("weight_blocks", 1), "weight_blocks is [160, 1, 16], expected [160, 2, 16]"),
        ("mxfp4", spoil("weight_scales", 255), "weight_scales holds NaN"),
        ("nvfp4", cut("weight_scale", 1), "weight_scale is [160, 3], expected [160, 4]"),
        ("nf4", cut("weight", 0), "up_proj.weight is [5119, 1], expected [5120, 1]"),
        ("nf4", cut("weight.absmax", 0), "weight.absmax holds 159 numbers for 160 blocks of 64"),
        ("nf4", drop("weight.quant_state.bitsandbytes__nf4"), "needs one weight.quant_state"),
        ("nf4", spoil("weight.quant_state.bitsandbytes__nf4", 7), "bitsandbytes__nf4 is not valid JSON"),
        ("nf4_nested", spoil("weight.nested_absmax", math.nan), "weight.nested_absmax holds NaN"),
        ("bnb8", cut("SCB", 0), "SCB is [159], expected [160]"),
    ],
)
def test_q5_tensors_that_do_not_fit(tmp_path: Path, name: str, change: Change, words: str) -> None:
    message = refused(tmp_path, name, change)
    assert words in message
    assert message.startswith("model.safetensors: model.layers.1.mlp.up_proj")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("awq", "scales"),
        ("gptq", "scales"),
        ("ct", "weight_scale"),
        ("ct_w8a8", "weight_scale"),
        ("fp8_block", "weight_scale_inv"),
        ("fp8_tensor", "weight_scale"),
        ("nvfp4", "weight_global_scale"),
    ],
)
def test_q4_scales_that_are_no_numbers(tmp_path: Path, name: str, part: str, value: float) -> None:
    message = refused(tmp_path, name, spoil(part, value))
    assert message.startswith(f"model.safetensors: {At}{part} holds ")
    assert message.endswith("a scale of zero" if value == 0 else "NaN or infinity")


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("awq", {"group_size": 0}, "group_size: must be an integer from 1"),
        ("awq", {"group_size": 7}, "5 scales for 160 inputs, but the configuration says groups of 7"),
        ("awq", {"group_size": 128}, "5 scales for 160 inputs, but the configuration says groups of 128"),
        ("awq", {"group_size": "32"}, 'group_size: must be an integer from 1 to 16777216, not "32"'),
        ("awq", {"bits": 3}, "bits: 3-bit weights are not supported; only 4 bits are"),
        ("awq", {"version": "gemv"}, 'version: "gemv" is another layout than gemm'),
        ("awq", {"version": "gemv_fast"}, "use a gemm checkpoint"),
        ("awq", {"quant_method": "gptq"}, "is stored as AWQ, but the configuration says GPTQ"),
        ("gptq", {"quant_method": "awq"}, "is stored as GPTQ, but the configuration says AWQ"),
        ("gptq", {"bits": 3}, "3-bit weights are not supported; only 4 and 8 bits are"),
        ("gptq", {"bits": 8}, "holds 4-bit codes, but the configuration says 8 bits"),
        ("gptq", {"checkpoint_format": "marlin"}, '"marlin" is not supported'),
        ("gptq", {"pack_dtype": "int16"}, "only int32 is supported"),
        ("ct", {"format": "marlin-24"}, 'format: "marlin-24" is not supported'),
        ("ct", {"transform_config": {"config_groups": {}}}, "rotated activations"),
        ("ct", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights are not supported"),
        ("fp8_block", {"weight_block_size": [128]}, "weight_block_size: must be two sizes"),
        ("fp8_block", {"weight_block_size": [64, 64]}, "down_proj.weight_scale_inv is [2, 4], expected"),
        ("fp8_block", {"fmt": "e5m2"}, '"e5m2" is not supported'),
        *(
            ("awq", {"quant_method": method}, f"{method} weights are not supported; supported: AWQ, GPTQ,")
            for method in ("eetq", "aqlm", "hqq", "quanto", "vptq", "spqr", "higgs", "torchao", "bitnet")
        ),
    ],
)
def test_configurations_that_are_refused(
    tmp_path: Path, name: str, config: dict[str, Any], words: str
) -> None:
    assert words in refused(tmp_path, name, lambda tensors: None, config)


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS["awq"])
    files = read_spec(directory)
    os.truncate(directory / "model.safetensors", 50_000)
    with pytest.raises(ModelError, match="the file became shorter"):
        load_weights(files, torch.float32, CPU, lambda share, text: None, lambda: False)


def test_files_as_autogptq_named_them(tmp_path: Path) -> None:
    directory = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS["gptq"])
    (directory / "model.safetensors").rename(directory / "gptq_model-4bit-32g.safetensors")
    assert_equal_logits(directory)


def test_gguf_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "llama-q4_k.gguf"
    path.write_bytes(b"GGUF")
    for place in (path, tmp_path):
        with pytest.raises(ModelError, match="GGUF weights are not supported; use the model's safetensors"):
            read_spec(place)


def test_old_side_files_and_configurations_without_quantised_tensors(tmp_path: Path) -> None:
    source = plain_llama(tmp_path / "plain")
    for name, side in (("gptq", "quantize_config.json"), ("awq", "quant_config.json")):
        directory = quantised.write(source, tmp_path / name, KINDS[name])
        config = json.loads((directory / "config.json").read_text())
        told = config.pop("quantization_config")
        told.pop("quant_method")
        if name == "awq":
            told = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="no quantization_config says how"):
            read_spec(directory)
        (directory / side).write_text(json.dumps(told))
        assert_equal_logits(directory)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": KINDS["nf4"].config}))
    files = read_spec(source)
    assert files.quantised == ""
    assert files.notices == ("config.json announces bitsandbytes weights, but all are stored unquantised.",)
