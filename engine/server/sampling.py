"""From a request's fields to `SamplingParams`: what is not given comes from the model's generation_config.json,
else from lmtop's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hfconfig import CONFIG_CAP, ConfigReader, read_json
from ..types import ModelError, SamplingParams
from .errors import BadRequest, shown
from .schemas import OpenAISampled, Sampled

FILE = "generation_config.json"
OURS = SamplingParams()


@dataclass(frozen=True, slots=True)
class Defaults:
    """Sampling where a request says nothing."""

    temperature: float = OURS.temperature
    top_k: int = OURS.top_k
    top_p: float = OURS.top_p
    min_p: float = OURS.min_p
    repetition_penalty: float = OURS.repetition_penalty


def of_model(directory: Path) -> tuple[Defaults, str]:
    """The defaults for the model in `directory`, and a notice when its file could not be used ("" otherwise)."""
    path = directory / FILE
    try:
        if not path.exists():
            return Defaults(), ""
        file = ConfigReader(read_json(path, CONFIG_CAP), FILE)
        temperature = file.number("temperature", default=OURS.temperature, low=-1e-9, high=2.0)
        if file.raw("do_sample")[1] is False:
            temperature = 0.0
        return (
            Defaults(
                temperature=max(0.0, temperature),
                top_k=file.integer("top_k", default=OURS.top_k, low=0),
                top_p=file.number("top_p", default=OURS.top_p, low=0.0, high=1.0),
                min_p=max(0.0, file.number("min_p", default=OURS.min_p, low=-1e-9, high=1.0)),
                repetition_penalty=file.number(
                    "repetition_penalty", default=OURS.repetition_penalty, low=0.0, high=10.0
                ),
            ),
            "",
        )
    except ModelError as error:
        return Defaults(), f"{error}; lmtop's own sampling defaults are used"


def params(
    body: Sampled,
    defaults: Defaults,
    *,
    context: int,
    max_new_tokens: int | None,
    length_field: str,
    logprobs: int | None = None,
) -> SamplingParams:
    """The engine's parameters for one request. BadRequest names the field that is wrong."""
    if max_new_tokens is not None and max_new_tokens > context:
        raise BadRequest(
            f"{length_field} = {max_new_tokens}: the context has {context} tokens",
            length_field,
            "context_length_exceeded",
        )
    more: dict[str, Any] = {}
    if isinstance(body, OpenAISampled):
        more = {
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "logit_bias": _bias(body.logit_bias or {}),
            "seed": body.seed,
        }
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    given = {
        name: value
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        if (value := getattr(body, name)) is not None
    }
    chosen = {name: getattr(defaults, name) for name in Defaults.__slots__} | given
    if body.top_k is not None:
        chosen["top_k"] = max(0, body.top_k)
    return SamplingParams(
        **chosen,
        **more,
        logprobs=logprobs,
        max_new_tokens=max_new_tokens,
        min_new_tokens=body.min_new_tokens or 0,
        stop=stop,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
    )


def _bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    wrong = [key for key in given if not (key.isascii() and key.isdecimal() and len(key) < 10)]
    if wrong:
        names = ", ".join(shown(key, 24) for key in wrong[:5])
        raise BadRequest(f"logit_bias: no token ids: {names}", "logit_bias")
    return tuple((int(key), float(value)) for key, value in given.items())
