"""LMDeploy's own endpoints for text: /generate in both of its schemas, /v1/encode, /get_ppl."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body
from pydantic import Discriminator, Tag
from starlette.responses import Response

from .. import score
from ..types import Accepted, Delta, Event, Finished, LmtopError, Message
from .chat import parts
from .completions import prompts_of
from .errors import ApiError, BadRequest
from .interactive import converse
from .openai_forms import DONE, finite, reason_of
from .replies import SSE, encoded
from .schemas import EncodeRequest, GenerateRequest, InteractiveRequest, PplRequest
from .service import Loaded, Service

if TYPE_CHECKING:
    from ..loader import Engine

OLDER = {"interactive_mode", "request_output_len", "cancel", "adapter_name"}


def _which(value: Any) -> str:
    """The two schemas of /generate are told apart by the fields that only the older one has."""
    if isinstance(value, dict):
        older = OLDER & value.keys() or isinstance(value.get("prompt"), list)
        return "interactive" if older else "generate"
    return "interactive" if isinstance(value, InteractiveRequest) else "generate"


EitherRequest = Annotated[
    Annotated[GenerateRequest, Tag("generate")] | Annotated[InteractiveRequest, Tag("interactive")],
    Discriminator(_which),
    Body(),
]


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/generate", tags=["LMDeploy"], response_model=None)
    async def generate(body: EitherRequest) -> Response:
        """Continue `prompt` or `input_ids`; or, in the older schema, as /v1/chat/interactive."""
        if isinstance(body, InteractiveRequest):
            return converse(service, body)
        return _generate(service, body)

    @router.post("/v1/encode", tags=["LMDeploy"], response_model=None)
    async def encode(body: EncodeRequest) -> Response:
        """The token ids of a text, or of several."""
        loaded = service.ready()
        texts = [body.input] if isinstance(body.input, str) else body.input
        ids = await asyncio.to_thread(_encode, loaded, texts, body)
        single = isinstance(body.input, str)
        answer = {
            "input_ids": ids[0] if single else ids,
            "length": len(ids[0]) if single else [len(each) for each in ids],
        }
        return Response(encoded(answer), media_type="application/json")

    @router.post("/get_ppl", tags=["LMDeploy"], response_model=None)
    async def get_ppl(body: PplRequest) -> Response:
        """The mean cross-entropy (in nats) of each text's tokens but the first: LMDeploy's "ppl"."""
        tokenizer = service.ready().tokenizer
        values = []
        for prompt in prompts_of(body.input):
            if "prompt" in prompt:
                ids = await asyncio.to_thread(tokenizer.encode, prompt["prompt"], True)
            else:
                ids = list(prompt["prompt_ids"])
            values.append(await service.compute(_job(ids)))
        single = isinstance(body.input, str) or isinstance(body.input[0], int)
        return Response(encoded({"ppl": values[0] if single else values}), media_type="application/json")


def _job(ids: list[int]) -> Callable[[Engine], Generator[None, None, float]]:
    def parts(engine: Engine) -> Generator[None, None, float]:
        return score.cross_entropy(engine, ids)

    return parts


def _encode(loaded: Loaded, texts: list[str], body: EncodeRequest) -> list[list[int]]:
    try:
        if body.do_preprocess:
            return [loaded.template.render((Message("user", text),)) for text in texts]
        return [loaded.tokenizer.encode(text, add_special=body.add_bos is not False) for text in texts]
    except LmtopError as error:
        raise BadRequest(str(error), "input") from None


def _generate(service: Service, body: GenerateRequest) -> Response:
    info = service.ready().info
    sampling = service.params(
        body,
        info,
        max_new_tokens=body.max_tokens,
        length_field="max_tokens",
        logprobs=0 if body.return_logprob else None,
    )
    prompt: dict[str, Any] = (
        {"prompt": body.prompt} if body.prompt is not None else {"prompt_ids": tuple(body.input_ids or ())}
    )
    label = "" if body.session_id in (None, -1) else f"session {body.session_id}"
    requests = parts(service.exchange.new_id(), 1, sampling, label, **prompt)
    return service.reply(requests, GenerateForm(bool(body.return_logprob)), bool(body.stream))


class GenerateForm:
    """{text, output_ids, meta_info}; a stream sends what is new of each."""

    content_type = SSE

    def __init__(self, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._text: list[str] = []
        self._ids: list[int] = []
        self._told: list[list[float]] = []
        self._prompt = 0
        self._end: Finished | None = None

    def take(self, part: int, event: Event) -> bytes:
        if isinstance(event, Accepted):
            self._prompt = len(event.prompt_ids)
        elif isinstance(event, Delta):
            told = [[finite(token.chosen.logprob), token.chosen.token_id] for token in event.logprobs]
            self._text.append(event.text)
            self._ids += event.token_ids
            self._told += told
            return self._event(self._object(event.text, list(event.token_ids), told, None))
        elif isinstance(event, Finished):
            self._end = event
            return self._event(self._object("", [], [], event))
        return b""

    def closing(self) -> bytes:
        return DONE

    def error(self, error: ApiError) -> bytes:
        return self._event(error.body)

    def whole(self) -> dict[str, Any]:
        return self._object("".join(self._text), self._ids, self._told, self._end)

    @staticmethod
    def _event(value: Any) -> bytes:
        return b"data: " + encoded(value) + b"\n\n"

    def _object(
        self, text: str, ids: list[int], told: list[list[float]], end: Finished | None
    ) -> dict[str, Any]:
        reason = {"type": reason_of(end)} if end is not None else None
        if end is not None and end.reason == "length":
            reason = {"type": "length", "length": end.usage.completion_tokens}  # type: ignore[dict-item]
        return {
            "text": text,
            "output_ids": ids,
            "meta_info": {
                "finish_reason": reason,
                "output_token_logprobs": told if self._logprobs else None,
                "prompt_tokens": self._prompt,
                "completion_tokens": end.usage.completion_tokens if end is not None else len(self._ids),
            },
        }
