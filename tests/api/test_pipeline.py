"""The Python API on the built-in model: every form of prompt, streaming, sessions, errors, threads, the end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.command import clean_environment
from support.engines import until
from support.llama import write_llama

import lmtop
from lmtop import (
    ChatTemplateConfig,
    EngineConfig,
    GenerationConfig,
    Pipeline,
    PytorchEngineConfig,
    SamplingParams,
    TurbomindEngineConfig,
    pipeline,
)
from lmtop.engine import pipeline_settings, score
from lmtop.engine.types import DeviceError, LmtopError, ModelError, UsageError

SHORT = GenerationConfig(max_new_tokens=8, ignore_eos=True)
PROMPTS = ["Hi, pls intro yourself", "上海是", "What is a KV cache?"]


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline("demo", TurbomindEngineConfig(session_len=512)) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _say_again() -> None:
    pipeline_settings._said.clear()


# --- what may be asked --------------------------------------------------------------------------------------


def test_one_prompt_gives_one_response_and_a_list_a_list_in_order(pipe: Pipeline) -> None:
    answers = pipe(PROMPTS)
    assert [answer.index for answer in answers] == [0, 1, 2]
    one = pipe(PROMPTS[0])
    assert (
        one.text
        == answers[0].text
        == "I am demo, a toy model built into lmtop. I know little, but I run on the real engine."
    )
    assert one.finish_reason == "stop"
    assert one.generate_token_len == len(one.token_ids)
    assert one.input_token_len > 5
    assert pipe([PROMPTS[0]])[0].text == one.text
    assert pipe([]) == []
    assert pipe.batch_infer(PROMPTS[:1])[0].text == pipe.infer(PROMPTS[0]).text == one.text


def test_messages_as_in_openais_api(pipe: Pipeline) -> None:
    user = {"role": "user", "content": PROMPTS[0]}
    text = pipe(PROMPTS[0]).text
    assert pipe([user]).text == text
    assert pipe(user).text == text
    assert pipe([{"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]}]).text == text
    answers = pipe([[user], PROMPTS[2], [{"role": "system", "content": "Be brief."}, user]])
    assert answers[0].text == text
    assert answers[1].text == pipe(PROMPTS[2]).text
    assert answers[2].input_token_len > answers[0].input_token_len


def test_each_prompt_may_have_its_own_config(pipe: Pipeline) -> None:
    configs = [GenerationConfig(max_new_tokens=n, ignore_eos=True) for n in (3, 5)]
    assert [answer.generate_token_len for answer in pipe(PROMPTS[:2], configs)] == [3, 5]
    assert {answer.finish_reason for answer in pipe(PROMPTS[:2], configs)} == {"length"}
    assert pipe(PROMPTS[0], SamplingParams(temperature=0.0, max_new_tokens=4)).generate_token_len == 4
    with pytest.raises(UsageError, match="2 for 3 prompts"):
        pipe(PROMPTS, configs)


def test_a_text_is_continued_as_it_is_without_preprocessing(pipe: Pipeline) -> None:
    raw = pipe("The capital of France", GenerationConfig(max_new_tokens=4), do_preprocess=False)
    assert raw.input_token_len == len(pipe.tokenizer.encode("The capital of France", add_special=True))
    base = ChatTemplateConfig(model_name="base")
    prompts = pipeline_prompts(pipe, base)
    request = prompts.request("x", "abc", SamplingParams(), "")
    assert request.prompt == "abc"


def pipeline_prompts(pipe: Pipeline, config: ChatTemplateConfig):  # type: ignore[no-untyped-def]
    from lmtop.engine.pipeline_prompts import Prompts

    return Prompts(pipe.tokenizer, config)


def test_sampling_follows_seed_and_greedy_is_the_default(pipe: Pipeline) -> None:
    assert pipe(PROMPTS[0]).text == pipe(PROMPTS[0]).text

    def drawn(seed: int, **more: object) -> str:
        config = GenerationConfig(
            max_new_tokens=24,
            ignore_eos=True,
            temperature=2.0,
            random_seed=seed,
            do_sample=True,
            top_k=0,
            **more,
        )  # type: ignore[arg-type]
        return str(pipe(PROMPTS[0], config).text)

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1
    assert drawn(2**64 - 1) == drawn(2**64 - 1)
    # as before LMDeploy 0.6: a top_k that is not 1 samples
    old = {"max_new_tokens": 24, "ignore_eos": True, "temperature": 2.0}
    assert (
        len({pipe(PROMPTS[0], GenerationConfig(**old, top_k=40, random_seed=s)).text for s in range(4)}) > 1
    )
    assert (
        len({pipe(PROMPTS[0], GenerationConfig(**old, top_k=1, random_seed=s)).text for s in range(4)}) == 1
    )


def test_the_keywords_of_lmdeploy_0_1_sample(pipe: Pipeline) -> None:
    assert pipe(PROMPTS[0], request_output_len=3, ignore_eos=True).generate_token_len == 3
    config = pipeline_settings.old_config({"request_output_len": 3}, None)
    assert (config.top_k, config.top_p, config.temperature) == (40, 0.8, 0.8)
    with pytest.raises(UsageError, match="top_k: give it in gen_config"):
        pipe(PROMPTS[0], GenerationConfig(), top_k=3)
    with pytest.raises(TypeError, match="unexpected argument 'topk'"):
        pipe(PROMPTS[0], topk=3)


def test_stop_words_of_any_length_and_special_tokens(pipe: Pipeline) -> None:
    whole = pipe(PROMPTS[0]).text
    cut = pipe(PROMPTS[0], GenerationConfig(stop_words=["model built in"]))
    assert cut.text == whole[: whole.index("model built in")]
    assert cut.finish_reason == "stop"
    with_stop = GenerationConfig(stop_words=["model built in"], include_stop_str_in_output=True)
    assert pipe(PROMPTS[0], with_stop).text.endswith("model built in")
    ended = pipe(PROMPTS[0], GenerationConfig(stop_words=["<|im_end|>"], ignore_eos=True))
    assert ended.finish_reason == "stop"
    assert ended.text == whole


def test_bad_words_and_minimum_length(pipe: Pipeline) -> None:
    whole = pipe(PROMPTS[0]).text
    assert " toy" in whole
    assert "toy" not in pipe(PROMPTS[0], GenerationConfig(bad_words=["toy"])).text
    with pytest.raises(UsageError, match="is not one token of this model"):
        pipe(PROMPTS[0], GenerationConfig(bad_words=["an unlikely sentence"]))
    longer = pipe(PROMPTS[0], GenerationConfig(min_new_tokens=40, max_new_tokens=60))
    assert longer.generate_token_len >= 40


def test_logprobs_and_logits_agree(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=6, logprobs=3, output_logits="generation")
    answer = pipe(PROMPTS[0], config)
    assert answer.logprobs is not None
    assert [next(iter(item)) for item in answer.logprobs] == answer.token_ids
    assert all(3 <= len(item) <= 4 for item in answer.logprobs)
    assert answer.logits is not None
    assert answer.logits.shape[0] == 6
    for row, item in zip(answer.logits.log_softmax(-1), answer.logprobs, strict=True):
        for token, logprob in item.items():
            assert row[token].item() == pytest.approx(logprob, abs=1e-3)
    everything = pipe(PROMPTS[0], GenerationConfig(max_new_tokens=6, output_logits="all")).logits
    assert everything.shape[0] == answer.input_token_len + 6


# --- pieces, sessions ---------------------------------------------------------------------------------------


def test_pieces_add_up_to_the_answers(pipe: Pipeline) -> None:
    whole = pipe(PROMPTS)
    pieces = list(pipe.stream_infer(PROMPTS))
    for index, answer in enumerate(whole):
        mine = [piece for piece in pieces if piece.index == index]
        assert "".join(piece.text for piece in mine) == answer.text
        assert [token for piece in mine for token in piece.token_ids] == answer.token_ids
        assert [piece.finish_reason for piece in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == "stop"
        assert mine[-1].generate_token_len == answer.generate_token_len
        assert mine[-1].input_token_len == answer.input_token_len


def idle(pipe: Pipeline) -> bool:
    snapshot = pipe._backend.snapshot()
    return not snapshot.slots and not snapshot.queue and snapshot.kv is not None and snapshot.kv.used == 0


def test_a_dropped_iterator_frees_what_it_held(pipe: Pipeline) -> None:
    endless = GenerationConfig(max_new_tokens=None, ignore_eos=True)
    pieces = pipe.stream_infer(PROMPTS * 16, endless)  # a quarter of a minute, if nobody ends it
    next(pieces)
    until(lambda: not idle(pipe), "requests on the gauges")
    pieces.close()
    until(lambda: idle(pipe), "free blocks after an iterator was dropped", deadline_s=5.0)


def test_a_session_remembers(pipe: Pipeline) -> None:
    first = pipe.chat("My name is Bob", gen_config=SHORT)
    assert first.response is not None
    assert first.history == [("My name is Bob", first.response.text)]
    second = pipe.chat("What is 2+3?", session=first, gen_config=GenerationConfig())
    assert second is first
    assert len(first.history) == 2
    by_hand = pipe(
        [
            {"role": "user", "content": "My name is Bob"},
            {"role": "assistant", "content": first.history[0][1]},
            {"role": "user", "content": "What is 2+3?"},
        ]
    )
    assert first.response.text == by_hand.text
    assert "USER:\nMy name is Bob\nASSISTANT:\n" in repr(first)
    first.close()
    assert first.history == []
    with pipe.session() as session:
        pieces = list(pipe.chat("Hello", session=session, gen_config=SHORT, stream_response=True))
        assert session.history == [("Hello", "".join(piece.text for piece in pieces))]


def test_a_turn_that_fails_leaves_the_history(pipe: Pipeline) -> None:
    session = pipe.chat("Hello", gen_config=SHORT)
    before = list(session.history)
    with pytest.raises(UsageError, match="context"):
        session("word " * 2000)
    assert session.history == before
    pieces = session.stream("Tell me more", GenerationConfig(ignore_eos=True))
    next(pieces)
    pieces.close()
    assert session.history == before


# --- given tokens -------------------------------------------------------------------------------------------


def test_perplexity_and_logits_of_given_tokens(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pipe.tokenizer.encode("The KV cache holds the keys and values of all tokens so far. " * 24, True)
    assert len(ids) > 256  # more than one chunk
    logits = pipe.get_logits(ids)
    assert logits.shape == (len(ids), 4096)
    monkeypatch.setattr(score, "CHUNK", 512)
    torch.testing.assert_close(pipe.get_logits(ids), logits, atol=1e-3, rtol=1e-3)
    monkeypatch.undo()
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    assert pipe.get_ppl(ids) == [pytest.approx(expected, abs=1e-4)]
    assert pipe.get_ppl([ids, ids[:7]])[0] == pytest.approx(expected, abs=1e-4)
    assert torch.equal(pipe.get_logits(torch.tensor(ids[:40])), pipe.get_logits([ids[:40]])[0])
    torch.testing.assert_close(pipe.get_logits(ids[:40]), logits[:40], atol=1e-3, rtol=1e-3)
    for wrong, said in (
        ([], "0 tokens"),
        ([1, 10**6], "1000000 is not a token"),
        (["a"], "must be a list of integers"),
        ([1] * 1000, "must be from 1 to the context of 512"),
    ):
        with pytest.raises(UsageError, match=said):
            pipe.get_logits(wrong)
    with pytest.raises(UsageError, match="at least two tokens"):
        pipe.get_ppl([1])


def test_scoring_gives_way_to_requests(pipe: Pipeline) -> None:
    ids = pipe.tokenizer.encode("one two three four " * 100, True)[:512]
    with ThreadPoolExecutor(2) as pool:
        ppl = pool.submit(pipe.get_ppl, [ids] * 4)
        answers = pool.submit(pipe, PROMPTS)
        assert [answer.text for answer in answers.result()] == [answer.text for answer in pipe(PROMPTS)]
        assert len(set(ppl.result())) == 1


# --- who may call -------------------------------------------------------------------------------------------


def test_many_threads_share_one_pipeline(pipe: Pipeline) -> None:
    alone = {prompt: pipe(prompt).text for prompt in PROMPTS}
    with ThreadPoolExecutor(6) as pool:
        asked = [PROMPTS[n % 3] for n in range(24)]
        assert [answer.text for answer in pool.map(pipe, asked)] == [alone[prompt] for prompt in asked]


def test_more_prompts_than_the_queue_has_places(pipe: Pipeline) -> None:
    config = GenerationConfig(max_new_tokens=1)
    answers = pipe(["Hi"] * 300, config)
    assert len(answers) == 300
    assert {answer.finish_reason for answer in answers} == {"length"}


async def test_asyncio_streams_and_never_blocks_the_loop(pipe: Pipeline) -> None:
    async def text(prompt: str) -> str:
        return "".join([piece.text async for piece in pipe.generate(prompt)])

    expected = [answer.text for answer in pipe(PROMPTS)]
    assert list(await asyncio.gather(*map(text, PROMPTS))) == expected

    endless = GenerationConfig(max_new_tokens=None, ignore_eos=True)
    pieces = pipe.generate("Hi", endless)
    await anext(pieces)
    await pieces.aclose()
    task = asyncio.create_task(text("Hi"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    until(lambda: idle(pipe), "free blocks after tasks were dropped")
    assert (await asyncio.to_thread(pipe, PROMPTS[0])).text == expected[0]


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (5, "int: must be a text"),
        (b"bytes", "bytes: must be a text"),
        ([5], "must be a text or a list of messages"),
        ([{"role": "robot", "content": "x"}], "role = 'robot': must be one of system"),
        ([{"role": "user"}], "content = None: must be text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "only text is supported"),
        (("what is this", object()), "images are not supported"),
        ("", "empty|"),
    ],
)
def test_a_prompt_that_is_none_is_named(pipe: Pipeline, prompt: object, said: str) -> None:
    if prompt == "":
        assert pipe(prompt, SHORT).generate_token_len == 8  # an empty message is a message
        return
    with pytest.raises(UsageError, match=said):
        pipe(prompt)


def test_one_bad_prompt_spoils_no_list(pipe: Pipeline) -> None:
    answers = pipe(["word " * 3000, PROMPTS[0]])
    assert answers[0].finish_reason == "error"
    assert "context" in (answers[0].error_message or "")
    assert answers[1].text == pipe(PROMPTS[0]).text
    last = [piece for piece in pipe.stream_infer(["word " * 3000, "Hi"], SHORT) if piece.finish_reason]
    assert {piece.index: piece.finish_reason for piece in last} == {0: "error", 1: "length"}
    with pytest.raises(UsageError, match="context"):
        pipe("word " * 3000)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GenerationConfig(temperature=9.0, do_sample=True), "temperature = 9.0: must be from 0 to 2"),
        (GenerationConfig(n=2), "n = 2: not supported; give the prompt several times"),
        (GenerationConfig(response_format={"type": "json_object"}), "response_format"),
        (GenerationConfig(stop_words=[3]), "stop_words = 3: must be texts"),  # type: ignore[list-item]
        (GenerationConfig(max_new_tokens="many"), "GenerationConfig: "),  # type: ignore[arg-type]
        (GenerationConfig(output_logits="some"), "output_logits = 'some'"),
        ("greedy", "gen_config = 'greedy'"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(pipe: Pipeline, config: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipe("Hi", config)


def test_warnings_are_said_once_at_the_callers_line(pipe: Pipeline) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            pipe("Hi", GenerationConfig(max_new_tokens=1, spaces_between_special_tokens=False))
            pipe("Hi", GenerationConfig(max_new_tokens=1, temperature=0.3))
    assert [str(one.message).split(":")[0] for one in said] == [
        "GenerationConfig.spaces_between_special_tokens = False",
        "GenerationConfig",
    ]
    assert {one.filename for one in said} == {__file__}


def test_a_model_that_cannot_be_loaded_raises_and_leaves_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ModelError, match=r"config\.json"):
        pipeline(tmp_path)
    with pytest.raises(DeviceError, match="not enough memory"):
        pipeline("demo", EngineConfig("", cache_bytes=1 << 50))
    with pytest.raises(UsageError, match="capability = 'infilling'"):
        pipeline("demo", chat_template_config=ChatTemplateConfig(capability="infilling"))
    with pytest.raises(UsageError, match="log_level"):
        pipeline("demo", log_level="LOUD")
    with pytest.raises(TypeError, match="unexpected argument 'modle'"):
        pipeline("demo", modle="x")
    until(lambda: threading.active_count() <= before, "the threads of failed pipelines gone")


# --- the end ------------------------------------------------------------------------------------------------


def parts_of(pipe: Pipeline) -> list[weakref.ref[object]]:
    """What holds a model's memory: the runner has the cache, the decoder the weights."""
    engine = pipe._backend.engine
    assert engine is not None
    with engine.runner.aside() as (decoder, _):
        return [weakref.ref(engine.runner), weakref.ref(decoder)]


def test_closing_frees_memory_and_threads(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pipeline(write_llama(tmp_path / "a")) as pipe:
        parts = parts_of(pipe)
        endless = pipe.stream_infer("abc", GenerationConfig(max_new_tokens=None, ignore_eos=True))
        next(endless)
    assert list(endless)[-1].finish_reason == "abort"
    assert [part() for part in parts] == [None, None]
    assert threading.active_count() == threads
    pipe.close()
    for call in (lambda: pipe("Hi"), lambda: pipe.get_ppl([1, 2]), lambda: list(pipe.stream_infer("Hi"))):
        with pytest.raises(UsageError, match="the pipeline is closed"):
            call()


def test_a_forgotten_pipeline_closes_itself(tmp_path: Path) -> None:
    threads = threading.active_count()
    pipe = pipeline(write_llama(tmp_path / "b"))
    parts = parts_of(pipe)
    pipe("abc", GenerationConfig(max_new_tokens=2))
    del pipe
    assert [part() for part in parts] == [None, None]
    assert threading.active_count() == threads


def test_a_fork_is_told_that_it_has_no_pipeline(pipe: Pipeline) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pipe("Hi")
            said = "answered"
        except LmtopError as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert (
        os.read(reading, 200)
        == b"this pipeline belongs to the process that made it: make one in this process"
    )
    os.close(reading)
    os.close(writing)


SCRIPT = """
import sys, time
begun = time.perf_counter()
import lmtop
assert time.perf_counter() - begun < 0.2, "slow import"
heavy = {"torch", "transformers", "tokenizers", "numpy", "httpx"} & set(sys.modules)
assert not heavy, heavy
from lmtop import GenerationConfig, TurbomindEngineConfig, ChatTemplateConfig, APIClient
assert "torch" not in sys.modules
pipe = lmtop.pipeline("demo")
print(pipe("Hi, pls intro yourself").text)
# neither closed nor guarded by __name__: Python ends it
"""


def test_a_script_needs_neither_guard_nor_close(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environment(tmp_path),
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("I am demo")


def test_every_name_of_the_package_is_there() -> None:
    for name in lmtop.__all__:
        assert getattr(lmtop, name) is not None
    assert set(lmtop.__all__) <= set(dir(lmtop))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lmtop.nothing


def test_pytorch_config_runs_on_the_same_engine() -> None:
    config = PytorchEngineConfig(session_len=128, block_size=16, num_gpu_blocks=40, max_batch_size=2)
    with pipeline("demo", config) as pipe:
        assert pipe.session_len == 128
        assert pipe.info.max_batch == 2
        assert pipe("Hi", SHORT).generate_token_len == 8


def test_a_model_format_that_the_weights_do_not_have_is_named() -> None:
    with pytest.warns(UserWarning, match="model_format = 'awq': the weights are fp32 here") as said:
        pipeline("demo", TurbomindEngineConfig(model_format="awq", session_len=128)).close()
    assert [one.filename for one in said] == [__file__]
