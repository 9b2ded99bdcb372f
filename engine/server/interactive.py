"""/v1/chat/interactive, LMDeploy's until 0.9: the server keeps each session's conversation.

A stream is one JSON object per line, without `data:`. The conversation is kept as text; the engine's prefix cache
makes the next turn as cheap as a kept KV cache did.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from ..types import Accepted, Delta, Event, Failed, Finished, Message
from .chat import engine_message, parts
from .errors import ApiError
from .openai_forms import reason_of
from .replies import encoded
from .schemas import InteractiveRequest
from .service import Service


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/chat/interactive", tags=["LMDeploy"], response_model=None)
    async def chat_interactive(body: InteractiveRequest) -> Response:
        """One turn of a session that the server remembers (`interactive_mode`). An empty prompt with
        request_output_len 0 ends a session; `cancel` ends what it is generating."""
        return converse(service, body)


def converse(service: Service, body: InteractiveRequest) -> Response:
    """Answer one turn."""
    known = service.conversations
    session = secrets.randbits(48) if body.session_id is None or body.session_id < 0 else body.session_id
    if body.cancel:
        service.cut(lambda stream: stream.requests[0].session == _label(session))
        return _said("", 0, 0, 0, "stop")
    if body.prompt == "" and body.request_output_len == 0 and not body.interactive_mode:
        known.end(session)
        return _said("", 0, 0, 0, "stop")
    info = service.ready().info
    if session in known.busy:
        raise ApiError(409, f"session {session} is being answered already", "request_conflict", "session_id")
    said: Sequence[Message] = (
        (Message("user", body.prompt),)
        if isinstance(body.prompt, str)
        else [engine_message(message) for message in body.prompt]
    )
    history = known.turns(session)
    sampling = service.params(
        body,
        info,
        max_new_tokens=body.request_output_len or None,
        length_field="request_output_len",
    )
    requests = parts(service.exchange.new_id(), 1, sampling, _label(session), messages=(*history, *said))
    form = InteractiveForm()
    known.busy.add(session)

    def ended(ends: Sequence[Finished | Failed | None]) -> None:
        known.busy.discard(session)
        if body.interactive_mode and isinstance(ends[0], Finished):
            known.keep(session, (*history, *said, Message("assistant", form.text)))

    return service.reply(requests, form, bool(body.stream), ended)


def _label(session: int) -> str:
    return f"session {session}"


def _said(text: str, tokens: int, read: int, history: int, reason: str | None) -> Response:
    return Response(encoded(_object(text, tokens, read, history, reason)), media_type="application/json")


def _object(text: str, tokens: int, read: int, history: int, reason: str | None) -> dict[str, Any]:
    return {
        "text": text,
        "tokens": tokens,
        "input_tokens": read,
        "history_tokens": history,
        "finish_reason": reason,
    }


class InteractiveForm:
    """Tokens are counted from the session's beginning on: `history_tokens` came from the cache."""

    content_type = b"text/event-stream"

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._tokens = self._prompt = 0
        self._end: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def take(self, part: int, event: Event) -> bytes:
        if isinstance(event, Accepted):
            self._prompt = len(event.prompt_ids)
        elif isinstance(event, Delta):
            self._texts.append(event.text)
            self._tokens += len(event.token_ids)
            return self._line(event.text, None)
        elif isinstance(event, Finished):
            self._end = event
            return self._line("", reason_of(event))
        return b""

    def closing(self) -> bytes:
        return b""

    def error(self, error: ApiError) -> bytes:
        return encoded(error.body) + b"\n"

    def whole(self) -> dict[str, Any]:
        return self._made(self.text, reason_of(self._end) if self._end is not None else None)

    def _line(self, text: str, reason: str | None) -> bytes:
        return encoded(self._made(text, reason)) + b"\n"

    def _made(self, text: str, reason: str | None) -> dict[str, Any]:
        cached = self._end.usage.cached_tokens if self._end is not None else 0
        return _object(text, self._tokens, self._prompt - cached, cached, reason)
