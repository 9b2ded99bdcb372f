"""The Python API on a GPU: the answers of the CPU, logits beside running requests, memory given back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support.kv_quality import measure

from lmtop import EngineConfig, GenerationConfig, Pipeline, pipeline
from lmtop.engine.devices import device_info

PROMPTS = ["Hi, pls intro yourself", "上海是", "What is a KV cache?"]
CONFIG = EngineConfig("demo", device="cuda", session_len=1024, max_batch_size=8)


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline("demo", CONFIG) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Pipeline]:
    with pipeline("demo", replace(CONFIG, device="cpu")) as loaded:
        yield loaded


def test_the_answers_are_those_of_the_cpu(pipe: Pipeline, on_cpu: Pipeline) -> None:
    assert [answer.text for answer in pipe(PROMPTS)] == [answer.text for answer in on_cpu(PROMPTS)]


@pytest.mark.parametrize("length", [1, 2, 257, 700])
def test_logits_of_given_tokens(pipe: Pipeline, on_cpu: Pipeline, length: int) -> None:
    text = "A KV cache holds keys and values of all tokens that were read so far. " * 60
    ids = pipe.tokenizer.encode(text, True)[:length]
    got, want = pipe.get_logits(ids), on_cpu.get_logits(ids)
    assert got.shape == want.shape == (length, 4096)
    assert ((got - want).norm() / want.norm()).item() <= 1e-2
    if length > 1:
        assert pipe.get_ppl(ids)[0] == pytest.approx(on_cpu.get_ppl(ids)[0], rel=1e-2)


def test_scoring_and_requests_do_not_disturb_each_other(pipe: Pipeline) -> None:
    """Both use the steps' stream and their scratch buffers."""
    ids = pipe.tokenizer.encode("one two three four five six seven eight " * 100, True)[:1000]
    config = GenerationConfig(max_new_tokens=200, ignore_eos=True)
    alone, expected = pipe.get_logits(ids), [answer.token_ids for answer in pipe(PROMPTS * 2, config)]
    with ThreadPoolExecutor(2) as pool:
        scored = [pool.submit(pipe.get_logits, ids) for _ in range(4)]
        answers = [pool.submit(pipe, PROMPTS * 2, config) for _ in range(4)]
        assert all([answer.token_ids for answer in future.result()] == expected for future in answers)
        for future in scored:
            torch.testing.assert_close(future.result(), alone, rtol=1e-3, atol=1e-3)


def test_closing_gives_the_memory_back_to_the_driver() -> None:
    def free_bytes() -> int:
        return device_info("cuda").free

    config = replace(CONFIG, cache_bytes=4 << 30)
    with pipeline("demo", config) as pipe:
        pipe("Hi")
    before = free_bytes()  # the context and the kernels stay with the process
    for _ in range(3):
        with pipeline("demo", config) as pipe:
            pipe("Hi")
            assert before - free_bytes() >= 4 << 30
        assert abs(before - free_bytes()) <= 64 << 20


def test_quantised_caches_keep_the_demos_text() -> None:
    found = measure("demo", 100, "cuda")
    print(found)
    assert found["int8"].unchanged >= 0.95
    assert found["int8"].mean_kl <= 1e-4
    assert found["int4"].mean_kl <= 5e-2
