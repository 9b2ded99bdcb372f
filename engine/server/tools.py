"""Tool calls: which syntax a model writes them in, and finding them in its text.

The model's own chat template tells it of the functions; what it answers with is one of three syntaxes:

    hermes    <tool_call>{"name": ..., "arguments": {...}}</tool_call>, once or several times (Hermes, Qwen 2.5 and 3)
    internlm  <|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>
    llama3    the whole reply, after an optional <|python_tag|>: {"name": ..., "parameters": {...}}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import BadRequest
from .schemas import ChatRequest, NamedTool

if TYPE_CHECKING:
    from ..template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Syntax:
    """`opening` begins a call, `closing` ends it ("": the end of the reply does). `special`: they are special tokens,
    which a reply hides unless told otherwise. `bare`: a reply that begins with a brace is a call as well."""

    name: str
    opening: str
    closing: str
    special: bool = False
    bare: bool = False


HERMES = Syntax("hermes", "<tool_call>", "</tool_call>")
INTERNLM = Syntax("internlm", "<|action_start|><|plugin|>", "<|action_end|>", special=True)
LLAMA3 = Syntax("llama3", "<|python_tag|>", "", special=True, bare=True)


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions of one request. `schemas`: a JSON list, for the template. `single`: at most one call."""

    syntax: Syntax
    schemas: str
    single: bool


def offered_tools(body: ChatRequest, template: ChatTemplate) -> Offer | None:
    """What the model may call; None when nothing. BadRequest for what cannot be honoured."""
    if not body.tools or body.tool_choice == "none":
        return None
    if body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool):
        raise BadRequest(
            "tool_choice: only auto and none are supported: a call cannot be forced here",
            "tool_choice",
            "unsupported_parameter",
        )
    if any(tool.function.strict for tool in body.tools):
        raise BadRequest(
            "tools: strict is not supported: a call cannot be forced into a schema here",
            "tools",
            "unsupported_parameter",
        )
    syntax = syntax_of(template)
    if syntax is None:
        raise BadRequest(
            "tools: this model's chat template knows no tools, or has a form of them that is not supported",
            "tools",
            "unsupported_parameter",
        )
    listed = [tool.model_dump(exclude_none=True) for tool in body.tools]
    return Offer(
        syntax,
        json.dumps(listed, ensure_ascii=False),
        body.parallel_tool_calls is False,
    )


def syntax_of(template: ChatTemplate) -> Syntax | None:
    """How the template has the model write calls."""
    source = template.tool_source
    if source is None:
        return None
    if INTERNLM.closing in source:
        return INTERNLM
    if "<tool_call>" in source and "<function=" not in source:
        return HERMES
    if "<|python_tag|>" in source or "ipython" in source:
        return LLAMA3
    return None


def calls_in(text: str) -> list[tuple[str, str]] | None:
    """(name, arguments as JSON) of each call in the text between opening and closing; None when it is none."""
    found: list[tuple[str, str]] = []
    decoder = json.JSONDecoder()
    rest = text.strip().removesuffix(";").strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        for item in value if isinstance(value, list) else [value]:
            call = _call(item)
            if call is None:
                return None
            found.append(call)
        rest = rest[end:].lstrip("; \n")
    return found or None


def _call(item: Any) -> tuple[str, str] | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):  # some models write them as text, as OpenAI's API does
        return item["name"], arguments
    return item["name"], json.dumps(arguments, ensure_ascii=False)
