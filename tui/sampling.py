"""Sampling settings as people type them, as the history stores them, and as the status line shows them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping

from ..engine.types import SamplingParams, UsageError

_ALIASES = {
    "temp": "temperature",
    "t": "temperature",
    "rep": "repetition_penalty",
    "presence": "presence_penalty",
    "frequency": "frequency_penalty",
    "max": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
}
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTS = ("top_k", "min_new_tokens")
_OPTIONAL_INTS = ("seed", "max_new_tokens")
SETTABLE = (*_FLOATS, *_INTS, *_OPTIONAL_INTS, "stop")


def apply_settings(text: str, base: SamplingParams) -> SamplingParams:
    """`base` with assignments such as `temp=.7 top_p=0.9 seed=none stop="END"` applied.

    Raises: UsageError naming the setting and what is allowed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"set: {error}") from None
    changes: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = _ALIASES.get(name.replace("-", "_").lower(), name.replace("-", "_").lower())
        if not equals or name not in SETTABLE:
            raise UsageError(f"set: {word!r}: write name=value, with a name of {', '.join(SETTABLE)}")
        changes[name] = _value(name, value)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def _value(name: str, value: str) -> object:
    off = value.lower() in ("", "none", "off")
    try:
        if name == "stop":
            return () if off else (value.replace("\\n", "\n").replace("\\t", "\t"),)
        if name in _OPTIONAL_INTS:
            return None if off else int(value)
        return int(value) if name in _INTS else float(value)
    except ValueError:
        kind = "a number" if name in _FLOATS else "a whole number"
        raise UsageError(f"set: {name} = {value!r}: must be {kind}") from None


def to_dict(params: SamplingParams) -> dict[str, object]:
    """What differs from the defaults of `SamplingParams`, as JSON can hold it."""
    default = SamplingParams()
    return {
        name: list(value) if isinstance(value := getattr(params, name), tuple) else value
        for name in SETTABLE
        if getattr(params, name) != getattr(default, name)
    }


def from_dict(stored: Mapping[str, object], base: SamplingParams) -> SamplingParams:
    """The inverse of `to_dict` over `base`; entries that make no sense any more are dropped."""
    params = base
    for name in SETTABLE:
        if name in stored:
            value = stored[name]
            try:
                value = tuple(value) if isinstance(value, list) else value
                params = dataclasses.replace(params, **{name: value})  # type: ignore[arg-type]
            except (UsageError, TypeError):
                continue
    return params


def summary(params: SamplingParams, width: int) -> str:
    """The settings in at most about `width` cells, the most used first: "temp 0.7  top-p 0.9  max 1024"."""
    optional = [
        ("top-k", params.top_k, 0),
        ("min-p", params.min_p, 0.0),
        ("rep", params.repetition_penalty, 1.0),
        ("max", params.max_new_tokens, None),
        ("seed", params.seed, None),
        ("stop", len(params.stop), 0),
    ]
    text = f"temp {params.temperature:g}  top-p {params.top_p:g}"
    for name, value, off in optional:
        part = f"  {name} {value:g}" if value is not None and value != off else ""
        if len(text) + len(part) <= width:
            text += part
    return text
