"""The Python API's values: LMDeploy's fields, their meaning here, and what is said of those without one."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtop import (
    ChatTemplateConfig,
    EngineConfig,
    GenerationConfig,
    PytorchEngineConfig,
    TurbomindEngineConfig,
)
from lmtop.engine import models, pipeline_settings
from lmtop.engine.pipeline_prompts import Prompts, messages, template_source
from lmtop.engine.pipeline_settings import engine_config, sampling
from lmtop.engine.template import ChatTemplate
from lmtop.engine.tokenizer import Tokenizer, load_tokenizer
from lmtop.engine.types import Message, SamplingParams, UsageError

# Of LMDeploy 0.3.0, in their order.
TURBOMIND = "model_name model_format tp session_len max_batch_size cache_max_entry_count cache_block_seq_len quant_policy rope_scaling_factor use_logn_attn download_dir revision max_prefill_token_num"
PYTORCH = "model_name tp session_len max_batch_size cache_max_entry_count eviction_type prefill_interval block_size num_cpu_blocks num_gpu_blocks adapters max_prefill_token_num thread_safe download_dir revision"
GENERATION = "n max_new_tokens top_p top_k temperature repetition_penalty ignore_eos random_seed stop_words bad_words min_new_tokens skip_special_tokens"
TEMPLATE = "model_name system meta_instruction eosys user eoh assistant eoa separator capability stop_words"


@pytest.fixture(autouse=True)
def _say_again() -> Iterator[None]:
    pipeline_settings._said.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whatever a test does not expect
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(models.demo_path(), "llama", 4096)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (TurbomindEngineConfig, TURBOMIND),
        (PytorchEngineConfig, PYTORCH),
        (GenerationConfig, GENERATION),
        (ChatTemplateConfig, TEMPLATE),
    ],
)
def test_the_fields_of_0_3_0_in_their_order(kind: type, names: str) -> None:
    fields = [item.name for item in dataclasses.fields(kind)]
    assert fields[: len(names.split())] == names.split()


def test_the_engine_gets_what_was_asked() -> None:
    config = engine_config(
        Path("/some/where"),
        TurbomindEngineConfig(
            session_len=999,
            max_batch_size=3,
            cache_max_entry_count=0.2,
            cache_block_seq_len=128,
            quant_policy=8,
            max_prefill_token_num=100,
            enable_prefix_caching=False,
            dtype="bfloat16",
        ),
    )
    assert dataclasses.replace(config, max_queue=1) == EngineConfig(
        "/some/where",
        session_len=999,
        max_batch_size=3,
        cache_max_entry_count=0.2,
        cache_block_seq_len=128,
        kv="int8",
        max_prefill_token_num=100,
        prefix_caching=False,
        dtype="bfloat16",
        max_queue=1,
    )
    own = engine_config("demo", EngineConfig("", weights="int4", threads=1))
    assert (own.model, own.weights, own.threads) == ("demo", "int4", 1)
    other = engine_config("demo", PytorchEngineConfig(device_type="cpu", eager_mode=True, num_gpu_blocks=7))
    assert (other.device, other.graphs, other.cache_max_entry_count) == ("cpu", False, 7)
    assert engine_config("demo", None).kv == "16"


def test_policy_4_is_int4_and_says_so_once() -> None:
    with pytest.warns(UserWarning, match="before, the number meant int8") as said:
        kvs = [engine_config("demo", TurbomindEngineConfig(quant_policy=4)).kv for _ in range(3)]
    assert kvs == ["int4"] * 3
    assert len(said) == 1
    assert engine_config("demo", TurbomindEngineConfig(quant_policy="int4")).kv == "int4"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TurbomindEngineConfig(tp=2), "tp = 2: runs on one GPU"),
        (TurbomindEngineConfig(cache_chunk_size=1), "cache_chunk_size = 1: has no effect here"),
        (TurbomindEngineConfig(model_name="internlm2"), "model_name = 'internlm2': has no effect"),
        (PytorchEngineConfig(thread_safe=True), "PytorchEngineConfig.thread_safe = True: has no effect"),
    ],
)
def test_a_field_without_meaning_warns_once(config: TurbomindEngineConfig, said: str) -> None:
    with pytest.warns(UserWarning, match=said) as warned:
        assert [engine_config("demo", config) for _ in range(2)]
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            TurbomindEngineConfig(rope_scaling_factor=2.0),
            "rope_scaling_factor = 2.0: not supported; set rope_scaling",
        ),
        (TurbomindEngineConfig(use_logn_attn=True), "use_logn_attn"),
        (TurbomindEngineConfig(revision="main"), "revision = 'main': not supported; download"),
        (TurbomindEngineConfig(model_format="bin"), "model_format = 'bin': must be one of hf"),
        (TurbomindEngineConfig(quant_policy=2), "quant_policy = 2: must be 0"),
        (TurbomindEngineConfig(session_len=1), "session_len = 1: must be at least 16"),
        (TurbomindEngineConfig(cache_block_seq_len=48), "cache_block_seq_len = 48"),
        (PytorchEngineConfig(adapters={"a": "b"}), "adapters"),
        ("turbomind", "backend_config = 'turbomind'"),
    ],
)
def test_what_would_change_answers_and_is_not_there_is_refused(config: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        engine_config("demo", config)  # type: ignore[arg-type]


def test_who_samples_and_who_does_not(tokenizer: Tokenizer) -> None:
    def made(**fields: object) -> SamplingParams:
        return sampling(GenerationConfig(**fields), tokenizer)  # type: ignore[arg-type]

    assert made() == SamplingParams(temperature=0.0, top_p=1.0, max_new_tokens=512)
    assert sampling(None, tokenizer) == made()
    assert made(do_sample=True) == SamplingParams(temperature=0.8, top_p=1.0, top_k=50, max_new_tokens=512)
    assert made(top_k=40, top_p=0.8).top_k == 40
    assert made(top_k=0).temperature == 0.8
    assert made(top_k=1, temperature=1.5).temperature == 0.0
    assert made(do_sample=False, top_k=40).temperature == 0.0
    with pytest.warns(UserWarning, match="greedy, since neither do_sample nor top_k"):
        assert made(temperature=0.3).temperature == 0.0
    assert made(random_seed=2**64 - 1).seed == -1
    assert made(max_new_tokens=None).max_new_tokens is None
    stop = made(stop_words=["<|im_end|>", "\n\n"])
    assert stop.stop == ("\n\n",)
    assert stop.stop_token_ids == (tokenizer.added["<|im_end|>"],)


PIECES = ChatTemplateConfig(
    system="<|im_start|>system\n",
    meta_instruction="Be brief.",
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    separator="\n",
    stop_words=["<|im_end|>"],
)
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c <|im_end|>"},
]


def test_a_format_made_of_pieces(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(template_source(PIECES, False), tokenizer, name="pieces")
    turns = [Message("system", "Be brief."), *messages(TALK)]
    assert template.render_text(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
        "\n<|im_start|>user\nc <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    request = Prompts(tokenizer, PIECES).request("x", TALK, SamplingParams(), "")
    assert request.prompt_ids is not None
    # the words that the user wrote are no token, those of the format are
    assert request.prompt_ids.count(tokenizer.added["<|im_end|>"]) == 4
    assert request.sampling.stop_token_ids == (tokenizer.added["<|im_end|>"],)
    assert template_source(ChatTemplateConfig(user='{{ "x" }}\n{%'), True).count("bos_token") == 1


def test_a_system_prompt_in_the_models_own_format(tokenizer: Tokenizer) -> None:
    prompts = Prompts(tokenizer, ChatTemplateConfig(meta_instruction="Be brief."))
    request = prompts.request("x", "Hi", SamplingParams(), "")
    assert request.messages == (Message("system", "Be brief."), Message("user", "Hi"))
    own = [{"role": "system", "content": "Own."}, *TALK]
    assert prompts.request("x", own, SamplingParams(), "").messages == tuple(messages(own))
    with pytest.warns(UserWarning, match="model_name = 'internlm2': the model's own chat format is used"):
        Prompts(tokenizer, ChatTemplateConfig(model_name="internlm2"))


def test_templates_go_to_json_and_back(tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    assert ChatTemplateConfig.from_json(PIECES.to_json(path)) == PIECES
    assert ChatTemplateConfig.from_json(path) == ChatTemplateConfig.from_json(str(path)) == PIECES
    (tmp_path / "bytes").write_bytes(b"\xff")
    for wrong, said in (
        (tmp_path / "none.json", "cannot read: No such file"),
        (tmp_path / "bytes", "cannot read: not valid UTF-8"),
        ('{"usr": "x"}', "unknown key 'usr'"),
        ('{"user": 5}', "user = 5: must be text"),
        ("{", "the chat template: "),
    ):
        with pytest.raises(UsageError, match=said):
            ChatTemplateConfig.from_json(wrong)
