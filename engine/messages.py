"""The values of the Python API, with LMDeploy's names: what is asked of a pipeline and what it answers.

All fields of LMDeploy 0.3.0's dataclasses, in their order, and those of later releases that mean something
here. A field that has no meaning here is accepted and named once in a warning; one that would change the
answer and is not supported is refused. `engine.pipeline_settings` turns these values into the engine's own.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .text import one_line
from .types import SamplingParams, UsageError

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATE_LIMIT = 1 << 20


@dataclass(slots=True)
class Response:
    """An answer, or a piece of one.

    `finish_reason`: "stop", "length", "abort" (cancelled, or the pipeline was closed), "error" (of one prompt
    in a list: `error_message` says why); None in a piece that is not the last. In a piece `text`, `token_ids`
    and `logprobs` are what is new, counts are what there is so far. `logprobs`: for each token {id: natural
    logarithm}, the chosen one first. `logits`: float32 [tokens, vocabulary], where `output_logits` asked for
    them. `index`: which of the prompts this answers.
    """

    text: str
    generate_token_len: int
    input_token_len: int
    session_id: int
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    logits: Tensor | None = None
    index: int = 0
    cached_tokens: int = 0
    error_message: str | None = None


@dataclass(slots=True)
class GenerationConfig:
    """How one answer is generated.

    Greedy unless asked otherwise: `do_sample=True` samples (from the 50 most likely tokens, where `top_k` is
    not given), False never does; None (as before LMDeploy 0.6, which had no such field) samples where `top_k`
    is given and not 1. `top_k` 0 is off. `max_new_tokens` None: the rest of the context. `stop_words` may be
    of any length; a word of `bad_words` must be one token. `logprobs` n: of the chosen token and the n most
    likely. `output_logits` "generation" or "all" (the prompt's too).
    """

    n: int = 1
    max_new_tokens: int | None = 512
    top_p: float = 1.0
    top_k: int | None = None
    temperature: float = 0.8
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    random_seed: int | None = None
    stop_words: list[str] | None = None
    bad_words: list[str] | None = None
    min_new_tokens: int | None = None
    skip_special_tokens: bool = True
    logprobs: int | None = None
    do_sample: bool | None = None
    min_p: float = 0.0
    stop_token_ids: list[int] | None = None
    bad_token_ids: list[int] | None = None
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_logits: str | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    response_format: dict[str, Any] | None = None
    logits_processors: list[Any] | None = None
    output_last_hidden_state: str | None = None
    repetition_ngram_size: int = 0
    repetition_ngram_threshold: int = 0


Config = GenerationConfig | SamplingParams


@dataclass(slots=True)
class TurbomindEngineConfig:
    """How the engine is loaded; None is lmtop's own default (`lmtop chat --help` names it).

    `cache_max_entry_count`: below 1 the share of the memory that is free after the weights, from 1 on a
    number of blocks. `quant_policy`: the KV cache's bits, 0 (16), 8 or 4; until LMDeploy 0.4 the number 4
    meant int8.
    """

    model_name: str | None = None
    model_format: str | None = None
    tp: int = 1
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float | None = None
    cache_block_seq_len: int = 64
    quant_policy: int = 0
    rope_scaling_factor: float = 0.0
    use_logn_attn: bool = False
    download_dir: str | None = None
    revision: str | None = None
    max_prefill_token_num: int | None = None
    cache_chunk_size: int = -1
    num_tokens_per_iter: int = 0
    max_prefill_iters: int = 1
    enable_prefix_caching: bool | None = None
    dtype: str = "auto"
    dp: int = 1
    cp: int = 1
    ep: int = 1
    devices: list[int] | None = None
    communicator: str = "nccl"
    hf_overrides: dict[str, Any] | None = None
    enable_metrics: bool = True
    async_: int = 1
    empty_init: bool = False
    language_model_only: bool = False


@dataclass(slots=True)
class PytorchEngineConfig:
    """As `TurbomindEngineConfig`, with the names of LMDeploy's other engine: both run on the same one
    here."""

    model_name: str = ""
    tp: int = 1
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float | None = None
    eviction_type: str = "recompute"
    prefill_interval: int = 16
    block_size: int = 64
    num_cpu_blocks: int = 0
    num_gpu_blocks: int = 0
    adapters: dict[str, str] | None = None
    max_prefill_token_num: int | None = None
    thread_safe: bool = False
    download_dir: str | None = None
    revision: str | None = None
    enable_prefix_caching: bool | None = None
    dtype: str = "auto"
    device_type: str = "auto"
    eager_mode: bool = False
    quant_policy: int = 0
    model_format: str | None = None
    dp: int = 1
    ep: int = 1
    custom_module_map: dict[str, str] | None = None
    distributed_executor_backend: str | None = None
    hf_overrides: dict[str, Any] | None = None
    enable_metrics: bool = True


@dataclass(slots=True)
class ChatTemplateConfig:
    """The chat format, where it is not to be the model's own.

    `meta_instruction` alone is a system prompt in the model's own format. Any of the pieces replaces the
    format: `{system}{meta_instruction}{eosys}{user}...{eoh}{assistant}...{eoa}{separator}{user}...`, pieces
    that are not given are empty, and without a `meta_instruction` there is no system part. `capability`
    "completion", or the `model_name` "base", continues the text as it is. Other names are only names: the
    model's files decide.
    """

    model_name: str | None = None
    system: str | None = None
    meta_instruction: str | None = None
    eosys: str | None = None
    user: str | None = None
    eoh: str | None = None
    assistant: str | None = None
    eoa: str | None = None
    separator: str | None = None
    capability: str | None = None
    stop_words: list[str] | None = None

    @property
    def pieces(self) -> dict[str, str]:
        """The parts of a format of its own; empty when there are none."""
        names = ("system", "eosys", "user", "eoh", "assistant", "eoa", "separator")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def raw(self) -> bool:
        """Whether there is no chat: the text itself is continued."""
        return self.capability == "completion" or self.model_name == "base"

    def to_json(self, file_path: str | Path | None = None) -> str:
        """The fields as a JSON document, which is also written to `file_path` where one is given."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2)
        if file_path is not None:
            Path(file_path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, file_or_string: str | Path) -> ChatTemplateConfig:
        """From a file, or from a document itself. UsageError names what is wrong with it."""
        text = str(file_or_string)
        where = "the chat template"
        if isinstance(file_or_string, Path) or not text.lstrip().startswith("{"):
            where = one_line(text, 80)
            try:
                text = Path(file_or_string).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "not valid UTF-8"
                raise UsageError(f"{where}: cannot read: {reason}") from None
        try:
            values = json.loads(text[: TEMPLATE_LIMIT + 1])
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: {one_line(str(error), 120)}") from None
        names = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise UsageError(f"{where}: must be an object with the keys of a chat template")
        if unknown := sorted(values.keys() - names):
            raise UsageError(
                f"{where}: unknown key {one_line(unknown[0], 40)!r}; known: {', '.join(sorted(names))}"
            )
        for name, value in values.items():
            if value is not None and not isinstance(value, list if name == "stop_words" else str):
                raise UsageError(f"{where}: {name} = {one_line(repr(value), 40)}: must be text")
        return cls(**values)
