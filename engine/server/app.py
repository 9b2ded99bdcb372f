"""The application: routes, documentation, and every error in OpenAI's form."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from ..answer import debug_log
from ..arguments import installed_version
from . import chat, completions, generate, interactive, operate, watch
from .errors import CODES, ApiError, BadRequest, error_response, shown
from .service import Service
from .strictjson import parse

TITLE = "lmtop"
DESCRIPTION = (
    "OpenAI's API and LMDeploy's, for one model. Unknown or unsupported fields are refused with 400. "
    "Errors: {error: {message, type, param, code}}."
)
# Names of the forms of a union, which pydantic puts into the place of an error.
UNION_TAGS = {"text", "many", "ids", "many_ids", "object", "generate", "interactive"}
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}


class StrictRequest(Request):
    """A body that is bounded in size and time, and strict JSON."""

    limit = 0
    seconds = 0.0

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(self.seconds):
                    self._body = await self._bounded()
            except TimeoutError:
                raise ApiError(408, "the body did not arrive in time", "timeout") from None
        return self._body

    async def _bounded(self) -> bytes:
        parts, size = [], 0
        async for part in self.stream():
            size += len(part)
            if size > self.limit:
                raise ApiError(413, f"the body is larger than {self.limit} bytes", "body_too_large")
            parts.append(part)
        return b"".join(parts)

    async def json(self) -> Any:
        value = parse(await self.body())
        if not isinstance(value, dict):
            raise BadRequest("the body must be a JSON object", code="invalid_json")
        return value


def _strict_route(service: Service) -> type[APIRoute]:
    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                strict = StrictRequest(request.scope, request.receive)
                strict.limit, strict.seconds = service.limits.body, service.limits.body_s
                try:
                    return await handler(strict)
                except ClientDisconnect:
                    return Response(status_code=499)  # nobody is there to read it

            return handle

    return StrictRoute


def create_app(service: Service) -> FastAPI:
    """The ASGI application of `service`."""
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=installed_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    for part in (chat, completions, generate, interactive, operate, watch):
        router = APIRouter(route_class=_strict_route(service))
        part.add_routes(router, service)
        app.include_router(router)
    _add_pages(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    return app


# --- documentation -----------------------------------------------------------------------------------------


def _add_pages(app: FastAPI) -> None:
    """Swagger's page and its files, which come with an installed package: it works without a network."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="lmtop: API",
        swagger_js_url="assets/swagger-ui-bundle.js",
        swagger_css_url="assets/swagger-ui.css",
        swagger_favicon_url="assets/favicon.png",
    )

    async def docs() -> HTMLResponse:
        return page

    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        data = resources.files("fastapi_offline").joinpath("static", name).read_bytes()
        return Response(data, media_type=ASSETS[name], headers={"Cache-Control": "max-age=86400"})

    app.add_api_route("/", docs, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_api_route("/assets/{name}", asset, include_in_schema=False)


# --- errors ------------------------------------------------------------------------------------------------


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid(next(iter(error.errors()))))


def invalid(problem: dict[str, Any]) -> ApiError:
    """The first thing that pydantic found wrong, as the error to tell."""
    where = [part for part in problem["loc"][1:] if part not in UNION_TAGS]
    param = ""
    for part in where:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    param = shown(param, 120)[1:-1]
    kind = problem["type"]
    if kind == "extra_forbidden":
        return BadRequest(
            f"{param}: unknown, or not supported by this server", param, "unsupported_parameter"
        )
    if kind == "missing":
        return BadRequest(f"{param or 'the body'}: missing", param or None, "missing_required_parameter")
    if kind == "value_error":
        name, _, text = str(problem["ctx"]["error"]).partition(": ")
        full = f"{param}.{name}" if param else name
        return BadRequest(f"{full}: {text}", full)
    if kind.startswith("union_tag"):
        return BadRequest(f"{param}: not of a type that is accepted here", param)
    text = problem["msg"][0].lower() + problem["msg"][1:]
    if "input" in problem and isinstance(problem["input"], (str, int, float, bool)):
        text += f", not {shown(problem['input'], 40)}"
    return BadRequest(f"{param or 'the body'}: {text}", param or None)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error_response(error)
    text = {404: "there is nothing at this path", 405: "this path does not take this method"}
    known = text.get(error.status_code, "the request cannot be served")
    return error_response(
        ApiError(error.status_code, known, CODES.get(error.status_code), headers=error.headers)
    )


async def _failed(request: Request, error: Exception) -> Response:
    debug_log("".join(traceback.format_exception(error)))
    return error_response(
        ApiError(500, "the server failed to handle this request; this is a bug", "internal_error")
    )
