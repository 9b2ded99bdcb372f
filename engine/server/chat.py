"""POST /v1/chat/completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from ..types import Message, Request, SamplingParams, ToolCall
from .errors import BadRequest, shown
from .openai_forms import ChatForm, Head
from .readers import reader_for
from .schemas import ChatMessage, ChatRequest, TextPart
from .service import Service
from .tools import offered_tools

RESERVED = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "conversation",
    "tokenize",
    "tokenizer",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
}


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/chat/completions", tags=["OpenAI"], response_model=None)
    async def chat_completions(body: ChatRequest) -> Response:
        """A reply to a conversation; with `stream` as server-sent events."""
        return _chat(service, body)


def _chat(service: Service, body: ChatRequest) -> Response:
    loaded = service.ready(body.model)
    info = loaded.info
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadRequest("max_tokens: give only max_completion_tokens", "max_tokens")
    if body.response_format is not None and body.response_format.type != "text":
        raise BadRequest(
            f"response_format.type: {body.response_format.type} is not supported by this server yet; only text is",
            "response_format.type",
            "unsupported_parameter",
        )
    newest = body.max_completion_tokens is not None
    sampling = service.params(
        body,
        info,
        max_new_tokens=body.max_completion_tokens if newest else body.max_tokens,
        length_field="max_completion_tokens" if newest else "max_tokens",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    assert loaded.template is not None and loaded.tokenizer is not None
    offer = offered_tools(body, loaded.template)
    if offer is not None and offer.syntax.special:
        sampling = dataclasses.replace(sampling, skip_special_tokens=False)
    answer_id = service.exchange.new_id()
    label = body.user or ("" if body.session_id in (None, -1) else f"session {body.session_id}")
    prompt: dict[str, Any]
    if isinstance(body.messages, str):
        prompt = {"prompt": body.messages}
    else:
        messages = [engine_message(message) for message in body.messages]
        prompt = {
            "messages": tuple(messages),
            "tools": offer.schemas if offer is not None else "",
            "template_options": _template_options(body),
        }
    requests = parts(answer_id, body.n or 1, sampling, label, **prompt)
    readers = [
        reader_for(loaded.template, loaded.tokenizer, body, offer, answer_id, part)
        for part in range(len(requests))
    ]
    form = ChatForm(
        Head(f"chatcmpl-{answer_id}", "chat.completion.chunk", service.names(info)[0]),
        bool(body.stream_options and body.stream_options.include_usage),
        readers,
        bool(body.logprobs),
        loaded.tokenizer.token_bytes,
    )
    return service.reply(requests, form, bool(body.stream))


def parts(
    answer_id: str, n: int, sampling: SamplingParams, label: str, first: int = 0, **prompt: Any
) -> list[Request]:
    """`n` requests of the same prompt. A seed gives each part another one, always the same."""
    return [
        Request(
            id=f"{answer_id}/{first + place}",
            sampling=sampling
            if sampling.seed is None
            else dataclasses.replace(sampling, seed=(sampling.seed + place + 2**63) % 2**64 - 2**63),
            session=label or answer_id,
            label=label or f"#{answer_id.partition('-')[0]}",
            **prompt,
        )
        for place in range(n)
    ]


def engine_message(message: ChatMessage) -> Message:
    """A message as the engine knows it. `developer` is what OpenAI calls `system` of late."""
    role = "system" if message.role == "developer" else message.role
    return Message(
        role=role,
        content=text_of(message.content),
        name=message.name or "",
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id or "",
        reasoning=message.reasoning_content or "",
    )


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message: parts are joined by line breaks, as elsewhere."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or ())


def _template_options(body: ChatRequest) -> tuple[tuple[str, bool | int | float | str], ...]:
    options = dict(body.chat_template_kwargs or {})
    for name in options:
        if name in RESERVED or not name.isidentifier() or len(name) > 64:
            raise BadRequest(
                f"chat_template_kwargs: {shown(name, 40)} is not a variable that a request may set",
                "chat_template_kwargs",
            )
    if body.enable_thinking is not None:
        options["enable_thinking"] = body.enable_thinking
    return tuple(options.items())
