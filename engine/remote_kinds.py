"""What each kind of server understands, as data: names of sampling fields, names of metrics.

Sources: the request schemas and metric names of vLLM (`vllm/entrypoints/openai/protocol.py`), SGLang
(`sglang/srt/openai_api/protocol.py`), LMDeploy (`lmdeploy/serve/openai/protocol.py`), llama.cpp
(`tools/server/README.md`), Ollama (`docs/openai.md`) and OpenAI's API reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from .types import SamplingParams

BASIC = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_new_tokens": "max_tokens",
    "stop": "stop",
}
PENALTIES = {"presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty"}
FILTERS = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
BIAS = {"logit_bias": "logit_bias"}
ENDING = {
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
}
SHOWN_ALWAYS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
)  # a server has defaults of its own


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server. `names`: field of SamplingParams -> field of the request, of those that it understands.
    `no_top_k` switches top_k off. `stops`: how many stop strings it takes. `counts`: it can send usage with every
    chunk."""

    name: str
    title: str
    names: Mapping[str, str]
    no_top_k: int = 0
    stops: int = 16
    counts: bool = False

    @property
    def understood(self) -> frozenset[str]:
        return frozenset(self.names)


UNKNOWN = Kind("openai", "OpenAI-compatible", BASIC | PENALTIES | BIAS, stops=4)
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        UNKNOWN,
        Kind(
            "lmtop",
            "lmtop",
            BASIC
            | PENALTIES
            | FILTERS
            | BIAS
            | ENDING
            | {"min_new_tokens": "min_new_tokens", "include_stop": "include_stop_str_in_output"},
        ),
        Kind(
            "vllm",
            "vLLM",
            BASIC
            | PENALTIES
            | FILTERS
            | BIAS
            | ENDING
            | {
                "min_new_tokens": "min_tokens",
                "stop_token_ids": "stop_token_ids",
                "include_stop": "include_stop_str_in_output",
            },
            no_top_k=-1,
            counts=True,
        ),
        Kind(
            "sglang",
            "SGLang",
            BASIC
            | PENALTIES
            | FILTERS
            | BIAS
            | ENDING
            | {"min_new_tokens": "min_tokens", "stop_token_ids": "stop_token_ids"},
            no_top_k=-1,
        ),
        # its presence and frequency penalties are accepted and do nothing
        Kind("lmdeploy", "LMDeploy", BASIC | FILTERS | BIAS | ENDING | {"min_new_tokens": "min_new_tokens"}),
        Kind(
            "llamacpp",
            "llama.cpp",
            BASIC
            | PENALTIES
            | BIAS
            | {
                "top_k": "top_k",
                "min_p": "min_p",
                "repetition_penalty": "repeat_penalty",
                "ignore_eos": "ignore_eos",
            },
        ),
        Kind("ollama", "Ollama", BASIC | PENALTIES),
    )
}
OWNERS = {"vllm": "vllm", "sglang": "sglang", "lmdeploy": "lmdeploy", "llamacpp": "llamacpp", "lmtop": "lmtop", "library": "ollama"}  # fmt: skip
DEFAULTS = SamplingParams()


def kind_of(owners: Iterable[str], metrics: Iterable[str] = (), header: str = "") -> Kind:
    """The kind, from the `owned_by` of its models, the names of its metrics and its Server header."""
    for owner in owners:
        if owner.lower() in OWNERS:
            return KINDS[OWNERS[owner.lower()]]
    for name in metrics:
        prefix = name.partition(":")[0]
        if prefix in KINDS and ":" in name:
            return KINDS[prefix]
    return KINDS["llamacpp"] if "llama.cpp" in header.lower() else UNKNOWN


def sampling_fields(params: SamplingParams, kind: Kind, refused: Iterable[str] = ()) -> dict[str, object]:
    """The request's sampling fields. Those that say how tokens are chosen are always sent, as a server's own defaults
    would else differ from what the screen shows; the others where they are not off. `refused` names are left out."""
    given: dict[str, object] = {}
    for name, theirs in kind.names.items():
        value = getattr(params, name)
        if theirs in refused or (name not in SHOWN_ALWAYS and value == getattr(DEFAULTS, name)):
            continue
        if name == "top_k":
            value = value or kind.no_top_k
        elif name == "logit_bias":
            value = {str(token): bias for token, bias in value}
        elif name in ("stop", "stop_token_ids"):
            value = list(value)[: kind.stops]
        given[theirs] = value
    return given


def not_understood(params: SamplingParams, kind: Kind) -> list[str]:
    """What `params` ask for and a server of this kind cannot do, in plain words."""
    named: Sequence[str] = [field.name for field in fields(params)]
    lost = [
        name
        for name in named
        if name not in kind.names and name != "logprobs" and getattr(params, name) != getattr(DEFAULTS, name)
    ]
    if len(params.stop) > kind.stops:
        lost.append(f"more than {kind.stops} stop texts")
    return lost
