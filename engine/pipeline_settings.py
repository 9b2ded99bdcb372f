"""From the values of the Python API (`engine.messages`) to the engine's own, and what is said on the way. No
torch."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import POLICY_4
from .config import EngineConfig
from .messages import Config, GenerationConfig, PytorchEngineConfig, TurbomindEngineConfig
from .settings import KV_OF_POLICY
from .types import GREEDY, SamplingParams, UsageError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

BackendConfig = EngineConfig | TurbomindEngineConfig | PytorchEngineConfig
BAN = -100.0  # added to the logit of a bad word: no model's lead is as large
DEFAULT_TOP_K = 50  # of do_sample=True without a top_k, as in LMDeploy since 0.6
QUEUE = 1 << 30  # a pipeline bounds what it has open itself
GPU_BATCH = 64
PACKED = ("awq", "gptq", "compressed-tensors", "fp8", "mxfp4")
FORMATS = (None, "hf", "llama", *PACKED)
POLICIES = {"none": 0, "int8": 8, "int4": 4}

# What decides no token here: the files say which model it is, and there is one engine on one GPU.
IDLE = (
    "model_name", "cache_chunk_size", "num_tokens_per_iter", "max_prefill_iters", "communicator", "devices",
    "enable_metrics", "async_", "language_model_only", "eviction_type", "prefill_interval", "num_cpu_blocks",
    "thread_safe", "distributed_executor_backend", "spaces_between_special_tokens", "tp", "dp", "cp", "ep",
)  # fmt: skip
# What would change the answers, and is not there.
REFUSED = {
    "rope_scaling_factor": "set rope_scaling in the model's config.json",
    "use_logn_attn": "the model's config.json decides",
    "hf_overrides": "change the model's config.json",
    "revision": "download that revision and give its directory",
    "download_dir": "set HF_HOME, or download the model and give its directory",
    "empty_init": "lmtop bench --random-weights measures a shape without weights",
    "adapters": "merge the adapter into the model",
    "custom_module_map": "no code of a model runs here",
    "n": "give the prompt several times, each with its own random_seed",
    "response_format": "leave it out",
    "logits_processors": "logit_bias of lmtop.SamplingParams adds to single tokens",
    "output_last_hidden_state": "leave it out",
    "repetition_ngram_size": "use repetition_penalty",
    "repetition_ngram_threshold": "use repetition_penalty",
}

# Of `pipeline` in other releases of LMDeploy, without effect here.
OLD_ARGUMENTS = (
    "model_name", "tp", "instance_num", "max_log_len", "trust_remote_code", "speculative_config", "backend",
    "allowed_media_domains",
)  # fmt: skip

_said: set[str] = set()
_saying = threading.Lock()
_OURS = str(Path(__file__).parent)


def warn_once(text: str) -> None:
    """A UserWarning at the caller's line, the first time that `text` is said in this process."""
    with _saying:
        if text in _said:
            return
        _said.add(text)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


def _examine(values: TurbomindEngineConfig | PytorchEngineConfig | GenerationConfig) -> None:
    """Warn of fields without meaning here and refuse those that are not supported, where they are not as by
    default."""
    for item in dataclasses.fields(values):
        value = getattr(values, item.name)
        if value == item.default or value is None or value == "":
            continue
        call = f"{type(values).__name__}.{item.name}"
        if item.name in REFUSED:
            raise UsageError(f"{call} = {value!r}: not supported; {REFUSED[item.name]}")
        if item.name in IDLE:
            why = (
                "runs on one GPU"
                if item.name in ("tp", "dp", "cp", "ep", "devices")
                else "has no effect here"
            )
            warn_once(f"{call} = {value!r}: {why}")


def examine_old(given: dict[str, Any]) -> None:
    """Accept what `pipeline` took in other releases of LMDeploy, and say that it has no effect. TypeError
    otherwise."""
    for name, value in given.items():
        if name not in OLD_ARGUMENTS:
            raise TypeError(f"pipeline() got an unexpected argument {name!r}")
        if value not in (None, False, 1):
            warn_once(f"pipeline: {name} = {value!r}: has no effect here")


# --- the engine ---------------------------------------------------------------------------------------------


def engine_config(model: str | os.PathLike[str], wanted: BackendConfig | None) -> EngineConfig:
    """The engine's intent for `model`. UsageError names the field that cannot be accepted."""
    path = os.fspath(model)
    if not isinstance(path, str) or not path:
        raise UsageError(f'model_path = {path!r}: must be a directory, a hub id or "demo"')
    if wanted is None:
        wanted = TurbomindEngineConfig()
    if isinstance(wanted, EngineConfig):
        return replace(wanted, model=path, max_queue=QUEUE)
    if not isinstance(wanted, (TurbomindEngineConfig, PytorchEngineConfig)):
        raise UsageError(
            f"backend_config = {wanted!r}: must be TurbomindEngineConfig, PytorchEngineConfig or EngineConfig"
        )
    _examine(wanted)
    if wanted.model_format not in FORMATS:
        known = ", ".join(str(name) for name in FORMATS[1:])
        raise UsageError(f"model_format = {wanted.model_format!r}: must be one of {known}, or None")
    device = getattr(wanted, "device_type", "auto")
    given: dict[str, Any] = {
        "model": path,
        "device": device,
        "dtype": wanted.dtype,
        "kv": _kv(wanted.quant_policy),
        "session_len": wanted.session_len,
        "max_batch_size": wanted.max_batch_size or _batch(device),
        "cache_max_entry_count": wanted.cache_max_entry_count,
        "max_queue": QUEUE,
    }
    if wanted.max_prefill_token_num is not None:
        given["max_prefill_token_num"] = wanted.max_prefill_token_num
    if wanted.enable_prefix_caching is not None:
        given["prefix_caching"] = wanted.enable_prefix_caching
    if isinstance(wanted, PytorchEngineConfig):
        given |= {"cache_block_seq_len": wanted.block_size, "graphs": not wanted.eager_mode}
        if wanted.num_gpu_blocks:
            given["cache_max_entry_count"] = wanted.num_gpu_blocks
    else:
        given["cache_block_seq_len"] = wanted.cache_block_seq_len
    return EngineConfig(**given)


def _kv(policy: int | str) -> str:
    number = POLICIES.get(policy, policy) if isinstance(policy, str) else policy
    if number not in KV_OF_POLICY:
        raise UsageError(f"quant_policy = {policy!r}: must be 0 (16 bits), 8 (int8) or 4 (int4)")
    if policy == 4:
        warn_once(POLICY_4)
    return KV_OF_POLICY[number]


def _batch(device: str) -> int:
    """Rows of a batch, unasked: whole lists of prompts are the rule here, and a GPU's rows cost little
    memory."""
    from .devices import device_info

    return GPU_BATCH if device_info(device).kind == "cuda" else EngineConfig("").max_batch_size


# --- sampling -----------------------------------------------------------------------------------------------


def sampling(wanted: Config | None, tokenizer: Tokenizer) -> SamplingParams:
    """How the engine draws. `tokenizer` turns bad words into tokens. UsageError names the field."""
    if isinstance(wanted, SamplingParams):
        return wanted
    if wanted is None:
        wanted = GenerationConfig()
    if not isinstance(wanted, GenerationConfig):
        raise UsageError(f"gen_config = {wanted!r}: must be GenerationConfig or SamplingParams")
    _examine(wanted)
    draw = wanted.do_sample if wanted.do_sample is not None else wanted.top_k not in (None, 1)
    if not draw and wanted.do_sample is None and _wants_chance(wanted):
        warn_once(
            "GenerationConfig: greedy, since neither do_sample nor top_k is given; do_sample=True makes "
            "temperature, top_p and min_p count"
        )
    texts, tokens = stops("stop_words", wanted.stop_words, tokenizer)
    chance: dict[str, Any] = {
        "temperature": float(wanted.temperature),
        "top_p": float(wanted.top_p),
        "top_k": DEFAULT_TOP_K if wanted.top_k is None else wanted.top_k,
        "min_p": float(wanted.min_p),
    }
    try:
        return replace(
            GREEDY,
            **(chance if draw else {}),
            repetition_penalty=float(wanted.repetition_penalty),
            presence_penalty=float(wanted.presence_penalty),
            frequency_penalty=float(wanted.frequency_penalty),
            logit_bias=tuple((token, BAN) for token in _bad_tokens(wanted, tokenizer)),
            seed=_seed(wanted.random_seed),
            logprobs=wanted.logprobs,
            max_new_tokens=wanted.max_new_tokens,
            min_new_tokens=wanted.min_new_tokens or 0,
            stop=texts,
            stop_token_ids=(*(wanted.stop_token_ids or ()), *tokens),
            ignore_eos=wanted.ignore_eos,
            include_stop=wanted.include_stop_str_in_output,
            skip_special_tokens=wanted.skip_special_tokens,
        )
    except (TypeError, ValueError) as error:  # of a field's type: its value would have been named
        raise UsageError(f"GenerationConfig: {error}") from None


def _wants_chance(wanted: GenerationConfig) -> bool:
    plain = GenerationConfig()
    return (wanted.temperature, wanted.top_p, wanted.min_p) != (
        plain.temperature,
        plain.top_p,
        plain.min_p,
    ) and (wanted.top_k is None)


def _seed(seed: int | None) -> int | None:
    """LMDeploy's seeds are unsigned 64-bit numbers: the same bits."""
    return seed - (1 << 64) if isinstance(seed, int) and 1 << 63 <= seed < 1 << 64 else seed


def _words(name: str, words: Sequence[str] | str | None) -> tuple[str, ...]:
    given = (words,) if isinstance(words, str) else tuple(words or ())
    if wrong := [word for word in given if not isinstance(word, str)]:
        raise UsageError(
            f"{name} = {wrong[0]!r}: must be texts; token ids go into {name.split('_')[0]}_token_ids"
        )
    return given


def stops(
    name: str, words: Sequence[str] | str | None, tokenizer: Tokenizer
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Stop words as (texts, token ids): a special token, such as <|im_end|>, has no text that could be
    found."""
    given = _words(name, words)
    ids = tuple(tokenizer.added[word] for word in given if word in tokenizer.added)
    return tuple(word for word in given if word not in tokenizer.added), ids


def _bad_tokens(wanted: GenerationConfig, tokenizer: Tokenizer) -> list[int]:
    """The tokens that may not be drawn: a word with and without a space in front."""
    tokens = list(wanted.bad_token_ids or ())
    for word in _words("bad_words", wanted.bad_words):
        spellings = {word, f" {word.strip()}", word.strip()}
        found = [ids[0] for text in spellings if len(ids := tokenizer.encode(text, add_special=False)) == 1]
        if not found:
            raise UsageError(
                f"bad_words: {word!r} is not one token of this model, and only single tokens can be kept out"
            )
        tokens += found
    return list(dict.fromkeys(tokens))


def old_config(old: dict[str, Any], given: Any) -> GenerationConfig:
    """LMDeploy 0.1's keywords, with its defaults: it sampled from the 40 most likely tokens. `given`: the
    gen_config beside them, which must be None."""
    plain: dict[str, Any] = {"request_output_len": 512, "top_k": 40, "top_p": 0.8, "temperature": 0.8}
    known = (*plain, "repetition_penalty", "ignore_eos")
    if unknown := [name for name in old if name not in known]:
        raise TypeError(f"unexpected argument {unknown[0]!r}; gen_config takes a GenerationConfig")
    if given is not None:
        raise UsageError(f"{next(iter(old))}: give it in gen_config")
    values = plain | old
    return GenerationConfig(max_new_tokens=values.pop("request_output_len"), **values)
