"""Errors as OpenAI's API tells them: {"error": {"message", "type", "param", "code"}}.

Messages are fixed sentences. What a client sent is quoted in them only through `shown`: escaped and cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..text import one_line
from ..types import Failed

RETRY_AFTER_S = "1"
TYPES = {
    401: "authentication_error",
    403: "forbidden_error",
    408: "timeout_error",
    499: "request_cancelled",
    503: "overloaded_error",
}
# Status by the code of `Failed`; any other is an error of ours.
STATUS = {
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "template_failed": 400,
    "loading": 503,
    "no_model": 503,
    "queue_full": 503,
    "engine_dead": 503,
    "engine_error": 503,
    "out_of_memory": 503,
    "shutting_down": 503,
    "sleeping": 503,
    "request_cancelled": 499,
}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}


class ApiError(HTTPException):
    """An error that a client is told. `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        more = dict(headers or {})
        if status == 503:
            more.setdefault("Retry-After", RETRY_AFTER_S)
        super().__init__(status, message, more)
        self.message, self.code, self.param = message, code, param

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status_code, self.message, self.code, self.param)


class BadRequest(ApiError):
    """400, the client's own mistake."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, code, param)


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The JSON of an error. Its `object` and top-level `message` and `code` are what LMDeploy's clients read."""
    kind = TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {
        "error": {"message": message, "type": kind, "param": param, "code": code},
        "object": "error",
        "message": message,
        "code": status,
    }


def error_response(error: ApiError) -> Response:
    """The whole answer."""
    return Response(
        json.dumps(error.body),
        error.status_code,
        headers=dict(error.headers or {}),
        media_type="application/json",
    )


def from_failed(event: Failed) -> ApiError:
    """What the engine said of a request that it could not answer."""
    return ApiError(STATUS.get(event.code, 500), event.message, event.code)


def shown(value: object, limit: int = 80) -> str:
    """`value` of a client, fit to be quoted in a message."""
    return one_line(repr(value), limit)
