from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtop.engine.config import DeviceInfo, EngineConfig, ModelSizes, require_fit, resolve
from lmtop.engine.types import DeviceError, UsageError

GIB = 1 << 30
LLAMA_8B = ModelSizes(8_030_261_248, 32, 8, 128, 4096, 28672, 128256, 131072)
TINY = ModelSizes(260_000, 5, 4, 8, 64, 344, 512, 512)
CPU = DeviceInfo("cpu", "CPU", 64 * GIB, 48 * GIB)
GPU = DeviceInfo("cuda", "H200", 141 * GIB, 140 * GIB)


def test_the_parts_sum_to_the_total_and_the_figures_are_the_known_ones() -> None:
    plan = resolve(EngineConfig("m"), LLAMA_8B, GPU)
    assert plan.dtype == "bfloat16"
    assert plan.weights == 16_060_522_496
    assert plan.kv_per_token == 128 * 1024
    assert plan.total == plan.weights + plan.workspace + plan.kv - plan.block_size * plan.kv_per_token
    assert plan.kv == plan.num_blocks * plan.block_size * plan.kv_per_token
    assert plan.fits


def test_the_cpu_takes_no_more_cache_than_its_slots_can_use() -> None:
    plan = resolve(EngineConfig("m", max_batch_size=4), TINY, CPU)
    assert plan.dtype == "float32"
    assert plan.tokens_held == 4 * 512


def test_a_small_model_does_not_take_the_whole_gpu_unless_it_is_told_to() -> None:
    assert resolve(EngineConfig("m", max_batch_size=4), TINY, GPU).tokens_held == 4 * 4 * 512
    assert resolve(EngineConfig("m", cache_max_entry_count=0.8), TINY, GPU).tokens_held > 1_000_000


def test_a_context_that_does_not_fit_is_lowered_and_said_or_refused_with_numbers() -> None:
    small = replace(GPU, free=20 * GIB)
    plan = resolve(EngineConfig("m"), LLAMA_8B, small)
    assert plan.fits
    assert plan.context_len == plan.tokens_held < 131072
    assert any("lowered" in notice for notice in plan.notices)
    fixed = resolve(EngineConfig("m", session_len=131072), LLAMA_8B, small)
    assert not fixed.fits
    assert "largest context that would fit" in fixed.reason
    with pytest.raises(DeviceError, match="GiB"):
        require_fit(fixed, small)


def test_weights_that_do_not_fit_are_refused() -> None:
    plan = resolve(EngineConfig("m"), LLAMA_8B, replace(GPU, free=8 * GIB))
    assert not plan.fits
    assert "choose a smaller model" in plan.reason


def test_lmdeploys_two_meanings_of_cache_max_entry_count() -> None:
    by_count = resolve(EngineConfig("m", cache_max_entry_count=4000.0), LLAMA_8B, GPU)
    assert by_count.num_blocks == 4001
    half = resolve(EngineConfig("m", cache_max_entry_count=0.5), LLAMA_8B, GPU)
    most = resolve(EngineConfig("m", cache_max_entry_count=0.8), LLAMA_8B, GPU)
    assert 1.55 < most.tokens_held / half.tokens_held < 1.65


@settings(deadline=None)
@given(st.integers(16, 131072), st.integers(1, 64), st.integers(1, 140))
def test_more_context_or_slots_never_need_less(context: int, slots: int, free: int) -> None:
    device = replace(CPU, free=free * GIB)
    one = resolve(EngineConfig("m", session_len=context, max_batch_size=slots), LLAMA_8B, device)
    two = resolve(EngineConfig("m", session_len=context, max_batch_size=slots + 1), LLAMA_8B, device)
    block = one.kv_per_token * one.block_size  # the cache is cut to whole blocks
    assert two.total > one.total - block or not two.fits
    if one.fits:
        assert one.total <= device.free
        assert one.tokens_held >= one.context_len


@pytest.mark.parametrize(
    "bad",
    [{"cache_block_seq_len": 48}, {"max_batch_size": 0}, {"cache_max_entry_count": 0.0}, {"session_len": 1}],
)
def test_intent_is_validated_where_it_is_made(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        EngineConfig("m", **bad)  # type: ignore[arg-type]
