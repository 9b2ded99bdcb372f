"""POST /v1/completions: text continued as it is, and /v1/embeddings, which no engine here computes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from .chat import parts
from .errors import ApiError, BadRequest
from .limits import N_LIMIT
from .openai_forms import CompletionForm, Head
from .schemas import CompletionRequest, EmbeddingRequest
from .service import Service

DEFAULT_TOKENS = 16  # OpenAI's


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/completions", tags=["OpenAI"], response_model=None)
    async def completions(body: CompletionRequest) -> Response:
        """Continue a text, or several; with `stream` as server-sent events."""
        return _complete(service, body)

    @router.post("/v1/embeddings", tags=["OpenAI"], response_model=None, status_code=501)
    async def embeddings(body: EmbeddingRequest) -> Response:
        """Always 501: the models served here generate text."""
        raise ApiError(501, "embeddings are not supported: this server generates text only", "unsupported")


def _complete(service: Service, body: CompletionRequest) -> Response:
    info = service.ready(body.model).info
    n = body.n or 1
    prompts = prompts_of(body.prompt)
    if n * len(prompts) > N_LIMIT * 4:
        raise BadRequest(
            f"n: {n} replies to each of {len(prompts)} prompts; at most {N_LIMIT * 4} in all", "n"
        )
    sampling = service.params(
        body,
        info,
        max_new_tokens=min(DEFAULT_TOKENS, info.context_len) if body.max_tokens is None else body.max_tokens,
        length_field="max_tokens",
        logprobs=body.logprobs,
    )
    answer_id = service.exchange.new_id()
    label = body.user or ("" if body.session_id in (None, -1) else f"session {body.session_id}")
    requests = [
        request
        for place, prompt in enumerate(prompts)
        for request in parts(answer_id, n, sampling, label, first=place * n, **prompt)
    ]
    form = CompletionForm(
        Head(f"cmpl-{answer_id}", "text_completion", service.names(info)[0]),
        len(requests),
        len(prompts),
        bool(body.stream_options and body.stream_options.include_usage),
        body.logprobs,
    )
    return service.reply(requests, form, bool(body.stream))


def prompts_of(given: str | list[Any]) -> list[dict[str, Any]]:
    """What `Request` is given for each prompt: `prompt` or `prompt_ids`."""
    if isinstance(given, str):
        return [{"prompt": given}]
    if isinstance(given[0], int):
        return [{"prompt_ids": tuple(given)}]
    return [
        {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)} for prompt in given
    ]
